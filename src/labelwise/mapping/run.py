"""Run a request: estimate the voxels of a series by any method and write the maps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import check_input
from labelwise.fitting.maximum_likelihood import left_out
from labelwise.fitting.usable import DEFICIT, EXCLUDED, Ceiling, ceiling
from labelwise.io.nifti import Series, open_series, read_mask, refuse_other_grid
from labelwise.io.results import Output, output_folder
from labelwise.mapping.checks import check, inputs, provenance
from labelwise.mapping.constants import Constants, read_constants
from labelwise.mapping.derived import maps_of_derived, with_derived
from labelwise.mapping.diagnostics import systematic_residuals, unlike_simulated
from labelwise.mapping.gradients import corrected, read_factors, scaled_by_b
from labelwise.mapping.maps import PICTURE, Map, file_names, picture, writing
from labelwise.mapping.method import Clock, Method, Prepared, Step
from labelwise.mapping.page import PAGE, page
from labelwise.mapping.request import Request
from labelwise.mapping.sigma import Noise, noise_level
from labelwise.mapping.summary import (
    Report,
    count_left_out,
    count_statuses,
    left_out_notes,
    median_residual,
    negative_notes,
    quality_notes,
    summarise,
)
from labelwise.models import SignalModel
from labelwise.networks.network import Network
from labelwise.types import Estimate, InputError, Parameter, Progress, Status, no_progress

_CHECKED = 5_000  # voxels to check the assumptions of intervals in
_CLEAR = 5.0  # sigma: there is signal in a voxel with a larger measurement
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
    with _heard() as heard:
        method = method.begin(request)
    with open_series(request.image) as series, _marked(request) as marked:
        inside, said = np.ones(series.voxels, bool), []
        if request.mask is not None:
            inside, said = read_mask(request.mask, like=series)
        notes = list(dict.fromkeys([*request.notes, *heard]))
        said = [*check(request, method, series), *said, *(marked.notes if marked else ())]
        fresh = [each for each in said if each not in notes]
        _warn(fresh)
        notes += fresh
        factors = None
        if request.b_scale is not None:
            factors, said = read_factors(
                request.b_scale, series, inside, "gx" in request.acquisition
            )
            notes += said
        constants = None
        if request.constants:
            constants, said = read_constants(request.model, request.constants, series, inside)
            notes += said
        series, marked = _select(request, series, marked)
        maps = _maps(request, method, request.model.parameters)
        with _output(request, method, series, maps) as out:
            noise = noise_level(request, series, inside)
            found = [*noise.mended, *noise.notes]
            _warn(found)
            notes += found
            top = _ceiling(series, inside)
            scan = _Scan(request, series, inside, noise, marked, top, factors, constants)
            if method.stage == "fit":
                clock.lap("prepare")
            prepared = method.prepare(request, lambda: _usable_voxels(scan), progress, clock)
            activity = {"fit": "fitting", "map": "mapping"}[method.stage]
            steps = _steps(scan, method, prepared, progress)
            estimate, snr, negative = _estimate(
                scan, prepared, steps, lambda done, total: progress(activity, done, total, "")
            )
            clock.lap(method.stage)
            record = {**provenance(request, method), "sigma": asdict(noise.level)}
            if prepared.use is not None:
                record["network"] = prepared.use.as_dict()
            left = estimate.stats.get("left_out")
            maps = _maps(request, method, prepared.parameters, prepared.network)
            maps = [each for each in maps if each.name != "left_out" or left is not None]
            with _writing(out, scan, maps, estimate, prepared, record):
                residual = median_residual(estimate, len(method.groups(request)))
                limits = method.limits(estimate, prepared)
                summary = summarise(estimate, prepared.parameters, limits)
                others = [each for each in noise.others if not (noise.notes and each.doubt)]
                later = quality_notes(estimate, noise.level, others, residual, snr, request.noise)
                later += method.notes(estimate, summary, prepared)
                later += left_out_notes(left, scan.top, estimate.status, request.volumes)
                later += negative_notes(negative, estimate.status[inside], request)
                later += _assumptions(scan, estimate, prepared, snr > _CLEAR)
                _warn(later)
            if prepared.network is not None:
                for name in method.files:
                    prepared.network.save(out.path(name))
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
                left_out=count_left_out(left),
            )
            how = prepared, report, scan.sigma_of, constants
            text = page(request, series, inside, estimate, maps, *how)
            out.path(PAGE).write_text(text, encoding="utf-8")
            clock.lap("write")
            out.write_run(record | report.as_dict())
    return report


def _maps(
    request: Request,
    method: Method,
    parameters: tuple[Parameter, ...],
    network: Network | None = None,
) -> list[Map]:
    """The maps that are written."""
    own = method.maps(request, parameters, network)
    kinds = {each.details["interval"] for each in own if "interval" in each.details}
    return [*own, *maps_of_derived(request.model.derived, kinds, request.standard_errors)]


def usable_voxels(
    request: Request, method: Method
) -> tuple[Float[np.ndarray, "n M"], Float[np.ndarray, "n #M"]]:
    """The signal and the sigma of some usable voxels of a series, as `run` gives to its method.

    Raises:
        InputError: see `run`.
        OSError: if a file cannot be read.
    """
    with open_series(request.image) as series, _marked(request) as marked:
        inside = np.ones(series.voxels, bool)
        if request.mask is not None:
            inside, _ = read_mask(request.mask, like=series)
        check(request, method, series)
        series, marked = _select(request, series, marked)
        noise = noise_level(request, series, inside)
        return _usable_voxels(_Scan(request, series, inside, noise, marked, None))


@dataclass(frozen=True)
class _Scan:
    """The open series, its voxels inside the mask, and their noise."""

    request: Request
    series: Series
    inside: Bool[np.ndarray, " V"]
    noise: Noise
    marked: Series | None
    top: Ceiling | None
    factors: Float[np.ndarray, " V"] | None = None
    constants: Constants | None = None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Index, signal and codes of why measurements are excluded, block by block."""
        signals = self.series.blocks(self.inside)
        if self.marked is None:
            for index, signal in signals:
                yield index, signal, np.zeros(signal.shape, np.uint8)
            return
        for (index, signal), (_, marks) in zip(
            signals, self.marked.blocks(self.inside), strict=True
        ):
            yield index, signal, np.where(marks > 0.5, np.uint8(EXCLUDED), np.uint8(0))

    def sigma_of(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "#n #M"]:
        """The sigma of some voxels, of each measurement if known, or the one of all."""
        if isinstance(self.noise.sigma, np.ndarray):
            return self.noise.sigma[index].reshape(len(index), -1)
        return np.full((1, 1), self.noise.sigma)


