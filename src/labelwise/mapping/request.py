"""A request for maps: the images, the model and the noise; the checks that need no computing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting import available_cores
from labelwise.io.acquisition import group_equal
from labelwise.models import SignalModel
from labelwise.models.base import measurements, settings_of
from labelwise.noise import NoiseModel
from labelwise.types import SETTINGS

METHODS = ("repeats", "mppca", "background", "residuals")
"""The methods that estimate sigma, in the order in which `"auto"` tries them."""

Groups = list[Int[np.ndarray, " n"]]
"""The volumes that make up each of the G measurements of a voxel."""


@dataclass(frozen=True)
class Request:
    """The images, the model, the noise, and where the maps go.

    Args:
        image: the 4D series.
        model: the signal model with one setting per volume.
        noise: the noise model.
        sigma: noise of one channel in the image's unit: a number, the path of a map of it, or the
            method by which to estimate it: `"repeats"` (the volumes at b = 0; without b, the most
            often repeated setting), `"mppca"` (the noise components of patches, by dipy),
            `"background"` (voxels without signal, outside the mask if there is one),
            `"residuals"` (of least-squares fits of the model) or `"auto"`: the first of them, in
            this order, that is possible and passes its test.
        folder: where the maps go.
        mask: the path of the mask of voxels to estimate; all of them if None.
        b_tolerance: in ms/µm². Two b-values this close are equal; b up to this is b = 0.
        threads: cores to use; all if None.
        overwrite: replace maps that are in the folder already.
        sources: the files that the settings came from, by name of the setting.
        command: the command line, for the record.
    """

    image: Path
    model: SignalModel
    noise: NoiseModel
    sigma: float | Path | Literal["auto", "repeats", "mppca", "background", "residuals"]
    folder: Path
    mask: Path | None = None
    b_tolerance: float = 0.001
    threads: int | None = None
    overwrite: bool = False
    sources: Mapping[str, Path] = field(default_factory=dict)
    command: str = ""

    @property
    def workers(self) -> int:
        """The number of cores to use."""
        return self.threads or available_cores()

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The settings of the M volumes, by name."""
        return settings_of(self.model)

    @property
    def single_volumes(self) -> Groups:
        """Each volume as a measurement of its own."""
        return [np.array([volume]) for volume in range(measurements(self.model))]

    @property
    def equal_volumes(self) -> Groups:
        """The volumes with equal settings, grouped."""
        return group_equal(self.acquisition, self.b_tolerance)

    @property
    def settings_label(self) -> str:
        """The name of the first setting's values in messages."""
        name = next(iter(self.acquisition))
        return SETTINGS[name].words if name in SETTINGS else f"{name} values"


def describe_settings(settings: Mapping[str, Float[np.ndarray, " M"]]) -> dict[str, Any]:
    """Settings in the usual units: b in s/mm².

    Example:
        >>> describe_settings({"b": np.array([0.0, 0.8])})
        {'b': {'unit': 's/mm²', 'values': [0.0, 800.0]}}
    """
    return {
        name: {
            "unit": SETTINGS[name].unit if name in SETTINGS else "that of the model",
            "values": [float(f"{value * factor:.9g}") for value in values.tolist()],
        }
        for name, values in settings.items()
        for factor in [SETTINGS[name].factor if name in SETTINGS else 1]
    }


def equation(model: type[SignalModel]) -> str:
    """The first line of a model's docstring.

    Example:
        >>> from labelwise.models import IVIM
        >>> equation(IVIM)
        'S(b) = S0 (f exp(-b (D_fast + D_slow)) + (1 - f) exp(-b D_slow)).'
    """
    return (inspect.getdoc(model) or model.__name__).splitlines()[0]
