"""The page of a run: one HTML file with the maps, to look at, to blend and to rate.

The page needs no network, and its content security policy forbids requests. Maps are integers of a
stated step, deflated, in base64; the browser inflates them. NiiVue shows the volumes
(`viewer/LICENSE`).
"""

from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.formatting import in_words, json_text, number, plain, printable
from labelwise.io.geometry import oriented
from labelwise.io.nifti import Series, read_map
from labelwise.io.pages import template
from labelwise.mapping.constants import Constants
from labelwise.mapping.maps import Map
from labelwise.mapping.method import Prepared
from labelwise.mapping.request import Request, describe_settings, equation
from labelwise.mapping.summary import Report
from labelwise.models.base import SignalModel, settings_of
from labelwise.models.evaluate import signals
from labelwise.networks.network import OUTSIDE_NOISE, OUTSIDE_RANGE
from labelwise.noise import describe_noise, evaluate
from labelwise.plots.maps import STATUS_COLOURS, colour_range
from labelwise.types import (
    STANDARD_ERROR,
    Estimate,
    InputError,
    Parameter,
    Status,
    has_values,
    is_built_in,
)

PAGE = "report.html"

SigmaOf = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "#n #M"]]
"""The sigma of voxels by their flat index."""

_LARGEST = 15_000_000  # bytes; a page that would be larger is thinned
_LEAST = 0.3  # bytes of a value: packed values never take less, so no page is packed in vain
_MEASURED = 1_500_000  # measurements and points of curves in the page
_POINTS = 16  # of a curve
_FINE, _RELATIVE = 10, 0.05  # steps in a median standard error; step of logarithms
_REGIONS = 30  # a mask of more values has no labels
_MISSED = 3.0  # a residual above this is not noise
_COLOURS = ("#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#0072b2", "#f0e442", "#8c510a")


def page(
    request: Request,
    series: Series,
    inside: Bool[np.ndarray, " V"],
    estimate: Estimate,
    maps: Sequence[Map],
    prepared: Prepared,
    report: Report,
    sigma_of: SigmaOf,
    constants: Constants | None = None,
) -> str:
    """The page of a run, as the text of one file.

    A series of many voxels is thinned to every second one along each axis, or more, so that the
    page stays below 15 MB. Measurements and fitted curves are those of whole slices, from the
    fullest one outwards, as many as fit.

    Args:
        request: the run.
        series: the open series.
        inside: the voxels that were estimated.
        estimate: of all voxels of the series.
        maps: the maps that the run writes.
        prepared: its method, which gives both ends of a blend.
        report: what the run found.
        sigma_of: gives the sigma of voxels.
        constants: of the model in each voxel, if they differ.
    """
    every, least = 1, len(maps) * _LEAST  # bytes of a voxel
    while True:
        thinned = _thinned(series, inside, every)
        voxels, smallest = thinned.shown.sum(), max(thinned.shape) == 1
        if voxels * least <= _LARGEST or smallest:
            given = (request, series, inside, estimate, maps, prepared, report, sigma_of)
            text = _page(*given, constants, thinned)
            size = len(text.encode())
            if size <= _LARGEST or smallest:
                return text
            least = size / voxels  # more with fewer voxels: some of the page is in every one
        every += 1


