"""The text and tables of a report."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from labelwise.fitting import available_cores
from labelwise.formatting import short_name, with_error
from labelwise.models import IVIM
from labelwise.networks.network import Network
from labelwise.study import methods
from labelwise.study.config import Study
from labelwise.study.evidence import Evidence
from labelwise.study.records import Claim, StudyReport, Table
from labelwise.study.scan import Scan, ScanAssessment

_COLUMNS = {
    "abs_bias": "mean |bias|",
    "std": "std",
    "rmse": "RMSE",
    "slope": "bias slope",
    "mutual_information": "bits",
    "retained": "Fisher share",
}


def lead(study: Study, scan: Scan | None) -> str:
    """A summary in one or two sentences, which names simulated data as such."""
    number = int(np.prod(study.grid.shape)) * study.repeats
    words = (
        f"{type(study.model).__name__} networks compared by training label, at SNR "
        f"{' and '.join(f'{snr:g}' for snr in study.snrs)}, evaluated against the truth on "
        f"{number:,} simulated signals per SNR"
    )
    if scan is None:
        return f"{words}. All data are simulated."
    if scan.simulated:
        return (
            f"{words}. All data are simulated, including the scan: a digital pelvis-like phantom "
            "replaces the paper's in vivo scan, which is not available."
        )
    return f"{words}, and on {scan.name}, a scan of {scan.repeats.number} acquisitions."


def settings(study: Study, scan: Scan | None) -> list[tuple[str, str]]:
    """The settings of the study, by name."""
    recipe, grid = study.recipe, study.grid
    units = {p.name: "" if p.unit == "1" else f" {p.unit}" for p in study.model.parameters}
    ranges = zip(study.names, study.prior.ranges.tolist(), strict=True)
    rows = [
        ("Model", f"{type(study.model).__name__} ({study.model_name})"),
        ("Noise", type(study.noise).__name__),
        ("SNR", ", ".join(f"{snr:g}" for snr in study.snrs)),
        ("Range of the prior", "; ".join(f"{n} {a:g} to {b:g}{units[n]}" for n, (a, b) in ranges)),
        (
            "Training",
            f"{recipe.signals:,} signals, recipe {recipe.name}, {recipe.restarts} restarts, "
            f"{study.trainings} training{'s' if study.trainings > 1 else ''}",
        ),
        (
            "Test grid",
            f"{' x '.join(str(len(grid.axes[name])) for name in study.names)} points x "
            f"{study.repeats} noisy signals",
        ),
        ("Labels on a bound", "left out" if study.on_bound == "drop" else "kept"),
        ("Signals", "divided by b = 0" if study.normalise else "as simulated, amplitude about 1"),
        ("Seed", str(study.seed)),
    ]
    if scan is not None:
        low, median, high = scan.snr
        rows.append(
            (
                "Scan",
                f"{scan.name}: {len(scan.signal):,} voxels, {scan.signal.shape[1]} volumes, "
                f"{scan.repeats.number} acquisitions of {scan.repeats.volumes.shape[1]}; SNR "
                f"{median:.3g} (quartiles {low:.3g} to {high:.3g}), sigma {scan.sigma:.4g}",
            )
        )
    return rows


def networks_table(study: Study, by_snr: Mapping[float, Mapping[str, Network]]) -> list[Table]:
    """Table 1: the loss and the label of each network."""
    rows = []
    snrs = [min(study.snrs)] if study.levels else list(study.snrs)
    for name in by_snr[snrs[0]]:
        members = [network for snr in snrs if not (network := by_snr[snr][name]).is_blend]
        if not members:
            continue
        source = members[0].card.label
        space = "X (signals)" if source["kind"] == "self-supervised" else "Y (parameters)"
        label, noise = source["kind"], "N/A"
        if source["kind"] == "maximum likelihood":
            noise = short_name(source["noise"])
        elif source["kind"] == "mix":
            label = f"{source['alpha']:g} {source['a']['kind']}, rest {source['b']['kind']}"
            noise = short_name(source["a"]["noise"])
        elif source["kind"] == "self-supervised":
            label = "N/A"
        reports = [member.card.label_report for member in members]
        usable = [f"{_usable(r, study):.1%}" if r else "all" for r in reports]
        epochs = [str(member.card.validation["epoch"]) for member in members]
        rows.append((name, space, label, noise, *(", ".join(cells) for cells in (usable, epochs))))
    level = "all levels" if study.levels else ", ".join(f"{snr:g}" for snr in snrs)
    return [
        Table(
            "networks",
            "Table 1. Networks",
            f"The last two columns: for SNR {level}. Usable: share of the labels used in "
            "training. Best epoch: the one with the smallest validation loss, whose weights are "
            "kept.",
            (
                *("Network", "Loss space", "Label", "Label noise model"),
                *("Usable", "Best epoch"),
            ),
            rows,
        )
    ]


def _usable(report: Mapping[str, Any], study: Study) -> float:
    """The share of labels used in training."""
    return report["usable"] + (report["on_bound"] if study.on_bound == "keep" else 0.0)


def numbers(first: Evidence, trainings: Sequence[Evidence]) -> list[Table]:
    """All numbers, one table for each SNR and parameter.

    Args:
        first: the evidence of the first training.
        trainings: that of all, by as many repeats each; empty if there is one only.
    """
    study = first.study
    caption = (
        "Means over the grid, with the standard error due to noise"
        + (f" and the scatter over {len(trainings)} trainings" if len(trainings) > 1 else "")
        + ". Bias slope: 0 preserves differences between true values, -1 removes them. Bits: "
        "mutual information of true value and estimate. Fisher share: share of the Fisher "
        "information in the signal."
    )
    tables = []
    for snr in study.snrs:
        for parameter in study.free:
            others = {methods.own_weight(n) for n in study.free if n != parameter}
            estimators = [str(n) for n in first.grids[snr].estimator.values if n not in others]
            rows = [
                (name, *(_cell(first, trainings, snr, name, parameter, q) for q in _COLUMNS))
                for name in estimators
            ]
            unit = first.unit(parameter).strip()
            title = f"{parameter}{f' ({unit})' if unit else ''}, SNR {snr:g}"
            key = f"numbers-{snr:g}-{parameter}"
            tables.append(Table(key, title, caption, ("Method", *_COLUMNS.values()), rows))
            caption = ""
    return tables


def _cell(
    first: Evidence,
    trainings: Sequence[Evidence],
    snr: float,
    name: str,
    parameter: str,
    quantity: str,
) -> str:
    """The first training's number, with its error."""
    number = first.number(snr, name, parameter, quantity)
    found = [e.number(snr, name, parameter, quantity) for e in trainings if e.known(name)]
    scatter = float(np.std([n.value for n in found], ddof=1)) if len(found) > 1 else 0.0
    return with_error(number.value, math.hypot(number.error, scatter))


