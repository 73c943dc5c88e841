"""Many fits in blocks of one width, and rounds without the fits that have finished.

Convergence has a long tail, so a block that waits for its slowest fit wastes most of its work.
Therefore the first round takes a few iterations, and each later one goes on with those that are not
finished, in full blocks. All blocks have one width, so that there is one compilation for any number
of voxels, and the result of a voxel does not depend on its position. A block fits the cache of a
core; a compiled program runs through many blocks, without a return to Python.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from labelwise import interrupts
from labelwise.fitting.newton import CONVERGED, RUNNING, Problem, Stop

WIDTH = 256
"""Voxels in a block."""
CHUNK = 64 * WIDTH
"""Voxels in a call of a compiled program."""
ROUNDS = (3, 3, 4, 6, 10, 20, 40)
"""Iterations of the first rounds; the last one takes what is left."""

Batch = TypeVar("Batch", bound=NamedTuple)
Newton = Callable[..., tuple[np.ndarray, ...]]


class Solution(NamedTuple):
    """The results of N fits."""

    q: Float[np.ndarray, "P N"]
    nll: Float[np.ndarray, " N"]
    iterations: Int[np.ndarray, " N"]
    converged: Bool[np.ndarray, " N"]


def by_block(body: Callable[[Any], Any], blocks: Int[Array, ""], arrays: Any) -> Any:
    """In a compiled program: the results of `body` for each of the first blocks of a chunk.

    Args:
        body: from arrays (.., WIDTH) to arrays (.., WIDTH).
        blocks: the number of blocks to compute; the rest of the result is 0.
        arrays: (.., CHUNK).
    """

    def block(index):
        first = index * WIDTH
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, WIDTH, -1), arrays)

    def fill(index, results):
        return jax.tree.map(
            lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, index * WIDTH, -1),
            results,
            body(block(index)),
        )

    body = jax.jit(body, inline=True)  # traced once, not for its shapes and again for its program
    shapes = jax.eval_shape(lambda: body(block(0)))
    empty = jax.tree.map(lambda s: jnp.zeros((*s.shape[:-1], CHUNK), s.dtype), shapes)
    return jax.lax.fori_loop(0, blocks, fill, empty)


def in_chunks(program: Callable[[np.ndarray, Any], Any], arrays: Any, chunk: int = CHUNK) -> Any:
    """The results of a compiled program `program(blocks, arrays)` for any number of voxels.

    Args:
        program: applies `by_block` to arrays (.., chunk).
        arrays: (.., N), with N > 0.
        chunk: voxels in a call; the last call has repeated ones beside them.
    """
    voxels, parts = jax.tree.leaves(arrays)[0].shape[-1], []
    for first in range(0, voxels, chunk):
        interrupts.check()
        size = min(chunk, voxels - first)
        blocks = -(-size // WIDTH)

        def padded(rows, first=first, size=size, blocks=blocks):
            if size == chunk:
                return rows[..., first : first + size]
            full = np.empty((*rows.shape[:-1], chunk), rows.dtype)
            full[..., :size] = rows[..., first:]
            full[..., size : blocks * WIDTH] = rows[..., -1:]
            return full

        found = program(np.array(blocks), jax.tree.map(padded, arrays))
        parts.append(jax.tree.map(lambda rows, size=size: np.asarray(rows)[..., :size], found))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: np.concatenate(p, -1), *parts)


def solve(
    newton: Newton,
    start: Float[np.ndarray, "P S N"],
    problem: Problem,
    stop: Stop,
    beside: Callable[[np.ndarray, Problem], np.ndarray] | None = None,
) -> tuple[Solution, Solution]:
    """Fit each of N voxels from each of its starts.

    Args:
        newton: takes iterations: (q, damping, problem, limit) to q, damping, nll, iterations and
            outcome.
        start: the initial coordinates, inside the box; NaN where a voxel has fewer than S.
        problem: the N voxels, NumPy arrays.
        stop: the stopping criteria; fits that reach `max_iterations` have not converged.
        beside: gives more starts from the best fits, or NaN for none.

    Returns:
        The fit with the lowest nll of each voxel, and those from all starts, (.., S, N); where
        there is no start, q is NaN and nll infinite.
    """
    every = _solve(newton, start, problem, stop)
    if beside:
        more = _solve(newton, beside(_best(every).q, problem), problem, stop)
        every = Solution(*(np.concatenate(rows, -2) for rows in zip(every, more, strict=True)))
    return _best(every), every


def _best(every: Solution) -> Solution:
    """The fit with the lowest nll of each voxel."""
    best = np.argmin(every.nll, axis=0)
    return Solution(*(rows[..., best, np.arange(len(best))] for rows in every))


def _solve(newton, start, problem, stop) -> Solution:
    """The fits from all starts, (.., S, N)."""
    size, starts, voxels = start.shape
    q = start.reshape(size, starts * voxels).copy()
    damping = np.full(starts * voxels, 1e-2, start.dtype)
    nll = np.full(starts * voxels, np.inf, start.dtype)
    iterations = np.zeros(starts * voxels, np.int32)
    outcome = np.full(starts * voxels, RUNNING, np.int8)
    left, todo = stop.max_iterations, np.flatnonzero(np.isfinite(q[0]))
    for limit in (*ROUNDS, stop.max_iterations):
        limit = min(limit, left)
        if not len(todo) or not limit:
            break
        same = len(todo) == voxels and starts == 1
        mine = problem if same else _take(problem, todo % voxels)
        found = newton(np.take(q, todo, -1), damping[todo], mine, limit)
        q[:, todo], damping[todo], nll[todo] = found[:3]
        iterations[todo] += found[3]
        outcome[todo] = found[4]
        todo, left = todo[found[4] == RUNNING], left - limit
    every = Solution(q, nll, iterations, outcome == CONVERGED)
    return Solution(*(rows.reshape(*rows.shape[:-1], starts, voxels) for rows in every))


def blocks(voxels: int, width: int) -> Iterator[tuple[slice, slice | Int[np.ndarray, " width"]]]:
    """Blocks of voxels of one width, for one compilation and results independent of their number.

    Yields:
        The voxels of a block, and the voxels to compute: the same, repeated to fill a short block.

    Example:
        >>> [(mine, np.arange(5)[rows]) for mine, rows in blocks(5, 3)]
        [(slice(0, 3, None), array([0, 1, 2])), (slice(3, 5, None), array([3, 4, 3]))]
    """
    for first in range(0, voxels, width):
        mine = slice(first, min(first + width, voxels))
        short = mine.stop - first < width
        yield mine, first + np.arange(width) % (mine.stop - first) if short else mine


def _take(arrays: Batch, index: Int[np.ndarray, " W"]) -> Batch:
    return jax.tree.map(lambda rows: np.take(rows, index, axis=-1), arrays)
