"""Tuning of a blend: the alpha of each parameter for a task, by simulation without training.

The estimate of a blend is x(alpha) = clip(alpha x_MLE + (1 - alpha) x_GT) for each parameter, so
both networks are applied once and each alpha is a weighted sum of their estimates. Alpha is
selected on one half of the voxels (tuning) and evaluated on the other half (held out).

Source: the last sentence of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5, which suggests it;
tasks as in Epstein et al. 2021, doi:10.1371/journal.pone.0258442.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from labelwise.evaluation.scores import auc, interval_score, rmse, scatter
from labelwise.limits import check_memory, check_whole
from labelwise.models.base import SignalModel, settings_of
from labelwise.networks.intervals import LEVEL
from labelwise.networks.network import Network
from labelwise.noise import NoiseModel
from labelwise.priors import Distribution, Normal, Population, Tissue, centre, distribution_label
from labelwise.simulation import simulate
from labelwise.types import InputError, Parameter

_DISTINCT = 2  # standard errors of a paired difference
_OUTSIDE_SHARE = 0.01  # of the voxels of a tissue: more of them outside the prior is a warning
_FEWEST = 100  # voxels in a half, below which standard errors are unreliable
_ROUNDING = 1e-9  # relative: smaller differences are rounding
_UNBOUNDED = (float(np.finfo(np.float32).min), math.inf)


@dataclass(frozen=True)
class Detection:
    """The task of distinguishing two tissues by the estimate of a parameter, scored by the AUC.

    Args:
        before: one tissue; parameters not named have the prior of the training.
        after: the other tissue; parameters not named are as in `before`.
    """

    before: Tissue
    after: Tissue

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """Both tissues."""
        return self.before, self.after

    def complete(
        self, parameters: Sequence[Parameter], ranges: Mapping[str, Distribution]
    ) -> Detection:
        """The task with a distribution of every parameter and a name for both tissues.

        Args:
            parameters: of the model.
            ranges: of the prior of the training, by name.

        Raises:
            InputError: if a parameter is unknown, a distribution exceeds its bounds, or the two
                tissues are the same.
        """
        before = _fill(self.before, ranges, parameters)
        after = _fill(self.after, before.parts, parameters)
        if before.parts == after.parts:
            raise InputError(
                f"task: the tissues to distinguish ({before.name}; {after.name}) are the same in "
                "every parameter; give at least one parameter another distribution"
            )
        return Detection(before, after)

    def direction(self, name: str) -> int:
        """1 if the centre of a parameter is larger in `after`, -1 if it is smaller, else 0."""
        before, after = (centre(tissue.parts[name]) for tissue in self.tissues)
        return int(np.sign(after - before))

    def describe(self) -> dict[str, Any]:
        """The description as JSON data."""
        return {
            "kind": "detect",
            "from": self.before.describe(),
            "to": self.after.describe(),
        }


@dataclass(frozen=True)
class Rmse:
    """The task of estimating parameters of a tissue with the smallest RMSE.

    Args:
        parameters: by name; all of them if empty.
        tissue: the tissue; parameters not named have the prior of the training.
    """

    parameters: tuple[str, ...] = ()
    tissue: Tissue = field(default_factory=Tissue)

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """The tissue."""
        return (self.tissue,)

    def describe(self) -> dict[str, Any]:
        """The description as JSON data."""
        return {
            "kind": "rmse",
            "parameters": list(self.parameters),
            "tissue": self.tissue.describe(),
        }


@dataclass(frozen=True, eq=False)
class Curve:
    """The score of one parameter at A alphas.

    Args:
        parameter: the parameter.
        alpha: (A,) from 0 to 1.
        best: the index of the alpha selected on the tuning half.
        tuning: (A,) AUC, or RMSE in the parameter's unit, on the tuning half.
        value: (A,) the same on the held-out half.
        error: (A,) standard errors of `value`.
        worse: (A,) how much worse each alpha is than the selected one on the held-out half.
        worse_error: (A,) standard errors of these paired differences.
        differs: whether its true values have different distributions in the two tissues of a
            detection; True for an RMSE.
    """

    parameter: Parameter
    alpha: Float[np.ndarray, " A"]
    best: int
    tuning: Float[np.ndarray, " A"]
    value: Float[np.ndarray, " A"]
    error: Float[np.ndarray, " A"]
    worse: Float[np.ndarray, " A"]
    worse_error: Float[np.ndarray, " A"]
    differs: bool = True

    @property
    def as_good(self) -> Bool[np.ndarray, " A"]:
        """The alphas that are worse than the selected one by at most two standard errors."""
        return _as_good(self.worse, self.worse_error)

    @property
    def span(self) -> tuple[float, float]:
        """The range of adjacent alphas around the selected one that are as good."""
        bad = np.flatnonzero(~self.as_good)
        low = max((i + 1 for i in bad if i < self.best), default=0)
        high = min((i - 1 for i in bad if i > self.best), default=len(self.alpha) - 1)
        return float(self.alpha[low]), float(self.alpha[high])

    @property
    def flat(self) -> bool:
        """Whether all alphas are as good as the selected one."""
        return bool(self.as_good.all())


@dataclass(frozen=True, eq=False)
class Discriminant:
    """AUC of a linear discriminant of all parameters, fitted on the tuning half.

    Args:
        value: (3,) on the held-out half, at the selected alphas, at alpha 0 and at alpha 1.
        error: (3,) standard errors.
        worse: (3,) how much worse each is than the first.
        worse_error: (3,) standard errors of these paired differences.
    """

    value: Float[np.ndarray, "3"]
    error: Float[np.ndarray, "3"]
    worse: Float[np.ndarray, "3"]
    worse_error: Float[np.ndarray, "3"]


@dataclass(frozen=True)
class IntervalCheck:
    """How the intervals of a parameter do at its selected alpha, on the held-out half.

    Args:
        kind: see `Network.interval_kinds`.
        coverage: the share of 95 % intervals that hold the truth.
        coverage_error: its standard error.
        score: the mean interval score, in the parameter's unit; see
            `labelwise.evaluation.scores.interval_score`.
        score_error: its standard error.
    """

    kind: str
    coverage: float
    coverage_error: float
    score: float
    score_error: float


@dataclass(frozen=True, eq=False)
class Tuning:
    """The result of `tune`.

    Args:
        task: with the distribution of every parameter.
        curves: by parameter.
        sigma: noise of one channel, where the amplitude is about 1.
        voxels: number of voxels of each tissue in each half.
        discriminant: of all parameters together; None for an RMSE.
        intervals: of each parameter; empty if the network has none.
    """

    task: Detection | Rmse
    curves: Mapping[str, Curve]
    sigma: float
    voxels: int
    discriminant: Discriminant | None = None
    intervals: Mapping[str, IntervalCheck] = field(default_factory=dict)

    @property
    def alphas(self) -> dict[str, float]:
        """The selected alpha by parameter name, as `Network.with_alpha` takes it."""
        return {name: float(each.alpha[each.best]) for name, each in self.curves.items()}

    @property
    def measure(self) -> str:
        """AUC or RMSE."""
        return "RMSE" if isinstance(self.task, Rmse) else "AUC"

    def describe(self) -> dict[str, Any]:
        """All results as JSON data."""
        curves = {
            name: {
                "unit": each.parameter.unit,
                "alpha": float(each.alpha[each.best]),
                "differs": each.differs,
                "as_good": each.span if each.differs else None,
                "flat": each.flat if each.differs else None,
                "curve": {
                    "alpha": each.alpha,
                    "value": each.value,
                    "error": each.error,
                    "worse": each.worse,
                    "worse_error": each.worse_error,
                    "as_good": each.as_good,
                    "tuning": each.tuning,
                },
            }
            for name, each in self.curves.items()
        }
        for name, check in self.intervals.items():
            curves[name]["interval"] = {"level": LEVEL, **asdict(check)}
        found = {
            "task": self.task.describe(),
            "measure": self.measure,
            "snr": 1 / self.sigma,
            "voxels": self.voxels,
            "alphas": self.alphas,
            "parameters": curves,
        }
        if (discriminant := self.discriminant) is not None:
            found["discriminant"] = {
                "at": ["chosen", "alpha 0", "alpha 1"],
                "value": discriminant.value,
                "error": discriminant.error,
                "worse": discriminant.worse,
                "worse_error": discriminant.worse_error,
            }
        return found


def tune(
    network: Network,
    task: Detection | Rmse,
    model: SignalModel,
    noise: NoiseModel,
    sigma: float,
    *,
    points: int = 21,
    voxels: int = 20_000,
    key: PRNGKeyArray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Select the alpha of each parameter that is best for a task.

    The selected alpha has the highest AUC, or the lowest RMSE, on the tuning half; it is 1 (least
    bias) where all alphas are equally good. It is also 1 for a parameter with the same distribution
    in both tissues of a detection: differences of its estimates are cross-talk from another
    parameter, which should not be maximised.

    Larger estimates indicate `after` where the centre of the parameter (its value, the middle of
    its range, its mean) is larger in `after`; an AUC below 0.5 is thus a change in the wrong
    direction. If only the centres are equal, the direction is determined on the tuning half.

    Args:
        network: a blend; its alpha does not matter.
        task: a `Detection` or an `Rmse`.
        model: the signal model with the acquisition of the training.
        noise: the noise model of the simulation.
        sigma: noise of one channel, where the amplitude is about 1 (1 / SNR).
        points: A, number of equally spaced alphas from 0 to 1.
        voxels: number of simulated voxels of each tissue in each half.
        key: `jax.random.key(seed)`; of seed 0 if None.
        progress: called with (tissues done, tissues in all).

    Raises:
        InputError: if `network` is a single network, a parameter is unknown, a distribution exceeds
            the bounds of a parameter, the two tissues are the same, the acquisition differs, or
            a count is too small.

    Warns:
        UserWarning: if more than 1 % of a tissue lies outside the prior of the training, or if
            voxels without an estimate are excluded.

    Source: see `auc` and `rmse` for the standard errors.

    Example:
        >>> import labelwise as lw
        >>> model, noise = lw.ADC([0.0, 0.3, 1.0]), lw.Gaussian()
        >>> recipe = lw.Recipe.fast(signals=500, batch=50, epochs=1, restarts=1, warmup=1)
        >>> network = lw.train(model, noise=noise, snr=10, recipe=recipe)
        >>> task = Rmse(("ADC",), Tissue({"ADC": (0.8, 1.2)}))
        >>> found = tune(network, task, model, noise, 0.1, voxels=500)
        >>> list(found.alphas), found.curves["ADC"].value.shape
        (['ADC'], (21,))
    """
    if not network.is_blend:
        raise InputError(
            "network: expected a blend of two networks, got a single one, which has no alpha "
            "to tune"
        )
    if points < 2:
        raise InputError(f"points: expected at least 2 alphas, 0 and 1, got {points}")
    if voxels < _FEWEST:
        raise InputError(f"voxels: expected at least {_FEWEST} in each half, got {voxels}")
    check_whole("alphas", points, "points")
    check_whole("voxels", voxels)
    need = 8.0 * voxels * len(network.parameters) * (6 * points + 30)
    check_memory(need, f"tuning over {voxels:,} voxels", "choose fewer voxels or points")
    network.check_acquisition(settings_of(model))
    key = jax.random.key(0) if key is None else key
    task = _complete(task, network)

    alpha = np.arange(points) / (points - 1)
    tuning, held_out = [], []
    for index, tissue in enumerate(task.tissues):
        halves = _estimated_halves(
            network, tissue, model, noise, sigma, voxels, jax.random.fold_in(key, index)
        )
        tuning.append(halves[0])
        held_out.append(halves[1])
        progress(index + 1, len(task.tissues))

    if isinstance(task, Rmse):
        curves = {
            parameter.name: _rmse_curve(parameter, column, alpha, *tuning, *held_out)
            for column, parameter in enumerate(network.parameters)
            if parameter.name in task.parameters
        }
        intervals = _check_intervals(network, curves, held_out)
        return Tuning(task, curves, float(sigma), voxels, intervals=intervals)
    curves = {
        parameter.name: _auc_curve(parameter, column, alpha, task, tuning, held_out)
        for column, parameter in enumerate(network.parameters)
    }
    selected = np.array([curve.alpha[curve.best] for curve in curves.values()])
    together = _discriminant(selected, network.parameters, tuning, held_out)
    intervals = _check_intervals(network, curves, held_out)
    return Tuning(task, curves, float(sigma), voxels, together, intervals)


