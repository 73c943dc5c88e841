"""Run a study: its stages in order, then claims, figures and the page.

The output: `report.html`, `claims.json`, `study.toml`, `figures/` (PNG and PDF), `networks/`
(of the first training, for `labelwise evaluate` and `map --net`), `phantom/`, and `stages/`, from
which an interrupted study resumes; it may be deleted when the study is done.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from labelwise.formatting import ASCII
from labelwise.io.files import check_outputs, write_whole
from labelwise.io.results import as_json
from labelwise.models import IVIM
from labelwise.study.claims import CLAIMS
from labelwise.study.claims.judging import judge
from labelwise.study.config import Study, to_toml
from labelwise.study.evaluation import (
    evaluate_fits,
    evaluate_intervals,
    evaluate_networks,
    measure_speed,
    side_by_side,
)
from labelwise.study.evidence import Evidence
from labelwise.study.networks import Network, train_all
from labelwise.study.plots.selection import StudyFigure, figures
from labelwise.study.records import Claim, Picture, StageTime, StudyReport
from labelwise.study.report import text
from labelwise.study.report.page import render
from labelwise.study.scan import Scan, ScanAssessment, assess_scan, phantom
from labelwise.study.stages import Stages, opened
from labelwise.types import InputError, Progress

MARK = "# As labelwise ran it; copy it to change it.\n"
"""The first line of a `study.toml` written here, to distinguish it from a user's own."""
REPORT, RECORD, DESCRIPTION = "report.html", "claims.json", "study.toml"


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Args:
        folder: where it was written.
        claims: with their verdicts.
        stage_times: the stages.
        seconds: wall time of this run.
        notes: see `StudyReport`.
    """

    folder: Path
    claims: Sequence[Claim]
    stage_times: Sequence[StageTime]
    seconds: float
    notes: Sequence[str]


def run_study(
    study: Study,
    folder: Path,
    *,
    scan: Scan | None = None,
    command: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> StudyResult:
    """Run a study and write its report; an interrupted one resumes.

    Args:
        study: what is to be done.
        folder: where; made if missing.
        scan: the scan of the in vivo part; the simulated pelvis if None and the study wants one.
        command: what was typed, for the report.
        overwrite: replace the report of another study in that folder.
        progress: called during the work.

    Raises:
        FileExistsError: if the folder holds another study, or one is running there.
        OSError: if it cannot be written.
        InputError: if the study cannot be done as described, or would replace one of its files.
    """
    begin = time.perf_counter()
    progress = progress or (lambda what, done, total, words: None)
    description = MARK + to_toml(study)
    _check(study, scan)
    _make(study, folder, description, overwrite)
    with opened(folder / "stages", progress) as stages:
        _clear(folder, description)  # now that no other run is using the folder
        if _content(folder / DESCRIPTION) != description:
            write_whole(folder / DESCRIPTION, description.encode())
        if scan is None and study.phantom:
            scan = phantom(study, folder / "phantom")
        networks = [train_all(study, stages, index) for index in range(study.trainings)]
        _save_networks(networks[0], folder / "networks")
        first, trainings, assessment = _evidence(study, stages, networks, scan)
        start = time.perf_counter()
        progress("claims", 0, 1, "")
        claims = judge(CLAIMS, first, trainings)
        progress("figures", 0, 1, "")
        pictures = [
            _save_figure(figure, folder / "figures") for figure in figures(first, scan, assessment)
        ]
        stage_times = [
            *stages.stage_times,
            StageTime("claims and figures", time.perf_counter() - start, kept=False),
        ]
    report = StudyReport(
        title=study.title,
        lead=text.lead(study, scan),
        settings=text.settings(study, scan),
        claims=claims,
        tables=text.networks_table(study, networks[0]),
        pictures=pictures,
        stage_times=stage_times,
        versions=text.versions(),
        command=command or "labelwise study run study.toml OUT",
        description=description,
        notes=text.notes(study, networks[0], scan, assessment),
        appendix=text.numbers(first, trainings),
    )
    write_whole(folder / RECORD, as_json(text.as_record(report), "study 1").encode())
    write_whole(folder / REPORT, render(report).encode(errors=ASCII))
    return StudyResult(folder, claims, stage_times, time.perf_counter() - begin, report.notes)


def _evidence(
    study: Study,
    stages: Stages,
    networks: Sequence[Mapping[float, Mapping[str, Network]]],
    scan: Scan | None,
) -> tuple[Evidence, list[Evidence], ScanAssessment | None]:
    """The first training with all repeats, every training with few, and the scan's assessment."""
    fits = {snr: evaluate_fits(study, stages, snr) for snr in study.snrs}

    def grids(index: int, whole: bool) -> dict[float, xr.Dataset]:
        return {
            snr: side_by_side(
                [fits[snr], evaluate_networks(study, stages, snr, here, index, whole=whole)]
            )
            for snr, here in networks[index].items()
        }

    low = min(study.snrs)
    speed = measure_speed(study, stages, networks[0][low])
    assessments = [
        None if scan is None else assess_scan(study, stages, scan, by_snr[low], index)
        for index, by_snr in enumerate(networks)
    ]
    in_vivo = [None if each is None else each.in_vivo for each in assessments]
    intervals = evaluate_intervals(study, stages, low, networks[0][low])
    first = Evidence(study, grids(0, True), in_vivo[0], speed, intervals)
    trainings = [
        Evidence(study, grids(index, False), in_vivo[index], speed)
        for index in range(len(networks) if len(networks) > 1 else 0)
    ]
    return first, trainings, assessments[0]


