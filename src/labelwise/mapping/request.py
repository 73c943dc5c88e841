"""What is asked of a job on images, the checks that need no computing, and the record of it."""

from __future__ import annotations

import inspect
import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from labelwise.formatting import in_words
from labelwise.io.acquisition import average_settings, group_equal, sigma_factor
from labelwise.io.nifti import Series, file_hash
from labelwise.models import SignalModel
from labelwise.models.base import measurements, settings_of
from labelwise.noise import NoiseModel, describe_noise
from labelwise.types import InputError, class_name

_WORDS = {"b": "b-values", "te": "echo times", "ti": "inversion times"}
_UNITS = {"b": "s/mm²", "te": "ms", "ti": "ms"}


@dataclass(frozen=True)
class Request(ABC):
    """Which images, which model, which noise, and where the maps go.

    Args:
        image: the 4D series.
        model: the signal model with one setting per volume.
        noise: the noise model.
        sigma: noise of one channel in the image's unit: a number, the path of a map of it, or the
            method by which to estimate it: `"repeats"` (the volumes at b = 0; without b, the most
            often repeated setting) or `"background"` (what lies outside the mask).
        folder: where the maps go.
        mask: the path of the mask of voxels to estimate; all of them if None.
        b_tolerance: in ms/µm². Two b-values this close are equal; b up to this is b = 0.
        threads: how many cores to use; all of them if None.
        overwrite: replace maps that are in the folder already.
        sources: the files that the settings came from, by name of the setting.
        command: what the user typed, for the record.
    """

    image: Path
    model: SignalModel
    noise: NoiseModel
    sigma: float | Path | Literal["repeats", "background"]
    folder: Path
    mask: Path | None = None
    b_tolerance: float = 0.001
    threads: int | None = None
    overwrite: bool = False
    sources: Mapping[str, Path] = field(default_factory=dict)
    command: str = ""

    @property
    @abstractmethod
    def groups(self) -> list[Int[np.ndarray, " n"]]:
        """The volumes that make up each of the G measurements of a voxel."""

    @property
    @abstractmethod
    def other_inputs(self) -> list[Path]:
        """The files that only this job reads."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """Refuse what this job cannot do, whatever the series; note what may be a mistake.

        Raises:
            InputError: if one option contradicts another, or the model.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What provenance says of this job beside what all jobs say."""

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The settings of the M volumes, by name."""
        return settings_of(self.model)

    @property
    def equal(self) -> list[Int[np.ndarray, " n"]]:
        """The volumes with equal settings, grouped."""
        return group_equal(self.acquisition, self.b_tolerance)

    @property
    def inputs(self) -> list[Path]:
        """Every file that is read, once."""
        given = [self.image, *self.sources.values(), self.mask, self.sigma, *self.other_inputs]
        return list(dict.fromkeys(path for path in given if isinstance(path, Path)))

    def check(self, series: Series) -> list[str]:
        """Refuse what cannot be estimated; return notes on what may be a mistake.

        Raises:
            InputError: if the settings do not fit the series, or cannot determine the parameters.
        """
        names = list(self.acquisition)
        count, words = measurements(self.model), self._words
        source = self.sources.get(names[0])
        if count != series.volumes:
            raise InputError(
                f"{words}: {count} in {source.name if source else 'the list given'}, but "
                f"{series.path.name} has {series.volumes} volume{'s' * (series.volumes != 1)}"
            )
        if not isinstance(self.sigma, str | Path) and not 0 < self.sigma < np.inf:
            raise InputError(f"sigma: expected a positive number, got {self.sigma:g}")
        parameters = [parameter.name for parameter in self.model.parameters]
        measured, distinct = len(self.groups), len(self.equal)
        needs = f"{len(parameters)} parameters ({', '.join(parameters)})"
        if distinct == 1:
            raise InputError(
                f"{words}: all {count} are the same; {needs} need measurements at different ones"
            )
        if measured < len(parameters):
            raise InputError(
                f"{series.path.name}: {measured} measurements cannot determine {needs}; acquire "
                "more, or choose a model with fewer parameters"
            )
        notes = []
        if distinct < len(parameters):
            notes.append(
                f"{words}: only {distinct} distinct ones for {needs}; expect voxels on bounds and "
                "large standard errors"
            )
        return [*notes, *self.remarks()]

    def provenance(self) -> dict[str, Any]:
        """Everything about the run that was known before it: what a sidecar must say."""
        kind = type(self.model)
        own = self.settings()
        return {
            "command": self.command,
            "model": {
                "class": class_name(kind),
                "equation": equation(kind),
                "constants": {
                    each.name: getattr(self.model, each.name)
                    for each in fields(self.model)
                    if each.name not in self.acquisition
                    and isinstance(getattr(self.model, each.name), int | float | str)
                },
            },
            "noise": in_words(describe_noise(self.noise)),
            **own,
            "acquisition": {
                "settings": describe_settings(self.acquisition),
                "b_tolerance": {"unit": "s/mm²", "value": 1000 * self.b_tolerance},
                **own.get("acquisition", {}),
            },
            "inputs": {str(path): file_hash(path) for path in self.inputs},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("labelwise", "jax", "numpy", "nibabel")},
            },
        }

    @property
    def _words(self) -> str:
        name = next(iter(self.acquisition))
        return _WORDS.get(name, f"{name} values")