@dataclass(frozen=True, eq=False)
class _Ends:
    """The unclipped estimates (n, P) of both networks for n voxels, the truth, and the signals."""

    mle: Float[np.ndarray, "n P"]
    gt: Float[np.ndarray, "n P"]
    truth: Float[np.ndarray, "n P"]
    signal: Float[np.ndarray, "n M"]
    sigma: Float[np.ndarray, " n"]

    def blended(
        self, alpha: Float[np.ndarray, " A"], column: int, parameter: Parameter
    ) -> Float[np.ndarray, "A n"]:
        """The blended estimates of one parameter at each alpha."""
        # in float64, where rounding preserves the order of float32 values
        share = alpha[:, None]
        values = share * self.mle[:, column] + (1 - share) * self.gt[:, column]
        return np.clip(values, *parameter.bounds)


def _estimated_halves(
    network: Network,
    tissue: Tissue,
    model: SignalModel,
    noise: NoiseModel,
    sigma: float,
    voxels: int,
    key: PRNGKeyArray,
) -> tuple[_Ends, _Ends]:
    """Simulate a tissue and estimate both halves of its voxels by both networks."""
    population = Population(tissue, network.parameters, model)
    simulated = simulate(model, noise, population, sigma, 2 * voxels, key)
    assert simulated.params is not None  # for the type checker: simulated voxels have a truth
    ranges = np.array(network.card.ranges, np.float32)
    warn_if_outside(ranges, tissue, network.parameters, simulated.params, stacklevel=4)
    mle, gt = (_unbounded(end)(simulated.signal, simulated.sigma).values for end in network.ends)
    good = np.all(np.isfinite(mle) & np.isfinite(gt), axis=1)
    if not good.all():
        lost = np.count_nonzero(~good)
        warnings.warn(
            f"{tissue.name}: {lost} of {2 * voxels} voxels ({lost / (2 * voxels):.2%}) cannot be "
            "estimated and are excluded",
            stacklevel=3,
        )
    halves = []
    for first in (0, voxels):
        rows = first + np.flatnonzero(good[first : first + voxels])
        if len(rows) < _FEWEST:
            raise InputError(
                f"{tissue.name}: only {len(rows)} of {voxels} voxels can be estimated, too few to "
                "tune alpha; raise the SNR or the number of voxels"
            )
        drawn = (simulated.params, simulated.signal, simulated.sigma)
        halves.append(_Ends(mle[rows], gt[rows], *(each[rows] for each in drawn)))
    return halves[0], halves[1]


