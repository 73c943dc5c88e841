"""The geometry in a NIfTI header: where its voxels are.

A header has up to two forms of it, each with a code that is 0 where it is absent: the qform (a
rotation as a quaternion, voxel sizes and an offset) and the sform (a matrix). The sform is used if
there is one, else the qform.

Source: nifti1.h, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
from jaxtyping import Float

from labelwise.types import InputError

TOLERANCE = 0.1
"""In voxels: two grids are the same if no voxel is further apart."""

_LONGEST = 1.01  # squared length of a quaternion that may be rounded: two digits give 1.017
_FIELDS = {
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform": ("srow_x", "srow_y", "srow_z"),
}


def mend_geometry(header: nib.Nifti1Header, shape: tuple[int, ...], path: object) -> list[str]:
    """Mend rounding and unused fields in a header; refuse one whose positions are unknown.

    A quaternion slightly longer than 1 is divided by its length. A broken form is removed if the
    other one is sound. Voxel sizes that are no positive numbers are taken from the sform.

    Args:
        header: changed in place.
        shape: (X, Y, Z); the voxel size along an axis of one voxel does not matter.
        path: of the file, for messages.

    Returns:
        Notes on what was mended and may matter.

    Raises:
        InputError: if there are forms, but none is sound.
    """
    present = [form for form in _FIELDS if header[f"{form}_code"] != 0]
    faults = {"sform": _fault_of_sform(header, shape)}
    notes = _mend_sizes(header, shape, path, faults["sform"] is None and "sform" in present)
    faults["qform"] = _fault_of_qform(header, shape)
    sound = [form for form in present if faults[form] is None]
    if present and not sound:
        raise InputError(
            f"{path}: its {present[-1]} is broken ({faults[present[-1]]}), so the position of its "
            "voxels is unknown; copy the geometry from the image it was made from, or convert it "
            "again"
        )
    for form, fault in faults.items():
        if fault is not None:
            header[f"{form}_code"] = 0
            for field in _FIELDS[form]:
                header[field] = 0
            if form in present:
                notes.append(f"{path}: its {form} is broken ({fault}); its {sound[0]} is used")
    if len(sound) == 2 and header["qform_code"] == header["sform_code"]:
        forms = np.asarray(header.get_sform()), np.asarray(header.get_qform())
        apart = distance(*forms, shape)
        if apart > TOLERANCE:
            notes.append(
                f"{path}: its qform and its sform disagree by up to {apart:.3g} voxels; the sform "
                "is used"
            )
    return notes


def oriented(header: nib.Nifti1Header) -> bool:
    """Whether a header states where left, front and head are."""
    return any(int(header[f"{form}_code"]) > 0 for form in _FIELDS)


def distance(one: Float[np.ndarray, "4 4"], other: Float[np.ndarray, "4 4"], shape) -> float:
    """The largest distance between the same voxel of two grids, in voxels of the first.

    Args:
        one: from voxel indices to mm.
        other: the same of the other grid.
        shape: (X, Y, Z) of both.

    Example:
        >>> distance(np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2.1, 1]), (8, 8, 11))
        0.5
    """
    corners = np.array(list(product(*((0, length - 1) for length in shape))))
    gap = (other - one)[:3]
    sizes = np.linalg.norm(one[:3, :3], axis=0)[[length > 1 for length in shape]]
    apart = np.linalg.norm(corners @ gap[:, :3].T + gap[:, 3], axis=1).max()
    return float(round(apart / (sizes.min() if sizes.size else 1.0), 9))


def _mend_sizes(header, shape, path, from_sform: bool) -> list[str]:
    """Replace voxel sizes that are no positive numbers, unless the qform needs them."""
    sizes, alone = header["pixdim"][1:4], np.array(shape) == 1
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if header["qform_code"] != 0 and not from_sform:
        bad &= alone  # the others are a fault of the qform
    words = ", ".join(f"{size:g}" for size in sizes)
    known = np.linalg.norm(header.get_sform()[:3, :3], axis=0) if from_sform else np.abs(sizes)
    sizes[bad] = np.where(np.isfinite(known) & (known > 0), known, 1.0)[bad]
    if not (bad & ~alone).any():
        return []
    used = ", ".join(f"{size:g}" for size in sizes)
    return [f"{path}: its voxel sizes (pixdim) are {words}; {used} mm are used instead"]


def _fault_of_sform(header, shape) -> str | None:
    affine = header.get_sform()
    if not np.all(np.isfinite(affine)):
        return "a number in it is NaN or infinite"
    axes = affine[:3, :3][:, [length > 1 for length in shape]]
    if np.linalg.matrix_rank(axes) < axes.shape[1]:
        return "two of its axes coincide, or one has no length"
    return _fault_of_code(header, "sform")


def _fault_of_qform(header, shape) -> str | None:
    """What is wrong with the qform; a quaternion that is rounded is mended."""
    quaternion = np.array([header[field] for field in _FIELDS["qform"][:3]])
    if not all(np.isfinite(header[field]) for field in _FIELDS["qform"]):
        return "a number in it is NaN or infinite"
    square = np.sum(quaternion.astype(np.longdouble) ** 2)
    if square > _LONGEST:
        return f"its quaternion has the length {float(np.sqrt(square)):.3g}, not 1"
    if square - 1 > abs(header.quaternion_threshold):
        for field, value in zip(_FIELDS["qform"], quaternion / np.sqrt(square), strict=False):
            header[field] = value
    sizes = header["pixdim"][1:4]
    if header["qform_code"] != 0 and not np.all(np.isfinite(sizes) & (sizes > 0)):
        return f"its voxel sizes (pixdim) are {', '.join(f'{size:g}' for size in sizes)}"
    return _fault_of_code(header, "qform")


def _fault_of_code(header, form: str) -> str | None:
    code = int(header[f"{form}_code"])
    known = header._field_recoders[f"{form}_code"].value_set()
    return None if code in known else f"its code is {code}, which is not one of the standard"
