"""Voxel-wise b: gradients that are not linear change b by a factor in each voxel.

A factor of b acts as the same factor of all diffusivities. So estimates at the nominal b are exact
once the diffusivities are divided by the factor; this holds for fits and for networks.

Source: Bammer et al. 2003, doi:10.1002/mrm.10545.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from labelwise.io.nifti import Series, open_image, refuse_other_grid
from labelwise.models import SignalModel
from labelwise.models.base import settings_of, within
from labelwise.models.evaluate import signals
from labelwise.types import Estimate, InputError

_PLAUSIBLE = (0.3, 3.0)
_PER_DIFFUSIVITY = ("standard_error", "low", "high")


def scaled_by_b(model: SignalModel) -> list[int]:
    """The parameters that change by 1 / c if every b is multiplied by c; found by trial.

    Raises:
        InputError: if a factor of b cannot be exchanged for one of parameters.
    """
    names, trial = [p.name for p in model.parameters], 1.07
    if "b" in settings_of(model):
        params = np.array(
            [[within(p.bounds, share) for p in model.parameters] for share in (0.2, 0.45, 0.6)]
        )
        wanted = signals(replace(model, b=settings_of(model)["b"] * trial), params)
        for size in range(1, len(names) + 1):
            for chosen in itertools.combinations(range(len(names)), size):
                moved = params.copy()
                moved[:, list(chosen)] *= trial
                if np.allclose(signals(model, moved), wanted, rtol=1e-9, atol=1e-12):
                    return list(chosen)
    raise InputError(
        "b_scale: is for models in which b multiplies diffusivities; "
        f"{type(model).__name__} is none"
    )


def read_factors(
    path: Path, series: Series, inside: Bool[np.ndarray, " V"], directional: bool = False
) -> tuple[Float[np.ndarray, " V"], list[str]]:
    """The factor of b in each voxel, and a note on its range.

    Args:
        path: an image of one volume, the factors; or of nine, the deviation L of the gradients, as
            FSL's `grad_dev`: the factor is the mean over directions, trace((1 + L)' (1 + L)) / 3.
        series: the series it belongs to.
        inside: the voxels that are estimated.
        directional: whether the model has directions, for which a mean over them is wrong.

    Raises:
        InputError: if the image is none of the two, or a factor is not plausible.
    """
    with open_image(path) as image:
        refuse_other_grid(image, series)
        if image.volumes not in (1, 9):
            raise InputError(
                f"{path}: expected one volume, the factors of b, or the nine of a gradient "
                f"deviation, got {image.volumes}"
            )
        ((_, rows),) = image.blocks(size=image.voxels)
    rows = rows.astype(float)
    if rows.shape[1] == 9 and directional:
        raise InputError(
            f"{path}: a gradient deviation changes b differently in each direction, which a model "
            "with --bvecs needs; correct directions and b for each voxel before, or leave it out"
        )
    if rows.shape[1] == 9:
        rows = np.sum((rows + np.eye(3).ravel()) ** 2, axis=1, keepdims=True) / 3
    factors = rows[:, 0]
    low, high = np.min(factors[inside]), np.max(factors[inside])
    if not _PLAUSIBLE[0] <= low <= high <= _PLAUSIBLE[1]:  # also NaN
        raise InputError(
            f"{path}: expected factors of b from {_PLAUSIBLE[0]:g} to {_PLAUSIBLE[1]:g} inside the "
            f"mask, got {low:g} to {high:g}; give b in the voxel divided by the nominal b"
        )
    return factors, [f"{path.name}: b is multiplied by {low:.3f} to {high:.3f} inside the mask"]


def corrected(estimate: Estimate, columns: list[int], factors: Float[np.ndarray, " n"]) -> Estimate:
    """The estimate with its diffusivities, and their errors, divided by the factors of b."""
    divisor = np.ones(estimate.values.shape)
    divisor[:, columns] = factors[:, None]
    stats = {
        name: (rows / divisor).astype(rows.dtype) if name in _PER_DIFFUSIVITY else rows
        for name, rows in estimate.stats.items()
    }
    values = (estimate.values / divisor).astype(estimate.values.dtype)
    return Estimate(values, estimate.status, stats, estimate.parameters)
