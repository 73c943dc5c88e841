"""Two ways to advance a batch of fits: one compiled program, or steps around a black box."""

from collections.abc import Callable, Sequence
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise import interrupts
from labelwise.fitting import many
from labelwise.fitting.batching import WIDTH, by_block, in_chunks
from labelwise.fitting.compiler import make_room
from labelwise.fitting.newton import (
    RUNNING,
    Expansion,
    Problem,
    Rows,
    Signal,
    State,
    Stop,
    begin,
    gauss_newton,
    newton,
    propose,
    rows,
    rows_from,
    second_slopes,
    slopes,
    solve_symmetric,
    step,
    total,
)
from labelwise.models.base import SignalModel, acquisition_names, within
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel, chi2_quantile
from labelwise.types import Parameter

RATIO = 5.0
"""Coordinates are logarithms where the bounds span a larger ratio."""
DIFFERENCE = 1e-4
"""Half-width of a finite difference, as a fraction of the width of the bounds."""
NO_WEIGHT = 1e15
"""The sigma of a measurement that is left out, where signals are about 1: its square is finite."""
SIGNIFICANT = float(chi2_quantile(0.95, 1))
"""Twice a difference in nll that is significant: 3.84."""
UNDETERMINED = 1e-6
"""A parameter whose effect is explained by the others but for this share has an infinite error."""
SHIFTED = 0.5
"""A parameter that a bound shifts by more standard errors than this has none."""
AWAY, BENT = 3.0, 1.0
"""The distance at which a search across kinks starts again, in standard errors, if the signal there
is not what its slopes predict, by this share of the noise."""