def _page(
    request: Request,
    series: Series,
    inside: Bool[np.ndarray, " V"],
    estimate: Estimate,
    maps: Sequence[Map],
    prepared: Prepared,
    report: Report,
    sigma_of: SigmaOf,
    constants: Constants | None,
    thinned: _Thinned,
) -> str:
    """The page with some of the voxels; see `page`."""
    named = {each.name: each for each in maps}
    index = np.flatnonzero(thinned.shown)

    def rows(name: str) -> np.ndarray:
        return np.asarray(named[name].values(estimate)[index])

    ends = _ends(request, series, thinned.shown, estimate, prepared, report, sigma_of)
    status = estimate.status[index]
    parameters = prepared.parameters
    curves, alpha = {"fit": estimate.values[index]}, None
    if prepared.network is not None:
        curves = {"network": estimate.values[index]}
    if ends is not None and prepared.network is not None:
        alpha = prepared.network.alphas
        parameters = prepared.network.parameters  # whose bounds clip the blend
        bounds = np.array([parameter.bounds for parameter in parameters]).T
        curves = {f"alpha {1 - k}": np.clip(each, *bounds) for k, each in enumerate(ends)}
        if set(alpha.values()) not in ({0.0}, {1.0}):
            curves["alpha of the run"] = estimate.values[index]
    sample = _sample(series, index, len(request.volumes) + len(curves) * _POINTS)
    left = estimate.stats.get("left_out")
    data = {
        "image": series.name,
        "labelwise": version("labelwise"),
        "path": str(series.path),
        "shape": thinned.shape,
        "affine": thinned.affine,
        "inverse": np.linalg.pinv(thinned.affine),
        "thinned": thinned.every,
        "first": thinned.first,
        "oriented": oriented(series.header),
        "inside": _packed(inside[thinned.lattice], 1.0),
        "background": _background(request, series, thinned),
        "regions": _regions(request, series, index),
        "alpha": alpha,
        "maps": [
            *_estimates(parameters, named, rows, status, ends),
            *_derived(request, named, rows, status),
            *_quality(named, rows),
        ],
        "start": _middle(series, index, sample, status),
        "sample": _measured(request, series, index, sample, curves, sigma_of, left, constants),
    }
    return template(__name__).render(
        title=printable(f"{type(request.model).__name__} maps of {series.name}"),
        lead=_lead(request, report),
        facts=[
            (name, printable(words)) for name, words in _facts(request, report, estimate, inside)
        ],
        notes=[printable(note) for note in report.notes],
        data=json_text(plain(data), allow_nan=False).replace("<", "\\u003c"),
        viewer=_viewer(),
        licence=files("labelwise.mapping").joinpath("viewer/LICENSE").read_text("utf-8"),
    )


@dataclass(frozen=True)
class _Thinned:
    """The voxels in the page: every k-th one along each axis from the first inside the mask on."""

    every: int
    first: list[int]
    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    lattice: Bool[np.ndarray, " V"]
    shown: Bool[np.ndarray, " V"]


def _thinned(series: Series, inside: Bool[np.ndarray, " V"], every: int) -> _Thinned:
    first, lattice = [0, 0, 0], np.ones(series.shape, bool)
    if every > 1:
        mask = inside.reshape(series.shape, order="F")
        first = [int(each.min()) for each in np.nonzero(mask)]
        lattice = np.zeros(series.shape, bool)
        lattice[tuple(slice(each, None, every) for each in first)] = True
    shape = [math.ceil((n - o) / every) for n, o in zip(series.shape, first, strict=True)]
    affine = series.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    affine[:3, :3] *= every
    flat = lattice.ravel(order="F")
    return _Thinned(every, first, tuple(shape), affine, flat, flat & inside)


