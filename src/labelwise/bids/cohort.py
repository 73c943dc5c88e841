"""The subjects of a dataset, mapped one by one or by many workers, and the table of a cohort.

A subject is a task. What it writes depends on its files, the settings and, by a network, on the
noise levels of the whole cohort: never on the order or the number of workers. A job that is
finished with the same content is not repeated.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labelwise.bids.derivatives import (
    LOGS,
    UNSETTLED,
    Job,
    Roots,
    finished,
    key_of,
    write,
)
from labelwise.bids.layout import DESCRIPTION, KINDS, Scan, scans_of
from labelwise.formatting import plain, sentence
from labelwise.io.files import cache_folder, canonical, from_json, read_text, write_whole
from labelwise.io.results import as_json
from labelwise.io.staging import locked
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.by_network import ByNetwork, levels_to_train_for
from labelwise.mapping.method import Method
from labelwise.mapping.request import Request
from labelwise.mapping.run import usable_voxels
from labelwise.models import SignalModel
from labelwise.models.base import acquisition_names
from labelwise.models.find import describe_model, error_of_model, find_model
from labelwise.networks.blend import blend_plan, trained_blend
from labelwise.noise import NoiseModel
from labelwise.priors import Uniform
from labelwise.types import InputError, Progress

NETWORKS = "networks"
FAILED = f"{LOGS}/failed.tsv"
GROUP = "group"

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
"""Calls a function for each argument; yields (index, result or exception) as they are done."""

Networks = Mapping[str, tuple[Path, tuple[float, float]]]
"""By job, the file of its network, and the noise levels of its own series."""

_COLUMNS = {
    "participant_id": "The subject.",
    "session_id": "The session; n/a without sessions.",
    "series": "The name of the series that was mapped.",
    "model": "The signal model.",
    "parameter": "The parameter of the model.",
    "unit": "The unit of the statistics.",
    "region": "'mask' for the whole mask, or a region of the segmentation of the subject.",
    "voxels": "Voxels of the region inside the mask.",
    "estimated": "Those of them that have an estimate; the statistics are over these.",
    "mean": "Their mean.",
    "std": "Their standard deviation.",
    "q25": "Their 25th percentile.",
    "median": "Their median.",
    "q75": "Their 75th percentile.",
}


@dataclass(frozen=True)
class Plan:
    """What is done with each subject of a dataset.

    Args:
        roots: the folders.
        sessions: labels of sessions; all if empty.
        models: names of models; of each series its usual one if empty.
        method: `"fit"`, or `"map"` by a network.
        noise: the noise model.
        sigma: noise of one channel, or the method that estimates it.
        bounds: of a fit, by parameter's name.
        alpha: of a network.
        ranges: of the simulated parameters of a network, by parameter's name.
        b_tolerance: in ms/µm².
        threads: cores for each subject; all if None.
        command: the command line, for the records.
    """

    roots: Roots
    sessions: tuple[str, ...]
    models: tuple[str, ...]
    method: Literal["fit", "map"]
    noise: NoiseModel
    sigma: float | str
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    alpha: float | Mapping[str, float] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    b_tolerance: float = 0.001
    threads: int | None = None
    command: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of the series of a subject.

    Args:
        subject: its label.
        mapped: the jobs that were done now.
        kept: those that were finished before.
        failed: by series or job, why it has no maps.
        references: the sources of the models.
    """

    subject: str
    mapped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Levels:
    """The noise levels of a series, for the network of its protocol.

    Args:
        title: of the job.
        protocol: the digest of model and settings: series with the same share a network.
        model: its name.
        settings: of the series.
        range: the lowest and highest noise level.
    """

    title: str
    protocol: str
    model: str
    settings: Mapping[str, np.ndarray]
    range: tuple[float, float]


