"""Damped Newton iterations within bounds, for a batch of voxels.

Minimises the negative log-likelihood of each voxel over a box. One iteration solves the quadratic
model of the likelihood inside the box (Levenberg-Marquardt damping, active bounds), evaluates the
likelihood once at the proposed point, and accepts the point if the likelihood improved.

Voxels are the last axis, so that XLA vectorises over them, and small symmetric systems are unrolled
(batched `jnp.linalg.solve` is much slower). Coordinates q are
parameters divided by their unit of length, the width of their bounds.

Source: Nocedal & Wright 2006, chapters 10 and 16, doi:10.1007/978-0-387-40065-5.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from labelwise.noise import NoiseModel

Rows = tuple[Float[Array, " W"], ...]
"""One array over the W voxels of the batch for each of P parameters."""
Symmetric = dict[tuple[int, int], Float[Array, " W"]]
"""The lower triangle of a P x P matrix, by (row, column), each entry over the batch."""

RUNNING, CONVERGED, STUCK = 0, 1, 2


class Problem(NamedTuple):
    """The data, noise and bounds of W voxels."""

    data: Float[Array | np.ndarray, "M W"]
    sigma: Float[Array | np.ndarray, "#M W"]
    lower: Float[Array | np.ndarray, "P W"]
    upper: Float[Array | np.ndarray, "P W"]


class State(NamedTuple):
    """The state of W fits. A new fit has `nll` = inf and is evaluated by its first step."""

    q: Float[Array | np.ndarray, "P W"]
    nll: Float[Array | np.ndarray, " W"]
    gradient: Float[Array | np.ndarray, "P W"]
    hessian: Float[Array | np.ndarray, "T W"]
    damping: Float[Array | np.ndarray, " W"]
    iterations: Int[Array | np.ndarray, " W"]
    outcome: Int[Array | np.ndarray, " W"]


class Stop(NamedTuple):
    """The stopping criteria of a fit."""

    tolerance: float
    """A fit is CONVERGED when the predicted decrease of the nll is smaller than this."""
    max_iterations: int
    """After this number of iterations a fit ends and remains RUNNING."""


def lower_triangle(size: int) -> list[tuple[int, int]]:
    """The (row, column) pairs of a symmetric matrix's lower triangle, in storage order."""
    return [(i, j) for i in range(size) for j in range(i + 1)]


def normal_equations(
    noise: NoiseModel,
    problem: Problem,
    signal: Float[Array | np.ndarray, "M W"],
    slopes: Sequence[Array | np.ndarray],
) -> tuple[Array, Rows, Symmetric]:
    """The nll, its gradient and its positive Hessian, from signal and slopes d signal / d q."""
    nll = jnp.sum(noise.nll(signal, problem.data, problem.sigma), axis=0)
    score, curvature = noise.score_and_curvature(signal, problem.data, problem.sigma)
    gradient = tuple(jnp.sum(score * slope, axis=0) for slope in slopes)
    hessian = {
        (i, j): jnp.sum(curvature * slopes[i] * slopes[j], axis=0)
        for i, j in lower_triangle(len(slopes))
    }
    return nll, gradient, hessian


def propose(state: State, problem: Problem) -> tuple[Rows, Array]:
    """The next trial point inside the box, and the predicted decrease of the nll."""
    size = len(state.q)
    q, gradient = tuple(state.q), tuple(state.gradient)
    hessian = dict(zip(lower_triangle(size), state.hessian, strict=True))
    down = [lower - x for lower, x in zip(problem.lower, q, strict=True)]
    up = [upper - x for upper, x in zip(problem.upper, q, strict=True)]
    damped = {
        (i, j): value * (1 + state.damping) + 1e-12 if i == j else value
        for (i, j), value in hessian.items()
    }
    free = [
        ~(((down[i] >= 0) & (gradient[i] > 0)) | ((up[i] <= 0) & (gradient[i] < 0)))
        for i in range(size)
    ]
    step = [jnp.zeros_like(x) for x in q]
    # A parameter whose step leaves the box is fixed on the bound, and the others are solved again;
    # see docs/decisions/0002-solve-the-box-in-every-step.md.
    for _ in range(3):
        matrix = {
            (i, j): jnp.where(free[i], value, 1.0)
            if i == j
            else jnp.where(free[i] & free[j], value, 0.0)
            for (i, j), value in damped.items()
        }
        target = [
            jnp.where(
                free[i],
                -gradient[i]
                - sum(
                    jnp.where(free[k], 0.0, entry(damped, i, k) * step[k])
                    for k in range(size)
                    if k != i
                ),
                step[i],
            )
            for i in range(size)
        ]
        solution = cholesky_solve(cholesky(matrix, size), target)
        step = [jnp.clip(x, down[i], up[i]) for i, x in enumerate(solution)]
        free = [free[i] & (step[i] == solution[i]) for i in range(size)]
    predicted = jnp.zeros_like(state.nll)
    for (i, j), value in hessian.items():
        predicted -= (0.5 if i == j else 1.0) * value * step[i] * step[j]
    for slope, distance in zip(gradient, step, strict=True):
        predicted -= slope * distance
    trial = tuple(
        jnp.clip(x + s, lower, upper)
        for x, s, lower, upper in zip(q, step, problem.lower, problem.upper, strict=True)
    )
    return trial, predicted


