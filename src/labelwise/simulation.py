"""Voxels whose truth is known: parameters from a prior, signals from a model, noise on top.

Voxels are made in blocks of a fixed size, block i from `fold_in(key, i)` alone, so that any number
of them needs the memory of one block and compiles one program. A block is always drawn whole: fewer
voxels are the first of more.
"""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from labelwise.models.base import SignalModel, detached, measurements
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.priors import Prior
from labelwise.types import InputError, Voxels

BLOCK = 65536
"""Voxels in one block, unless told otherwise."""

Sigma = float | tuple[float, float]
"""Noise of one channel: the same for all voxels, or lowest and highest of a log-uniform draw."""


def simulate(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    sigma: Sigma,
    n: int,
    key: PRNGKeyArray,
) -> Voxels:
    """n noisy voxels and the parameters that they were made from, in float32.

    The concatenation of `stream` with blocks of 65,536: the same key gives the same bytes, and the
    first voxels of a larger n.

    Args:
        model: the signal model with its acquisition.
        noise: the noise that is added.
        prior: where the parameters come from; its names are those of the model, in its order.
        sigma: noise of one channel, in the unit of the signal, for all voxels; or lowest and
            highest, between which every voxel gets its own, log-uniform.
        n: how many.
        key: `jax.random.key(seed)`.

    Raises:
        InputError: if the prior is not one of the model's parameters, sigma is not positive, finite
            and ordered, or a signal is not finite.

    Example:
        >>> import labelwise as lw
        >>> from labelwise.priors import Uniform
        >>> model = lw.IVIM([0, 0.01, 0.05, 0.2, 0.4, 0.8])
        >>> key = jax.random.key(0)
        >>> voxels = simulate(model, lw.Rician(), Uniform.paper(), (1 / 60, 1 / 5), 1000, key)
        >>> voxels.signal.shape, voxels.sigma.shape, voxels.params.shape
        ((1000, 6), (1000,), (1000, 4))
    """
    blocks = stream(model, noise, prior, sigma, n, key)
    voxels = Voxels(
        signal=np.empty((n, measurements(model)), np.float32),
        sigma=np.empty(n, np.float32),
        params=(params := np.empty((n, len(prior.names)), np.float32)),
    )
    first = 0
    for block in blocks:
        rows = slice(first, first + len(block))
        voxels.signal[rows], voxels.sigma[rows] = block.signal, block.sigma
        params[rows] = block.params
        first += len(block)
    return voxels


def stream(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    sigma: Sigma,
    n: int,
    key: PRNGKeyArray,
    size: int = BLOCK,
) -> Iterator[Voxels]:
    """The same voxels block by block, for more of them than fit into memory.

    Block i depends on `fold_in(key, i)` and `size` only; the last one may be shorter. Arguments and
    errors as for `simulate`; wrong arguments are found at the call, signals that are not finite
    when their block is made.

    Args:
        model: the signal model with its acquisition.
        noise: the noise that is added.
        prior: where the parameters come from.
        sigma: noise of one channel, or lowest and highest.
        n: how many voxels in all.
        key: `jax.random.key(seed)`.
        size: voxels in one block.

    Example:
        >>> import labelwise as lw
        >>> from labelwise.priors import Uniform
        >>> model, prior = lw.ADC([0, 0.5, 1]), Uniform({"S0": (0.8, 1.2), "ADC": (0.3, 3)})
        >>> blocks = stream(model, lw.Rician(), prior, 0.05, 10, jax.random.key(0), size=4)
        >>> [len(block) for block in blocks]
        [4, 4, 2]
    """
    _check_names(model, prior)
    limits = _checked_sigma(sigma)
    if n < 0 or size < 1:
        raise InputError(f"n, size: expected n >= 0 voxels in blocks of size >= 1, got {n}, {size}")

    def blocks() -> Iterator[Voxels]:
        for index, first in enumerate(range(0, n, size)):
            count = min(size, n - first)
            block_key = jax.random.fold_in(key, index)
            yield _block(model, noise, prior, limits, size, count, block_key)

    return blocks()


def _block(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    limits: tuple[float, float],
    size: int,
    count: int,
    key: PRNGKeyArray,
) -> Voxels:
    """The first `count` voxels of one block."""
    with jax.enable_x64(False):  # the same bytes whatever the caller has set
        params_key, sigma_key, noise_key = jax.random.split(key, 3)
        params = np.asarray(prior.sample(params_key, size), np.float32)
        if params.shape != (size, len(prior.names)):
            raise InputError(
                f"prior: sample(key, {size}) must be ({size}, {len(prior.names)}), "
                f"got {params.shape}"
            )
        sigma = _sigma_of_voxels(sigma_key, limits, size)
        if model.differentiable:
            made = _simulated(detached(model), noise, noise_key, params, sigma)
            signal = np.asarray(made)[:count]
        else:
            clean = np.zeros((size, measurements(model)), np.float32)
            with np.errstate(all="ignore"):  # what overflows is refused below
                clean[:count] = signals(model, params[:count].astype(float))
            signal = np.asarray(_noisy(noise, noise_key, clean, sigma))[:count]
    _refuse_not_finite(model, params[:count], signal)
    return Voxels(signal=signal, sigma=sigma[:count], params=params[:count])


def _sigma_of_voxels(
    key: PRNGKeyArray, limits: tuple[float, float], size: int
) -> Float[np.ndarray, " size"]:
    low, high = limits
    if low == high:
        return np.full(size, low, np.float32)
    share = np.asarray(jax.random.uniform(key, (size,)), float)
    return (low * (high / low) ** share).astype(np.float32)


@eqx.filter_jit
def _simulated(model, noise, key, params, sigma):
    clean = jax.vmap(lambda voxel: model.signal(*voxel))(params)
    return noise.sample(key, clean, sigma[:, None])


@eqx.filter_jit
def _noisy(noise, key, signal, sigma):
    return noise.sample(key, signal, sigma[:, None])


def _check_names(model: SignalModel, prior: Prior) -> None:
    names = tuple(parameter.name for parameter in model.parameters)
    if tuple(prior.names) != names:
        raise InputError(
            f"prior: expected the parameters of {type(model).__name__} in their order, "
            f"{', '.join(names)}; got {', '.join(prior.names)}"
        )


def _checked_sigma(sigma: Sigma) -> tuple[float, float]:
    """Lowest and highest; equal where sigma is one number."""
    limits = np.asarray(sigma, float)
    usable = limits.shape in ((), (2,)) and np.all(np.isfinite(limits) & (limits > 0))
    if not usable or (limits.ndim and not limits[0] < limits[1]):
        raise InputError(
            f"sigma: expected a positive number, or (low, high) with 0 < low < high, got {sigma!r}"
        )
    return float(limits.min()), float(limits.max())


def _refuse_not_finite(model: SignalModel, params: np.ndarray, signal: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(signal).all(axis=1))
    if len(bad):
        values = zip(model.parameters, params[bad[0]], strict=True)
        first = ", ".join(f"{parameter.name} = {value:.6g}" for parameter, value in values)
        raise InputError(
            f"{type(model).__name__}: the signal of {len(bad)} of {len(params)} simulated voxels "
            f"is not finite, first for {first}; narrow the prior, or mend the model there"
        )
