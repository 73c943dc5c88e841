"""The maps of an estimate: names, contents, sidecars, and the overview figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure

from labelwise.fitting.usable import REASONS
from labelwise.io.geometry import oriented
from labelwise.io.nifti import Series
from labelwise.io.noise_level import NoiseLevel
from labelwise.io.results import Output
from labelwise.mapping.request import Request
from labelwise.mapping.summary import half_width
from labelwise.networks.intervals import LEVEL
from labelwise.networks.network import (
    OUTSIDE_NOISE,
    OUTSIDE_RANGE,
    OUTSIDE_SIGNAL,
    OUTSIDE_VERIFIED,
)
from labelwise.plots.maps import parameter_maps
from labelwise.types import (
    HIGH,
    LOW,
    SD,
    STANDARD_ERROR,
    UNCERTAINTY,
    Estimate,
    Parameter,
    Status,
    has_values,
)

PICTURE = "maps.png"


@dataclass(frozen=True)
class Map:
    """One map: its name, its values and their description.

    Args:
        name: of the file, without its ending.
        values: the map, (V,) or (V, K), of an estimate of all voxels.
        description: one sentence.
        unit: of the values.
        details: further entries of its sidecar.
    """

    name: str
    values: Callable[[Estimate], Shaped[np.ndarray, "V *K"]]
    description: str
    unit: str
    details: Mapping[str, Any] = field(default_factory=dict)


def maps_of_fit(
    parameters: Sequence[Parameter], intervals: bool = True, errors: bool = False
) -> list[Map]:
    """The maps of a fit, with confidence intervals, standard errors or both."""
    kinds = {parameter.name: "confidence" for parameter in parameters if intervals}
    on_bound = {
        "volumes": [parameter.name for parameter in parameters],
        "codes": {-1: "on the lower bound", 0: "between the bounds", 1: "on the upper bound"},
    }
    return [
        *_values_and_errors(
            parameters,
            "maximum-likelihood estimate of {}",
            "standard error of {} from the Fisher information; NaN on a bound, and where the bound "
            "of another parameter, which the measurements reject, shifts the estimate",
            kinds,
            errors,
        ),
        Map(
            "on_bound",
            _stat("on_bound"),
            "which parameters lie on a bound; one volume per parameter",
            "1",
            on_bound,
        ),
        *_goodness(),
        Map(
            "runner_up",
            _stat("runner_up"),
            "2 (nll - nll of the estimate) of the most likely other optimum far from the estimate, "
            "infinite if none was found; below 3.84 the estimate is ambiguous",
            "1",
        ),
        Map("iterations", _stat("iterations"), "iterations of the fit", "1"),
    ]


def maps_of_network(
    parameters: Sequence[Parameter], kinds: Mapping[str, str], errors: bool = False
) -> list[Map]:
    """The maps of a network, with intervals of some kinds by parameter, standard errors or both."""
    codes = {
        0: "inside what the network was trained for",
        OUTSIDE_NOISE: "the noise level is outside",
        OUTSIDE_RANGE: "an estimate is outside",
        OUTSIDE_SIGNAL: "the estimate does not explain the measurements (residual above 3)",
        OUTSIDE_VERIFIED: "a fit would be more precise, but it did not converge",
    }
    return [
        *_values_and_errors(
            parameters,
            "estimate of {} by a network",
            "standard error of {}: the noise of the measurements, propagated to first order "
            "through the network; NaN on a bound; the network's bias is not in it, and below SNR "
            "10 it can be several times too small",
            kinds,
            errors,
        ),
        Map(
            "outside",
            _stat("outside"),
            "what the network was not trained for: a sum of codes",
            "1",
            {"codes": codes},
        ),
        *_goodness(),
    ]


def file_names(maps: Sequence[Map]) -> list[str]:
    """The files that `writing` makes of maps, and the figure."""
    return [f"{each.name}{ending}" for each in maps for ending in (".nii.gz", ".json")] + [PICTURE]


@contextmanager
def writing(
    out: Output,
    maps: Sequence[Map],
    estimate: Estimate,
    record: Mapping[str, Any],
    threads: int,
) -> Iterator[None]:
    """Stage the maps in parallel to the body of the `with` statement; compressing them is slow.

    Args:
        out: where to.
        maps: which.
        estimate: of all voxels of the series.
        record: entries of all sidecars, after those of each map.
        threads: how many at a time.

    Raises:
        OSError: on leaving, if a map could not be written.
    """

    def write(each: Map) -> None:
        sidecar = {"description": each.description, "unit": each.unit, **each.details, **record}
        out.write_map(each.name, each.values(estimate), sidecar)

    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(write, each) for each in maps]
        yield
        for done in pending:
            done.result()


def picture(
    request: Request,
    series: Series,
    estimate: Estimate,
    parameters: tuple[Parameter, ...],
    sigma: NoiseLevel,
    how: str = "",
) -> Figure:
    """Three slices between which the voxels that have values are evenly divided, or fewer.

    Args:
        request: model and noise, for the title.
        series: the geometry of the maps.
        estimate: of all voxels.
        parameters: what to show.
        sigma: the noise level, for the title.
        how: appended to the title.
    """

    def volume(values: np.ndarray) -> np.ndarray:
        return values.reshape(series.shape, order="F")

    status = volume(estimate.status)
    filled = np.cumsum(has_values(status).sum(axis=(0, 1)))
    slices = [int(np.argmax(filled >= share * filled[-1])) for share in (0.75, 0.5, 0.25)]
    slices = list(dict.fromkeys(slices))
    numbers = f"slice{'s' * (len(slices) > 1)} {', '.join(str(z + 1) for z in reversed(slices))}"
    x, y = (float(zoom) or 1.0 for zoom in series.header.get_zooms()[:2])
    intervals, values = "low" in estimate.stats, estimate.values
    widths = half_width(estimate) if intervals else estimate.stats["standard_error"]
    if request.many and request.model.derived:  # what 15 elements of a tensor mean is not seen
        derived = request.model.derived
        parameters = tuple(Parameter(each.name, each.unit, (0, 1)) for each in derived)
        values, widths = (estimate.stats[f"derived_{k}"] for k in ("value", "standard_error"))
    columns = {parameter.name: column for column, parameter in enumerate(parameters)}
    return parameter_maps(
        {name: volume(values[:, column]) for name, column in columns.items()},
        parameters,
        status,
        slices=slices,
        uncertainty={name: volume(widths[:, column]) for name, column in columns.items()},
        measure="95 % interval: ±" if intervals else "standard error",
        residual=volume(estimate.stats["residual"]),
        zooms=(x, y),
        orientation=nib.aff2axcodes(series.affine)[:2] if oriented(series.header) else "",
        title=(
            f"{series.name}, {numbers} of {series.shape[2]}\n"
            f"{type(request.model).__name__}, {type(request.noise).__name__} noise, "
            f"sigma {sigma.sigma:.4g} ({sigma.method}){how}"
        ),
    )


def _values_and_errors(
    parameters: Sequence[Parameter],
    value: str,
    error: str,
    kinds: Mapping[str, str],
    errors: bool,
) -> list[Map]:
    """For each parameter its map, its interval and its standard error; then the status."""
    maps = []
    for column, parameter in enumerate(parameters):
        maps += maps_of_quantity(
            parameter.name,
            parameter.unit,
            value.format(parameter.name),
            error.format(parameter.name),
            kinds.get(parameter.name),
            errors,
            lambda estimate, stat, column=column: (
                estimate.values if stat == "value" else estimate.stats[stat]
            )[:, column],
            details={"bounds": parameter.bounds},
        )
    codes = {"codes": {int(code): code.reason for code in Status}}
    return [*maps, Map("status", lambda e: e.status, "what became of each voxel", "1", codes)]


def maps_of_quantity(
    name: str,
    unit: str,
    value: str,
    error: str,
    kind: str | None,
    errors: bool,
    get: Callable[[Estimate, str], Shaped[np.ndarray, " V"]],
    details: Mapping[str, Any] | None = None,
    origin: str = "",
) -> list[Map]:
    """The map of a quantity, and those of its interval, its standard error or both.

    Args:
        name: of the quantity.
        unit: of it.
        value: describes its map.
        error: describes its standard error.
        kind: of its interval; without one it has none, but its standard error.
        errors: whether the standard error is wanted beside an interval.
        get: `value`, `low`, `high`, `sd` or `standard_error` of all voxels.
        details: further entries of the sidecars.
        origin: what an interval is made of.
    """
    details = details or {}

    def of(stat: str) -> Callable[[Estimate], Shaped[np.ndarray, " V"]]:
        return lambda estimate: get(estimate, stat)

    maps = [Map(name, of("value"), value, unit, details)]
    if kind:
        both = {**details, "interval": kind, "level": LEVEL}
        promise = f"{origin}{_PROMISES[kind]}"
        for ending, stat, words in (
            (LOW, "low", f"low end of an interval of {name}: {promise}"),
            (HIGH, "high", f"high end of an interval of {name}: {promise}"),
            (SD, "sd", f"half the width of the central 68 % of the posterior of {name}"),
        ):
            if ending != SD or (kind == "credible" and not origin):
                maps.append(Map(f"{name}{ending}", of(stat), words, unit, both))
        maps.append(
            Map(
                f"{name}{UNCERTAINTY}",
                lambda estimate: (get(estimate, "high") - get(estimate, "low")) / 2,
                f"half the width of the interval of {name}, which need not be symmetric",
                unit,
                both,
            )
        )
    if errors or not kind:
        maps.append(Map(f"{name}{STANDARD_ERROR}", of("standard_error"), error, unit, details))
    return maps


_PROMISES = {
    "confidence": "by likelihood; it holds the truth in 95 % of repeats, whatever the truth within "
    "the bounds; an end on a bound means that the measurements set no limit there",
    "credible": "the truth is in it with a probability of 95 %, if tissue is like what was "
    "simulated; on average, not for every tissue",
    "blend": "the ends of a confidence and of a credible interval, blended as the estimates are; "
    "how often it holds the truth is not known",
}
"""What an interval of each kind means."""


def _goodness() -> list[Map]:
    """How well the estimate explains the measurements."""
    nll = "negative log-likelihood, up to terms in data and sigma only"
    residual = "√(Σ (data - expected)² / variance / (M - P)); about 1 for a good fit"
    return [
        Map("nll", _stat("nll"), nll, "1"),
        Map("residual", _stat("residual"), residual, "1"),
        Map(
            "left_out",
            _stat("left_out"),
            "which measurements were left out of their voxel; one volume per volume used",
            "1",
            {"codes": {0: "used", **REASONS}},
        ),
    ]


def _stat(name: str) -> Callable[[Estimate], np.ndarray]:
    return lambda estimate: estimate.stats[name]
