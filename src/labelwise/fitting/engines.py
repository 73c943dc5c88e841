"""Two ways to advance a batch of fits: one compiled program, or steps around a black box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.stats import chi2

from labelwise import interrupts
from labelwise.fitting.newton import (
    Problem,
    State,
    Stop,
    Symmetric,
    advance,
    cholesky,
    cholesky_solve,
    entry,
    lower_triangle,
    normal_equations,
    propose,
    slopes,
    update,
)
from labelwise.models.base import SignalModel, acquisition_names, within
from labelwise.noise import NoiseModel
from labelwise.types import Parameter

STEPS = 5
"""Iterations in a call: more waste work on finished fits, fewer increase the overhead."""
DIFFERENCE = 1e-4
"""Half-width of a finite difference, as a fraction of the width of the bounds."""
NO_WEIGHT = 1e15
"""The sigma of a measurement that is left out, where signals are about 1: its square is finite."""
SIGNIFICANT = float(chi2.ppf(0.95, 1))
"""Twice a difference in nll that is significant: 3.84."""
SHIFTED = 0.5
"""A parameter that a bound shifts by more standard errors than this has none."""

Unit = tuple[float, ...]
"""The length of one coordinate in each parameter's own unit: q = parameter / unit."""


class Engine(Protocol):
    """Iterations and standard errors of fits of a model under a noise model."""

    @property
    def unit(self) -> Unit:
        """The length of one coordinate in each parameter's own unit."""
        ...

    def advance(self, state: State, problem: Problem) -> State:
        """Advance a batch of fits by a few iterations."""
        ...

    def describe(
        self,
        q: Array | np.ndarray,
        problem: Problem,
        free: Array | np.ndarray,
        chosen: Array | np.ndarray,
    ) -> tuple[Array, Array, Array]:
        """Standard errors (P, W) in coordinates, residuals (W,) and gains (W,) of finished fits."""
        ...

    def decrease(self, q: Array | np.ndarray, problem: Problem) -> Array:
        """The decrease of the nll (W,) that one undamped step from q predicts."""
        ...


@dataclass(frozen=True)
class Compiled:
    """A differentiable model: an iteration is one compiled program."""

    model: SignalModel
    noise: NoiseModel
    unit: Unit
    stop: Stop
    separable: bool

    def advance(self, state: State, problem: Problem) -> State:
        """See `Engine`."""
        setting = (self.model, self.noise, self.unit, self.separable, self.stop)
        return _advance(*setting, state, problem)

    def describe(self, q, problem, free, chosen):
        """See `Engine`."""
        setting = (self.model, self.noise, self.unit, self.separable)
        return _describe(*setting, q, problem, free, chosen)

    def decrease(self, q, problem):
        """See `Engine`."""
        return _decrease(self.model, self.noise, self.unit, self.separable, q, problem)


@dataclass(frozen=True)
class BlackBox:
    """A model in NumPy: only its signal is evaluated, and slopes are finite differences.

    Differences are central, in coordinates scaled by the bounds, and one-sided at a bound, so that
    the model is never evaluated outside its bounds. They are computed in float64.
    """

    model: SignalModel
    noise: NoiseModel
    unit: Unit
    stop: Stop

    def advance(self, state: State, problem: Problem) -> State:
        """See `Engine`."""
        for _ in range(STEPS):
            trial, predicted = _propose(state, problem)
            signal, slopes = self._evaluate(np.stack(trial), problem)
            state = _update(self.noise, self.stop, state, trial, predicted, problem, signal, slopes)
        return state

    def describe(self, q, problem, free, chosen):
        """See `Engine`."""
        return _uncertainty(self.noise, *self._evaluate(q, problem), problem, free, chosen)

    def decrease(self, q, problem):
        """See `Engine`."""
        return _predicted(self.noise, q, problem, *self._evaluate(q, problem))

    def _evaluate(self, q: np.ndarray, problem: Problem) -> tuple[np.ndarray, list[np.ndarray]]:
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
        params = q * np.array(self.unit)[:, None]
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
    model: SignalModel, noise: NoiseModel, parameters: tuple[Parameter, ...], stop: Stop
) -> Engine:
    """The engine for a model; coordinates are scaled by the width of the bounds."""
    widths = [p.bounds[1] - p.bounds[0] for p in parameters]
    unit = tuple(width if np.isfinite(width) else 1.0 for width in widths)
    if not model.differentiable:
        return BlackBox(model, noise, unit, stop)
    return Compiled(model, noise, unit, stop, is_separable(model))


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


def batched_signal(model: SignalModel, unit: Unit, separable: bool) -> Callable[..., Array]:
    """The function signal(*q) of a batch: (M, W) from P rows (W,).

    Mapping over the measurements, too, makes the voxels the last axis of every intermediate array.
    """

    def signal(*q):
        params = [x * u for x, u in zip(q, unit, strict=True)]
        if not separable:
            return jax.vmap(model.signal, out_axes=-1)(*params)
        return _measurement_by_measurement(model, jax.vmap)(*params)

    return signal


