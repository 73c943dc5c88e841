"""A scan with repeats in a study: the simulated pelvis or a user's own (section 3.5).

The gold standard is the maximum-likelihood estimate from all volumes; every estimator is then
applied to each single acquisition, and to a synthetic set with the gold standard's parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import printable
from labelwise.io.files import digest
from labelwise.io.nifti import open_series, read_mask
from labelwise.io.noise_level import NoiseLevel, from_repeats, repeated_volumes
from labelwise.models import IVIM, SignalModel
from labelwise.models.base import scale_parameter
from labelwise.models.find import describe_model
from labelwise.networks.blend import blend_plan, noise_levels
from labelwise.noise import NoiseModel, Rician, describe_noise
from labelwise.phantoms.pelvis import pelvis as simulate_pelvis
from labelwise.phantoms.pelvis import write
from labelwise.priors import Uniform
from labelwise.study import methods
from labelwise.study.config import LABELS, Study, absolute
from labelwise.study.evaluation import contents, fits
from labelwise.study.evidence import InVivo
from labelwise.study.in_vivo import (
    Reference,
    assess,
    binned,
    matching,
    usable_reference,
)
from labelwise.study.networks import Network, points
from labelwise.study.repeats import Repeats, split
from labelwise.study.stages import Stages
from labelwise.types import Estimate, InputError

GOLD = "Gold standard"
"""The name of the estimate from all volumes."""
_ASSESSED = (methods.MLE_RICIAN, methods.SELF, methods.MLE_GAUSSIAN, methods.GT, methods.HYBRID)
_BLOCK = 16_384  # voxels, between two reports of progress
_POINTS = 10_000  # of a grid
_FEWEST = 10  # voxels with a gold standard
_FEW_REPEATS = 100  # or fewer: a quick study


@dataclass(frozen=True, eq=False)
class Scan:
    """A series with repeats, the voxels inside its mask.

    Args:
        name: what to call it.
        signal: (N, V) in the image's unit, N in C order of the mask.
        settings: of the V volumes, by name, in the model's units.
        inside: (X, Y, Z) the mask.
        zooms: size of a voxel in mm.
        repeats: how the volumes are single acquisitions.
        sigma: noise of one channel.
        level: how sigma was found.
        snr: quartiles over the voxels of S0 / sigma.
        simulated: whether it is the phantom.
    """

    name: str
    signal: Float[np.ndarray, "N V"]
    settings: Mapping[str, Float[np.ndarray, " V"]]
    inside: Bool[np.ndarray, "X Y Z"]
    zooms: tuple[float, float, float]
    repeats: Repeats
    sigma: float
    level: NoiseLevel | None
    snr: tuple[float, float, float]
    simulated: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Of the voxels, their settings and sigma."""
        arrays = {"signal": self.signal, "volumes": self.repeats.volumes, **self.settings}
        return digest(arrays, f"{self.sigma!r}")


def read_scan(
    image: Path | Sequence[Path],
    settings: Mapping[str, Float[np.ndarray, " V"]],
    *,
    mask: Path | None = None,
    sigma: float | None = None,
    repeats: int | None = None,
    tolerance: float = 0.0,
    noise: NoiseModel | None = None,
) -> Scan:
    """Read a series with repeats.

    Args:
        image: 4D NIfTI, or one of one volume for each measurement.
        settings: of its volumes, by name, in the models' units.
        mask: 3D NIfTI; all voxels if None.
        sigma: noise of one channel in the image's unit; from the repeats at b = 0 if None.
        repeats: single acquisitions in it; as many as divide the series evenly if None.
        tolerance: b-values this close (ms/µm²) are equal.
        noise: the noise model; `Rician()` if None.

    Raises:
        OSError: if a file cannot be read.
        InputError: if files and settings do not fit each other, or the series has no repeats.

    Warns:
        UserWarning: for possible mistakes.
    """
    with open_series(image) as series:
        for name, rows in settings.items():
            if len(rows) != series.volumes:
                raise InputError(
                    f"{name}: {len(rows)} values, but {series.name} has {series.volumes} volumes"
                )
        parts = split(settings, repeats, tolerance)
        notes, flat = list(series.notes), np.ones(series.voxels, bool)
        if mask is not None:
            flat, said = read_mask(mask, like=series)
            notes += said
        for note in notes:
            warnings.warn(note, stacklevel=2)
        inside = flat.reshape(series.shape, order="F")
        signal = np.empty((int(flat.sum()), series.volumes), np.float32)
        place = np.full(series.voxels, -1)  # of each voxel among those inside, in C order
        order = np.arange(series.voxels).reshape(series.shape, order="F")[inside]
        place[order] = np.arange(len(order))
        for index, block in series.blocks(flat):
            signal[place[index]] = block
        zooms = tuple(float(zoom) for zoom in series.header.get_zooms()[:3])
    made = _scan(series.name, signal, settings, inside, zooms, parts, sigma, tolerance, noise)
    if made.level is not None and made.level.doubt:
        warnings.warn(
            f"sigma: {made.sigma:.3g} is from repeats that differ by more than noise: "
            f"{made.level.doubt}; give --sigma if the noise floor is known",
            stacklevel=2,
        )
    return made


