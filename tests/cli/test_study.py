"""`labelwise study` as a person types it."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from labelwise.cli.main import app
from labelwise.phantoms.pelvis import pelvis, write
from labelwise.study.config import paper, read_study

T2 = """
title = "T2 of muscle"
model = "t2"
snr = [40]
[acquisition]
te = [10, 20, 40, 80]
[networks]
blend = []
absolute_loss = false
intervals = false
[training]
recipe = "fast"
signals = 2000
epochs = 3
restarts = 1
trainings = 1
[grid]
points = 4
repeats = 20
"""
BOX = """
import numpy as np
import labelwise as lw

class Box(lw.SignalModel):
    \"\"\"S0 exp(-te / T2), in NumPy.\"\"\"

    te: object = lw.per_measurement()
    differentiable = False
    vectorized = True
    parameters = (
        lw.Parameter("S0", "a.u.", (0.0, 1e4), typical=(0.8, 1.2)),
        lw.Parameter("T2", "ms", (5.0, 300.0), typical=(20.0, 120.0)),
    )

    def signal(self, s0, t2):
        return s0 * np.exp(-np.asarray(self.te) / t2)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """We work in an empty folder, without a cache and in a terminal of ordinary width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaint(*arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    return result.stderr


def test_the_paper_can_be_had_as_a_file(folder):
    assert run("study", "paper", "my.toml", "--toml", "--s0-fixed", "--wide").exit_code == 0
    study = read_study(folder / "my.toml")
    assert study.describe() == paper(fixed={"S0": 1.0}, wide=150).describe()
    assert "is there already" in complaint("study", "paper", "my.toml", "--toml")


def test_a_t2_study(folder):
    (folder / "t2.toml").write_text(T2)
    result = run("study", "run", "t2.toml", "out")
    assert result.exit_code == 0, result.stderr
    assert "out/report.html" in result.stdout
    assert re.search(r"4\.1 .* (holds|does not|within|in part)", result.stdout)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "T2 of muscle" in page
    again = run("study", "run", "t2.toml", "out")
    assert "stages reused from an earlier run" in again.stdout


def test_a_black_box_from_a_file_of_ones_own(folder):
    (folder / "box.py").write_text(BOX)
    small = T2.replace('"t2"', '"box.py:Box"').replace("signals = 2000", "signals = 400")
    (folder / "box.toml").write_text(small.replace("points = 4", "points = 3"))
    result = run("study", "run", "box.toml", "out")
    assert result.exit_code == 0, result.stderr
    assert not (folder / "out" / "networks" / "snr_40" / "self_supervised.safetensors").exists()
    assert (folder / "out" / "figures" / "figure_02.png").exists()


def test_a_scan_with_repeats(folder):
    made = pelvis(shape=(28, 20, 1), repeats=4)
    write(made, folder / "scan")
    result = run(
        *("study", "invivo", "scan/dwi.nii.gz", "out", "--bvals", "scan/dwi.bval", "--quick"),
        *("--mask", "scan/mask.nii.gz", "--model", "ivim"),
    )
    assert result.exit_code == 0, result.stderr
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    for figure in ("figure_05", "figure_06", "figure_07"):
        assert (folder / "out" / "figures" / f"{figure}.pdf").exists()
    assert "4 acquisitions" in page
    assert "dwi.nii.gz" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "none.toml", "out"), "none.toml: there is no such study file"),
        (("invivo", "none.nii.gz", "out", "--model", "ivim"), "needs b for each volume"),
        (("invivo", "a.nii.gz", "out", "--model", "adc", "--sigma", "-1"), "--sigma -1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, words):
    assert words in complaint("study", *arguments)


def test_repeats_that_are_not_there(folder):
    made = pelvis(shape=(28, 20, 1), repeats=1)
    write(made, folder / "scan")
    words = complaint(
        *("study", "invivo", "scan/dwi.nii.gz", "out", "--bvals", "scan/dwi.bval"),
        *("--model", "ivim"),
    )
    assert "repeats: the series has none" in words
    assert not (folder / "out").exists()


def test_a_persons_own_study_is_not_written_over(folder):
    (folder / "study.toml").write_text(T2)
    words = complaint("study", "run", "study.toml", ".", "--overwrite")
    assert "study.toml: is not of a study of labelwise, and would be replaced" in words
    assert (folder / "study.toml").read_text() == T2


def test_the_seed_and_the_number_of_trainings_can_be_chosen(folder):
    (folder / "t2.toml").write_text(T2)
    result = run("study", "run", "t2.toml", "out", "--seed", "3", "--trainings", "2")
    assert result.exit_code == 0, result.stderr
    study = read_study(folder / "out" / "study.toml")
    assert (study.seed, study.trainings) == (3, 2)
    assert np.isclose(study.snrs[0], 40)
