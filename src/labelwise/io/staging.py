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
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
PARTIAL = ".labelwise-partial-"
MARK = ".made-by-labelwise"


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock; the system releases it when the process ends, even if it is killed.

    Without effect on file systems that do not support locks.

    Args:
        path: the lock file; made if missing, never read or written.
        refusal: the message of the error.

    Raises:
        FileExistsError: if another run holds the lock, or a symbolic link is at `path`.
    """
    if path.is_symlink():
        raise FileExistsError(f"{path}: a symbolic link is where a lock file should go; remove it")
    with ExitStack() as stack:
        try:
            # the fallback is a lock file that may outlive its run
            stack.enter_context(FileLock(path, timeout=0, fallback_to_soft=False))
        except Timeout:
            raise FileExistsError(refusal) from None
        except OSError:  # some network file systems have no locks
            pass
        yield


@contextmanager
def staged(folder: str | Path, last: str) -> Iterator[Path]:
    """A staging folder, whose files are moved to their folder when all are written.

    Use it in a `with` statement around the whole computation: entering checks that the folder is
    writable, leaving moves the files. After an exception (Ctrl-C included) nothing new is left.

    Args:
        folder: where the files go; made if missing.
        last: the file that is moved last, and whose earlier version is removed first: if it
            exists, so do the others.

    Yields:
        A folder to write them in; files in folders below it keep their places.

    Raises:
        FileExistsError: if another run is writing in the folder.
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
    with ExitStack() as stack:
        try:
            stack.enter_context(_made(folder))
            remove_partial(folder)
            staging = stack.enter_context(_partial(folder))
        except OSError as error:
            if not error.strerror:
                raise
            raise OSError(
                f"{folder}: cannot write there ({error.strerror}); choose another output folder"
            ) from error
        yield staging
        _move(staging, folder, last)


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


def remove_partial(folder: Path) -> None:
    """Remove the partial results of killed runs from a folder; no other folder of such a name.

    Raises:
        FileExistsError: if a run is still writing there.
    """
    for leftover in folder.glob(f"{PARTIAL}*"):
        if leftover.is_symlink() or not (leftover / MARK).is_file():
            continue
        with _in_use(leftover):
            pass
        shutil.rmtree(leftover, ignore_errors=True)


def _in_use(staging: Path) -> AbstractContextManager[None]:
    """The lock held by the run that a partial folder belongs to."""
    refusal = "another labelwise run is writing there; wait for it, or choose another output folder"
    return locked(staging / LOCK, f"{staging.parent}: {refusal}")


def _marked(folder: Path) -> Path:
    """A new partial folder."""
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    (partial / MARK).touch()
    return partial


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    staging = _marked(folder)
    try:
        (staging / LOCK).write_text(f"{os.getpid()}\n")  # detects a full disk before the work
        with _in_use(staging):
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


def _move(staging: Path, folder: Path, last: str) -> None:
    files = [
        path for path in staging.rglob("*") if path.is_file() and path.name not in (LOCK, MARK)
    ]
    names = sorted(str(path.relative_to(staging)) for path in files)
    names.sort(key=lambda name: name == last)
    (folder / last).unlink(missing_ok=True)
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
