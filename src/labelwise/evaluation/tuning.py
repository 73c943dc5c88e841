"""Where a dial serves a task best: alpha chosen by simulation, without training again.

The dial says x(alpha) = clip(alpha x_MLE + (1 - alpha) x_GT) of each parameter, so both networks
see every voxel once and each alpha is a weighted sum of what they said. Alpha is chosen on one half
of the voxels; what is reported is of the other half, which had no say in it.

Source: the last sentence of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5, which asks for it;
tasks as in Epstein et al. 2021, doi:10.1371/journal.pone.0258442.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from labelwise.evaluation.scores import auc, rmse, scatter
from labelwise.models.base import SignalModel, settings_of
from labelwise.networks.network import Network
from labelwise.noise import NoiseModel
from labelwise.priors import Distribution, Normal, Population, Tissue, centre, distribution_label
from labelwise.simulation import simulate
from labelwise.types import InputError, Parameter

_DISTINCT = 2  # standard errors of a paired difference
_OUTSIDE_SHARE = 0.01  # of the voxels of a tissue: more of them outside the prior is a warning
_FEWEST = 100  # voxels of a half, below which standard errors mean little
_ROUNDING = 1e-9  # relative: less is no difference
_UNBOUNDED = (float(np.finfo(np.float32).min), math.inf)


@dataclass(frozen=True)
class Detection:
    """To tell two kinds of tissue apart by the estimate of a parameter; judged by the AUC.

    Args:
        before: one kind; parameters not named are as the network's training was simulated.
        after: the other; parameters not named are as in `before`.
    """

    before: Tissue
    after: Tissue

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """Both kinds."""
        return self.before, self.after

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON data."""
        return {
            "kind": "detect",
            "from": self.before.describe(),
            "to": self.after.describe(),
        }