def phantom(study: Study, folder: Path) -> Scan:
    """The simulated pelvis treated as a scan: its noise is measured, its truth is not used.

    Args:
        study: whose lowest SNR the phantom has; a quick one gets a smaller phantom.
        folder: where it is written as files, for `labelwise study invivo` and others to try.
    """
    assert isinstance(study.model, IVIM)  # another study is refused before
    shape = (112, 80, 3) if study.repeats > _FEW_REPEATS else (56, 40, 2)
    b = (np.asarray(study.model.b) * 1000).tolist()
    pelvis = simulate_pelvis(seed=study.seed, shape=shape, snr=min(study.snrs), b_values=b)
    write(pelvis, folder)
    settings = {"b": pelvis.b / 1000}
    signal = pelvis.series[pelvis.mask]
    zooms = tuple(np.sqrt((pelvis.affine[:3, :3] ** 2).sum(axis=0)).tolist())
    name, parts = "pelvis-like phantom (simulated)", split(settings)
    made = _scan(name, signal, settings, pelvis.mask, zooms, parts)
    return replace(made, simulated=True)


def in_vivo_study(
    scan: Scan,
    model: SignalModel,
    model_name: str,
    noise: NoiseModel,
    ranges: Mapping[str, tuple[float, float]],
) -> Study:
    """The study of `labelwise study invivo`, with the networks that `labelwise map` would train.

    One set of networks for all noise levels of the image; each voxel is divided by its own signal
    at b = 0; labels fitted by search, those on a bound kept (docs/decisions/0007).

    Args:
        scan: the series.
        model: the signal model with the settings of all its volumes.
        model_name: as `labelwise.models.find.find_model` takes it.
        noise: the noise model.
        ranges: other ranges to simulate, by parameter.
    """
    one = type(model)(**scan.repeats.settings)
    prior = Uniform.typical(one, **ranges)
    single = scan.repeats.of(scan.signal)[:, 0]
    levels = noise_levels(one, single, scan.sigma)
    plan = blend_plan(one, noise, levels, prior)
    assert isinstance(plan.sigma, tuple)
    ivim = isinstance(one, IVIM)
    free = len(one.parameters)
    return Study(
        title=f"In vivo study: {printable(scan.name)}",
        model_name=absolute(model_name, Path()),
        model=one,
        noise=noise,
        prior=prior,
        snrs=(float(f"{scan.snr[1]:.2g}"),),
        levels=plan.sigma,
        recipe=plan.recipe,
        labels=LABELS if one.differentiable else tuple(n for n in LABELS if n != "selfsup"),
        own_weight=0,
        absolute_loss=False,
        intervals=False,
        normalise=True,
        on_bound=plan.on_bound,
        trainings=1,
        points=max(3, min(10, int(_POINTS ** (1 / free) + 1e-9))),
        repeats=100,
        noise_floor="D_slow" if ivim else None,
        ill_determined="D_fast" if ivim else None,
    )


def _scan(
    name, signal, settings, inside, zooms, parts, sigma=None, tolerance=0.0, noise=None
) -> Scan:
    level, mean = None, parts.of(signal)[:, :, 0].mean(axis=1)
    if sigma is None:  # as the source finds its SNR of about 15
        volumes = repeated_volumes(settings, tolerance)
        repeated = signal[:, volumes]
        level = from_repeats(repeated, noise or Rician())
        with np.errstate(invalid="ignore", over="ignore"):
            mean = repeated.mean(axis=1, dtype=float)
        sigma, mean = level.sigma, np.where(mean > 0, mean, np.nan)
    low, median, high = np.nanpercentile(mean / sigma, (25, 50, 75)).tolist()
    snr = low, median, high
    return Scan(name, signal, settings, inside, zooms, parts, float(sigma), level, snr)


@dataclass(frozen=True, eq=False)
class ScanAssessment:
    """The estimates of all methods on a scan.

    Args:
        in_vivo: the evidence for claims.
        maps: figure 7's data: `value` (method, parameter, x, y) of one slice.
        reference: the gold standard, and how many voxels have none, by reason.
        factor: what the image was divided by, so that S0 is about 1.
    """

    in_vivo: InVivo
    maps: xr.Dataset
    reference: Reference
    factor: float


