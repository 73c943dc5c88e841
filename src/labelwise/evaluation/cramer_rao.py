"""The Cramér-Rao bound: the smallest standard deviation of unbiased estimates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.models import SignalModel
from labelwise.models.evaluate import jacobian, signals, validated_params
from labelwise.noise import NoiseModel
from labelwise.types import sigma_of_voxels


def cramer_rao(
    model: SignalModel,
    noise: NoiseModel,
    params: Float[np.ndarray, "N P"],
    sigma: Float[np.ndarray, "#N *#M"] | float,
) -> Float[np.ndarray, "N P"]:
    """The smallest standard deviation of an unbiased estimator, for each parameter.

    √ of the diagonal of the inverse Fisher information. Bounds of the parameters are not taken
    into account: the std of a bounded estimator, or of any biased one, may be smaller.

    Args:
        model: the signal equation with its acquisition.
        noise: the noise model.
        params: (N, P) the true parameters, in their own units.
        sigma: noise of one channel in the signal's unit: a number, (N,), (N, M) or (1, M).

    Returns:
        (N, P) in the parameters' units. Infinite where the measurements do not determine a
        parameter (D_fast where f is 0); NaN where `params` is not finite or `sigma` is not
        positive.

    Raises:
        InputError: if `params` or `sigma` has another shape.

    Source: Karlsen, Verhagen & Bovée 1999,
    doi:10.1002/(SICI)1522-2594(199903)41:3<614::AID-MRM26>3.0.CO;2-1.

    Example:
        >>> from labelwise import ADC, Rician
        >>> cramer_rao(ADC([0, 0, 1, 1]), Rician(), np.array([[100.0, 1.0]]), 2.0).round(3)
        array([[1.414, 0.041]])
    """
    information = fisher_information(model, noise, params, sigma)
    usable = np.asarray(np.isfinite(information).all(axis=(1, 2)))
    root = np.sqrt(np.diagonal(information, axis1=1, axis2=2))
    scale = np.where(usable[:, None] & (root > 0), root, 1.0)
    scaled = information / (scale[:, :, None] * scale[:, None, :])
    scaled = np.where(usable[:, None, None], scaled, np.eye(scaled.shape[1]))
    eigenvalues, eigenvectors = np.linalg.eigh(scaled)
    share = eigenvectors**2  # of parameter p in direction k
    singular = eigenvalues[:, None, :] < 1e-13
    variance = np.sum(
        np.where(singular, 0, share / np.where(singular, 1, eigenvalues[:, None, :])), -1
    )
    variance[np.any(singular & (share > 1e-9), axis=-1)] = np.inf
    return np.where(usable[:, None], np.sqrt(variance) / scale, np.nan)


def fisher_information(
    model: SignalModel,
    noise: NoiseModel,
    params: Float[np.ndarray, "N P"],
    sigma: Float[np.ndarray, "#N *#M"] | float,
) -> Float[np.ndarray, "N P P"]:
    """The Fisher information of one voxel's M measurements about its P parameters, in float64.

    Σ over measurements of I(S) · dS/dp · dS/dq, where I(S) is the information of one measurement
    about its own noise-free signal S. Arguments, errors and source as for `cramer_rao`; a
    measurement with an infinite sigma does not count.

    Example:
        >>> from labelwise import ADC, Gaussian
        >>> fisher_information(ADC([0, 1]), Gaussian(), np.array([[1.0, 0.0]]), 0.1).round(3)
        array([[[ 200., -100.],
                [-100.,  100.]]])
    """
    slopes, weight, finite = _slopes_and_weights(model, noise, params, sigma)
    information = np.einsum("nmp,nm,nmq->npq", slopes, weight, slopes)
    return np.where(finite[:, :, None], information, np.nan)


def measurement_information(
    model: SignalModel,
    noise: NoiseModel,
    params: Float[np.ndarray, "N P"],
    sigma: Float[np.ndarray, "#N *#M"] | float,
) -> Float[np.ndarray, "N M P P"]:
    """The terms of the sum in `fisher_information`: of each measurement by itself."""
    slopes, weight, finite = _slopes_and_weights(model, noise, params, sigma)
    information = np.einsum("nmp,nm,nmq->nmpq", slopes, weight, slopes)
    return np.where(finite[:, :, None, None], information, np.nan)


def _slopes_and_weights(model, noise, params, sigma):
    """d signal / d params (N, M, P), information about the signal (N, M), finite voxels (N, 1)."""
    params = validated_params(model, params)
    finite = np.asarray(np.isfinite(params).all(axis=1))[:, None]
    params = np.where(finite, params, [parameter.bounds[0] for parameter in model.parameters])
    signal, slopes = signals(model, params), jacobian(model, params)
    level = sigma_of_voxels(np.asarray(sigma, np.float64), *signal.shape)
    level = np.broadcast_to(np.where(level > 0, level, np.nan), signal.shape)
    gone = np.isposinf(level)
    with jax.enable_x64(True):
        used = jnp.asarray(np.where(gone, 1, level))
        weight = np.where(gone, 0, np.asarray(noise.information(jnp.asarray(signal), used)))
    return slopes, weight, finite
