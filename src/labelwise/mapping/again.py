"""The page of maps that were made earlier, from their files, their record and the series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from labelwise.formatting import in_words, json_text, plain
from labelwise.io.files import from_json, read_text, write_whole
from labelwise.io.nifti import Series, file_hash, open_series, paths_of, read_mask
from labelwise.io.noise_level import NoiseLevel
from labelwise.io.results import RUN
from labelwise.mapping.by_network import NETWORK, ByNetwork
from labelwise.mapping.maps import Map
from labelwise.mapping.method import Clock, Prepared
from labelwise.mapping.page import PAGE, page
from labelwise.mapping.request import Request
from labelwise.mapping.summary import ParameterSummary, Report
from labelwise.models import SignalModel
from labelwise.models.find import find_model, name_of
from labelwise.noise import NOISES, NoiseModel, describe_noise
from labelwise.types import (
    SETTINGS,
    Estimate,
    InputError,
    Parameter,
    Status,
    no_progress,
)

_SAMPLE = 20_000  # voxels to compile a network with


def write_page(
    folder: str | Path,
    image: str | Path | Sequence[str | Path],
    mask: str | Path | None = None,
    *,
    model: type[SignalModel] | None = None,
    net: str | Path | None = None,
) -> Path:
    """Write `report.html` beside maps that were made earlier.

    Args:
        folder: of the maps, with their `run.json`.
        image: the series they were made of, as for `fit_image`; compared by its digest.
        mask: the mask of that run; the voxels with a status if None.
        model: the class, if it is one of your own.
        net: the network of that run, if it is neither in the folder nor where it was.

    Returns:
        The path of the page.

    Raises:
        InputError: if the folder holds no complete run, or the files are not those of it.
        OSError: if a file cannot be read or written.
    """
    folder = Path(folder)
    record = _record(folder)
    _refuse_others([*paths_of(image), *([Path(mask)] if mask else [])], record, folder)
    request = _request(folder, record, paths_of(image), mask, model)
    with open_series(image) as series:
        if series.volumes != len(request.volumes) + len(request.excluded):
            raise InputError(
                f"{series.path}: has {series.volumes} volumes, but {folder} was made of "
                f"{len(request.volumes) + len(request.excluded)}; give all images of the series"
            )
        series = series.only(request.volumes) if request.excluded else series
        maps = {each: _values(folder / f"{each}.nii.gz", series) for each in _names(record)}
        status = np.nan_to_num(maps["status"]).astype(np.int64)
        inside = status != Status.NOT_FITTED
        if mask is not None:
            inside = read_mask(mask, like=series)[0]
        parameters = tuple(_parameter(each) for each in record["parameters"])
        report = _report(folder, record, parameters)
        shown = Estimate(
            np.stack([maps[each.name] for each in parameters], axis=1),
            status,
            {name: maps[name] for name in ("residual", "outside", "left_out") if name in maps},
            parameters,
        )

        def sigma_of(index):
            if "sigma" in maps:
                return maps["sigma"][index].reshape(len(index), -1)
            return np.full((1, 1), record["sigma"]["sigma"])

        prepared = Prepared(_estimated_already, parameters, 1)
        if "network" in record:
            prepared, report = _with_network(request, record, series, inside, sigma_of, net, report)
        listed = [_map(folder, name, values) for name, values in maps.items()]
        text = page(request, series, inside, shown, listed, prepared, report, sigma_of)
    write_whole(folder / PAGE, text.encode())
    return folder / PAGE


def _record(folder: Path) -> dict[str, Any]:
    """The record of a run of maps."""
    if not (folder / RUN).is_file():
        raise InputError(f"{folder}: holds no {RUN}, so no complete maps of labelwise")
    record = from_json(read_text(folder / RUN), folder / RUN)
    needed = ("model", "noise", "acquisition", "inputs", "sigma", "parameters", "labelwise_files")
    missing = [name for name in needed if name not in record]
    if missing:
        raise InputError(f"{folder / RUN}: has no {missing[0]!r}, so it is no record of maps")
    if "fill" in record:
        raise InputError(
            f"{folder}: was made with --fill, so that values cannot be told from missing ones; "
            "make the maps again for a page"
        )
    if record["acquisition"].get("b_scale") or _constant_maps(record):
        raise InputError(
            f"{folder}: was made with a map of b or of a constant; make the maps again for a page"
        )
    return record


def _constant_maps(record: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) for value in record["model"]["constants"].values())


def _refuse_others(paths: Sequence[Path], record: Mapping[str, Any], folder: Path) -> None:
    for path in paths:
        if file_hash(path) not in record["inputs"].values():
            raise InputError(
                f"{path}: is not a file that {folder} was made of, or has changed since; it was "
                f"made of {', '.join(record['inputs'])}"
            )


def _request(
    folder: Path,
    record: Mapping[str, Any],
    paths: Sequence[Path],
    mask: str | Path | None,
    model: type[SignalModel] | None,
) -> Request:
    """The request of the run."""
    acquisition = record["acquisition"]
    kind = model or find_model(name_of(record["model"], folder / RUN))
    settings = {
        name: np.array(each["values"]) / (SETTINGS[name].factor if name in SETTINGS else 1)
        for name, each in acquisition["settings"].items()
    }
    return Request(
        paths[0] if len(paths) == 1 else paths,
        kind(**settings, **record["model"]["constants"]),
        _noise(record["noise"], folder),
        record["sigma"]["sigma"],
        folder,
        mask=None if mask is None else Path(mask),
        b_tolerance=acquisition["b_tolerance"]["value"] / 1000,
        excluded=tuple(acquisition["excluded_volumes"]["volumes"]),
    )


def _noise(words: str, folder: Path) -> NoiseModel:
    """The noise model of a record."""
    name, *entries = words.split(" ")
    for kind in NOISES.values():
        if kind.__name__ == name:
            noise = kind(*(int(each.partition("=")[2]) for each in entries))
            if in_words(describe_noise(noise)) == words:
                return noise
    raise InputError(f"{folder / RUN}: the noise model {words} is not part of labelwise")


def _names(record: Mapping[str, Any]) -> list[str]:
    """The maps of a run."""
    ending = ".nii.gz"
    return [each.removesuffix(ending) for each in record["labelwise_files"] if ending in each]


def _values(path: Path, series: Series) -> np.ndarray:
    """A map as (V,) or (V, K)."""
    values = np.asanyarray(nib.Nifti1Image.load(path).dataobj)
    if values.shape[:3] != series.shape:
        raise InputError(
            f"{path}: has the shape {values.shape[:3]}, but the series {series.shape}; they are "
            "not of one run"
        )
    return values.reshape(series.voxels, *values.shape[3:], order="F")


def _map(folder: Path, name: str, values: np.ndarray) -> Map:
    """A map with what its sidecar has."""
    path = folder / f"{name}.json"
    sidecar = from_json(read_text(path), path)
    if "codes" in sidecar:
        sidecar["codes"] = {int(code): words for code, words in sidecar["codes"].items()}
    return Map(name, lambda _: values, sidecar["description"], sidecar["unit"], sidecar)


def _parameter(summary: Mapping[str, Any]) -> Parameter:
    low, high = (math.inf if each == "inf" else float(each) for each in summary["bounds"])
    typical = summary["typical"]
    return Parameter(
        summary["name"],
        summary["unit"],
        (low, high),
        summary["symbol"],
        None if typical is None else tuple(typical),
    )


def _report(folder: Path, record: Mapping[str, Any], parameters: tuple[Parameter, ...]) -> Report:
    """The report of the run."""
    counts = record["voxels"]["status"]

    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    def summary(parameter: Parameter, entries: Mapping[str, Any]) -> ParameterSummary:
        first, last = entries["quartiles"]
        limits = [value for name, value in entries.items() if name.startswith("share_")]
        low, high = (number(value) for value in limits)
        return ParameterSummary(
            parameter,
            (number(first), number(entries["median"]), number(last)),
            number(entries["median_standard_error"]),
            number(entries.get("median_uncertainty")),
            (low, high),
        )

    return Report(
        folder=folder,
        voxels={status: counts[status.reason] for status in Status if status.reason in counts},
        parameters=tuple(map(summary, parameters, record["parameters"])),
        residual=number(record["median_residual"]),
        sigma=NoiseLevel(**record["sigma"]),
        other_sigma=tuple(NoiseLevel(**each) for each in record["other_sigma"]),
        seconds=record["seconds"],
        notes=tuple(record["notes"]),
        left_out=record["left_out"],
        refused_sigma=record["refused_sigma"],
    )


def _with_network(
    request: Request,
    record: Mapping[str, Any],
    series: Series,
    inside: np.ndarray,
    sigma_of: Any,
    net: str | Path | None,
    report: Report,
) -> tuple[Prepared, Report]:
    """The network of the run, from which the page has both ends of alpha."""
    used = record["network"]
    places = [Path(net)] if net else [request.folder / NETWORK, Path(used["path"] or NETWORK)]
    there = [each for each in places if each.is_file()]
    if not there:
        raise InputError(
            f"{request.folder}: was made by a network that is not there; give it by --net "
            f"(it was {places[-1]})"
        )
    method = ByNetwork(there[0], used["alpha"]).begin(request)

    def sample():
        some = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // _SAMPLE)]
        few = np.zeros_like(inside)
        few[some] = True
        ((index, signal),) = series.blocks(few, size=len(some) + 1)
        sigma = np.broadcast_to(sigma_of(index)[:, :1], (len(index), 1))
        good = np.isfinite(signal).all(axis=1) & (signal > 0).any(axis=1) & (sigma[:, 0] > 0)
        return signal[good], sigma[good]

    prepared = method.prepare(request, sample, no_progress, Clock())
    assert prepared.use is not None
    if from_json(json_text(plain(prepared.use.card)), there[0]) != used["card"]:
        raise InputError(
            f"{there[0]}: is not the network that {request.folder} was made by; give that one by "
            "--net"
        )
    return prepared, replace(report, network=replace(prepared.use, origin=used["origin"]))


def _estimated_already(*_: Any) -> Estimate:
    raise AssertionError("the voxels of a page are estimated already")
