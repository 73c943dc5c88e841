"""What models and the code itself say of themselves: for cards, and for names in a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import marshal
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path
from types import FunctionType
from typing import Any

import equinox as eqx
import jax
import numpy as np

from labelwise.models.base import SignalModel, acquisition_names, within
from labelwise.types import InputError


def describe_model(model: SignalModel) -> dict[str, Any]:
    """A signal model as JSON data: its class, acquisition, constants and parameters.

    `source` is the SHA-256 of the files that define the class (or of its bytecode where there is no
    file, as in a notebook): not of what these import.

    Example:
        >>> import labelwise as lw
        >>> record = describe_model(lw.ADC([0, 0.5, 1]))
        >>> record["class"], record["acquisition"], record["parameters"][1]["unit"]
        ('ADC', {'b': [0.0, 0.5, 1.0]}, 'µm²/ms')
    """
    record = describe_module(model, SignalModel)
    settings = record.pop("fields")
    names = acquisition_names(type(model))
    return {
        "class": record.pop("class"),
        "acquisition": {name: settings[name] for name in names},
        "constants": {name: value for name, value in settings.items() if name not in names},
        "parameters": [
            {"name": p.name, "unit": p.unit, "bounds": plain(p.bounds)} for p in model.parameters
        ],
        **record,
    }


def probe(model: SignalModel) -> str:
    """A digest of the model's signals at three places within its bounds.

    It is another where a model says something else, whatever the reason: a file that it imports or
    reads, another version of a library. Five digits, so that rounding does not change it.
    """
    places = [[within(p.bounds, share) for p in model.parameters] for share in (0.2, 0.45, 0.7)]
    rows = [[f"{value:.4e}" for value in np.asarray(model.signal(*p), float)] for p in places]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def describe_module(module: eqx.Module, base: type) -> dict[str, Any]:
    """The class, fields and source of a frozen module; `base` and what it builds on is known."""
    own = [kind for kind in type(module).__mro__ if issubclass(kind, base) and kind is not base]
    fields = dataclasses.fields(module)  # type: ignore[arg-type]  # every eqx.Module is one
    return {
        "class": type(module).__qualname__,
        "fields": {field.name: plain(getattr(module, field.name)) for field in fields},
        "source": _source_of(own),
    }


def _source_of(kinds: Sequence[type]) -> str | None:
    """SHA-256 of the code that defines some classes; None if it cannot be seen."""
    total = hashlib.sha256()
    for kind in kinds:
        try:
            total.update(Path(inspect.getfile(kind)).read_bytes())
        except (OSError, TypeError):  # typed at a prompt or in a notebook
            functions = [f for f in vars(kind).values() if isinstance(f, FunctionType)]
            if not functions:
                return None
            for function in functions:
                # version 2: the later ones depend on reference counts
                total.update(marshal.dumps(inspect.unwrap(function).__code__, 2))
    return total.hexdigest()


def plain(value: Any) -> Any:
    """The same as JSON data; infinities are text, and what has no such form is its `repr`."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def canonical(data: Any, what: str) -> str:
    """The one JSON text of some data."""
    try:
        return json.dumps(data, sort_keys=True, allow_nan=False, default=_mapping)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}: expected JSON data (finite numbers, text, lists, dicts), but {error}"
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(f"{value!r} is not")


@cache
def code_of(*parts: str) -> str:
    """SHA-256 over some sources of labelwise, files or folders, and the libraries they count on."""
    total = hashlib.sha256(" ".join(version(name) for name in ("jax", "jaxlib", "numpy")).encode())
    package = resources.files("labelwise")
    for part in parts:
        for file in _python_files(package / part):
            total.update(f"{part} {file.name}\n".encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def _python_files(place: Traversable) -> Iterator[Traversable]:
    if place.is_file():
        yield place
    else:
        files = sorted(place.iterdir(), key=lambda file: file.name)
        yield from (file for file in files if file.name.endswith(".py"))
