"""Evaluation on simulated signals: bias, std, RMSE and information of estimators.

As in the paper, there are many noisy repeats at every point of a grid over the parameter space, and
all estimators get the same signals. Results are an `xarray.Dataset` with named dimensions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from labelwise.evaluation.cramer_rao import fisher_information
from labelwise.evaluation.information import (
    mutual_information,
    quantile_edges,
    retained_information,
)
from labelwise.evaluation.methods import methods_of
from labelwise.evaluation.scores import interval_score
from labelwise.fitting import available_cores
from labelwise.fitting.batching import blocks
from labelwise.limits import check_memory, check_whole
from labelwise.models import SignalModel
from labelwise.models.base import measurements
from labelwise.models.evaluate import jacobian, signals
from labelwise.noise import NoiseModel
from labelwise.priors import Grid, held
from labelwise.types import Estimate, Estimator, InputError, LabelSource, Voxels

_BINS = 200  # of the estimates, for mutual information; fewer would lose information
_PILOT = 20_000  # signals for the bin edges
_ENDS, _BOTH = ("coverage", "interval_score"), ("", "_error")
_ROUNDING = 1e-6
_OWN_DIMENSIONS = ("estimator", "parameter", "other")


def evaluate(
    estimators: Mapping[str, Estimator],
    model: SignalModel,
    noise: NoiseModel,
    sigma: float,
    grid: Grid,
    repeats: int,
    key: PRNGKeyArray,
    *,
    labels: Mapping[str, LabelSource] | None = None,
    block: int = 65_536,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Bias, std, RMSE and information of estimators on a grid of simulated signals.

    All estimators get the same signals, `repeats` at every grid point. The noise of a grid point
    depends on the key and on its position in the grid only, so that `block` affects memory only.
    Estimates are reduced point by point and not stored. Failed estimates (NaN in any parameter)
    are counted and excluded. All is NaN at grid points for which the equation does not hold.

    Args:
        estimators: by name.
        model: the signal model; its parameters are those of the grid.
        noise: the noise model.
        sigma: noise of one channel, in the signal's unit.
        grid: the true parameters.
        repeats: R, number of noisy signals at each point.
        key: random key for the noise.
        labels: label sources by name, which may use the truth, such as `MLE(start="truth")`.
        block: number of signals in a block.
        progress: called with (signals done, signals in all) after each block.

    Returns:
        A Dataset with the dimensions `estimator`, `parameter`, `other` (parameters again) and one
        for each parameter, named after it, with the grid's values as coordinate. The coordinate
        `method` has what each estimator is (`labelwise.evaluation.methods`). In the parameters'
        units:

        - `bias`, `std`, `rmse`: of the estimates at that point; rmse² = bias² + std². Use
          `result["std"]`, since `result.std` is a method of every Dataset
        - `bias_error`, `std_error`, `rmse_error`: their standard errors
        - `covariance` (parameter, other): of the estimates
        - `failed`: the share of estimates that are NaN
        - `retained`, `retained_error`: the share of the signal's Fisher information that the
          estimates retain; see `labelwise.evaluation.information.retained_information`
        - `mutual_information`, `mutual_information_error`: bits between each true parameter and
          its estimate over the whole grid, in up to 200 bins; at most log2 of the number of
          grid values of the parameter; see `labelwise.evaluation.information.mutual_information`
        - `coverage`, `interval_score` and their standard errors: the share of intervals that hold
          the truth, and their mean score; see `labelwise.evaluation.scores.interval_score`. NaN for
          estimators without intervals, and absent if none has them

    Raises:
        InputError: if there is no estimator, a name is used twice, grid, estimators and model have
            different parameters, or the equation holds at no point of the grid.

    Source: Epstein et al. 2024, sections 3.5 and 3.6, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import labelwise as lw
        >>> model, noise = lw.ADC([0.0, 0.5, 1.0]), lw.Gaussian()
        >>> grid = Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
        >>> fit = lw.MaximumLikelihood(model, noise)
        >>> result = evaluate({"MLE": fit}, model, noise, 0.01, grid, 100, jax.random.key(0))
        >>> result.bias.sel(estimator="MLE", parameter="ADC").dims
        ('S0', 'ADC')
    """
    names = tuple(parameter.name for parameter in model.parameters)
    sources = _sources(estimators, labels or {}, names, sigma)
    _check(names, grid, sigma, repeats)
    refuse_large(model, grid, repeats, len(sources))
    simulator = _Simulator(model, noise, sigma, np.asarray(grid.points, float), key)
    points, size = simulator.truth.shape
    levels = np.stack(np.unravel_index(np.arange(points), grid.shape), axis=-1)
    bins = int(np.clip(points * repeats / max(grid.shape) / 50, 10, _BINS))
    described = np.flatnonzero(held(model, simulator.truth))
    if not len(described):
        raise InputError(f"grid: the equation of {type(model).__name__} holds at no point")
    edges = _pilot_edges(simulator, sources, described, repeats, block, bins)

    table: dict[str, np.ndarray] = {
        name: np.full((len(sources), points, size), np.nan)
        for name in ("bias", "std", "rmse", "bias_error", "std_error", "rmse_error")
    }
    table |= {name: np.full_like(table["bias"], np.nan) for name in ("retained", "retained_error")}
    table["covariance"] = np.full((len(sources), points, size, size), np.nan)
    table["failed"] = np.full((len(sources), points), np.nan)
    ends = {f"{name}{end}": np.full_like(table["bias"], np.nan) for name in _ENDS for end in _BOTH}
    counts = [[np.zeros((n, bins), np.int64) for n in grid.shape] for _ in sources]

    def reduce(row: int, index, values, limits, score) -> list[np.ndarray]:
        """Reduce the estimates (g, R, P) of some grid points; each call writes its own rows."""
        if limits is not None:
            for name, moment in _of_intervals(limits[0], limits[1], simulator.truth[index]).items():
                ends[name][row, index] = moment
        good = np.all(np.isfinite(values), axis=-1)
        errors = np.where(good[..., None], values - simulator.truth[index][:, None], 0.0)
        for name, moment in _moments(errors, good).items():
            table[name][row, index] = moment
        table["retained"][row, index], table["retained_error"][row, index] = retained_information(
            errors, score, good, simulator.fisher[index]
        )
        return [
            _count(values[..., p], levels[index, p], good, edges[row][p], counts[row][p].shape)
            for p in range(size)
        ]

    # estimators are called one after the other, while earlier estimates are reduced in threads
    pending: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(available_cores()) as pool:
        for index, voxels, score in simulator.blocks(described, repeats, block):
            for row, source in enumerate(sources.values()):
                values, limits = _values(source, voxels, simulator.truth[index].shape, repeats)
                pending.append((row, pool.submit(reduce, row, index, values, limits, score)))
                while len(pending) > 2 * available_cores():  # limits memory to a few blocks
                    _add(counts, *pending.popleft())
            if progress:
                progress((int(index[-1]) + 1) * repeats, points * repeats)
        while pending:
            _add(counts, *pending.popleft())

    if np.isfinite(ends["coverage"]).any():
        table |= ends
    # a value for which the equation holds at no point of the grid has no estimate
    there = [np.isin(np.arange(n), levels[described, p]) for p, n in enumerate(grid.shape)]
    bits = np.array(
        [
            [mutual_information(table[mine]) for table, mine in zip(row, there, strict=True)]
            for row in counts
        ]
    )
    of_parameters = ("estimator", "parameter")
    return xr.Dataset(
        {name: _named(array, grid) for name, array in table.items()}
        | {
            "mutual_information": (of_parameters, bits[..., 0]),
            "mutual_information_error": (of_parameters, bits[..., 1]),
        },
        _coordinates(tuple(sources), model, grid)
        | {"method": methods_of({**estimators, **(labels or {})})},
        {
            "model": type(model).__name__,
            "noise": type(noise).__name__,
            "sigma": float(sigma),
            "repeats": int(repeats),
        },
    )


