"""A cohort in this process, and by workers that are killed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

import labelwise as lw
from helpers import valid
from labelwise.bids.cohort import Levels, Plan, begin, map_cohort, train
from labelwise.bids.derivatives import Roots
from labelwise.bids.workers import workers
from labelwise.cli.main import app
from labelwise.io.nifti import file_hash
from labelwise.networks.network import load
from labelwise.noise import Rician

ADC = ("--model", "adc")  # quick to compile
FEW = ("--participant-label", "04", "05", *ADC)
DATE = {"SOURCE_DATE_EPOCH": "1790000000"}
DWI = "sub-04/ses-1/dwi/sub-04_ses-1_acq-b_model-adc"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LABELWISE_CACHE", "off")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def arguments(cohort, out, *options):
    masks = cohort / "derivatives" / "masks"
    options = options or FEW
    return ["bids", str(cohort), str(out), "participant", "--masks", str(masks), *options]


def run(cohort, out, *options):
    return CliRunner().invoke(app, arguments(cohort, out, *options))


def outcomes(cohort, out, *options):
    result = run(cohort, out, *(options or FEW), "--json")
    return [valid("bids-participant", json.dumps(each)) for each in json.loads(result.stdout)]


def files(out):
    """The content of all files but for the records, which have times."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_one_that_fails_does_not_stop_the_others(cohort, out):
    result = run(cohort, out, "--participant-label", "05", "06", "04", *ADC)
    assert result.exit_code == 1
    assert "sub-06_ses-1_acq-b_model-adc_dwi: " in result.stdout
    assert "truncated" in result.stdout
    assert "2 of 3 participants done: 2 series mapped, 0 kept" in result.stdout
    (row,) = table(out / "logs" / "failed.tsv")
    assert (row["participant_id"], row["series"]) == ("sub-06", "sub-06_ses-1_acq-b_model-adc_dwi")
    assert not list(out.rglob(".labelwise-partial-*"))


def test_what_is_finished_is_kept_by_its_content(cohort, out):
    first = outcomes(cohort, out)
    assert [len(each["mapped"]) for each in first] == [1, 1]
    before = files(out)
    again = outcomes(cohort, out)
    assert [(len(each["mapped"]), len(each["kept"])) for each in again] == [(0, 1), (0, 1)]
    assert files(out) == before

    # another mask, a damaged map, a removed map: only that subject, and the same bytes again
    mask = cohort / "derivatives" / "masks" / "sub-04" / "ses-1" / "dwi"
    mask /= "sub-04_ses-1_desc-tissue_mask.nii.gz"
    whole, image = mask.read_bytes(), nib.load(mask)
    smaller = np.asarray(image.dataobj).copy()
    smaller[2] = 0
    nib.save(nib.Nifti1Image(smaller, image.affine), mask)
    assert [len(each["mapped"]) for each in outcomes(cohort, out)] == [1, 0]
    assert files(out) != before
    mask.write_bytes(whole)
    outcomes(cohort, out)
    for harm in (lambda path: path.write_bytes(b"x"), Path.unlink):
        harm(out / f"{DWI}_param-ADC_dwimap.nii.gz")
        assert [len(each["mapped"]) for each in outcomes(cohort, out)] == [1, 0]
        assert files(out) == before


def test_other_settings_are_done_again_and_leave_no_stale_file(cohort, out):
    outcomes(cohort, out)
    stale = out / f"{DWI}_desc-old_dwimap.nii.gz"
    stale.write_bytes(b"of an earlier version")
    record = out / "sub-04" / "logs" / "sub-04_ses-1_acq-b_model-adc_dwi.json"
    entries = valid("bids-series", record.read_text())
    entries["files"][str(stale.relative_to(out / "sub-04"))] = file_hash(stale)
    record.write_text(json.dumps(entries))
    found = outcomes(cohort, out, *FEW, "--sigma", "11")
    assert [len(each["mapped"]) for each in found] == [1, 1]
    assert not stale.exists()
    sidecar = valid("bids-map", (out / f"{DWI}_param-ADC_dwimap.json").read_text())
    assert sidecar["Sigma"]["sigma"] == 11