def _check_intervals(
    network: Network, curves: Mapping[str, Curve], held_out: Sequence[_Ends]
) -> dict[str, IntervalCheck]:
    """The intervals at the selected alphas, on the held-out voxels of all tissues."""
    alphas = {name: float(curve.alpha[curve.best]) for name, curve in curves.items()}
    chosen = replace(network.with_alpha(alphas), standard_errors=False)
    kinds = chosen.interval_kinds
    if not kinds:
        return {}
    truth = np.concatenate([tissue.truth for tissue in held_out])
    found = [chosen(tissue.signal, tissue.sigma).stats for tissue in held_out]
    low, high = (np.concatenate([stats[end] for stats in found]) for end in ("low", "high"))
    checks = {}
    for name in curves:
        column = network.names.index(name)
        ends = low[:, column], high[:, column], truth[:, column]
        held = (ends[0] <= ends[2]) & (ends[2] <= ends[1])
        values = []
        for rows in (held, interval_score(*ends, LEVEL)):
            values += [float(np.mean(rows)), float(np.std(rows) / math.sqrt(len(rows)))]
        checks[name] = IntervalCheck(kinds[name], *values)
    return checks


def _unbounded(network: Network) -> Network:
    """The same network without bounds, which apply to the blend, not to its members."""
    free = tuple(replace(each, bounds=_UNBOUNDED, typical=None) for each in network.parameters)
    return replace(network.without_errors(), parameters=free)


