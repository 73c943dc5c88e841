"""The main job: a series of images on disk in, parameter maps on disk out. It prints nothing."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from labelwise.acquisition import average, sigma_factor, zero_b
from labelwise.figures import parameter_maps
from labelwise.fitting import MaximumLikelihood, check_input
from labelwise.images import Series, open_series, read_map, read_mask
from labelwise.noise_level import NoiseLevel, from_background, from_repeats
from labelwise.outputs import Output
from labelwise.request import FitRequest
from labelwise.summary import (
    FitReport,
    clipping,
    count_statuses,
    doubts,
    has_values,
    median_residual,
    summarise,
)
from labelwise.types import Estimate, Estimator, Parameter, Status

_BACKGROUND_SAMPLES = 2_000_000
_STATISTICS = {  # unit and meaning of the maps that are not parameters
    "nll": ("1", "negative log-likelihood, up to terms in data and sigma only"),
    "residual": ("1", "√(Σ (data - expected)² / variance / (M - P)); about 1 for a good fit"),
    "iterations": ("1", "iterations of the fit"),
}


def fit_image(request: FitRequest, progress: Callable[[int, int], None] | None = None) -> FitReport:
    """Fit every voxel of a series and write the maps; memory does not grow with its volumes.

    Written are, for each parameter, its map and its standard error; for each voxel the status,
    the parameters on a bound, the negative log-likelihood, the residual and the iterations; a
    JSON sidecar for each map; `run.json`, the record of the run; and the picture `maps.png`. They
    appear together when all is done. A voxel that failed is NaN, and its status says why.

    Args:
        request: what to fit, how, and where to write.
        progress: called with (voxels done, voxels in all) before the first block and after each.

    Returns:
        What became of the voxels.

    Raises:
        ValueError: if images, acquisition, mask, bounds and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for what may be a mistake but need not be; `FitReport.notes` keeps it.
    """
    clock = [time.perf_counter()]
    with open_series(request.image) as series:
        notes = request.check(series)
        _warn(notes)
        estimator = MaximumLikelihood(
            request.fitted_model,
            request.noise,
            bounds=request.bounds,
            max_iterations=request.max_iterations,
            threads=request.threads,
        )
        inside = np.ones(series.voxels, bool)
        if request.mask is not None:
            inside = read_mask(request.mask, like=series)
        maps = [*_map_names(estimator.parameters), *["sigma"] * isinstance(request.sigma, Path)]
        names = [f"{name}{end}" for name in maps for end in (".nii.gz", ".json")] + ["maps.png"]
        _spare_inputs(request, names)
        with Output(request.folder, series, request.overwrite, names) as out:
            sigma, levels = _noise_level(request, series, inside)
            clock.append(time.perf_counter())
            estimate, peak = _estimate(request, series, inside, estimator, sigma, progress)
            clock.append(time.perf_counter())
            residual = median_residual(estimate, len(request.groups))
            found = [*doubts(estimate, levels, residual), *clipping(peak)]
            _warn(found)
            provenance = {**request.provenance(), "sigma": asdict(levels[0])}
            _write_maps(out, estimate, estimator.parameters, provenance)
            if isinstance(sigma, np.ndarray):
                words = {"description": "noise of one channel", "unit": "that of the series"}
                out.write_map("sigma", np.where(inside, sigma, np.nan), words | provenance)
            figure = _picture(request, series, estimate, estimator.parameters, levels[0])
            figure.savefig(out.path("maps.png"))
            clock.append(time.perf_counter())
            report = FitReport(
                folder=request.folder,
                voxels=count_statuses(estimate.status[inside]),
                parameters=summarise(estimate, estimator.parameters),
                residual=residual,
                sigma=levels[0],
                other_sigma=tuple(levels[1:]),
                seconds=dict(
                    zip(("prepare", "fit", "write"), np.diff(clock).tolist(), strict=True)
                ),
                notes=(*notes, *found),
            )
            out.write_run(provenance | report.as_dict())
    return report


def _warn(notes: list[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=3)


def _noise_level(
    request: FitRequest, series: Series, inside: Bool[np.ndarray, " V"]
) -> tuple[float | Float[np.ndarray, " V"], list[NoiseLevel]]:
    """The sigma to use; then what is said of it, first by the method asked for."""
    estimates = {"repeats": _from_repeats, "background": _from_background}
    levels = []
    if isinstance(request.sigma, Path):
        sigma = read_map(request.sigma, like=series)
        usable = sigma[inside & np.isfinite(sigma) & (sigma > 0)]
        if not usable.size:
            raise ValueError(f"{request.sigma}: sigma is positive nowhere inside the mask")
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
        except ValueError:  # this series does not allow that method, and nobody asked for it
            continue
    return sigma, levels


def _from_repeats(
    request: FitRequest, series: Series, inside: Bool[np.ndarray, " V"]
) -> NoiseLevel:
    groups, where = request.equal, "with equal settings"
    b = request.acquisition.get("b")
    if b is not None:
        groups = [group for group in groups if zero_b(b[group], request.b_tolerance).all()]
        where = f"at b = 0 (up to {1000 * request.b_tolerance:g} s/mm²)"
    volumes = max(groups, key=len, default=np.empty(0, int))
    if len(volumes) < 2:
        raise ValueError(
            f"sigma from repeats: expected at least 2 volumes {where}, got {len(volumes)} in "
            f"{series.path.name}; give sigma as a number or a map, or estimate it from the "
            "background"
        )
    variance, mean = [], []
    with np.errstate(invalid="ignore", over="ignore"):  # bad voxels are left out further on
        for _, signal in series.blocks(inside, volumes=volumes):
            variance.append(signal.var(axis=1, ddof=1, dtype=float))
            mean.append(signal.mean(axis=1, dtype=float))
    return from_repeats(np.concatenate(variance), np.concatenate(mean), len(volumes))


def _from_background(
    request: FitRequest, series: Series, inside: Bool[np.ndarray, " V"]
) -> NoiseLevel:
    """From voxels outside the mask, evenly thinned to about two million samples."""
    if request.mask is None:
        raise ValueError(
            "sigma from the background: a mask must say where the background is; give one, or "
            "give sigma as a number or a map"
        )
    outside = np.flatnonzero(~inside)
    step = math.ceil(max(len(outside) * series.volumes, 1) / _BACKGROUND_SAMPLES)
    chosen = np.zeros_like(inside)
    chosen[outside[::step]] = True
    samples = [signal.ravel() for _, signal in series.blocks(chosen)]
    return from_background(np.concatenate([np.empty(0, np.float32), *samples]))


def _estimate(
    request: FitRequest,
    series: Series,
    inside: Bool[np.ndarray, " V"],
    estimator: Estimator,
    sigma: float | Float[np.ndarray, " V"],
    progress: Callable[[int, int], None] | None,
) -> tuple[Estimate, Float[np.ndarray, " V"]]:
    """Fit block by block; the estimate of all voxels, and the largest measurement of each."""
    groups, how = request.groups, request.average or "arithmetic"
    factor = sigma_factor(groups)
    if np.all(factor == factor[0]):
        factor = factor[:1]  # one sigma for all measurements of a voxel
    tell = progress or (lambda done, total: None)
    values = np.full((series.voxels, len(estimator.parameters)), np.nan, np.float32)
    status = np.full(series.voxels, Status.NOT_FITTED, np.uint8)
    peak = np.full(series.voxels, np.nan, np.float32)
    stats: dict[str, np.ndarray] = {}
    done, total = 0, int(inside.sum())
    tell(done, total)
    for index, signal in series.blocks(inside):
        here = np.reshape(sigma[index] if isinstance(sigma, np.ndarray) else sigma, (-1, 1))
        measured = average(signal, groups, how)
        raw = check_input(signal, here, request.noise)  # an average can hide what is wrong
        measured = np.where(raw[:, None] == Status.CONVERGED, measured, np.nan)
        part = estimator(measured, here * factor)
        values[index], peak[index] = part.values, signal.max(axis=1)
        status[index] = np.where(raw == Status.CONVERGED, part.status, raw)
        for name, rows in part.stats.items():
            if name not in stats:
                stats[name] = _blank(series.voxels, rows)
            stats[name][index] = rows
        done += len(index)
        tell(done, total)
    return Estimate(values, status, stats), peak


def _blank(voxels: int, like: np.ndarray) -> np.ndarray:
    """Rows for all voxels where nothing was fitted yet: NaN, or 0 for integers."""
    empty = np.nan if np.issubdtype(like.dtype, np.floating) else 0
    return np.full((voxels, *like.shape[1:]), empty, like.dtype)


def _spare_inputs(request: FitRequest, names: list[str]) -> None:
    inputs = {path.resolve() for path in request.inputs}
    for name in names:
        if (request.folder / name).resolve() in inputs:
            raise ValueError(
                f"{request.folder / name}: is an input of this run and would be replaced by a "
                "result; choose another output folder"
            )


def _map_names(parameters: tuple[Parameter, ...]) -> list[str]:
    names = [parameter.name for parameter in parameters]
    errors = [f"{name}_standard_error" for name in names]
    return [*names, *errors, "status", "on_bound", *_STATISTICS]


def _write_maps(
    out: Output,
    estimate: Estimate,
    parameters: tuple[Parameter, ...],
    provenance: Mapping[str, Any],
) -> None:
    common = dict(provenance) | {"parameters": [asdict(parameter) for parameter in parameters]}
    for column, parameter in enumerate(parameters):
        described = {
            "description": f"maximum-likelihood estimate of {parameter.name}",
            "unit": parameter.unit,
            "bounds": parameter.bounds,
        }
        out.write_map(parameter.name, estimate.values[:, column], described | common)
        described["description"] = (
            f"standard error of {parameter.name} from the Fisher information; NaN on a bound"
        )
        errors = estimate.stats["standard_error"][:, column]
        out.write_map(f"{parameter.name}_standard_error", errors, described | common)
    codes = {int(code): code.reason for code in Status}
    out.write_map(
        "status",
        estimate.status,
        {"description": "what became of each voxel", "unit": "1", "codes": codes} | common,
    )
    on_bound = {
        "description": "which parameters lie on a bound; one volume per parameter",
        "unit": "1",
        "volumes": [parameter.name for parameter in parameters],
        "codes": {-1: "on the lower bound", 0: "between the bounds", 1: "on the upper bound"},
    }
    out.write_map("on_bound", estimate.stats["on_bound"], on_bound | common)
    for name, (unit, description) in _STATISTICS.items():
        words = {"description": description, "unit": unit}
        out.write_map(name, estimate.stats[name], words | common)


def _picture(
    request: FitRequest,
    series: Series,
    estimate: Estimate,
    parameters: tuple[Parameter, ...],
    sigma: NoiseLevel,
) -> Figure:
    """The slice with most fitted voxels; of several, the one nearest the middle."""

    def volume(values: np.ndarray) -> np.ndarray:
        return values.reshape(series.shape, order="F")

    status = volume(estimate.status)
    fitted = has_values(status).sum(axis=(0, 1))
    middle = (len(fitted) - 1) / 2
    index = max(range(len(fitted)), key=lambda z: (fitted[z], -abs(z - middle)))
    x, y = (float(zoom) or 1.0 for zoom in series.header.get_zooms()[:2])
    columns = {parameter.name: column for column, parameter in enumerate(parameters)}
    errors = estimate.stats["standard_error"]
    return parameter_maps(
        {name: volume(estimate.values[:, column]) for name, column in columns.items()},
        parameters,
        status,
        index=index,
        standard_errors={name: volume(errors[:, column]) for name, column in columns.items()},
        zooms=(x, y),
        title=(
            f"{series.path.name}, slice {index + 1} of {series.shape[2]}\n"
            f"{type(request.model).__name__}, {type(request.noise).__name__} noise, "
            f"sigma {sigma.sigma:.4g} ({sigma.method})"
        ),
    )
