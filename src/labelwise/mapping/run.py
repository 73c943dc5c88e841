"""The main jobs: a series of images on disk in, parameter maps on disk out. They print nothing."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import MaximumLikelihood, available_cores, check_input
from labelwise.fitting.goodness import goodness
from labelwise.io.acquisition import average, sigma_factor
from labelwise.io.nifti import Series, open_series, read_mask
from labelwise.io.noise_level import NoiseLevel
from labelwise.io.results import Output, output_folder
from labelwise.mapping.maps import (
    PICTURE,
    Map,
    file_names,
    maps_of_fit,
    maps_of_network,
    picture,
    writing,
)
from labelwise.mapping.request import FitRequest, MapRequest, Request
from labelwise.mapping.sigma import noise_level
from labelwise.mapping.summary import (
    NetworkUse,
    ParameterSummary,
    Report,
    beyond_ranges,
    clipping,
    count_statuses,
    doubts,
    median_residual,
    outside_training,
    summarise,
)
from labelwise.networks.network import OUTSIDE_SIGNAL
from labelwise.types import Estimate, Estimator, InputError, Parameter, Status

NETWORK = "net.safetensors"
"""The network that was trained for a run, in the folder of its maps."""

Progress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and how it goes."""

_SAMPLE = 50_000  # voxels to see the range of noise levels in
_MISSED = 3.0  # a residual above this is no noise: about 1 is expected


class Network(Estimator, Protocol):
    """An estimator that can be kept."""

    def save(self, path: Path) -> None:
        """Write it to a file."""
        ...


Source = Callable[
    [Float[np.ndarray, "n M"], Float[np.ndarray, " n"], Progress], tuple[Network, NetworkUse]
]
"""From the signal of some usable voxels and their sigma to the network that maps the series."""