def _packed(values: Float[np.ndarray, " n"], step: float, log: bool = False) -> dict[str, Any]:
    """Numbers as integers of a step; 0 is none. Their bytes are in planes, which deflate better.

    Args:
        values: what is not finite becomes none.
        step: the least difference; larger where 32 bits do not suffice.
        log: pack logarithms; what is not positive becomes none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.asarray(values, float)
        exact = np.log(exact) if log else exact
    finite = np.isfinite(exact)
    low, high = (exact[finite].min(), exact[finite].max()) if finite.any() else (0.0, 0.0)
    step = max(step, float(high - low) / 2**31)
    low = step * math.floor(low / step)
    whole = np.zeros(len(exact), "<u4")
    whole[finite] = np.rint((exact[finite] - low) / step) + 1
    size = max(1, (int(whole.max(initial=0)).bit_length() + 7) // 8)
    planes = whole.view(np.uint8).reshape(-1, 4)[:, :size].T
    data = base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()
    return {"low": low, "step": step, "log": log, "size": size, "count": len(exact), "data": data}


def _step(values: np.ndarray, errors: np.ndarray) -> float:
    """1, 2 or 5 times a power of 10: at most a tenth of the median standard error."""
    good = errors[np.isfinite(errors) & (errors > 0)]
    finite = np.abs(values[np.isfinite(values)])
    if good.size:
        wanted = float(np.median(good)) / _FINE
    else:  # all on a bound, say
        wanted = float(finite.max(initial=0)) / 1000 or 1e-3
    power = 10.0 ** math.floor(math.log10(wanted))
    return power * max(each for each in (1, 2, 5) if each * power <= wanted * (1 + 1e-9))


def _ends(
    request: Request,
    series: Series,
    shown: Bool[np.ndarray, " V"],
    estimate: Estimate,
    prepared: Prepared,
    report: Report,
    sigma_of: SigmaOf,
) -> Float[np.ndarray, "2 n P"] | None:
    """Both ends of a blend in the shown voxels; None without one.

    Voxel-wise b is not undone in the browser, so that maps with it have no ends.
    """
    if prepared.ends is None or request.b_scale is not None:
        return None
    left = estimate.stats.get("left_out")
    parts = []
    for index, signal in series.blocks(shown):
        some = np.zeros((len(index), 1), np.uint8) if left is None else left[index]
        part = Estimate(
            estimate.values[index], estimate.status[index], {"left_out": some}, estimate.parameters
        )
        parts.append(prepared.ends(signal, sigma_of(index), report.sigma.scatter, part))
    return np.concatenate(parts, axis=1)


Rows = Callable[[str], np.ndarray]
"""The values of a map, by its name, in the shown voxels."""


def _estimates(
    parameters: Sequence[Parameter],
    named: Mapping[str, Map],
    rows: Rows,
    status: Int[np.ndarray, " n"],
    ends: Float[np.ndarray, "2 n P"] | None,
) -> Iterator[dict[str, Any]]:
    """The parameters, with their ends if they can be blended, and their uncertainty."""
    for column, parameter in enumerate(parameters):
        values = rows(parameter.name)
        stored = [values] if ends is None else list(ends[..., column])
        clipped = np.clip(np.concatenate(stored), *parameter.bounds)
        uncertainty, width = _uncertainty(parameter.name, named, rows)
        step = _step(clipped, width)
        yield {
            **_entry(named[parameter.name], parameter.symbol, clipped, status),
            "bounds": parameter.bounds,
            "step": step,
            "values": [_packed(each, step) for each in stored],
            "uncertainty": uncertainty,
            "widths": colour_range(width, has_values(status), top=90),
        }


def _derived(
    request: Request, named: Mapping[str, Map], rows: Rows, status: Int[np.ndarray, " n"]
) -> Iterator[dict[str, Any]]:
    """The quantities that are calculated from the parameters, at the alpha of the run."""
    for each in request.model.derived:
        values = rows(each.name)
        uncertainty, width = _uncertainty(each.name, named, rows)
        yield {
            **_entry(named[each.name], each.name, values, status),
            "values": [_packed(values, _step(values, width))],
            "uncertainty": uncertainty,
            "widths": colour_range(width, has_values(status), top=90),
        }


def _entry(
    each: Map, symbol: str, values: Float[np.ndarray, " n"], status: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    reliable = np.isin(status, (Status.CONVERGED, Status.PREDICTED))
    reliable = np.resize(reliable, len(values))
    low, high = colour_range(values, reliable, top=98)
    return {
        "name": each.name,
        "symbol": symbol,
        "unit": "" if each.unit == "1" else each.unit,
        "about": each.description,
        "limits": (0.0 if each.unit == "a.u." else low, high),
        "span": _span(values),
    }


def _span(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The range of a histogram; never of no width."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _uncertainty(
    name: str, named: Mapping[str, Map], rows: Rows
) -> tuple[dict[str, Any] | None, Float[np.ndarray, " n"]]:
    """The interval of a map, or its standard error; and a width in each voxel."""
    if f"{name}_low" in named and f"{name}_high" in named:
        low, high = rows(f"{name}_low"), rows(f"{name}_high")
        width = (high - low) / 2
        step = _step(width, width)
        packed = [_packed(each, step) for each in (low, high)]
        return {
            "kind": "interval",
            "about": named[f"{name}_low"].description,
            "values": packed,
        }, width
    if f"{name}{STANDARD_ERROR}" not in named:
        return None, np.full(len(rows(name)), np.nan)
    each = named[f"{name}{STANDARD_ERROR}"]
    width = rows(each.name)
    packed = [_packed(width, _RELATIVE, log=True)]
    return {"kind": "standard error", "about": each.description, "values": packed}, width


def _quality(named: Mapping[str, Map], rows: Rows) -> Iterator[dict[str, Any]]:
    """The status, what a network was not trained for, and the residual."""
    for name in ("status", "outside"):
        if name not in named:
            continue
        codes, words = rows(name).astype(int), named[name].details["codes"]
        found = np.unique(codes)
        yield {
            "name": name,
            "symbol": name,
            "unit": "",
            "about": named[name].description,
            "values": [_packed(np.searchsorted(found, codes), 1.0)],
            "classes": [
                {
                    "words": words.get(code) or "; ".join(
                        text for bit, text in words.items() if bit and code & bit == bit
                    ),
                    "colour": STATUS_COLOURS[code] if name == "status" else colour,
                }
                for code, colour in zip(found.tolist(), _COLOURS * 32, strict=False)
            ],
        }  # fmt: skip
    residual = rows("residual")
    yield {
        "name": "residual",
        "symbol": "residual",
        "unit": "",
        "about": named["residual"].description,
        "values": [_packed(residual, _RELATIVE, log=True)],
        "limits": (0.0, max(2.0, colour_range(residual, np.isfinite(residual), top=98)[1])),
    }


def _background(request: Request, series: Series, thinned: _Thinned) -> dict[str, Any]:
    """The mean of the volumes at the lowest b, or of the first setting's lowest value."""
    lowest = request.equal_volumes[0]
    parts = [signal.mean(axis=1) for _, signal in series.blocks(thinned.lattice, volumes=lowest)]
    values = np.nan_to_num(np.concatenate(parts), posinf=0, neginf=0)
    high = float(np.percentile(values, 99.5)) or 1.0
    low = min(0.0, float(np.percentile(values, 0.5)))
    shades = np.clip(values, low, high)
    return {**_packed(shades, (high - low) / 250), "limits": (low, high), "volumes": len(lowest)}


