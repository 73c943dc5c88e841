"""Damped Newton iterations within bounds, for a batch of voxels.

Minimises the negative log-likelihood of each voxel over a box. One iteration evaluates the
likelihood at the proposed point, accepts it if the likelihood improved, and solves the quadratic
model of the likelihood inside the box for the next point (Levenberg-Marquardt damping, active
bounds). The Hessian is exact where it is positive; elsewhere, the curvature of the signal is left
out of it (Gauss-Newton).

Voxels are the last axis, so that XLA vectorises over them, and small symmetric systems are unrolled
(batched `jnp.linalg.solve` is much slower). For many parameters, arrays take the place of the rows,
and the Hessian is always that of Gauss-Newton; see `many`. Coordinates q are parameters divided by
the width of their bounds, or the logarithm of those whose bounds span a large ratio.

Source: Nocedal & Wright 2006, chapters 10 and 16, doi:10.1007/978-0-387-40065-5.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from labelwise.fitting import many
from labelwise.fitting.compiler import kernels_are_fused
from labelwise.noise import NoiseModel

Rows = tuple[Float[Array, " W"], ...]
"""One array over the W voxels of the batch for each of P parameters; (P, W) if they are many."""
Symmetric = dict[tuple[int, int], Float[Array, " W"]]
"""The lower triangle of a P x P matrix, by (row, column), each entry over the batch; (P, P, W) if
the parameters are many."""
Signal = Callable[..., Float[Array, "M W"]]
"""The signal of a batch from P rows of coordinates."""
Expansion = tuple[Array, list[Array], dict[tuple[int, int], Array]]
"""The signal (m, W) of some measurements, its slopes and its second slopes."""
Expand = Callable[[Rows], Callable[[Array | int, int], Expansion]]
"""From coordinates to a function of the first measurement and their number m."""

RUNNING, CONVERGED, STUCK = 0, 1, 2
FLAT = 0.05
"""The least curvature of the nll of a measurement in its Gauss-Newton Hessian, in 1 / sigma²."""
STALLED = 12
"""A fit with kinks has converged if these iterations lower its nll by less than the tolerance."""
TOGETHER = 8
"""Measurements whose terms are added in one kernel, while they are in the registers; with more, the
terms go through memory, and an iteration takes up to five times as long. Without fused kernels
(`use_fused_kernels`) each sum is a kernel of its own, and products add all measurements."""
INDEFINITE = 1e-3
"""The exact Hessian is used if its pivots exceed this share of the Gauss-Newton diagonal."""


class Problem(NamedTuple):
    """The data, noise and bounds of W voxels."""

    data: Float[Array | np.ndarray, "M W"]
    sigma: Float[Array | np.ndarray, "#M W"]
    lower: Float[Array | np.ndarray, "P W"]
    upper: Float[Array | np.ndarray, "P W"]


class Evaluated(NamedTuple):
    """The nll of W voxels at a point, its gradient and a positive Hessian."""

    nll: Float[Array, " W"]
    gradient: Rows
    hessian: Symmetric


class Cut(NamedTuple):
    """The tangent at a rejected point, beyond a kink: its value and slope at q.

    And the last nll that was lower than the one before it by the tolerance, with its age.
    """

    nll: Float[Array, " W"]
    gradient: Rows
    reached: Float[Array, " W"]
    age: Int[Array, " W"]


class State(NamedTuple):
    """The state of W fits: the best point, what was found there, and the next point to try."""

    q: Rows
    best: Evaluated
    cut: Cut | None
    trial: Rows
    predicted: Float[Array, " W"]
    damping: Float[Array, " W"]
    iterations: Int[Array, " W"]
    outcome: Int[Array, " W"]


class Stop(NamedTuple):
    """The stopping criteria of a fit."""

    tolerance: float
    """A fit is CONVERGED when the predicted decrease of the nll is smaller than this."""
    max_iterations: int
    """After this number of iterations a fit ends and remains RUNNING."""


def lower_triangle(size: int) -> list[tuple[int, int]]:
    """The (row, column) pairs of a symmetric matrix's lower triangle, in storage order."""
    return [(i, j) for i in range(size) for j in range(i + 1)]


def rows(q: Float[Array | np.ndarray, "P W"]) -> Rows:
    """Coordinates as `Rows`; an array of many is indexed and iterated like a tuple of rows."""
    return tuple(q) if len(q) <= many.UNROLLED else jnp.asarray(q)  # type: ignore[return-value]


