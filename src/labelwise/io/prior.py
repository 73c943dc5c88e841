"""A prior from the parameter maps of a scan."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from labelwise.io.nifti import inside_of, open_image
from labelwise.priors import Empirical
from labelwise.types import InputError, has_values


def read_prior(
    folder: str | Path,
    names: Sequence[str],
    mask: str | Path | Bool[np.ndarray, "X Y Z"] | None = None,
) -> Empirical:
    """The empirical prior of the maps in an output folder: `{name}.nii.gz` for each parameter.

    Voxels without an estimate are left out. Voxels on a bound are included, unless the mask
    excludes them.

    Args:
        folder: where `labelwise fit` or `labelwise map` wrote its maps.
        names: the parameters, in the model's order.
        mask: which voxels to take: an image (those above 0.5), or an array of the maps' shape;
            all if None.

    Raises:
        FileNotFoundError: if a map is missing.
        InputError: if a file is no valid image, shapes differ, or no voxel is left.

    Warns:
        UserWarning: if the mask has values besides 0 and one other.
    """
    maps = [_read_map(Path(folder) / f"{name}.nii.gz") for name in names]
    if isinstance(mask, (str, Path)):
        mask, notes = inside_of(_read(Path(mask)), mask)
        for note in notes:
            warnings.warn(note, stacklevel=2)
    inside = np.ones(maps[0].shape, bool) if mask is None else np.asarray(mask, bool)
    for name, values in zip((*names, "the mask"), (*maps, inside), strict=True):
        if values.shape != maps[0].shape:
            raise InputError(
                f"{folder}: {name} has shape {values.shape}, {names[0]} has {maps[0].shape}; "
                "expected images of one grid"
            )
    return Empirical(np.stack([values[inside] for values in maps], axis=-1), names)


def _read_map(path: Path) -> Float[np.ndarray, "X Y Z"]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such map; give the output folder of `labelwise fit` or `labelwise map`"
        )
    values, sidecar = _read(path), path.with_name(path.name.replace(".nii.gz", ".json"))
    if sidecar.is_file() and "fill" in json.loads(sidecar.read_text(encoding="utf-8")):
        values[~has_values(_read(path.with_name("status.nii.gz")))] = np.nan
    return values


def _read(path: Path) -> Float[np.ndarray, "X Y Z"]:
    with open_image(path) as image:
        if image.volumes != 1:
            raise InputError(f"{path}: expected one volume, got {image.volumes}")
        return image.volume(0)