def _regions(
    request: Request, series: Series, index: Int[np.ndarray, " n"]
) -> dict[str, Any] | None:
    """The labels of the mask, if it has several."""
    if request.mask is None:
        return None
    labels = np.rint(read_map(request.mask, series)[0][index])
    found = np.unique(labels)
    if not 1 < len(found) <= _REGIONS:
        return None
    return {"labels": found, "values": _packed(np.searchsorted(found, labels), 1.0)}


def _sample(series: Series, index: Int[np.ndarray, " n"], numbers: int) -> Int[np.ndarray, " s"]:
    """The rows of the shown voxels that have measurements in the page.

    Args:
        series: the geometry.
        index: the flat indices of the shown voxels.
        numbers: how many numbers are stored for a voxel.
    """
    slices = index // (series.shape[0] * series.shape[1])
    counts = np.bincount(slices, minlength=series.shape[2])
    fullest = np.flatnonzero(counts == counts.max())
    away = np.abs(np.arange(len(counts)) - fullest[(len(fullest) - 1) // 2])
    order = np.argsort(away, kind="stable")
    rows, room = [], _MEASURED // numbers
    for each in order:
        mine = np.flatnonzero(slices == each)
        if len(mine) > room:
            if not rows:  # of a large slice, an even part
                rows.append(mine[:: math.ceil(len(mine) / room)])
            break
        rows.append(mine)
        room -= len(mine)
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, int)


def _middle(
    series: Series,
    index: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " s"],
    status: Int[np.ndarray, " n"],
) -> int | None:
    """Of some rows, the one with an estimate that is nearest their middle."""
    rows = rows[has_values(status[rows])]
    if not len(rows):
        return None
    places = np.stack(np.unravel_index(index[rows], series.shape, order="F"))
    away = ((places - np.median(places, axis=1, keepdims=True)) ** 2).sum(axis=0)
    return int(rows[np.argmin(away)])


