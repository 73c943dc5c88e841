"""Intervals by networks: beside the network of a label, a second one taught the ends of intervals.

| label | kind | taught | an interval of 95 % holds the truth |
| --- | --- | --- | --- |
| ground truth | credible | the truth | with this probability, averaged over the prior |
| maximum likelihood | confidence | ends by fits | in this share of repeats, for any truth |

The outputs of each parameter are a softmax, summed from its first member on: ordered shares, from
0 to 1, of the range in which the ends are. Taught the truth, the output that minimises the pinball
loss max(q e, (q - 1) e), e = truth - output, is quantile q of the posterior.

Source: Koenker & Bassett 1978, doi:10.2307/1913643.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.networks.mlp import Architecture, Product, Scaling, Weights, inputs_and_references
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.training import Examples, Objective, TrainingResult
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, InputError, Voxels, has_values

LEVEL = 0.95
"""The probability of intervals."""
Kind = Literal["credible", "confidence"]
LEVELS: Mapping[Kind, tuple[float, ...]] = {
    "credible": (0.025, 0.16, 0.5, 0.84, 0.975),
    "confidence": (0.4, 0.6),  # ends that the signal does not determine are set outwards
}
"""The levels of the pinball loss: low to high end."""

SNAP = 0.01
"""Of the range: ends this close to a bound are set onto it."""

_VOXELS = {"credible": 200_000, "confidence": 131_072}
_EPOCHS = {"credible": 20, "confidence": 60}
_WIDTH = 48
_MARGIN = 0.05  # small steps of a softmax hardly learn: without it, 96.3 % for 95 at low SNR
_BATCH, _WARMUP = 500, 500
_HELD = 0.05  # of the voxels, to choose the epoch
_PRECISION = 0.3  # power of the SNR, as weights: 0.2 to 0.5 are alike, 1 is worse at low SNR
_SCALE_WEIGHT = 0.3  # S0 / reference varies by noise; at 1 the score of f is 1 % worse
_ORDINARY = (0.5, 99.5)  # percentiles of the ends of the amplitude, relative to the reference
_LEAST_AMPLITUDE = 0.1  # of its median: the lowest end that is learned


@dataclass(frozen=True)
class Heads:
    """A perceptron with ordered outputs for each parameter: shares of the range of its ends.

    Args:
        kind: of the intervals.
        architecture: its layers.
        low: (P,) lower limits of the ends in the units of `Scaling.targets`; their logarithms where
            `logarithmic`.
        high: (P,) upper limits.
        logarithmic: (P,) whether the range is one of logarithms.
        snapped: (P,) whether the limits are bounds: a low end close to the lower one is set onto
            it, and a high end close to the upper one.
        margin: by how much shares may go below 0 and above 1 in training; ends are clipped.
    """

    kind: Kind
    architecture: Architecture
    low: tuple[float, ...]
    high: tuple[float, ...]
    logarithmic: tuple[bool, ...]
    snapped: tuple[bool, ...]
    margin: float = 0.0

    def initial(self, rng: np.random.Generator) -> Weights:
        """Random weights; see `Architecture.initial`."""
        return self.architecture.initial(rng)

    def __call__(
        self, weights: Weights, inputs: Float[Array, "I N"], product: Product = jnp.matmul
    ) -> Float[Array, "P E N"]:
        """The shares of E ends for N voxels; `product` as for `Architecture.linear`."""
        raw = self.architecture.linear(weights, inputs, product)
        steps = jax.nn.softmax(raw.reshape(len(self.low), -1, raw.shape[-1]), axis=1)
        return jnp.cumsum(steps, axis=1)[:, :-1] * (1 + 2 * self.margin) - self.margin

    def quantiles(
        self, weights: Weights, inputs: Float[Array, "I N"], product: Product = jnp.matmul
    ) -> Float[Array, "P E N"]:
        """E ends of N voxels, in the units of `Scaling.targets`."""
        shares, column = jnp.clip(self(weights, inputs, product), 0, 1), (slice(None), None, None)
        if any(self.snapped):
            first, last, snapped = shares[:, 0], shares[:, -1], jnp.array(self.snapped)[:, None]
            shares = shares.at[:, 0].set(jnp.where(snapped & (first < SNAP), 0, first))
            shares = shares.at[:, -1].set(jnp.where(snapped & (last > 1 - SNAP), 1, last))
        low, high = (jnp.array(limit, jnp.float32)[column] for limit in (self.low, self.high))
        ends = low + (high - low) * shares
        if any(self.logarithmic):
            ends = jnp.where(jnp.array(self.logarithmic)[column], jnp.exp(ends), ends)
        return ends

    def ends(
        self, weights: Weights, inputs: Float[Array, "I N"], product: Product = jnp.matmul
    ) -> Float[Array, "3 P N"]:
        """Low end, high end and half the width of the central 68 % (0 of a confidence interval)."""
        ends = self.quantiles(weights, inputs, product)
        central = (ends[:, 3] - ends[:, 1]) / 2 if self.kind == "credible" else 0 * ends[:, 0]
        return jnp.stack([ends[:, 0], ends[:, -1], central])

    def shares(self, ends: Float[np.ndarray, "N P E"]) -> Float[np.ndarray, "N P E"]:
        """The shares of given ends, in the units of `Scaling.targets`."""
        logarithmic = np.array(self.logarithmic)[:, None]
        positive = np.maximum(np.where(logarithmic, ends, 1), 1e-30)  # an end may be 0
        place = np.where(logarithmic, np.log(positive), ends)
        low, high = np.array(self.low)[:, None], np.array(self.high)[:, None]
        return np.clip((place - low) / np.where(high > low, high - low, 1), 0, 1)


@dataclass(frozen=True, eq=False)
class IntervalNetwork:
    """A trained network of intervals, with the scaling of the network beside it.

    Args:
        heads: its layers and ranges.
        weights: of the layers.
        record: of its training, as JSON data.
    """

    heads: Heads
    weights: Weights
    record: Mapping[str, Any]


@cache  # one function for each kind, since programs are compiled for each function
def pinball(kind: Kind) -> Objective:
    """The pinball loss of ends, each over √(q (1 - q)).

    The targets are P shares (the truth) or those of each end, then the weight of the voxel.
    """
    level = np.array(LEVELS[kind], np.float32)[:, None]

    def objective(shares: Array, targets: Array, weights: Array) -> Array:
        error = targets[:-1].reshape(len(weights), -1, targets.shape[-1]) - shares
        loss = jnp.maximum(level * error, (level - 1) * error) / np.sqrt(level * (1 - level))
        return targets[-1] * jnp.sum(weights[:, None, None] * loss, axis=(0, 1))

    return objective


Train = Callable[[Examples, Heads, Recipe], TrainingResult]
"""Trains a network of intervals with the loss of its kind."""


Ends = Callable[[Float[np.ndarray, "N M"], Float[np.ndarray, " N"]], Estimate]
"""Gives the ends of intervals as the stats `low` and `high`, from signal and sigma."""


def credible(plan: TrainingPlan, scaling: Scaling, voxels: Voxels, train: Train) -> IntervalNetwork:
    """A network of credible intervals: quantiles of the posterior under the plan's prior.

    Args:
        plan: of the network of the ground truth.
        scaling: of that network.
        voxels: its simulated voxels.
        train: the training loop.

    Raises:
        InputError: if the training diverged.
    """
    recipe = _recipe("credible", plan.recipe)
    voxels = _some(voxels, slice(recipe.signals))
    inputs, reference = inputs_and_references(scaling, voxels)
    valid = np.isfinite(inputs).all(axis=1) & (reference > 0)
    assert voxels.params is not None  # for the type checker: they are simulated
    truth = _targets(scaling, voxels.params, reference)
    low, high = _targets(scaling, plan.prior.ranges.T, np.ones(2))
    logarithmic = np.zeros(len(low), bool)
    if scaling.scale is not None:
        some = truth[valid, scaling.scale]
        low[scaling.scale], high[scaling.scale] = some.min(), some.max()
        logarithmic[scaling.scale] = some.min() > 0  # a few noisy references are far from the rest
    heads = _heads("credible", inputs, low, high, logarithmic)
    shares = heads.shares(np.where(valid[:, None], truth, 1)[..., None])
    spread = shares[valid].std(axis=(0, 2))
    weights = 1 / np.where(spread > 0, spread, 1)
    precision = (np.where(valid, reference, 1) / voxels.sigma) ** _PRECISION
    return _trained(heads, recipe, scaling, train, inputs, shares, valid, weights, precision)


def confidence(
    plan: TrainingPlan, scaling: Scaling, voxels: Voxels, train: Train, ends: Ends
) -> IntervalNetwork:
    """A network of confidence intervals, taught the ends of given ones.

    Half of its voxels are of the plan's prior, half have parameters anywhere within their bounds
    (where the equation of the model holds), so that intervals hold for tissue that the prior
    excludes, too.

    Args:
        plan: of the network of maximum-likelihood labels.
        scaling: of that network.
        voxels: its simulated voxels.
        train: the training loop.
        ends: its estimates have the stats `low` and `high`, (N, P) in the parameters' units.

    Raises:
        InputError: if the training diverged, or no voxel has ends.
    """
    recipe, scale = _recipe("confidence", plan.recipe), scaling.scale
    near = _some(voxels, slice(recipe.signals // 2))
    found = [_ends(ends, near)]
    bounds = np.array([parameter.bounds for parameter in plan.model.parameters])
    bounded = np.isfinite(bounds).all(axis=1) & (np.arange(len(bounds)) != scale)
    ranges = np.where(bounded[:, None], bounds, plan.prior.ranges)
    some = found[0][np.isfinite(found[0]).all(axis=(1, 2))]
    if not len(some):
        raise InputError(
            "intervals: the fits of simulated voxels have no ends; train without intervals"
        )
    widths = np.mean(some[..., 1] - some[..., 0], axis=0) / np.ptp(ranges, axis=1)
    worst = np.arange(len(bounds)) == np.argmax(np.where(bounded, widths, -1))
    logarithmic = worst & bounded & (bounds[:, 0] > 0)
    names = np.array(plan.parameters)
    anywhere = Uniform(
        dict(zip(plan.parameters, ranges.tolist(), strict=True)),
        names[logarithmic].tolist(),
        plan.model,
    )
    key = jax.random.split(jax.random.key(plan.seed))[1]
    rest = recipe.signals - len(near)
    far = simulate(plan.model, plan.noise, anywhere, plan.sigma, rest, key)
    found.append(_ends(ends, far))
    order = np.random.default_rng(plan.seed).permutation(recipe.signals)  # the last are held out
    pairs = zip(vars(near).values(), vars(far).values(), strict=True)
    voxels = Voxels(*(np.concatenate(pair)[order] for pair in pairs))
    inputs, reference = inputs_and_references(scaling, voxels)
    both = np.concatenate(found)[order]
    targets = np.stack([_targets(scaling, both[..., end], reference) for end in (0, 1)], axis=-1)
    valid = np.isfinite(inputs).all(axis=1) & (reference > 0) & np.isfinite(both).all(axis=(1, 2))
    usual = valid & (order < len(near))  # far from the prior, an amplitude may be any
    low, high = np.percentile(targets[usual], _ORDINARY, axis=(0, 2))
    limits = _targets(scaling, bounds.T, np.ones(2))
    low, high = np.where(bounded, limits, [low, high])
    if scale is not None:  # that of a short T2 exceeds the others a thousandfold
        low[scale] = max(low[scale], _LEAST_AMPLITUDE * np.median(targets[usual, scale]))
        logarithmic = logarithmic | (np.arange(len(bounds)) == scale)
    heads = _heads("confidence", inputs, low, high, logarithmic, bounded)
    shares = heads.shares(np.where(valid[:, None, None], targets, 1))
    equal = np.ones(len(bounds)), np.ones(len(inputs))
    return _trained(heads, recipe, scaling, train, inputs, shares, valid, *equal)


def _recipe(kind: Kind, recipe: Recipe) -> Recipe:
    """The recipe of intervals beside a network of estimates, whose recipe may be a small one."""
    signals = min(_VOXELS[kind], recipe.signals)
    epochs, batch = min(_EPOCHS[kind], 2 * recipe.epochs), max(1, min(_BATCH, signals // 50))
    held = max(_HELD, 1 / signals)
    warmup = max(1, min(_WARMUP, int(epochs * signals * (1 - held)) // batch // 10))
    return Recipe.every_level(
        name=kind,
        signals=signals,
        epochs=epochs,
        batch=batch,
        rate=1e-2,
        warmup=warmup,
        restarts=1,
        validation=held,
        width=_WIDTH,
    )


def _heads(kind: Kind, inputs: np.ndarray, low, high, logarithmic=None, snapped=None) -> Heads:
    size = len(low)
    logs, on = (np.zeros(size, bool) if each is None else each for each in (logarithmic, snapped))
    low, high = (np.where(logs, np.log(np.where(logs, x, 1)), x) for x in (low, high))
    return Heads(
        kind,
        Architecture(inputs.shape[1], size * (len(LEVELS[kind]) + 1), _WIDTH),
        *(tuple(limit.astype(np.float32).tolist()) for limit in (low, high)),
        *(tuple(flags.tolist()) for flags in (logs, on)),
        margin=_MARGIN if kind == "credible" else 0.0,
    )


def _trained(
    heads: Heads,
    recipe: Recipe,
    scaling: Scaling,
    train: Train,
    inputs: Float[np.ndarray, "N I"],
    shares: Float[np.ndarray, "N P E"],
    valid: Bool[np.ndarray, " N"],
    weights: Float[np.ndarray, " P"],
    precision: Float[np.ndarray, " N"],
) -> IntervalNetwork:
    """The network taught shares, with weights of the parameters and of the voxels."""
    if scaling.scale is not None:
        weights[scaling.scale] *= _SCALE_WEIGHT
    of_voxels = precision / precision[valid].mean()
    targets = np.column_stack([shares.reshape(len(shares), -1), of_voxels]).astype(np.float32)
    examples = Examples(inputs, targets[None], valid[None], weights[None])
    result = train(examples, heads, recipe)
    if result.weights is None:
        raise InputError(
            f"training of {heads.kind} intervals: {result.reasons[0]}; train without intervals"
        )
    record = {
        "kind": heads.kind,
        "level": LEVEL,
        "recipe": asdict(recipe),
        "validation": {"loss": result.loss, "epoch": result.epoch},
    }
    return IntervalNetwork(heads, result.weights, record)


def _some(voxels: Voxels, rows: slice) -> Voxels:
    return Voxels(*(each[rows] for each in vars(voxels).values()))


def _ends(ends: Ends, voxels: Voxels) -> Float[np.ndarray, "N P 2"]:
    """Low and high ends of each parameter; NaN where a voxel has none."""
    found = ends(voxels.signal, voxels.sigma)
    both = np.stack([found.stats["low"], found.stats["high"]], axis=-1)
    return np.where(has_values(found.status)[:, None, None], both, np.nan)


def _targets(
    scaling: Scaling, params: Float[np.ndarray, "N P"], reference: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N P"]:
    return np.array(scaling.targets(jnp.asarray(params.T), jnp.asarray(reference)), float).T
