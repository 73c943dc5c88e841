"""Design of acquisitions: which settings, and how often each, for an estimator over a prior.

First by a bound. For parameters θ, the Fisher information J(θ) of the volumes (with the noise model
in use) and the precision Λ of what is known beforehand give the variance [(J(θ) + Λ)⁻¹]_pp, which
is averaged over the prior. Volumes are exchanged between candidate settings while the average
falls. Then by simulation: the designs that the bound found are compared with the estimator itself
on the same voxels, and the best one is evaluated on fresh voxels.

For a `Detection`, the averages are over both tissues, and the bound is the area under the ROC curve
of normal estimates with the mean θ - (J(θ) + Λ)⁻¹ Λ (θ - μ), μ the middle of the prior, and the
covariance (J + Λ)⁻¹ J (J + Λ)⁻¹ (θ and (J + Λ)⁻¹ for fits, which are not pulled to the middle): the
average of Φ(difference of means / √(sum of variances)) over pairs of the tissues. Its
discriminability is d' = √2 Φ⁻¹(area).

Source: Chaloner & Verdinelli 1995, section 4, doi:10.1214/ss/1177009939, for averages of such a
variance over the prior; Fedorov 1972, Theory of Optimal Experiments, for exchanges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtr, ndtri

from labelwise.evaluation.cramer_rao import measurement_information
from labelwise.evaluation.scores import auc, rmse
from labelwise.evaluation.tuning import Detection, warn_if_outside
from labelwise.fitting import MaximumLikelihood
from labelwise.limits import check_memory, check_sigma, check_whole
from labelwise.models.base import SignalModel, measurements, scale_parameter, settings_of
from labelwise.models.evaluate import signals
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.noise import Gaussian, NoiseModel
from labelwise.priors import Population, Prior
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

_PARTNERS = 8  # of each draw of a tissue, among those of the other
_LEAST_D = 1e-6  # discriminability, whose logarithm is taken

Counts = Int[np.ndarray, " C"]
Criterion = Callable[[Float[np.ndarray, "N ... P P"]], Float[np.ndarray, "..."]]
"""What is minimised, of the inverse of the information with what is known beforehand."""


@dataclass(frozen=True)
class Area:
    """The area under the ROC curve of the estimates of a parameter in two tissues.

    Args:
        value: the area; below 0.5 if the estimates change in the wrong direction.
        error: its standard error.
        gain: how much larger it is than that of the reference.
        gain_error: its standard error; the voxels are the same.
    """

    value: float
    error: float
    gain: float
    gain_error: float


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
        auc: of the parameters whose centre differs between the tissues of a task, by name.
    """

    name: str
    model: SignalModel
    rmse: Float[np.ndarray, " P"]
    error: Float[np.ndarray, " P"]
    ratio: Float[np.ndarray, " P"]
    ratio_error: Float[np.ndarray, " P"]
    auc: Mapping[str, Area] = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """A designed acquisition, compared with others of as many volumes.

    Args:
        rows: this design, the present acquisition if there is one, the Gaussian optimum.
        minimised: the parameters whose RMSE was minimised, or AUC was maximised for a task.
        kept: those whose RMSE must not grow by more than 2 % over the reference.
        reference: the name of the row that ratios and `kept` refer to.
        estimator: `"gt"`, `"mle"` or `"fit"`.
        sigma: noise of one channel.
        voxels: number of fresh voxels behind the errors: those with an estimate in all rows.
        search: for each start, the efficiency after each exchange by the bound: the share of
            its volumes with which the best design found would have the same criterion; for a
            task, the square of its discriminability relative to that of the best.
        task: the tissues to distinguish, with the distribution of every parameter.
    """

    rows: tuple[Row, ...]
    minimised: tuple[str, ...]
    kept: tuple[str, ...]
    reference: str
    estimator: EstimatorName
    sigma: float
    voxels: int
    search: tuple[Float[np.ndarray, " S"], ...]
    task: Detection | None = None

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
        found = {
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
        if self.task is not None:
            found["task"] = self.task.describe()
            for row in self.rows:
                areas = {name: dataclasses.asdict(each) for name, each in row.auc.items()}
                found["acquisitions"][row.name]["auc"] = areas
        return found


def design(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    sigma: float,
    volumes: int,
    *,
    minimise: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    task: Detection | None = None,
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
            all but the amplitude if empty. For a task, those whose AUC is maximised (the mean of
            several); all but the amplitude whose centre differs between the tissues if empty.
        keep: the parameters whose RMSE may be 2 % above that of the reference at most; None for all
            others apart from the amplitude.
        task: distinguish two tissues; networks are still trained over the prior, and all errors are
            those in the voxels of both tissues.
        estimator: `"gt"`, a network taught the ground truth, close to the posterior mean; `"mle"`,
            one taught maximum-likelihood estimates; or `"fit"`, maximum likelihood itself.
        present: the model with the present acquisition, to compare with: its volumes are scaled
            to as many as those of the design.
        simulated: choose by simulation between the designs that the bound found, the present one
            and the Gaussian optimum; by the bound if False.
        recipe: of the networks; `Recipe.fast()` if None.
        voxels: number of voxels in a simulation, of each tissue.
        seed: of all random numbers.
        progress: called with the number of simulated designs and their total.

    Raises:
        InputError: if an argument is out of its range, names no parameter, or measurements of the
            model depend on each other (an echo train); for a task, if a tissue is not possible, or
            the centre of a parameter to minimise is the same in both.

    Warns:
        UserWarning: if more than 1 % of a tissue lies outside the prior.

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
    if task is not None:
        ranges = dict(zip(names, map(tuple, prior.ranges.tolist()), strict=True))
        task = task.complete(model.parameters, ranges)
    usual = free if task is None else [name for name in free if task.direction(name)]
    minimised = _named("minimise", tuple(minimise) or tuple(usual), names)
    if task is not None:
        _check_distinct(task, minimised)
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
    populations: Sequence[Prior] = [prior]
    middle = draws.mean(axis=0)
    if task is not None:
        tissues = [Population(each, model.parameters, model) for each in task.tissues]
        populations, draws = tissues, _drawn(task, tissues, prior, seed)
    information = _in_units(measurement_information(model, noise, draws, sigma), spread)
    there = _in_units(measurement_information(fixed[reference], noise, draws, sigma), spread)
    known = np.diag(np.maximum(known, _ROUNDING * volumes * information.max()))
    base = _variance(np.linalg.inv(there.sum(axis=1) + known))
    apart = None
    if task is not None:
        up = [task.direction(name) for name in minimised]
        pull = known if estimator == "gt" else 0 * known  # fits are not pulled to the middle
        apart = _apart((draws - middle) / spread, pull, goal, up)

    def searched(start: Counts, margin: float = WORSE) -> list[tuple[Counts, float]]:
        def criterion(inverse):
            logs = 0.5 * np.log(_variance(inverse) / base)
            aim = logs[..., goal].mean(axis=-1) if apart is None else apart(inverse)
            return aim + _beyond(logs[..., limit], margin)

        return _exchange(information, known, start, criterion)

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

    def rows(these: Mapping[str, SignalModel], seed: int) -> tuple[dict[str, Row], int]:
        """The errors with each acquisition in the same voxels, and the number of these."""
        key = jax.random.key(seed)
        keys = [key] if task is None else jax.random.split(key)
        errors, values = {}, {}
        for name, each in these.items():
            data = [
                simulate(each, noise, population, sigma, voxels, key)
                for population, key in zip(populations, keys, strict=True)
            ]
            truth = np.concatenate([part.params for part in data if part.params is not None])
            found = np.concatenate([trained[name](part.signal, sigma).values for part in data])
            values[name], errors[name] = found.T, (found - truth).T.astype(float)
        good = _estimated(errors, len(populations))
        after = (np.arange(len(good)) >= voxels)[good]
        made = {}
        for name, each in these.items():
            compared = _compared(errors[name][:, good], errors[reference][:, good])
            areas = {}
            if task is not None:
                pair = values[name][:, good], values[reference][:, good]
                areas = _areas(task, names, *pair, after)
            made[name] = Row(name, each, *compared, areas)
        return made, int(good.sum())

    made = fixed | found
    chosen = "0"
    if simulated:  # on other voxels than the table, whose errors would be too small
        tried, _ = rows(made, seed + 1)

        def score(name: str) -> float:
            row = tried[name]
            logs = np.log(row.rmse / tried[reference].rmse)
            areas = [row.auc[each].value for each in minimised if task is not None]
            aim = -np.mean(areas) if areas else logs[goal].mean()
            return float(aim + _beyond(logs[limit], WORSE))

        chosen = min(made, key=score)
    trained[THIS] = trained[chosen]
    shown, used = rows({THIS: made[chosen], **fixed}, seed + 2)
    search = [np.exp(2 * (least - np.array([value for _, value in path]))) for path in paths]
    settings = minimised, kept, reference, estimator, sigma, used, tuple(search), task
    return Design(tuple(shown.values()), *settings)


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


def _check_distinct(task: Detection, minimised: Sequence[str]) -> None:
    """Check that estimates of the parameters can be expected to differ between the tissues."""
    what = " and ".join(tissue.name for tissue in task.tissues)
    if not minimised:
        raise InputError(f"minimise: no parameter has another centre in {what}; give other tissues")
    if same := [name for name in minimised if not task.direction(name)]:
        raise InputError(
            f"minimise: {same[0]} has the same centre in {what}, so that its estimates do not "
            "distinguish them; give other tissues, or another parameter"
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


def _drawn(
    task: Detection, populations: Sequence[Population], prior: Prior, seed: int
) -> Float[np.ndarray, "N P"]:
    """Draws from the first tissue, and as many from the second."""
    draws, ranges = [], prior.ranges.astype(np.float32)
    keys = jax.random.split(jax.random.key(seed))
    for tissue, population, key in zip(task.tissues, populations, keys, strict=True):
        draws.append(population.sample(key, _DRAWS // 2))
        warn_if_outside(ranges, tissue, population.parameters, draws[-1], stacklevel=4)
    return np.concatenate(draws).astype(np.float64)


def _apart(
    draws: Float[np.ndarray, "N P"], pull: Float[np.ndarray, "P P"], goal: list[int], up: list[int]
) -> Criterion:
    """The mean of -log d' of some parameters; draws are relative to the middle of the prior."""
    half = len(draws) // 2
    partners = half + (np.arange(half) + np.arange(0, half, half // _PARTNERS)[:, None]) % half

    def value(inverse: Float[np.ndarray, "N ... P P"]) -> Float[np.ndarray, "..."]:
        total = np.zeros(inverse.shape[1:-2])
        for index, sign in zip(goal, up, strict=True):
            row = np.moveaxis(inverse[..., index, :], 0, -2)
            mean = sign * (draws[:, index] - (row * (draws @ pull)).sum(axis=-1))
            noise = np.maximum(row[..., index] - row**2 @ np.diag(pull), _SINGULAR)
            shift = mean[..., partners] - mean[..., None, :half]
            spread = np.sqrt(noise[..., partners] + noise[..., None, :half])
            area = np.minimum(ndtr(shift / spread).mean(axis=(-2, -1)), 1 - _ROUNDING)
            total -= np.log(np.maximum(np.sqrt(2) * ndtri(area), _LEAST_D))
        return total / len(goal)

    return value


def _beyond(logs: Float[np.ndarray, "... L"], margin: float) -> Float[np.ndarray, "..."]:
    """The penalty on the logarithms of kept RMSE over those of the reference."""
    return _PENALTY * np.maximum(0, logs - np.log(margin)).sum(axis=-1)


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

    def value(inverse):
        return np.log(np.sqrt(_variance(inverse)[..., relative]).sum(axis=-1))

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
    path = [(start, float(criterion(np.linalg.inv(total))))]
    while True:
        counts, least = path[-1]
        total = np.einsum("ncpq,c->npq", information, counts.astype(float)) + known
        used = np.flatnonzero(counts)
        values = [
            criterion(np.linalg.inv((total - information[:, i])[:, None] + information))
            for i in used
        ]
        row, gained = np.unravel_index(np.argmin(values), np.shape(values))
        if not values[row][gained] < least - _LEAST_GAIN:
            return path
        moved = counts.copy()
        moved[used[row]] -= 1
        moved[gained] += 1
        path.append((moved, float(values[row][gained])))


def _variance(inverse: Float[np.ndarray, "N ... P P"]) -> Float[np.ndarray, "... P"]:
    """The diagonal, averaged over the draws."""
    return np.diagonal(inverse, axis1=-2, axis2=-1).mean(axis=0)


def _estimator(model, noise, prior, sigma, estimator, recipe, seed) -> Estimator:
    if estimator == "fit":
        return MaximumLikelihood(model, noise)
    label = GroundTruth() if estimator == "gt" else MLE(model, noise)
    made = recipe or Recipe.fast()
    return train_networks(TrainingPlan(model, noise, prior, sigma, (label,), made, seed))[0]


def _estimated(
    errors: Mapping[str, Float[np.ndarray, "P n"]], tissues: int
) -> Bool[np.ndarray, " n"]:
    """Which voxels have an estimate with every acquisition."""
    good = np.all([np.isfinite(each).all(axis=0) for each in errors.values()], axis=0)
    if good.reshape(tissues, -1).sum(axis=1).min() < 2:
        raise InputError("voxels: hardly one has an estimate with every acquisition; use more")
    return good


def _areas(
    task: Detection,
    names: Sequence[str],
    values: Float[np.ndarray, "P n"],
    others: Float[np.ndarray, "P n"],
    after: Bool[np.ndarray, " n"],
) -> dict[str, Area]:
    """AUC of the parameters whose centre differs, beside those of other estimates."""
    found = {}
    for name, one, two in zip(names, values, others, strict=True):
        if not (sign := task.direction(name)):
            continue
        both = sign * np.stack([one, two])
        (value, base), covariance = auc(both[:, ~after], both[:, after])
        paired = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        errors = np.sqrt(np.maximum([covariance[0, 0], paired], 0))
        found[name] = Area(float(value), float(errors[0]), float(value - base), float(errors[1]))
    return found


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
