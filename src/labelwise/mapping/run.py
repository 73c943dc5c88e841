"""Run a request: estimate the voxels of a series by any method and write the maps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import check_input
from labelwise.io.nifti import Series, open_series, read_mask
from labelwise.io.results import Output, output_folder
from labelwise.mapping.checks import check, inputs, provenance
from labelwise.mapping.maps import PICTURE, Map, file_names, picture, writing
from labelwise.mapping.method import Clock, Method, Prepared, Step
from labelwise.mapping.request import Request
from labelwise.mapping.sigma import Noise, noise_level
from labelwise.mapping.summary import (
    Report,
    clipping,
    count_statuses,
    median_residual,
    quality_notes,
    summarise,
)
from labelwise.types import Estimate, InputError, Progress, Status, no_progress

_SAMPLE = 50_000  # voxels to find the range of noise levels in


def run(request: Request, method: Method, progress: Progress | None = None) -> Report:
    """Estimate every voxel of a series and write the maps; memory does not grow with its volumes.

    Args:
        request: the series, the model and the output folder.
        method: `ByFit` or `ByNetwork`.
        progress: called before the first block and after each.

    Returns:
        The report of the run.

    Raises:
        InputError: if images, acquisition, mask, method and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for possible mistakes; they are in `Report.notes`, too.
    """
    progress = progress or no_progress
    clock = Clock()
    method = method.begin(request)
    with open_series(request.image) as series:
        notes = _warn(check(request, method, series))
        inside = _inside(request, series)
        maps = method.maps(request.model.parameters)
        with _output(request, method, series, maps) as out:
            noise = noise_level(request, series, inside)
            notes += _warn(noise.notes)
            scan = _Scan(request, series, inside, noise)
            if method.stage == "fit":
                clock.lap("prepare")
            prepared = method.prepare(request, lambda: _usable_voxels(scan), progress, clock)
            activity = {"fit": "fitting", "map": "mapping"}[method.stage]
            estimate, peak = _estimate(
                scan, prepared, lambda done, total: progress(activity, done, total, "")
            )
            clock.lap(method.stage)
            record = {**provenance(request, method), "sigma": asdict(noise.level)}
            if prepared.use is not None:
                record["network"] = prepared.use.as_dict()
            maps = method.maps(prepared.parameters)
            with _writing(out, scan, maps, estimate, prepared, record):
                residual = median_residual(estimate, len(method.groups(request)))
                limits = method.limits(estimate, prepared)
                summary = summarise(estimate, prepared.parameters, limits)
                with np.errstate(divide="ignore", invalid="ignore"):
                    snr = peak / noise.sigma
                later = quality_notes(
                    estimate, noise.level, noise.others, residual, snr, request.noise
                )
                later += [*method.notes(estimate, summary, prepared), *clipping(peak)]
                _warn(later)
            if prepared.network is not None:
                for name in method.files:
                    prepared.network.save(out.path(name))
            clock.lap("write")
            report = Report(
                folder=request.folder,
                voxels=count_statuses(estimate.status[inside]),
                parameters=summary,
                residual=residual,
                sigma=noise.level,
                other_sigma=tuple(noise.others),
                refused_sigma=noise.refused,
                seconds=clock.seconds,
                notes=(*notes, *later),
                network=prepared.use,
            )
            out.write_run(record | report.as_dict())
    return report


@dataclass(frozen=True)
class _Scan:
    """The open series, its voxels inside the mask, and their noise."""

    request: Request
    series: Series
    inside: Bool[np.ndarray, " V"]
    noise: Noise

    def sigma_of(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "#n 1"]:
        """The sigma of some voxels, or the one of all."""
        if isinstance(self.noise.sigma, np.ndarray):
            return self.noise.sigma[index, None]
        return np.full((1, 1), self.noise.sigma)

    def excess_of(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "#n 1"] | None:
        """The scatter of measurements over sigma, for `with_scatter`."""
        scatter = self.noise.level.scatter
        if scatter is None:
            return None
        return np.maximum(scatter / self.sigma_of(index), 1).astype(np.float32)


def _estimate(
    scan: _Scan, prepared: Prepared, progress: Callable[[int, int], None]
) -> tuple[Estimate, Float[np.ndarray, " V"]]:
    """Block by block, the estimate of all voxels, and the largest measurement of each."""
    voxels = scan.series.voxels
    values = np.full((voxels, len(prepared.parameters)), np.nan, np.float32)
    status = np.full(voxels, Status.NOT_FITTED, np.uint8)
    peak = np.full(voxels, np.nan, np.float32)
    stats: dict[str, np.ndarray] = {}
    done, total = 0, int(scan.inside.sum())
    progress(done, total)
    for index, highest, part in _estimates_of_blocks(scan, prepared.step, prepared.workers):
        values[index], peak[index], status[index] = part.values, highest, part.status
        for name, rows in part.stats.items():
            if name not in stats:
                stats[name] = _blank(voxels, rows)
            stats[name][index] = rows
        done += len(index)
        progress(done, total)
    return Estimate(values, status, stats, prepared.parameters), peak


def _estimates_of_blocks(
    scan: _Scan, step: Step, workers: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Estimate]]:
    """Index, largest measurement and estimate of each block, `workers` blocks at a time."""

    def work(index, signal):
        estimate = step(signal, scan.sigma_of(index), scan.excess_of(index))
        return index, signal.max(axis=1), estimate

    blocks = scan.series.blocks(scan.inside)
    if workers == 1:
        yield from (work(*block) for block in blocks)
        return
    running: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for block in blocks:
            running.append(pool.submit(work, *block))
            if len(running) > workers:  # never the whole series in memory
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _blank(voxels: int, like: np.ndarray) -> np.ndarray:
    """Rows for all voxels where nothing was estimated yet: NaN, or 0 for integers."""
    empty = np.nan if np.issubdtype(like.dtype, np.floating) else 0
    return np.full((voxels, *like.shape[1:]), empty, like.dtype)


def _usable_voxels(
    scan: _Scan,
) -> tuple[Float[np.ndarray, "n M"], Float[np.ndarray, " n"]]:
    """Signal and sigma of valid voxels, evenly subsampled."""
    inside = np.flatnonzero(scan.inside)
    sampled = np.zeros_like(scan.inside)
    sampled[inside[:: math.ceil(len(inside) / _SAMPLE)]] = True
    ((index, signal),) = scan.series.blocks(sampled, size=_SAMPLE)
    sigma = np.broadcast_to(scan.sigma_of(index), (len(index), 1))
    good = check_input(signal, sigma, scan.request.noise) == Status.CONVERGED
    return signal[good], sigma[good, 0]


def _warn(notes: list[str]) -> list[str]:
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return notes


def _inside(request: Request, series: Series) -> Bool[np.ndarray, " V"]:
    if request.mask is None:
        return np.ones(series.voxels, bool)
    return read_mask(request.mask, like=series)


def _output(
    request: Request, method: Method, series: Series, maps: Sequence[Map]
) -> AbstractContextManager[Output]:
    """The output folder, after refusing to replace an input by a result."""
    names = [*file_names(maps), *method.files]
    if isinstance(request.sigma, Path) or request.sigma in ("auto", "repeats", "mppca"):
        names += ["sigma.nii.gz", "sigma.json"]
    read = {path.resolve() for path in inputs(request, method)}
    for name in names:
        if (request.folder / name).resolve() in read:
            raise InputError(
                f"{request.folder / name}: is an input of this run and would be replaced by a "
                "result; choose another output folder"
            )
    return output_folder(request.folder, series, request.overwrite, names)


@contextmanager
def _writing(
    out: Output,
    scan: _Scan,
    maps: Sequence[Map],
    estimate: Estimate,
    prepared: Prepared,
    record: Mapping[str, Any],
) -> Iterator[None]:
    """Stage the maps in parallel to the body of the `with`; then sigma and the figure."""
    request, series, parameters = scan.request, scan.series, prepared.parameters
    entries = {**record, "parameters": [asdict(parameter) for parameter in parameters]}
    with writing(out, maps, estimate, entries, request.workers):
        yield
        if isinstance(scan.noise.sigma, np.ndarray):
            sidecar = {"description": "noise of one channel", "unit": "that of the series"}
            values = np.where(scan.inside, scan.noise.sigma, np.nan)
            out.write_map("sigma", values, sidecar | dict(record))
        how = "" if prepared.network is None else ", by a network"
        figure = picture(request, series, estimate, parameters, scan.noise.level, how)
        figure.savefig(out.path(PICTURE))
