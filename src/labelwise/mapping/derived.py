"""Maps of quantities that are calculated from the parameters, with propagated standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.evaluation.cramer_rao import fisher_information
from labelwise.mapping.maps import Map
from labelwise.models import SignalModel
from labelwise.noise import NoiseModel
from labelwise.types import STANDARD_ERROR, Derived, Estimate


def maps_of_derived(derived: Sequence[Derived]) -> list[Map]:
    """For each derived quantity its map and its standard error."""
    maps = []
    for column, each in enumerate(derived):
        for ending, stat, words in (
            ("", "derived", "{}, calculated from the parameters"),
            (
                STANDARD_ERROR,
                "derived_error",
                "standard error of {}: those of the parameters, with the correlations of the "
                "Fisher information at the estimate, propagated to first order; NaN where it "
                "depends on a parameter without standard error",
            ),
        ):
            maps.append(
                Map(
                    f"{each.name}{ending}",
                    lambda estimate, stat=stat, column=column: estimate.stats[stat][:, column],
                    words.format(each.name),
                    each.unit,
                )
            )
    return maps


def with_derived(
    estimate: Estimate,
    model: SignalModel,
    noise: NoiseModel,
    sigma: Float[np.ndarray, "#n #M"],
    nominal: Float[np.ndarray, "n P"] | None = None,
) -> Estimate:
    """The estimate with the values (n, K) of K derived quantities, and their standard errors.

    First order: the variance of a function with gradient g is Σ g_i g_j SE_i SE_j R_ij. The
    standard errors SE are those of the estimate, whether of a fit or a network; the correlations R
    are those of the inverse Fisher information of the parameters that have one.

    Args:
        estimate: of n voxels, with `standard_error`.
        model: the signal model of all measurements.
        noise: the noise model.
        sigma: noise of one channel.
        nominal: (n, P) the estimates at the settings of the model, where b is voxel-wise and the
            diffusivities were corrected; factors leave their correlations as they are.
    """
    if not model.derived:
        return estimate
    params = np.asarray(estimate.values, float)
    errors = np.asarray(estimate.stats["standard_error"], float)
    with jax.enable_x64(True):
        values, gradient = (np.asarray(rows) for rows in _evaluate(model.derived, params))
    left = estimate.stats.get("left_out")
    if left is not None and np.any(left):
        sigma = np.where(left > 0, np.inf, sigma)
    free = np.isfinite(errors)
    at = params if nominal is None else np.asarray(nominal, float)
    information = fisher_information(model, noise, at, sigma)
    known = free[:, :, None] & free[:, None, :] & np.isfinite(information)
    information = np.where(known, information, np.eye(params.shape[1]))
    root = np.sqrt(np.maximum(np.einsum("npp->np", information), 1e-300))
    scaled = information / (root[:, :, None] * root[:, None, :])
    covariance = np.linalg.inv(scaled + 1e-12 * np.eye(params.shape[1]))
    spread = np.sqrt(np.maximum(np.einsum("npp->np", covariance), 1e-300))
    weighted = gradient * np.where(free, errors / spread, 0)[:, None]
    variance = np.einsum("nkp,npq,nkq->nk", weighted, covariance, weighted)
    determined = ~np.any((gradient != 0) & ~free[:, None], axis=-1)
    error = np.where(determined, np.sqrt(np.maximum(variance, 0)), np.nan)
    found = {"derived": values.astype(np.float32), "derived_error": error.astype(np.float32)}
    return replace(estimate, stats={**estimate.stats, **found})


@partial(jax.jit, static_argnums=0)
def _evaluate(
    derived: tuple[Derived, ...], params: Float[np.ndarray, "n P"]
) -> tuple[Float[jax.Array, "n K"], Float[jax.Array, "n K P"]]:
    """The derived quantities of n voxels and their gradients."""

    def of_voxel(voxel):
        return jnp.stack([jnp.asarray(each.function(*voxel), voxel.dtype) for each in derived])

    return jax.vmap(of_voxel)(params), jax.vmap(jax.jacfwd(of_voxel))(params)
