"""`labelwise train`, `evaluate` and `export`, as a person types them."""

import json

import pytest
import xarray as xr
from typer.testing import CliRunner

from labelwise.cli import jobs
from labelwise.cli.main import app
from labelwise.networks.network import load

SMALL = ("--signals", "2000", "--epochs", "2", "--restarts", "1")
TRAIN = ("train", "--model", "adc", "--bvals", "dwi.bval", "--out", "net.safetensors", *SMALL)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """We work in a folder with b-values, without a cache and in a terminal of ordinary width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "dwi.bval").write_text("0 0 200 500 1000")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained(*options, name="net"):
    result = run(*TRAIN, *options, "--out", f"{name}.safetensors")
    assert result.exit_code == 0, result.stderr
    return load(f"{name}.safetensors"), result.stdout


def complaint(*arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    return result.stderr


# --- train


def test_the_default_is_a_dial_for_the_levels_asked_for():
    network, words = trained("--snr", "10:40")
    assert network.is_blend
    assert network.ends[0].card.sigma == [1 / 40, 1 / 10]
    assert network.members[0].scaling.conditioned
    assert "maximum likelihood, Rician, from truth" in words
    assert "SNR 10.0 to 40.0" in words
    assert network.ends[0].card.on_bound == "drop"


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("mle-rician", "maximum likelihood"),
        ("mle-gaussian", "maximum likelihood"),
        ("gt", "ground truth"),
        ("selfsup", "self-supervised"),
        ("selfsup-rician", "self-supervised"),
        ("mix:0.5", "mix"),
    ],
)
def test_every_label_can_be_taught(label, kind):
    network, _ = trained("--sigma", "0.05", "--label", label)
    assert not network.is_blend
    assert network.card.label["kind"] == kind
    assert network.card.sigma == 0.05


def test_the_options_reach_the_lesson():
    network, _ = trained(
        *("--snr", "20", "--label", "gt", "--width", "7", "--depth", "2", "--activation", "tanh"),
        *("--loss", "huber", "--on-bound", "keep", "--seed", "5", "--absolute"),
        *("--prior", "ADC=0.5:2", "--weight", "ADC=10"),
    )
    card = network.card
    assert network.members[0].architecture.layers == [
        (7, 4),
        (7, 7),
        (2, 7),
    ]  # equal b-values are one input
    assert (card.recipe["activation"], card.recipe["loss"]) == ("tanh", "huber")
    assert (card.on_bound, card.seed, card.normalised) == ("keep", 5, False)
    assert card.ranges[1] == [0.5, 2.0]
    assert card.weights == pytest.approx([1.0, 10 / 1.25])


def test_the_same_command_gives_the_same_file(folder):
    trained("--snr", "20", name="a")
    trained("--snr", "20", name="b")
    trained("--snr", "20", "--seed", "1", name="c")
    a, b, c = ((folder / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_ctrl_c_says_how_to_go_on_and_leaves_no_network(monkeypatch, folder):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train_networks", interrupted)
    result = run(*TRAIN, "--snr", "20")
    assert result.exit_code == 130
    assert "the same command with --resume goes on" in result.stderr
    assert not (folder / "net.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--snr or --sigma: expected one of them"),
        (("--snr", "15", "--sigma", "0.1"), "--snr or --sigma: expected one of them"),
        (("--snr", "many"), "--snr many: expected a positive number"),
        (("--snr", "0:10"), "--snr 0:10: expected a positive number"),
        (("--sigma", "0.1:0.1"), "two ends of a range must differ"),
        (("--snr", "15", "--label", "best"), "label best: expected mle-rician"),
        (("--snr", "15", "--label", "mix:2"), "label mix:2: expected mix:ALPHA"),
        (("--snr", "15", "--weight", "T2=3"), "no parameter 'T2'; there are S0, ADC"),
        (("--snr", "15", "--weight", "ADC"), "--weight ADC: expected NAME=FACTOR"),
        (("--snr", "15", "--prior", "ADC=1:9"), "ADC from 1 to 9 exceeds its bounds 0 to 5"),
        (("--snr", "15", "--prior", "paper", "--prior", "ADC=1:2"), "give it alone"),
        (("--snr", "5:15", "--recipe", "paper"), "--recipe paper: is for one SNR"),
        (("--snr", "15", "--signals", "20"), "do not fill one batch"),
        (("--snr", "15", "--activation", "sine"), "activation 'sine'; known are elu"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(options, words, folder):
    assert words in complaint(*TRAIN, *options)
    assert [path.name for path in folder.iterdir()] == ["dwi.bval"]


def test_a_network_is_not_replaced_unasked():
    trained("--snr", "20", "--label", "gt")
    assert "is there already" in complaint(*TRAIN, "--snr", "20")
    network, _ = trained("--snr", "30", "--label", "gt", "--overwrite")
    assert network.card.sigma == 1 / 30


def test_a_dial_of_absolute_errors_is_noted():
    result = run(*TRAIN, "--snr", "20", "--loss", "absolute")
    assert "note: loss absolute: the blend is" in result.stderr


# --- evaluate


def test_an_evaluation_holds_every_estimator(folder):
    trained("--snr", "10:40")
    trained("--snr", "20", "--label", "gt", name="gt")
    result = run(
        *("evaluate", "net.safetensors", "gt.safetensors", "--snr", "20", "--out", "found"),
        *("--points", "3", "--repeats", "20"),
    )
    assert result.exit_code == 0, result.stderr
    names = ["net, alpha 1", "net, alpha 0.5", "net, alpha 0", "gt", "maximum likelihood"]
    with xr.open_dataset(folder / "found" / "evaluation.nc", engine="scipy") as dataset:
        assert dataset.estimator.values.tolist() == names
        assert dict(dataset.sizes)["ADC"] == 3
    said = json.loads((folder / "found" / "evaluation.json").read_text())
    assert (said["snr"], said["repeats"]) == (20.0, 20)
    assert said["summary"]["gt"]["ADC"]["slope"] < 0
    assert (folder / "found" / "curves.png").stat().st_size > 10_000
    assert all(name in result.stdout for name in names)
    assert "found (look at curves.png first)" in result.stdout
    arguments = ("evaluate", "gt.safetensors", "--out", "found")
    assert "evaluation.nc: is there already" in complaint(*arguments)


def test_networks_that_cannot_be_compared_are_refused(folder):
    trained("--snr", "20", "--label", "gt", name="a")
    trained("--snr", "20", "--label", "gt", "--noise", "gaussian", name="b")
    evaluation = ("--out", "found", "--points", "3", "--repeats", "20")
    both = complaint("evaluate", "a.safetensors", "b.safetensors", *evaluation)
    assert "was trained for the noise Gaussian" in both
    assert "given twice" in complaint("evaluate", "a.safetensors", "a.safetensors", *evaluation)
    assert "no such network" in complaint("evaluate", "c.safetensors", *evaluation)
    assert "expected a positive number" in complaint(
        "evaluate", "a.safetensors", *evaluation, "--snr", "-1"
    )
    assert not (folder / "found").exists()


def test_another_prior_or_level_is_noted():
    trained("--snr", "20", "--label", "gt", name="a")
    trained("--snr", "20", "--label", "gt", "--prior", "ADC=0.5:1", name="b")
    result = run(
        *("evaluate", "a.safetensors", "b.safetensors", "--snr", "50", "--out", "found"),
        *("--points", "3", "--repeats", "20", "--no-mle"),
    )
    assert result.exit_code == 0, result.stderr
    assert "note: b.safetensors was trained for another prior" in result.stderr
    assert "note: SNR 50 is not what a.safetensors was trained for (20)" in result.stderr


# --- export


def test_a_network_is_exported_once(folder):
    trained("--snr", "20")
    result = run("export", "onnx", "net.safetensors", "net.onnx", "--alpha", "0.5")
    assert result.exit_code == 0, result.stderr
    assert (folder / "net.onnx").stat().st_size > 1000
    again = ("export", "onnx", "net.safetensors", "net.onnx")
    assert "net.onnx: is there already" in complaint(*again)
    assert "no such folder" in complaint(*again[:3], "nowhere/net.onnx")


def test_a_single_network_has_no_alpha_to_export():
    trained("--snr", "20", "--label", "gt")
    arguments = ("export", "onnx", "net.safetensors", "net.onnx", "--alpha", "0.5")
    assert "holds a single network" in complaint(*arguments)