def begin(q: Rows, damping: Float[Array, " W"], kinked: bool = False) -> State:
    """The state of fits before their first evaluation, at q; kinked if the signal has kinks."""
    zero = jnp.zeros_like(damping)
    gradient: Any = (zero,) * len(q)
    hessian: Any = dict.fromkeys(lower_triangle(len(q)), zero)
    if len(q) > many.UNROLLED:
        gradient = jnp.zeros((len(q), *zero.shape), zero.dtype)
        hessian = jnp.zeros((len(q), *gradient.shape), zero.dtype)
    best = Evaluated(jnp.full_like(zero, jnp.inf), gradient, hessian)
    count = jnp.zeros(zero.shape, jnp.int32)
    cut = Cut(jnp.full_like(zero, -jnp.inf), best.gradient, best.nll, count) if kinked else None
    return State(q, best, cut, q, zero, damping, count, count)


def step(state: State, at_trial: Evaluated, problem: Problem, stop: Stop) -> State:
    """Accept trial points that improve the nll, stop finished fits, and propose the next points.

    A fit has converged when the predicted decrease of a weakly damped step is below the tolerance,
    or when no step improves the nll any more, however short (at the precision of the numbers). It
    is STUCK if the likelihood or its slopes are not finite, so that there is no step.
    """
    best, nll = state.best, at_trial.nll
    running, fresh = state.outcome == RUNNING, jnp.isinf(best.nll)
    rounding = 8 * jnp.finfo(nll.dtype).eps * jnp.abs(nll)
    decrease = best.nll - nll
    better = running & (fresh | (state.predicted >= 0)) & (decrease >= -rounding)
    gain = decrease / jnp.maximum(state.predicted, 1e-12)
    factor = jnp.where(gain > 0.75, 0.1, jnp.where(gain < 0.25, 4.0, 1.0))
    rejected = 8.0 if state.cut is None else 2.0  # with a tangent, the next step is another one
    factor = jnp.where(fresh & better, 1.0, jnp.where(better, factor, rejected))
    damping = jnp.where(running, jnp.maximum(state.damping * factor, 1e-7), state.damping)
    cut = state.cut and _cut(state.cut, state, at_trial, better)
    q = _choose(better, state.trial, state.q)
    best = Evaluated(
        jnp.where(better, nll, best.nll),
        _choose(better, at_trial.gradient, best.gradient),
        _choose(better, at_trial.hessian, best.hessian),
    )
    trial, predicted = propose(q, best, damping, problem, cut)
    rounding = 8 * jnp.finfo(nll.dtype).eps * jnp.abs(best.nll)
    negligible = (predicted >= 0) & (predicted < stop.tolerance + rounding) & (damping <= 0.1)
    hopeless = damping > 1e7
    failed = ~jnp.isfinite(best.nll + predicted)
    ended = (negligible & jnp.isfinite(best.nll)) | hopeless
    if cut is not None:  # from side to side of several kinks
        lower = best.nll < cut.reached - stop.tolerance
        reached = jnp.where(lower, best.nll, cut.reached)
        cut = cut._replace(reached=reached, age=jnp.where(lower, 0, cut.age + 1))
        ended |= cut.age >= STALLED
    outcome = jnp.where(hopeless & failed, STUCK, CONVERGED)
    # a step too short to need a test
    last = running & negligible & (predicted < 1e-4 + rounding) & jnp.isfinite(best.nll)
    return State(
        q=_choose(last, trial, q),
        best=best._replace(nll=jnp.where(last, best.nll - predicted, best.nll)),
        cut=cut,
        trial=trial,
        predicted=predicted,
        damping=damping,
        iterations=state.iterations + running,
        outcome=jnp.where(running & ended, outcome, state.outcome),
    )