@dataclass(frozen=True)
class Rmse:
    """To estimate parameters with the least root mean squared error over a tissue.

    Args:
        parameters: which, by name; all of them if none is named.
        tissue: over which; parameters not named are as the network's training was simulated.
    """

    parameters: tuple[str, ...] = ()
    tissue: Tissue = field(default_factory=Tissue)

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """The one kind."""
        return (self.tissue,)

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON data."""
        return {
            "kind": "rmse",
            "parameters": list(self.parameters),
            "tissue": self.tissue.describe(),
        }


@dataclass(frozen=True, eq=False)
class Curve:
    """How well the estimate of a parameter serves the task at A alphas, on the held-out half.

    Args:
        parameter: which.
        alpha: (A,) from 0 to 1.
        best: the index of the one chosen on the tuning half.
        tuning: (A,) AUC, or RMSE in the parameter's unit, on the tuning half.
        value: (A,) the same on the held-out half.
        error: (A,) standard errors of `value`.
        worse: (A,) by how much each is worse than the chosen one on the held-out half.
        worse_error: (A,) standard errors of that difference, which is one of the same voxels.
        differs: whether its true values are distributed otherwise in the two tissues of a
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
        """Which alphas are not worse than the chosen one by two standard errors, each by itself."""
        return _as_good(self.worse, self.worse_error)

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest of the alphas in a row around the chosen one that are as good."""
        bad = np.flatnonzero(~self.as_good)
        low = max((i + 1 for i in bad if i < self.best), default=0)
        high = min((i - 1 for i in bad if i > self.best), default=len(self.alpha) - 1)
        return float(self.alpha[low]), float(self.alpha[high])

    @property
    def flat(self) -> bool:
        """Whether alpha makes no difference that could be told."""
        return bool(self.as_good.all())


@dataclass(frozen=True, eq=False)
class Discriminant:
    """AUC of a linear discriminant of all parameters, fitted on the tuning half, on the other.

    Args:
        value: (3,) at the chosen alphas, at alpha 0 and at alpha 1 everywhere.
        error: (3,) standard errors.
        worse: (3,) by how much each is worse than that at the chosen alphas.
        worse_error: (3,) standard errors of that difference.
    """

    value: Float[np.ndarray, "3"]
    error: Float[np.ndarray, "3"]
    worse: Float[np.ndarray, "3"]
    worse_error: Float[np.ndarray, "3"]


@dataclass(frozen=True, eq=False)
class Tuning:
    """What `tune` found.

    Args:
        task: with the distributions that were left out filled in.
        curves: by parameter.
        sigma: noise of one channel, where the amplitude is about 1.
        voxels: of each tissue in each half.
        discriminant: all parameters together; None for an RMSE.
    """

    task: Detection | Rmse
    curves: Mapping[str, Curve]
    sigma: float
    voxels: int
    discriminant: Discriminant | None = None

    @property
    def alphas(self) -> dict[str, float]:
        """The chosen alpha by parameter name, as `Network.with_alpha` takes it."""
        return {name: float(each.alpha[each.best]) for name, each in self.curves.items()}

    @property
    def measure(self) -> str:
        """AUC or RMSE."""
        return "RMSE" if isinstance(self.task, Rmse) else "AUC"

    def describe(self) -> dict[str, Any]:
        """Everything that was found, as data for `outputs.as_json`."""
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
        found = {
            "task": self.task.describe(),
            "measure": self.measure,
            "snr": 1 / self.sigma,
            "voxels": self.voxels,
            "alphas": self.alphas,
            "parameters": curves,
        }
        if (all_of_them := self.discriminant) is not None:
            found["discriminant"] = {
                "at": ["chosen", "alpha 0", "alpha 1"],
                "value": all_of_them.value,
                "error": all_of_them.error,
                "worse": all_of_them.worse,
                "worse_error": all_of_them.worse_error,
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
    """The alpha of each parameter that serves a task best, with the whole curve.

    Chosen is the alpha of the highest AUC, or the lowest RMSE, on the tuning half; 1, least bias,
    where the tuning half cannot tell it from any other. So it is for a parameter that is the same
    in both tissues of a detection: whatever tells them apart by its estimate is the change of
    another parameter that leaks into it, and is not to be maximised.

    A score counts upwards where a parameter's centre (its value, the middle of its range, its mean)
    is larger in `after`, so an AUC below 0.5 says that the estimate goes the wrong way. Where only
    the centres are equal, the tuning half decides; what is the same in both counts upwards.

    Args:
        network: both networks; where it stands does not matter.
        task: a `Detection` or an `Rmse`.
        model: the signal model with the acquisition that the dial was trained for.
        noise: the noise that is added.
        sigma: noise of one channel, where the amplitude is about 1 (1 / SNR).
        points: A, how many alphas from 0 to 1, equally spaced.
        voxels: simulated in each half, of each tissue.
        key: `jax.random.key(seed)`; seed 0 if left out.
        progress: called with how many tissues are done, of how many.

    Raises:
        InputError: if `network` is a single network.
        InputError: if a parameter is unknown, a distribution leaves a parameter's bounds, the two
            tissues are the same, the acquisition is another, or a count is too small.

    Warns:
        UserWarning: if more than 1 % of a tissue lies outside of what the dial was trained for, or
            voxels could not be estimated, which are left out.

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
            "network: expected a blend of two networks, got a single one, which has no alpha to "
            "choose"
        )
    if points < 2:
        raise InputError(f"points: expected at least 2 alphas, 0 and 1, got {points}")
    if voxels < _FEWEST:
        raise InputError(f"voxels: expected at least {_FEWEST} in each half, got {voxels}")
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
        return Tuning(task, curves, float(sigma), voxels)
    curves = {
        parameter.name: _auc_curve(parameter, column, alpha, task, tuning, held_out)
        for column, parameter in enumerate(network.parameters)
    }
    chosen = np.array([curve.alpha[curve.best] for curve in curves.values()])
    together = _discriminant(chosen, network.parameters, tuning, held_out)
    return Tuning(task, curves, float(sigma), voxels, together)


