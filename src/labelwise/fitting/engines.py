"""The two ways to advance a batch of fits: one compiled program, or steps around a black box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.fitting.newton import (
    Problem,
    State,
    Stop,
    Symmetric,
    advance,
    cholesky,
    cholesky_solve,
    judge,
    lower_triangle,
    normal_equations,
    propose,
    slopes,
)
from labelwise.models.base import SignalModel, acquisition_names, within
from labelwise.noise import NoiseModel
from labelwise.types import Parameter

STEPS = 5
"""Iterations between two harvests: more waste work on finished fits, fewer on the host."""
DIFFERENCE = 1e-3
"""Half-width of a finite difference, as a share of the bounds' width."""

Unit = tuple[float, ...]
"""The length of one coordinate in each parameter's own unit: q = parameter / unit."""


class Engine(Protocol):
    """What the fitter needs to know of a model under a noise model."""

    @property
    def unit(self) -> Unit:
        """The length of one coordinate in each parameter's own unit."""
        ...

    def advance(self, state: State, problem: Problem) -> State:
        """Take a batch of fits a few iterations further."""
        ...

    def describe(
        self, q: Array | np.ndarray, problem: Problem, free: Array | np.ndarray
    ) -> tuple[Array, Array]:
        """Standard errors (P, W) in coordinates, and residuals (W,), of a finished batch."""
        ...


@dataclass(frozen=True)
class Compiled:
    """A differentiable model: the whole iteration is one program."""

    model: SignalModel
    noise: NoiseModel
    unit: Unit
    stop: Stop

    @cached_property
    def separable(self) -> bool:
        """Whether each measurement depends on its own settings only; found by trying."""
        return is_separable(self.model)

    def advance(self, state: State, problem: Problem) -> State:
        """See `Engine`."""
        setting = (self.model, self.noise, self.unit, self.separable, self.stop)
        return _advance(*setting, state, problem)

    def describe(self, q, problem, free):
        """See `Engine`."""
        return _describe(self.model, self.noise, self.unit, self.separable, q, problem, free)


@dataclass(frozen=True)
class BlackBox:
    """A model in NumPy: only its signal is asked for, slopes are finite differences.

    The differences are central in coordinates scaled by the bounds and one-sided on a bound, so
    that the model is never called outside its bounds.
    """

    model: SignalModel
    noise: NoiseModel
    unit: Unit
    stop: Stop

    def advance(self, state: State, problem: Problem) -> State:
        """See `Engine`."""
        for _ in range(STEPS):
            trial, promised = _propose(state, problem)
            signal, slopes = self._evaluate(np.stack(trial), problem)
            state = _judge(self.noise, self.stop, state, trial, promised, problem, signal, slopes)
        return state

    def describe(self, q, problem, free):
        """See `Engine`."""
        return _uncertainty(self.noise, *self._evaluate(q, problem), problem, free)

    def _evaluate(self, q: np.ndarray, problem: Problem) -> tuple[np.ndarray, list[np.ndarray]]:
        slopes = []
        for index in range(len(q)):
            ahead, behind = q.copy(), q.copy()
            ahead[index] = np.minimum(q[index] + DIFFERENCE, problem.upper[index])
            behind[index] = np.maximum(q[index] - DIFFERENCE, problem.lower[index])
            width = ahead[index] - behind[index]
            slopes.append((self._signal(ahead) - self._signal(behind)) / width)
        return self._signal(q), slopes

    def _signal(self, q: np.ndarray) -> Float[np.ndarray, "M W"]:
        params = q.astype(float) * np.array(self.unit)[:, None]
        if self.model.vectorized:
            signal = np.asarray(self.model.signal(*params[:, :, None])).T
        else:  # a batch may repeat voxels to fill its width
            distinct, lanes = np.unique(params, axis=1, return_inverse=True)
            columns = [np.asarray(self.model.signal(*voxel)) for voxel in distinct.T]
            signal = np.stack(columns, axis=-1)[:, lanes]
        return signal.astype(q.dtype)


def make_engine(
    model: SignalModel, noise: NoiseModel, parameters: tuple[Parameter, ...], stop: Stop
) -> Engine:
    """The engine that a model asks for; coordinates are scaled by the bounds' width."""
    widths = [p.bounds[1] - p.bounds[0] for p in parameters]
    unit = tuple(width if np.isfinite(width) else 1.0 for width in widths)
    return (Compiled if model.differentiable else BlackBox)(model, noise, unit, stop)


def is_separable(model: SignalModel) -> bool:
    """Whether the signal of each measurement depends on its own settings only."""
    params = [within(p.bounds, 0.4) for p in model.parameters]
    together = np.asarray(model.signal(*params))
    try:
        alone = np.asarray(_measurement_by_measurement(model)(*params))
    except (TypeError, ValueError, IndexError):  # the equation needs the whole array
        return False
    return alone.shape == together.shape and np.allclose(alone, together, rtol=1e-4, atol=1e-6)


def batched_signal(model: SignalModel, unit: Unit, separable: bool) -> Callable[..., Array]:
    """signal(*q) of a batch: (M, W) from P rows (W,).

    Mapping over the measurements too makes the voxels the last axis of every intermediate array.
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
def _describe(model, noise, unit, separable, q, problem, free):
    signal = batched_signal(model, unit, separable)
    rows = tuple(q)
    return uncertainty(noise, signal(*rows), slopes(signal, rows), problem, free)


def uncertainty(
    noise: NoiseModel,
    signal: Float[Array | np.ndarray, "M W"],
    slopes: Sequence[Float[Array | np.ndarray, "M W"]],
    problem: Problem,
    free: Bool[Array | np.ndarray, "P W"],
) -> tuple[Float[Array, "P W"], Float[Array, " W"]]:
    """Standard errors from the Fisher information, and √(Σ misfit² / (M - P)), misfit in sigmas.

    A parameter that is not `free` (it lies on a bound) is held fixed and has no standard error
    (NaN); one that the data do not determine has an infinite one.
    """
    size = len(slopes)
    information = noise.information(signal, problem.sigma)
    fisher: Symmetric = {}
    for i, j in lower_triangle(size):
        entry = jnp.sum(information * slopes[i] * slopes[j], axis=0)
        fisher[i, j] = jnp.where(free[i] & free[j], entry, 1.0 if i == j else 0.0)
    scale = [jnp.sqrt(jnp.maximum(fisher[i, i], 1e-30)) for i in range(size)]
    fisher = {(i, j): entry / (scale[i] * scale[j]) for (i, j), entry in fisher.items()}
    factor = cholesky(fisher, size)
    errors = []
    for i in range(size):
        axis = [jnp.full_like(scale[0], float(k == i)) for k in range(size)]
        variance = cholesky_solve(factor, axis)[i]
        determined = (variance > 0) & (variance < 1e5)
        error = jnp.where(determined, jnp.sqrt(jnp.abs(variance)) / scale[i], jnp.inf)
        errors.append(jnp.where(free[i], error, jnp.nan))
    misfit = (problem.data - noise.mean(signal, problem.sigma)) / problem.sigma
    freedom = max(1, len(signal) - size)
    return jnp.stack(errors), jnp.sqrt(jnp.sum(misfit**2, axis=0) / freedom)


_propose = eqx.filter_jit(propose)
_uncertainty = eqx.filter_jit(uncertainty)


@eqx.filter_jit
def _judge(noise, stop, state, trial, promised, problem, signal, slopes):
    evaluated = normal_equations(noise, problem, signal, slopes)
    return judge(state, trial, promised, evaluated, stop)