def assess_scan(
    study: Study,
    stages: Stages,
    scan: Scan,
    networks: Mapping[str, Network],
    training: int = 0,
) -> ScanAssessment:
    """The in vivo part of a study: every method on each single acquisition.

    Args:
        study: its description; its model has the settings of one acquisition.
        stages: where they are kept.
        scan: the series.
        networks: by name; those of the paper's in vivo figures are used.
        training: which training they are of, from 0.
    """
    parameters, kind = study.model.parameters, type(study.model)
    used = scan.repeats.used
    every = kind(**{name: rows[used] for name, rows in scan.settings.items()})
    label = "phantom" if scan.simulated else "scan"
    content = {"scan": scan.fingerprint, "model": describe_model(every)}
    content |= {"noise": describe_noise(study.noise)}
    whole = f"gold standard, {label}"

    def fit_all() -> xr.Dataset:
        fitter, signal, found = MaximumLikelihood(every, study.noise), scan.signal[:, used], []
        for first in range(0, len(signal), _BLOCK):
            found.append(fitter(signal[first : first + _BLOCK], scan.sigma))
            stages.progress(whole, min(first + _BLOCK, len(signal)), len(signal), "")
        return xr.Dataset(
            {
                "value": (("voxel", "parameter"), np.concatenate([part.values for part in found])),
                "status": ("voxel", np.concatenate([part.status for part in found])),
            },
            {"parameter": [parameter.name for parameter in parameters]},
        )

    gold = stages.dataset(whole, content, fit_all, again=training > 0)
    reference = usable_reference(Estimate(gold["value"].values, gold["status"].values))
    scale = scale_parameter(study.model)
    if (found := int(reference.usable.sum())) < _FEWEST:
        raise InputError(
            f"{scan.name}: only {found} of {len(scan.signal)} voxels have a gold standard to "
            f"compare with ({reference.left_out}); check model, sigma and mask"
        )
    factor = 1.0 if scale is None else float(np.nanmedian(gold["value"].values[:, scale]))
    unit = np.ones(len(parameters))
    if scale is not None:
        unit[scale] = factor
    sigma, truth = scan.sigma / factor, reference.values / unit
    acquisitions = scan.repeats.of(scan.signal) / np.float32(factor)
    fit = {methods.MLE_MEAN: fits(study)[methods.MLE_MEAN]}
    chosen = {name: networks[name] for name in _ASSESSED if name in networks}
    who = {name: contents(network) for name, network in chosen.items()}
    shared = {**content, "factor": factor, "who": who, "prior": study.prior.describe()}

    def assessed(stage: str, data: Float[np.ndarray, "n R M"], against: np.ndarray) -> xr.Dataset:
        return assess(
            points(chosen),
            data,
            sigma,
            against,
            labels=fit,
            progress=lambda done, total: stages.progress(stage, done, total, ""),
        )

    suffix = study.suffix(training)
    stage = f"every method on the {label}{suffix}"
    voxels = stages.dataset(
        stage, shared | {"of": "scan"}, lambda: assessed(stage, acquisitions, truth)
    )
    usable, again = truth[reference.usable], f"matching synthetic set, {label}{suffix}"
    model, key = study.model, jax.random.key(study.seed + 2)

    def synthetic() -> xr.Dataset:
        data = matching(model, study.noise, usable, sigma, scan.repeats.number, key)
        return assessed(again, data, usable)

    matched = stages.dataset(again, shared | {"of": "matched", "seed": study.seed}, synthetic)
    arguments = (parameters, study.prior.ranges)
    in_vivo = InVivo(
        binned=binned(voxels, truth, *arguments, scale=scale, left_out=reference.left_out),
        matched=binned(matched, usable, *arguments, scale=scale),
        voxels=voxels,
        reference=truth,
    )
    return ScanAssessment(
        in_vivo, _maps(scan, voxels, gold["value"].values / unit), reference, factor
    )


def _maps(scan: Scan, voxels: xr.Dataset, gold: Float[np.ndarray, "N P"]) -> xr.Dataset:
    """The slice with the most voxels: the gold standard, and each method on one acquisition.

    The gold standard is shown on its bounds too, where it is no reference to judge others by.
    """
    index = int(np.argmax(scan.inside.sum(axis=(0, 1))))
    rows = {GOLD: gold}
    rows |= {
        str(name): voxels["first"].sel(estimator=name).values
        for name in voxels["estimator"].values
        if name != methods.HYBRID
    }
    columns = voxels["parameter"].values
    value = np.full((len(rows), len(columns), *scan.inside.shape[:2]), np.nan, np.float32)
    for method, values in enumerate(rows.values()):
        volume = np.full((*scan.inside.shape, len(columns)), np.nan, np.float32)
        volume[scan.inside] = values
        value[method] = np.moveaxis(volume[:, :, index], -1, 0)
    return xr.Dataset(
        {"value": (("method", "parameter", "x", "y"), value)},
        {"method": list(rows), "parameter": columns},
        {"slice": index},
    )
