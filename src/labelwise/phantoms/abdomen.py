"""A digital phantom of the abdomen for `labelwise demo`: seven tissues, Rician noise.

Each tissue has one value of f, D_slow and D_fast; S0 varies smoothly, like the sensitivity of a
receiver coil. The values are round numbers, typical of healthy abdomens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from jaxtyping import Float, Int

from labelwise.io.files import check_outputs
from labelwise.io.staging import staged
from labelwise.models import IVIM
from labelwise.noise import Rician
from labelwise.types import Parameter

B_VALUES = (0, 0, 0, 0, 10, 20, 30, 50, 80, 100, 200, 400, 800)
"""In s/mm²; b = 0 four times, so that the noise level can be estimated from the repeats."""

SIGMA = 25.0
"""Noise of one channel: SNR = S0 / sigma is 20 to 44."""

_SHAPE, _ZOOMS = (64, 64, 3), (5.0, 5.0, 8.0)  # voxels, mm


@dataclass(frozen=True)
class AbdomenTissue:
    """One tissue of the phantom: its parameters and its ellipses.

    Args:
        name: of the tissue.
        params: S0 (a.u., before the coil), f, D_slow (µm²/ms) and D_fast (µm²/ms).
        ellipses: centre x and y, half-axes, and rotation in degrees; the image spans -1 to 1, the
            patient's left at +x, front at +y.
    """

    name: str
    params: tuple[float, float, float, float]
    ellipses: tuple[tuple[float, float, float, float, float], ...]


TISSUES = (  # later ones cover earlier ones
    AbdomenTissue("muscle", (600, 0.08, 1.5, 30), ((0, 0, 0.92, 0.72, 0),)),
    AbdomenTissue(
        "liver", (700, 0.25, 1.1, 70), ((-0.4, 0.12, 0.44, 0.46, 20), (0, 0.3, 0.4, 0.2, -10))
    ),
    AbdomenTissue("spleen", (1000, 0.10, 0.8, 40), ((0.62, -0.12, 0.17, 0.33, -15),)),
    AbdomenTissue("pancreas", (850, 0.18, 1.3, 50), ((0.2, 0.02, 0.3, 0.1, 25),)),
    AbdomenTissue(
        "kidney",
        (1100, 0.20, 1.9, 30),
        ((-0.36, -0.4, 0.15, 0.2, 30), (0.34, -0.4, 0.15, 0.2, -30)),
    ),
    AbdomenTissue("marrow", (500, 0.05, 0.5, 20), ((0, -0.46, 0.15, 0.14, 0),)),
    AbdomenTissue(
        "vessel", (650, 0.45, 1.8, 100), ((0.1, -0.22, 0.08, 0.1, 0), (-0.14, -0.21, 0.09, 0.08, 0))
    ),
)


@dataclass(frozen=True)
class Phantom:
    """The paths of a phantom's files.

    Args:
        folder: with all files.
    """

    folder: Path

    @property
    def image(self) -> Path:
        """The noisy 4D series."""
        return self.folder / "dwi.nii.gz"

    @property
    def bvals(self) -> Path:
        """Its b-values in s/mm²."""
        return self.folder / "dwi.bval"

    @property
    def mask(self) -> Path:
        """The mask of the tissue."""
        return self.folder / "mask.nii.gz"

    @property
    def fitted(self) -> Path:
        """The folder for the maps of a fit."""
        return self.folder / "maps_fit"

    @property
    def mapped(self) -> Path:
        """The folder for the maps of a network."""
        return self.folder / "maps_network"

    def truth(self, name: str) -> Path:
        """The true map of a parameter; or `"tissue"`, 1 for the first of `TISSUES` and so on."""
        return self.folder / "truth" / f"{name}.nii.gz"

    @property
    def files(self) -> list[Path]:
        """All of them, the series last."""
        names = [*(parameter.name for parameter in IVIM.parameters), "tissue"]
        return [*(self.truth(name) for name in names), self.mask, self.bvals, self.image]

    @property
    def arguments(self) -> list[list[str]]:
        """The arguments of `labelwise` for a fit and for a network."""
        scan = [
            *(str(self.image), "--bvals", str(self.bvals), "--mask", str(self.mask)),
            *("--model", "ivim", "--noise", "rician", "--sigma", "repeats"),
        ]
        return [
            ["fit", *scan, "--out", str(self.fitted)],
            ["map", *scan, "--out", str(self.mapped)],
        ]


@dataclass(frozen=True)
class Comparison:
    """A fit and a network against the truth in one tissue, for one parameter over its voxels.

    Args:
        tissue: the name of the tissue.
        parameter: which parameter, with its unit.
        truth: the median of the true values.
        estimates: the median estimate, by the fit and by the network.
        errors: the median of the absolute errors, of the fit and of the network.
    """

    tissue: str
    parameter: Parameter
    truth: float
    estimates: tuple[float, float]
    errors: tuple[float, float]


def write_phantom(folder: str | Path, *, overwrite: bool = False, seed: int = 0) -> Phantom:
    """Write the phantom's series, b-values, mask and true maps into a folder.

    Args:
        folder: made if missing.
        overwrite: replace a phantom that is there already.
        seed: of the noise.

    Raises:
        FileExistsError: if one of its files is there already and `overwrite` is not set.
        OSError: if the folder cannot be written.
    """
    phantom = Phantom(Path(folder))
    folder = phantom.folder
    maps = [path.name for path in (phantom.fitted, phantom.mapped)]
    check_outputs(folder, maps, overwrite=True)  # the demo writes there
    tissue = _tissues()
    params = _params(tissue)
    model = IVIM(b=np.array(B_VALUES) / 1000)
    clean = jax.vmap(model.signal)(*params.reshape(-1, len(model.parameters)).T)
    noisy = Rician().sample(jax.random.key(seed), clean, jnp.asarray(SIGMA))
    images = {
        phantom.truth("tissue"): tissue.astype(np.uint8),
        phantom.mask: (tissue > 0).astype(np.uint8),
        phantom.image: np.asarray(noisy, np.float32).reshape(*_SHAPE, -1),
    }
    for parameter, values in zip(IVIM.parameters, np.moveaxis(params, -1, 0), strict=True):
        outside = np.where(tissue > 0, values, np.nan)
        images[phantom.truth(parameter.name)] = outside.astype(np.float32)

    names = [str(path.relative_to(folder)) for path in phantom.files]
    with staged(folder, phantom.image.name, names=names, overwrite=overwrite) as staging:
        partial = Phantom(staging)
        partial.truth("tissue").parent.mkdir()
        for path, values in images.items():
            nib.save(
                nib.Nifti1Image(values, centred_affine(_SHAPE, _ZOOMS)),
                staging / path.relative_to(folder),
            )
        partial.bvals.write_text(" ".join(str(b) for b in B_VALUES) + "\n")
    return phantom


def compare(phantom: Phantom) -> list[Comparison]:
    """Compare both kinds of maps with the true ones, for each tissue and parameter."""
    tissue = _read(phantom.truth("tissue"))
    rows = []
    for parameter in IVIM.parameters:
        truth = _read(phantom.truth(parameter.name))
        maps = [
            _read(folder / f"{parameter.name}.nii.gz")
            for folder in (phantom.fitted, phantom.mapped)
        ]
        for label, kind in enumerate(TISSUES, start=1):
            here = (tissue == label) & np.isfinite(maps).all(axis=0)
            medians = [float(np.median(values[here])) for values in maps]
            errors = [float(np.median(np.abs(values - truth)[here])) for values in maps]
            rows.append(
                Comparison(
                    kind.name,
                    parameter,
                    float(np.median(truth[here])),
                    (medians[0], medians[1]),
                    (errors[0], errors[1]),
                )
            )
    return rows


def _tissues() -> Int[np.ndarray, "X Y Z"]:
    """Which tissue each voxel is: 0 for air, 1 for the first of `TISSUES`."""
    axes = [np.linspace(-1, 1, size) for size in _SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    tissue = np.zeros(_SHAPE, int)
    for label, kind in enumerate(TISSUES, start=1):
        for centre_x, centre_y, half_x, half_y, degrees in kind.ellipses:
            turn = np.deg2rad(degrees)
            shrink = 1 - 0.06 * z if label > 1 else 1.0  # organs get smaller towards the head
            u = np.cos(turn) * (x - centre_x) + np.sin(turn) * (y - centre_y)
            v = np.cos(turn) * (y - centre_y) - np.sin(turn) * (x - centre_x)
            tissue[(u / half_x) ** 2 + (v / half_y) ** 2 < shrink**2] = label
    return tissue


def _params(tissue: Int[np.ndarray, "X Y Z"]) -> Float[np.ndarray, "X Y Z 4"]:
    """The true parameters of each voxel; S0 is 0 in air."""
    table = np.array([(0.0, 0.1, 1.0, 10.0), *(kind.params for kind in TISSUES)])
    params = table[tissue]
    x, y = (np.linspace(-1, 1, size) for size in _SHAPE[:2])
    coil = 1 + 0.1 * np.cos(2 * x)[:, None] - 0.1 * y
    params[..., 0] *= coil[:, :, None]
    return params


def centred_affine(
    shape: tuple[int, int, int], zooms: tuple[float, float, float]
) -> Float[np.ndarray, "4 4"]:
    """Voxel to mm, centred; x runs to the patient's left, so that images look radiological."""
    affine = np.diag([-zooms[0], zooms[1], zooms[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
