"""The report of a run: voxels per status, quartiles, and notes on possible mistakes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting.engines import SIGNIFICANT
from labelwise.fitting.usable import CLIPPED, DROPOUT, REASONS, Ceiling
from labelwise.io.noise_level import NoiseLevel
from labelwise.io.results import RUN
from labelwise.mapping.request import Request
from labelwise.models.base import never_negative
from labelwise.networks.network import OUTSIDE_NOISE, OUTSIDE_RANGE, OUTSIDE_SIGNAL
from labelwise.noise import NoiseModel, chi2_quantile, evaluate
from labelwise.types import Estimate, InputError, Parameter, Status, has_values, is_natural
from labelwise.volumes import html

_DISAGREE = 1.5  # a ratio of noise levels, or of residuals, that is worth a note
_EXACT = (0.85, 1.3)  # squared residuals: with 0.8 of sigma, intervals of 95 % cover 90 %
_PEAK = 1.5  # sigma: without signal, the largest of four magnitudes is 1.9 in the median
_CLEAR = 3.75  # sigma above the noise floor: of 300 volumes without signal, the largest is below
_SOME = 0.05  # of the voxels: a smaller share that a bound shifts may be chance, and gets no note
_FEW = 0.01  # of the voxels: a smaller share outside the training range gets no note
_NEGATIVE = 0.05  # of the voxels: fewer have negative measurements from interpolation
_UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter over all voxels that have a value.

    Args:
        parameter: its name, unit and bounds; for a fit, those that were used.
        quartiles: the 25th, 50th and 75th percentile, in its unit.
        standard_error: the median of its standard errors, in its unit.
        half_width: the median of half the widths of its intervals, in its unit; NaN if there are
            none.
        at_limits: for a fit, the shares of voxels on its lower and on its upper bound; for a
            network, those below and above the range that it was trained for; NaN if not known.
    """

    parameter: Parameter
    quartiles: tuple[float, float, float]
    standard_error: float
    half_width: float
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


@dataclass(frozen=True, repr=False)
class Report:
    """The report of a run.

    `report.D_slow` is the map of that name, if no other attribute has it. A notebook shows a table
    and the middle slice.

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
        left_out: by reason, how many measurements were left out, and of how many voxels.
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
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    refused_sigma: Mapping[str, str] = field(default_factory=dict)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Float[np.ndarray, "X Y Z"]:
            if name.startswith("_") or not (self.folder / f"{name}.nii.gz").is_file():
                raise AttributeError(f"a report has no {name!r}, nor its folder a map of that name")
            return self._map(name)

    def _map(self, name: str) -> np.ndarray:
        return np.asanyarray(nib.Nifti1Image.load(self.folder / f"{name}.nii.gz").dataobj)

    def save(self, folder: str | Path) -> None:
        """Copy all files of the run; those of a run without `out` are temporary.

        Args:
            folder: made if missing.

        Raises:
            InputError: if one of the files is there already.
            OSError: if a file cannot be written.
        """
        there = [path.name for path in self.folder.iterdir() if Path(folder, path.name).exists()]
        if there:
            raise InputError(f"{folder}: it already holds {there[0]}; choose another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        files = sorted(self.folder.iterdir(), key=lambda path: path.name == RUN)  # the record last
        for path in files:
            shutil.copyfile(path, Path(folder, path.name))

    def __repr__(self) -> str:
        names = ", ".join(each.parameter.name for each in self.parameters)
        return f"Report({names}; {self._outcome()}; {self.folder})"[:400]

    def _outcome(self) -> str:
        return ", ".join(f"{count} {status.reason}" for status, count in self.voxels.items())

    def _repr_html_(self) -> str:
        """For notebooks."""
        parameters = [each.parameter for each in self.parameters]
        maps = {each.name: (self._map(each.name), each.unit) for each in parameters}
        return html(self._outcome(), maps)

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
            "left_out": dict(self.left_out),
            "parameters": [
                {
                    **asdict(summary.parameter),
                    "median": summary.quartiles[1],
                    "quartiles": [summary.quartiles[0], summary.quartiles[2]],
                    "median_standard_error": summary.standard_error,
                    "median_uncertainty": summary.half_width,
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
    counts = np.bincount(status, minlength=1 + max(Status))
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
    none = np.full(estimate.values.shape, np.nan)
    widths = half_width(estimate) if "low" in estimate.stats else none
    return tuple(
        ParameterSummary(
            parameter,
            _quartiles(estimate.values[fitted, column]),
            _median_error(estimate.stats["standard_error"][fitted, column]),
            _median_error(widths[fitted, column]),
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


def half_width(estimate: Estimate) -> Float[np.ndarray, "N P"]:
    """Half the width of the intervals."""
    return (estimate.stats["high"] - estimate.stats["low"]) / 2


def _median_error(errors: Float[np.ndarray, " n"]) -> float:
    """The median of the standard errors that are known; NaN if most are not."""
    return math.nan if not errors.size or np.isnan(errors).mean() > 0.5 else _quartiles(errors)[1]


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
    expected = math.sqrt(chi2_quantile(0.5, freedom) / freedom)
    return _quartiles(estimate.stats["residual"][has_values(estimate.status)])[1] / expected


def quality_notes(
    estimate: Estimate,
    used: NoiseLevel,
    others: Sequence[NoiseLevel],
    residual: float,
    peak: Float[np.ndarray, " N"],
    noise: NoiseModel,
) -> list[str]:
    """Notes on a sigma that other methods or the data contradict, and on voxels without signal.

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
    peak = peak[np.isfinite(peak) & (peak > 0)]
    typical = _quartiles(peak)[1]
    if not fitted.any():
        notes.append("no voxel could be fitted; see the status map for the reasons")
    floor = float(evaluate(noise.mean, 0.0, 1.0))
    faint = np.count_nonzero(peak < floor + _CLEAR) / max(peak.size, 1)
    if 0.5 < faint < 1 - _FEW:  # residuals mean nothing then
        notes.append(
            f"{_percent(faint)} of the voxels have no measurement above {floor + _CLEAR:.1f} "
            "sigma: they hold no signal above the noise (air?), and medians, the residual, and "
            "shares of ambiguous voxels and of bounds are mostly theirs; a --mask of the object "
            "leaves them out"
        )
    elif typical < max(floor + 0.25, _PEAK):  # nor then
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
    elif (
        "low" in estimate.stats
        and used.scatter is None
        and not _EXACT[0] <= residual**2 <= _EXACT[1]
    ):
        wrong = "wide: sigma" if residual < 1 else "narrow: the model does not hold, or sigma"
        size = "large" if residual < 1 else "small"
        notes.append(
            f"residuals are {residual:.2g} times what sigma predicts, so intervals are too {wrong} "
            f"is somewhat too {size}"
        )
    return notes