@dataclass(frozen=True, eq=False)
class _Ends:
    """What both networks say of n voxels, before bounds hold it, and the truth; (n, P) each."""

    mle: Float[np.ndarray, "n P"]
    gt: Float[np.ndarray, "n P"]
    truth: Float[np.ndarray, "n P"]

    def blended(
        self, alpha: Float[np.ndarray, " A"], column: int, parameter: Parameter
    ) -> Float[np.ndarray, "A n"]:
        """What the dial says of one parameter at each alpha."""
        # in float64, where rounding neither ties nor swaps what float32 told apart
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
    """Both halves of a tissue, estimated by both networks."""
    population = Population(tissue, network.parameters)
    simulated = simulate(model, noise, population, sigma, 2 * voxels, key)
    assert simulated.params is not None  # for the type checker: simulated voxels have a truth
    _warn_if_outside_training(network, tissue, simulated.params)
    mle, gt = (_unbounded(end)(simulated.signal, simulated.sigma).values for end in network.ends)
    good = np.all(np.isfinite(mle) & np.isfinite(gt), axis=1)
    if not good.all():
        lost = np.count_nonzero(~good)
        warnings.warn(
            f"{tissue.name}: {lost} of {2 * voxels} voxels ({lost / (2 * voxels):.2%}) cannot be "
            "estimated and are left out",
            stacklevel=3,
        )
    halves = []
    for first in (0, voxels):
        rows = first + np.flatnonzero(good[first : first + voxels])
        if len(rows) < _FEWEST:
            raise InputError(
                f"{tissue.name}: only {len(rows)} of {voxels} voxels can be estimated, too few to "
                "choose from; raise the SNR or the number of voxels"
            )
        halves.append(_Ends(mle[rows], gt[rows], simulated.params[rows]))
    return halves[0], halves[1]


def _unbounded(network: Network) -> Network:
    """The same network without bounds, which are applied to the blend, not to its ends."""
    free = tuple(replace(each, bounds=_UNBOUNDED, typical=None) for each in network.parameters)
    return replace(network, parameters=free, standard_errors=False)


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
    up = np.sign(centre(parts[1]) - centre(parts[0]))
    if differs and up == 0:  # the truth does not say which way: the tuning half does
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
    """The choice by the tuning half, judged by the other; `better` is 1 if more is better."""
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
    """How much worse than one of them all are, and the standard error of that."""
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
    chosen: Float[np.ndarray, " P"],
    parameters: Sequence[Parameter],
    tuning: Sequence[_Ends],
    held_out: Sequence[_Ends],
) -> Discriminant:
    """Fisher's linear discriminant of all parameters at three settings of the network."""
    scores = []
    for alpha in (chosen, np.zeros_like(chosen), np.ones_like(chosen)):
        known, new = (
            [_all_blended(tissue, alpha, parameters) for tissue in half]
            for half in (tuning, held_out)
        )
        spread = np.sqrt(sum(each.var(axis=1) for each in known) / 2)
        unit = np.where(spread > 0, spread, 1)[:, None]
        within = sum(scatter(each / unit) for each in known) / 2
        apart = (known[1].mean(axis=1) - known[0].mean(axis=1)) / unit[:, 0]
        weights = np.linalg.lstsq(np.asarray(within), apart)[0]
        scores.append([weights @ (each / unit) for each in new])
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
    """The task with a distribution for every parameter, and a name for every tissue."""
    names = [parameter.name for parameter in network.parameters]
    ranges = {
        name: (float(low), float(high))
        for name, (low, high) in zip(names, network.card.ranges, strict=True)
    }
    if isinstance(task, Rmse):
        _refuse_unknown("rmse", task.parameters, names)
        chosen = tuple(task.parameters) or tuple(names)
        return Rmse(chosen, _fill(task.tissue, ranges, network.parameters))
    before = _fill(task.before, ranges, network.parameters)
    after = _fill(task.after, before.parts, network.parameters)
    if before.parts == after.parts:
        raise InputError(
            f"task: the tissues to tell apart ({before.name}; {after.name}) are the same in every "
            "parameter; give at least one parameter another distribution"
        )
    return Detection(before, after)


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


def _warn_if_outside_training(
    network: Network, tissue: Tissue, truth: Float[np.ndarray, "n P"]
) -> None:
    ranges = np.array(network.card.ranges, np.float32)
    for parameter, (low, high), values in zip(network.parameters, ranges, truth.T, strict=True):
        outside = np.mean((values < low) | (values > high))
        if outside > _OUTSIDE_SHARE:
            warnings.warn(
                f"{tissue.name}: {parameter.name} is outside of {low:g} to {high:g}, which the "
                f"network's training was simulated from, in {outside:.0%} of the voxels",
                stacklevel=4,
            )