@pytest.mark.filterwarnings("ignore:residuals are")
def test_maps_are_those_of_fit_and_sidecars_tell_their_origin(cohort, out, tmp_path):
    outcomes(cohort, out, *FEW, "--sigma", "12")
    image = cohort / "sub-04" / "ses-1" / "dwi" / "sub-04_ses-1_acq-b_dwi.nii.gz"
    mask = cohort / "derivatives" / "masks" / "sub-04" / "ses-1" / "dwi"
    mask /= "sub-04_ses-1_desc-tissue_mask.nii.gz"
    b = lw.read_bvals(cohort / "acq-b_dwi.bval")
    lw.fit_image(image, lw.ADC(b), sigma=12.0, mask=mask, out=tmp_path / "maps")
    for name in ("ADC", "status"):
        ours = out / f"{DWI}_{'param' if name == 'ADC' else 'desc'}-{name}_dwimap.nii.gz"
        assert ours.read_bytes() == (tmp_path / "maps" / f"{name}.nii.gz").read_bytes()
    sidecar = json.loads((out / f"{DWI}_param-ADC_dwimap.json").read_text())
    assert sidecar["Units"] == "µm²/ms"
    assert sidecar["Sources"] == [
        "bids:source:sub-04/ses-1/dwi/sub-04_ses-1_acq-b_dwi.nii.gz",
        "bids:source:acq-b_dwi.bval",
        "bids:masks:sub-04/ses-1/dwi/sub-04_ses-1_desc-tissue_mask.nii.gz",
    ]
    assert sidecar["Bounds"] == list(lw.ADC.parameters[1].bounds)
    assert sidecar["Date"] == "2026-09-21T14:13:20Z"
    assert sidecar["Acquisition"]["settings"]["b"]["unit"] == "s/mm²"
    assert sidecar["Model"]["class"] == "labelwise.models.adc:ADC"
    assert str(cohort) not in json.dumps(sidecar)


def test_relaxation_times_are_in_seconds(cohort, out):
    options = ("--participant-label", "01", "--session-label", "1", "--model", "t2")
    assert [len(each["mapped"]) for each in outcomes(cohort, out, *options)] == [2]
    folder = out / "sub-01" / "ses-1" / "anat"
    kinds = ("T2map", "T2starmap", "desc-uncertainty_T2map")
    t2, star, error = (folder / f"sub-01_ses-1_{kind}.nii.gz" for kind in kinds)
    for path in (t2, star):
        values = np.asarray(nib.load(path).dataobj)
        assert np.nanmedian(values[5:8]) == pytest.approx(0.09, rel=0.05)
    assert np.nanmedian(np.asarray(nib.load(error).dataobj)) < 0.02
    sidecar = json.loads(t2.with_name("sub-01_ses-1_T2map.json").read_text())
    assert sidecar["Units"] == "s"
    assert sidecar["Bounds"][1] <= 10


def test_the_table_of_the_group(cohort, out):
    outcomes(cohort, out)
    assert CliRunner().invoke(app, ["bids", str(cohort), str(out), "group"]).exit_code == 0
    rows = table(out / "group.tsv")
    assert [row["region"] for row in rows[:3]] == ["mask", "liver", "kidney"]
    assert {row["participant_id"] for row in rows} == {"sub-04", "sub-05"}
    liver, kidney = (
        float(row["median"])
        for row in rows[:6]
        if row["parameter"] == "ADC" and row["region"] != "mask"
    )
    assert 1.0 < liver < kidney < 3.5
    dictionary = json.loads((out / "group.json").read_text())
    assert list(dictionary) == list(rows[0])
    values = np.asarray(nib.load(out / f"{DWI}_param-ADC_dwimap.nii.gz").dataobj)
    whole = next(row for row in rows if row["parameter"] == "ADC")
    assert float(whole["mean"]) == pytest.approx(np.nanmean(values, dtype=float), rel=1e-6)
    assert int(whole["voxels"]) == np.isfinite(values).sum()