def _rmse_curve(
    parameter: Parameter,
    column: int,
    alpha: Float[np.ndarray, " A"],
    tuning: _Ends,
    held_out: _Ends,
) -> Curve:
    found = [
        rmse(half.blended(alpha, column, parameter) - half.truth[:, column])
        for half in (tuning, held_out)
    ]
    return _curve(parameter, alpha, -1, *found)


def _auc_curve(
    parameter: Parameter,
    column: int,
    alpha: Float[np.ndarray, " A"],
    task: Detection,
    tuning: Sequence[_Ends],
    held_out: Sequence[_Ends],
) -> Curve:
    parts = [tissue.parts[parameter.name] for tissue in task.tissues]
    found = []
    for half in (tuning, held_out):
        before, after = (tissue.blended(alpha, column, parameter) for tissue in half)
        found.append(auc(before, after))
    differs = parts[0] != parts[1]
    up = task.direction(parameter.name)
    if differs and up == 0:  # the direction is determined on the tuning half
        excess = found[0][0] - 0.5
        up = np.sign(excess[np.argmax(np.abs(excess))])
    if up < 0:
        found = [(1 - values, covariance) for values, covariance in found]
    return _curve(parameter, alpha, 1, *found, differs=differs)


def _curve(
    parameter: Parameter,
    alpha: Float[np.ndarray, " A"],
    better: int,
    tuning: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    *,
    differs: bool = True,
) -> Curve:
    """Select alpha on the tuning half and score it on the other; `better` is 1 or -1."""
    best = int(np.argmax(better * tuning[0]))
    if not differs or _as_good(*_worse(better, *tuning, best)).all():
        best = len(alpha) - 1
    value, covariance = held_out
    error = np.sqrt(np.diag(covariance))
    worse = _worse(better, *held_out, best)
    return Curve(parameter, alpha, best, tuning[0], value, error, *worse, differs)


