"""Design of acquisitions: which settings, and how often each, for an estimator over a prior.

First by a bound. For parameters θ, the Fisher information J(θ) of the volumes (with the noise model
in use) and the precision Λ of what is known beforehand give the variance [(J(θ) + Λ)⁻¹]_pp, which
is averaged over the prior. Volumes are exchanged between candidate settings while the average
falls. Then by simulation: the designs that the bound found are compared with the estimator itself
on the same voxels, and the best one is evaluated on fresh voxels.

Source: Chaloner & Verdinelli 1995, section 4, doi:10.1214/ss/1177009939, for averages of such a
variance over the prior; Fedorov 1972, Theory of Optimal Experiments, for exchanges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from labelwise.evaluation.cramer_rao import measurement_information
from labelwise.evaluation.scores import rmse
from labelwise.fitting import MaximumLikelihood
from labelwise.limits import check_memory, check_sigma, check_whole
from labelwise.models.base import SignalModel, measurements, scale_parameter, settings_of
from labelwise.models.evaluate import signals
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.noise import Gaussian, NoiseModel
from labelwise.priors import Prior
from labelwise.simulation import simulate
from labelwise.types import Estimator, InputError, Parameter

EstimatorName = Literal["gt", "mle", "fit"]
THIS, PRESENT, GAUSSIAN = "this design", "present acquisition", "Gaussian optimum"
WORSE = 1.02
"""How much the RMSE of a kept parameter may grow over that of the reference."""

_DRAWS = 256  # of the prior, for the bound
_STARTS = 4  # random designs
_MARGINS = (1.04, 1.02, 1.01, 1.0, 0.98, 0.95, 0.9)  # of kept parameters, by the bound
_PENALTY = 20.0  # on the logarithm of an RMSE beyond its limit
_LEAST_GAIN = 1e-6  # of an exchange, in the logarithm of the criterion
_SINGULAR = 1e-9  # precision of an unknown parameter, in units of 1 / its spread squared
_ROUNDING = 1e-12  # of the largest information, below which an inverse is not precise

Counts = Int[np.ndarray, " C"]
Criterion = Callable[[Float[np.ndarray, "... P"]], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Row:
    """The errors of the estimator with one acquisition.

    Args:
        name: `"this design"`, `"present acquisition"` or `"Gaussian optimum"`.
        model: the signal model with this acquisition.
        rmse: (P,) root mean squared error of each parameter, in its unit.
        error: (P,) its standard error.
        ratio: (P,) RMSE over that of the reference.
        ratio_error: (P,) its standard error; the voxels are the same.
    """

    name: str
    model: SignalModel
    rmse: Float[np.ndarray, " P"]
    error: Float[np.ndarray, " P"]
    ratio: Float[np.ndarray, " P"]
    ratio_error: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Design:
    """A designed acquisition, compared with others of as many volumes.

    Args:
        rows: this design, the present acquisition if there is one, the Gaussian optimum.
        minimised: the parameters whose RMSE was minimised.
        kept: those whose RMSE must not grow by more than 2 % over the reference.
        reference: the name of the row that ratios and `kept` refer to.
        estimator: `"gt"`, `"mle"` or `"fit"`.
        sigma: noise of one channel.
        voxels: number of fresh voxels behind the errors: those with an estimate in all rows.
        search: for each start, the efficiency after each exchange by the bound: the share of
            its volumes with which the best design found would have the same criterion.
    """

    rows: tuple[Row, ...]
    minimised: tuple[str, ...]
    kept: tuple[str, ...]
    reference: str
    estimator: EstimatorName
    sigma: float
    voxels: int
    search: tuple[Float[np.ndarray, " S"], ...]

    @property
    def model(self) -> SignalModel:
        """The signal model with the designed acquisition, one measurement for each volume."""
        return self.rows[0].model

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the model."""
        return self.model.parameters

    def describe(self) -> dict[str, Any]:
        """The description as JSON data, settings in the models' units."""
        names = [parameter.name for parameter in self.parameters]
        columns = ("rmse", "error", "ratio", "ratio_error")
        return {
            "estimator": self.estimator,
            "minimised": list(self.minimised),
            "kept": list(self.kept),
            "reference": self.reference,
            "snr": 1 / self.sigma,
            "voxels": self.voxels,
            "acquisitions": {
                row.name: {
                    "settings": settings_of(row.model),
                    **{key: dict(zip(names, getattr(row, key), strict=True)) for key in columns},
                }
                for row in self.rows
            },
            "search": [path.tolist() for path in self.search],
        }


