"""The report of a run: voxels per status, quartiles, and notes on possible mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2

from labelwise.io.noise_level import NoiseLevel
from labelwise.networks.network import OUTSIDE_NOISE, OUTSIDE_RANGE, OUTSIDE_SIGNAL
from labelwise.noise import NoiseModel
from labelwise.types import Estimate, Parameter, Status, has_values

_DISAGREE = 1.5  # a ratio of noise levels, or of residuals, that is worth a note
_PEAK = 1.5  # sigma: without signal, the largest of four magnitudes is 1.9 in the median
_CLIPPED = 10  # voxels that share the series' largest value
_FEW = 0.01  # of the voxels: a smaller share outside the training range gets no note
_UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter over all voxels that have a value.

    Args:
        parameter: its name, unit and bounds; for a fit, those that were used.
        quartiles: the 25th, 50th and 75th percentile, in its unit.
        standard_error: the median of its standard errors, in its unit.
        at_limits: for a fit, the shares of voxels on its lower and on its upper bound; for a
            network, those below and above the range that it was trained for; NaN if not known.
    """

    parameter: Parameter
    quartiles: tuple[float, float, float]
    standard_error: float
    at_limits: tuple[float, float]


@dataclass(frozen=True)
class NetworkUse:
    """The network that made the maps, and its training.

    Noise levels are sigma over the signal that the network divides by (that at b = 0).

    Args:
        origin: whether it came from a file, was trained for these images, or was found in the
            cache, where an earlier run had left it.
        path: its file: the one given, or the one in the cache, if any.
        alpha: how much of the maximum-likelihood label it follows; one number, or one by parameter;
            None for a single network.
        trained: the lowest and highest noise level that it was trained for.
        image: the range of noise levels of the series, without the outermost of its voxels.
        ranges: the lowest and highest value of each parameter that it was trained for, by name, in
            its unit; without an amplitude, whose range is relative to the signal at b = 0.
        seconds: how long the parts of its training took; empty for one from a file.
        card: the network's card, as JSON data.
        advice: a sentence on its alpha; empty if there is none.
    """

    origin: Literal["file", "trained", "cache"]
    path: Path | None
    alpha: float | Mapping[str, float] | None
    trained: tuple[float, float]
    image: tuple[float, float]
    ranges: Mapping[str, tuple[float, float]]
    seconds: Mapping[str, float]
    card: Mapping[str, Any]
    advice: str = ""

    @property
    def trained_snr(self) -> tuple[float, float]:
        """The lowest and highest signal-to-noise ratio that it was trained for."""
        return _inverse(self.trained)

    @property
    def image_snr(self) -> tuple[float, float]:
        """The lowest and highest signal-to-noise ratio found in the series."""
        return _inverse(self.image)

    def as_dict(self) -> dict[str, Any]:
        """As JSON data, without the card."""
        return {
            "origin": self.origin,
            "path": self.path,
            "alpha": self.alpha,
            "trained_for_snr": self.trained_snr,
            "snr_of_the_image": self.image_snr,
            "trained_for_ranges": self.ranges,
            "seconds_of_training": {part: round(s, 3) for part, s in self.seconds.items()},
        }