def bounds_that_bind(estimate: Estimate) -> list[str]:
    """Notes of a fit on bounds that most voxels lie on, and on those that shift other parameters.

    A bound shifts a parameter that has no standard error although it is on no bound itself; see
    `labelwise.MaximumLikelihood`.
    """
    fitted = has_values(estimate.status)
    on_bound, errors = (estimate.stats[name][fitted] for name in ("on_bound", "standard_error"))
    if not len(on_bound):
        return []
    shifted = np.isnan(errors) & (on_bound == 0)
    notes = []
    for column, parameter in enumerate(estimate.parameters):
        for side, bound, word in zip((-1, 1), parameter.bounds, ("lower", "upper"), strict=True):
            here = on_bound[:, column] == side
            moved = here & shifted.any(axis=1)
            if is_natural(parameter, bound) or moved.mean() <= _SOME:
                continue
            others = [
                name
                for name, share in zip(estimate.names, shifted[moved].mean(axis=0), strict=True)
                if share > _SOME
            ]
            lower, upper = _wider(parameter, side)
            notes.append(
                f"{_percent(here.mean())} of the fitted voxels lie on the {word} bound of "
                f"{parameter.name}, {bound:g}; in {_percent(moved.mean())} the measurements reject "
                f"it, which shifts {' and '.join(others)} and takes the standard error away; "
                f"--bounds {parameter.name}={lower:g}:{upper:g} widens it"
            )
    share = np.mean(on_bound.any(axis=1))
    if share > 0.5:
        names = [
            f"{name} {_percent(part)}"
            for name, part in zip(estimate.names, (on_bound != 0).mean(axis=0), strict=True)
            if part > _FEW
        ]
        notes.append(
            f"{100 * share:.0f} % of the fitted voxels lie on a bound ({', '.join(names)}): there "
            "the measurements hardly determine the model or contradict the bound, and medians over "
            "such voxels are not meaningful"
        )
    return notes


def _wider(parameter: Parameter, side: int) -> tuple[float, float]:
    """Wider bounds: 0 to 1 for a fraction, else one bound moved by a factor of 2."""
    lower, upper = parameter.bounds
    if parameter.unit == "1" and lower >= 0 and upper <= 1:
        return 0.0, 1.0
    if side < 0:
        return (0.5 * lower if lower > 0 else 2 * lower), upper
    return lower, (2 * upper if upper > 0 else 0.5 * upper)


