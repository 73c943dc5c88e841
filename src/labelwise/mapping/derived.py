"""Maps of what is calculated from the parameters, with propagated intervals and errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.evaluation.cramer_rao import fisher_information
from labelwise.mapping.maps import Map, maps_of_quantity
from labelwise.models import SignalModel
from labelwise.noise import NoiseModel
from labelwise.types import Derived, Estimate


def maps_of_derived(derived: Sequence[Derived], kinds: Set[str], errors: bool) -> list[Map]:
    """For each derived quantity its map, and its interval, standard error or both.

    Args:
        derived: the quantities.
        kinds: of the intervals of the parameters; empty if there are none.
        errors: whether standard errors are wanted.
    """
    kind = next(iter(kinds)) if len(kinds) == 1 else "blend"
    maps = []
    for column, each in enumerate(derived):
        maps += maps_of_quantity(
            each.name,
            each.unit,
            f"{each.name}, calculated from the parameters",
            f"standard error of {each.name}: those of the parameters, with the correlations of the "
            "Fisher information at the estimate, propagated to first order; NaN where it depends "
            "on a parameter without standard error",
            kind if kinds else None,
            errors,
            lambda estimate, stat, column=column: estimate.stats[f"derived_{stat}"][:, column],
            origin="the intervals of the parameters, propagated to first order; ",
        )
    return maps


def with_derived(
    estimate: Estimate,
    model: SignalModel,
    noise: NoiseModel,
    sigma: Float[np.ndarray, "#n #M"],
    nominal: Float[np.ndarray, "n P"] | None = None,
) -> Estimate:
    """The estimate with the values (n, K) of K derived quantities, their errors and intervals.

    First order: the variance of a function with gradient g is Σ g_i g_j SE_i SE_j R_ij. The
    standard errors SE are those of the estimate, whether of a fit or a network; the correlations R
    are those of the inverse Fisher information of the parameters that have one.

    An end of an interval is combined in the same way, from the changes of the function when one
    parameter moves to an end of its own interval (method of variance estimates recovery, Zou &
    Donner 2008, doi:10.1002/sim.3095). A function of one parameter has that parameter's interval.

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
    found = {"derived_value": values, "derived_standard_error": error}
    if "low" in estimate.stats:
        correlation = covariance / (spread[:, :, None] * spread[:, None, :])
        ends = [np.asarray(estimate.stats[end], float) for end in ("low", "high")]
        found |= _ends(model.derived, params, ends, values, correlation)
    found = {name: rows.astype(np.float32) for name, rows in found.items()}
    return replace(estimate, stats={**estimate.stats, **found})


def _ends(
    derived: tuple[Derived, ...],
    params: Float[np.ndarray, "n P"],
    ends: Sequence[Float[np.ndarray, "n P"]],
    values: Float[np.ndarray, "n K"],
    correlation: Float[np.ndarray, "n P P"],
) -> dict[str, Float[np.ndarray, "n K"]]:
    """The ends of the intervals of derived quantities, from the parameters' ends."""
    changes = np.empty((2, *values.shape, params.shape[1]))
    for side, column in itertools.product((0, 1), range(params.shape[1])):
        moved = params.copy()
        moved[:, column] = ends[side][:, column]
        with jax.enable_x64(True):
            changes[side, ..., column] = np.asarray(_values(derived, moved)) - values
    found = {}
    for name, sign in (("low", -1), ("high", 1)):
        outwards = np.maximum(sign * changes, 0)
        by_upper = outwards[1] > outwards[0]
        signed = np.where(by_upper, outwards[1], -outwards[0])
        squared = np.einsum("nkp,npq,nkq->nk", signed, correlation, signed)
        end = values + sign * np.sqrt(np.maximum(squared, 0))
        for column in range(len(derived)):  # no farther than where all parameters are at their ends
            corner = np.where(by_upper[:, column], ends[1], ends[0])
            corner = np.where(signed[:, column] == 0, params, corner)
            with jax.enable_x64(True):
                limit = np.asarray(_values(derived[column : column + 1], corner))[:, 0]
            nearest = np.maximum if sign < 0 else np.minimum
            end[:, column] = nearest(end[:, column], limit)
        found[f"derived_{name}"] = end
    return found


def _of_voxel(derived: tuple[Derived, ...], voxel: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(each.function(*voxel), voxel.dtype) for each in derived])


@partial(jax.jit, static_argnums=0)
def _values(
    derived: tuple[Derived, ...], params: Float[np.ndarray, "n P"]
) -> Float[jax.Array, "n K"]:
    """The derived quantities of n voxels."""
    return jax.vmap(partial(_of_voxel, derived))(params)


@partial(jax.jit, static_argnums=0)
def _evaluate(
    derived: tuple[Derived, ...], params: Float[np.ndarray, "n P"]
) -> tuple[Float[jax.Array, "n K"], Float[jax.Array, "n K P"]]:
    """The derived quantities of n voxels and their gradients."""
    of_voxel = partial(_of_voxel, derived)
    return jax.vmap(of_voxel)(params), jax.vmap(jax.jacfwd(of_voxel))(params)