def _measured(
    request: Request,
    series: Series,
    index: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " s"],
    curves: Mapping[str, Float[np.ndarray, "n P"]],
    sigma_of: SigmaOf,
    left: np.ndarray | None,
    constants: Constants | None,
) -> dict[str, Any]:
    """Measurements of some voxels, and the measurements expected from their estimates.

    With one setting that varies, the expected measurements are a curve over it; with several (b
    and its directions, say), they are those of the measurements themselves.
    """
    chosen = np.zeros(series.voxels, bool)
    chosen[index[rows]] = True
    measured = np.concatenate([signal for _, signal in series.blocks(chosen)])
    sigma = np.median(sigma_of(index[rows]), axis=1)
    sigma = np.broadcast_to(sigma, len(rows))
    settings = settings_of(request.model)
    varying = [name for name, values in settings.items() if np.ptp(values) > 0] or list(settings)
    name = varying[0]
    model, points = request.model, settings[name]
    finer = _along(request.model, varying)
    if finer is not None:
        model, points = finer, settings_of(finer)[name]
    described = describe_settings({name: settings[name]})
    good = sigma[np.isfinite(sigma) & (sigma > 0)]
    step = float(np.median(good)) if good.size else 1.0
    expected = {}
    for words, params in curves.items():
        if constants is None:
            signal = signals(model, params[rows])
        else:
            signal = replace(constants, model=model).signals(params[rows], index[rows])
        mean = evaluate(request.noise.mean, signal, sigma[:, None])
        expected[words] = _packed(mean.ravel(), step / 50)
    return {
        "rows": _packed(rows, 1.0),
        "slices": _spans(np.unique(index[rows] // (series.shape[0] * series.shape[1])) + 1),
        "setting": name,
        "unit": described[name]["unit"],
        "measured_at": described[name]["values"],
        "curve_at": describe_settings({name: points})[name]["values"],
        "smooth": finer is not None,
        "measured": _packed(measured.ravel(), step / 5),
        "left_out": None if left is None else _packed(left[index[rows]].ravel(), 1.0),
        "curves": expected,
        "sigma": _packed(sigma, step / 1000),
    }


def _spans(numbers: Int[np.ndarray, " n"]) -> str:
    """Ascending whole numbers in words.

    Example:
        >>> _spans(np.array([2, 3, 4, 7]))
        '2 to 4, 7'
    """
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts if len(p))


def _along(model: SignalModel, varying: Sequence[str]) -> SignalModel | None:
    """The model at settings along the only one that varies, denser at its lower end.

    None if several vary, or the model holds for its own settings only (equally spaced echoes, say).
    """
    if len(varying) > 1 or not is_built_in(type(model)):
        return None
    settings = settings_of(model)
    low, high = settings[varying[0]].min(), settings[varying[0]].max()
    along = low + (high - low) * np.linspace(0, 1, _POINTS) ** 2
    grid = {k: along if k == varying[0] else np.full(_POINTS, v[0]) for k, v in settings.items()}
    try:
        finer = replace(model, **grid)
    except InputError:
        return None
    return finer if finer.described().all() else None


def _lead(request: Request, report: Report) -> str:
    voxels = sum(report.voxels.values())
    values = sum(count for status, count in report.voxels.items() if status.has_values)
    how = "by maximum likelihood" if report.network is None else "by a network"
    return (
        f"{values:,} of {voxels:,} voxels {'inside the mask ' if request.mask else ''}have an "
        f"estimate, {how}, with {in_words(describe_noise(request.noise))} noise."
    )


def _facts(
    request: Request,
    report: Report,
    estimate: Estimate,
    inside: Bool[np.ndarray, " V"],
) -> list[tuple[str, str]]:
    """What the run found, as names and sentences."""
    total = max(1, sum(report.voxels.values()))
    good = inside & has_values(estimate.status)
    level = report.sigma
    facts = [
        ("model", f"{type(request.model).__name__}: {equation(type(request.model))}"),
        ("noise level", f"sigma {number(level.sigma)} ({level.method}). {level.note}"),
    ]
    if level.scatter is not None:
        facts.append(
            ("scatter", f"{number(level.scatter)} between repeats; standard errors are those of it")
        )
    facts += [
        ("sigma not used", f"{number(o.sigma)} ({o.method}){': ' * bool(o.doubt)}{o.doubt}")
        for o in report.other_sigma
    ]
    facts += [("no sigma", f"{name}: {why}") for name, why in report.refused_sigma.items()]
    facts += [
        (status.reason, f"{count:,} voxels ({_percent(count / total)})")
        for status, count in report.voxels.items()
    ]
    residual = estimate.stats["residual"][good]
    residual = residual[np.isfinite(residual)]
    if residual.size:
        facts += [
            ("residual", f"median {number(report.residual)}; 1 if model and sigma are right"),
            (
                "not explained",
                f"{_percent(float(np.mean(residual > _MISSED)))} have a residual above 3",
            ),
        ]
    if report.network is not None:
        outside = estimate.stats["outside"][good]
        low, high = (number(each) for each in report.network.trained_snr)
        share = (
            float(np.mean((outside & (OUTSIDE_NOISE | OUTSIDE_RANGE)) > 0)) if outside.size else 0.0
        )
        facts.append(("outside the training range", f"{_percent(share)} of the estimates"))
        facts.append(("network", f"{report.network.origin}, trained for SNR {low} to {high}"))
    words = ("below", "above") if report.network else ("on the lower bound", "on the upper one")
    for each in report.parameters:
        if not math.isnan(each.at_limits[0]):
            low, high = (_percent(share) for share in each.at_limits)
            where = "the training range of" if report.network else "bounds of"
            facts.append((f"{where} {each.parameter.name}", f"{low} {words[0]}, {high} {words[1]}"))
    facts += [
        (f"left out: {reason}", f"{n['measurements']:,} measurements of {n['voxels']:,} voxels")
        for reason, n in report.left_out.items()
    ]
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


@functools.cache
def _viewer() -> str:
    """NiiVue, deflated, in base64."""
    script = files("labelwise.mapping").joinpath("viewer/niivue.umd.js").read_bytes()
    return base64.b64encode(zlib.compress(script, 9)).decode()
