"""What is asked of the main job, the checks that need no computing, and the record of it."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from labelwise.acquisition import average_settings, group_equal, sigma_factor
from labelwise.images import Series, file_hash
from labelwise.models import SignalModel
from labelwise.models.base import acquisition_names, measurements
from labelwise.noise import NoiseModel

_WORDS = {"b": "b-values", "te": "echo times", "ti": "inversion times"}
_UNITS = {"b": "s/mm²", "te": "ms", "ti": "ms"}


@dataclass(frozen=True)
class FitRequest:
    """Which images, which model, which noise, and where the maps go.

    Args:
        image: the 4D series.
        model: the signal model with one setting per volume.
        noise: the noise model.
        sigma: noise of one channel in the image's unit: a number, the path of a map of it, or the
            method by which to estimate it: `"repeats"` (the volumes at b = 0; without b, the most
            often repeated setting) or `"background"` (what lies outside the mask).
        folder: where the maps go.
        mask: the path of the mask of voxels to fit; all of them if None.
        bounds: replaces bounds of parameters by name, in their units.
        average: fit the average of measurements with equal settings instead of each of them.
        b_tolerance: in ms/µm². Two b-values this close are equal; b up to this is b = 0.
        max_iterations: a voxel that needs more is given up as NOT_CONVERGED.
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
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    average: Literal["geometric", "arithmetic"] | None = None
    b_tolerance: float = 0.001
    max_iterations: int = 200
    threads: int | None = None
    overwrite: bool = False
    sources: Mapping[str, Path] = field(default_factory=dict)
    command: str = ""

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The settings of the M volumes, by name."""
        return settings_of(self.model)

    @property
    def equal(self) -> list[Int[np.ndarray, " n"]]:
        """The volumes with equal settings, grouped."""
        return group_equal(self.acquisition, self.b_tolerance)

    @property
    def groups(self) -> list[Int[np.ndarray, " n"]]:
        """The volumes that are averaged into each of the G measurements that are fitted."""
        if self.average is None:
            return [np.array([volume]) for volume in range(measurements(self.model))]
        return self.equal

    @property
    def fitted_model(self) -> SignalModel:
        """The model of the G measurements that are fitted."""
        return replace(self.model, **average_settings(self.acquisition, self.groups))

    def check(self, series: Series) -> list[str]:
        """Refuse what cannot be fitted; return notes on what may be a mistake.

        Raises:
            ValueError: if the settings do not fit the series, or cannot determine the parameters.
        """
        names = list(self.acquisition)
        count, words = measurements(self.model), _WORDS.get(names[0], f"{names[0]} values")
        source = self.sources.get(names[0])
        if count != series.volumes:
            raise ValueError(
                f"{words}: {count} in {source.name if source else 'the list given'}, but "
                f"{series.path.name} has {series.volumes} volume{'s' * (series.volumes != 1)}"
            )
        if not isinstance(self.sigma, str | Path) and not 0 < self.sigma < np.inf:
            raise ValueError(f"sigma: expected a positive number, got {self.sigma:g}")
        parameters = [parameter.name for parameter in self.model.parameters]
        fitted, distinct = len(self.groups), len(self.equal)
        needs = f"{len(parameters)} parameters ({', '.join(parameters)})"
        if distinct == 1:
            raise ValueError(
                f"{words}: all {count} are the same; {needs} need measurements at different ones"
            )
        if fitted < len(parameters):
            raise ValueError(
                f"{series.path.name}: {fitted} measurements cannot determine {needs}; acquire "
                "more, or choose a model with fewer parameters"
            )
        notes = []
        if distinct < len(parameters):
            notes.append(
                f"{words}: only {distinct} distinct ones for {needs}; expect voxels on bounds and "
                "large standard errors"
            )
        if self.average and distinct == count:
            notes.append(f"{words}: no two are equal, so there was nothing to average")
        elif self.average and fitted > count / 2:
            notes.append(
                f"{words}: averaging made {fitted} measurements of {count} volumes; values that "
                "should be equal may need a larger --b-tolerance"
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

    def provenance(self) -> dict[str, Any]:
        """Everything about the run that was known before it: what a sidecar must say."""
        kind = type(self.model)
        return {
            "command": self.command,
            "model": {
                "class": f"{kind.__module__}.{kind.__qualname__}",
                "equation": equation(kind),
                "constants": {
                    each.name: getattr(self.model, each.name)
                    for each in fields(self.model)
                    if each.name not in self.acquisition
                    and isinstance(getattr(self.model, each.name), int | float | str)
                },
            },
            "noise": type(self.noise).__name__,
            "max_iterations": self.max_iterations,
            "acquisition": {
                "settings": describe_settings(self.acquisition),
                "b_tolerance": {"unit": "s/mm²", "value": 1000 * self.b_tolerance},
                "average": self.average,
                **(self._averaged() if self.average else {}),
            },
            "inputs": {str(path): file_hash(path) for path in self.inputs},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("labelwise", "jax", "numpy", "nibabel")},
            },
        }

    def _averaged(self) -> dict[str, Any]:
        return {
            "fitted_settings": describe_settings(settings_of(self.fitted_model)),
            "averaged_volumes": [len(group) for group in self.groups],
            "sigma_factor": sigma_factor(self.groups),
        }

    @property
    def inputs(self) -> list[Path]:
        """Every file that is read, once."""
        given = [self.image, *self.sources.values(), self.mask, self.sigma]
        return list(dict.fromkeys(path for path in given if isinstance(path, Path)))


def settings_of(model: SignalModel) -> dict[str, Float[np.ndarray, " M"]]:
    """The acquisition bound to a model, by name of the setting; b in ms/µm².

    Example:
        >>> from labelwise.models import IVIM
        >>> settings_of(IVIM([0, 0.8]))
        {'b': array([0. , 0.8])}
    """
    return {name: np.asarray(getattr(model, name)) for name in acquisition_names(type(model))}


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