@dataclass(frozen=True)
class FitRequest(Request):
    """A fit to every voxel: what `Request` says, and how to fit.

    Args:
        bounds: replaces bounds of parameters by name, in their units.
        average: fit the average of measurements with equal settings instead of each of them.
        max_iterations: a voxel that needs more is given up as NOT_CONVERGED.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    average: Literal["geometric", "arithmetic"] | None = None
    max_iterations: int = 200

    @property
    def groups(self) -> list[Int[np.ndarray, " n"]]:
        """The volumes that are averaged into each of the G measurements that are fitted."""
        return self.equal if self.average else _singly(self.model)

    @property
    def other_inputs(self) -> list[Path]:
        """None."""
        return []

    @property
    def fitted_model(self) -> SignalModel:
        """The model of the G measurements that are fitted."""
        return replace(self.model, **average_settings(self.acquisition, self.groups))

    def remarks(self) -> list[str]:
        """What may be a mistake in averaging and bounds."""
        notes = []
        count, fitted, distinct = measurements(self.model), len(self.groups), len(self.equal)
        if self.average and distinct == count:
            notes.append(f"{self._words}: no two are equal, so there was nothing to average")
        elif self.average and fitted > count / 2:
            notes.append(
                f"{self._words}: averaging made {fitted} measurements of {count} volumes; values "
                "that should be equal may need a larger --b-tolerance"
            )
        if self.average and distinct < count and self.noise.magnitude:
            notes.append(
                "averaged magnitudes are not Rician any more: where the signal falls below about "
                "3 sigma of one volume, the estimates are biased; without --average they are not"
            )
        for parameter in self.model.parameters:
            lower, upper = self.bounds.get(parameter.name, parameter.bounds)
            if lower < parameter.bounds[0] or upper > parameter.bounds[1]:
                notes.append(
                    f"bounds: {parameter.name} from {lower:g} to {upper:g} goes beyond the "
                    f"model's own {parameter.bounds[0]:g} to {parameter.bounds[1]:g}"
                )
        return notes

    def settings(self) -> dict[str, Any]:
        """Iterations and averaging."""
        averaged = {
            "fitted_settings": describe_settings(settings_of(self.fitted_model)),
            "averaged_volumes": [len(group) for group in self.groups],
            "sigma_factor": sigma_factor(self.groups),
        }
        return {
            "max_iterations": self.max_iterations,
            "acquisition": {"average": self.average, **(averaged if self.average else {})},
        }


@dataclass(frozen=True)
class MapRequest(Request):
    """Maps by a trained network: what `Request` says, and which network.

    Args:
        net: the file of the network; if None, one is trained for these images.
        alpha: how much of the maximum-likelihood label the network follows, from 0 (the truth of
            the simulation: least scatter) to 1 (least bias); a number, or one by name of a
            parameter; what the network comes with if None.
        ranges: replaces ranges of the simulated parameters by name, in their units, where one is
            trained.
    """

    net: Path | None = None
    alpha: float | Mapping[str, float] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def groups(self) -> list[Int[np.ndarray, " n"]]:
        """Each volume is a measurement of its own: the network knows them as they are."""
        return _singly(self.model)

    @property
    def other_inputs(self) -> list[Path]:
        """The network's file."""
        return [self.net] if self.net else []

    def remarks(self) -> list[str]:
        """Nothing to note; options that contradict each other are refused.

        Raises:
            InputError: if alpha is not between 0 and 1 or names no parameter, or a network that
                is trained already is given another prior.
        """
        names = [parameter.name for parameter in self.model.parameters]
        chosen = self.alpha if isinstance(self.alpha, Mapping) else {"": self.alpha}
        for name, alpha in chosen.items():
            if name and name not in names:
                raise InputError(f"alpha: no parameter {name!r}; the model has {', '.join(names)}")
            if alpha is not None and not 0 <= alpha <= 1:
                raise InputError(
                    f"alpha: expected a number from 0 (least scatter) to 1 (least bias), "
                    f"got {alpha:g}"
                )
        if self.net and self.ranges:
            raise InputError(
                f"prior: {self.net.name} was trained already, so --prior cannot change it; leave "
                "out one of the two"
            )
        return []

    def settings(self) -> dict[str, Any]:
        """Nothing that is known before the network is."""
        return {}


def _singly(model: SignalModel) -> list[Int[np.ndarray, " n"]]:
    return [np.array([volume]) for volume in range(measurements(model))]


def describe_settings(settings: Mapping[str, Float[np.ndarray, " M"]]) -> dict[str, Any]:
    """Settings as people read them: b in s/mm².

    Example:
        >>> describe_settings({"b": np.array([0.0, 0.8])})
        {'b': {'unit': 's/mm²', 'values': [0.0, 800.0]}}
    """
    return {
        name: {
            "unit": _UNITS.get(name, "that of the model"),
            "values": [
                float(f"{value * (1000 if name == 'b' else 1):.9g}") for value in values.tolist()
            ],
        }
        for name, values in settings.items()
    }


def equation(model: type[SignalModel]) -> str:
    """The first line of a model's docstring.

    Example:
        >>> from labelwise.models import IVIM
        >>> equation(IVIM)
        'S(b) = S0 (f exp(-b (D_fast + D_slow)) + (1 - f) exp(-b D_slow)).'
    """
    return (inspect.getdoc(model) or model.__name__).splitlines()[0]
