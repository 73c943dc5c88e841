"""Keep a batch full: a fit that has converged makes room for the next one.

Convergence has a long tail (half of the IVIM voxels at SNR 15 need 5 iterations, one in a thousand
needs 40), so a batch that waits for its slowest fit wastes most of its work. Here a compiled
program takes a batch a few iterations further; then the finished fits are harvested, the others
move together, and fits from the queue fill the gap. One width, hence one compilation for any number
of voxels, and the same bytes for a voxel wherever it stands.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting.newton import CONVERGED, RUNNING, Problem, State

WIDTH = 2048
"""Fits in a batch: fewer pay for the calls, more for the stragglers and for leaving the cache."""


Batch = TypeVar("Batch", bound=NamedTuple)


class Solution(NamedTuple):
    """How N fits ended."""

    q: Float[np.ndarray, "P N"]
    nll: Float[np.ndarray, " N"]
    iterations: Int[np.ndarray, " N"]
    converged: Bool[np.ndarray, " N"]


def solve(
    advance: Callable[[State, Problem], State],
    start: Float[np.ndarray, "P S N"],
    problem: Problem,
    max_iterations: int,
) -> Solution:
    """Fit each of N voxels from each of its S starts; keep the start with the lowest nll.

    Args:
        advance: takes a batch of WIDTH fits a few iterations further.
        start: the coordinates that the fits start from, inside the box.
        problem: the N voxels, NumPy arrays.
        max_iterations: a fit still running after as many is given up where it stands.
    """
    size, starts, voxels = start.shape
    fits = starts * voxels
    start = start.reshape(size, fits)
    ended = Solution(
        q=np.empty_like(start),
        nll=np.empty(fits, start.dtype),
        iterations=np.empty(fits, np.int32),
        converged=np.empty(fits, bool),
    )
    waiting, ids, state = 0, np.empty(0, int), _fresh(start[:, :0])
    while waiting < fits or len(ids):
        entering = np.arange(waiting, min(fits, waiting + WIDTH - len(ids)))
        waiting += len(entering)
        ids = np.concatenate([ids, entering])
        state = _join(state, _fresh(start[:, entering]))
        lanes = np.arange(WIDTH) % len(ids)  # fills the width with repeats, which are ignored
        batch = advance(_take(state, lanes), _take(problem, ids[lanes] % voxels))
        batch = jax.tree.map(np.asarray, batch)
        verdict, iterations = batch.verdict[: len(ids)], batch.iterations[: len(ids)]
        over = (verdict != RUNNING) | (iterations >= max_iterations)
        out, done = ids[over], np.flatnonzero(over)
        ended.q[:, out] = batch.q[:, done]
        ended.nll[out] = batch.nll[done]
        ended.iterations[out] = iterations[done]
        ended.converged[out] = verdict[done] == CONVERGED
        ids, state = ids[~over], _take(batch, np.flatnonzero(~over))
    best = np.argmin(ended.nll.reshape(starts, voxels), axis=0) * voxels + np.arange(voxels)
    return _take(ended, best)


def _fresh(q: Float[np.ndarray, "P W"]) -> State:
    size, width = q.shape
    return State(
        q=q,
        nll=np.full(width, np.inf, q.dtype),
        gradient=np.zeros_like(q),
        hessian=np.zeros((size * (size + 1) // 2, width), q.dtype),
        damping=np.full(width, 1e-2, q.dtype),
        iterations=np.zeros(width, np.int32),
        verdict=np.full(width, RUNNING, np.int32),
    )


def _take(arrays: Batch, index: Int[np.ndarray, " W"]) -> Batch:
    return jax.tree.map(lambda rows: np.take(rows, index, axis=-1), arrays)


def _join(one: State, other: State) -> State:
    return jax.tree.map(lambda a, b: np.concatenate([a, b], axis=-1), one, other)
