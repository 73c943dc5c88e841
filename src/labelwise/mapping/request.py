"""A request for maps: the images, the model and the noise; the checks that need no computing."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting import available_cores
from labelwise.fitting.many import UNROLLED
from labelwise.io.acquisition import group_equal
from labelwise.limits import check_whole
from labelwise.models import SignalModel
from labelwise.models.base import measurements, settings_of
from labelwise.networks.intervals import LEVEL
from labelwise.noise import NoiseModel
from labelwise.types import SETTINGS, InputError

METHODS = ("repeats", "mppca", "background", "residuals")
"""The methods that estimate sigma, in the order in which `"auto"` tries them."""

Uncertainty = Literal["interval", "standard_error", "both"]
UNCERTAINTIES = get_args(Uncertainty)
"""What may be written about the uncertainty of maps."""

Groups = list[Int[np.ndarray, " n"]]
"""The volumes that make up each of the G measurements of a voxel."""


@dataclass(frozen=True)
class Request:
    """The images, the model, the noise, and where the maps go.

    Args:
        image: the series: a 4D image, or an image for each measurement.
        model: the signal model with one setting per volume that is used.
        noise: the noise model.
        sigma: noise of one channel in the image's unit: a number, the path of a map of it (of one
            volume, or of one for each measurement), or the
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
        fill: what is written in place of NaN.
        sources: the files that the settings came from, by name of the setting.
        command: the command line, for the record.
        notes: on possible mistakes in it that are known already, for the record.
        excluded: the volumes that are not used, numbered from 0.
        exclude_map: the path of a 4D image: a measurement is left out where it is above 0.5.
        b_scale: the path of the factors of b in each voxel, or of a gradient deviation.
        uncertainty: which maps of it are written: intervals, standard errors, or both.
        constants: the paths of maps of constants of the model, by name.

    Raises:
        InputError: if `threads` is no possible number, or `uncertainty` is no such word.
    """

    image: Path | Sequence[Path]
    model: SignalModel
    noise: NoiseModel
    sigma: float | Path | Literal["auto", "repeats", "mppca", "background", "residuals"]
    folder: Path
    mask: Path | None = None
    b_tolerance: float = 0.001
    threads: int | None = None
    overwrite: bool = False
    fill: float = math.nan
    sources: Mapping[str, Path] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()
    excluded: tuple[int, ...] = ()
    exclude_map: Path | None = None
    b_scale: Path | None = None
    uncertainty: Uncertainty = "both"
    constants: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_whole("threads", self.threads)
        if self.uncertainty not in UNCERTAINTIES:
            raise InputError(
                f"uncertainty: expected {' or '.join(map(repr, UNCERTAINTIES))}, got "
                f"{self.uncertainty!r}"
            )

    @property
    def level(self) -> float | None:
        """The probability of the intervals; None if there are none."""
        return None if self.uncertainty == "standard_error" or self.many else LEVEL

    @property
    def standard_errors(self) -> bool:
        """Whether standard errors are written."""
        return self.uncertainty != "interval" or self.many

    @property
    def many(self) -> bool:
        """Whether the parameters are too many for intervals, which standard errors replace."""
        return len(self.model.parameters) > UNROLLED

    @property
    def volumes(self) -> list[int]:
        """The volumes of the series that are used, numbered from 0."""
        every = range(measurements(self.model) + len(self.excluded))
        return [volume for volume in every if volume not in self.excluded]

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


def without_volumes(
    model: SignalModel, volumes: Sequence[int]
) -> tuple[SignalModel, tuple[int, ...]]:
    """The model of the other volumes, and the volumes in ascending order.

    Volumes that the model does not describe are excluded, too.

    Args:
        model: the signal model with one setting per volume.
        volumes: those to exclude, numbered from 0.

    Raises:
        InputError: if there is no such volume, none remains, or the model needs them.

    Warns:
        UserWarning: if the model does not describe all volumes.
    """
    count, undescribed = measurements(model), np.flatnonzero(~model.described())
    if len(undescribed):
        warnings.warn(
            f"{type(model).__name__} does not describe volumes "
            f"{', '.join(map(str, undescribed))} (numbered from 0), which are left out; it needs "
            f"{model.minimum}",
            stacklevel=3,
        )
    excluded = tuple(sorted({int(volume) for volume in (*volumes, *undescribed)}))
    if not excluded:
        return model, ()
    if excluded[0] < 0 or excluded[-1] >= count:
        wrong = excluded[0] if excluded[0] < 0 else excluded[-1]
        raise InputError(
            f"exclude: expected volumes from 0 to {count - 1} (they are numbered from 0), got "
            f"{wrong}"
        )
    if len(excluded) == count:
        raise InputError(f"exclude: all {count} volumes are excluded; keep some")
    kept = np.delete(np.arange(count), excluded)
    try:
        return replace(model, **{k: v[kept] for k, v in settings_of(model).items()}), excluded
    except InputError as error:
        raise InputError(
            f"exclude: {type(model).__name__} does not accept the other volumes alone: {error}; "
            "exclude them by a 4D map of 0 and 1, with which the acquisition stays whole"
        ) from error


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
