"""Whether the assumptions behind intervals hold, checked on some voxels of a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.mapping.request import Request
from labelwise.models.evaluate import signals
from labelwise.networks.network import Member, Network
from labelwise.noise import evaluate

_SYSTEMATIC = 0.25  # of the noise: a larger mean residual of one measurement is the model's
_UNLIKE = 0.05  # of the voxels: a larger share is unlike what was simulated
_ENOUGH = 100  # voxels, for means whose errors are below a tenth of the noise


def systematic_residuals(
    request: Request,
    signal: Float[np.ndarray, "n M"],
    sigma: Float[np.ndarray, "#n #M"],
    values: Float[np.ndarray, "n P"],
    scatter: float | None = None,
) -> list[str]:
    """A note on measurements that the estimates miss on average, in units of the noise.

    Args:
        request: model and noise.
        signal: the measurements.
        sigma: noise of one channel; infinite for a measurement that is left out.
        values: the estimates, without NaN.
        scatter: of the measurements, if it is more than sigma.
    """
    if len(signal) < _ENOUGH:
        return []
    clean = signals(request.model, np.asarray(values, float))
    sigma = np.broadcast_to(sigma, clean.shape)
    used = np.isfinite(sigma)
    sigma = np.where(used, sigma, 1.0)
    mean = np.asarray(evaluate(request.noise.mean, clean, sigma))
    spread = np.sqrt(np.asarray(evaluate(request.noise.variance, clean, sigma)))
    spread = np.maximum(spread, scatter or 0.0)
    missed = np.where(used, (signal - mean) / spread, np.nan)
    means = np.array([np.nanmean(m) if np.isfinite(m).any() else 0.0 for m in missed.T])
    worst = int(np.argmax(np.abs(means)))
    if abs(means[worst]) <= _SYSTEMATIC:
        return []
    name, at = next(iter(request.acquisition.items()))
    return [
        f"volume {request.volumes[worst]} ({name} = {at[worst]:g}) lies {abs(means[worst]):.2g} "
        f"sigma {'above' if means[worst] > 0 else 'below'} the fitted curves on average: the model "
        "does not describe the signal, and intervals do not include that; try another model, or "
        "--exclude. A small third compartment may not be seen by this check"
    ]


def unlike_simulated(
    network: Network, signal: Float[np.ndarray, "n M"], sigma: Float[np.ndarray, " n"]
) -> list[str]:
    """A note on parameters whose posterior median contradicts the measurements in many voxels.

    That is where it lies outside the confidence interval: the tissue is unlike what was simulated.

    Args:
        network: a blend with intervals; others get no note.
        signal: the measurements.
        sigma: noise of one channel.
    """
    if not network.is_blend or len(signal) < _ENOUGH:
        return []
    mle, truth = network.members
    if mle.interval is None or truth.interval is None:
        return []
    confidence = network.ends[0](signal, sigma)
    low, high = confidence.stats["low"], confidence.stats["high"]
    medians = _medians(truth, signal, sigma)
    share = np.mean((medians < low) | (medians > high), axis=0)
    scale = truth.scaling.scale
    found = [
        f"{parameter.name} {100 * part:.0f} %"
        for column, (parameter, part) in enumerate(zip(network.parameters, share, strict=True))
        if part > _UNLIKE and column != scale
    ]
    if not found:
        return []
    return [
        "the tissue is unlike what was simulated: the median under the simulated ranges lies "
        f"outside the confidence interval ({', '.join(found)} of the voxels), so credible "
        "intervals and small alpha mislead there; --prior or --preset fits the ranges to it"
    ]


def _medians(
    member: Member, signal: Float[np.ndarray, "n M"], sigma: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n P"]:
    """The median of the posterior by a network of credible intervals."""
    assert member.interval is not None
    scaling, data = member.scaling, jnp.asarray(signal.T, jnp.float32)
    inputs = scaling.inputs(data, jnp.asarray(sigma, jnp.float32))
    found = jax.jit(member.interval.heads.quantiles)(member.interval.weights, inputs)[:, 2]
    return np.asarray(scaling.params(found, scaling.reference_of(data))).T
