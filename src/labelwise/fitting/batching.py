"""Keep a batch full: a fit that has converged makes room for the next one.

Convergence has a long tail, so a batch that waits for its slowest fit wastes most of its work. Here
a compiled program takes a batch a few iterations further; then the finished fits are harvested, the
others move together, and fits from the queue fill the gap. One width, hence one compilation for any
number of voxels, and the same bytes for a voxel wherever it stands.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting.newton import CONVERGED, RUNNING, Problem, State, Stop

WIDTH = 2048
"""Fits in a batch: fewer pay for the calls, more for the stragglers and for leaving the cache."""


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
) -> Solution:
    """Fit each of N voxels from each of its S starts; keep the start with the lowest nll.

    Args:
        advance: takes a batch of WIDTH fits a few iterations further.
        start: the coordinates that the fits start from, inside the box.
        problem: the N voxels, NumPy arrays.
        stop: a fit still running after its `max_iterations` is not converged.
    """
    size, starts, voxels = start.shape
    fits = starts * voxels
    start = start.reshape(size, fits)
    solution = Solution(
        q=np.empty_like(start),
        nll=np.empty(fits, start.dtype),
        iterations=np.empty(fits, np.int32),
        converged=np.empty(fits, bool),
    )
    ids, waiting = np.arange(WIDTH) % fits, min(WIDTH, fits)  # a short queue is repeated
    busy = np.arange(WIDTH) < fits
    state, part = _fresh(start[:, ids]), _take(problem, ids % voxels)
    while busy.any():
        state = jax.tree.map(np.array, advance(state, part))
        over = (state.outcome != RUNNING) | (state.iterations >= stop.max_iterations)
        done = np.flatnonzero(over & busy)
        solution.q[:, ids[done]] = state.q[:, done]
        solution.nll[ids[done]] = state.nll[done]
        solution.iterations[ids[done]] = state.iterations[done]
        solution.converged[ids[done]] = state.outcome[done] == CONVERGED
        entering = np.arange(waiting, min(fits, waiting + len(done)))
        waiting += len(entering)
        filled, emptied = np.split(done, [len(entering)])
        busy[emptied] = False
        ids[filled] = entering
        _put(state, filled, _fresh(start[:, entering]))
        _put(part, filled, _take(problem, entering % voxels))
    best = np.argmin(solution.nll.reshape(starts, voxels), axis=0) * voxels + np.arange(voxels)
    return _take(solution, best)


def blocks(voxels: int, width: int) -> Iterator[tuple[slice, slice | Int[np.ndarray, " width"]]]:
    """Voxels in blocks of one width: one compilation, and no voxel's bytes depend on their number.

    Yields:
        The voxels of a block; and what to compute, which is more where the block is short: its
        voxels repeated.

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