def update(
    state: State,
    trial: Rows,
    predicted: Array,
    evaluated: tuple[Array, Rows, Symmetric],
    stop: Stop,
) -> State:
    """Accept trial points that improve the nll, adapt the damping, and stop finished fits.

    A fit has converged when the predicted decrease of a weakly damped step is below the tolerance,
    or when no step improves the nll any more, however short (at a kink, or at the precision of the
    numbers). It is STUCK if the likelihood or its slopes are not finite, so that there is no step.
    """
    nll, gradient, hessian = evaluated
    running = (state.outcome == RUNNING) & (state.iterations < stop.max_iterations)
    fresh = jnp.isinf(state.nll)
    rounding = 8 * jnp.finfo(nll.dtype).eps * jnp.abs(nll)
    decrease = state.nll - nll
    better = running & (fresh | (predicted >= 0)) & (decrease >= -rounding)
    gain = decrease / jnp.maximum(predicted, 1e-12)
    factor = jnp.where(gain > 0.75, 0.1, jnp.where(gain < 0.25, 4.0, 1.0))
    damping = state.damping * jnp.where(fresh & better, 1.0, jnp.where(better, factor, 8.0))
    negligible = (predicted >= 0) & (predicted < stop.tolerance + rounding) & (state.damping <= 0.1)
    stuck = state.damping > 1e7
    stopped = (negligible & ~fresh) | stuck
    end = jnp.where(stuck & ~jnp.isfinite(state.nll + predicted), STUCK, CONVERGED)
    return State(
        q=_choose(better, trial, state.q),
        nll=jnp.where(better, nll, state.nll),
        gradient=_choose(better, gradient, state.gradient),
        hessian=_choose(better, hessian.values(), state.hessian),
        damping=jnp.where(running, jnp.maximum(damping, 1e-7), state.damping),
        iterations=state.iterations + running,
        outcome=jnp.where(running & stopped, end, state.outcome),
    )


def advance(
    signal: Callable[..., Float[Array, "M W"]],
    noise: NoiseModel,
    state: State,
    problem: Problem,
    stop: Stop,
    steps: int,
) -> State:
    """Take `steps` iterations with a differentiable batched `signal(*q)`."""

    def iterate(_, state: State) -> State:
        trial, predicted = propose(state, problem)
        evaluated = normal_equations(noise, problem, signal(*trial), slopes(signal, trial))
        return update(state, trial, predicted, evaluated, stop)

    return jax.lax.fori_loop(0, steps, iterate, state)


def slopes(signal: Callable[..., Float[Array, "M W"]], at: Rows) -> list[Float[Array, "M W"]]:
    """d signal / d q for each of the P coordinates, by forward-mode differentiation."""

    def along(index: int) -> Array:
        def moved(x):
            return signal(*at[:index], x, *at[index + 1 :])

        return jax.jvp(moved, (at[index],), (jnp.ones_like(at[index]),))[1]

    return [along(index) for index in range(len(at))]


def cholesky(matrix: Symmetric, size: int, floor: float = 1e-6) -> Symmetric:
    """L with L Lᵀ = matrix, unrolled over a small size.

    Pivots that rounding makes negative or tiny are raised to `floor` times the diagonal. The
    divisions matter: XLA stores a quotient but recomputes a product wherever it is used, so that
    multiplication by inverted pivots is much slower.
    """
    factor: Symmetric = {}
    for j in range(size):
        pivot = matrix[j, j] - sum(factor[j, k] ** 2 for k in range(j))
        factor[j, j] = jnp.sqrt(jnp.maximum(pivot, floor * matrix[j, j]))
        for i in range(j + 1, size):
            rest = matrix[i, j] - sum(factor[i, k] * factor[j, k] for k in range(j))
            factor[i, j] = rest / factor[j, j]
    return factor


def cholesky_solve(factor: Symmetric, target: list[Array]) -> list[Array]:
    """x with L Lᵀ x = target."""
    size = len(target)
    half: list[Array] = []
    for i in range(size):
        rest = target[i] - sum(factor[i, k] * half[k] for k in range(i))
        half.append(rest / factor[i, i])
    solution = half[:]
    for i in reversed(range(size)):
        rest = half[i] - sum(factor[k, i] * solution[k] for k in range(i + 1, size))
        solution[i] = rest / factor[i, i]
    return solution


def entry(matrix: Symmetric, i: int, j: int) -> Array:
    """An entry of a symmetric matrix."""
    return matrix[max(i, j), min(i, j)]


def _choose(condition: Array, new, old) -> Array:
    return jnp.stack([jnp.where(condition, a, b) for a, b in zip(new, old, strict=True)])
