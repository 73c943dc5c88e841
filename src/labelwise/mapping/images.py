"""Parameter maps of an image series: `fit_image` and `map_image`."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from labelwise.io.files import cache_folder
from labelwise.io.nifti import open_series, paths_of
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.by_network import ByNetwork
from labelwise.mapping.request import METHODS, Request, Uncertainty, without_volumes
from labelwise.mapping.run import run
from labelwise.mapping.summary import Report
from labelwise.models import SignalModel
from labelwise.networks.network import Network
from labelwise.noise import NoiseModel, Rician
from labelwise.types import InputError, Progress

Sigma = float | str | Path
PathLike = str | Path
Images = PathLike | Sequence[PathLike]


def fit_image(
    image: Images | np.ndarray,
    model: SignalModel,
    *,
    sigma: Sigma = "auto",
    out: PathLike | None = None,
    mask: PathLike | np.ndarray | None = None,
    affine: np.ndarray | None = None,
    noise: NoiseModel | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    average: Literal["geometric", "arithmetic"] | None = None,
    exclude: Sequence[int] = (),
    exclude_map: PathLike | None = None,
    b_scale: PathLike | None = None,
    constants: Mapping[str, PathLike] | None = None,
    uncertainty: Uncertainty = "both",
    b_tolerance: float = 0.001,
    max_iterations: int = 200,
    threads: int | None = None,
    overwrite: bool = False,
    fill: float = math.nan,
    sources: Mapping[str, Path] | None = None,
    command: str = "",
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Fit a signal model to every voxel of a series by maximum likelihood, and write the maps.

    Writes a map and the ends of a confidence interval for each parameter; maps of the status, the
    parameters on a bound, the negative log-likelihood, the residual and the iterations; a JSON
    sidecar for each map; `run.json`, the record of the run; the page `report.html`; and the figure
    `maps.png`. All files appear together at the end. A failed voxel is NaN, and its status holds
    the reason.

    A measurement far below what the others of its voxel predict (a signal dropout, zero padding) is
    left out, and so is a clipped one. The map `left_out` marks them, if there are any.

    Args:
        image: the series: a 4D NIfTI image, or an image of one volume for each measurement, in
            the order of the settings and on one grid; or an array (X, Y, Z, M).
        model: the signal model with one setting per volume.
        sigma: noise of one channel in the image's unit: a number, the path of a map of it (of one
            volume, or of one for each measurement), or a method, `"repeats"`, `"mppca"`,
            `"background"` or `"residuals"`; `"auto"` takes the first of these, in this order, that
            passes its test (see `Request`).
        out: the folder for the maps; made if missing. If None, they are temporary, as long as the
            report: `report.save(folder)` keeps them.
        mask: the NIfTI mask of the voxels to fit, those above 0.5, or an array (X, Y, Z); all of
            them if None.
        affine: of an array, from the indices of voxels to mm; the maps have no orientation if None.
        noise: `Rician()` if None.
        bounds: replaces bounds of parameters by name, in their units.
        average: fit the average of volumes with equal settings instead of each of them.
        exclude: volumes that are not used, numbered from 0.
        exclude_map: a 4D image of 0 and 1: a measurement is left out where it is above 0.5.
        b_scale: an image of the factor by which gradients change b in each voxel, or of nine
            volumes, their deviation (FSL's `grad_dev`). Diffusivities are corrected for it; their
            bounds and ranges hold for the product of diffusivity and factor.
        constants: maps of constants of the model by name, in its units, which differ from voxel to
            voxel: `{"b1": "b1.nii.gz"}`. Voxels within 0.2 % share a value.
        uncertainty: `"interval"` for the maps `NAME_low` and `NAME_high`, the ends of an interval
            of 95 %, and `NAME_uncertainty`, half its width; `"standard_error"`; or `"both"`. Of
            more than 8 parameters (`DKI`) there are standard errors only.
        b_tolerance: in ms/µm². Two b-values this close are equal; b up to this is b = 0.
        max_iterations: a voxel that needs more becomes NOT_CONVERGED.
        threads: cores to use; all if None.
        overwrite: replace maps that are in the folder already.
        fill: what is written in place of NaN, for viewers.
        sources: the files that the settings came from, by name of the setting, for the record.
        command: the command line, for the record.
        notes: on possible mistakes that are known already, for the record.
        progress: called repeatedly during the run.

    Returns:
        The report of the run.

    Raises:
        InputError: if images, acquisition, mask, bounds and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for possible mistakes; they are in `Report.notes`, too.
    """
    with _on_disk(image, mask, affine, out) as (paths, mask_file, folder, temporary):
        used, excluded = without_volumes(model, exclude)
        request = Request(
            paths,
            used,
            noise or Rician(),
            _sigma(sigma),
            folder,
            mask=mask_file,
            b_tolerance=b_tolerance,
            threads=threads,
            overwrite=overwrite,
            fill=fill,
            sources=sources or {},
            command=command,
            notes=notes,
            excluded=excluded,
            exclude_map=None if exclude_map is None else Path(exclude_map),
            b_scale=None if b_scale is None else Path(b_scale),
            uncertainty=uncertainty,
            constants={name: Path(path) for name, path in (constants or {}).items()},
        )
        method = ByFit(bounds or {}, average, max_iterations)
        return temporary(run(request, method, progress))