def fit_image(request: FitRequest, progress: Callable[[int, int], None] | None = None) -> Report:
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
        InputError: if images, acquisition, mask, bounds and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for what may be a mistake but need not be; `Report.notes` keeps it.
    """
    clock = _Clock()
    with open_series(request.image) as series:
        notes = _warn(request.check(series))
        fitter = MaximumLikelihood(
            request.fitted_model,
            request.noise,
            bounds=request.bounds,
            max_iterations=request.max_iterations,
            threads=request.threads,
        )
        inside = _inside(request, series)
        maps = maps_of_fit(fitter.parameters)
        with _output(request, series, maps) as out:
            subject = _Subject(request, series, inside, *noise_level(request, series, inside))
            clock.lap("prepare")
            told = progress or (lambda done, total: None)
            estimate, peak = _estimate(subject, fitter.parameters, _fitting(request, fitter), told)
            clock.lap("fit")
            provenance = {**request.provenance(), "sigma": asdict(subject.levels[0])}
            with _writing(out, subject, maps, estimate, fitter.parameters, provenance):
                residual = median_residual(estimate, len(request.groups))
                found = _warn([*doubts(estimate, subject.levels, residual), *clipping(peak)])
                on_bound = estimate.stats["on_bound"]
                limits = {p.name: on_bound[:, column] for column, p in enumerate(fitter.parameters)}
                summary = summarise(estimate, fitter.parameters, limits)
            clock.lap("write")
            report = _report(subject, estimate, summary, residual, clock, [*notes, *found])
            out.write_run(provenance | report.as_dict())
    return report


def map_image(request: MapRequest, source: Source, progress: Progress | None = None) -> Report:
    """Map every voxel of a series by a network and write the maps.

    Written is what `fit_image` writes, but for iterations and bounds: instead, `outside` says for
    each voxel whether its noise level or its estimate is outside what the network was trained for.
    A network that was made for this run is written too, as `net.safetensors`.

    Args:
        request: what to map, by which network, and where to write.
        source: finds the network, or trains it, once the noise of the series is known.
        progress: called with what is being done and how far it is.

    Returns:
        What became of the voxels.

    Raises:
        InputError: if images, acquisition, mask, network and sigma do not fit each other.
        OSError: if a file cannot be read or written.

    Warns:
        UserWarning: for what may be a mistake but need not be; `Report.notes` keeps it.
    """
    tell = progress or (lambda what, done, total, words: None)
    clock = _Clock()
    with open_series(request.image) as series:
        notes = _warn(request.check(series))
        inside = _inside(request, series)
        parameters = request.model.parameters
        maps = maps_of_network(parameters)
        with _output(request, series, maps, [] if request.net else [NETWORK]) as out:
            subject = _Subject(request, series, inside, *noise_level(request, series, inside))
            signal, sigma = _usable_voxels(subject)
            clock.lap("prepare")
            network, use = source(signal, sigma, tell)
            clock.lap("train")
            step = _mapping(request, network)
            if len(signal):
                step(signal[:1], sigma[:1, None])  # compiles: every block has the same shape inside
            clock.lap("start")
            workers = request.threads or available_cores()
            estimate, peak = _estimate(
                subject,
                parameters,
                step,
                lambda done, total: tell("mapping", done, total, ""),
                workers,
            )
            clock.lap("map")
            provenance = {
                **request.provenance(),
                "sigma": asdict(subject.levels[0]),
                "network": use.as_dict(),
            }
            how = ", by a network"
            with _writing(out, subject, maps, estimate, parameters, provenance, how):
                residual = median_residual(estimate, series.volumes)
                ranges = beyond_ranges(estimate, [p.name for p in parameters], use)
                summary = summarise(estimate, parameters, ranges)
                doubted = doubts(estimate, subject.levels, residual)
                doubted += [*outside_training(estimate, summary, use), *clipping(peak)]
                found = _warn(doubted)
            if request.net is None:
                network.save(out.path(NETWORK))
            clock.lap("write")
            report = _report(subject, estimate, summary, residual, clock, [*notes, *found], use)
            out.write_run(provenance | report.as_dict())
    return report


@dataclass(frozen=True)
class _Subject:
    """What there is to estimate: the voxels inside, and the noise of each."""

    request: Request
    series: Series
    inside: Bool[np.ndarray, " V"]
    sigma: float | Float[np.ndarray, " V"]
    levels: list[NoiseLevel]

    def sigma_of(self, index: Int[np.ndarray, " n"]) -> Float[np.ndarray, "#n 1"]:
        """The sigma of some voxels, or the one of all."""
        if isinstance(self.sigma, np.ndarray):
            return self.sigma[index, None]
        return np.full((1, 1), self.sigma)


@dataclass
class _Clock:
    """Wall time by part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """All since the last lap was this part."""
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now


Step = Callable[[Float[np.ndarray, "n M"], Float[np.ndarray, "#n 1"]], Estimate]
"""The estimate of some voxels from their signal and sigma."""


def _fitting(request: FitRequest, fitter: MaximumLikelihood) -> Step:
    groups, how = request.groups, request.average or "arithmetic"
    factor = sigma_factor(groups)
    if np.all(factor == factor[0]):
        factor = factor[:1]  # one sigma for all measurements of a voxel

    def step(signal, sigma):
        measured = average(signal, groups, how)
        raw = check_input(signal, sigma, request.noise)  # an average can hide what is wrong
        good = raw == Status.CONVERGED
        part = fitter(np.where(good[:, None], measured, np.nan), sigma * factor)
        return Estimate(part.values, np.where(good, part.status, raw), part.stats)

    return step


def _mapping(request: MapRequest, network: Estimator) -> Step:
    def step(signal, sigma):
        sigma = np.broadcast_to(sigma[:, 0], len(signal))
        part = network(signal, sigma)
        nll, residual = goodness(request.model, request.noise, signal, sigma, part.values)
        missed = OUTSIDE_SIGNAL * (residual > _MISSED).astype(np.uint8)
        stats = {
            "standard_error": part.stats["standard_error"],
            "outside": part.stats["outside"] | missed,
            "nll": nll,
            "residual": residual,
        }
        return Estimate(part.values, part.status, stats)

    return step


