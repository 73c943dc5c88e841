"""Batches of fits: a finished fit is replaced by the next one in the queue.

Convergence has a long tail, so a batch that waits for its slowest fit wastes most of its work. Here
a compiled program advances a batch by a few iterations; then finished fits are replaced by fits
from the queue. All batches have one width, so that there is one compilation for any number of
voxels, and the result of a voxel does not depend on its position.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise import interrupts
from labelwise.fitting.newton import CONVERGED, RUNNING, Problem, State, Stop

WIDTH = 2048
"""Fits in a batch: fewer increase the overhead of calls, more exceed the processor cache."""


Batch = TypeVar("Batch", bound=NamedTuple)


class Solution(NamedTuple):
    """The results of N fits."""

    q: Float[np.ndarray, "P N"]
    nll: Float[np.ndarray, " N"]
    iterations: Int[np.ndarray, " N"]
    converged: Bool[np.ndarray, " N"]


def solve(
    advance: Callable[[State, Problem], State],
    start: Float[np.ndarray, "P S N"],
    problem: Problem,
    stop: Stop,
) -> tuple[Solution, Solution]:
    """Fit each of N voxels from each of its starts.

    Args:
        advance: advances a batch of WIDTH fits by a few iterations.
        start: the initial coordinates, inside the box; NaN where a voxel has fewer than S.
        problem: the N voxels, NumPy arrays.
        stop: the stopping criteria; fits that reach `max_iterations` have not converged.

    Returns:
        The fit with the lowest nll of each voxel, and those from all starts, (.., S, N); where
        there is no start, q is NaN and nll infinite.
    """
    size, starts, voxels = start.shape
    start = start.reshape(size, starts * voxels)
    queue = np.flatnonzero(np.isfinite(start[0]))
    fits = len(queue)
    solution = Solution(
        q=np.full_like(start, np.nan),
        nll=np.full(starts * voxels, np.inf, start.dtype),
        iterations=np.zeros(starts * voxels, np.int32),
        converged=np.zeros(starts * voxels, bool),
    )
    ids, waiting = np.resize(queue, WIDTH), min(WIDTH, fits)  # a short queue is repeated
    busy = np.arange(WIDTH) < fits
    state, part = _fresh(start[:, ids]), _take(problem, ids % voxels)
    while busy.any():
        interrupts.check()
        state = jax.tree.map(np.array, advance(state, part))
        over = (state.outcome != RUNNING) | (state.iterations >= stop.max_iterations)
        done = np.flatnonzero(over & busy)
        solution.q[:, ids[done]] = state.q[:, done]
        solution.nll[ids[done]] = state.nll[done]
        solution.iterations[ids[done]] = state.iterations[done]
        solution.converged[ids[done]] = state.outcome[done] == CONVERGED
        entering = queue[waiting : waiting + len(done)]
        waiting += len(entering)
        filled, emptied = np.split(done, [len(entering)])
        busy[emptied] = False
        ids[filled] = entering
        _put(state, filled, _fresh(start[:, entering]))
        _put(part, filled, _take(problem, entering % voxels))
    best = np.argmin(solution.nll.reshape(starts, voxels), axis=0) * voxels + np.arange(voxels)
    every = Solution(*(rows.reshape(*rows.shape[:-1], starts, voxels) for rows in solution))
    return _take(solution, best), every


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


def _fresh(q: Float[np.ndarray, "P W"]) -> State:
    size, width = q.shape
    return State(
        q=q,
        nll=np.full(width, np.inf, q.dtype),
        gradient=np.zeros_like(q),
        hessian=np.zeros((size * (size + 1) // 2, width), q.dtype),
        damping=np.full(width, 1e-2, q.dtype),
        iterations=np.zeros(width, np.int32),
        outcome=np.full(width, RUNNING, np.int32),
    )


def _take(arrays: Batch, index: Int[np.ndarray, " W"]) -> Batch:
    return jax.tree.map(lambda rows: np.take(rows, index, axis=-1), arrays)


def _put(arrays: State | Problem, index: Int[np.ndarray, " n"], new: State | Problem) -> None:
    for rows, values in zip(arrays, new, strict=True):
        rows[..., index] = values
