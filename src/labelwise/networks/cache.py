"""A cache of labels on disk: labels by fitting are the slow part of training."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from labelwise.io.files import canonical, digest, read_arrays, write_arrays
from labelwise.types import Estimate, LabelSource, Parameter, Voxels

_PARSING = threading.Lock()
"""Python 3.11 raises a SystemError where two threads parse (CPython issue 106905)."""


@cache
def code_of(*modules: str, root: Path = Path(__file__).parent.parent) -> str:
    """SHA-256 of modules, of all labelwise modules they import, and of library versions.

    Args:
        modules: their names, such as `"labelwise.networks.train"`.
        root: the folder of the package.

    Example:
        >>> code_of("labelwise.noise") == code_of("labelwise.noise")
        True
        >>> code_of("labelwise.noise") == code_of("labelwise.simulation")
        False
    """
    libraries = ("jax", "jaxlib", "numpy", "equinox")
    total = hashlib.sha256(" ".join(version(name) for name in libraries).encode())
    for name, file in sorted(imported(modules, root).items()):
        total.update(f"{name}\n".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def imported(modules: Iterable[str], root: Path) -> dict[str, Path]:
    """The files of modules of a package and of all package modules they import, by name."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file(name, root)
        if file is not None and name not in found:
            found[name] = file
            waiting += [name.rpartition(".")[0], *_imports(file)]
    return found


def _file(name: str, root: Path) -> Path | None:
    """The file of a module in a package; None for the package's own `__init__.py`."""
    top, *parts = name.split(".")
    if top != root.name or not parts:
        return None
    place = root.joinpath(*parts)
    known = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in known if file.is_file()), None)


def _imports(file: Path) -> Iterator[str]:
    """All imports of a file, at any level; imported names may be modules, too."""
    with _PARSING:
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def labels_version() -> str:
    """Hash of the code that makes labels: cached labels are valid for it only."""
    return code_of("labelwise.networks.labels", "labelwise.models")


def cached(
    source: LabelSource,
    voxels: Voxels,
    folder: str | Path | None,
    key: Mapping[str, Any],
    parameters: tuple[Parameter, ...] = (),
) -> Estimate:
    """`source(voxels)`, from a cache file where there is one.

    The file name is the SHA-256 of all that the labels depend on: the description of the source,
    the voxels, `labels_version` and `key`. Files are written completely. A damaged file is
    replaced, and a folder that cannot be written is ignored. The files may be deleted.

    Args:
        source: the label source.
        voxels: the voxels to label.
        folder: the cache, created if missing; nothing is cached if None.
        key: anything else that the labels depend on, as JSON data.
        parameters: the columns of the labels, for their names.

    Raises:
        TypeError: if `key` or the description of the source is not JSON data.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from labelwise.networks.labels import GroundTruth
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.7]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = cached(GroundTruth(), voxels, folder, {"seed": 0})
        ...     again = cached(GroundTruth(), voxels, folder, {"seed": 0})
        >>> np.array_equal(first.values, again.values)
        True
    """
    if folder is None:
        return replace(source(voxels), parameters=parameters)
    content = {
        "source": source.describe(),
        "key": key,
        "code": labels_version(),
        "voxels": digest(vars(voxels)),
    }
    name = hashlib.sha256(canonical(content, "cached labels").encode()).hexdigest()
    path = Path(folder) / f"labels-{name}.safetensors"
    found = _read(path, name, len(voxels))
    if found is not None:
        return replace(found, parameters=parameters)
    estimate = source(voxels)
    with contextlib.suppress(OSError, SafetensorError):  # a cache is a convenience
        _write(path, name, estimate)
    return replace(estimate, parameters=parameters)


def _read(path: Path, name: str, voxels: int) -> Estimate | None:
    """The labels in a file; None if it is missing, damaged or for other voxels."""
    try:
        arrays, header = read_arrays(path)
        stats = {k.removeprefix("stats."): v for k, v in arrays.items() if k.startswith("stats.")}
        estimate = Estimate(arrays["values"], arrays["status"], stats)
    except (OSError, ValueError, KeyError):
        return None
    fits = estimate.values.ndim == 2 and all(len(rows) == voxels for rows in arrays.values())
    return estimate if fits and header == {"labels": name} else None


def _write(path: Path, name: str, estimate: Estimate) -> None:
    arrays = {"values": estimate.values, "status": estimate.status}
    arrays |= {f"stats.{key}": rows for key, rows in estimate.stats.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}-*"):  # of a killed run
        left.unlink(missing_ok=True)
    write_arrays(path, arrays, {"labels": name})