@dataclass(frozen=True)
class Report:
    """The report of a run.

    Args:
        folder: where the maps are.
        voxels: how many voxels inside the mask ended with each status.
        parameters: one summary for each parameter.
        residual: median of √(Σ (data - expected)² / variance / (M - P)); 1 if all is right.
        sigma: the noise level that was used; the median of a map.
        other_sigma: estimates by other methods, where possible.
        refused_sigma: by method, why it gives no sigma; empty unless sigma was chosen by `"auto"`.
        seconds: wall time by part of the work. Of a fit: `prepare`, `fit` (with reading and
            compiling) and `write`. By a network: `prepare`, `train`, `start` (compiling), `map`
            (with reading) and `write`.
        notes: on possible mistakes.
        network: which network was used; None for a fit.
    """

    folder: Path
    voxels: Mapping[Status, int]
    parameters: tuple[ParameterSummary, ...]
    residual: float
    sigma: NoiseLevel
    other_sigma: tuple[NoiseLevel, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    network: NetworkUse | None = None
    refused_sigma: Mapping[str, str] = field(default_factory=dict)

    @property
    def voxels_per_second(self) -> float:
        """Voxels inside the mask over the time of the fit, or of mapping them."""
        return sum(self.voxels.values()) / self.seconds["map" if self.network else "fit"]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data, as in `run.json`."""
        limits = ("below_range", "above_range") if self.network else ("on_lower", "on_upper")
        end = "" if self.network else "_bound"
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
                    **{
                        f"share_{limit}{end}": share
                        for limit, share in zip(limits, summary.at_limits, strict=True)
                    },
                }
                for summary in self.parameters
            ],
            "median_residual": self.residual,
            "sigma": asdict(self.sigma),
            "other_sigma": [asdict(level) for level in self.other_sigma],
            "refused_sigma": dict(self.refused_sigma),
            **(
                {"network": self.network.as_dict() | {"card": self.network.card}}
                if self.network
                else {}
            ),
            "seconds": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
            "voxels_per_second": round(self.voxels_per_second, 1),
            "notes": list(self.notes),
        }


def count_statuses(status: Int[np.ndarray, " n"]) -> dict[Status, int]:
    """How many voxels ended with each status, of those that occur."""
    counts = np.bincount(status, minlength=len(Status))
    return {code: int(counts[code]) for code in Status if counts[code]}


def summarise(
    estimate: Estimate,
    parameters: tuple[Parameter, ...],
    beyond: Mapping[str, Int[np.ndarray, " N"]],
) -> tuple[ParameterSummary, ...]:
    """The summary of each parameter over the voxels that have values.

    Args:
        estimate: values, standard errors and status of all voxels.
        parameters: what its columns are.
        beyond: by name of the parameter, negative where a value is at the lower limit, positive
            where it is at the upper one, else 0; no entry where that is unknown.
    """
    fitted = np.flatnonzero(has_values(estimate.status))
    return tuple(
        ParameterSummary(
            parameter,
            _quartiles(estimate.values[fitted, column]),
            _quartiles(estimate.stats["standard_error"][fitted, column])[1],
            _shares(beyond[parameter.name][fitted]) if parameter.name in beyond else _UNKNOWN,
        )
        for column, parameter in enumerate(parameters)
    )


def beyond_ranges(
    estimate: Estimate, names: Sequence[str], network: NetworkUse
) -> dict[str, Int[np.ndarray, " N"]]:
    """By name, -1 where a value lies below the training range, +1 above.

    Only for voxels flagged by the network: its check has a tolerance, and values are clipped to
    the bounds, which may be the ends of the range.
    """
    flagged = (estimate.stats["outside"] & OUTSIDE_RANGE) > 0
    beyond = {}
    for column, name in enumerate(names):
        if name in network.ranges:
            low, high = network.ranges[name]
            values = np.where(flagged, estimate.values[:, column], 0.5 * (low + high))
            beyond[name] = (values >= high).astype(np.int8) - (values <= low)
    return beyond


def _quartiles(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return math.nan, math.nan, math.nan
    low, median, high = (float(value) for value in np.percentile(finite, [25, 50, 75]))
    return low, median, high


def _shares(limits: Int[np.ndarray, " n"]) -> tuple[float, float]:
    if not limits.size:
        return 0.0, 0.0
    return float((limits < 0).mean()), float((limits > 0).mean())


def median_residual(estimate: Estimate, measurements: int) -> float:
    """The median residual relative to its expectation: 1 if model and sigma are right.

    NaN if there are no more measurements than parameters.
    """
    freedom = measurements - estimate.values.shape[1]
    if freedom <= 0:
        return math.nan
    expected = math.sqrt(chi2.median(freedom) / freedom)
    return _quartiles(estimate.stats["residual"][has_values(estimate.status)])[1] / expected


def quality_notes(
    estimate: Estimate,
    used: NoiseLevel,
    others: Sequence[NoiseLevel],
    residual: float,
    peak: Float[np.ndarray, " N"],
    noise: NoiseModel,
) -> list[str]:
    """Notes on a sigma that other methods or the data contradict, and on failed fits.

    Args:
        estimate: of all voxels.
        used: the noise level that was used.
        others: what other methods give.
        residual: from `median_residual`.
        peak: the largest measurement of each voxel over its sigma; NaN where there is none.
        noise: the noise model.
    """
    notes = []
    for other in others:
        ratio = max(used.sigma, other.sigma) / min(used.sigma, other.sigma)
        if other.doubt and used.scatter is None and other.sigma > _DISAGREE * used.sigma:
            notes.append(
                f"sigma: {used.sigma:.3g} ({used.method}) was used, {other.method} gives "
                f"{other.sigma:.3g}, which is more than noise: {other.doubt}"
            )
        elif ratio > _DISAGREE and not other.doubt:
            notes.append(
                f"sigma: {used.sigma:.3g} ({used.method}) was used, {other.method} gives "
                f"{other.sigma:.3g}, which differs by a factor of {ratio:.1f}"
            )
    fitted = has_values(estimate.status)
    typical = _quartiles(peak[peak > 0])[1]
    if not fitted.any():
        notes.append("no voxel could be fitted; see the status map for the reasons")
    if typical < max(float(noise.mean(0.0, 1.0)) + 0.25, _PEAK):  # residuals mean nothing then
        notes.append(
            "sigma is as large as the signal: the largest measurement of a voxel is "
            f"{typical:.2g} sigma in the median; sigma is too large or of another unit than the "
            "images, or the mask holds noise only"
        )
    elif residual < 1 / _DISAGREE:
        notes.append(f"residuals are {residual:.2g} of what sigma predicts: sigma is too large")
    elif residual > _DISAGREE:
        notes.append(
            f"residuals are {residual:.1f} times what sigma predicts: sigma is too small, or the "
            "model does not describe the signal"
        )
    share = np.mean(estimate.status[fitted] == Status.ON_BOUND) if fitted.any() else 0.0
    if share > 0.5:
        notes.append(
            f"{100 * share:.0f} % of the fitted voxels lie on a bound: there the measurements "
            "hardly determine the model, and medians over such voxels are not meaningful"
        )
    return notes


def outside_training(
    estimate: Estimate, parameters: tuple[ParameterSummary, ...], network: NetworkUse
) -> list[str]:
    """Notes on voxels whose noise level or estimate is outside the training range."""
    outside = estimate.stats["outside"][has_values(estimate.status)]
    notes = []
    noise, estimates = (
        int(np.count_nonzero(outside & code)) for code in (OUTSIDE_NOISE, OUTSIDE_RANGE)
    )
    if noise > _FEW * outside.size:
        (low, high), (least, most) = network.trained_snr, network.image_snr
        notes.append(
            f"{noise} voxels ({_percent(noise / outside.size)}) have a noise level that the "
            f"network was not trained for: trained for SNR {low:.3g} to {high:.3g}, the image has "
            f"{least:.3g} to {most:.3g}"
        )
    missed = int(np.count_nonzero(outside & OUTSIDE_SIGNAL))
    if missed > _FEW * outside.size:
        notes.append(
            f"{missed} voxels ({_percent(missed / outside.size)}) have measurements that the "
            "network's estimate does not explain (residual above 3): sigma is wrong, the model "
            "does not hold there, or they are unlike what was simulated; compare with labelwise fit"
        )
    if estimates > _FEW * outside.size:
        shares = [
            f"{summary.parameter.name} {_percent(sum(summary.at_limits))}"
            for summary in parameters
            if sum(summary.at_limits) > 0  # not where it is unknown
        ]
        notes.append(
            f"{estimates} voxels ({_percent(estimates / outside.size)}) have an estimate outside "
            f"the ranges that the network was trained on ({', '.join(shares)}); --prior "
            "NAME=LOW:HIGH widens them"
        )
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _inverse(levels: tuple[float, float]) -> tuple[float, float]:
    low, high = levels
    return 1 / high if high else math.inf, 1 / low if low else math.inf


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