def marginal(dataset: xr.Dataset, parameter: str) -> xr.Dataset:
    """Averages over all grid dimensions but one, as in the figures of the paper.

    Bias, std and rmse are means of their values at grid points: rmse² = bias² + std² no longer
    holds, and a bias that changes sign over the grid may cancel. Points without any estimate are
    excluded. Mutual information refers to the whole grid and is unchanged.

    Args:
        dataset: what `evaluate` returned.
        parameter: the dimension to keep.

    Returns:
        The same variables on the dimension `parameter` alone, with the standard errors of the
        means for independent grid points.

    Raises:
        InputError: if the dataset has no such dimension.
    """
    names = _grid_dimensions(dataset)
    if parameter not in names:
        raise InputError(f"parameter: the evaluation has {', '.join(names)}, got {parameter!r}")
    return _average(dataset, [name for name in names if name != parameter])


def summary(dataset: xr.Dataset) -> xr.Dataset:
    """Summary measures of each estimator and parameter, with standard errors.

    Args:
        dataset: what `evaluate` returned.

    Returns:
        On the dimensions `estimator` and `parameter`, each with its standard error `..._error`:

        - `abs_bias`: mean of |bias| over the marginal bias curve of the parameter, whose values
          count by their grid points for which the equation of the model holds; so for `slope`
        - `abs_bias_grid`: mean of |bias| over all grid points. Both are positive: for an unbiased
          estimator, noise alone gives about 0.8 standard errors of one bias
        - `std`, `rmse`, `retained`: means over the grid; `coverage` and `interval_score`, too, if
          they are in the dataset, and `coverage_least`: the smallest of the grid
        - `slope`: of a straight line through the marginal bias curve, unit per unit; 1 + slope is
          the slope of the mean estimate. -1 is an estimator with the same mean for every truth.
          NaN for a parameter with one value
        - `top`: the bias at the highest value of the parameter, from the marginal curve
        - `mutual_information`: bits, as in the dataset

        and `failed` on `estimator`: the share of estimates that are NaN.
    """
    names = _grid_dimensions(dataset)
    whole = _average(dataset, names)
    result = whole[["failed", "std", "std_error", "rmse", "rmse_error"]].assign(
        {
            f"{name}{end}": whole[f"{name}{end}"]
            for name in ("retained", "mutual_information")
            for end in ("", "_error")
        }
    )
    if "coverage" in dataset:
        result = result.assign({f"{n}{end}": whole[f"{n}{end}"] for n in _ENDS for end in _BOTH})
        result["coverage_least"] = dataset.coverage.min(names)
    over_grid = _average(
        xr.Dataset({"it": abs(dataset.bias), "it_error": dataset.bias_error}), names
    )
    columns: dict[str, list[xr.DataArray]] = {"abs_bias": [], "slope": [], "top": []}
    errors: dict[str, list[xr.DataArray]] = {name: [] for name in columns}
    there = dataset.bias.notnull().any(("estimator", "parameter"))  # the equation holds
    for name in names:
        curve = marginal(dataset[["bias", "bias_error"]], name).sel(parameter=name)
        points = there.sum([other for other in names if other != name])
        curve, points = curve.sel({name: points > 0}), points[points > 0]
        count = points / points.max()
        offset = curve[name] - (count * curve[name]).sum() / count.sum()
        spread = (count * offset**2).sum()
        weight = {
            "abs_bias": np.sign(curve.bias) * count / count.sum(),
            "slope": count * offset / spread if curve.sizes[name] > 1 else offset * np.nan,
            "top": (curve[name] == curve[name].max()).astype(float),
        }
        for column, share in weight.items():
            columns[column].append((share * curve.bias).sum(name, skipna=False))
            square = (share * curve.bias_error) ** 2
            errors[column].append(np.sqrt(square.sum(name, skipna=False)))
    for column in columns:
        for end, rows in (("", columns[column]), ("_error", errors[column])):
            result[f"{column}{end}"] = xr.concat(rows, "parameter", coords="minimal").transpose(
                "estimator", "parameter"
            )
    result["abs_bias_grid"], result["abs_bias_grid_error"] = over_grid["it"], over_grid["it_error"]
    return result.assign_attrs(dataset.attrs)


