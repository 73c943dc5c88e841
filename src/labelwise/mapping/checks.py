"""The checks before a run, and its provenance."""

from __future__ import annotations

import platform
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.fitting.many import UNROLLED
from labelwise.formatting import in_words
from labelwise.io.acquisition import doubts
from labelwise.io.nifti import Series, file_hash, paths_of
from labelwise.mapping.gradients import scaled_by_b
from labelwise.mapping.method import Method
from labelwise.mapping.request import Request, describe_settings, equation
from labelwise.models.base import measurements
from labelwise.models.check import information_problems
from labelwise.noise import describe_noise
from labelwise.types import InputError, class_name


def inputs(request: Request, method: Method) -> list[Path]:
    """Every file that is read, once."""
    paths = [*paths_of(request.image), *request.sources.values(), request.mask, request.sigma]
    paths += [request.exclude_map, request.b_scale, *request.constants.values(), *method.inputs]
    return list(dict.fromkeys(path for path in paths if isinstance(path, Path)))


def check(request: Request, method: Method, series: Series) -> list[str]:
    """Refuse requests that cannot be estimated; return notes on possible mistakes.

    Raises:
        InputError: if the settings do not fit the series, or cannot determine the parameters.
    """
    names = list(request.acquisition)
    count, label = measurements(request.model), request.settings_label
    source = request.sources.get(names[0])
    given = count + len(request.excluded)
    if given != series.volumes:
        raise InputError(
            f"{label}: {given} in {source.name if source else 'the list given'}, but "
            f"{series.name} has {series.volumes} volume{'s' * (series.volumes != 1)}"
        )
    if not isinstance(request.sigma, str | Path) and not 0 < request.sigma < np.inf:
        raise InputError(f"sigma: expected a positive number, got {request.sigma:g}")
    if abs(request.fill) > np.finfo(np.float32).max:
        raise InputError(
            f"fill: expected a number that float32 can hold, or NaN, got {request.fill:g}"
        )
    parameters = [parameter.name for parameter in request.model.parameters]
    measured, distinct = len(method.groups(request)), len(request.equal_volumes)
    needs = f"{len(parameters)} parameters ({', '.join(parameters)})"
    if distinct == 1:
        raise InputError(
            f"{label}: all {count} are the same; {needs} need measurements at different ones"
        )
    kind, minimum = type(request.model).__name__, request.model.minimum
    wanted = f"; {kind} needs {minimum}" * bool(minimum)
    if measured < len(parameters):
        raise InputError(
            f"{series.name}: {measured} measurements cannot determine {needs}; acquire "
            f"more, or choose a model with fewer parameters{wanted}"
        )
    if request.b_scale is not None:
        scaled_by_b(request.model)
    problem = None
    if request.model.differentiable or request.model.vectorized:  # others may be slow
        with np.errstate(all="ignore"):
            problem = next(information_problems(request.model), None)
    if problem:
        raise InputError(f"{label}: {problem}{wanted}")
    notes = [*doubts(request.acquisition), *series.notes]
    if distinct < len(parameters):
        notes.append(
            f"{label}: only {distinct} distinct ones for {needs}; expect voxels on bounds and "
            "large standard errors"
        )
    if request.many and request.uncertainty != "standard_error":
        notes.append(
            f"uncertainty: intervals are for up to {UNROLLED} parameters, and {kind} has "
            f"{len(parameters)}, so there are standard errors only"
        )
    return [*notes, *method.check(request)]


def provenance(request: Request, method: Method) -> dict[str, Any]:
    """The settings, input files and software versions of a run, for `run.json` and sidecars."""
    kind = type(request.model)
    own = method.settings(request)
    return {
        "command": request.command,
        "model": {
            "class": class_name(kind),
            "equation": equation(kind),
            "constants": {
                each.name: getattr(request.model, each.name)
                for each in fields(request.model)
                if each.name not in request.acquisition
                and isinstance(getattr(request.model, each.name), int | float | str)
            }
            | {name: str(path) for name, path in request.constants.items()},
        },
        "noise": in_words(describe_noise(request.noise)),
        **own,
        "acquisition": {
            "settings": describe_settings(request.acquisition),
            "excluded_volumes": {"numbered_from": 0, "volumes": list(request.excluded)},
            "b_tolerance": {"unit": "s/mm²", "value": 1000 * request.b_tolerance},
            "b_scale": None if request.b_scale is None else str(request.b_scale),
            **own.get("acquisition", {}),
        },
        "inputs": {str(path): file_hash(path) for path in inputs(request, method)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("labelwise", "jax", "numpy", "nibabel")},
        },
    }
