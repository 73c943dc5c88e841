"""Output folders whose files appear when all are written, locked to one run at a time.

Until then the files are in a hidden folder `.labelwise-partial-*`. A killed run leaves it behind;
the next run removes it. A file in it, `.made-by-labelwise`, tells it from a folder of that name
that a person made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from labelwise.io.files import check_outputs

LOCK = ".lock"
PARTIAL = ".labelwise-partial-"
MARK = ".made-by-labelwise"


@contextmanager
def locked(path: Path, refusal: str | None) -> Iterator[None]:
    """Hold a lock; the system releases it when the process ends, even if it is killed.

    Without effect on file systems that do not support locks.

    Args:
        path: the lock file; made if missing, never read or written.
        refusal: the message of the error if another run holds the lock; None to wait for it.

    Raises:
        FileExistsError: if another run holds the lock, or a link or folder is at `path`.
    """
    if path.is_symlink() or (path.exists() and not (path.is_file() and path.stat().st_nlink == 1)):
        raise FileExistsError(
            f"{path}: a symbolic link, a hard link or a folder is where a lock file should go; "
            "remove it"
        )
    with ExitStack() as stack:
        try:
            # the fallback is a lock file that may outlive its run
            timeout = -1 if refusal is None else 0
            stack.enter_context(FileLock(path, timeout=timeout, fallback_to_soft=False))
        except Timeout:
            raise FileExistsError(refusal) from None
        except OSError:  # some network file systems have no locks
            pass
        yield


@contextmanager
def staged(
    folder: str | Path,
    last: str,
    *,
    names: Collection[str] = (),
    stale: Collection[str] = (),
    inputs: Collection[Path] = (),
    overwrite: bool = False,
) -> Iterator[Path]:
    """A staging folder, whose files are moved to their folder when all are written.

    Use it in a `with` statement around the whole computation: entering checks that the folder is
    writable, leaving moves the files. After an exception (Ctrl-C included) nothing new is left.

    Args:
        folder: where the files go; made if missing.
        last: the file that is moved last, and whose earlier version is removed first: if it
            exists, so do the others.
        names: the files that will be written, to refuse existing ones before the work.
        stale: files of an earlier run, which are removed before the new ones are moved.
        inputs: the files that are read meanwhile; none of them is replaced or removed.
        overwrite: replace files that are there.

    Yields:
        A folder to write them in; files in folders below it keep their places.

    Raises:
        InputError: if an input would be replaced or removed, or a link leads out of the folder.
        FileExistsError: if another run is writing in the folder, or a file would be replaced.
        NotADirectoryError: if a file is where the folder should go.
        OSError: if the folder cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged(folder, "sum.txt") as staging:
        ...         _ = (staging / "one.txt").write_text("1")
        ...         _ = (staging / "sum.txt").write_text("1")
        ...         before = [path.name for path in Path(folder).glob("*.txt")]
        ...     before, sorted(path.name for path in Path(folder).iterdir())
        ([], ['one.txt', 'sum.txt'])
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: the output must be a folder, not a file")
    leftovers = [path.name for path in _leftovers(folder)]
    check_outputs(folder, [*stale, *leftovers], overwrite=True, inputs=inputs)
    _check_files(folder, {last, *names}, overwrite, inputs)
    with ExitStack() as stack:
        try:
            stack.enter_context(_made(folder))
            staging = stack.enter_context(_partial(folder))
        except OSError as error:
            if not error.strerror:
                raise
            raise OSError(
                f"{folder}: cannot write there ({error.strerror}); choose another output folder"
            ) from error
        yield staging
        written = _written(staging)
        _check_files(folder, written, overwrite, inputs)
        (folder / last).unlink(missing_ok=True)
        for name in set(stale) - set(written):
            (folder / name).unlink(missing_ok=True)
        _move(staging, folder, sorted(written, key=lambda name: (name == last, name)))


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A temporary folder to fill, renamed at the end; an earlier folder is replaced.

    Args:
        place: its final path; the parent folder exists, and no other run uses it.
    """
    partial = _marked(place.parent)
    try:
        yield partial
        (partial / MARK).unlink()
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_partial(folder: Path, but: Path | None = None) -> None:
    """Remove the partial results of killed runs from a folder; no other folder of such a name.

    Args:
        folder: where they are.
        but: one that is in use by this run.

    Raises:
        FileExistsError: if a run is still writing there.
    """
    for leftover in _leftovers(folder):
        if leftover != but:
            with _in_use(leftover):
                pass
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    """The partial folders in a folder: made by labelwise, and no links."""
    found = folder.glob(f"{PARTIAL}*")
    return [path for path in found if not path.is_symlink() and (path / MARK).is_file()]


def _in_use(staging: Path) -> AbstractContextManager[None]:
    """The lock held by the run that a partial folder belongs to."""
    refusal = "another labelwise run is writing there; wait for it, or choose another output folder"
    return locked(staging / LOCK, f"{staging.parent}: {refusal}")


def _marked(folder: Path) -> Path:
    """A new partial folder."""
    # since Python 3.12, mkdtemp makes the path absolute
    partial = folder / Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder)).name
    (partial / MARK).touch()
    return partial


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A staging folder in use by this run, once no other run uses one.

    Each run locks its own folder before it looks for others: of two that start together, at least
    one finds the other.
    """
    staging = _marked(folder)
    try:
        (staging / LOCK).write_text(f"{os.getpid()}\n")  # detects a full disk before the work
        with _in_use(staging):
            remove_partial(folder, but=staging)
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder and its parents; remove those made after an exception."""
    made: list[Path] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir(exist_ok=True)
            made.append(path)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _check_files(
    folder: Path, names: Collection[str], overwrite: bool, inputs: Collection[Path]
) -> None:
    check_outputs(folder, names, overwrite=overwrite, inputs=inputs)
    for name in sorted(names):
        if (folder / name).is_dir():
            raise FileExistsError(f"{folder / name}: a folder is where a file should go")


def _written(staging: Path) -> list[str]:
    files = [path for path in staging.rglob("*") if path.is_file()]
    return [str(path.relative_to(staging)) for path in files if path.name not in (LOCK, MARK)]


def _move(staging: Path, folder: Path, names: Sequence[str]) -> None:
    moved: list[Path] = []
    with ExitStack() as stack:
        try:
            for name in names:
                stack.enter_context(_made((folder / name).parent))
                moved.append(folder / name)
                os.replace(staging / name, folder / name)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise
