"""The noise level of a series: a number, a map, or estimated from the series itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from labelwise.io.nifti import Series, read_map
from labelwise.io.noise_level import (
    NoiseLevel,
    from_background,
    from_repeats,
    over_repeats,
    repeated_volumes,
)
from labelwise.mapping.request import Request
from labelwise.types import InputError

_BACKGROUND_SAMPLES = 2_000_000


def noise_level(
    request: Request, series: Series, inside: Bool[np.ndarray, " V"]
) -> tuple[float | Float[np.ndarray, "V *M"], list[NoiseLevel]]:
    """The sigma to use, and its estimates by each method, the requested one first.

    Args:
        request: with the source of sigma.
        series: the open series.
        inside: the voxels inside the mask.

    Raises:
        InputError: if the map does not fit the series or is positive nowhere, or the series does
            not allow the requested method.
    """
    estimates = {"repeats": _from_repeats, "background": _from_background}
    levels = []
    if isinstance(request.sigma, Path):
        sigma = read_map(request.sigma, like=series)
        usable = sigma[inside]
        usable = usable[np.isfinite(usable) & (usable > 0)]
        if not usable.size:
            raise InputError(f"{request.sigma}: sigma is positive nowhere inside the mask")
        note = f"median inside the mask of the map {request.sigma.name}"
        levels.append(NoiseLevel(float(np.median(usable)), "map", usable.size, note))
    elif isinstance(request.sigma, str):
        levels.append(estimates.pop(request.sigma)(request, series, inside))
        sigma = levels[0].sigma
    else:
        sigma = request.sigma
        levels.append(NoiseLevel(sigma, "given", 0, "a number given by the user"))
    for estimate in estimates.values():
        try:
            levels.append(estimate(request, series, inside))
        except InputError:  # not possible for this series, and not requested
            continue
    return sigma, levels


def _from_repeats(request: Request, series: Series, inside: Bool[np.ndarray, " V"]) -> NoiseLevel:
    volumes = repeated_volumes(request.acquisition, request.b_tolerance)
    blocks = (signal for _, signal in series.blocks(inside, volumes=volumes))
    return from_repeats(*over_repeats(blocks), len(volumes))


def _from_background(
    request: Request, series: Series, inside: Bool[np.ndarray, " V"]
) -> NoiseLevel:
    """From voxels outside the mask, evenly subsampled to about two million samples."""
    if request.mask is None:
        raise InputError(
            "sigma from the background: a mask is needed to find the background; give one, "
            "or give sigma as a number or a map"
        )
    outside = np.flatnonzero(~inside)
    step = math.ceil(max(len(outside) * series.volumes, 1) / _BACKGROUND_SAMPLES)
    sampled = np.zeros_like(inside)
    sampled[outside[::step]] = True
    samples = [signal.ravel() for _, signal in series.blocks(sampled)]
    return from_background(np.concatenate([np.empty(0, np.float32), *samples]))