def test_no_table_of_other_folders(cohort, out):
    for place in (cohort, out):
        result = CliRunner().invoke(app, ["bids", str(cohort), str(place), "group"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "run the participant level first" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--participant-label", "01", "99"), "has no folder sub-99"),
        (("--sigma", "sigma.nii.gz"), "a map is of one series"),
        (("--model", "t3"), "t3"),
        (("--alpha", "0.5"), "--alpha: is not used by --method fit"),
        (("--method", "map", "--bounds", "f=0:1"), "--bounds: is not used by --method map"),
        (("--masks", "nowhere"), "there is no such folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(cohort, out, options, words):
    result = run(cohort, out, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert not out.exists()


def test_workers_need_dask(cohort, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = run(cohort, out, *FEW, "--jobs", "2")
    assert result.exit_code == 2
    assert "pip install 'labelwise[cluster]' adds" in result.stderr
    assert not out.exists()


def test_volumes_without_b_values(cohort, out):
    (cohort / "acq-b_dwi.bvec").unlink()
    (cohort / "acq-b_dwi.bval").write_text("0 0 0 100")
    (found, _) = outcomes(cohort, out)
    (words,) = found["failed"].values()
    assert words.startswith(
        "b-values: 4 in acq-b_dwi.bval, but sub-04_ses-1_acq-b_dwi.nii.gz has 12"
    )


def test_another_dataset_is_not_touched(cohort):
    before = files(cohort)
    result = run(cohort, cohort)
    assert result.exit_code == 2
    assert "holds another dataset" in result.stderr
    assert files(cohort) == before


def test_a_subject_without_series_for_the_model(cohort, out):
    (found,) = outcomes(cohort, out, "--participant-label", "04", "--model", "t2")
    assert found["failed"] == {"sub-04": "has no series for --model t2"}


def test_a_bug_is_listed_with_its_traceback(cohort, out, monkeypatch):
    def broken(*_):
        raise RuntimeError("surprise")

    monkeypatch.setattr("labelwise.bids.derivatives.run", broken)
    result = run(cohort, out)
    assert result.exit_code == 1
    assert "a bug in labelwise (RuntimeError: surprise); please report it" in result.stdout
    traceback = out / "logs" / "sub-04_ses-1_acq-b_model-adc_dwi_traceback.txt"
    assert "surprise" in traceback.read_text()


@pytest.fixture
def short(monkeypatch):
    """Trainings are cut short."""
    changes = {"signals": 3000, "batch": 100, "epochs": 3, "restarts": 1, "width": 8}
    usual = lw.Recipe.every_level
    monkeypatch.setattr(
        lw.Recipe, "every_level", staticmethod(lambda **given: usual(**given | changes))
    )


def plan_of(cohort, out, **options):
    roots = Roots(cohort, out, cohort / "derivatives" / "masks", "")
    usual = {"sessions": (), "models": ("adc",), "method": "map", "sigma": "auto"}
    return begin(Plan(roots, noise=Rician(), **usual | options))


@pytest.mark.slow
def test_one_network_for_each_protocol_and_its_noise_levels(
    cohort, out, tmp_path, short, monkeypatch
):
    monkeypatch.setenv("LABELWISE_CACHE", str(tmp_path / "cache"))
    noisy = cohort / "sub-05" / "ses-1" / "dwi" / "sub-05_ses-1_acq-b_dwi.nii.gz"
    image = nib.load(noisy)
    extra = np.random.default_rng(0).normal(0, 50, (2, *image.shape))
    values = np.hypot(np.asarray(image.dataobj) + extra[0], extra[1]).astype(np.float32)
    nib.save(nib.Nifti1Image(values, image.affine), noisy)
    subjects = ["03", "04", "05"]
    plan = plan_of(cohort, out, sessions=("1",))

    def each(function, tasks):
        with workers(lambda: None) as here:
            yield from here(function, tasks)

    done = map_cohort(plan, subjects, each, lambda *_: None)
    assert not any(outcome.failed for outcome in done)
    networks = sorted((out / "networks").glob("*.safetensors"))
    assert len(networks) == 2
    sidecars = [
        json.loads(path.read_text()) for path in sorted(out.rglob("*_param-ADC_dwimap.json"))
    ]
    used = [sidecar["Network"]["file"] for sidecar in sidecars]
    assert len(used) == 3
    assert used[0] != used[1] == used[2]
    for sidecar in sidecars:
        least, most = sidecar["Network"]["trained_for_snr"]
        low, high = sidecar["Network"]["snr_of_the_image"]
        assert least <= low * 1.01
        assert high <= most * 1.01
    again = map_cohort(plan, subjects, each, lambda *_: None)
    assert all(outcome.kept and not outcome.mapped for outcome in again)

    def backwards(function, tasks):
        for index, result in each(function, tasks[::-1]):
            yield len(tasks) - 1 - index, result

    other = tmp_path / "elsewhere"
    plan = plan_of(cohort, other, sessions=("1",))
    done = map_cohort(plan, subjects, backwards, lambda *_: None)
    assert not any(outcome.failed for outcome in done)
    assert files(other) == files(out)


def test_the_noise_levels_of_a_cohort_span_those_of_its_series(cohort, out, short):
    b = lw.read_bvals(cohort / "acq-b_dwi.bval")
    levels = Levels("", "", "adc", {"b": b}, (0.02, 0.1))
    network = load(train((plan_of(cohort, out), levels)))
    assert network.card.noise_range[0] == pytest.approx(0.02, rel=0.3)
    assert network.card.noise_range[1] == pytest.approx(0.1, rel=0.3)


@pytest.fixture
def start(cohort, out, programs):
    """Starts the command in another process, since XLA's options can change the last digits."""

    def started(*options, folder=out):
        command = [sys.executable, "-m", "labelwise", *arguments(cohort, folder, *FEW, *options)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, env=programs | DATE)

    return started


def working(process, out):
    """Wait until a subject is being mapped; the processes of the workers that have it open."""
    import psutil

    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if any(out.glob("sub-*/.labelwise-partial-*")):
            children = psutil.Process(process.pid).children(recursive=True)
            return [
                each for each in children if "multiprocessing.spawn" in " ".join(each.cmdline())
            ]
        time.sleep(0.02)
    raise AssertionError(f"no subject was begun: {process.communicate()}")


@pytest.mark.slow
def test_workers_that_are_killed_change_no_byte(cohort, out, tmp_path, start):
    pytest.importorskip("distributed")
    start(folder=tmp_path / "one").communicate(timeout=240)
    process = start("--jobs", "2", "--json")
    for worker in working(process, out)[:1]:
        worker.kill()
    text, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert [len(each["mapped"]) for each in json.loads(text)] == [1, 1]
    assert files(out) == files(tmp_path / "one")

    # the whole run, with its workers
    shutil.rmtree(out)
    process = start("--jobs", "2")
    workers = working(process, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 60
    while any(each.is_running() and each.status() != "zombie" for each in workers):
        assert time.monotonic() < until, "workers outlive the run"
        time.sleep(0.1)
    assert not list(out.rglob("*_dwimap.nii.gz")) or len(files(out)) < len(files(tmp_path / "one"))
    process = start()
    process.communicate(timeout=240)
    assert process.returncode == 0
    assert files(out) == files(tmp_path / "one")
    assert not list(out.rglob(".labelwise-partial-*"))
