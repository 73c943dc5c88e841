"""Simulated voxels: parameters from a prior, signals from a model, and noise.

Voxels are simulated in blocks of a fixed size, block i from `fold_in(key, i)` only, so that any
number of them needs the memory of one block and one compilation. Blocks are always sampled
completely: fewer voxels are the first of more.
"""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from labelwise.limits import check_memory
from labelwise.models.base import SignalModel, detached, measurements
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.priors import Prior
from labelwise.types import InputError, Voxels

BLOCK = 65536
"""The default number of voxels in a block."""

Sigma = float | tuple[float, float]
"""Noise of one channel: one value for all voxels, or the range of a log-uniform distribution."""


def simulate(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    sigma: Sigma,
    n: int,
    key: PRNGKeyArray,
) -> Voxels:
    """Simulate n noisy voxels, with their true parameters, in float32.

    The result is the concatenation of `stream` with blocks of 65,536. The same key gives the same
    bytes, and the first voxels of a larger n.

    Args:
        model: the signal model with its acquisition.
        noise: the noise model.
        prior: of the parameters; its names are those of the model, in its order.
        sigma: noise of one channel, in the unit of the signal, for all voxels; or the range of a
            log-uniform distribution of the sigma of each voxel.
        n: number of voxels.
        key: `jax.random.key(seed)`.

    Raises:
        InputError: if the prior has other parameters than the model, sigma is not positive, finite
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
    numbers = n * (measurements(model) + len(prior.names) + 1)
    check_memory(4.0 * numbers, f"simulating {n:,} voxels", "simulate fewer")
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
    """Simulate voxels block by block, for more of them than fit into memory.

    Block i depends on `fold_in(key, i)` and `size` only; the last one may be shorter. Arguments and
    errors as for `simulate`; arguments are checked at the call, signals when their block is
    simulated.

    Args:
        model: the signal model with its acquisition.
        noise: the noise model.
        prior: of the parameters.
        sigma: noise of one channel, or its range.
        n: total number of voxels.
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
    limits = _sigma_range(sigma)
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
    with jax.enable_x64(False):  # the same bytes for any setting of the caller
        params_key, sigma_key, noise_key = jax.random.split(key, 3)
        params = np.asarray(prior.sample(params_key, size), np.float32)
        if params.shape != (size, len(prior.names)):
            raise InputError(
                f"prior: sample(key, {size}) must be ({size}, {len(prior.names)}), "
                f"got {params.shape}"
            )
        sigma = _sigma_of_voxels(sigma_key, limits, size)
        if model.differentiable:
            simulated = _simulated(detached(model), noise, noise_key, params, sigma)
            signal = np.asarray(simulated)[:count]
        else:
            clean = np.zeros((size, measurements(model)), np.float32)
            with np.errstate(all="ignore"):  # overflow is an error below
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


def _sigma_range(sigma: Sigma) -> tuple[float, float]:
    """The validated range of sigma; its ends are equal for a number."""
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
            f"is not finite, first for {first}; narrow the prior, or correct the model there"
        )