class _Simulator:
    """Simulates the signals of grid points in blocks of one shape, by one compiled program."""

    def __init__(self, model, noise, sigma, truth, key) -> None:
        self.truth: Float[np.ndarray, "G P"] = truth
        self.fisher = fisher_information(model, noise, truth, sigma)
        self._noise = noise
        self._sigma = np.asarray(sigma, np.float32)
        self._clean = signals(model, truth).astype(np.float32)
        self._slopes = jacobian(model, truth).astype(np.float32)
        self._key = key

    def blocks(self, points: Int[np.ndarray, " g"], repeats: int, block: int, stream: int = 0):
        """Yield points, their R voxels each, and scores (g, R, P); noise depends on `stream`."""
        step = min(max(block // repeats, 1), len(points))
        for mine, rows in blocks(len(points), step):
            index, padded = points[mine], points[rows]
            data, score = _draw(
                *(self._noise, self._key, padded + stream * len(self.truth)),
                *(self._clean[padded], self._slopes[padded], self._sigma, repeats),
            )
            number = len(index) * repeats
            voxels = Voxels(
                signal=np.asarray(data)[: len(index)].reshape(number, -1),
                sigma=np.full(number, self._sigma),
                params=np.repeat(self.truth[index], repeats, axis=0).astype(np.float32),
            )
            yield index, voxels, np.asarray(score)[: len(index)].astype(float)


@eqx.filter_jit
def _draw(
    noise: NoiseModel,
    key: PRNGKeyArray,
    streams: Int[Array | np.ndarray, " g"],
    clean: Float[Array | np.ndarray, "g M"],
    slopes: Float[Array | np.ndarray, "g M P"],
    sigma: Float[np.ndarray, ""],
    repeats: int,
) -> tuple[Float[Array, "g R M"], Float[Array, "g R P"]]:
    """Noisy signals of each point and d log p(signal) / d params."""

    def point(stream, clean, slopes):
        clean = jnp.broadcast_to(clean, (repeats, len(clean)))
        data = noise.sample(jax.random.fold_in(key, stream), clean, sigma)
        score, _ = noise.score_and_curvature(clean, data, sigma)
        return data, -jnp.asarray(score) @ slopes

    data, score = jax.vmap(point)(streams, clean, slopes)
    return jnp.asarray(data), score


Source = Callable[[Voxels], Estimate]


def _sources(estimators, labels, names: tuple[str, ...], sigma: float) -> dict[str, Source]:
    """Estimators and label sources by name, as functions of the same voxels."""
    if not estimators and not labels:
        raise InputError("estimators: expected at least one by name, got none")
    both = sorted(set(estimators) & set(labels))
    if both:
        raise InputError(f"labels: {both[0]!r} is the name of an estimator too; rename one")
    for name, estimator in estimators.items():
        theirs = tuple(parameter.name for parameter in estimator.parameters)
        if theirs != names:
            raise InputError(
                f"estimators: {name!r} estimates {', '.join(theirs)}, but the model has "
                f"{', '.join(names)}"
            )

    def without_truth(estimator: Estimator) -> Source:
        return lambda voxels: estimator(voxels.signal, sigma)

    return {name: without_truth(estimator) for name, estimator in estimators.items()} | dict(labels)


def _check(names: tuple[str, ...], grid: Grid, sigma: float, repeats: int) -> None:
    if tuple(grid.names) != names:
        raise InputError(
            f"grid: has {', '.join(grid.names)}, but the model's parameters are "
            f"{', '.join(names)}, in that order"
        )
    if not (np.ndim(sigma) == 0 and np.isfinite(sigma) and sigma > 0):
        raise InputError(f"sigma: expected one positive number, got {sigma!r}")
    check_whole("repeats", repeats)


def refuse_large(model: SignalModel, grid: Grid, repeats: int, estimators: int) -> None:
    """Refuse an evaluation that needs more memory than there is.

    Raises:
        InputError: if a rough estimate exceeds the memory of this machine.
    """
    points, size, m = math.prod(grid.shape), len(grid.shape), measurements(model)
    a_point = estimators * (8 * size + size**2) + 3 * size + 2 * m * (1 + size)
    check_memory(
        8.0 * (points * a_point + 2 * repeats * (m + 2 * size)),
        f"evaluating {points:,} grid points with {repeats:,} repeats",
        "choose fewer points or repeats",
    )


def _values(source: Source, voxels: Voxels, shape: tuple[int, int], repeats: int):
    """The estimates (g, R, P) of a source in float64, and the ends of intervals if it has them."""
    estimate = source(voxels)
    values = np.asarray(estimate.values, float)
    expected = (len(voxels), shape[1])
    if values.shape != expected:
        raise InputError(f"estimates: expected values of shape {expected}, got {values.shape}")
    whole = (shape[0], repeats, shape[1])
    limits = None
    if {"low", "high"} <= set(estimate.stats):
        limits = [
            np.asarray(estimate.stats[name], float).reshape(whole) for name in ("low", "high")
        ]
    return values.reshape(whole), limits


def _of_intervals(
    low: Float[np.ndarray, "g R P"],
    high: Float[np.ndarray, "g R P"],
    truth: Float[np.ndarray, "g P"],
) -> dict[str, np.ndarray]:
    """Coverage and interval score of each point, over the voxels with an interval."""
    truth = truth[:, None]
    slack = _ROUNDING * np.abs(truth)  # a truth on a bound, in float32
    known = np.isfinite(low) & np.isfinite(high)
    held = (low - slack <= truth) & (truth <= high + slack)
    found = {}
    n = np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    for name, rows in (("coverage", held), ("interval_score", interval_score(low, high, truth))):
        rows = np.where(known, rows, 0.0)
        mean = rows.sum(axis=1) / n
        square = (rows**2).sum(axis=1) / n
        found[name] = mean
        found[f"{name}_error"] = np.sqrt(np.maximum(square - mean**2, 0) / n)
    return found


def _pilot_edges(
    simulator: _Simulator,
    sources: Mapping[str, Source],
    points: Int[np.ndarray, " G"],
    repeats: int,
    block: int,
    bins: int,
):
    """Bin edges by source and parameter, from a few repeats of (a sample of) some grid points."""
    if len(points) > _PILOT:
        points = np.sort(np.random.default_rng(0).choice(points, _PILOT, replace=False))
    few = min(-(-_PILOT // len(points)), repeats)
    estimates_of = {name: [] for name in sources}
    for index, voxels, _ in simulator.blocks(points, few, block, stream=1):
        for name, source in sources.items():
            values, _ = _values(source, voxels, simulator.truth[index].shape, few)
            estimates_of[name].append(values.reshape(-1, values.shape[-1]))
    together = [np.concatenate(parts) for parts in estimates_of.values()]
    return [[quantile_edges(column, bins) for column in values.T] for values in together]


def _moments(
    errors: Float[np.ndarray, "g R P"], good: Bool[np.ndarray, "g R"]
) -> dict[str, np.ndarray]:
    """Bias, std and RMSE of each point, with standard errors; failed estimates have error 0."""
    count = good.sum(axis=1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = np.where(count > 0, count, np.nan)[:, None]
        bias = errors.sum(axis=1) / n
        centred = np.where(good[..., None], errors - bias[:, None], 0.0)
        covariance = centred.swapaxes(1, 2) @ centred / n[..., None]
        square, centred_square = errors**2, centred**2
        variance, mean_square = centred_square.sum(axis=1) / n, square.sum(axis=1) / n
        std, rmse = np.sqrt(variance), np.sqrt(mean_square)
        variance_error = _error_of_mean(centred_square, variance, n)
        mean_square_error = _error_of_mean(square, mean_square, n)
        return {
            "bias": bias,
            "std": std,
            "rmse": rmse,
            "bias_error": std / np.sqrt(n - 1),
            "std_error": np.where(std > 0, variance_error / (2 * std), 0.0 * std),
            "rmse_error": np.where(rmse > 0, mean_square_error / (2 * rmse), 0.0 * rmse),
            "covariance": covariance,
            "failed": 1 - count / errors.shape[1],
        }


def _error_of_mean(squares, mean, n):
    """The standard error of the mean of R squares, from their fourth moment."""
    fourth = np.einsum("grp,grp->gp", squares, squares) / n
    return np.sqrt(np.maximum(fourth - mean**2, 0.0) / (n - 1))


def _add(counts: list[list[np.ndarray]], row: int, pending: Future) -> None:
    for total, part in zip(counts[row], pending.result(), strict=True):
        total += part


def _count(values, levels, good, edges, shape: tuple[int, int]) -> Int[np.ndarray, "T K"]:
    """The number of valid estimates of (g, R) in each bin, by true value."""
    bins = np.searchsorted(edges, values[good], side="right")
    place = np.broadcast_to(levels[:, None], good.shape)[good] * shape[1] + bins
    return np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)


def _named(array: Float[np.ndarray, "E G *P"], grid: Grid) -> tuple[tuple[str, ...], np.ndarray]:
    """(estimator, G, parameter, other) with G split into the named dimensions of the grid."""
    spread = array.reshape(len(array), *grid.shape, *array.shape[2:])
    last = 1 + len(grid.shape)
    order = (0, *range(last, spread.ndim), *range(1, last))
    return (*_OWN_DIMENSIONS[: array.ndim - 1], *grid.names), spread.transpose(order)


def _coordinates(names: tuple[str, ...], model: SignalModel, grid: Grid) -> dict[str, Any]:
    parameters = [parameter.name for parameter in model.parameters]
    axes = {
        # "unit", not "units": xarray may decode units of time as time stamps
        parameter.name: (
            parameter.name,
            np.asarray(grid.axes[parameter.name], float),
            {"unit": parameter.unit, "symbol": parameter.symbol},
        )
        for parameter in model.parameters
    }
    return {"estimator": list(names), "parameter": parameters, "other": parameters} | axes


def _grid_dimensions(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset.dims if name not in _OWN_DIMENSIONS]


def _average(dataset: xr.Dataset, over: list[str]) -> xr.Dataset:
    """Means over dimensions, with standard errors for independent values."""
    result = {}
    for name, values in dataset.data_vars.items():
        dims = [dim for dim in over if dim in values.dims]
        if str(name).endswith("_error") and dims:
            number = values.count(dims)
            result[name] = (values**2).sum(dims) ** 0.5 / number.where(number > 0)
        else:
            result[name] = values.mean(dims) if dims else values
    return xr.Dataset(result, attrs=dataset.attrs)