def _estimate(
    subject: _Subject,
    parameters: Sequence[Parameter],
    step: Step,
    tell: Callable[[int, int], None],
    workers: int = 1,
) -> tuple[Estimate, Float[np.ndarray, " V"]]:
    """Block by block, the estimate of all voxels, and the largest measurement of each."""
    voxels = subject.series.voxels
    values = np.full((voxels, len(parameters)), np.nan, np.float32)
    status = np.full(voxels, Status.NOT_FITTED, np.uint8)
    peak = np.full(voxels, np.nan, np.float32)
    stats: dict[str, np.ndarray] = {}
    done, total = 0, int(subject.inside.sum())
    tell(done, total)
    for index, highest, part in _in_turn(subject, step, workers):
        values[index], peak[index], status[index] = part.values, highest, part.status
        for name, rows in part.stats.items():
            if name not in stats:
                stats[name] = _blank(voxels, rows)
            stats[name][index] = rows
        done += len(index)
        tell(done, total)
    return Estimate(values, status, stats), peak


def _in_turn(
    subject: _Subject, step: Step, workers: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Estimate]]:
    """Index, largest measurement and estimate of each block, `workers` blocks at a time."""

    def work(index, signal):
        return index, signal.max(axis=1), step(signal, subject.sigma_of(index))

    blocks = subject.series.blocks(subject.inside)
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
    subject: _Subject,
) -> tuple[Float[np.ndarray, "n M"], Float[np.ndarray, " n"]]:
    """Signal and sigma of voxels without fault, evenly thinned."""
    inside = np.flatnonzero(subject.inside)
    chosen = np.zeros_like(subject.inside)
    chosen[inside[:: math.ceil(len(inside) / _SAMPLE)]] = True
    ((index, signal),) = subject.series.blocks(chosen, size=_SAMPLE)
    sigma = np.broadcast_to(subject.sigma_of(index), (len(index), 1))
    good = check_input(signal, sigma, subject.request.noise) == Status.CONVERGED
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
    request: Request, series: Series, maps: Sequence[Map], others: Sequence[str] = ()
) -> AbstractContextManager[Output]:
    """The output folder, after refusing to replace an input by a result."""
    names = [*file_names(maps), *others]
    if isinstance(request.sigma, Path):
        names += ["sigma.nii.gz", "sigma.json"]
    inputs = {path.resolve() for path in request.inputs}
    for name in names:
        if (request.folder / name).resolve() in inputs:
            raise InputError(
                f"{request.folder / name}: is an input of this run and would be replaced by a "
                "result; choose another output folder"
            )
    return output_folder(request.folder, series, request.overwrite, names)


@contextmanager
def _writing(
    out: Output,
    subject: _Subject,
    maps: Sequence[Map],
    estimate: Estimate,
    parameters: tuple[Parameter, ...],
    provenance: Mapping[str, Any],
    how: str = "",
) -> Iterator[None]:
    """Stage the maps while the body of the `with` works; then that of sigma, and the picture."""
    request, series = subject.request, subject.series
    words = {**provenance, "parameters": [asdict(parameter) for parameter in parameters]}
    with writing(out, maps, estimate, words, request.threads or available_cores()):
        yield
        if isinstance(subject.sigma, np.ndarray):
            said = {"description": "noise of one channel", "unit": "that of the series"}
            values = np.where(subject.inside, subject.sigma, np.nan)
            out.write_map("sigma", values, said | dict(provenance))
        figure = picture(request, series, estimate, parameters, subject.levels[0], how)
        figure.savefig(out.path(PICTURE))


def _report(
    subject: _Subject,
    estimate: Estimate,
    summary: tuple[ParameterSummary, ...],
    residual: float,
    clock: _Clock,
    notes: list[str],
    network: NetworkUse | None = None,
) -> Report:
    return Report(
        folder=subject.request.folder,
        voxels=count_statuses(estimate.status[subject.inside]),
        parameters=summary,
        residual=residual,
        sigma=subject.levels[0],
        other_sigma=tuple(subject.levels[1:]),
        seconds=clock.seconds,
        notes=tuple(notes),
        network=network,
    )