_Steps = Callable[
    [Int[np.ndarray, " n"]], Iterator[tuple[Int[np.ndarray, " k"] | slice, SignalModel, Step]]
]
"""For some voxels, the rows that have the same model, the model, and the step of its estimates."""


def _steps(scan: _Scan, method: Method, prepared: Prepared, progress: Progress) -> _Steps:
    constants, request = scan.constants, scan.request
    if constants is None:
        return lambda index: iter([(slice(None), request.model, prepared.step)])

    @cache
    def of(key: tuple[float, ...]) -> tuple[SignalModel, Step]:
        model = constants.model_of(key)
        mine = replace(request, model=model)
        return model, method.prepare(mine, lambda: _usable_voxels(scan), progress, Clock()).step

    return lambda index: ((rows, *of(key)) for key, rows in constants.groups(index))


def _estimate(
    scan: _Scan, prepared: Prepared, steps: _Steps, progress: Callable[[int, int], None]
) -> tuple[Estimate, Float[np.ndarray, " V"], int]:
    """Block by block, the estimate of all voxels, the largest measurement of each in units of
    sigma, and how many voxels have negative measurements."""
    voxels = scan.series.voxels
    values = np.full((voxels, len(prepared.parameters)), np.nan, np.float32)
    status = np.full(voxels, Status.NOT_FITTED, np.uint8)
    snr, negative = np.full(voxels, np.nan, np.float32), 0
    stats: dict[str, np.ndarray] = {}
    done, total = 0, int(scan.inside.sum())
    progress(done, total)
    for index, highest, below, part in _estimates_of_blocks(scan, steps, prepared.workers):
        values[index], snr[index], status[index] = part.values, highest, part.status
        negative += below
        for name, rows in part.stats.items():
            if name not in stats:
                if name == "left_out" and not rows.any():
                    continue  # a byte for each measurement, only where some are left out
                stats[name] = _blank(voxels, rows)
            stats[name][index] = rows
        done += len(index)
        progress(done, total)
    return Estimate(values, status, stats, prepared.parameters), snr, negative


def _estimates_of_blocks(
    scan: _Scan, steps: _Steps, workers: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], int, Estimate]]:
    """For each block, `workers` at a time: index, largest measurement of each voxel in units of
    sigma, number of negative voxels, and estimate."""

    def work(index, signal, codes):
        sigma = scan.sigma_of(index)
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.fmax.reduce(signal / sigma, axis=1)
        gone = left_out(sigma)
        if gone.any():
            codes = np.where(gone & (codes == 0), np.uint8(EXCLUDED), codes)
            sigma = np.where(gone, 1, sigma)
        below = ((signal < -DEFICIT * sigma) & (codes == 0)).any(axis=1).sum()
        parts = [
            (rows, estimated(index[rows], signal[rows], _rows(sigma, rows), codes[rows], *how))
            for rows, *how in steps(index)
        ]
        return index, snr, int(below), _merged(parts)

    def estimated(index, signal, sigma, codes, model, step):
        part = step(signal, sigma, codes, scan.top, scan.noise.level.scatter)
        nominal = part.values
        if scan.factors is not None:
            part = corrected(part, scaled_by_b(model), scan.factors[index])
        return with_derived(part, model, scan.request.noise, sigma, nominal)

    blocks = scan.blocks()
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


def _rows(sigma: Float[np.ndarray, "#n #M"], rows) -> Float[np.ndarray, "#k #M"]:
    return sigma if len(sigma) == 1 else sigma[rows]


