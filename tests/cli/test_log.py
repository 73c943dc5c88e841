"""`--log-file`: notes, stages, errors and exit status, with times in UTC."""

import re

import nibabel as nib
import numpy as np
import pytest

from commands import complaint, run

FIT = ("fit", "dwi.nii", "--model", "adc", "--out", "maps", "--sigma", "2", "--quiet")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \d+ (.*)")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dwi.bval").write_text("0 0 400 800")
    clean = 100 * np.exp(-np.array([0, 0, 0.4, 0.8]))
    signal = clean + np.random.default_rng(0).normal(0, 8, (3, 3, 1, 4))
    nib.save(nib.Nifti1Image(signal.astype(np.float32), np.eye(4)), tmp_path / "dwi.nii")
    return tmp_path


def lines(path):
    found = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line[1] for line in found]


def test_notes_stages_and_errors_are_appended(folder):
    log = folder / "a.log"
    assert run(*FIT, "--log-file", "a.log").exit_code == 0
    shown = lines(log)
    assert shown[0] == f"command: labelwise {' '.join(FIT)} --log-file a.log"
    assert any(re.fullmatch(r"fitting: 9 of 9 in \d+\.\d s.*", line) for line in shown)
    assert any(line.startswith("note: residuals are") for line in shown)
    assert shown[-1] == "exit status: 0"
    refused = complaint("--log-file=a.log", *FIT)  # maps are there
    assert lines(log)[len(shown) :] == [
        f"command: labelwise --log-file=a.log {' '.join(FIT)}",
        f"error: {refused.removeprefix('labelwise: ').rstrip()}",
        "exit status: 2",
    ]
    assert run(*FIT, "--overwrite").exit_code == 0
    assert len(lines(log)) == len(shown) + 3


def test_the_environment_names_the_file_too(folder, monkeypatch):
    monkeypatch.setenv("LABELWISE_LOG_FILE", "a.log")
    run("models")
    assert lines(folder / "a.log") == ["command: labelwise models", "exit status: 0"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dwi.bval", "is there and is no log of labelwise"),
        ("dwi.nii", "is there and is no log of labelwise"),
        ("nowhere/a.log", "cannot be written"),
        (".", "cannot be written"),
    ],
)
def test_no_other_file_is_appended_to(folder, name, reason):
    before = (folder / "dwi.bval").read_bytes(), (folder / "dwi.nii").read_bytes()
    assert f"--log-file {name}: {reason}" in complaint(*FIT, "--log-file", name)
    assert ((folder / "dwi.bval").read_bytes(), (folder / "dwi.nii").read_bytes()) == before
    assert not (folder / "maps").exists()


def test_the_command_is_not_the_name_of_the_file(folder):
    done = run(*FIT, "--log-file")
    assert done.exit_code == 2
    assert "'--log-file' requires an argument" in done.output
    assert not (folder / "fit").exists()


def test_a_bug_is_logged(folder, monkeypatch):
    monkeypatch.setattr("labelwise.mapping.images.fit_image", lambda *a, **k: 1 / 0)
    assert run(*FIT, "--log-file", "a.log").exit_code == 1
    assert "error: a bug in labelwise (ZeroDivisionError" in lines(folder / "a.log")[-2]
