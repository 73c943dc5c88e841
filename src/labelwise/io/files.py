"""Atomic writing of files, files of arrays with a checksum, and canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.numpy import load, save

from labelwise.types import InputError

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
    """Refuse a file that is there already or is an input, and a folder that is missing.

    Raises:
        InputError: if the file is one of the inputs.
        FileExistsError: if there is a folder at `path`, or a file that is not to be overwritten.
        FileNotFoundError: if the folder of the file is missing.
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
    write_whole(path, save(rows, {_ENTRY: json.dumps(entry, ensure_ascii=False)}))


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

    LABELWISE_CACHE names the folder, or is 'off'. Results do not depend on it: without a writable
    folder, programs are compiled and networks trained again.
    """
    choice = os.environ.get("LABELWISE_CACHE", "")
    if choice == "off":
        return None
    root = Path(choice or user_cache_dir("labelwise", appauthor=False))
    if not choice and not root.is_absolute():  # no home at all
        return None
    folder = root / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # read-only, or full
        return None
    return folder if os.access(folder, os.W_OK) else None