def _merged(parts: Sequence[tuple[Any, Estimate]]) -> Estimate:
    """One estimate from those of parts of its voxels, with the rows of each."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    estimates = [part for _, part in parts]
    return Estimate(
        np.concatenate([part.values for part in estimates])[order],
        np.concatenate([part.status for part in estimates])[order],
        {
            name: np.concatenate([part.stats[name] for part in estimates])[order]
            for name in estimates[0].stats
        },
        estimates[0].parameters,
    )


def _blank(voxels: int, like: np.ndarray) -> np.ndarray:
    """Rows for all voxels where nothing was estimated yet: NaN, or 0 for integers."""
    empty = np.nan if np.issubdtype(like.dtype, np.floating) else 0
    return np.full((voxels, *like.shape[1:]), empty, like.dtype)


def _usable_voxels(
    scan: _Scan,
) -> tuple[Float[np.ndarray, "n M"], Float[np.ndarray, "n #M"]]:
    """Signal and sigma of valid voxels, evenly subsampled."""
    inside = np.flatnonzero(scan.inside)
    sampled = np.zeros_like(scan.inside)
    sampled[inside[:: math.ceil(len(inside) / _SAMPLE)]] = True
    ((index, signal),) = scan.series.blocks(sampled, size=_SAMPLE)
    sigma = scan.sigma_of(index)
    sigma = np.broadcast_to(sigma, (len(index), sigma.shape[1]))
    good = check_input(signal, sigma, scan.request.noise) == Status.CONVERGED
    return signal[good], sigma[good]


def _assumptions(
    scan: _Scan, estimate: Estimate, prepared: Prepared, clear: Bool[np.ndarray, " V"]
) -> list[str]:
    """Notes on the assumptions of intervals, from some voxels with a value and a clear signal."""
    if "low" not in estimate.stats:
        return []
    good = np.flatnonzero(np.isfinite(estimate.values).all(axis=1) & clear)
    few = np.zeros_like(scan.inside)
    few[good[:: math.ceil(len(good) / _CHECKED) or 1]] = True
    if not few.any():
        return []
    ((index, signal),) = scan.series.blocks(few, size=_CHECKED)
    sigma = scan.sigma_of(index)
    level = np.broadcast_to(sigma, (len(index), sigma.shape[1]))
    left = estimate.stats.get("left_out")
    whole = np.ones(len(index), bool)
    if left is not None:
        whole = ~np.any(left[index] > 0, axis=1)
    given = signal[whole], level[whole]
    notes = []
    if scan.factors is None and scan.constants is None:
        rows, network = estimate.values[index[whole]], prepared.network
        if network is not None and network.is_blend and set(network.alphas.values()) != {1.0}:
            # others are biased: their curves need not follow a signal that the model describes
            rows = network.with_alpha(1.0).without_errors()(given[0], given[1][:, 0]).values
        scatter = scan.noise.level.scatter
        notes += systematic_residuals(scan.request, *given, rows, scatter)
    if prepared.network is not None:
        notes += unlike_simulated(prepared.network, given[0], given[1][:, 0])
    return notes


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The texts of the warnings for persons that are raised in the `with`, which are passed on."""
    heard: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
    finally:
        for each in caught:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
            if issubclass(each.category, UserWarning):
                heard.append(str(each.message))


@contextmanager
def _marked(request: Request) -> Iterator[Series | None]:
    """The 4D image of measurements to exclude, if one is given."""
    if request.exclude_map is None:
        yield None
        return
    with open_series(request.exclude_map) as marked:
        yield marked


def _select(
    request: Request, series: Series, marked: Series | None
) -> tuple[Series, Series | None]:
    """The volumes that are used, of the series and of the measurements to exclude."""
    if marked is not None:
        refuse_other_grid(marked, series)
        if marked.volumes != series.volumes:
            raise InputError(
                f"{marked.path}: expected one volume for each of the {series.volumes} volumes of "
                f"{series.path}, got {marked.volumes}"
            )
        series, marked = series.without(marked), marked.only(request.volumes)
    return (series.only(request.volumes) if request.excluded else series), marked


def _ceiling(series: Series, inside: Bool[np.ndarray, " V"]) -> Ceiling | None:
    return ceiling((signal for _, signal in series.blocks(inside)), series.scalings)


def _warn(notes: list[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=4)  # the call of `fit_image` or `map_image`


def _output(
    request: Request, method: Method, series: Series, maps: Sequence[Map]
) -> AbstractContextManager[Output]:
    """The output folder."""
    names = [*file_names(maps), PAGE, *method.files]
    if isinstance(request.sigma, Path) or request.sigma in ("auto", "repeats", "mppca"):
        names += ["sigma.nii.gz", "sigma.json"]
    return output_folder(
        request.folder, series, request.overwrite, names, inputs(request, method), request.fill
    )


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
            values = np.where(scan.inside, scan.noise.sigma.T, np.nan).T
            out.write_map("sigma", values, sidecar | dict(record))
        how = "" if prepared.network is None else ", by a network"
        figure = picture(request, series, estimate, parameters, scan.noise.level, how)
        figure.savefig(out.path(PICTURE))
