"""Signals and Jacobians of many voxels."""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from labelwise.models.base import SignalModel, detached
from labelwise.types import InputError


def signals(model: SignalModel, params: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N M"]:
    """The noise-free signal of N voxels, in float64."""
    if model.differentiable:
        with jax.enable_x64(True):
            return np.asarray(_signals(detached(model), np.asarray(params, dtype=np.float64)))
    if model.vectorized:
        return np.asarray(model.signal(*(column[:, None] for column in params.T)))
    return np.stack([np.asarray(model.signal(*voxel)) for voxel in params])


def jacobian(model: SignalModel, params: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N M P"]:
    """d signal / d params of N voxels, in float64; by differences if not differentiable."""
    if not model.differentiable:
        return differences(model, params)
    with jax.enable_x64(True):
        return np.asarray(_jacobian(detached(model), np.asarray(params, dtype=np.float64)))


def differences(model: SignalModel, params: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N M P"]:
    """d signal / d params of N voxels by central differences, one-sided at a parameter's bound."""
    columns = []
    for index, parameter in enumerate(model.parameters):
        lower, upper = parameter.bounds
        value = params[:, index]
        width = upper - lower if np.isfinite(upper) else 1.0
        step = 6e-6 * np.maximum(np.abs(value), 1e-3 * width)  # about the cube root of epsilon
        above, below = params.copy(), params.copy()
        above[:, index] = np.minimum(value + step, np.maximum(upper, value))
        below[:, index] = np.maximum(value - step, np.minimum(lower, value))
        run = (above - below)[:, index, None]
        columns.append((signals(model, above) - signals(model, below)) / run)
    return np.stack(columns, axis=-1)


@eqx.filter_jit
def _signals(model, params):
    return jax.vmap(lambda voxel: model.signal(*voxel))(params)


@eqx.filter_jit
def _jacobian(model, params):
    return jax.vmap(jax.jacfwd(lambda voxel: model.signal(*voxel)))(params)


def validated_params(
    model: SignalModel, params: Float[np.ndarray, "N P"]
) -> Float[np.ndarray, "N P"]:
    """The parameters of N voxels in float64, after a check of their shape.

    Raises:
        InputError: if there is not one column for each parameter of the model.
    """
    params = np.asarray(params, dtype=np.float64)
    names = [parameter.name for parameter in model.parameters]
    if params.ndim != 2 or params.shape[1] != len(names):
        raise InputError(
            f"params: expected shape (N, {len(names)}), one column for each of {', '.join(names)}, "
            f"got {params.shape}"
        )
    return params
