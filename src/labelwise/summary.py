"""What became of a series, in numbers: voxels per status, quartiles, and what looks wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2

from labelwise.noise_level import NoiseLevel
from labelwise.types import Estimate, Parameter, Status

_DISAGREE = 1.5  # a ratio of noise levels, or of residuals, that is worth a note
_CLIPPED = 10  # voxels that share the series' largest value


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter over all voxels that have a value.

    Args:
        parameter: its name, unit and the bounds that were used.
        quartiles: the 25th, 50th and 75th percentile, in its unit.
        standard_error: the median of its standard errors, in its unit.
        on_bound: the shares of voxels on its lower and on its upper bound.
    """

    parameter: Parameter
    quartiles: tuple[float, float, float]
    standard_error: float
    on_bound: tuple[float, float]


@dataclass(frozen=True)
class FitReport:
    """What became of a series.

    Args:
        folder: where the maps are.
        voxels: how many voxels inside the mask ended with each status.
        parameters: one summary for each parameter.
        residual: median of √(Σ (data - expected)² / variance / (M - P)); 1 if all is right.
        sigma: the noise level that was used; the median of a map.
        other_sigma: what other methods say of it, where they could be used.
        seconds: wall time by part of the work; `fit` includes reading and compiling.
        notes: what may be a mistake but need not be.
    """

    folder: Path
    voxels: Mapping[Status, int]
    parameters: tuple[ParameterSummary, ...]
    residual: float
    sigma: NoiseLevel
    other_sigma: tuple[NoiseLevel, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def voxels_per_second(self) -> float:
        """Voxels inside the mask over the time of the fit."""
        return sum(self.voxels.values()) / self.seconds["fit"]

    def as_dict(self) -> dict[str, Any]:
        """The report in words, numbers and lists, as `run.json` holds it."""
        return {
            "voxels": {
                "inside": sum(self.voxels.values()),
                "status": {status.reason: count for status, count in self.voxels.items()},
            },
            "parameters": [
                {
                    **asdict(summary.parameter),
                    "median": summary.quartiles[1],
                    "quartiles": [summary.quartiles[0], summary.quartiles[2]],
                    "median_standard_error": summary.standard_error,
                    "share_on_lower_bound": summary.on_bound[0],
                    "share_on_upper_bound": summary.on_bound[1],
                }
                for summary in self.parameters
            ],
            "median_residual": self.residual,
            "sigma": asdict(self.sigma),
            "other_sigma": [asdict(level) for level in self.other_sigma],
            "seconds": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
            "voxels_per_second": round(self.voxels_per_second, 1),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """Estimate against truth in one tissue: medians of one parameter over its voxels.

    Args:
        tissue: the name of the tissue.
        parameter: which parameter, with its unit.
        voxels: how many voxels have an estimate.
        truth: the median of the true values.
        estimate: the median of the estimates.
    """

    tissue: str
    parameter: Parameter
    voxels: int
    truth: float
    estimate: float


def has_values(status: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Which voxels' estimates are numbers."""
    return np.isin(status, [code for code in Status if code.has_values])


def count_statuses(status: Int[np.ndarray, " n"]) -> dict[Status, int]:
    """How many voxels ended with each status, of those that occur."""
    counts = np.bincount(status, minlength=len(Status))
    return {code: int(counts[code]) for code in Status if counts[code]}


def summarise(
    estimate: Estimate, parameters: tuple[Parameter, ...]
) -> tuple[ParameterSummary, ...]:
    """The summary of each parameter over the voxels that have values."""
    kept = has_values(estimate.status)
    return tuple(
        ParameterSummary(
            parameter,
            _quartiles(estimate.values[kept, column]),
            _quartiles(estimate.stats["standard_error"][kept, column])[1],
            (_share(on_bound[kept] < 0), _share(on_bound[kept] > 0)),
        )
        for column, parameter in enumerate(parameters)
        for on_bound in [estimate.stats["on_bound"][:, column]]
    )


def _quartiles(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return math.nan, math.nan, math.nan
    low, median, high = (float(value) for value in np.percentile(finite, [25, 50, 75]))
    return low, median, high


def _share(flags: Bool[np.ndarray, " n"]) -> float:
    return float(flags.mean()) if flags.size else 0.0


def median_residual(estimate: Estimate, measurements: int) -> float:
    """Over the voxels that have values, relative to what chance makes it: 1 if all is right.

    NaN if no measurement is left over to judge the fit by.
    """
    freedom = measurements - estimate.values.shape[1]
    if freedom <= 0:
        return math.nan
    expected = math.sqrt(chi2.median(freedom) / freedom)
    return _quartiles(estimate.stats["residual"][has_values(estimate.status)])[1] / expected


def doubts(estimate: Estimate, levels: list[NoiseLevel], residual: float) -> list[str]:
    """Notes on a sigma that other methods or the residuals contradict, and on a fit of nothing."""
    notes = []
    used, *others = levels
    for other in others:
        ratio = max(used.sigma, other.sigma) / min(used.sigma, other.sigma)
        if ratio > _DISAGREE:
            notes.append(
                f"sigma: {used.sigma:.3g} ({used.method}) was used, {other.method} would say "
                f"{other.sigma:.3g}, which differs by a factor of {ratio:.1f}"
            )
    fitted = has_values(estimate.status)
    if not fitted.any():
        notes.append("no voxel could be fitted; the status map says why")
    elif residual > _DISAGREE:
        notes.append(
            f"residuals are {residual:.1f} times what sigma predicts: sigma is too small, or the "
            "model does not describe the signal"
        )
    elif residual < 1 / _DISAGREE:
        notes.append(f"residuals are {residual:.2g} of what sigma predicts: sigma is too large")
    share = np.mean(estimate.status[fitted] == Status.ON_BOUND) if fitted.any() else 0.0
    if share > 0.5:
        notes.append(
            f"{100 * share:.0f} % of the fitted voxels lie on a bound: these measurements hardly "
            "determine the model there, and medians over such voxels mean little"
        )
    return notes


def clipping(peak: Float[np.ndarray, " V"]) -> list[str]:
    """A note where many voxels, but not most, share the largest value of the series."""
    peak = peak[np.isfinite(peak)]
    count = int((peak == peak.max()).sum()) if peak.size else 0
    if not _CLIPPED <= count < 0.5 * peak.size:
        return []
    return [
        f"{count} voxels ({100 * count / peak.size:.2g} %) share the largest value of the series, "
        f"{peak.max():g}: were the images clipped?"
    ]