class Coordinates(eqx.Module):
    """The coordinates q of P parameters: their logarithm, or their value in a unit of length.

    The unit is the width of the bounds.
    """

    logarithmic: tuple[bool, ...] = eqx.field(static=True)
    unit: tuple[float, ...] = eqx.field(static=True)

    @classmethod
    def within(cls, parameters: Sequence[Parameter]) -> "Coordinates":
        """The logarithm for parameters whose bounds span a large ratio."""
        bounds = [p.bounds for p in parameters]
        wide = tuple(low > 0 and bool(RATIO * low < high < np.inf) for low, high in bounds)
        widths = [float(high - low) if high < np.inf else 1.0 for low, high in bounds]
        return cls(
            tuple(map(bool, wide)),
            tuple(1.0 if log else w for log, w in zip(wide, widths, strict=True)),
        )

    def params(self, q: Sequence[Array] | np.ndarray) -> list[Array]:
        """Rows of parameters from rows of coordinates, by JAX."""
        rows = zip(q, self.logarithmic, self.unit, strict=True)
        return [jnp.exp(x) if log else x * unit for x, log, unit in rows]

    def of(self, params: Float[np.ndarray, "P *N"]) -> Float[np.ndarray, "P *N"]:
        """Coordinates from parameters, by NumPy."""
        rows = zip(params, self.logarithmic, self.unit, strict=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([np.log(x) if log else x / unit for x, log, unit in rows])

    def lengths(self, params: Float[np.ndarray, "P *N"]) -> Float[np.ndarray, "P *N"]:
        """d parameter / d coordinate."""
        rows = zip(params, self.logarithmic, self.unit, strict=True)
        return np.stack([x if log else np.full_like(x, unit) for x, log, unit in rows])

    def off(self, parameters: Sequence[Parameter], share: float) -> Float[np.ndarray, "2 P"]:
        """How far a share of the width of the bounds is from the lower and the upper one."""
        low, high = np.array([p.bounds for p in parameters]).T
        width = np.where(np.isinf(high), 1.0, high - low)
        ends = np.array([low, np.where(np.isinf(high), low + width, high)])
        inside = ends + share * width * np.array([[1], [-1]])
        return np.abs(self.of(inside.T) - self.of(ends.T)).T


class Engine(Protocol):
    """Iterations and standard errors of fits of a model under a noise model."""

    @property
    def kinked(self) -> bool:
        """Whether the signal has kinks."""
        ...

    def newton(
        self, q: np.ndarray, damping: np.ndarray, problem: Problem, limit: int
    ) -> tuple[np.ndarray, ...]:
        """q, damping, nll, iterations and outcome of N fits after at most `limit` iterations."""
        ...

    def describe(
        self, q: np.ndarray, problem: Problem, free: np.ndarray, chosen: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Standard errors (P, N) in coordinates, residuals (N,) and gains (N,) of fits."""
        ...

    def decrease(self, q: np.ndarray, problem: Problem) -> np.ndarray:
        """The decrease of the nll (N,) that one undamped step from q predicts."""
        ...

    def beside(self, q: np.ndarray, problem: Problem) -> np.ndarray:
        """Starts (P, 2, N) on both sides of optima q; NaN where the signal has no kink between."""
        ...


class Compiled(eqx.Module):
    """A differentiable model: a compiled program goes through many blocks of voxels."""

    model: SignalModel
    noise: NoiseModel
    coordinates: Coordinates
    stop: Stop = eqx.field(static=True)
    separable: bool = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)

    def newton(self, q, damping, problem, limit):
        """See `Engine`."""
        return in_chunks(lambda n, x: _newton(self, n, np.array(limit), *x), (q, damping, problem))

    def describe(self, q, problem, free, chosen):
        """See `Engine`."""
        return in_chunks(lambda n, x: _describe(self, n, *x), (q, problem, free, chosen))

    def decrease(self, q, problem):
        """See `Engine`."""
        return in_chunks(lambda n, x: _decrease(self, n, *x), (q, problem))

    def beside(self, q, problem):
        """See `Engine`."""
        return in_chunks(lambda n, x: _beside(self, n, *x), (q, problem))

    def signal(self, *q: Array) -> Array:
        """The signal (M, W) from P rows of coordinates (W,).

        Mapping over the measurements, too, makes the voxels the last axis of every array.
        """
        params = self.coordinates.params(q)
        if not self.separable:
            return jax.vmap(self.model.signal, out_axes=-1)(*params)
        return _measurement_by_measurement(self.model, jax.vmap)(*params)

    def expand(self, q: Rows) -> Callable[[Array | int, int], Expansion]:
        """The signal, slopes and second slopes of some measurements at q."""

        def expanded(signal: Signal) -> Expansion:
            second = second_slopes(signal, q) if len(q) <= many.UNROLLED else {}
            return signal(*q), slopes(signal, q), second

        def measured(first, count):
            part = [rows_from(x, first, count) for x in _settings(self.model)]
            some = eqx.tree_at(lambda engine: _settings(engine.model), self, part)
            return expanded(some.signal)

        if self.separable:
            return measured
        whole = expanded(self.signal)
        return lambda first, count: jax.tree.map(lambda x: rows_from(x, first, count), whole)


class BlackBox(eqx.Module):
    """A model in NumPy: only its signal is evaluated, and slopes are finite differences.

    Differences are central, in coordinates, and one-sided at a bound, so that the model is never
    evaluated outside its bounds. They are computed in float64.
    """

    model: SignalModel
    noise: NoiseModel
    coordinates: Coordinates
    stop: Stop = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)

    def newton(self, q, damping, problem, limit):
        """See `Engine`."""

        def blocks(_, arrays):
            q, damping, problem = arrays
            state = begin(rows(q), damping, self.kinked)
            for _ in range(limit):
                running = np.flatnonzero(np.asarray(state.outcome) == RUNNING)
                if not len(running):
                    break
                trial = np.stack(state.trial)
                lanes = np.full(trial.shape[1], running[0])
                lanes[running] = running  # a finished fit is not evaluated again
                state = _step(self, state, problem, *self.evaluated(trial[:, lanes], problem))
            return _outcome(state)

        return in_chunks(blocks, (q, damping, problem), WIDTH)

    def describe(self, q, problem, free, chosen):
        """See `Engine`."""

        def blocks(_, arrays):
            q, problem, free, chosen = arrays
            return _uncertainty(self.noise, *self.evaluated(q, problem), problem, free, chosen)

        return in_chunks(blocks, (q, problem, free, chosen), WIDTH)

    def decrease(self, q, problem):
        """See `Engine`."""

        def blocks(_, arrays):
            q, problem = arrays
            return _predicted(self.noise, q, problem, *self.evaluated(q, problem))

        return in_chunks(blocks, (q, problem), WIDTH)

    def beside(self, q, problem):
        """See `Engine`."""

        def blocks(_, arrays):
            q, problem = arrays
            signal, slopes = self.evaluated(q, problem)
            sides = np.asarray(_sides(self.noise, q, problem, signal, slopes))
            return _bent(q, sides, problem, signal, slopes, self._signal)

        return in_chunks(blocks, (q, problem), WIDTH)

    def evaluated(self, q: np.ndarray, problem: Problem) -> tuple[np.ndarray, list[np.ndarray]]:
        """The signal (M, W) at q and its slopes."""
        dtype, q = q.dtype, q.astype(float)
        slopes = []
        for index in range(len(q)):
            ahead, behind = q.copy(), q.copy()
            ahead[index] = np.minimum(q[index] + DIFFERENCE, problem.upper[index])
            behind[index] = np.maximum(q[index] - DIFFERENCE, problem.lower[index])
            width = ahead[index] - behind[index]
            slope = (self._signal(ahead) - self._signal(behind)) / width
            slopes.append(slope.astype(dtype))
        return self._signal(q).astype(dtype), slopes

    def _signal(self, q: np.ndarray) -> Float[np.ndarray, "M W"]:
        params = np.stack([np.asarray(x) for x in self.coordinates.params(q)])
        if self.model.vectorized:
            return np.asarray(self.model.signal(*params[:, :, None]), float).T
        # a batch may repeat voxels to fill its width
        distinct, lanes = np.unique(params, axis=1, return_inverse=True)
        columns = []
        for voxel in distinct.T:
            interrupts.check()  # a slow model takes minutes for a batch
            columns.append(np.asarray(self.model.signal(*voxel), float))
        return np.stack(columns, axis=-1)[:, lanes]


def make_engine(
    model: SignalModel, noise: NoiseModel, coordinates: Coordinates, stop: Stop, kinked: bool
) -> Engine:
    """The engine for a model."""
    make_room()
    if not model.differentiable:
        return BlackBox(model, noise, coordinates, stop, kinked)
    return Compiled(model, noise, coordinates, stop, is_separable(model), kinked)


def has_kinks(model: SignalModel) -> bool:
    """Whether the signal has kinks within the bounds, as a magnitude has where it is 0; by trial.

    A second difference is large at a kink and beside it, but not two steps away.
    """
    for index, parameter in enumerate(model.parameters):
        low, high = (within(parameter.bounds, share) for share in (0.0, 1.0))
        space = np.geomspace if 0 < RATIO * low < high else np.linspace
        for share in (0.2, 0.5, 0.8):
            line = np.array([[within(p.bounds, share) for p in model.parameters]] * 1025)
            line[:, index] = space(low, high, len(line))
            rows = signals(model, line)
            with np.errstate(all="ignore"):  # a model may overflow in a corner
                bend = np.nan_to_num(np.abs(np.diff(rows, 2, axis=0)))
                away = np.maximum(bend[:-4], bend[4:])
            if np.any(bend[2:-2] > np.maximum(10 * away, 1e-5 * np.max(np.abs(rows)))):
                return True
    return False


def is_separable(model: SignalModel) -> bool:
    """Whether the signal of each measurement depends on its own settings only, by trial."""
    for share in (0.05, 0.3, 0.5, 0.8):
        params = [within(p.bounds, share) for p in model.parameters]
        together = np.asarray(model.signal(*params))
        try:
            alone = np.asarray(_measurement_by_measurement(model)(*params))
        except (TypeError, ValueError, IndexError):  # the equation needs the whole array
            return False
        close = 1e-5 * np.max(np.abs(together))
        if alone.shape != together.shape or not np.allclose(alone, together, rtol=0, atol=close):
            return False
    return True


def _measurement_by_measurement(
    model: SignalModel, over_voxels: Callable = lambda f: f
) -> Callable[..., Array]:
    def measurement(settings, *params):
        def one_voxel(*scalars):
            single = eqx.tree_at(_settings, model, settings)
            return single.signal(*scalars)

        return over_voxels(one_voxel)(*params)

    def signal(*params):
        settings = [jnp.asarray(rows) for rows in _settings(model)]
        return jax.vmap(measurement, in_axes=(0, *[None] * len(params)))(settings, *params)

    return signal


def _settings(model: SignalModel) -> list[Array]:
    """The acquisition, each with a row for each measurement."""
    return [getattr(model, name) for name in acquisition_names(type(model))]


@eqx.filter_jit
def _newton(engine: Compiled, blocks, limit, q, damping, problem):
    def block(arrays):
        q, damping, problem = arrays
        q = rows(jnp.clip(q, problem.lower, problem.upper))
        how = engine.stop, limit, engine.kinked
        return _outcome(newton(engine.expand, engine.noise, q, damping, problem, *how))

    return by_block(block, blocks, (q, damping, problem))


@eqx.filter_jit
def _describe(engine: Compiled, blocks, q, problem, free, chosen):
    def block(arrays):
        q, problem, free, chosen = arrays
        signal, along = engine.signal(*q), slopes(engine.signal, tuple(q))
        return uncertainty(engine.noise, signal, along, problem, free, chosen)

    return by_block(block, blocks, (q, problem, free, chosen))


@eqx.filter_jit
def _decrease(engine: Compiled, blocks, q, problem):
    def block(arrays):
        q, problem = arrays
        along = slopes(engine.signal, tuple(q))
        return _predicted(engine.noise, q, problem, engine.signal(*q), along)

    return by_block(block, blocks, (q, problem))


@eqx.filter_jit
def _beside(engine: Compiled, blocks, q, problem):
    def block(arrays):
        q, problem = arrays
        signal, along = engine.signal(*q), slopes(engine.signal, tuple(q))
        sides = _sides(engine.noise, q, problem, signal, along)
        return _bent(q, sides, problem, signal, along, lambda side: engine.signal(*side))

    return by_block(block, blocks, (q, problem))


@eqx.filter_jit
def _sides(noise, q, problem, signal, slopes):
    """The points (2, P, W) that are AWAY standard errors from q in its worst-determined coordinate.

    The others follow, as the quadratic model of the likelihood predicts.
    """
    size = len(q)
    hessian = gauss_newton(noise, problem, signal, slopes).hessian
    free = [(q[i] > problem.lower[i]) & (q[i] < problem.upper[i]) for i in range(size)]
    matrix = {
        (i, j): jnp.where(free[i] & free[j], value, 1.0 * (i == j))
        for (i, j), value in hessian.items()
    }
    largest, move = jnp.zeros_like(q[0]), jnp.zeros_like(q)
    for k in range(size):
        unit = [jnp.where(free[k], 1.0 * (i == k), 0.0) for i in range(size)]
        column = solve_symmetric(matrix, unit)
        larger = free[k] & (column[k] > largest)
        largest = jnp.where(larger, column[k], largest)
        move = jnp.where(larger, jnp.stack(column), move)
    move = AWAY * move / jnp.sqrt(jnp.where(largest > 0, largest, 1.0))
    return jnp.stack([jnp.clip(q + x, problem.lower, problem.upper) for x in (move, -move)])


def _bent(q, sides, problem, signal, slopes, evaluate):
    """The sides (P, 2, W) at which the signal is not what its slopes predict; else NaN."""
    starts = []
    for side in sides:
        expected = signal + sum(s * (b - a) for s, a, b in zip(slopes, q, side, strict=True))
        off = jnp.max(jnp.abs(evaluate(side) - expected) / problem.sigma, axis=0)
        starts.append(jnp.where(off > BENT, side, jnp.nan))
    return jnp.stack(starts, axis=1)


@eqx.filter_jit
def _predicted(noise, q, problem, signal, slopes):
    return propose(rows(q), gauss_newton(noise, problem, signal, slopes), 0.0, problem)[1]


def _outcome(state: State) -> tuple[Array, ...]:
    q = jnp.stack(state.q)
    return q, state.damping, state.best.nll, state.iterations, state.outcome.astype(jnp.int8)


def uncertainty(
    noise: NoiseModel,
    signal: Float[Array | np.ndarray, "M W"],
    slopes: Sequence[Float[Array | np.ndarray, "M W"]],
    problem: Problem,
    free: Bool[Array | np.ndarray, "P W"],
    chosen: Bool[Array | np.ndarray, "P W"],
) -> tuple[Float[Array, "P W"], Float[Array, " W"], Float[Array, " W"]]:
    """The standard errors from the Fisher information, √(χ² / (M - P)), and the gain of the signal.

    A parameter on a bound (not `free`) is held fixed and has no standard error (NaN); a parameter
    that the data do not determine has an infinite one. Where the likelihood rises significantly
    beyond a bound that is a choice (`chosen`), parameters that it shifts have none either: a score
    test, whose statistic is chi-square with one degree of freedom if the truth is inside.

    The gain is the nll without any signal minus that of the fit.

    Source: Rao 1948, doi:10.1017/S0305004100023987 (score test).
    """
    size = len(slopes)
    of = _errors_of_many if size > many.UNROLLED else _errors
    errors = of(noise, signal, slopes, problem, free, chosen)
    nll = noise.nll(signal, problem.data, problem.sigma)
    silent = noise.nll(jnp.zeros_like(signal), problem.data, problem.sigma)
    left = residual(noise, signal, problem.data, problem.sigma, size)
    return errors, left, total(silent - nll)


def _errors(noise, signal, slopes, problem, free, chosen) -> Float[Array, "P W"]:
    """The standard errors of `uncertainty`."""
    size = len(slopes)
    root = jnp.sqrt(jnp.maximum(noise.information(signal, problem.sigma), 0))
    columns = [root * slope for slope in slopes]
    scale = [jnp.sqrt(total(column * column)) for column in columns]
    informed = [length > 0 for length in scale]
    scale = [jnp.where(seen, length, 1.0) for seen, length in zip(informed, scale, strict=True)]
    columns = [column / length for column, length in zip(columns, scale, strict=True)]
    inside = [jnp.where(free[i], column, 0.0) for i, column in enumerate(columns)]
    fixed = [jnp.where(free[i], 0.0, column) for i, column in enumerate(columns)]
    seen = [free[i] & informed[i] for i in range(size)]
    factor, across = {}, {}
    for k in range(size):  # Gram-Schmidt: inside = Q R, fixed = Q S + rest
        factor[k, k] = jnp.sqrt(total(inside[k] * inside[k]))
        factor[k, k] = jnp.where(seen[k], jnp.maximum(factor[k, k], UNDETERMINED), 1.0)
        axis = inside[k] / factor[k, k]
        for j in range(size):
            if j > k:
                factor[k, j] = total(axis * inside[j])
                inside[j] = inside[j] - factor[k, j] * axis
            if j != k:
                across[k, j] = total(axis * fixed[j])
                fixed[j] = fixed[j] - across[k, j] * axis
    inverse = {}
    for j in range(size):
        inverse[j, j] = 1 / factor[j, j]
        for i in reversed(range(j)):
            known = sum(factor[i, k] * inverse[k, j] for k in range(i + 1, j + 1))
            inverse[i, j] = -known / factor[i, i]
    deviation = [jnp.sqrt(sum(inverse[i, j] ** 2 for j in range(i, size))) for i in range(size)]
    score, _ = noise.score_and_curvature(signal, problem.data, problem.sigma)
    shifted = [jnp.zeros_like(free[0], bool) for _ in range(size)]
    for i in range(size):  # a bound: how far beyond it is the optimum, and what moves with it?
        rest = jnp.maximum(total(fixed[i] * fixed[i]), 1e-7)
        slope = total(score * slopes[i]) / scale[i]
        rejected = chosen[i] & (slope * slope > SIGNIFICANT * rest)
        for k in range(size):
            if k != i:
                moves = sum(inverse[k, j] * across[j, i] for j in range(k, size) if j != i)
                shift = jnp.abs(moves * slope / rest)
                shifted[k] |= rejected & (shift > SHIFTED * deviation[k])
    errors = []
    for i in range(size):
        determined = seen[i] & (deviation[i] < 0.5 / UNDETERMINED)
        error = jnp.where(determined, deviation[i] / scale[i], jnp.inf)
        errors.append(jnp.where(free[i] & ~shifted[i], error, jnp.nan))
    return jnp.stack(errors)


def _errors_of_many(noise, signal, slopes, problem, free, chosen) -> Float[Array, "P W"]:
    """The same for many parameters, in arrays."""
    slopes = jnp.asarray(slopes)
    root = jnp.sqrt(jnp.maximum(noise.information(signal, problem.sigma), 0))
    columns = root * slopes
    scale = jnp.sqrt(jnp.sum(columns * columns, axis=1))
    informed = scale > 0
    scale = jnp.where(informed, scale, 1.0)
    columns = columns / scale[:, None]
    inside = jnp.where(free[:, None], columns, 0.0)
    fixed = jnp.where(free[:, None], 0.0, columns)
    seen = free & informed
    inverse, across, rest = many.orthogonalise(inside, fixed, seen, UNDETERMINED)
    deviation = jnp.sqrt(jnp.sum(inverse * inverse, axis=1))
    score, _ = noise.score_and_curvature(signal, problem.data, problem.sigma)
    rest = jnp.maximum(jnp.sum(rest * rest, axis=1), 1e-7)
    slope = jnp.sum(score * slopes, axis=1) / scale
    rejected = chosen & (slope * slope > SIGNIFICANT * rest)
    moves = jnp.einsum("kjw,jiw->kiw", inverse, across, precision="highest")
    shift = jnp.abs(moves * slope / rest)
    other = ~jnp.eye(len(slopes), dtype=bool)[..., None]
    shifted = jnp.any(other & rejected & (shift > SHIFTED * deviation[:, None]), axis=1)
    determined = seen & (deviation < 0.5 / UNDETERMINED)
    errors = jnp.where(determined, deviation / scale, jnp.inf)
    return jnp.where(free & ~shifted, errors, jnp.nan)


def residual(
    noise: NoiseModel,
    signal: Float[Array | np.ndarray, "M W"],
    data: Float[Array | np.ndarray, "M W"],
    sigma: Float[Array | np.ndarray, "#M W"],
    parameters: int,
) -> Float[Array, " W"]:
    """√(χ² / (M - P)) over the measurements that are not left out: about 1 for a good fit."""
    expected, variance = (moment(signal, sigma) for moment in (noise.mean, noise.variance))
    terms, freedom = (data - expected) ** 2 / variance, max(1, len(signal) - parameters)
    if jnp.ndim(sigma) == 2 and len(sigma) > 1:
        used = sigma < 0.5 * NO_WEIGHT  # which rounds to less in float32
        terms = jnp.where(used, terms, 0)
        freedom = jnp.maximum(1, used.sum(axis=0) - parameters)
    return jnp.sqrt(total(terms) / freedom)


_uncertainty = eqx.filter_jit(uncertainty)


@eqx.filter_jit
def _step(engine: BlackBox, state, problem, signal, slopes):
    return step(state, gauss_newton(engine.noise, problem, signal, slopes), problem, engine.stop)