def propose(
    q: Rows,
    at: Evaluated,
    damping: Float[Array, " W"] | float,
    problem: Problem,
    cut: Cut | None = None,
) -> tuple[Rows, Float[Array, " W"]]:
    """The minimum of the damped quadratic model in the box, and the predicted decrease of the nll.

    A parameter whose step leaves the box is fixed on the bound, and the others are solved again;
    see docs/decisions/0002-solve-the-box-in-every-step.md.
    """
    size, gradient = len(q), at.gradient
    if size > many.UNROLLED:
        arrays: Any = q, gradient, at.hessian, damping, problem.lower, problem.upper
        return many.propose(*arrays)
    down = [lower - x for lower, x in zip(problem.lower, q, strict=True)]
    up = [upper - x for upper, x in zip(problem.upper, q, strict=True)]
    damped = {
        (i, j): value * (1 + damping) + 1e-12 if i == j else value
        for (i, j), value in at.hessian.items()
    }
    free = [
        ~(((down[i] >= 0) & (gradient[i] > 0)) | ((up[i] <= 0) & (gradient[i] < 0)))
        for i in range(size)
    ]
    above = jnp.zeros_like(at.nll)
    if cut is not None:
        gradient, above = _across(at, cut, damped, free)
    move = [jnp.zeros_like(x) for x in q]
    for _ in range(3):
        free, move = _within_box(free, move, damped, gradient, down, up)
    predicted = above - sum(g * distance for g, distance in zip(gradient, move, strict=True))
    for (i, j), value in at.hessian.items():
        predicted -= (0.5 if i == j else 1.0) * value * move[i] * move[j]
    trial = tuple(
        jnp.clip(x + distance, lower, upper)
        for x, distance, lower, upper in zip(q, move, problem.lower, problem.upper, strict=True)
    )
    return trial, predicted


@jax.jit  # traced once for all passes and programs
def _within_box(free, move, damped: Symmetric, gradient, down, up):
    """Solve for the free parameters, and fix those whose move leaves the box on its bound."""
    size = len(move)
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
                jnp.where(free[k], 0.0, entry(damped, i, k) * move[k])
                for k in range(size)
                if k != i
            ),
            move[i],
        )
        for i in range(size)
    ]
    solution = solve_symmetric(matrix, target)
    move = [jnp.clip(x, down[i], up[i]) for i, x in enumerate(solution)]
    return [free[i] & (move[i] == solution[i]) for i in range(size)], move


def _cut(cut: Cut, state: State, at_trial: Evaluated, better) -> Cut:
    """The tangent at the last rejected point, as seen from the accepted one."""
    moved = [b - a for a, b in zip(state.q, state.trial, strict=True)]

    def along(gradient):
        return sum(g * distance for g, distance in zip(gradient, moved, strict=True))

    kept = cut.nll + along(cut.gradient)
    new = at_trial.nll - along(at_trial.gradient)
    new = jnp.where(jnp.isfinite(new), new, -jnp.inf)
    # one above the likelihood is no bound of it: the likelihood is not convex there
    new = jnp.where(new > state.best.nll, -jnp.inf, new)
    kept = jnp.where(kept > at_trial.nll, -jnp.inf, kept)
    gradient = _choose(better, cut.gradient, at_trial.gradient)
    return cut._replace(nll=jnp.where(better, kept, new), gradient=gradient)


def _across(at: Evaluated, cut: Cut, damped: Symmetric, free) -> tuple[Rows, Array]:
    """The slope of the larger of two tangents at the minimum of their damped quadratic model.

    At a kink the minimum lies where both are equal. The slope is their mean with weights w and
    1 - w from the dual problem, and the second result is how far the mean is below the likelihood.

    Source: Lemaréchal 1978, doi:10.1016/B978-0-08-022932-8.50010-5 (bundle methods).
    """
    size = len(at.gradient)
    matrix = {
        (i, j): jnp.where(free[i], value, 1.0)
        if i == j
        else jnp.where(free[i] & free[j], value, 0.0)
        for (i, j), value in damped.items()
    }
    known = jnp.isfinite(cut.nll)
    change = [jnp.where(known, b - a, 0.0) for a, b in zip(at.gradient, cut.gradient, strict=True)]
    inside = [jnp.where(free[i], change[i], 0.0) for i in range(size)]
    solved = solve_symmetric(matrix, inside)
    curved = sum(a * b for a, b in zip(inside, solved, strict=True))
    gap = jnp.where(known, cut.nll - at.nll, 0.0)
    weight = gap - sum(g * x for g, x in zip(at.gradient, solved, strict=True))
    weight = jnp.where(known & (curved > 0), weight / jnp.maximum(curved, 1e-30), 0.0)
    weight = jnp.clip(weight, 0.0, 1.0)
    gradient = tuple(g + weight * d for g, d in zip(at.gradient, change, strict=True))
    return gradient, -weight * gap


