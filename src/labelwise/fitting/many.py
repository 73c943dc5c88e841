"""Linear algebra of fits with many parameters: arrays and loops instead of unrolled rows.

The programs of `newton` are unrolled over P parameters. They grow with P³, and do not compile for
22 of them. Beyond `UNROLLED`, one array has all rows, (P, W), or all entries of a matrix,
(P, P, W), with voxels last.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from labelwise.models.base import eliminate

UNROLLED = 8
"""Up to so many parameters, programs are unrolled, which is several times as fast for four."""


def slopes(
    signal: Callable[..., Float[Array, "M W"]], q: Float[Array, "P W"]
) -> Float[Array, "P M W"]:
    """d signal / d q for each of the P coordinates, by forward-mode differentiation."""
    _, along = jax.linearize(lambda q: signal(*q), q)
    unit = jnp.eye(len(q), dtype=q.dtype)[..., None]
    return jax.vmap(lambda row: along(jnp.broadcast_to(row, q.shape)))(unit)


def propose(
    q: Float[Array, "P W"],
    gradient: Float[Array, "P W"],
    hessian: Float[Array, "P P W"],
    damping: Float[Array, " W"] | float,
    lower: Float[Array, "P W"],
    upper: Float[Array, "P W"],
) -> tuple[Any, Float[Array, " W"]]:
    """The next point and the predicted decrease of the nll; see `newton.propose`."""
    down, up = lower - q, upper - q
    unit = jnp.eye(len(q), dtype=q.dtype)[..., None]
    damped = hessian * (1 + unit * damping) + 1e-12 * unit
    free = ~(((down >= 0) & (gradient > 0)) | ((up <= 0) & (gradient < 0)))

    def within(_, found):
        move, free = found
        held = jnp.sum(damped * jnp.where(free, 0.0, move), axis=1)
        matrix = jnp.where(free[:, None] & free, damped, unit)
        solution = eliminate(matrix, jnp.where(free, -gradient - held, move))
        move = jnp.clip(solution, down, up)
        return move, free & (move == solution)

    move, _ = jax.lax.fori_loop(0, 3, within, (jnp.zeros_like(q), free))
    curved = jnp.sum(move * jnp.sum(hessian * move, axis=1), axis=0)
    predicted = -jnp.sum(gradient * move, axis=0) - 0.5 * curved
    return jnp.clip(q + move, lower, upper), predicted


def orthogonalise(
    inside: Float[Array, "P M W"],
    fixed: Float[Array, "P M W"],
    seen: Bool[Array, "P W"],
    floor: float,
) -> tuple[Float[Array, "P P W"], Float[Array, "P P W"], Float[Array, "P M W"]]:
    """R⁻¹, S and the rest of inside = Q R and fixed = Q S + rest, by Gram-Schmidt.

    Args:
        inside: columns of unit length, 0 where they do not count.
        fixed: other columns; their products with the axis of the same index are left out.
        seen: the columns that count.
        floor: the least diagonal entry of R; it is 1 for columns that do not count.
    """
    row = jnp.arange(len(inside))[:, None]
    zero = jnp.zeros((len(inside), *seen.shape), inside.dtype)

    def next_axis(k, carry):
        inside, fixed, factor, across = carry
        length = jnp.sqrt(jnp.sum(inside[k] * inside[k], axis=0))
        length = jnp.where(seen[k], jnp.maximum(length, floor), 1.0)
        axis = inside[k] / length
        along = jnp.where(row > k, jnp.sum(axis * inside, axis=1), 0.0)
        other = jnp.where(row != k, jnp.sum(axis * fixed, axis=1), 0.0)
        factor = factor.at[k].set(jnp.where(row == k, length, along))
        moved = inside - along[:, None] * axis, fixed - other[:, None] * axis
        return *moved, factor, across.at[k].set(other)

    def solved(step, inverse):
        i = len(inside) - 1 - step
        later = jnp.where(row > i, factor[i], 0.0)
        known = jnp.sum(later[:, None] * inverse, axis=0)
        return inverse.at[i].set(((row == i) - known) / factor[i, i])

    first = inside, fixed, zero, zero
    _, rest, factor, across = jax.lax.fori_loop(0, len(inside), next_axis, first)
    return jax.lax.fori_loop(0, len(inside), solved, zero), across, rest