def _worse(
    better: int, value: Float[np.ndarray, " A"], covariance: Float[np.ndarray, "A A"], best: int
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
    """How much worse all alphas are than one of them, with paired standard errors."""
    difference = better * (value[best] - value)
    difference[np.abs(difference) < _ROUNDING * np.abs(value).max()] = 0
    variance = np.diag(covariance)
    paired = variance + variance[best] - 2 * covariance[best]
    return difference, np.sqrt(np.maximum(paired, 0))


def _as_good(
    worse: Float[np.ndarray, " A"], error: Float[np.ndarray, " A"]
) -> Bool[np.ndarray, " A"]:
    return worse <= _DISTINCT * error


def _discriminant(
    selected: Float[np.ndarray, " P"],
    parameters: Sequence[Parameter],
    tuning: Sequence[_Ends],
    held_out: Sequence[_Ends],
) -> Discriminant:
    """Fisher's linear discriminant of all parameters at three settings of alpha."""
    scores = []
    for alpha in (selected, np.zeros_like(selected), np.ones_like(selected)):
        fitting, scoring = (
            [_all_blended(tissue, alpha, parameters) for tissue in half]
            for half in (tuning, held_out)
        )
        spread = np.sqrt(sum(each.var(axis=1) for each in fitting) / 2)
        unit = np.where(spread > 0, spread, 1)[:, None]
        within = sum(scatter(each / unit) for each in fitting) / 2
        apart = (fitting[1].mean(axis=1) - fitting[0].mean(axis=1)) / unit[:, 0]
        weights = np.linalg.lstsq(np.asarray(within), apart)[0]
        scores.append([weights @ (each / unit) for each in scoring])
    before, after = (np.stack(each) for each in zip(*scores, strict=True))
    value, covariance = auc(before, after)
    error = np.sqrt(np.diag(covariance))
    return Discriminant(value, error, *_worse(1, value, covariance, 0))


def _all_blended(
    ends: _Ends, alpha: Float[np.ndarray, " P"], parameters: Sequence[Parameter]
) -> Float[np.ndarray, "P n"]:
    rows = [
        ends.blended(alpha[column : column + 1], column, parameter)[0]
        for column, parameter in enumerate(parameters)
    ]
    return np.stack(rows)


def _complete(task: Detection | Rmse, network: Network) -> Detection | Rmse:
    """The task with a distribution of every parameter and a name for every tissue."""
    names = [parameter.name for parameter in network.parameters]
    ranges = {
        name: (float(low), float(high))
        for name, (low, high) in zip(names, network.card.ranges, strict=True)
    }
    if isinstance(task, Rmse):
        _refuse_unknown("rmse", task.parameters, names)
        parameters = tuple(task.parameters) or tuple(names)
        return Rmse(parameters, _fill(task.tissue, ranges, network.parameters))
    return task.complete(network.parameters, ranges)


def _fill(
    tissue: Tissue,
    otherwise: Mapping[str, Distribution],
    parameters: Sequence[Parameter],
) -> Tissue:
    name = tissue.label
    _refuse_unknown(name, tissue.parts, [parameter.name for parameter in parameters])
    filled = Tissue(
        {each.name: tissue.parts.get(each.name, otherwise[each.name]) for each in parameters},
        name,
    )
    for parameter in parameters:
        each, (low, high) = filled.parts[parameter.name], parameter.bounds
        ends = each.mean if isinstance(each, Normal) else each
        if not np.all((np.asarray(ends) >= low) & (np.asarray(ends) <= high)):
            raise InputError(
                f"{name}: {parameter.name}={distribution_label(each)} is not within the bounds of "
                f"{parameter.name}, {low:g} to {high:g}; estimates are clipped to them"
            )
    return filled


def _refuse_unknown(what: str, given: Sequence[str] | Mapping[str, Any], names: list[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(f"{what}: no parameter {unknown[0]!r}; there are {', '.join(names)}")


def warn_if_outside(
    ranges: Float[np.ndarray, "P 2"],
    tissue: Tissue,
    parameters: Sequence[Parameter],
    truth: Float[np.ndarray, "n P"],
    stacklevel: int,
) -> None:
    """Warn if more than 1 % of the voxels of a tissue lie outside the prior of the training."""
    for parameter, (low, high), values in zip(parameters, ranges, truth.T, strict=True):
        outside = np.mean((values < low) | (values > high))
        if outside > _OUTSIDE_SHARE:
            warnings.warn(
                f"{tissue.name}: {parameter.name} is outside of {low:g} to {high:g}, the range of "
                f"the training prior, in {outside:.0%} of the voxels",
                stacklevel=stacklevel,
            )