def gauss_newton(
    noise: NoiseModel,
    problem: Problem,
    signal: Float[Array | np.ndarray, "M W"],
    slopes: Sequence[Array | np.ndarray],
) -> Evaluated:
    """The likelihood from signal and slopes d signal / d q, with a Hessian that is never negative.

    It leaves the curvature of the signal out.
    """
    if len(slopes) > many.UNROLLED:
        return _of_many(noise, problem, signal, jnp.asarray(slopes))
    (nll, gradient, hessian), _, _ = _terms(noise, problem, signal, slopes)
    return Evaluated(total(nll), tuple(map(total, gradient)), jax.tree.map(total, hessian))


def evaluate(expand: Expand, noise: NoiseModel, q: Rows, problem: Problem) -> Evaluated:
    """The likelihood at q, with its exact Hessian where that is positive enough."""
    at, count = expand(q), len(problem.data)
    if len(q) > many.UNROLLED:
        return gauss_newton(noise, problem, *at(0, count)[:2])
    fused = kernels_are_fused()
    parts = -(-count // TOGETHER) if fused else 1
    size = -(-count // parts)

    def sums(part):
        first = jnp.minimum(part * size, count - size)
        signal, along, second = at(first, size)
        data, sigma = (rows_from(x, first, size) for x in (problem.data, problem.sigma))
        mine = problem._replace(data=data, sigma=sigma)
        (nll, gradient, rough), score, curvature = _terms(noise, mine, signal, along)
        exact = {
            (i, j): curvature * along[i] * along[j] + score * bend
            for (i, j), bend in second.items()
        }
        terms = (nll, tuple(gradient), rough, exact)
        if count % parts:  # the last measurements are also in the part before
            new = (first + np.arange(size) >= part * size)[:, None]
            terms = jax.tree.map(lambda rows: jnp.where(new, rows, 0.0), terms)
        return jax.tree.map(_added if fused else total, terms)

    def add(part, found):
        return jax.tree.map(jnp.add, found, sums(part))

    if parts == 1:
        found = sums(0)
    else:
        zero = jnp.zeros_like(q[0])
        none = dict.fromkeys(lower_triangle(len(q)), zero)
        found = (zero, (zero,) * len(q), none, none)
        found = jax.lax.fori_loop(0, parts, add, found)
    nll, gradient, rough, exact = found
    least = [INDEFINITE * rough[j, j] + 1e-20 for j in range(len(q))]
    pivots, _, _ = decompose(exact, least)
    positive = jnp.ones_like(nll, bool)
    for pivot, limit in zip(pivots, least, strict=True):
        positive &= pivot > limit
    hessian = {k: jnp.where(positive, exact[k], value) for k, value in rough.items()}
    return Evaluated(nll, gradient, hessian)


def rows_from(rows: Array | np.ndarray, first: Array | int, count: int) -> Array:
    """`count` rows from `first`; the only row if there is one for all measurements."""
    rows = jnp.asarray(rows)
    return rows if len(rows) == 1 else jax.lax.dynamic_slice_in_dim(rows, first, count)


def _of_many(noise, problem, signal, slopes: Float[Array, "P M W"]) -> Evaluated:
    """`gauss_newton` for many parameters; `many` takes its arrays in place of rows and entries."""
    (nll, _, _), score, curvature = _terms(noise, problem, signal, ())
    weighted = _positive(curvature, problem) * slopes
    gradient = jnp.sum(score * slopes, axis=1)
    hessian = jnp.einsum("imw,jmw->ijw", weighted, slopes, precision="highest")
    return Evaluated(total(nll), gradient, hessian)  # type: ignore[arg-type]


def _positive(curvature, problem):
    return jnp.maximum(curvature, FLAT / (problem.sigma * problem.sigma))


def _terms(noise, problem, signal, slopes):
    """The nll, its gradient and its Gauss-Newton Hessian; the score and curvature; by measurement.

    1 / sigma² as the curvature would always be positive, but converges more slowly (expectation
    maximisation).
    """
    nll = noise.nll(signal, problem.data, problem.sigma)
    score, curvature = noise.score_and_curvature(signal, problem.data, problem.sigma)
    positive = _positive(curvature, problem)
    hessian = {(i, j): positive * slopes[i] * slopes[j] for i, j in lower_triangle(len(slopes))}
    return (nll, [score * slope for slope in slopes], hessian), score, curvature


def _added(rows: Float[Array, "m W"]) -> Float[Array, " W"]:
    """The sum of a few rows, in the kernel that makes them."""
    return functools.reduce(operator.add, rows)


def total(rows: Any) -> Float[Array, " W"]:
    """The sum of (M, W) over the measurements, as a product.

    XLA does not vectorise several sums in one kernel.
    """
    return jnp.dot(jnp.ones(len(rows), rows.dtype), rows, precision="highest")


def newton(
    expand: Expand,
    noise: NoiseModel,
    q: Rows,
    damping: Float[Array, " W"],
    problem: Problem,
    stop: Stop,
    limit: Int[Array, ""] | int,
    kinked: bool = False,
) -> State:
    """At most `limit` iterations from q."""

    def unfinished(carry: tuple[Array, State]) -> Array:
        count, state = carry
        return (count < limit) & jnp.any(state.outcome == RUNNING)

    def iterate(carry: tuple[Array, State]) -> tuple[Array, State]:
        count, state = carry
        at_trial = evaluate(expand, noise, state.trial, problem)
        return count + 1, step(state, at_trial, problem, stop)

    return jax.lax.while_loop(unfinished, iterate, (jnp.int32(0), begin(q, damping, kinked)))[1]


def slopes(signal: Signal, at: Rows) -> list[Float[Array, "M W"]]:
    """d signal / d q for each of the P coordinates, by forward-mode differentiation."""
    if len(at) > many.UNROLLED:
        return many.slopes(signal, jnp.asarray(at))  # type: ignore[return-value]

    def along(index: int) -> Array:
        def moved(x):
            return signal(*at[:index], x, *at[index + 1 :])

        return jax.jvp(moved, (at[index],), (jnp.ones_like(at[index]),))[1]

    return [along(index) for index in range(len(at))]


def second_slopes(signal: Signal, at: Rows) -> dict[tuple[int, int], Float[Array, "M W"]]:
    """d² signal / d q_i d q_j for the pairs of the lower triangle."""
    zero, one = jnp.zeros_like(at[0]), jnp.ones_like(at[0])

    def along(i, j, t):
        def moved(u):
            shift = {i: t + u} if i == j else {i: t, j: u}
            return signal(*(x + shift[k] if k in shift else x for k, x in enumerate(at)))

        return jax.jvp(moved, (zero,), (one,))[1]

    return {
        (i, j): jax.jvp(lambda t, i=i, j=j: along(i, j, t), (zero,), (one,))[1]
        for i, j in lower_triangle(len(at))
    }


def decompose(
    matrix: Symmetric, least: Sequence[Array]
) -> tuple[list[Array], list[Array], Symmetric]:
    """The pivots D of matrix = L D Lᵀ, the same raised to at least `least`, and L; unrolled.

    The divisions matter: XLA stores a quotient but recomputes a product wherever it is used, so
    that multiplication by inverted pivots is much slower.
    """
    size = len(least)
    pivots, raised, factor = [], [], {}
    for j in range(size):
        pivots.append(matrix[j, j] - sum(factor[j, k] ** 2 * raised[k] for k in range(j)))
        raised.append(jnp.maximum(pivots[j], least[j]))
        for i in range(j + 1, size):
            rest = matrix[i, j] - sum(factor[i, k] * factor[j, k] * raised[k] for k in range(j))
            factor[i, j] = rest / raised[j]
    return pivots, raised, factor


@functools.partial(jax.jit, static_argnames="floor")
def solve_symmetric(matrix: Symmetric, target: list[Array], floor: float = 1e-6) -> list[Array]:
    """x with matrix x = target; pivots below `floor` times the diagonal are raised to it."""
    size = len(target)
    _, pivots, factor = decompose(matrix, [floor * matrix[j, j] for j in range(size)])
    half: list[Array] = []
    for i in range(size):
        half.append(target[i] - sum(factor[i, k] * half[k] for k in range(i)))
    solution = [x / pivot for x, pivot in zip(half, pivots, strict=True)]
    for i in reversed(range(size)):
        solution[i] -= sum(factor[k, i] * solution[k] for k in range(i + 1, size))
    return solution


def entry(matrix: Symmetric, i: int, j: int) -> Array:
    """An entry of a symmetric matrix."""
    return matrix[max(i, j), min(i, j)]


def _choose(condition: Array, new: Any, old: Any) -> Any:
    """The arrays of `new` where the condition holds, else those of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
