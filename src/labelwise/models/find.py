"""Signal models by name: built-in models, classes in a user's file, and installed plug-ins.

The name of a built-in model is that of its file in `labelwise.models`, that of a user's model is
`FILE.py:Class`, and that of a plug-in is its entry point in the group `labelwise.models`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float

import labelwise.models
from labelwise.formatting import distinct_names, plain, printable, short_name
from labelwise.models import SignalModel
from labelwise.models.base import acquisition_names, within
from labelwise.types import USERS, InputError, class_name, identity, is_built_in

ENTRY_POINT_GROUP = "labelwise.models"


def available_models() -> dict[str, type[SignalModel]]:
    """All built-in models and plug-ins by name; built-in names take precedence.

    Raises:
        InputError: if an installed plug-in cannot be loaded, or is no signal model.

    Example:
        >>> available_models()["ivim"].__name__
        'IVIM'
    """
    built_in = _built_in_models()
    plug_ins = {point.name: point for point in _entry_points() if point.name not in built_in}
    return built_in | {name: _load_entry_point(plug_ins[name]) for name in sorted(plug_ins)}


def find_model(name: str) -> type[SignalModel]:
    """The class of the signal model with a given name.

    Args:
        name: `"ivim"` (a file of `labelwise.models`), `"my_model.py:Kurtosis"` (a class in a Python
            file, which is run) or the name of an installed entry point.

    Raises:
        InputError: if there is no such model, its file has an error, or it is no signal model.
        FileNotFoundError: if there is no such file.

    Example:
        >>> find_model("ivim").__name__
        'IVIM'
    """
    if _is_file(name):
        return _model_from_file(name)
    built_in = _built_in_models()
    if name in built_in:
        return built_in[name]
    points = {point.name: point for point in _entry_points()}
    if name in points:
        return _load_entry_point(points[name])
    known = [*built_in, *sorted(points.keys() - built_in.keys())]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"model {name!r}: {suggestion}Known are {', '.join(known)}; your own is FILE.py:Class"
    )


def name_of(record: Mapping[str, Any], path: Path) -> str:
    """The model name of a network, from the description in its card.

    Args:
        record: the description, by `describe_model`.
        path: the network's file, for the message.

    Raises:
        InputError: if it is a user's model, which has no name.
    """
    for name, kind in available_models().items():
        if class_name(kind) == record["class"]:
            return name
    raise InputError(
        f"{path}: was trained for the model {record['class']}, which is not installed; give "
        f"its file: --model FILE.py:{short_name(record)}"
    )


def rebuild(record: Mapping[str, Any], kind: type[SignalModel] | None, path: Path) -> SignalModel:
    """The signal model that a network was trained for.

    Args:
        record: the description in the network's card.
        kind: the class, if it is a user's model.
        path: the network's file, for the message.

    Raises:
        InputError: if the class or equation differs, or the model is neither installed nor given.
    """
    kind = kind or available_models()[name_of(record, path)]
    if short_name(record) != kind.__qualname__:  # its settings may differ
        trained, requested = distinct_names(record, {"class": class_name(kind)})
        raise InputError(f"{path}: was trained for the model {trained}, not for {requested}")
    settings = {name: np.array(values) for name, values in record["acquisition"].items()}
    model = kind(**settings, **record["constants"])
    refuse_other_model(model, record, path)
    return model


def refuse_other_model(model: SignalModel, record: Mapping[str, Any], path: Path) -> None:
    """Check that a network was trained for a model, apart from the acquisition.

    Files of version 1 have only the class name of a user's model and no signals; for them, changed
    code is a warning.

    Args:
        model: the model.
        record: the description in the network's card.
        path: the network's file, for the message.

    Raises:
        InputError: if the class, a constant or the equation differs.
    """
    ours = describe_model(model)
    bare = ":" not in record["class"]
    if bare and not is_built_in(type(model)):  # a built-in model of version 1 has its whole name
        ours = {**ours, "class": short_name(ours)}
    if any(record[name] != ours[name] for name in ("class", "constants")):
        trained, requested = distinct_names(record, ours)
        raise InputError(
            f"{path}: was trained for the model {trained}, not for {requested}; "
            "choose that --model, or another network"
        )
    if "signals" not in record:
        if ours["source"] != record["source"]:
            warnings.warn(
                f"{path}: the file of {record['class']} has changed since the network was trained",
                stacklevel=2,
            )
        return
    settings = {name: np.array(values) for name, values in record["acquisition"].items()}
    if not same_equation(replace(model, **settings), record):
        raise InputError(
            f"{path}: was trained for another equation of {record['class']}, whose code has "
            "changed since; train a network for this one"
        )


def describe_model(model: SignalModel) -> dict[str, Any]:
    """A signal model as JSON data: its identity, acquisition, constants and parameters.

    `signals` are its signals at three points within its bounds, to five digits. They reveal a
    changed equation for any reason: a file that the model imports or reads, or another version of
    a library.

    Example:
        >>> import labelwise as lw
        >>> record = describe_model(lw.ADC([0, 0.5, 1]))
        >>> record["class"], record["acquisition"], record["parameters"][1]["unit"]
        ('labelwise.models.adc:ADC', {'b': [0.0, 0.5, 1.0]}, 'µm²/ms')
    """
    record = identity(model, SignalModel)
    names = acquisition_names(type(model))
    parameters = [
        {"name": p.name, "unit": p.unit, "bounds": plain(p.bounds)} for p in model.parameters
    ]
    settings = record["fields"]
    return {
        "class": record["class"],
        "acquisition": {name: settings[name] for name in names},
        "constants": {name: value for name, value in settings.items() if name not in names},
        "parameters": parameters,
        "source": record["source"],
        "signals": _three_signals(model, [p.bounds for p in model.parameters]).tolist(),
    }


def same_equation(model: SignalModel, record: Mapping[str, Any]) -> bool:
    """Whether a model reproduces the signals in a description of its class and acquisition."""
    bounds = [tuple(float(bound) for bound in each["bounds"]) for each in record["parameters"]]
    ours, expected = _three_signals(model, bounds), np.array(record["signals"], float)
    return ours.shape == expected.shape and np.allclose(
        ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), equal_nan=True
    )


def _three_signals(model: SignalModel, bounds: list[Any]) -> Float[np.ndarray, "3 M"]:
    places = [[within(each, share) for each in bounds] for share in (0.2, 0.45, 0.7)]
    rows = [np.ravel(np.asarray(model.signal(*place), float)) for place in places]
    return np.array([[float(f"{value:.4e}") for value in row] for row in rows])


def _built_in_models() -> dict[str, type[SignalModel]]:
    modules = sorted(module.name for module in pkgutil.iter_modules(labelwise.models.__path__))
    return {
        name: model
        for name in modules
        for model in _models_in(importlib.import_module(f"{labelwise.models.__name__}.{name}"))
    }


def _models_in(module: ModuleType) -> list[type[SignalModel]]:
    """The concrete signal models defined (not imported) in a module, in order of definition."""
    return [
        value
        for value in vars(module).values()
        if _is_model(value) and not _missing(value) and value.__module__ == module.__name__
    ]


def _is_model(value: object) -> TypeGuard[type[SignalModel]]:
    return isinstance(value, type) and issubclass(value, SignalModel)


def _missing(model: type[SignalModel]) -> list[str]:
    """Attributes that a subclass of `SignalModel` does not define."""
    undefined = {*model.__abstractmethods__, *model.__abstractclassvars__, *model.__abstractvars__}
    return sorted(undefined)


def _signal_model_class(value: object, name: str) -> type[SignalModel]:
    if not _is_model(value):
        raise InputError(
            f"{name}: expected a subclass of labelwise.SignalModel, got {_kind(value)}"
        )
    if missing := _missing(value):
        raise InputError(
            f"{name}: an unfinished signal model, define {' and '.join(missing)} in it"
        )
    return value


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINT_GROUP))


def _load_entry_point(point: EntryPoint) -> type[SignalModel]:
    name = f"installed model {point.name!r} ({point.value})"
    try:
        value = point.load()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{name}: cannot be imported, {type(error).__name__}: {error}; repair or uninstall it"
        ) from error
    return _signal_model_class(value, name)


def _is_file(name: str) -> bool:
    return name.endswith(".py") or ".py:" in name


def _model_from_file(name: str) -> type[SignalModel]:
    path, _, class_name = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    module = _run(Path(path))
    models = [model.__name__ for model in _models_in(module)]
    has = f"it has {', '.join(models)}" if models else "it defines no signal model"
    if not class_name:
        raise InputError(f"{path}: specify the class, {path}:CLASS; {has}")
    if not hasattr(module, class_name):
        raise InputError(f"{name}: no class {class_name!r} in {path}; {has}")
    return _signal_model_class(getattr(module, class_name), name)


def _run(path: Path) -> ModuleType:
    """Execute a user's file as a module."""
    if not path.is_file():
        raise FileNotFoundError(f"model file {path}: no such file")
    # files with the same name in two folders are two modules
    place = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    module_name = f"{USERS}{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model file {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up annotations here
    try:
        # JAX needs a file name in UTF-8 for the code
        code = compile(path.read_bytes(), printable(str(path.absolute())), "exec")
        with redirect_stdout(sys.stderr):  # output of the file must not mix with results
            exec(code, vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise InputError(
            f"model file {path}, line {_line(error, path)}: {type(error).__name__}: "
            f"{_message(error)}"
        ) from error
    return module


def error_of_model(error: BaseException) -> str | None:
    """The message for an error in the code of a user's file, such as an exit; None for others."""
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(USERS)
    ]
    if not lines:
        return None
    file, line = lines[-1]
    return f"model file {file}, line {line}: {type(error).__name__}: {_message(error)}"


def _line(error: BaseException, path: Path) -> int | str:
    """The last line of the file that was being executed, or that cannot be parsed."""
    if isinstance(error, SyntaxError) and _same(error.filename, path):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if _same(frame.filename, path)]
    return lines[-1] or "?" if lines else "?"


def _same(filename: str | None, path: Path) -> bool:
    return filename is not None and filename == printable(str(path.absolute()))


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process, with status {error.code}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return text.strip().partition("\n")[0]  # JAX explains its errors at length
