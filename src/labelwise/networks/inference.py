"""Application of networks to voxels: arrays in full blocks on all cores, with noise propagation.

`network` checks the input and assigns a status to each estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting import available_cores
from labelwise.fitting.batching import blocks
from labelwise.fitting.compiler import plain_kernels
from labelwise.networks.intervals import Heads, IntervalNetwork
from labelwise.networks.mlp import Architecture, Scaling, Weights, apart
from labelwise.noise import NoiseModel

WIDTH = 2048
"""Voxels in a block: always the same, so that estimates do not depend on their neighbours."""


Part = tuple[Architecture, Scaling, Weights, Float[np.ndarray, " P"]]
"""A network of a blend, and its share of each parameter."""


def apply(
    parts: Sequence[Part],
    noise: NoiseModel,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, " N"],
    *,
    errors: bool = True,
    intervals: Sequence[IntervalNetwork] = (),
) -> tuple[
    Float[np.ndarray, "N P"],
    Float[np.ndarray, "N P"] | None,
    Float[np.ndarray, " N"],
    Float[np.ndarray, "3 N P"] | None,
]:
    """The estimates of a blend of networks for N valid voxels.

    Args:
        parts: the networks; the shares of each parameter sum to 1.
        noise: the noise model of the measurements.
        signal: (N, M) in float32; N is at least 1.
        sigma: (N,) in float32.
        errors: whether to compute standard errors, which take most of the time.
        intervals: the network of intervals beside each network; none for no intervals.

    Returns:
        The parameters, their standard errors (noise propagated to first order; None without
        `errors`), sigma over the reference of the voxel, and the ends of `Heads.ends` (None without
        `intervals`), blended as the parameters are.
    """
    heads = tuple(each.heads for each in intervals)
    program = _program(tuple(part[:2] for part in parts), heads, noise, errors)
    weights = tuple(part[2] for part in parts), tuple(each.weights for each in intervals)
    shares = tuple(part[3] for part in parts)
    voxels, size = len(signal), len(shares[0])
    values = np.empty((voxels, size), np.float32)
    scatter = np.empty((voxels, size), np.float32) if errors else None
    level = np.empty(voxels, np.float32)
    ends = np.empty((3, voxels, size), np.float32) if intervals else None

    def estimate(mine: slice, rows: slice | Int[np.ndarray, " WIDTH"]) -> None:
        # transposed here: in the program, the last voxels of a block would round differently
        results = program(weights, shares, signal[rows].T, sigma[rows])
        for whole, part in zip((values, scatter, level), results[:3], strict=True):
            if whole is not None:
                whole[mine] = np.asarray(part).T[: len(whole[mine])]
        if ends is not None:
            for whole, part in zip(ends, np.asarray(results[3]), strict=True):
                whole[mine] = part.T[: len(whole[mine])]

    first, *others = blocks(voxels, WIDTH)
    estimate(*first)  # compiles
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(lambda block: estimate(*block), others))
    return values, scatter, level, ends


@cache
def _program(
    parts: tuple[tuple[Architecture, Scaling], ...],
    heads: tuple[Heads, ...],
    noise: NoiseModel,
    errors: bool,
) -> Callable:
    """The program of a blend: values, standard errors (P, N), noise level (N,), ends (3, P, N)."""

    def predict(weights, shares, data, sigma):
        weights, interval_weights = weights

        def params(data):
            total = jnp.zeros((len(shares[0]), data.shape[1]), data.dtype)
            for (architecture, scaling), weight, share in zip(parts, weights, shares, strict=True):
                outputs = architecture(weight, scaling.inputs(data, sigma), apart)
                total += share[:, None] * scaling.params(outputs, scaling.reference_of(data))
            return total

        level = sigma / parts[0][1].reference_of(data)
        ends = None
        if heads:
            ends = jnp.zeros((3, len(shares[0]), data.shape[1]), data.dtype)
            each = zip(heads, parts, interval_weights, shares, strict=True)
            for head, (_, scaling), weight, share in each:
                found = head.ends(weight, scaling.inputs(data, sigma), apart)
                units = scaling.params(jnp.ones_like(found[0]), scaling.reference_of(data))
                ends += share[:, None] * found * units
        if not errors:
            return params(data), None, level, ends
        values, pull = jax.vjp(params, data)
        variance = noise.variance_near(data, sigma)
        scatter = []
        for parameter in range(len(values)):  # faster here than a vmap
            (slopes,) = pull(jnp.zeros_like(values).at[parameter].set(1))
            scatter.append(jnp.sqrt(jnp.sum(slopes * slopes * variance, axis=0)))
        return values, jnp.stack(scatter), level, ends

    return jax.jit(predict, compiler_options=plain_kernels())
