"""`labelwise tune`, as a person types it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers import valid
from labelwise.cli.main import app
from labelwise.cli.tables import show_tuning
from labelwise.cli.tuning import _in_tissue, distributions
from labelwise.evaluation.tuning import Detection, IntervalCheck, Rmse, Tuning
from labelwise.io.presets import find_preset
from labelwise.networks.network import load
from labelwise.priors import Normal, Tissue
from labelwise.types import InputError

TRAIN = ("train", "--model", "adc", "--bvals", "dwi.bval", "--snr", "15", "--signals", "2000")
SMALL = ("--epochs", "3", "--restarts", "1", "--prior", "ADC=0.2:3", "--quiet")
TUNE = ("tune", "net.safetensors", "--out", "tuned", "--voxels", "500")
DETECT = ("--from", "ADC=0.6:1.2", "--to", "ADC=0.9:1.5")
TASK = """
snr = 20
[from]
name = "healthy"
S0 = 1.0
ADC = [0.6, 1.2]
[to]
name = "tumour"
ADC = {mean = 1.4, std = 0.2}
"""
FILES = ["tune.json", "tune.pdf", "tune.png"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tuned(*options):
    result = run(*TUNE, *options)
    assert result.exit_code == 0, result.stderr
    return result


def complaint(*arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    return result.stderr


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A blend, trained once, and one of its networks."""
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LABELWISE_CACHE", "off")
        (folder / "dwi.bval").write_text("0 0 200 500 1000")
        result = run(*TRAIN, *SMALL, "--out", "net.safetensors")
        assert result.exit_code == 0, result.stderr
        load("net.safetensors").ends[1].save("single.safetensors")
    return folder


