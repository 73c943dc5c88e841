"""Goodness of fit of the estimates of any estimator."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.fitting.batching import blocks
from labelwise.fitting.engines import residual
from labelwise.models import SignalModel
from labelwise.models.base import detached, measurements
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.types import InputError, sigma_of_voxels

_WIDTH = 4096  # voxels in a block: one compilation, and intermediate arrays fit the cache


def goodness(
    model: SignalModel,
    noise: NoiseModel,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "#N"] | float,
    values: Float[np.ndarray, "N P"],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The negative log-likelihood and the residual of N voxels, as in maximum-likelihood fits.

    The result of a voxel does not depend on its neighbours.

    Args:
        model: the signal model with its acquisition.
        noise: the noise model.
        signal: the measurements, in any unit.
        sigma: noise of one channel in that unit, a number or (N,).
        values: the estimates, in the parameters' units.

    Returns:
        nll, up to terms in data and sigma only, and √(Σ (data - expected)² / variance / (M - P)),
        about 1 for a good fit; float32. NaN for a voxel with values that are not finite or a sigma
        that is not positive.

    Raises:
        InputError: if signal, sigma and values do not fit the model or each other.

    Example:
        >>> from labelwise import ADC, Gaussian
        >>> model = ADC([0, 0, 1])
        >>> data = np.array([[101.0, 99.0, 100 * np.exp(-1.0)]])
        >>> nll, residual = goodness(model, Gaussian(), data, 1.0, np.array([[100.0, 1.0]]))
        >>> nll.round(3), residual.round(3)
        (array([1.], dtype=float32), array([1.414], dtype=float32))
    """
    signal, values = np.asarray(signal), np.asarray(values)
    expected = (len(signal), measurements(model)), (len(signal), len(model.parameters))
    if (signal.shape, values.shape) != expected:
        raise InputError(
            f"signal, values: expected shapes {expected[0]} and {expected[1]}, got {signal.shape} "
            f"and {values.shape}"
        )
    sigma = sigma_of_voxels(sigma, len(signal))[:, 0]
    result = np.full((2, len(signal)), np.nan, np.float32)
    usable = np.isfinite(sigma) & (sigma > 0)
    usable &= np.isfinite(signal.sum(axis=1)) & np.isfinite(values.sum(axis=1))
    index = np.flatnonzero(usable)
    for mine, rows in blocks(len(index), _WIDTH):
        if not usable.all():  # slices avoid a copy
            mine, rows = index[mine], index[rows]
        found = _evaluate(model, noise, signal[rows], sigma[rows], values[rows])
        result[:, mine] = found[:, : len(signal[mine])]
    return result[0], result[1]


def _evaluate(model, noise, signal, sigma, values) -> Float[np.ndarray, "2 W"]:
    with jax.enable_x64(False):
        if model.differentiable:
            result = _goodness_traced(detached(model), noise, signal, sigma, values)
        else:
            distinct, lanes = np.unique(values, axis=0, return_inverse=True)
            clean = signals(model, distinct.astype(float))[lanes]
            result = _goodness(noise, clean, signal, sigma, values.shape[1])
        return np.stack(result)


@eqx.filter_jit
def _goodness_traced(model, noise, signal, sigma, values):
    params = values.T.astype(jnp.float32)
    clean = jax.vmap(model.signal)(*params)
    return _goodness(noise, clean, signal, sigma, values.shape[1])


@eqx.filter_jit
def _goodness(noise, clean, signal, sigma, parameters):
    clean, data = (rows.T.astype(jnp.float32) for rows in (clean, signal))  # voxels last
    sigma = sigma.astype(jnp.float32)
    nll = jnp.sum(noise.nll(clean, data, sigma), axis=0)
    return nll, residual(noise, clean, data, sigma, parameters)
