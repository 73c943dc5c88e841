"""`labelwise design`, as a person types it."""

import numpy as np
import pytest

import labelwise as lw
from commands import complaint, run
from helpers import valid
from labelwise.io.acquisition import read_bvals, read_table

ADC = ("design", "--model", "adc", "--snr", "30", "--out", "out", "--voxels", "400")
QUICK = ("--estimator", "fit", "--minimise", "crlb", "--candidates", "0,200,500,800,1200")
AUC = ("--estimator", "fit", "--minimise", "auc:ADC", "--candidates", QUICK[-1])
TASK = '[from]\nname = "healthy"\nADC = 0.95\n[to]\nname = "lesion"\nADC = 1.05\n'
TISSUES = ("--from", "ADC=0.95", "--to", "ADC=1.05")
T2 = ("design", "--model", "t2", "--snr", "30", "--volumes", "8", *ADC[5:], *QUICK[:4])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the b-values of a present acquisition."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "dwi.bval").write_text("0 0 200 500")
    return tmp_path


def test_a_design_is_compared_with_the_present_acquisition(folder):
    result = run(*ADC, *QUICK, "--bvals", "dwi.bval", "--prior", "ADC=0.9:1.1")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "design.bval",
        "design.json",
        "design.pdf",
        "design.png",
    ]
    np.testing.assert_array_equal(read_bvals(folder / "out" / "design.bval"), [0, 1.2, 1.2, 1.2])
    assert (folder / "out" / "design.bval").read_text() == "0 1200 1200 1200\n"
    record = valid("design", (folder / "out" / "design.json").read_text())
    assert record["command"].startswith("labelwise design --model adc")
    acquisitions = record["acquisitions"]
    assert [*acquisitions] == ["this design", "present acquisition", "Gaussian optimum"]
    assert acquisitions["present acquisition"]["settings"]["b"] == [0, 0, 0.2, 0.5]
    assert acquisitions["this design"]["ratio"]["ADC"] < 0.8
    assert "ADC (minimised): -" in result.stdout
    assert "present acquisition" in result.stdout


def test_the_settings_of_other_models_are_a_table(folder):
    result = run(*T2, "--candidates", "10,20,40,80,120", "--quiet")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    times = read_table(folder / "out" / "design.tsv")["te"]
    assert len(times) == 8
    assert set(times) <= {10, 20, 40, 80, 120}
    lw.T2(times)


def test_candidates_that_the_model_does_not_describe_are_left_out(folder):
    given = ("--model", "ivim_simplified", "--volumes", "6", "--preset", "liver")
    result = run(*ADC, *QUICK[:4], *given, "--candidates", "0,10,50,200,400,800", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert not {0.01, 0.05} & set(read_bvals(folder / "out" / "design.bval"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--minimise", "auc:"), "--minimise 'auc:': expected rmse, rmse:NAME"),
        (("--minimise", "auc:ADC"), "--minimise: crlb and auc:ADC exclude each other"),
        (("--from", "ADC=1"), "--detect, --from and --to are for --minimise auc"),
        (("--minimise", "rmse:"), "--minimise 'rmse:': expected rmse"),
        (("--minimise", "rmse"), "--minimise: crlb and rmse exclude each other"),
        (("--volumes", "1"), "volumes: expected at least 2"),
        (("--snr", "0"), "--snr 0: expected a positive number"),
        (("--keep", "T2"), "keep: unknown parameter 'T2'; known are S0, ADC"),
        (("--b-max", "900"), "--b-max: is for b-values by default, but candidates are given"),
        (("--candidates", "200"), "candidates: expected two or more"),
        (("--candidates", "0,x"), "b: expected"),
        (("--preset", "bone"), "preset 'bone'"),
        (("--prior", "ADC"), "--prior ADC: expected NAME=LOW:HIGH"),
        (("--bvals", "none.bval"), "none.bval: No such file"),
        (("--te", "10,20"), "model adc: needs b for each volume"),
        (("--model", "dti"), "model dti: has 4 settings for each volume"),
        (("--model", "t2"), "model t2"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(folder, options, words):
    if options[:2] == ("--model", "t2"):
        message = complaint(*ADC, "--volumes", "6", *options)
        words = "--candidates: are missing; give the values of te to choose from"
    else:
        message = complaint(*ADC, "--volumes", "6", *QUICK, *options)
    assert words in message
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--minimise auc: needs two tissues, --detect FILE.toml, or --from and --to"),
        (("--from", "ADC=1"), "--to: is missing"),
        (("--detect", "task.toml", *TISSUES), "by --detect, or by --from and --to, not by both"),
        (("--detect", "none.toml"), "none.toml: No such file"),
        (("--from", "ADC=1", "--to", "ADC=1"), "are the same in every parameter"),
        ((*TISSUES, "--minimise", "auc:T2"), "minimise: unknown parameter 'T2'"),
        ((*TISSUES, "--minimise", "rmse"), "auc:ADC and rmse exclude each other"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_in_one_sentence(folder, options, words):
    (folder / "task.toml").write_text(TASK)
    assert words in complaint(*ADC, *AUC, "--volumes", "6", *options)
    assert not (folder / "out").exists()


def test_an_acquisition_is_designed_to_distinguish_tissues(folder):
    (folder / "task.toml").write_text(TASK)
    present = ("--bvals", "dwi.bval", "--prior", "ADC=0.8:1.2")
    result = run(*ADC, *AUC, *present, "--detect", "task.toml")
    assert result.exit_code == 0, result.stderr
    assert (folder / "out" / "design.bval").read_text() == "0 1200 1200 1200\n"
    record = valid("design", (folder / "out" / "design.json").read_text())
    assert record["minimised"] == ["ADC"]
    assert record["task"]["from"] == {"name": "healthy", "parts": {"S0": [0.8, 1.2], "ADC": 0.95}}
    areas = [each["auc"]["ADC"] for each in record["acquisitions"].values()]
    assert areas[0]["gain"] == areas[0]["value"] - areas[1]["value"] > 0.05
    assert "Detection: healthy | lesion" in result.stdout
    assert "AUC of ADC (maximised): 0." in result.stdout
    again = run(*ADC, *AUC, *present, *TISSUES, "--overwrite", "--quiet")
    assert (again.exit_code, again.stdout) == (0, ""), again.stderr
    same = valid("design", (folder / "out" / "design.json").read_text())
    assert same["acquisitions"] == record["acquisitions"]


def test_without_a_number_of_volumes_there_must_be_an_acquisition():
    assert "--volumes: is missing" in complaint(*ADC, *QUICK)


def test_an_earlier_design_is_not_replaced(folder):
    (folder / "out").mkdir()
    (folder / "out" / "design.json").write_text("{}")
    assert "design.json" in complaint(*ADC, *QUICK, "--volumes", "4")
    assert (folder / "out" / "design.json").read_text() == "{}"
