"""The training loop: many networks in parallel, with one compiled program for an epoch.

Networks that differ in their initial weights (restarts) or labels share their inputs. They are
trained in parallel: each is one lane of arrays with voxels as their last axis. A lane is
independent of the values of other lanes and of the number of cores. The number of lanes affects
rounding only, since the compiler may multiply more matrices in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from labelwise.fitting.compiler import make_room
from labelwise.networks.checkpoint import load_checkpoint, save_checkpoint
from labelwise.networks.mlp import Weights
from labelwise.networks.recipe import PENALTIES, Recipe
from labelwise.types import InputError

Objective = Callable[[Array, Array, Array], Array]
"""(outputs (P, B), targets (T, B), weights (P,)) -> the loss of each of B voxels."""


class Layers(Protocol):
    """A network that can be trained; hashable, since programs are compiled for it."""

    def initial(self, rng: np.random.Generator) -> Weights:
        """Random weights."""
        ...

    def __call__(self, weights: Weights, inputs: Float[Array, "I N"]) -> Float[Array, "... N"]:
        """The outputs for N voxels."""
        ...


LANES = 4
"""Networks in one program: more share the overhead of an epoch, fewer use more cores."""
_CHUNK = 8192  # voxels in a block of validation
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
RUNNING, STOPPED, DIVERGED = 0, 1, 2


@cache  # one function for each loss, since programs are compiled for each function
def supervised(loss: str, *, weighted: bool = False) -> Objective:
    """The loss in parameter space: eqs. 7 and 9 of the paper for `"squared"`.

    If it is weighted, the targets are P labels, then the P weights of that voxel's errors.
    """
    penalty = PENALTIES[loss]

    def objective(outputs: Array, targets: Array, weights: Array) -> Array:
        size = len(outputs)
        error = weights[:, None] * (outputs - targets[:size])
        return jnp.sum(penalty(error * targets[size:] if weighted else error), axis=0)

    return objective


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets of K networks; the last voxels are held out for validation.

    Args:
        inputs: (N, I) the inputs of all networks.
        targets: (K, N, T) compared with the outputs by the objective.
        usable: (K, N) the voxels for training and validation of each network.
        weights: (K, P) of the error of each output.
    """

    inputs: Float[np.ndarray, "N I"]
    targets: Float[np.ndarray, "K N T"]
    usable: Bool[np.ndarray, "K N"]
    weights: Float[np.ndarray, "K P"]


class Lanes(NamedTuple):
    """The training state of L networks; the first axis of every array is the lane."""

    weights: Weights
    first: Weights
    second: Weights
    best: Weights
    best_loss: Float[Array, " L"]
    best_epoch: Int[Array, " L"]
    outcome: Int[Array, " L"]


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """The restarts of the network for one label.

    Args:
        weights: of the network with the smallest validation loss; None if every restart diverged.
        loss: its smallest validation loss.
        epoch: the epoch of that loss, from 1.
        losses: (R,) the smallest validation loss of each restart; infinite if never finite.
        reasons: why each restart ended.
        history: (E, R) validation loss after each epoch.
    """

    weights: Weights | None
    loss: float
    epoch: int
    losses: Float[np.ndarray, " R"]
    reasons: tuple[str, ...]
    history: Float[np.ndarray, "E R"]