def design(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    sigma: float,
    volumes: int,
    *,
    minimise: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    estimator: EstimatorName = "gt",
    present: SignalModel | None = None,
    simulated: bool = True,
    recipe: Recipe | None = None,
    voxels: int = 20_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Design:
    """Choose the settings of an acquisition, and how often to repeat each, for an estimator.

    A volume is a measurement at one of the candidates. The reference is the present acquisition,
    or else the design with the smallest sum of relative Cramér-Rao bounds for Gaussian noise at the
    centre of the prior, as other software finds it.

    Args:
        model: the signal model; its measurements are the candidates.
        noise: the noise model.
        prior: of the parameters.
        sigma: noise of one channel, where the amplitude is about 1 (1 / SNR).
        volumes: number of volumes.
        minimise: the parameters whose RMSE is minimised, by name (the geometric mean of several);
            all but the amplitude if empty.
        keep: the parameters whose RMSE may be 2 % above that of the reference at most; None for all
            others apart from the amplitude.
        estimator: `"gt"`, a network taught the ground truth, close to the posterior mean; `"mle"`,
            one taught maximum-likelihood estimates; or `"fit"`, maximum likelihood itself.
        present: the model with the present acquisition, to compare with: its volumes are scaled
            to as many as those of the design.
        simulated: choose by simulation between the designs that the bound found, the present one
            and the Gaussian optimum; by the bound if False.
        recipe: of the networks; `Recipe.fast()` if None.
        voxels: number of voxels in a simulation.
        seed: of all random numbers.
        progress: called with the number of simulated designs and their total.

    Raises:
        InputError: if an argument is out of its range, names no parameter, or measurements of the
            model depend on each other (an echo train).

    Source: Chaloner & Verdinelli 1995, doi:10.1214/ss/1177009939.

    Example:
        >>> import labelwise as lw
        >>> b = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
        >>> prior = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.9, 1.1)})
        >>> found = design(
        ...     lw.ADC(b), lw.Gaussian(), prior, 0.02, 8, estimator="fit", voxels=1000
        ... )
        >>> [float(b) for b in found.model.b]
        [0.0, 0.0, 1.25, 1.25, 1.25, 1.25, 1.25, 1.25]
    """
    _check(model, present, prior, sigma, volumes, voxels, seed, estimator)
    names = [parameter.name for parameter in model.parameters]
    scale = scale_parameter(model)
    free = [name for index, name in enumerate(names) if index != scale]
    minimised = _named("minimise", tuple(minimise) or tuple(free), names)
    others = [name for name in free if name not in minimised]
    kept = _named("keep", tuple(others if keep is None else keep), names)
    if both := [name for name in kept if name in minimised]:
        raise InputError(f"keep: {both[0]} is minimised; leave it out of one of the two")
    goal, limit = ([names.index(name) for name in each] for each in (minimised, kept))

    rng = np.random.default_rng(seed)
    gaussian = _gaussian_optimum(model, prior, sigma, volumes, scale, rng)
    fixed = {GAUSSIAN: _acquired(model, gaussian)}
    if present is not None:
        fixed = {PRESENT: _scaled(present, volumes), **fixed}
    reference = next(iter(fixed))
    draws = np.asarray(prior.sample(jax.random.key(seed), _DRAWS), np.float64)
    spread, known = _known(model, prior, draws, scale, estimator)
    information = _in_units(measurement_information(model, noise, draws, sigma), spread)
    there = _in_units(measurement_information(fixed[reference], noise, draws, sigma), spread)
    known = np.diag(np.maximum(known, _ROUNDING * volumes * information.max()))
    base = _variance(there.sum(axis=1) + known)

    def searched(start: Counts, margin: float = WORSE) -> list[tuple[Counts, float]]:
        return _exchange(information, known, start, _criterion(goal, limit, base, margin))

    starts = [gaussian, *(_random(rng, len(gaussian), volumes) for _ in range(_STARTS))]
    paths = [searched(start) for start in starts]
    best, least = min((path[-1] for path in paths), key=lambda step: step[1])
    finalists = [best]
    if simulated:
        finalists += [paths[0][-1][0]]
        margins = _MARGINS if limit else ()
        finalists += [searched(at, m)[-1][0] for m in margins for at in (gaussian, best)]
    distinct = dict.fromkeys(tuple(map(int, each)) for each in finalists)
    found = {str(index): _acquired(model, np.array(each)) for index, each in enumerate(distinct)}
    trained: dict[str, Estimator] = {}
    for name, each in (fixed | found).items():
        if progress is not None:
            progress(len(trained), len(fixed) + len(found))
        trained[name] = _estimator(each, noise, prior, sigma, estimator, recipe, seed)

    def errors(these: Mapping[str, SignalModel], key: int) -> dict[str, Float[np.ndarray, "P n"]]:
        found = {}
        for name, each in these.items():
            data = simulate(each, noise, prior, sigma, voxels, jax.random.key(key))
            assert data.params is not None  # for the type checker: they are simulated
            found[name] = (trained[name](data.signal, sigma).values - data.params).T.astype(float)
        return _finite(found)

    made = fixed | found
    chosen = "0"
    if simulated:  # on other voxels than the table, whose errors would be too small
        tried = errors(made, seed + 1)
        squares = {name: np.square(each).mean(axis=1) for name, each in tried.items()}
        score = _criterion(goal, limit, squares[reference], WORSE)
        chosen = min(made, key=lambda name: score(squares[name]))
    compared = {THIS: made[chosen], **fixed}
    trained[THIS] = trained[chosen]
    fresh = errors(compared, seed + 2)
    rows = [Row(name, compared[name], *_compared(e, fresh[reference])) for name, e in fresh.items()]
    search = [np.exp(2 * (least - np.array([value for _, value in path]))) for path in paths]
    used = fresh[reference].shape[1]
    return Design(tuple(rows), minimised, kept, reference, estimator, sigma, used, tuple(search))


def _check(model, present, prior, sigma, volumes, voxels, seed, estimator) -> None:
    names = [parameter.name for parameter in model.parameters]
    if list(prior.names) != names:
        raise InputError(
            f"prior: expected the parameters {', '.join(names)}, got {', '.join(prior.names)}"
        )
    if present is not None and type(present) is not type(model):
        raise InputError(
            f"present: expected the model {type(model).__name__}, got {type(present).__name__}"
        )
    check_sigma(sigma)
    check_whole("voxels", voxels)
    check_whole("seed", seed)
    if estimator not in get_args(EstimatorName):
        raise InputError(
            f"estimator: expected {', '.join(get_args(EstimatorName))}, got {estimator!r}"
        )
    count, size = measurements(model), len(names)
    if not size <= volumes <= 10_000:
        raise InputError(
            f"volumes: expected at least {size}, one for each parameter of "
            f"{type(model).__name__}, and at most 10,000, got {volumes}"
        )
    columns = settings_of(model)
    if len(np.unique(np.stack(list(columns.values())), axis=1).T) < max(count, 2):
        raise InputError("candidates: expected two or more, each of them once")
    need = 8.0 * _DRAWS * count * size**2 * 3
    check_memory(need, f"a search over {count:,} candidates", "give fewer")
    middle = np.asarray(prior.ranges, np.float64).mean(axis=1)[None]
    half = np.arange(count) % 2
    apart = signals(_acquired(model, half), middle)
    if not np.allclose(apart, signals(model, middle)[:, half > 0], rtol=1e-4):
        raise InputError(
            f"{type(model).__name__}: each measurement depends on the others (an echo train), so "
            "that settings cannot be chosen one by one"
        )


def _named(option: str, given: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    for name in given:
        if name not in names:
            raise InputError(f"{option}: unknown parameter {name!r}; known are {', '.join(names)}")
    return tuple(dict.fromkeys(given))


def _acquired(model: SignalModel, counts: Counts) -> SignalModel:
    """The model with as many measurements at each candidate."""
    settings = {name: np.repeat(each, counts) for name, each in settings_of(model).items()}
    return dataclasses.replace(model, **settings)


def _scaled(present: SignalModel, volumes: int) -> SignalModel:
    """An acquisition with its settings repeated in the same proportions, by largest remainders."""
    rows, repeats = np.unique(
        np.stack(list(settings_of(present).values())), axis=1, return_counts=True
    )
    share = repeats * volumes / repeats.sum()
    counts = np.floor(share).astype(int)
    last = np.argsort(counts - share, kind="stable")[: volumes - counts.sum()]
    counts[last] += 1
    names = settings_of(present)
    return dataclasses.replace(
        present, **{name: np.repeat(row, counts) for name, row in zip(names, rows, strict=True)}
    )


def _known(model, prior, draws, scale, estimator) -> tuple[np.ndarray, np.ndarray]:
    """The spread of each parameter, and its precision beforehand in units of 1 / spread².

    That of the prior for a network taught the truth, that of the bounds for fits. Of the amplitude
    nothing is known, since signals are divided by a reference.
    """
    largest = np.maximum(np.abs(np.asarray(prior.ranges, np.float64)).max(axis=1), 1e-12)
    spread = np.maximum(draws.std(axis=0), 1e-6 * largest)
    if estimator == "gt":
        known = np.ones(len(spread))
    else:
        width = np.array([high - low for low, high in (p.bounds for p in model.parameters)])
        known = np.maximum(12 * (spread / width) ** 2, _SINGULAR)
    if scale is not None:
        known[scale] = _SINGULAR
    return spread, known


def _criterion(
    goal: list[int], limit: list[int], base: Float[np.ndarray, " P"], margin: float
) -> Criterion:
    """The mean logarithm of the minimised RMSE over the base, and a penalty on the kept ones."""

    def value(variance: Float[np.ndarray, "... P"]) -> Float[np.ndarray, "..."]:
        logs = 0.5 * np.log(variance / base)
        beyond = np.maximum(0, logs[..., limit] - np.log(margin)).sum(axis=-1)
        return logs[..., goal].mean(axis=-1) + _PENALTY * beyond

    return value


def _in_units(
    information: Float[np.ndarray, "N M P P"], unit: Float[np.ndarray, " P"]
) -> Float[np.ndarray, "N M P P"]:
    return information * (unit[:, None] * unit)


def _gaussian_optimum(model, prior, sigma, volumes, scale, rng) -> Counts:
    """The smallest sum of relative bounds for Gaussian noise at the centre of the prior.

    Source: Jalnefjord et al. 2019, doi:10.1002/mrm.27826, for the criterion.
    """
    centre = np.asarray(prior.ranges, np.float64).mean(axis=1)
    unit = np.where(centre != 0, np.abs(centre), 1.0)
    information = measurement_information(model, Gaussian(), centre[None], sigma)
    information = _in_units(information, unit)
    ridge = max(_SINGULAR, _ROUNDING * volumes * information.max()) * np.eye(len(unit))
    relative = [index for index in range(len(unit)) if index != scale]

    def value(variance):
        return np.log(np.sqrt(variance[..., relative]).sum(axis=-1))

    starts = [_random(rng, information.shape[1], volumes) for _ in range(2 * _STARTS)]
    ends = [_exchange(information, ridge, start, value)[-1] for start in starts]
    return min(ends, key=lambda step: step[1])[0]


def _random(rng: np.random.Generator, candidates: int, volumes: int) -> Counts:
    return np.bincount(rng.integers(0, candidates, volumes), minlength=candidates)


def _exchange(
    information: Float[np.ndarray, "N C P P"],
    known: Float[np.ndarray, "P P"],
    start: Counts,
    criterion: Criterion,
) -> list[tuple[Counts, float]]:
    """The best exchange of one volume, again and again; the designs with their criterion."""
    total = np.einsum("ncpq,c->npq", information, start.astype(float)) + known
    path = [(start, float(criterion(_variance(total))))]
    while True:
        counts, least = path[-1]
        total = np.einsum("ncpq,c->npq", information, counts.astype(float)) + known
        used = np.flatnonzero(counts)
        values = [
            criterion(_variance((total - information[:, i])[:, None] + information)) for i in used
        ]
        row, gained = np.unravel_index(np.argmin(values), np.shape(values))
        if not values[row][gained] < least - _LEAST_GAIN:
            return path
        moved = counts.copy()
        moved[used[row]] -= 1
        moved[gained] += 1
        path.append((moved, float(values[row][gained])))


def _variance(information: Float[np.ndarray, "N ... P P"]) -> Float[np.ndarray, "... P"]:
    """The diagonal of the inverse, averaged over the draws."""
    return np.diagonal(np.linalg.inv(information), axis1=-2, axis2=-1).mean(axis=0)


def _estimator(model, noise, prior, sigma, estimator, recipe, seed) -> Estimator:
    if estimator == "fit":
        return MaximumLikelihood(model, noise)
    label = GroundTruth() if estimator == "gt" else MLE(model, noise)
    made = recipe or Recipe.fast()
    return train_networks(TrainingPlan(model, noise, prior, sigma, (label,), made, seed))[0]


def _finite(errors: Mapping[str, Float[np.ndarray, "P n"]]) -> dict[str, Float[np.ndarray, "P m"]]:
    """The voxels that have an estimate with every acquisition."""
    good = np.all([np.isfinite(each).all(axis=0) for each in errors.values()], axis=0)
    if good.sum() < 2:
        raise InputError("voxels: hardly one has an estimate with every acquisition; use more")
    return {name: each[:, good] for name, each in errors.items()}


def _compared(error: Float[np.ndarray, "P n"], other: Float[np.ndarray, "P n"]):
    """RMSE, its ratio to another's, and the standard errors of both, for each parameter."""
    columns = []
    for one, two in zip(error, other, strict=True):
        (value, base), covariance = rmse(np.stack([one, two]))
        ratio = value / base
        slope = np.array([1.0, -ratio]) / base
        spread = np.sqrt(max(slope @ covariance @ slope, 0.0))
        columns.append((value, np.sqrt(covariance[0, 0]), ratio, spread))
    value, deviation, ratio, spread = np.array(columns).T
    return value, deviation, ratio, spread