@pytest.fixture(autouse=True)
def folder(networks, tmp_path, monkeypatch):
    """A folder with both, no cache, and a terminal of ordinary width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "80")
    for path in networks.glob("*.safetensors"):
        shutil.copy(path, tmp_path)
    return tmp_path


def record(folder):
    return valid("tuning", (folder / "tuned" / "tune.json").read_text())


# --- tasks


def test_two_tissues_in_a_file_are_told_apart(folder):
    (folder / "task.toml").write_text(TASK)
    words = tuned("--detect", "task.toml").stdout
    assert sorted(path.name for path in (folder / "tuned").iterdir()) == FILES
    assert (folder / "tuned" / "tune.png").stat().st_size > 10_000
    assert (folder / "tuned" / "tune.pdf").read_bytes().startswith(b"%PDF")
    content = record(folder)
    assert (content["measure"], content["snr"], content["voxels"], content["seed"]) == (
        "AUC",
        20.0,
        500,
        0,
    )
    assert content["task"]["from"] == {"name": "healthy", "parts": {"S0": 1.0, "ADC": [0.6, 1.2]}}
    assert content["task"]["to"]["parts"] == {"S0": 1.0, "ADC": {"mean": 1.4, "std": 0.2}}
    assert len(content["parameters"]["ADC"]["curve"]["value"]) == 21
    assert min(content["discriminant"]["value"]) > 0.7
    assert "Detection: healthy | tumour" in words
    assert "S0: the same in both tissues, so alpha stays at 1" in words
    assert "…" not in words


def test_intervals_are_said_beneath_the_table(capsys):
    checks = {
        "ADC": IntervalCheck("blend", 0.931, 0.002, 0.3141, 0.001),
        "S0": IntervalCheck("confidence", 0.95, 0.002, 0.2, 0.001),
    }
    task = Rmse((), Tissue({"ADC": 1.0}, "healthy"))
    show_tuning(Tuning(task, {}, 0.05, 500, intervals=checks), Path("net"), Path("tuned"))
    words = capsys.readouterr().out
    assert "ADC 93.1 % and 0.314 (blend); S0 95.0 % and 0.2 (confidence)." in words


def test_the_options_to_paste_are_what_was_found(folder):
    words = tuned(*DETECT).stdout
    line = re.search(r"labelwise map \.\.\. --net net.safetensors (.*)\n", words)[1].split()
    pasted = dict(text.split("=") for text in line[1::2])
    assert line[::2] == ["--alpha", "--alpha"]
    assert {name: float(text) for name, text in pasted.items()} == record(folder)["alphas"]
    load("net.safetensors").with_alpha(record(folder)["alphas"])


def test_tissues_on_the_command_line_are_those_of_a_file(folder):
    (folder / "task.toml").write_text(TASK)
    tuned("--detect", "task.toml")
    ours = record(folder)
    options = ("--from", "S0=1,ADC=0.6:1.2", "--to", "ADC=1.4±0.2", "--snr", "20", "--overwrite")
    tuned(*options)
    assert record(folder)["parameters"] == ours["parameters"]


def test_the_snr_asked_for_goes_before_that_of_the_file(folder):
    (folder / "task.toml").write_text(TASK)
    result = tuned("--detect", "task.toml", "--snr", "15")
    assert record(folder)["snr"] == pytest.approx(15)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("names", "tuned_for"),
    [
        (("--rmse", "ADC"), ["ADC"]),
        (("--rmse", "ADC", "--rmse", "S0"), ["S0", "ADC"]),
        (("--rmse", "ADC,S0"), ["S0", "ADC"]),
        (("--rmse", "all"), ["S0", "ADC"]),
    ],
)
def test_parameters_are_estimated_with_the_least_error(folder, names, tuned_for):
    words = tuned(*names).stdout
    content = record(folder)
    assert (content["measure"], list(content["alphas"])) == ("RMSE", tuned_for)
    assert content["snr"] == pytest.approx(15)  # what it was trained for
    assert content["task"]["tissue"]["parts"]["ADC"] == [0.2, 3.0]
    assert "RMSE over all that it was trained for" in words
    assert "discriminant" not in content


def test_the_error_may_be_that_over_a_tissue(folder):
    tuned("--rmse", "ADC", "--tissue", "ADC=0.9±0.1")
    inline = record(folder)["parameters"]
    (folder / "task.toml").write_text("[tissue]\nADC = {mean = 0.9, std = 0.1}\n")
    tuned("--rmse", "ADC", "--tissue", "task.toml", "--overwrite")
    assert record(folder)["parameters"] == inline


def test_a_flat_curve_is_called_flat():
    words = tuned("--from", "ADC=1", "--to", "ADC=1.0001").stdout
    assert "ADC: alpha makes no significant difference." in words
    assert " any " in words


def test_a_user_model_is_found_in_its_file(folder):
    (folder / "own.py").write_text(
        "import labelwise as lw\nfrom labelwise.models.adc import ADC as Base\n\n\n"
        "class Own(lw.SignalModel):\n"
        "    b: object = lw.per_measurement()\n"
        "    parameters = Base.parameters\n\n"
        "    def signal(self, s0, adc):\n"
        "        import jax.numpy as jnp\n\n"
        "        return s0 * jnp.exp(-self.b * adc)\n"
    )
    network = load("net.safetensors")
    first, second = network.members
    card = replace(first.card, model={**first.card.model, "class": "Own"})
    replace(network, members=(replace(first, card=card), second)).save("own.safetensors")
    arguments = ("tune", "own.safetensors", "--rmse", "ADC", "--out", "tuned")
    assert "--model FILE.py:Own" in complaint(*arguments)
    result = run(*arguments, "--voxels", "200", "--model", "own.py:Own", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert record(folder)["model"]["class"] == "Own"


def test_the_same_command_gives_the_same_files(folder):
    def files(*options):
        tuned(*DETECT, "--overwrite", *options)
        return [(folder / "tuned" / name).read_bytes() for name in FILES]

    first, again, other = files(), files(), files("--seed", "1")
    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


# --- what it was not trained for


def test_what_was_not_trained_for_is_noted():
    result = tuned("--rmse", "ADC", "--tissue", "ADC=2.5:3.5", "--snr", "50")
    assert "note: SNR 50 is not what net.safetensors was trained for (15)" in result.stderr
    assert "note: ADC=2.5:3.5: ADC is outside of 0.2 to 3" in result.stderr


# --- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f=0.1:0.2", (0.1, 0.2)),
        ("f=1.1", 1.1),
        ("f = 60±10", Normal(60, 10)),
        ("f=60+-10", Normal(60, 10)),
        ("f=60+/-1e1", Normal(60, 10)),
        ("f=1e-1:2e-1", (0.1, 0.2)),
        ("f=1e+1", 10.0),
    ],
)
def test_distributions_are_read(text, expected):
    assert distributions([text], "--from") == {"f": expected}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "task: expected one task: --detect FILE.toml"),
        ((*DETECT, "--rmse", "ADC"), "got --from/--to and --rmse"),
        (("--detect", "task.toml", *DETECT), "got --detect and --from/--to"),
        (DETECT[:2], "--to: is missing"),
        (DETECT[2:], "--from: is missing"),
        ((*DETECT, "--tissue", "ADC=1"), "--tissue: is for --rmse"),
        (("--from", "ADC=1", "--to", "ADC=1"), "are the same in every parameter"),
        (("--from", "T2=1", "--to", "ADC=1"), "no parameter 'T2'; there are S0, ADC"),
        (("--from", "ADC", "--to", "ADC=1"), "--from ADC: expected NAME=VALUE"),
        (("--from", "ADC=1:2:3", "--to", "ADC=1"), "--from ADC=1:2:3: expected NAME=VALUE"),
        (("--from", "ADC=2:1", "--to", "ADC=1"), "--from: ADC: the range 2 to 1 is not ordered"),
        (("--from", "ADC=1±0", "--to", "ADC=1"), "--from ADC=1±0: normal distribution: expected"),
        (("--from", "ADC=1,ADC=2", "--to", "ADC=1"), "--from: ADC is given twice"),
        (("--from", "ADC=1:9", "--to", "ADC=1"), "is not within the bounds of ADC, 0 to 5"),
        (("--rmse", "T2"), "rmse: no parameter 'T2'; there are S0, ADC"),
        (("--rmse", "all,ADC"), "rmse: no parameter 'all'"),
        (("--rmse", "ADC", "--snr", "0"), "--snr 0: expected a positive number"),
        (("--rmse", "ADC", "--snr", "nan"), "--snr nan: expected a positive number"),
        (("--detect", "none.toml"), "none.toml: No such file"),
        (("--rmse", "ADC", "--model", "ivim"), "was trained for the model ADC, not for IVIM"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(folder, options, words):
    assert words in complaint(*TUNE, *options)
    assert not (folder / "tuned").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[from", "task.toml: not valid TOML"),
        ("from = " + "[" * 100_000, "task.toml: not valid TOML (nested too deeply)"),
        ("[from]\nADC = 1", "task.toml: to is missing; known are from, to, snr"),
        (TASK + "[tissue]", "task.toml: there is no 'tissue'; known are from, to, snr"),
        ("snr = 'high'\n[from]\n[to]", "task.toml: snr must be a number, got 'high'"),
        ("snr = -5\n[from]\n[to]\nADC = 1", "--snr -5: expected a positive number"),
        ("from = 3\n[to]", "task.toml: from must be a table, [from], got 3"),
        ("[from]\n[to]\nname = 3", "[to]: name must be text, got 3"),
        ("[from]\n[to]\nADC = '1'", "[to]: ADC must be 1.1, [0.1, 0.2] or {mean"),
        ("[from]\n[to]\nADC = true", "[to]: ADC must be 1.1"),
        ("[from]\n[to]\nADC = [1, 2, 3]", "[to]: ADC must be 1.1"),
        ("[from]\n[to]\nADC = {mean = 1}", "[to]: ADC must be 1.1"),
        ("[from]\n[to]\nADC = {mean = 1, std = -1}", "[to]: ADC must be 1.1"),
        ("[from]\n[to]\nADC = [2, 1]", "[to]: ADC: the range 2 to 1 is not ordered"),
        ("[from]\n[to]\nADC = nan", "[to]: ADC: expected a finite value"),
        ("[from]\n[to]\nT2 = 1", "no parameter 'T2'"),
    ],
)
def test_a_file_that_is_no_task_is_one_sentence(folder, text, words):
    (folder / "task.toml").write_text(text)
    assert words in complaint(*TUNE, "--detect", "task.toml")


def test_a_single_network_has_no_alpha(folder):
    words = complaint("tune", "single.safetensors", *TUNE[2:], *DETECT)
    assert "single.safetensors: holds a single network (ground truth)" in words
    assert "no such network" in complaint("tune", "none.safetensors", *TUNE[2:], *DETECT)
    assert not (folder / "tuned").exists()


def test_a_tuning_is_not_replaced_unasked(folder):
    tuned(*DETECT)
    before = (folder / "tuned" / "tune.json").read_bytes()
    assert "tuned: it already holds tune.json" in complaint(*TUNE, *DETECT, "--seed", "1")
    assert (folder / "tuned" / "tune.json").read_bytes() == before
    tuned(*DETECT, "--seed", "1", "--overwrite")
    assert record(folder)["seed"] == 1


def test_a_run_that_fails_leaves_the_earlier_files_alone(folder, monkeypatch):
    tuned(*DETECT)
    before = {path.name: path.read_bytes() for path in (folder / "tuned").iterdir()}

    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "tune.pdf")

    monkeypatch.setattr("labelwise.io.results.as_json", full)
    assert "No space left" in complaint(*TUNE, *DETECT, "--seed", "1", "--overwrite")
    assert {path.name: path.read_bytes() for path in (folder / "tuned").iterdir()} == before


def test_a_preset_is_the_tissue_of_the_task_and_the_task_wins():
    task = _in_tissue(Rmse(("f",), Tissue({"f": (0.1, 0.2)})), find_preset("muscle"), "ivim")
    assert task.tissue.parts == {
        "f": (0.1, 0.2),
        "D_slow": (0.86, 2.06),
        "D_fast": (5.0, 104.0),
    }
    assert _in_tissue(Rmse(("f",)), find_preset("muscle"), "ivim").tissue.name == "muscle"
    with pytest.raises(InputError, match="--preset: is for --rmse"):
        _in_tissue(Detection(Tissue(), Tissue()), find_preset("muscle"), "ivim")