def _measurement_by_measurement(
    model: SignalModel, over_voxels: Callable = lambda f: f
) -> Callable[..., Array]:
    names = acquisition_names(type(model))

    def measurement(settings, *params):
        def one_voxel(*scalars):
            single = eqx.tree_at(lambda m: [getattr(m, name) for name in names], model, settings)
            return single.signal(*scalars)

        return over_voxels(one_voxel)(*params)

    def signal(*params):
        settings = [jnp.asarray(getattr(model, name)) for name in names]
        return jax.vmap(measurement, in_axes=(0, *[None] * len(params)))(settings, *params)

    return signal


@eqx.filter_jit
def _advance(model, noise, unit, separable, stop, state, problem):
    signal = batched_signal(model, unit, separable)
    return advance(signal, noise, state, problem, stop, STEPS)


@eqx.filter_jit
def _describe(model, noise, unit, separable, q, problem, free, chosen):
    signal = batched_signal(model, unit, separable)
    rows = tuple(q)
    return uncertainty(noise, signal(*rows), slopes(signal, rows), problem, free, chosen)


@eqx.filter_jit
def _decrease(model, noise, unit, separable, q, problem):
    signal = batched_signal(model, unit, separable)
    rows = tuple(q)
    return _predicted(noise, q, problem, signal(*rows), slopes(signal, rows))


@eqx.filter_jit
def _predicted(noise, q, problem, signal, slopes):
    nll, gradient, hessian = normal_equations(noise, problem, signal, slopes)
    none = jnp.zeros_like(nll)
    rows = jnp.stack(gradient), jnp.stack(list(hessian.values()))
    return propose(State(q, nll, *rows, none, none, none), problem)[1]


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
    information = noise.information(signal, problem.sigma)
    full: Symmetric = {
        (i, j): jnp.sum(information * slopes[i] * slopes[j], axis=0)
        for i, j in lower_triangle(size)
    }
    informed = [free[i] & (full[i, i] > 0) for i in range(size)]
    scale = [jnp.sqrt(jnp.where(full[i, i] > 0, full[i, i], 1.0)) for i in range(size)]
    full = {(i, j): value / (scale[i] * scale[j]) for (i, j), value in full.items()}
    fisher = {
        (i, j): jnp.where(informed[i] & informed[j], value, float(i == j))
        for (i, j), value in full.items()
    }
    factor = cholesky(fisher, size, floor=1e-13)
    variances = []
    for i in range(size):
        axis = [jnp.full_like(scale[0], float(k == i)) for k in range(size)]
        variances.append(cholesky_solve(factor, axis)[i])
    score, _ = noise.score_and_curvature(signal, problem.data, problem.sigma)
    shifted = [jnp.zeros_like(free[0], bool) for _ in range(size)]
    for i in range(size):  # a bound: how far beyond it is the optimum, and what moves with it?
        across = [
            jnp.where(informed[k], entry(full, i, k), 0.0) if k != i else jnp.zeros_like(scale[0])
            for k in range(size)
        ]
        moves = cholesky_solve(factor, across)
        rest = full[i, i] - sum(a * b for a, b in zip(across, moves, strict=True))
        slope = jnp.sum(score * slopes[i], axis=0) / scale[i]
        rest = jnp.maximum(rest, 1e-9)
        rejected = chosen[i] & (slope * slope > SIGNIFICANT * rest)
        for k in range(size):
            shift = jnp.abs(moves[k] * slope / rest)
            shifted[k] |= rejected & (shift > SHIFTED * jnp.sqrt(variances[k]))
    errors = []
    for i, variance in enumerate(variances):
        determined = informed[i] & (variance < 1e12)
        error = jnp.where(determined, jnp.sqrt(jnp.abs(variance)) / scale[i], jnp.inf)
        errors.append(jnp.where(free[i] & ~shifted[i], error, jnp.nan))
    nll = jnp.sum(noise.nll(signal, problem.data, problem.sigma), axis=0)
    silent = jnp.sum(noise.nll(jnp.zeros_like(signal), problem.data, problem.sigma), axis=0)
    left = residual(noise, signal, problem.data, problem.sigma, size)
    return jnp.stack(errors), left, silent - nll


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
    return jnp.sqrt(jnp.sum(terms, axis=0) / freedom)


_propose = eqx.filter_jit(propose)
_uncertainty = eqx.filter_jit(uncertainty)


@eqx.filter_jit
def _update(noise, stop, state, trial, predicted, problem, signal, slopes):
    evaluated = normal_equations(noise, problem, signal, slopes)
    return update(state, trial, predicted, evaluated, stop)