def begin(plan: Plan) -> Plan:
    """Write the description of the derivative; an earlier one keeps its date.

    `SOURCE_DATE_EPOCH` is the date if it is set, so that two derivatives are the same.

    Returns:
        The plan with the date.

    Raises:
        InputError: if the folder holds another dataset.
        OSError: if it cannot be written.
    """
    roots = plan.roots
    place = roots.out / DESCRIPTION
    found = from_json(read_text(place), place) if place.is_file() else {}
    if found and not (_is_ours(found) and found.get("DatasetLinks") == roots.links):
        raise InputError(
            f"{roots.out}: holds another dataset, or maps of another source or by other masks; "
            "choose another output folder"
        )
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    roots = replace(roots, date=found.get("Date") or now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    roots.out.mkdir(parents=True, exist_ok=True)
    _describe(roots, found.get("ReferencesAndLinks", []))
    ignored = "".join(f"{each}\n" for each in (*UNSETTLED, NETWORKS, f"{GROUP}.*"))
    write_whole(roots.out / ".bidsignore", f"# BIDS has no names for these yet\n{ignored}".encode())
    return replace(plan, roots=roots)


def map_cohort(
    plan: Plan, subjects: Sequence[str], each: Each, progress: Progress
) -> list[Outcome]:
    """Map the series of all subjects; one that fails does not stop the others.

    Args:
        plan: what to do.
        subjects: their labels.
        each: how functions are called: here, or by workers.
        progress: called as subjects are done.

    Returns:
        The outcome of each subject, in their order.
    """
    networks, early = {}, {}
    if plan.method == "map":
        networks, early = _networks(plan, subjects, each, progress)
    tasks = [(plan, subject, networks.get(subject, {})) for subject in subjects]
    outcomes: dict[int, Outcome] = {}
    for index, found in _followed(each, map_subject, tasks, "participants", progress):
        subject = subjects[index]
        if isinstance(found, Exception):
            found = Outcome(subject, failed={f"sub-{subject}": _words(found)})
        assert isinstance(found, Outcome)
        outcomes[index] = replace(found, failed={**early.get(subject, {}), **found.failed})
    done = [outcomes[index] for index in range(len(subjects))]
    place = plan.roots.out / DESCRIPTION
    known = from_json(read_text(place), place).get("ReferencesAndLinks", [])
    _describe(plan.roots, [*known, *(link for outcome in done for link in outcome.references)])
    _list_failures(plan.roots.out, done)
    return done


def map_subject(task: tuple[Plan, str, Networks]) -> Outcome:
    """Map the series of a subject that are not finished.

    Args:
        task: the plan, the label of the subject, and the networks of its jobs, if any.
    """
    plan, subject, networks = task
    jobs, failed = _jobs(plan, subject)
    mapped, kept, links = [], [], []
    for job in jobs:
        if plan.method == "map" and job.title not in networks:
            continue  # its noise levels were refused
        try:
            done, record = _map(plan, job, networks.get(job.title))
        except Exception as error:
            failed[job.title] = _failure(plan, job.title, error)
            continue
        (mapped if done else kept).append(job.title)
        links += record["references"]
    return Outcome(subject, tuple(mapped), tuple(kept), failed, tuple(dict.fromkeys(links)))


def noise_levels_of(task: tuple[Plan, str]) -> tuple[list[Levels], dict[str, str]]:
    """The noise levels of the series of a subject, and why others have none.

    Args:
        task: the plan, and the label of the subject.
    """
    plan, subject = task
    found, failed = [], {}
    for job in _jobs(plan, subject)[0]:
        try:
            request, key = _request(plan, job), _levels_key(plan, job)
            known = _record(plan, job)
            if known.get("levels_key") == key:
                low, high = known["levels"]
            else:
                signal, sigma = usable_voxels(request, _by_network(plan))
                low, high = levels_to_train_for(request, signal, sigma)
        except Exception as error:
            failed[job.title] = _failure(plan, job.title, error)
            continue
        settings = job.scan.settings
        found.append(Levels(job.title, _protocol(job.model), job.name, settings, (low, high)))
    return found, failed


def train(task: tuple[Plan, Levels]) -> Path:
    """Train the network of a protocol for the noise levels of a cohort, or take it from the cache.

    Args:
        task: the plan, and the protocol with the noise levels of the cohort.

    Returns:
        Its file, in the derivative.
    """
    plan, wanted = task
    model = _model_of(wanted.model, wanted.settings)
    prior = Uniform.typical(model, **plan.ranges)
    fingerprint = blend_plan(
        model, plan.noise, wanted.range, prior, b_tolerance=plan.b_tolerance
    ).fingerprint
    place = plan.roots.out / NETWORKS / f"blend-{fingerprint}.safetensors"
    place.parent.mkdir(exist_ok=True)
    with locked(place.with_name(f".{place.name}.lock"), None):
        if not place.exists():
            network, _ = trained_blend(
                model,
                plan.noise,
                wanted.range,
                prior,
                b_tolerance=plan.b_tolerance,
                cache=cache_folder("networks"),
            )
            network.save(place)
    return place


def group(out: Path) -> Path:
    """Write the statistics of all finished jobs of a derivative as one table.

    Args:
        out: the derivative.

    Returns:
        The table, `group.tsv`, beside which its data dictionary is written.

    Raises:
        InputError: if the folder is no derivative of labelwise, or nothing is finished.
    """
    place = out / DESCRIPTION
    if not place.is_file() or not _is_ours(from_json(read_text(place), place)):
        raise InputError(
            f"{out}: holds no maps of `labelwise bids`; run the participant level first"
        )
    rows = [
        {"participant_id": path.parts[-3], **_head(record), **row}
        for path in sorted(out.glob(f"sub-*/{LOGS}/*.json"))
        for record in [from_json(read_text(path), path)]
        for row in record["statistics"]
    ]
    if not rows:
        raise InputError(f"{out}: no subject is finished; run the participant level first")
    names = list(_COLUMNS)
    lines = ["\t".join(names), *("\t".join(_cell(row[name]) for name in names) for row in rows)]
    write_whole(out / f"{GROUP}.tsv", ("\n".join(lines) + "\n").encode())
    dictionary = {name: {"Description": text} for name, text in _COLUMNS.items()}
    write_whole(out / f"{GROUP}.json", as_json(dictionary).encode())
    return out / f"{GROUP}.tsv"


def _networks(
    plan: Plan, subjects: Sequence[str], each: Each, progress: Progress
) -> tuple[dict[str, Networks], dict[str, dict[str, str]]]:
    """By subject and job, the file of the network of its protocol; and the failures on the way."""
    found: dict[str, list[Levels]] = {}
    failed: dict[str, dict[str, str]] = {}
    tasks = [(plan, subject) for subject in subjects]
    for index, result in _followed(each, noise_levels_of, tasks, "noise levels", progress):
        if isinstance(result, Exception):
            failed[subjects[index]] = {f"sub-{subjects[index]}": _words(result)}
        else:
            found[subjects[index]], failed[subjects[index]] = result
    protocols: dict[str, list[Levels]] = {}
    for subject in sorted(found):
        for levels in found[subject]:
            protocols.setdefault(levels.protocol, []).append(levels)
    names = sorted(protocols)
    trainings = [(plan, _joined(protocols[name])) for name in names]
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for index, result in _followed(each, train, trainings, "networks", progress):
        if isinstance(result, Exception):
            reasons[names[index]] = _failure(plan, f"{NETWORKS}-{names[index][:8]}", result)
        else:
            files[names[index]] = result
    networks: dict[str, Networks] = {}
    for subject, levels in found.items():
        own = [(each, each.protocol) for each in levels]
        networks[subject] = {e.title: (files[p], e.range) for e, p in own if p in files}
        failed[subject] |= {e.title: reasons[p] for e, p in own if p in reasons}
    return networks, failed


def _joined(levels: Sequence[Levels]) -> Levels:
    """A protocol with the noise levels of all its series."""
    lows, highs = zip(*(each.range for each in levels), strict=True)
    return replace(levels[0], title="", range=(min(lows), max(highs)))


def _followed(each: Each, function, tasks: Sequence[Any], stage: str, progress: Progress):
    progress(stage, 0, len(tasks), "")
    for done, (index, result) in enumerate(each(function, tasks), start=1):
        yield index, result
        progress(stage, done, len(tasks), "")


def _jobs(plan: Plan, subject: str) -> tuple[list[Job], dict[str, str]]:
    """The jobs of a subject, and why some of its series have none."""
    roots = plan.roots
    try:
        scans = scans_of(roots.dataset, subject, plan.sessions, roots.masks)
    except Exception as error:
        return [], {f"sub-{subject}": _failure(plan, f"sub-{subject}", error)}
    jobs: list[Job] = []
    failed: dict[str, str] = {}
    for scan in scans:
        if isinstance(scan, InputError):
            series, _, words = str(scan).partition(": ")
            failed[series] = words
            continue
        for name in _models(plan, scan):
            try:
                jobs.append(Job(scan, name, _model_of(name, scan.settings)))
            except Exception as error:
                failed[f"{scan.name} ({name})"] = _failure(plan, scan.name, error)
    if not jobs and not failed:
        words = f"has no series for --model {' or '.join(plan.models)}"
        failed[f"sub-{subject}"] = words
    return jobs, failed


def _models(plan: Plan, scan: Scan) -> list[str]:
    """The models that a series is mapped with: those whose settings it has."""
    if not plan.models:
        return [KINDS[scan.suffix].model]
    return [
        name for name in plan.models if set(acquisition_names(find_model(name))) <= {*scan.settings}
    ]


def _model_of(name: str, settings: Mapping[str, np.ndarray]) -> SignalModel:
    kind = find_model(name)
    return kind(**{setting: settings[setting] for setting in acquisition_names(kind)})


def _request(plan: Plan, job: Job) -> Request:
    scan = job.scan
    return Request(
        scan.images,
        job.model,
        plan.noise,
        plan.sigma,  # pyright: ignore[reportArgumentType]
        plan.roots.out,
        mask=scan.mask,
        b_tolerance=plan.b_tolerance,
        threads=plan.threads,
        sources=dict(zip([*scan.settings, *map(str, scan.sources)], scan.sources, strict=False)),
        command=plan.command,
        notes=scan.notes,
    )


def _by_network(plan: Plan, network: Path | None = None) -> ByNetwork:
    return ByNetwork(network, plan.alpha, {} if network else plan.ranges)


def _map(
    plan: Plan, job: Job, network: tuple[Path, tuple[float, float]] | None
) -> tuple[bool, Mapping[str, Any]]:
    """Whether a job had to be run, and its record."""
    request, file, extra = _request(plan, job), None, {}
    method: Method = ByFit(plan.bounds)
    settings = {"method": "fit", "bounds": plan.bounds}
    if network is not None:
        file, levels = network
        method = _by_network(plan, file)
        settings = {"method": "map", "network": file.name, "alpha": plan.alpha}
        extra = {"levels_key": _levels_key(plan, job), "levels": levels}
    key = key_of(job, plan.roots, request, settings)
    record = finished(job, plan.roots, key)
    if record is not None:
        return False, record
    return True, write(job, plan.roots, request, method, key, file, extra)


def _levels_key(plan: Plan, job: Job) -> str:
    return key_of(job, plan.roots, _request(plan, job), {"ranges": plan.ranges})


def _record(plan: Plan, job: Job) -> Mapping[str, Any]:
    path = plan.roots.out / job.subject / job.record
    try:
        return from_json(read_text(path), path)
    except (OSError, InputError):
        return {}


def _protocol(model: SignalModel) -> str:
    text = canonical(plain(describe_model(model)), "protocol")
    return hashlib.sha256(text.encode()).hexdigest()


def _failure(plan: Plan, title: str, error: Exception) -> str:
    """Why something failed, in one sentence; of a bug the traceback is kept."""
    if isinstance(error, InputError | OSError):
        return sentence(error)
    if words := error_of_model(error):
        return words
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"not enough memory ({error})"
    folder = plan.roots.out / LOGS
    folder.mkdir(exist_ok=True)
    text = "".join(traceback.format_exception(error))
    write_whole(folder / f"{title}_traceback.txt", text.encode(errors="backslashreplace"))
    return f"{_words(error)}; the traceback is in {LOGS}/{title}_traceback.txt"


def _words(error: Exception) -> str:
    if isinstance(error, InputError | OSError):
        return sentence(error)
    return f"a bug in labelwise ({type(error).__name__}: {sentence(error)}); please report it"


def _list_failures(out: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the table of failures; remove that of an earlier run if there are none."""
    rows = [
        (f"sub-{each.subject}", what, why) for each in outcomes for what, why in each.failed.items()
    ]
    if not rows:
        (out / FAILED).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([("participant_id", "series", "reason"), *rows])
    (out / LOGS).mkdir(exist_ok=True)
    write_whole(out / FAILED, text.getvalue().encode())


def _describe(roots: Roots, links: Sequence[str]) -> None:
    source_file = roots.dataset / DESCRIPTION
    source = from_json(read_text(source_file), source_file)
    known = {"DOI": source.get("DatasetDOI"), "Version": source.get("DatasetVersion")}
    description = {
        "Name": f"Quantitative maps of {source.get('Name') or roots.dataset.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "labelwise", "Version": version("labelwise")}],
        "SourceDatasets": [
            {"URL": roots.links["source"], **{k: v for k, v in known.items() if v}},
        ],
        "DatasetLinks": roots.links,
        "HowToAcknowledge": "Cite labelwise (labelwise --version) and the sources of the models.",
        "ReferencesAndLinks": sorted(set(links)),
        "Date": roots.date,
    }
    write_whole(roots.out / DESCRIPTION, as_json(description).encode())


def _is_ours(description: Mapping[str, Any]) -> bool:
    made = description.get("GeneratedBy") or [{}]
    return made[0].get("Name") == "labelwise"


def _head(record: Mapping[str, Any]) -> dict[str, str]:
    """What all rows of a series have in the table."""
    sessions = [part for part in record["series"].split("_") if part.startswith("ses-")]
    return {
        "session_id": sessions[0] if sessions else "n/a",
        "series": record["series"],
        "model": record["model"],
    }


def _cell(value: Any) -> str:
    return "n/a" if value is None else str(value)
