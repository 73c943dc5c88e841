"""Atomic writing of files, files of arrays with a checksum, and canonical JSON."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import secrets
import stat
import sys
import tempfile
import tomllib
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.numpy import load, save

from labelwise.formatting import json_text
from labelwise.types import InputError

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_NO_CACHE = ("off", "no", "none", "false", "0", "disable", "disabled", "never", "null")
_USUAL_CACHE = ("", "on", "yes", "true", "1", "default")
_LONGEST_SUFFIX = ".checkpoint.self-supervised"  # beside a network, while it is trained
_ENTRY, _CHECKSUM = "labelwise", "sha256"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: it is complete or not there; an earlier one stays until then.

    Args:
        path: where; its folder must exist.
        data: its content.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_outputs(
    folder: Path, names: Iterable[str], *, overwrite: bool, inputs: Iterable[Path] = ()
) -> None:
    """Refuse, before the work, to replace an input, or anything unasked, or to write elsewhere.

    Files are compared by what they are, whatever links and spellings lead to them.

    Args:
        folder: the output folder, which may be missing; nothing outside it is written.
        names: the files that are written or removed, and folders that are filled or removed.
        overwrite: whether they may be there.
        inputs: the files that the run reads.

    Raises:
        InputError: if one of them is an input or holds one, or leads to outside of the folder.
        FileExistsError: if one is there and may not be replaced.
    """
    targets = [folder / name for name in sorted(names)]
    _refuse_inputs(targets, inputs)
    root = folder.resolve()
    for target in targets:
        below = target.rglob("*") if target.is_dir() and not target.is_symlink() else ()
        links = (path for path in (target, *below) if path.is_symlink() and path.is_dir())
        for place in (target.parent, *links):
            if not place.resolve().is_relative_to(root):
                raise InputError(
                    f"{place}: leads out of the output folder, and results are not written "
                    "elsewhere; remove the link, or choose another output folder"
                )
    present = [target for target in targets if os.path.lexists(target)]
    if present and not overwrite:
        listed = ", ".join(str(path.relative_to(folder)) for path in present[:3])
        more = f" and {len(present) - 3} more" if len(present) > 3 else ""
        raise FileExistsError(
            f"{folder}: it already holds {listed}{more}; choose another output folder, or "
            "overwrite (--overwrite)"
        )


def _refuse_inputs(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    lost = {_identity(target): target for target in targets}
    for source in inputs:
        link = source.parent.resolve() / source.name
        for place in (source, *source.resolve().parents, *link.parents):
            if (found := _identity(place)) and found in lost:
                raise InputError(
                    f"{source}: is an input of this run, which would replace or remove "
                    f"{lost[found]}; choose another output"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and the number of a file or folder, after links; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_existing(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that is there already or is an input, and a folder that cannot be written.

    Raises:
        InputError: if the file is one of the inputs.
        FileExistsError: if there is a folder at `path`, or a file that is not to be overwritten.
        FileNotFoundError: if the folder of the file is missing.
        OSError: if the folder cannot be written.
    """
    _refuse_inputs([path], inputs)
    if path.is_dir():
        raise FileExistsError(f"{path}: a folder is where a file should go")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"{path}: is there already; choose another name, or overwrite (--overwrite)"
        )
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder; make it first")
    try:
        with tempfile.NamedTemporaryFile(
            prefix=f".{path.name}-", suffix=_LONGEST_SUFFIX, dir=path.parent
        ):
            pass
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16, UTF-32 or the 8-bit encoding of Windows.

    A byte-order mark, and Ctrl-Z or null characters at the end are left out.

    Raises:
        OSError: if it cannot be read.
        InputError: if it has other control characters: it is no text.
    """
    data = path.read_bytes().rstrip(b"\x1a")
    wide = b"\0" in data.rstrip(b"\0\r\n")
    for encoding in ("utf-32", "utf-16", "utf-16-be") if wide else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding).rstrip("\x1a" if encoding == "cp1252" else "\0\x1a")
        except UnicodeDecodeError:
            continue
        certain = not wide or data.startswith(_MARKS) or text.isascii()
        if certain and not any(unicodedata.category(c) == "Cc" and not c.isspace() for c in text):
            return text
    raise InputError(f"{path}: expected a text file, got binary data")


def from_json(text: str, source: str | Path) -> Any:
    """The data of a JSON text from outside.

    Args:
        text: the text.
        source: its file, for messages.

    Raises:
        InputError: if it is no JSON, a name occurs twice in an object, or it is nested more than
            100 deep.

    Example:
        >>> from_json('{"te": [10, 20]}', "acquisition.json")
        {'te': [10, 20]}
    """
    return _parsed(lambda: json.loads(text, object_pairs_hook=_distinct), source, "JSON")


def from_toml(text: str, source: str | Path) -> dict[str, Any]:
    """The data of a TOML text from outside; see `from_json`."""
    return _parsed(lambda: tomllib.loads(text), source, "TOML")


def _parsed(parse: Callable[[], Any], source: str | Path, kind: str) -> Any:
    try:
        data = parse()
        refuse_deep(data)
    except RecursionError as error:
        raise InputError(f"{source}: not valid {kind} (nested too deeply)") from error
    except ValueError as error:
        raise InputError(f"{source}: not valid {kind} ({error})") from error
    return data


def refuse_deep(data: Any, most: int = 100) -> None:
    """Refuse data that are nested too deeply to be worked on.

    Raises:
        RecursionError: if lists and dicts are nested more than `most` deep.
    """
    if most < 0:
        raise RecursionError("nested too deeply")
    if isinstance(data, (dict, list)):
        for entry in data.values() if isinstance(data, dict) else data:
            refuse_deep(entry, most - 1)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write arrays by name as one `.safetensors` file; the same arrays give the same bytes.

    Args:
        path: where; its folder must exist.
        arrays: by name.
        header: JSON data; a checksum of arrays and header is added.

    Raises:
        OSError: if it cannot be written.
        SafetensorError: if the format does not support the type of an array.
    """
    plain = json.loads(json.dumps(header, allow_nan=False))
    entry = plain | {_CHECKSUM: _checksum(arrays, plain)}
    rows = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    # one entry: safetensors writes several in random order
    write_whole(path, save(rows, {_ENTRY: json_text(entry)}))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file of `write_arrays`: its arrays and header.

    Raises:
        OSError: if it cannot be read.
        InputError: if it is damaged, or another kind of file.
    """
    data = path.read_bytes()  # not mapped: a file truncated by others would end the process
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_ENTRY])
        refuse_deep(header)
        arrays = load(data)
        whole = header.pop(_CHECKSUM) == _checksum(arrays, header)
    except (SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no arrays of labelwise, or damaged ({error})") from error
    except (MemoryError, RecursionError, AttributeError) as error:  # possible for damaged headers
        raise InputError(f"{path}: no arrays of labelwise, or damaged") from error
    if not whole:
        raise InputError(f"{path}: damaged: its checksum is wrong")
    return arrays, header


def digest(arrays: Mapping[str, Shaped[np.ndarray, "..."] | None], text: str = "") -> str:
    """SHA-256 of a text and of names, types, shapes and bytes of arrays."""
    total = hashlib.sha256(text.encode())
    for name, rows in sorted(arrays.items()):
        if rows is None:
            total.update(f"{name} none\n".encode())
            continue
        rows = np.ascontiguousarray(rows)
        total.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
        total.update(rows.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _checksum(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    return digest(arrays, json.dumps(header, sort_keys=True))


def canonical(data: Any, what: str) -> str:
    """The canonical JSON text of some data: keys are sorted.

    Raises:
        InputError: if it is not JSON data.
    """
    try:
        return json.dumps(data, sort_keys=True, allow_nan=False, default=_mapping)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}: expected JSON data (finite numbers, text, lists, dicts), but {error}"
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is not")


def cache_folder(kind: str = "") -> Path | None:
    """The cache folder for labels, networks or compiled programs; None if there is none.

    LABELWISE_CACHE names the folder (`~` is the home), or is 'off', 'no', 'none', 'false' or '0' in
    upper or lower case; 'on', 'yes', 'true', '1' and nothing mean the usual folder. Results do not
    depend on it, but for the network that `map` finds: without a writable folder, programs are
    compiled and networks trained again.

    Warns:
        UserWarning: if other users could write to the folder, which is then not used.
    """
    choice = os.environ.get("LABELWISE_CACHE", "").strip()
    if choice.lower() in _NO_CACHE:
        return None
    usual = choice.lower() in _USUAL_CACHE
    root = Path(user_cache_dir("labelwise", appauthor=False) if usual else choice)
    try:
        root = root if usual else root.expanduser()
        if usual and not root.is_absolute():  # no home at all
            return None
        folder = root / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        doubt = _others_write(folder)
    except (OSError, RuntimeError):  # read-only, full, or the home of nobody
        return None
    if doubt:
        warnings.warn(
            f"cache: {doubt}, so no cache is used; choose a folder of your own by LABELWISE_CACHE",
            stacklevel=2,
        )
        return None
    return folder if os.access(folder, os.W_OK) else None


def _others_write(folder: Path) -> str:
    """Why other users could have written to a folder; empty if they could not.

    Checked are the owners and modes of the folder and of its parents up to the home folder, and
    the owners of its files.
    """
    if sys.platform == "win32":
        return ""
    mine = (os.getuid(), 0)
    home = Path(os.path.abspath(os.path.expanduser("~")))
    homes = (home, home.resolve())
    for start in dict.fromkeys((Path(os.path.abspath(folder)), folder.resolve())):
        for place in (start, *start.parents):
            state = place.lstat()
            if state.st_uid not in mine:
                return f"{place} belongs to another user"
            mode = stat.S_IMODE(state.st_mode)
            group = mode & stat.S_IWGRP and not _own_group(state.st_gid)
            # in a sticky folder such as /tmp, others cannot replace what is mine
            sticky = mode & stat.S_ISVTX and place != start
            if stat.S_ISDIR(state.st_mode) and (group or mode & stat.S_IWOTH) and not sticky:
                return f"other users can write to {place} (mode {mode:o})"
            if place in homes:
                break
    with os.scandir(folder) as entries:
        foreign = [
            each.path for each in entries if each.stat(follow_symlinks=False).st_uid not in mine
        ]
    return f"{foreign[0]} belongs to another user" if foreign else ""


def _own_group(group: int) -> bool:
    """Whether a group is root's or the private one of this user, as many systems make."""
    import grp
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
        entry = grp.getgrgid(group)
    except KeyError:
        return False
    return group == 0 or (entry.gr_name == name and set(entry.gr_mem) <= {name})