def optimise(
    examples: Examples,
    architecture: Layers,
    objective: Objective,
    recipe: Recipe,
    seed: int,
    *,
    start: Weights | None = None,
    centre: Float[np.ndarray, " P"] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    fingerprint: str = "",
    progress: Callable[[int, float], None] | None = None,
) -> list[TrainingResult]:
    """Train `recipe.restarts` networks for each of K labels.

    Args:
        examples: the shuffled voxels; the last `recipe.validation_voxels` are held out.
        architecture: of every network.
        objective: the loss of one voxel.
        recipe: the hyperparameters.
        seed: of the initial weights and of shuffling.
        start: initial weights of every network, instead of restarts.
        centre: added to the random initial biases of the last layer.
        checkpoint: the file for the state after each epoch.
        resume: continue from `checkpoint`, if it exists.
        fingerprint: identifies the training; must match that of the checkpoint.
        progress: called after each epoch with the number of completed epochs and the smallest
            validation loss.

    Returns:
        One result for each label. The same arguments give the same bytes, interrupted or not.

    Raises:
        InputError: if the checkpoint belongs to another training.
        KeyboardInterrupt: after saving the checkpoint.
    """
    make_room()
    labels, voxels, _ = examples.targets.shape
    restarts = 1 if start is not None else recipe.restarts
    lane_label = np.repeat(np.arange(labels), restarts)
    split = voxels - recipe.validation_voxels
    if split < recipe.batch:
        raise InputError(
            f"training: {voxels} voxels leave {split} for training, less than one batch"
        )
    groups = [lane_label[i : i + LANES] for i in range(0, len(lane_label), LANES)]
    inputs = _split(_without_unused(examples), split)
    programs = [_Group(examples, inputs, split, labels_of) for labels_of in groups]
    run = partial(_epoch, architecture, objective, recipe.batch, recipe.patience)
    # all labels share the initial weights, so that networks differ by their labels only
    random = [architecture.initial(_rng(seed, 0, restart)) for restart in range(restarts)]
    first = [start or _centred(weights, centre) for weights in random]
    first *= labels
    states = [_fresh(first[i * LANES : i * LANES + len(group)]) for i, group in enumerate(groups)]
    history = np.full((recipe.epochs, len(lane_label)), np.nan, np.float32)
    done = 0
    last_complete = states, done  # one assignment: an interruption may occur between any two lines
    if resume and checkpoint is not None and checkpoint.exists():
        states, history, done = load_checkpoint(checkpoint, states, history, fingerprint)
        last_complete = states, done
    rates = recipe.rates()
    with ThreadPoolExecutor(len(groups)) as pool:
        try:
            for epoch in range(begin := done, recipe.epochs):
                if all(np.all(np.asarray(state.outcome) != RUNNING) for state in states):
                    break
                order = _rng(seed, 1, epoch).permutation(split)
                order = order[: recipe.steps * recipe.batch].astype(np.int32)
                each = partial(run, order=order, rates=rates[epoch], epoch=epoch)
                # sequential at first, so that no two threads compile the same program
                mapped = map if epoch == begin else pool.map
                ended = list(mapped(each, programs, states))
                states = [state for state, _ in ended]
                history[epoch] = np.concatenate([np.asarray(loss) for _, loss in ended])
                done = epoch + 1
                last_complete = states, done
                if checkpoint is not None:
                    save_checkpoint(checkpoint, states, history, done, fingerprint)
                if progress is not None:
                    finite = np.isfinite(history[epoch])
                    progress(done, float(np.min(history[epoch], where=finite, initial=np.inf)))
        except KeyboardInterrupt:
            if checkpoint is not None:
                states, done = last_complete
                save_checkpoint(checkpoint, states, history, done, fingerprint)
            raise
    return _results(states, history[:done], labels, restarts)


def _centred(weights: Weights, centre: Float[np.ndarray, " P"] | None) -> Weights:
    *hidden, (matrix, bias) = weights
    return weights if centre is None else (*hidden, (matrix, bias + centre[:, None]))


def _rng(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


class _Group:
    """The arrays of one group of lanes on the device."""

    def __init__(
        self,
        examples: Examples,
        inputs: tuple[Array, Array],
        split: int,
        lane_label: Int[np.ndarray, " L"],
    ) -> None:
        used, self.label = np.unique(lane_label, return_inverse=True)
        usable = examples.usable[used]
        targets = np.where(usable[..., None], examples.targets[used], 0).astype(np.float32)
        self.weights = jnp.asarray(examples.weights[lane_label], jnp.float32)
        self.inputs, self.held_inputs = inputs
        self.targets, self.held_targets = _split(np.moveaxis(targets, 1, 0), split)
        self.usable, self.held_usable = _split(usable.T.astype(np.float32), split)


def _without_unused(examples: Examples) -> Float[np.ndarray, "N I"]:
    """The inputs, with zeros for unused voxels: these may be NaN, which a mask does not remove."""
    used = np.any(examples.usable, axis=0)[:, None]
    return np.where(used, examples.inputs, 0).astype(np.float32)


def _split(rows: np.ndarray, at: int) -> tuple[Array, Array]:
    return jnp.asarray(rows[:at]), jnp.asarray(rows[at:])


def _fresh(weights: list[Weights]) -> Lanes:
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *weights)
    zero = jax.tree.map(jnp.zeros_like, stacked)
    lanes = len(weights)
    return Lanes(
        weights=stacked,
        first=zero,
        second=zero,
        best=stacked,
        best_loss=jnp.full(lanes, jnp.inf, jnp.float32),
        best_epoch=jnp.full(lanes, -1, jnp.int32),
        outcome=jnp.full(lanes, RUNNING, jnp.int32),
    )


