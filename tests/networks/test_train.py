"""Lessons: the same files from the same lesson, and every kind of label taught."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

import labelwise as lw
from helpers import BlackBox
from labelwise import ADC, Gaussian, Rician, train
from labelwise.networks import train as module
from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.plan import SelfSupervised, TrainingPlan, labels_named
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.noise import describe_noise
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, InputError, Status

MODEL = ADC([0.0, 0.2, 0.5, 1.0])
NOISE = Rician()
FAST = Recipe.fast(signals=1250, batch=50, epochs=4, restarts=2, warmup=10)
PAPER = Recipe.paper(signals=1250, batch=50, epochs=4, restarts=2, patience=2, rate=1e-2)


class Label:
    """What a function makes of the truth, and which of it failed."""

    def __init__(self, name, of=lambda truth: truth, failed=None, status=Status.NOT_CONVERGED):
        self.name, self.of, self.failed, self.status = name, of, failed, status

    def __call__(self, voxels):
        truth = voxels.params
        failed = np.zeros(len(truth), bool) if self.failed is None else self.failed(truth)
        values = np.where(failed[:, None], self.of(truth), truth).astype(np.float32)
        return Estimate(values, np.where(failed, self.status, Status.CONVERGED).astype(np.uint8))

    def describe(self):
        return {"kind": self.name}


def lesson(*labels, model=MODEL, **changes):
    settings = {"sigma": (1 / 50, 1 / 10), "recipe": FAST} | changes
    sigma = settings.pop("sigma")
    return TrainingPlan(
        model, NOISE, Uniform.typical(model), sigma, labels or (GroundTruth(),), **settings
    )


def weights_of(network):
    return [array.tobytes() for array in jax.tree.leaves(network.members[0].weights)]


def file_of(network, folder):
    network.save(folder / "net.safetensors")
    return (folder / "net.safetensors").read_bytes()


# --- the same lesson


def test_the_same_lesson_gives_the_same_files(tmp_path):
    def files(seed):
        labels = (Label("half", lambda t: t / 2, lambda t: t[:, 1] > 1), GroundTruth())
        networks = train_networks(lesson(*labels, seed=seed))
        return [file_of(network, tmp_path) for network in networks]

    first = files(0)
    assert files(0) == first
    assert files(1) != first


@pytest.mark.parametrize(
    ("recipe", "stage", "epoch"),
    [
        (FAST, "training", 1),
        (FAST, "training", 3),
        (PAPER, "choosing first weights", 2),
        (PAPER, "training", 2),
    ],
)
def test_an_interrupted_lesson_goes_on_to_the_same_files(recipe, stage, epoch, tmp_path):
    labels = (GroundTruth(), Label("other", lambda t: t * 1.1, lambda t: t[:, 0] > 1))
    whole = lesson(*labels, recipe=recipe)
    checkpoint = tmp_path / "net.checkpoint"

    def interrupt(at, done, total, words):
        if (at, done) == (stage, epoch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_networks(whole, checkpoint=checkpoint, progress=interrupt)
    assert list(tmp_path.iterdir())
    told = []
    resumed = train_networks(
        whole,
        checkpoint=checkpoint,
        resume=True,
        progress=lambda at, done, *_: told.append(done) if at == stage else None,
    )
    assert told[0] == 0
    assert min(told[1:]) == epoch + 1  # and not again from the beginning
    assert not list(tmp_path.iterdir())
    expected = train_networks(whole)
    for found, network in zip(resumed, expected, strict=True):
        assert file_of(found, tmp_path) == file_of(network, tmp_path)


def test_an_interrupt_ends_the_training_of_intervals_in_its_thread_too(tmp_path):
    labels = (GroundTruth(), Label("other", lambda t: t * 1.1, lambda t: t[:, 0] > 1))
    whole = lesson(*labels, recipe=FAST, intervals=True)
    checkpoint = tmp_path / "net.checkpoint"
    beside = checkpoint.with_name(f"{checkpoint.name}.credible")

    def interrupt(at, done, total, words):
        if (at, done) == ("training", 2):
            deadline = time.monotonic() + 60
            while not beside.exists() and time.monotonic() < deadline:  # compiling takes a while
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_networks(whole, checkpoint=checkpoint, progress=interrupt)
    kept = beside.read_bytes()
    time.sleep(0.2)
    assert beside.read_bytes() == kept  # no thread goes on
    resumed = train_networks(whole, checkpoint=checkpoint, resume=True)
    assert not list(tmp_path.iterdir())
    for found, network in zip(resumed, train_networks(whole), strict=True):
        assert file_of(found, tmp_path) == file_of(network, tmp_path)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"sigma": 0.05}, {"on_bound": "keep"}, {"weights": (1.0, 2.0)}]
)
def test_a_checkpoint_of_another_lesson_is_refused(change, tmp_path):
    checkpoint = tmp_path / "net.checkpoint"

    def interrupt(at, done, total, words):
        if (at, done) == ("training", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_networks(lesson(), checkpoint=checkpoint, progress=interrupt)
    with pytest.raises(ValueError, match="the checkpoint is of another training"):
        train_networks(lesson(**change), checkpoint=checkpoint, resume=True)


# --- labels


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_what_a_failed_label_holds_changes_nothing(garbage):
    def failed(truth):
        return truth[:, 1] > 2

    (expected,) = train_networks(lesson(Label("zero", lambda t: 0 * t, failed)))
    (found,) = train_networks(lesson(Label("garbage", lambda t: 0 * t + garbage, failed)))
    assert weights_of(found) == weights_of(expected)


def test_labels_on_a_bound_are_left_out_unless_kept():
    label = Label(
        "stuck", lambda t: t * np.array([1, 3], t.dtype), lambda t: t[:, 1] > 1, Status.ON_BOUND
    )
    dropped, kept, truth = (
        train_networks(lesson(each, on_bound=choice))[0]
        for each, choice in ((label, "drop"), (label, "keep"), (GroundTruth(), "drop"))
    )
    assert len({weights_of(network)[0] for network in (dropped, kept, truth)}) == 3
    assert dropped.card.label_report["on_bound"] > 0.5
    assert dropped.card.on_bound == "drop"
    bright = np.asarray(MODEL.signal(1.0, 2.0))[None]
    assert kept(bright, 0.02).values[0, 1] > 1.5 * dropped(bright, 0.02).values[0, 1]


def test_no_usable_label_is_an_error():
    label = Label("hopeless", failed=lambda truth: truth[:, 0] > 0)
    with pytest.raises(ValueError, match="no usable hopeless label for training"):
        train_networks(lesson(label))


def test_labels_far_from_the_truth_are_an_error():
    label = Label("huge", lambda t: 0 * t + 1e30, lambda t: t[:, 0] > 0, Status.PREDICTED)
    with pytest.raises(ValueError, match=r"100 % of the huge labels of .* are far outside"):
        train_networks(lesson(label))


def test_a_mix_of_labels_is_taught():
    a = Label("a", lambda t: 0.5 * t, lambda t: t[:, 0] > 0, Status.PREDICTED)
    mixed, all_a, only_a, truth = train_networks(
        lesson(Mix((1.0, 0.5), a, GroundTruth()), Mix(1, a, GroundTruth()), a, GroundTruth())
    )
    assert weights_of(all_a) == weights_of(only_a)
    assert mixed.card.label["alpha"] == [1.0, 0.5]
    signal = np.asarray(MODEL.signal(1.0, 2.0))[None]
    m, x, t = (network(signal, 0.02).values[0] for network in (mixed, only_a, truth))
    assert m[0] == pytest.approx(x[0], rel=0.1)
    assert m[1] == pytest.approx((x[1] + t[1]) / 2, rel=0.1)


def test_fitted_labels_are_kept_in_the_cache(tmp_path, monkeypatch):
    label = MLE(MODEL, NOISE, start="truth")
    (first,) = train_networks(lesson(label), cache=tmp_path)
    assert len(list(tmp_path.glob("labels-*.safetensors"))) == 1

    def refuse(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(MLE, "__call__", refuse)
    (again,) = train_networks(lesson(label), cache=tmp_path)
    assert weights_of(again) == weights_of(first)
    assert again.card.label["kind"] == "maximum likelihood"


def test_a_black_box_is_taught_by_fits_and_not_by_itself():
    model = BlackBox(MODEL.b)
    with pytest.raises(ValueError, match=r"BlackBox cannot be differentiated.*mle-rician"):
        lesson(SelfSupervised(), model=model)
    label = MLE(model, NOISE, start="truth")
    (network,) = train_networks(lesson(label, model=model, recipe=Recipe(**vars(FAST))))
    found = network(model.signal(1.0, np.array([[0.8], [1.6]])), 0.02)
    np.testing.assert_allclose(found.values[:, 1], [0.8, 1.6], rtol=0.3)
    assert network.card.model["class"] == "helpers:BlackBox"


@pytest.fixture(scope="module")
def objectives():
    """One lesson with three objectives."""
    labels = (SelfSupervised(), GroundTruth(), SelfSupervised(NOISE))
    return train_networks(lesson(*labels, recipe=dataclasses.replace(FAST, epochs=8)))


def test_different_objectives_are_trained_in_one_lesson(objectives):
    assert [network.card.label for network in objectives] == [
        {"kind": "self-supervised", "loss": "sum of squares"},
        {"kind": "ground truth"},
        {"kind": "self-supervised", "loss": describe_noise(Rician())},
    ]
    assert [network.card.label_report is None for network in objectives] == [True, False, True]


@pytest.mark.parametrize("which", [0, 2])
def test_self_supervision_learns_from_the_signal_alone(objectives, which):
    network = objectives[which]
    (member,) = network.members
    weights = member.architecture.initial(np.random.default_rng(0))
    untaught = dataclasses.replace(network, members=(dataclasses.replace(member, weights=weights),))
    voxels = simulate(MODEL, NOISE, Uniform.typical(MODEL), 0.03, 500, jax.random.key(9))

    def misfit(network):
        values = network(voxels.signal, voxels.sigma).values
        clean = values[:, :1] * np.exp(-values[:, 1:] * np.array(MODEL.b))
        return np.mean((clean - voxels.signal) ** 2)

    assert misfit(network) < 0.1 * misfit(untaught)
    assert misfit(network) < 2 * 0.03**2


# --- what the lesson says


def test_one_noise_level_is_not_told_to_the_network():
    """Once a NumPy number was taken for a range."""
    for sigma in (0.05, np.float32(0.05), np.float64(0.05)):
        assert not lesson(sigma=sigma).conditioned
        json.dumps(lesson(sigma=sigma).describe())
    for levels in ((0.02, 0.1), [0.02, 0.1], np.array([0.02, 0.1])):
        assert lesson(sigma=levels).conditioned
        assert lesson(sigma=levels).describe()["sigma"] == [0.02, 0.1]


def test_the_card_says_what_the_network_is_for():
    (network,) = train_networks(lesson(sigma=0.05, normalise=False, weights=(1.0, 2.0)))
    card = network.card
    assert card.model["acquisition"] == {"b": [0.0, 0.2, 0.5, 1.0]}
    assert card.noise_range == pytest.approx([0.05, 0.05])
    assert (card.normalised, card.sigma, card.noise["class"]) == (
        False,
        0.05,
        "labelwise.noise:Rician",
    )
    assert card.weights == [1.0, 2.0]
    assert card.ranges == Uniform.typical(MODEL).ranges.tolist()
    assert card.validation["loss"] == pytest.approx(min(card.validation["restarts"]))
    assert network.members[0].architecture.inputs == 4
    assert not network.members[0].scaling.reference


def test_a_weight_favours_its_parameter():
    narrow = dataclasses.replace(FAST, width=1, depth=1, epochs=8)
    voxels = simulate(MODEL, NOISE, Uniform.typical(MODEL), 0.03, 500, jax.random.key(9))

    def errors(weights):
        (network,) = train_networks(
            lesson(weights=weights, recipe=narrow, normalise=False, sigma=0.03)
        )
        return np.mean((network(voxels.signal, 0.03).values - voxels.params) ** 2, axis=0)

    assert errors((100.0, 1.0))[0] < 0.7 * errors((1.0, 100.0))[0]


def test_each_label_can_have_its_own_weights():
    truth, rows = GroundTruth(), ((1.0, 2.0), None)
    both = train_networks(lesson(truth, truth, weights=rows, normalise=False, sigma=0.05))
    assert [network.card.weights for network in both] == [[1.0, 2.0], None]
    for network, row in zip(both, rows, strict=True):
        (alone,) = train_networks(lesson(truth, weights=row, normalise=False, sigma=0.05))
        for one, other in zip(network.members[0].weights, alone.members[0].weights, strict=True):
            assert np.allclose(one[0], other[0], atol=1e-4)  # other lanes, other rounding


def test_a_shared_start_is_not_the_network_with_other_weights():
    paper = dataclasses.replace(FAST, shared_start=True, epochs=2)
    truth, rows = GroundTruth(), (None, (100.0, 1.0))
    plain, weighted = train_networks(lesson(truth, truth, weights=rows, recipe=paper))
    (plain,), (weighted,) = plain.members, weighted.members
    assert not np.allclose(plain.weights[0][0], weighted.weights[0][0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": (1.0,)}, "a positive number for each of S0, ADC"),
        ({"weights": (1.0, 0.0)}, "a positive number for each of S0, ADC"),
        ({"weights": (1.0, np.inf)}, "a positive number for each of S0, ADC"),
        ({"labels": ()}, "labels: expected at least one"),
    ],
)
def test_an_impossible_lesson_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(lesson(), **changes)


# --- in one call


@pytest.mark.parametrize(
    ("snr", "sigma"),
    [(20, 1 / 20), ((10, 40), [1 / 40, 1 / 10]), ((40.0, 10.0), [1 / 40, 1 / 10])],
)
def test_a_blend_is_trained_for_one_snr_or_a_range(snr, sigma):
    network = train(MODEL, snr=snr, recipe=FAST, seed=3)
    assert [end.card.label["kind"] for end in network.ends] == [
        "maximum likelihood",
        "ground truth",
    ]
    assert network.alphas == {"S0": 1.0, "ADC": 1.0}
    for end in network.ends:
        assert end.card.sigma == sigma
        assert end.members[0].scaling.conditioned == isinstance(sigma, list)
        assert end.card.noise["class"] == "labelwise.noise:Rician"
        assert end.card.ranges == Uniform.typical(MODEL).ranges.tolist()
        assert end.card.seed == 3
    found = network(MODEL.signal(1.0, 1.5), 1 / 20, alpha=0.5)
    assert found["ADC"] == pytest.approx(1.5, rel=0.3)


def test_one_call_is_the_plan_carried_out():
    """To the byte, and with every argument passed on."""
    prior, told = Uniform({"S0": (0.9, 1.1), "ADC": (0.5, 2.0)}), []
    network = train(
        MODEL,
        snr=25,
        noise=Gaussian(),
        label="gt",
        prior=prior,
        recipe=FAST,
        seed=1,
        progress=lambda *words: told.append(words[0]),
    )
    plan = TrainingPlan(MODEL, Gaussian(), prior, 1 / 25, (GroundTruth(),), FAST, 1)
    assert weights_of(network) == weights_of(train_networks(plan)[0])
    assert network.noise == Gaussian()
    assert {"simulating", "training"} <= set(told)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mle", [{"kind": "maximum likelihood", "noise": "Gaussian"}]),
        ("mle-rician", [{"kind": "maximum likelihood", "noise": "Rician"}]),
        ("mle-gaussian", [{"kind": "maximum likelihood", "noise": "Gaussian"}]),
        ("gt", [{"kind": "ground truth"}]),
        ("selfsup", [{"kind": "self-supervised", "loss": "sum of squares"}]),
        ("selfsup-rician", [{"kind": "self-supervised", "loss": "Rician"}]),
        ("selfsup-gaussian", [{"kind": "self-supervised", "loss": "Gaussian"}]),
        ("mix:0.25", [{"kind": "mix", "alpha": 0.25}]),
        ("blend", [{"kind": "maximum likelihood", "noise": "Gaussian"}, {"kind": "ground truth"}]),
    ],
)
def test_labels_have_names(name, expected):
    labels = labels_named(name, MODEL, Gaussian(), "search")
    for label, words in zip(labels, expected, strict=True):
        record = label.describe()
        for field, value in words.items():
            found = record[field]
            found = found["class"].split(":")[1] if isinstance(found, dict) else found
            assert found == value
        if record["kind"] == "maximum likelihood":
            assert record["start"] == "search"


def test_an_outdated_label_works_with_a_warning_of_its_end():
    with pytest.warns(UserWarning, match=r"label dial: is called 'blend' now.* until version 0\.3"):
        old = labels_named("dial", MODEL, Gaussian(), "search")
    new = labels_named("blend", MODEL, Gaussian(), "search")
    assert [each.describe() for each in old] == [each.describe() for each in new]


def test_the_mix_of_a_name_is_of_fits_and_truth():
    (mix,) = labels_named("mix:0.25", MODEL, NOISE)
    record = mix.describe()
    assert (record["a"]["kind"], record["b"]["kind"]) == ("maximum likelihood", "ground truth")
    assert record["a"]["start"] == "truth"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("best", "label best: expected mle-rician, .* or blend"),
        ("mle-cauchy", "noise .cauchy.: expected rician"),
        ("gt-rician", "label gt-rician: expected"),
        ("", "label : expected"),
        ("mix:", "label mix:: expected mix:ALPHA, ALPHA from 0 to 1"),
        ("mix:1.5", "label mix:1.5: expected mix:ALPHA, ALPHA from 0 to 1"),
        ("mix:nan", "label mix:nan: expected mix:ALPHA"),
    ],
)
def test_an_unknown_label_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        labels_named(name, MODEL, NOISE)
    with pytest.raises(InputError, match=words):
        train(MODEL, snr=20, label=name)


@pytest.mark.parametrize(
    "snr", [0, -3, np.nan, np.inf, (5, 0), (5, np.nan), (5, 10, 20), (), None, (10, 10)]
)
def test_an_impossible_snr_is_refused(snr):
    with pytest.raises(
        InputError, match=r"snr: expected a positive number, or \(lowest, highest\)"
    ):
        train(MODEL, snr=snr, recipe=FAST)


LATE = lw.T2([80.0, 100.0, 120.0, 160.0, 200.0])
NO_LONG_TI = lw.T1InversionRecovery([50.0, 100.0, 200.0, 400.0, 800.0])
NO_B0 = lw.ADC([0.8, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("model", [LATE, NO_LONG_TI, NO_B0], ids=["late", "short", "no b = 0"])
def test_labels_on_a_bound_cannot_rule_the_loss(model):
    """T2 = 1 ms, a bound, once had an S0 of e^80 times the signal of an echo at 80 ms."""
    noise, prior = lw.Rician(), lw.Uniform.typical(model)
    plan = TrainingPlan(
        model,
        noise,
        prior,
        sigma=(1 / 60, 1 / 5),
        labels=(MLE(model, noise, start="search"), GroundTruth()),
        recipe=dataclasses.replace(FAST, signals=5000),
        on_bound="keep",
    )
    for network in train_networks(plan):
        assert network.card.validation["loss"] < 10
        assert network.card.label_range[0][1] < 1000
        width = prior.ranges[1, 1] - prior.ranges[1, 0]
        assert network.card.label_range[1][1] < prior.ranges[1, 1] + 2.1 * width


def test_errors_are_weighed_by_the_noise(monkeypatch):
    """Once voxels of high SNR had no weight: the network was less precise than a fit there."""
    seen = []
    optimise = module.optimise
    monkeypatch.setattr(
        module,
        "optimise",
        lambda examples, *a, **k: seen.append(examples) or optimise(examples, *a, **k),
    )
    labels = MLE(MODEL, NOISE), GroundTruth()
    train_networks(
        lesson(*labels, sigma=(1 / 100, 1 / 3), recipe=dataclasses.replace(FAST, signals=5000))
    )
    train_networks(lesson(*labels, sigma=1 / 20))
    (weighted, plain), size = seen, len(MODEL.parameters)
    assert plain.targets.shape[-1] == size
    weight = weighted.targets[0, :, size:]
    np.testing.assert_array_equal(weight, weighted.targets[1, :, size:])
    level = weighted.inputs[:, -1]  # the log of the noise level, standardised
    low, high = level < np.percentile(level, 10), level > np.percentile(level, 90)
    assert np.all(weight[low].min(axis=0) > 2 * weight[high].max(axis=0))


def test_a_training_that_learned_nothing_is_refused_with_its_cause():
    wild = dataclasses.replace(FAST, rate=100.0, schedule="constant")
    with pytest.raises(
        lw.InputError, match=r"validation loss is .* learned nothing .*on a bound: "
    ):
        train_networks(lesson(MLE(MODEL, NOISE, start="search"), recipe=wild, on_bound="keep"))


@pytest.mark.parametrize("label", [(GroundTruth(),), (MLE(MODEL, NOISE), GroundTruth())])
def test_networks_for_a_range_of_noise_are_verified(label):
    networks = train_networks(lesson(*label))
    for network in networks:
        assert network.card.verification is not None
    (single,) = train_networks(lesson(GroundTruth(), sigma=1 / 20))
    assert single.card.verification is None