def map_image(
    image: Images | np.ndarray,
    model: SignalModel,
    *,
    sigma: Sigma = "auto",
    out: PathLike | None = None,
    mask: PathLike | np.ndarray | None = None,
    affine: np.ndarray | None = None,
    noise: NoiseModel | None = None,
    net: PathLike | Network | None = None,
    alpha: float | Mapping[str, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    exclude: Sequence[int] = (),
    exclude_map: PathLike | None = None,
    b_scale: PathLike | None = None,
    uncertainty: Uncertainty = "both",
    b_tolerance: float = 0.001,
    threads: int | None = None,
    overwrite: bool = False,
    fill: float = math.nan,
    cache: bool = True,
    sources: Mapping[str, Path] | None = None,
    command: str = "",
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Map every voxel of a series by a network, trained for it unless one is given.

    Writes the maps of `fit_image` without iterations and bounds. The map `outside` is not 0 in
    voxels outside the training range. A newly trained network is saved as `net.safetensors`.

    Args:
        image: see `fit_image`, as for all arguments that are not listed here.
        model: see `fit_image`.
        sigma: see `fit_image`; a map of one volume.
        out: see `fit_image`.
        mask: see `fit_image`.
        affine: see `fit_image`.
        noise: see `fit_image`.
        net: a network, or its file; one is trained for the images if None.
        alpha: from 0 (least variance) to 1 (least bias), a number or by parameter's name; the
            network's own, 1 if it is trained, if None.
        ranges: replaces ranges of the simulated parameters by name, where a network is trained.
        exclude: see `fit_image`.
        exclude_map: see `fit_image`; a fit is used where measurements of a voxel are left out.
        b_scale: see `fit_image`.
        uncertainty: see `fit_image`; the kind of interval follows alpha (`Network.interval_kinds`).
            A network that has no intervals gives standard errors.
        b_tolerance: see `fit_image`.
        threads: see `fit_image`.
        overwrite: see `fit_image`.
        fill: see `fit_image`.
        cache: keep the trained network for series like this one, and use one that was kept for the
            same measurements and at least these noise levels, in `~/.cache/labelwise` (the
            environment variable LABELWISE_CACHE moves it).
        sources: see `fit_image`.
        command: see `fit_image`.
        notes: see `fit_image`.
        progress: see `fit_image`.

    Raises:
        InputError: if images, acquisition, mask, network and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for possible mistakes; they are in `Report.notes`, too.
    """
    with _on_disk(image, mask, affine, out) as (paths, mask_file, folder, temporary):
        used, excluded = without_volumes(model, exclude)
        request = Request(
            paths,
            used,
            noise or Rician(),
            _sigma(sigma),
            folder,
            mask=mask_file,
            b_tolerance=b_tolerance,
            threads=threads,
            overwrite=overwrite,
            fill=fill,
            sources=sources or {},
            command=command,
            notes=notes,
            excluded=excluded,
            exclude_map=None if exclude_map is None else Path(exclude_map),
            b_scale=None if b_scale is None else Path(b_scale),
            uncertainty=uncertainty,
        )
        loaded = net if isinstance(net, Network) else None
        method = ByNetwork(
            None if net is None or isinstance(net, Network) else Path(net),
            alpha,
            ranges or {},
            cache_folder("networks") if cache else None,
            loaded,
        )
        return temporary(run(request, method, progress))


@contextmanager
def _on_disk(
    image: Images | np.ndarray,
    mask: PathLike | np.ndarray | None,
    affine: np.ndarray | None,
    out: PathLike | None,
) -> Iterator[tuple[tuple[Path, ...], Path | None, Path, Callable[[Report], Report]]]:
    """The files of a series and its mask, the folder of the maps, and what its report is passed to.

    Arrays are written to temporary files. A temporary folder of maps is removed with its report.

    Raises:
        InputError: if an array has another rank or no numbers, or an affine is given for a file.
    """
    if affine is not None and not isinstance(image, np.ndarray):
        raise InputError("affine: is for arrays; a file has its own, so leave it out")
    with ExitStack() as inputs, ExitStack() as after:
        if isinstance(image, np.ndarray) or isinstance(mask, np.ndarray):
            place = Path(inputs.enter_context(tempfile.TemporaryDirectory(prefix="labelwise-")))
            if isinstance(image, np.ndarray):
                image = _written(place / "signal.nii", image, affine, 4)
            if isinstance(mask, np.ndarray):
                with open_series(image) as series:
                    mask = _written(place / "mask.nii", mask, series.affine, 3)
        folder = Path(tempfile.mkdtemp(prefix="labelwise-maps-")) if out is None else Path(out)
        if out is None:
            after.callback(shutil.rmtree, folder, ignore_errors=True)

        def temporary(report: Report) -> Report:
            if out is None:
                after.pop_all()
                weakref.finalize(report, shutil.rmtree, folder, ignore_errors=True)
            return report

        yield paths_of(image), None if mask is None else Path(mask), folder, temporary


def _written(path: Path, values: np.ndarray, affine: np.ndarray | None, axes: int) -> Path:
    name = path.name.partition(".")[0]
    if values.ndim != axes or values.dtype.kind not in "bfiu":
        raise InputError(
            f"{name}: expected numbers along {axes} axes, got {values.dtype} of shape "
            f"{values.shape}"
        )
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def _sigma(sigma: Sigma):
    """A number, the name of a method, or the path of a map."""
    if isinstance(sigma, str) and sigma not in ("auto", *METHODS):
        return Path(sigma)
    return sigma