def _epoch(
    architecture, objective, batch, patience, group: _Group, state: Lanes, *, order, rates, epoch
):
    data = (group.inputs, group.targets, group.usable)
    held = (group.held_inputs, group.held_targets, group.held_usable)
    fixed = (architecture, objective, batch, patience, tuple(group.label.tolist()))
    return jax.block_until_ready(
        _compiled_epoch(*fixed, state, data, held, group.weights, order, rates, epoch)
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _compiled_epoch(
    architecture, objective, batch, patience, label, state, data, held, weights, order, rates, epoch
):
    """One pass over the training set in steps of a batch, then validation."""
    label = np.array(label)
    inputs, targets, usable = data
    steps = len(rates)
    # shuffled once per epoch, which is faster than gathering each batch in its step
    batches = (
        inputs[order].reshape(steps, batch, -1).swapaxes(1, 2),
        targets[order].reshape(steps, batch, *targets.shape[1:]).transpose(0, 2, 3, 1),
        usable[order].reshape(steps, batch, -1).swapaxes(1, 2),
    )

    def losses(lanes: Weights, x, y, mask):
        """The summed loss of each lane over its usable voxels, and their number."""
        outputs = jax.vmap(architecture, in_axes=(0, None))(lanes, x)
        voxels = jax.vmap(objective)(outputs, y[label], weights)
        mask = mask[label]
        return jnp.sum(mask * voxels, axis=1), jnp.sum(mask, axis=1)

    def total(lanes: Weights, *example):
        sums, counts = losses(lanes, *example)
        return jnp.sum(sums / jnp.maximum(counts, 1))

    gradient_of = jax.grad(total)
    count = (epoch * steps).astype(jnp.float32)

    def step(carry, example):
        lanes, first, second, count = carry
        *example, rate = example
        gradient = gradient_of(lanes, *example)
        count = count + 1
        one, two = _BETAS
        first = jax.tree.map(lambda m, g: one * m + (1 - one) * g, first, gradient)
        second = jax.tree.map(lambda v, g: two * v + (1 - two) * g * g, second, gradient)
        unbias = jnp.sqrt(1 - two**count)
        step_size = rate * unbias / (1 - one**count)
        lanes = jax.tree.map(
            lambda w, m, v: w - step_size * m / (jnp.sqrt(v) + _EPSILON * unbias),
            lanes,
            first,
            second,
        )
        return (lanes, first, second, count), None

    carry = (state.weights, state.first, state.second, count)
    (lanes, first, second, _), _ = lax.scan(step, carry, (*batches, rates))

    loss = _validate(losses, lanes, held)
    running = state.outcome == RUNNING
    better = running & (loss < state.best_loss)
    best = jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        lanes,
        state.best,
    )
    best_epoch = jnp.where(better, epoch, state.best_epoch)
    outcome = jnp.where(running & ~jnp.isfinite(loss), DIVERGED, state.outcome)
    if patience is not None:
        waited = epoch - best_epoch >= patience
        outcome = jnp.where((outcome == RUNNING) & waited, STOPPED, outcome)
    best_loss = jnp.where(better, loss, state.best_loss)
    state = Lanes(lanes, first, second, best, best_loss, best_epoch, outcome)
    return state, loss


def _validate(losses, lanes: Weights, held) -> Float[Array, " L"]:
    """The mean loss of each lane over the held-out voxels, in chunks."""
    voxels = len(held[0])
    chunk = min(_CHUNK, voxels)
    padded = -(-voxels // chunk) * chunk
    fill = np.arange(padded) % voxels
    inputs, targets, usable = (rows[fill] for rows in held)
    usable = jnp.where(np.arange(padded)[:, None] < voxels, usable, 0)
    chunks = [
        jnp.moveaxis(rows.reshape(padded // chunk, chunk, *rows.shape[1:]), 1, -1)
        for rows in (inputs, targets, usable)
    ]
    sums, counts = lax.map(lambda example: losses(lanes, *example), tuple(chunks))
    return jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts, axis=0), 1)


def _results(states: list[Lanes], history, labels: int, restarts: int) -> list[TrainingResult]:
    lanes = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
    results = []
    for label in range(labels):
        mine = slice(label * restarts, (label + 1) * restarts)
        losses = lanes.best_loss[mine]
        best = mine.start + int(np.argmin(losses))
        found = bool(np.isfinite(lanes.best_loss[best]))
        reasons = tuple(
            _reason(int(outcome), int(epoch) + 1)
            for outcome, epoch in zip(lanes.outcome[mine], lanes.best_epoch[mine], strict=True)
        )
        results.append(
            TrainingResult(
                weights=_lane(lanes.best, best) if found else None,
                loss=float(lanes.best_loss[best]),
                epoch=int(lanes.best_epoch[best]) + 1,
                losses=losses,
                reasons=reasons,
                history=history[:, mine],
            )
        )
    return results


def _lane(weights: Weights, lane: int) -> Weights:
    return tuple((matrix[lane], bias[lane]) for matrix, bias in weights)


def _reason(outcome: int, best_epoch: int) -> str:
    if outcome == DIVERGED:
        return f"stopped: its validation loss was not finite after epoch {best_epoch}"
    if outcome == STOPPED:
        return f"stopped early: no smaller validation loss after epoch {best_epoch}"
    return "ran to the last epoch"