def ambiguous(estimate: Estimate) -> list[str]:
    """A note of a fit on voxels with two optima, far apart and nearly as likely."""
    fitted = has_values(estimate.status)
    count = np.count_nonzero(estimate.stats["runner_up"][fitted] < SIGNIFICANT)
    if count <= _FEW * fitted.sum():
        return []
    return [
        f"{count} voxels ({_percent(count / fitted.sum())}) are ambiguous: a second optimum far "
        f"from the estimate is nearly as likely (map runner_up below {SIGNIFICANT:.2f}"
        "). Their intervals hold both where the other is likely enough, their standard errors one; "
        "more measurements or narrower --bounds can decide between them"
    ]


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


def _voxels(count: int) -> str:
    return f"{count} voxel{'s' * (count != 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _inverse(levels: tuple[float, float]) -> tuple[float, float]:
    low, high = levels
    return 1 / high if high else math.inf, 1 / low if low else math.inf


def count_left_out(codes: Int[np.ndarray, "V M"] | None) -> dict[str, dict[str, int]]:
    """By reason, how many measurements were left out, and of how many voxels."""
    counts = {}
    for code, reason in REASONS.items():
        some = codes is not None and codes == code
        if np.any(some):
            counts[reason] = {
                "measurements": int(np.count_nonzero(some)),
                "voxels": int(np.any(some, axis=1).sum()),
            }
    return counts


def left_out_notes(
    codes: Int[np.ndarray, "V M"] | None,
    top: Ceiling | None,
    status: Int[np.ndarray, " V"],
    volumes: Sequence[int],
) -> list[str]:
    """Notes on measurements that were left out unasked.

    Args:
        codes: why, of each measurement; None if none was.
        top: the largest value of the series, if it may be clipped.
        status: of each voxel.
        volumes: the numbers of the M volumes.
    """
    notes, counts = [], count_left_out(codes)
    if top is not None:
        note = f"{top.voxels} voxels ({_percent(top.share)}) share the largest value of the series"
        if found := counts.get(REASONS[CLIPPED]):
            note += (
                f", {top.value:g}: the images were clipped there, and {found['measurements']} such "
                f"measurements of {_voxels(found['voxels'])} were left out (map left_out)"
            )
        else:
            note += (
                f", {top.value:g}: were the images clipped? It was used, since the other "
                "measurements of these voxels do not predict more"
            )
        notes.append(note)
    if codes is not None and (found := counts.get(REASONS[DROPOUT])):
        by_volume = (codes == DROPOUT).sum(axis=0)
        most = np.argsort(-by_volume, kind="stable")[:5]
        where = ", ".join(f"{volumes[i]} ({by_volume[i]})" for i in most if by_volume[i])
        more = ", ..." if np.count_nonzero(by_volume) > len(most) else ""
        share = _percent(found["voxels"] / max(1, np.count_nonzero(status)))
        notes.append(
            "measurements that are zero or far below what the others of their voxel predict "
            f"(dropout, zero padding) were left out: {found['measurements']} of "
            f"{_voxels(found['voxels'])} ({share}), in volume {where}{more}; volume numbers start "
            "at 0; see the map left_out"
        )
    few = int(np.count_nonzero(status == Status.TOO_FEW))
    if few:
        notes.append(
            f"{_voxels(few)} without a value: too few of the measurements can be used (dropout, "
            "zero padding, clipping, or --exclude)"
        )
    return notes


def negative_notes(negative: int, status: Int[np.ndarray, " n"], request: Request) -> list[str]:
    """A note on negative measurements where model or noise are those of magnitudes.

    Args:
        negative: how many voxels have measurements below -5 sigma.
        status: of the voxels inside the mask.
        request: model and noise.
    """
    if request.noise.magnitude:
        negative = int(np.count_nonzero(status == Status.NEGATIVE))
    elif not never_negative(request.model):
        return []
    if negative <= _NEGATIVE * len(status):
        return []
    noise, model = type(request.noise).__name__, type(request.model).__name__
    return [
        f"{negative} voxels ({_percent(negative / len(status))}) have negative measurements, but "
        + (f"{noise} noise is" if request.noise.magnitude else f"the model {model} is")
        + " that of magnitudes: for signed images (the real part) give --signed; from Python, "
        "Gaussian() and, for inversion recovery, T1SignedInversionRecovery"
    ]
