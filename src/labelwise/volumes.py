"""Arrays over the voxels of an image: as NIfTI files, and as HTML for notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from labelwise.errors import InputError
from labelwise.formatting import number

_WIDTH = 128  # of a slice, in pixels of the notebook


def save(
    folder: str | Path,
    volumes: Mapping[str, tuple[Shaped[np.ndarray, "*shape"], str]],
    affine: Float[np.ndarray, "4 4"],
    overwrite: bool = False,
) -> None:
    """Write `NAME.nii.gz` for each of some arrays of up to three axes.

    Args:
        folder: made if missing.
        volumes: by name, the array and its unit, which goes into the header.
        affine: from the indices of voxels to mm.
        overwrite: replace files.

    Raises:
        InputError: if a file is there, the affine is no (4, 4) or an array has more axes.
        OSError: if a file cannot be written.
    """
    import nibabel as nib  # most that imports this module saves nothing

    folder, affine = Path(folder), np.asarray(affine, float)
    if affine.shape != (4, 4):
        raise InputError(f"affine: expected (4, 4), got {affine.shape}")
    paths = {name: folder / f"{name}.nii.gz" for name in volumes}
    there = [path.name for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise InputError(f"{folder}: it already holds {there[0]}; choose another folder")
    images = {}
    for name, (values, unit) in volumes.items():
        if values.ndim > 3:
            raise InputError(f"{name}: expected up to three axes of voxels, got {values.shape}")
        kind = np.float32 if values.dtype.kind == "f" else np.int32
        shape = (*values.shape, 1, 1, 1)[:3]
        images[name] = nib.Nifti1Image(values.astype(kind).reshape(shape), affine)
        about = f"labelwise {name} ({unit})"
        images[name].header["descrip"] = about.encode("ascii", "replace")[:79]
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        nib.save(image, paths[name])


def html(title: str, volumes: Mapping[str, tuple[Shaped[np.ndarray, "*shape"], str]]) -> str:
    """A title, a table with quartiles, and the middle slices, as HTML.

    Args:
        title: one line.
        volumes: by name, the array and its unit; slices are those of two or three axes.
    """
    cells, figures = [("parameter", "median", "quartiles", "unit")], ""
    for name, (values, unit) in volumes.items():
        unit, finite = "" if unit == "1" else unit, values[np.isfinite(values)]
        quartiles = np.percentile(finite, [25, 50, 75]) if finite.size else np.full(3, np.nan)
        low, median, high = (number(float(value)) for value in quartiles)
        cells.append((name, median, f"{low} to {high}", unit))
        if values.ndim in (2, 3):
            figures += _figure(f"{name} {unit}", values)
    table = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in cells)
    return (
        f"<div><p>{escape(title)}</p><table>{table}</table>"
        f'<div style="display:flex;flex-wrap:wrap;gap:1em">{figures}</div></div>'
    )


def _figure(name: str, values: Shaped[np.ndarray, "X Y *Z"]) -> str:
    """The middle slice with a caption; voxels without a value are transparent."""
    from matplotlib.image import imsave  # takes a second, and is for notebooks only

    if values.ndim == 3:
        filled = np.cumsum(np.isfinite(values).sum(axis=(0, 1)))
        values = values[:, :, int(np.argmax(filled >= filled[-1] / 2))]
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]) if finite.size else (0.0, 1.0)
    file = io.BytesIO()
    shades = np.ma.masked_invalid(np.rot90(values))
    imsave(file, shades, vmin=low, vmax=max(high, np.nextafter(low, np.inf)), cmap="viridis")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure style="margin:0"><img alt="{escape(name)}" width="{_WIDTH}" '
        f'style="image-rendering:pixelated" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(name)}<br>{number(low)} to {number(high)}</figcaption></figure>"
    )
