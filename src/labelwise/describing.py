"""What a signal model is, as JSON data: for cards, and for keys of caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.formatting import plain
from labelwise.models.base import SignalModel, acquisition_names, within
from labelwise.types import identity


def describe_model(model: SignalModel) -> dict[str, Any]:
    """A signal model as JSON data: its identity, acquisition, constants and parameters.

    `signals` are its signals at three places within its bounds, to five digits. They are others
    where a model says something else, whatever the reason: a file that it imports or reads, another
    version of a library.

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
        "signals": _signals(model, [p.bounds for p in model.parameters]).tolist(),
    }


def same_equation(model: SignalModel, said: Mapping[str, Any]) -> bool:
    """Whether a model has the signals that a description of its class and acquisition holds."""
    bounds = [tuple(float(bound) for bound in each["bounds"]) for each in said["parameters"]]
    ours, theirs = _signals(model, bounds), np.array(said["signals"], float)
    return ours.shape == theirs.shape and np.allclose(
        ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max(), equal_nan=True
    )


def _signals(model: SignalModel, bounds: list[Any]) -> Float[np.ndarray, "3 M"]:
    places = [[within(each, share) for each in bounds] for share in (0.2, 0.45, 0.7)]
    rows = [np.ravel(np.asarray(model.signal(*place), float)) for place in places]
    return np.array([[float(f"{value:.4e}") for value in row] for row in rows])
