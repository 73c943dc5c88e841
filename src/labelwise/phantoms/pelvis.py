"""A digital phantom of the pelvis, SIMULATED, in place of the paper's scan of a volunteer.

Everything here is simulated. The outlines are drawn by hand after the axial anatomy at the level of
the femoral heads; the parameters are of the size that the literature reports for pelvic muscle,
marrow, uterus, bladder and vessels. No patient or volunteer was measured.

As in a scan, parameters differ between tissues, vary smoothly within them and from voxel to voxel,
and are correlated; there is a coil sensitivity and Rician noise. It lacks motion, pulsation,
distortion, partial volume, and any misfit of the signal model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import gaussian_filter

from labelwise.io.staging import staged
from labelwise.models import IVIM
from labelwise.models.evaluate import signals
from labelwise.noise import Rician
from labelwise.phantoms.abdomen import centred_affine

B_VALUES = (0, 10, 20, 30, 50, 80, 100, 200, 400, 800)
"""Of one acquisition, in s/mm², in the order of the scanner."""

_FIELD = (350.0, 250.0)  # mm: the field of view, left to right and back to front
_SLICE = 7.0  # mm
_LEVEL = 1000.0  # a.u.: the typical S0
_TEXTURE = 0.03  # of S0, from voxel to voxel
_WARP = (4.0, 22.0)  # mm: deviation of outlines from ellipses, and its correlation length
_SMOOTH = 9.0  # mm: correlation length of the parameters within a tissue
_SHARE = 0.6  # of their variance that is smooth; the rest is independent between voxels
# of f, D_slow and D_fast: with larger f, D_slow is smaller and D_fast larger
_CORRELATION = np.array([[1.0, -0.35, 0.3], [-0.35, 1.0, 0.1], [0.3, 0.1, 1.0]])
_FAT = (0.15, 0.02, 0.15, 10.0)  # relative S0 after suppression, f, D_slow, D_fast; not in the mask
_NOTICE = (
    "SIMULATED by labelwise: a digital phantom. Outlines and values are of the size reported for "
    "the pelvis, and of no patient."
)


@dataclass(frozen=True)
class Outline:
    """An ellipse, and its mirror image on the other side.

    Args:
        x, y: its centre in mm; x to the patient's left, y to the front.
        half_x, half_y: its half-axes in mm.
        degrees: its rotation; of the mirror image, the opposite.
        paired: whether there is one on both sides.
    """

    x: float
    y: float
    half_x: float
    half_y: float
    degrees: float = 0.0
    paired: bool = True


@dataclass(frozen=True)
class PelvisTissue:
    """One tissue: the median and spread of its parameters, and its outlines.

    Args:
        name: of the tissue.
        s0: relative to the image's typical S0. Tissues differ less than in a scan, so that one
            factor for the image brings all into the training range of S0, 0.8 to 1.2.
        median: of f, D_slow and D_fast (µm²/ms).
        spread: standard deviation of logit(2 f), log D_slow and log D_fast within the tissue.
        outlines: of its parts.
    """

    name: str
    s0: float
    median: tuple[float, float, float]
    spread: tuple[float, float, float]
    outlines: tuple[Outline, ...]


TISSUES = (  # later ones cover earlier ones
    PelvisTissue(
        *("gluteal muscle", 0.97, (0.15, 1.25, 42), (0.75, 0.12, 0.65)),
        (
            Outline(76, -64, 64, 27, 20),
            Outline(126, 4, 17, 46, 4),
            Outline(121, 58, 11, 19, -10),
            Outline(47, -8, 8, 40, -8),
            Outline(80, -36, 26, 9, 10),
        ),
    ),
    PelvisTissue(
        *("iliopsoas muscle", 0.96, (0.17, 1.3, 38), (0.75, 0.12, 0.6)),
        (Outline(84, 54, 24, 19, -15), Outline(101, 76, 17, 10, -15), Outline(18, 90, 19, 6, -3)),
    ),
    PelvisTissue(
        *("bone marrow", 0.9, (0.18, 0.6, 62), (0.8, 0.3, 0.55)),
        (
            Outline(88, 8, 24, 24),
            Outline(60, 30, 10, 19, -35),
            Outline(66, -24, 13, 17, 30),
            Outline(0, -76, 25, 12, paired=False),
        ),
    ),
    PelvisTissue(
        *("uterus", 1.05, (0.25, 1.2, 50), (0.6, 0.14, 0.65)),
        (Outline(-3, -7, 33, 22, 8, paired=False),),
    ),
    PelvisTissue(
        *("bladder wall", 1.03, (0.2, 1.45, 45), (0.6, 0.17, 0.6)),
        (Outline(1, 44, 39, 27, paired=False),),
    ),
    PelvisTissue(
        *("urine", 1.06, (0.12, 2.75, 20), (0.4, 0.05, 0.4)),
        (Outline(1, 44, 31, 19, paired=False),),
    ),
    PelvisTissue(
        *("vessels", 0.9, (0.38, 1.3, 110), (0.6, 0.2, 0.4)),
        (Outline(57, 66, 8, 8), Outline(51, 51, 9, 8)),
    ),
)
_SKIN, _INSIDE = Outline(0, -2, 170, 116, paired=False), Outline(0, 2, 154, 99, paired=False)
_RECTUM = Outline(2, -47, 17, 14, paired=False)  # gas, not in the mask


@dataclass(frozen=True, eq=False)
class Pelvis:
    """The simulated scan and its true parameters.

    Args:
        series: (X, Y, Z, V) magnitudes in float32, in blocks of `B_VALUES`, as acquired.
        b: (V,) b-values in s/mm².
        mask: (X, Y, Z) where there is one of `TISSUES`; fat and the rectum are left out.
        tissue: (X, Y, Z) 1 for the first of `TISSUES`, and so on; 0 outside the mask.
        truth: by name of the parameter, (X, Y, Z) in its unit; NaN outside the mask.
        sigma: noise of one channel, in the unit of the series.
        affine: from voxel indices to mm.
        settings: the arguments of `pelvis`, as JSON data.
    """

    series: Float[np.ndarray, "X Y Z V"]
    b: Int[np.ndarray, " V"]
    mask: Bool[np.ndarray, "X Y Z"]
    tissue: UInt8[np.ndarray, "X Y Z"]
    truth: Mapping[str, Float[np.ndarray, "X Y Z"]]
    sigma: float
    affine: Float[np.ndarray, "4 4"]
    settings: Mapping[str, Any]


def pelvis(
    seed: int = 0,
    shape: tuple[int, int, int] = (112, 80, 3),
    repeats: int = 16,
    snr: float = 15.0,
    b_values: Sequence[float] = B_VALUES,
) -> Pelvis:
    """Simulate the scan: 16 repeats of the paper's 10 b-values, 160 volumes, with Rician noise.

    The same seed and shape give the same truth; the same arguments give the same bytes.

    Args:
        seed: of the tissues' variation and of the noise.
        shape: voxels left to right, back to front, and slices. The field of view stays at 350 by
            250 mm, so that the default has 3.125 mm (twice the paper's voxel) by 7 mm; about a
            third of its voxels are in the mask.
        repeats: how often the b-values are measured.
        snr: the median over the mask of S0 / sigma.
        b_values: in s/mm², of one repeat; the paper's if left out.

    Source: Epstein et al. 2024, section 3.5, doi:10.59275/j.melba.2024-geb5, for the protocol.

    Example:
        >>> small = pelvis(shape=(28, 20, 1), repeats=2)
        >>> small.series.shape, sorted(small.truth)
        ((28, 20, 1, 20), ['D_fast', 'D_slow', 'S0', 'f'])
    """
    rng = np.random.default_rng(seed)
    zooms = (_FIELD[0] / shape[0], _FIELD[1] / shape[1], _SLICE)
    place, fat = _tissue_maps(rng, shape, zooms)
    params = _parameters(rng, place, fat, zooms)
    mask = place > 0
    sigma = float(np.median(params[mask, 0]) / snr)

    b = np.tile(np.asarray(b_values, float), repeats)
    clean = signals(
        IVIM(b=np.asarray(b_values, float) / 1000), params.reshape(-1, params.shape[-1])
    )
    clean = np.tile(clean.astype(np.float32), repeats)
    noisy = Rician().sample(jax.random.key(seed), clean, jnp.float32(sigma))
    return Pelvis(
        series=np.asarray(noisy, np.float32).reshape(*shape, -1),
        b=b,
        mask=mask,
        tissue=place.astype(np.uint8),
        truth={
            parameter.name: np.where(mask, params[..., index], np.nan).astype(np.float32)
            for index, parameter in enumerate(IVIM.parameters)
        },
        sigma=sigma,
        affine=centred_affine(shape, zooms),
        settings={"seed": seed, "shape": list(shape), "repeats": repeats, "snr": snr},
    )


def write(scan: Pelvis, folder: Path) -> list[Path]:
    """Write the series, its b-values, the mask and the true maps into a folder.

    `dwi.nii.gz`, `dwi.bval` (s/mm²), `mask.nii.gz`, and in `truth/` a map for each parameter and
    `tissue.nii.gz`; a JSON beside each image and a README say that they are simulated. The files
    are moved into place when all are written, the series last.

    Args:
        scan: what to write.
        folder: made if missing; the files of an earlier phantom in it are replaced.

    Returns:
        The files, the series last.

    Raises:
        OSError: if the folder cannot be written.
    """
    images = _images(scan)
    texts = {"README.txt": _readme(scan), "dwi.bval": " ".join(map(str, scan.b)) + "\n"}
    for name, (_, details) in images.items():
        record = {"Simulated": True, "Description": _NOTICE, **details, "Settings": scan.settings}
        texts[name.replace(".nii.gz", ".json")] = json.dumps(record, indent=2, ensure_ascii=False)
    names = [*texts, *reversed(images)]
    with staged(folder, names[-1], names=names, overwrite=True) as staging:
        (staging / "truth").mkdir()
        for name, (values, _) in images.items():
            image = nib.Nifti1Image(values, scan.affine)
            image.header["descrip"] = b"SIMULATED by labelwise, of no patient"
            image.header.set_xyzt_units("mm")
            nib.save(image, staging / name)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
    return [folder / name for name in names]


def _images(scan: Pelvis) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """The images by file name, with entries of their sidecars; the series first."""
    labels = {str(label): tissue.name for label, tissue in enumerate(TISSUES, start=1)}
    units = {parameter.name: parameter.unit for parameter in IVIM.parameters}
    return {
        "dwi.nii.gz": (scan.series, {"Unit": "a.u.", "Noise": "Rician", "Sigma": scan.sigma}),
        "mask.nii.gz": (scan.mask.astype(np.uint8), {"Labels": {"1": "tissue"}}),
        "truth/tissue.nii.gz": (scan.tissue, {"Labels": labels}),
        **{
            f"truth/{name}.nii.gz": (values, {"Parameter": name, "Unit": units[name]})
            for name, values in scan.truth.items()
        },
    }


def _readme(scan: Pelvis) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in scan.settings.items())
    return (
        f"{_NOTICE}\n\nMade by labelwise.phantoms.pelvis ({settings}).\n"
        f"dwi.nii.gz: {len(scan.b)} volumes, b-values in dwi.bval (s/mm²), Rician noise of sigma "
        f"{scan.sigma:.6g}. mask.nii.gz: muscle, marrow, organs and vessels, without fat and "
        "rectum. truth/: what the series was made from.\n"
    )


def _tissue_maps(
    rng: np.random.Generator, shape: tuple[int, int, int], zooms: tuple[float, float, float]
) -> tuple[Int[np.ndarray, "X Y Z"], Bool[np.ndarray, "X Y Z"]]:
    """Which of `TISSUES` each voxel is (0 for none, 1 for the first), and where there is fat."""
    axes = [
        (np.arange(size) - (size - 1) / 2) * zoom for size, zoom in zip(shape, zooms, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    far, length = _WARP
    x, y = (plane + far * _smooth(rng, shape, zooms, length) for plane in (x, y))
    size = 1 - 0.004 * z  # organs get smaller towards the head
    place = np.zeros(shape, int)
    for label, tissue in enumerate(TISSUES, start=1):
        for outline in tissue.outlines:
            place[_within(outline, x, y, size)] = label
    rectum = _within(_RECTUM, x, y, size)
    place[rectum | ~_within(_INSIDE, x, y)] = 0
    return place, _within(_SKIN, x, y) & (place == 0) & ~rectum


def _within(
    outline: Outline,
    x: Float[np.ndarray, "X Y Z"],
    y: Float[np.ndarray, "X Y Z"],
    size: Float[np.ndarray, "X Y Z"] | float = 1.0,
) -> Bool[np.ndarray, "X Y Z"]:
    """Voxels inside an outline scaled by `size`, or inside its mirror image."""
    turn = np.deg2rad(outline.degrees)
    across = np.abs(x) if outline.paired else x
    u = np.cos(turn) * (across - outline.x) + np.sin(turn) * (y - outline.y)
    v = np.cos(turn) * (y - outline.y) - np.sin(turn) * (across - outline.x)
    return (u / outline.half_x) ** 2 + (v / outline.half_y) ** 2 < size**2


def _parameters(
    rng: np.random.Generator,
    place: Int[np.ndarray, "X Y Z"],
    fat: Bool[np.ndarray, "X Y Z"],
    zooms: tuple[float, float, float],
) -> Float[np.ndarray, "X Y Z 4"]:
    """S0, f, D_slow and D_fast of each voxel; S0 is 0 in air."""
    shape = place.shape
    smooth = np.stack([_smooth(rng, shape, zooms, _SMOOTH) for _ in range(3)], axis=-1)
    own = rng.standard_normal((*shape, 3))
    mixed = math.sqrt(_SHARE) * smooth + math.sqrt(1 - _SHARE) * own
    deviation = mixed @ np.linalg.cholesky(_CORRELATION).T

    table = np.array([(0.1, 1.0, 10.0), *(tissue.median for tissue in TISSUES)])[place]
    deviation *= np.array([(0.0, 0.0, 0.0), *(tissue.spread for tissue in TISSUES)])[place]
    f, d_slow, d_fast = np.moveaxis(table, -1, 0)
    odds = f / (0.5 - f) * np.exp(deviation[..., 0])
    params = np.stack(
        [
            np.array([0.0, *(tissue.s0 for tissue in TISSUES)])[place],
            0.5 * odds / (1 + odds),  # below 0.5, without clipping
            d_slow * np.exp(deviation[..., 1]),
            d_fast * np.exp(deviation[..., 2]),
        ],
        axis=-1,
    )
    params[fat] = _FAT
    low, high = np.array([parameter.bounds for parameter in IVIM.parameters]).T
    params = np.clip(params, low, high)
    across, deep = (np.linspace(-1, 1, size) for size in shape[:2])
    coil = 0.95 + 0.15 * deep[None, :] ** 2 + 0.08 * deep[None, :] + 0.08 * across[:, None] ** 2
    texture = 1 + _TEXTURE * rng.standard_normal(shape)
    params[..., 0] *= _LEVEL * coil[:, :, None] * texture
    return params


def _smooth(
    rng: np.random.Generator, shape: tuple[int, ...], zooms: tuple[float, ...], length: float
) -> Float[np.ndarray, "X Y Z"]:
    """Noise of mean 0 and standard deviation 1 that varies over `length` mm."""
    white = rng.standard_normal(shape)
    field = gaussian_filter(white, [length / zoom for zoom in zooms], mode="nearest")
    return (field - field.mean()) / field.std()
