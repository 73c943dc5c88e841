"""The evidence for claims: evaluations of every estimator, and numbers taken from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xarray as xr

from labelwise.evaluation.grid import marginal, summary
from labelwise.study import methods
from labelwise.study.config import Study
from labelwise.study.networks import mle_of_the_noise
from labelwise.study.records import Part

WELL_FILLED = 0.01
"""A bin that holds this share of the voxels is well represented."""


@dataclass(frozen=True)
class Number:
    """A number with its standard error; differences assume independent errors.

    Example:
        >>> Number(3.0, 0.3) - Number(1.0, 0.4)
        Number(value=2.0, error=0.5)
    """

    value: float
    error: float = 0.0

    def __sub__(self, other: Number) -> Number:
        """The difference."""
        return Number(self.value - other.value, math.hypot(self.error, other.error))

    def __neg__(self) -> Number:
        """The number with the opposite sign."""
        return Number(-self.value, self.error)

    def __abs__(self) -> Number:
        """The absolute value."""
        return Number(abs(self.value), self.error)

    def __str__(self) -> str:
        """Three significant digits."""
        return f"{self.value:.3g}"


@dataclass(frozen=True, eq=False)
class InVivo:
    """The results of the in vivo part.

    Args:
        binned: estimators against the gold standard (estimator, parameter, bin).
        matched: the same for a synthetic set with the gold standard's parameters.
        voxels: (estimator, voxel, parameter) of the scan, with `first`, the first acquisition's.
        reference: (voxel, parameter) the gold standard.
    """

    binned: xr.Dataset
    matched: xr.Dataset
    voxels: xr.Dataset
    reference: np.ndarray


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evaluations of all networks of one training, and of the fits.

    Args:
        study: its description.
        grids: by SNR, what `labelwise.evaluation.grid.evaluate` returned for all estimators.
        in_vivo: the in vivo part, if there is one.
        speed: voxels per second by estimator, if measured.
        intervals: what `evaluate_intervals` returned for the lowest SNR, if there are intervals.
    """

    study: Study
    grids: Mapping[float, xr.Dataset]
    in_vivo: InVivo | None = None
    speed: Mapping[str, float] = field(default_factory=dict)
    intervals: xr.Dataset | None = None

    @cached_property
    def summaries(self) -> Mapping[float, xr.Dataset]:
        """By SNR, the result of `labelwise.evaluation.grid.summary`."""
        return {snr: summary(grid) for snr, grid in self.grids.items()}

    @property
    def low(self) -> float:
        """The lowest SNR."""
        return min(self.study.snrs)

    @property
    def mle_network(self) -> str:
        """The network trained on maximum-likelihood labels under the simulated noise."""
        return mle_of_the_noise(self.study)

    def known(self, *wanted: str) -> list[str]:
        """The wanted estimators that were evaluated."""
        there = set(self.grids[self.low].estimator.values.tolist())
        return [name for name in wanted if name in there]

    @property
    def imitators(self) -> list[str]:
        """The networks that imitate a fit: self-supervised, and trained on its estimates."""
        return self.known(methods.SELF, methods.MLE_RICIAN, methods.MLE_GAUSSIAN)

    def number(self, snr: float, name: str, parameter: str, quantity: str) -> Number:
        """One number of an estimator's summary, such as `"abs_bias"` or `"slope"`."""
        here = self.summaries[snr].sel(estimator=name, parameter=parameter)
        return Number(float(here[quantity]), float(here[f"{quantity}_error"]))

    def curve(self, snr: float, name: str, parameter: str, quantity: str) -> list[Number]:
        """The marginal curve of a quantity against the parameter's true values."""
        variables = [quantity, f"{quantity}_error"]
        here = self.grids[snr][variables].sel(estimator=name, parameter=parameter)
        here = marginal(here, parameter)
        return [
            Number(float(value), float(error))
            for value, error in zip(
                here[quantity].values, here[f"{quantity}_error"].values, strict=True
            )
        ]

    def unit(self, parameter: str) -> str:
        """Of a parameter, with a space before it; empty for a fraction."""
        (found,) = (p.unit for p in self.study.model.parameters if p.name == parameter)
        return "" if found == "1" else f" {found}"


def below(what: str, low: Number, high: Number, unit: str = "") -> Part:
    """The comparison that holds if the first number is below the second."""
    margin = high - low
    return Part(what, f"{low} against {high}{unit}", margin.value, margin.error)


def between(what: str, number: Number, ends: Sequence[Number], unit: str = "") -> Part:
    """The comparison that holds if a number lies between two others."""
    low, high = sorted(ends, key=lambda end: end.value)
    margins = (number - low, high - number)
    margin = min(margins, key=lambda margin: margin.value)
    figures = f"{number} between {low} and {high}{unit}"
    return Part(what, figures, margin.value, margin.error)