def _check(study: Study, scan: Scan | None) -> None:
    """Raise errors early for what would fail only at the end."""
    if scan is None and study.phantom:
        if not isinstance(study.model, IVIM):
            raise InputError(
                f"phantom: needs the model IVIM, but the study has {type(study.model).__name__}; "
                "set "
                "phantom = false, or run `labelwise study invivo` on a scan of your own"
            )
        if np.any(np.diff(np.asarray(study.model.b)) < 0):
            raise InputError("phantom: its b-values must be in ascending order")
    fixed = [
        n for n, (low, high) in zip(study.names, study.prior.ranges, strict=True) if low == high
    ]
    if fixed and (scan is not None or study.phantom):
        raise InputError(
            f"prior: {fixed[0]} has a single value, but a scan is evaluated in bins over its "
            "range; "
            "give it a range, or leave the scan out (phantom = false)"
        )


def _make(study: Study, folder: Path, description: str, overwrite: bool) -> None:
    """Make the folder, unless it holds something else."""
    there = _content(folder / DESCRIPTION)
    if there.startswith(MARK):
        same, done = there == description, (folder / REPORT).exists()
        if done and not same and not overwrite:
            raise FileExistsError(
                f"{folder}: holds another study ({DESCRIPTION} differs); choose another folder, or "
                "replace its report (--overwrite)"
            )
    else:
        names = (DESCRIPTION, REPORT, RECORD, "figures", "networks", "phantom")
        foreign = [name for name in names if (folder / name).exists()]
        if foreign:
            raise FileExistsError(
                f"{folder / foreign[0]}: is not of a study of labelwise, and would be replaced; "
                "choose another folder"
            )
    names = [REPORT, RECORD, "figures", "networks", "stages"]
    names += ["phantom"] if study.phantom else []
    names += [DESCRIPTION] if there != description else []
    check_outputs(folder, names, overwrite=True, inputs=study.sources)
    folder.mkdir(parents=True, exist_ok=True)


def _content(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _clear(folder: Path, description: str) -> None:
    """Leave nothing of another study in our folder but its stages."""
    there = folder / DESCRIPTION
    if there.exists() and there.read_text(encoding="utf-8") != description:
        for name in ("figures", "networks"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _save_networks(by_snr: Mapping[float, Mapping[str, Network]], folder: Path) -> None:
    """Networks by SNR and name, as files that other commands read."""
    for snr, networks in by_snr.items():
        place = folder / f"snr_{snr:g}"
        place.mkdir(parents=True, exist_ok=True)
        for name, network in networks.items():
            if not network.is_blend:
                slug = "_".join("".join(c if c.isalnum() else " " for c in name).lower().split())
                network.save(place / f"{slug}.safetensors")


def _save_figure(figure: StudyFigure, folder: Path) -> Picture:
    """The figure as PNG and PDF in its folder, the PNG on the page too."""
    folder.mkdir(parents=True, exist_ok=True)
    canvas = figure.panels.flat[0].figure
    png, pdf = io.BytesIO(), io.BytesIO()
    canvas.savefig(png, format="png", dpi=150, metadata={"Software": None})
    canvas.set_layout_engine("none")  # it is laid out, which takes as long as drawing
    canvas.savefig(pdf, format="pdf", dpi=200, metadata={"CreationDate": None})
    for kind, data in (("png", png), ("pdf", pdf)):
        write_whole(folder / f"{figure.key}.{kind}", data.getvalue())
    head = png.getvalue()[16:24]  # the width and height in a PNG header
    size = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
    return Picture(figure.key, figure.title, figure.caption, png.getvalue(), size)