def notes(
    study: Study,
    networks: Mapping[float, Mapping[str, Network]],
    scan: Scan | None,
    assessment: ScanAssessment | None,
) -> list[str]:
    """Departures from the paper, and data that were left out."""
    remarks = [_stopping(study, networks)]
    if isinstance(study.model, IVIM):
        remarks.append(
            "Conventional maximum likelihood is run to convergence. The published code stops "
            "earlier along directions in which the likelihood is flat (D_fast), so its black "
            "curves scatter less there."
        )
    if study.levels is not None:
        remarks.append(
            "Unlike in the paper, one set of networks serves all noise levels and takes sigma as "
            "an input, voxels are divided by their own signal at b = 0, labels are fitted by "
            f"search, those on a bound are {'kept' if study.on_bound == 'keep' else 'left out'}, "
            "and the self-supervised loss weights each voxel's squared residuals by its noise (at "
            "a single level, eq. 8)."
        )
    if study.trainings > 1:
        remarks.append(
            f"Margins are means over {study.trainings} trainings (other data, other "
            "initial weights); their errors include the variation between trainings and the noise "
            "of the test signals."
        )
    else:
        remarks.append(
            "Errors include the noise of the test signals only. The networks were trained once; "
            "another training could change close verdicts (--trainings 3)."
        )
    if scan is not None and assessment is not None:
        if scan.level is not None:
            remarks.append(f"Sigma of the scan, {scan.sigma:.4g}: {scan.level.note}.")
            if scan.level.doubt:
                remarks.append(f"The repeats differ by more than noise: {scan.level.doubt}.")
        if assessment.reference.left_out:
            left_out = assessment.reference.left_out.items()
            reasons = ", ".join(f"{n:,} {why}" for why, n in left_out)
            remarks.append(f"Voxels of the scan without a gold standard: {reasons}.")
        if len(scan.repeats.left_out):
            remarks.append(f"Volumes in no acquisition: {len(scan.repeats.left_out)}.")
        remarks.append(
            f"The scan was divided by one number, {assessment.factor:.4g}, the median S0 of its "
            "gold standard. Bias is relative to each voxel's own reference; the published code "
            "uses the centre of its bin."
        )
        number = scan.repeats.number
        remarks.append(
            "Differences between the repeats (motion, or directions if these are the repeats) "
            "count as noise. As in the paper, the gold standard shares the noise of the "
            "acquisitions compared with it: "
            f"with {number}, RMSE appears up to {50 / number:.2g} % too small."
        )
    return remarks


def _stopping(study: Study, networks: Mapping[float, Mapping[str, Network]]) -> str:
    """The stopping rule, which the paper does not state, and how many networks it stopped."""
    cards = [
        network.card
        for by_name in networks.values()
        for network in by_name.values()
        if not network.is_blend
    ]
    whole = sum(
        all("last epoch" in reason for reason in card.validation["ended"]) for card in cards
    )
    recipe = study.recipe
    stop = f"after {recipe.epochs} epochs"
    if recipe.patience:
        stop = (
            f"after {recipe.patience} epochs without a smaller validation loss, or at most "
            f"{recipe.epochs} ({whole} of {len(cards)} networks ran to the last one)"
        )
    return (
        f"The paper does not state when training stops; here it stops {stop}. The weights of the "
        "epoch with "
        "the smallest validation loss are kept."
    )


def versions() -> dict[str, str]:
    """Versions of the software, and the machine."""
    packages = ("labelwise", "jax", "jaxlib", "numpy", "scipy", "matplotlib", "xarray")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.machine()}, {available_cores()} cores",
    }


def as_record(report: StudyReport) -> dict[str, Any]:
    """The report as JSON data, without its pictures."""

    def with_verdicts(claim: Claim) -> dict[str, Any]:
        record = asdict(claim) | {"verdict": claim.verdict.value}
        record["parts"] = [asdict(p) | {"verdict": p.verdict.value} for p in claim.parts]
        return record

    return {
        "command": report.command,
        "settings": dict(report.settings),
        "claims": [with_verdicts(claim) for claim in report.claims],
        "tables": [asdict(table) for table in (*report.tables, *report.appendix)],
        "stage_times": [asdict(stage) for stage in report.stage_times],
        "notes": list(report.notes),
        "versions": dict(report.versions),
    }
