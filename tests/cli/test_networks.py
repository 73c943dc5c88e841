"""`labelwise train` and `export`, as a person types them."""

import pytest

from commands import TRAIN, complaint, run, trained


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with b-values, no cache, and a terminal of ordinary width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "dwi.bval").write_text("0 0 200 500 1000")
    return tmp_path


# --- train


def test_the_default_is_a_blend_for_the_given_levels():
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
def test_every_label_can_be_trained_on(label, kind):
    network, _ = trained("--sigma", "0.05", "--label", label)
    assert not network.is_blend
    assert network.card.label["kind"] == kind
    assert network.card.sigma == 0.05


def test_the_options_reach_the_training_plan():
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


def test_intervals_are_trained_on_request():
    network, _ = trained("--snr", "20", "--label", "gt", "--intervals")
    assert network.interval_kinds == {"S0": "credible", "ADC": "credible"}
    network, _ = trained("--snr", "20", "--label", "gt", name="without")
    assert network.interval_kinds == {}


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

    monkeypatch.setattr("labelwise.networks.train.train_networks", interrupted)
    result = run(*TRAIN, "--snr", "20")
    assert result.exit_code == 130
    assert "the same command with --resume continues" in result.stderr
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


def test_a_blend_of_absolute_errors_is_noted():
    result = run(*TRAIN, "--snr", "20", "--loss", "absolute")
    assert "note: loss absolute: the blend is" in result.stderr


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


def test_a_network_that_could_not_be_saved_is_not_trained(folder, monkeypatch):
    def never(*args, **options):
        raise AssertionError("trained")

    monkeypatch.setattr("labelwise.networks.train.train_networks", never)
    name = "n" * 240
    words = complaint(*TRAIN, "--snr", "20", "--out", name)
    assert "cannot be written" in words
    assert "choose another place" in words


def test_b_values_within_the_tolerance_are_one_input_of_a_network(folder):
    (folder / "dwi.bval").write_text("0 5 5 200 500 505")
    network, _ = trained("--snr", "20", "--label", "gt", "--b-tolerance", "10")
    assert network.members[0].scaling.groups == ((0, 1, 2), (3,), (4, 5))
    assert network.members[0].scaling.reference == (0, 1, 2)
