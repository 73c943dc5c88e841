"""Lessons: the same files from the same lesson, and every kind of label taught."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float

import labelwise.teach as teaching
from labelwise import (
    ADC,
    IVIM,
    T2,
    Kurtosis,
    Parameter,
    Rician,
    SignalModel,
    T1InversionRecovery,
    per_measurement,
)
from labelwise.labels import MLE, GroundTruth, Mix
from labelwise.priors import Uniform
from labelwise.simulate import simulate
from labelwise.teach import (
    Lesson,
    SelfSupervised,
    dial,
    dial_lesson,
    noise_levels,
    reference_measurements,
    teach,
)
from labelwise.trained import Blend
from labelwise.training import Recipe
from labelwise.types import Estimate, Status

MODEL = ADC([0.0, 0.2, 0.5, 1.0])
NOISE = Rician()
FAST = Recipe.fast(signals=1250, batch=50, epochs=4, restarts=2, warmup=10)
PAPER = Recipe.paper(signals=1250, batch=50, epochs=4, restarts=2, patience=2, rate=1e-2)


class BlackBox(SignalModel):
    """ADC in NumPy."""

    b: Float[Array, " M"] = per_measurement()
    differentiable = False
    vectorized = True
    parameters = ADC.parameters

    def signal(self, s0, adc):
        return s0 * np.exp(-self.b * adc)


class Offset(SignalModel):
    """A model that no parameter scales."""

    b: Float[Array, " M"] = per_measurement()
    parameters = (Parameter("A", "a.u.", (0.1, 1)), Parameter("B", "a.u.", (0.1, 1)))

    def signal(self, a, b):
        return a + b * self.b


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
    return Lesson(
        model, NOISE, Uniform.typical(model), sigma, labels or (GroundTruth(),), **settings
    )


def weights_of(network):
    return [array.tobytes() for array in jax.tree.leaves(network.weights)]


def file_of(network, folder):
    network.save(folder / "net.safetensors")
    return (folder / "net.safetensors").read_bytes()


# --- the same lesson


def test_the_same_lesson_gives_the_same_files(tmp_path):
    def files(seed):
        labels = (Label("half", lambda t: t / 2, lambda t: t[:, 1] > 1), GroundTruth())
        networks = teach(lesson(*labels, seed=seed))
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
        teach(whole, checkpoint=checkpoint, tell=interrupt)
    assert list(tmp_path.iterdir())
    told = []
    resumed = teach(
        whole,
        checkpoint=checkpoint,
        resume=True,
        tell=lambda at, done, *_: told.append(done) if at == stage else None,
    )
    assert told[0] == 0
    assert min(told[1:]) == epoch + 1  # and not again from the beginning
    assert not list(tmp_path.iterdir())
    expected = teach(whole)
    for found, network in zip(resumed, expected, strict=True):
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
        teach(lesson(), checkpoint=checkpoint, tell=interrupt)
    with pytest.raises(ValueError, match="this checkpoint is of another training"):
        teach(lesson(**change), checkpoint=checkpoint, resume=True)


# --- labels


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_what_a_failed_label_holds_changes_nothing(garbage):
    def failed(truth):
        return truth[:, 1] > 2

    (expected,) = teach(lesson(Label("zero", lambda t: 0 * t, failed)))
    (found,) = teach(lesson(Label("garbage", lambda t: 0 * t + garbage, failed)))
    assert weights_of(found) == weights_of(expected)


def test_labels_on_a_bound_are_left_out_unless_kept():
    label = Label("stuck", lambda t: 3 * t, lambda t: t[:, 1] > 1, Status.ON_BOUND)
    dropped, kept, truth = (
        teach(lesson(each, on_bound=choice))[0]
        for each, choice in ((label, "drop"), (label, "keep"), (GroundTruth(), "drop"))
    )
    assert len({weights_of(network)[0] for network in (dropped, kept, truth)}) == 3
    assert dropped.card["label_report"]["on_bound"] > 0.5
    assert dropped.card["on_bound"] == "drop"
    bright = np.asarray(MODEL.signal(1.0, 2.0))[None]
    assert kept(bright, 0.02).values[0, 1] > 1.5 * dropped(bright, 0.02).values[0, 1]


def test_no_usable_label_is_an_error():
    label = Label("hopeless", failed=lambda truth: truth[:, 0] > 0)
    with pytest.raises(ValueError, match="not one of 1250 simulated voxels has a usable hopeless"):
        teach(lesson(label))


def test_labels_that_overflow_are_an_error():
    label = Label("huge", lambda t: 0 * t + 1e30, lambda t: t[:, 0] > 0, Status.PREDICTED)
    with pytest.raises(ValueError, match=r"huge labels: every restart .* lower the rate"):
        teach(lesson(label))


def test_a_mix_of_labels_is_taught():
    a = Label("a", lambda t: 0.5 * t, lambda t: t[:, 0] > 0, Status.PREDICTED)
    mixed, all_a, only_a, truth = teach(
        lesson(Mix((1.0, 0.5), a, GroundTruth()), Mix(1, a, GroundTruth()), a, GroundTruth())
    )
    assert weights_of(all_a) == weights_of(only_a)
    assert mixed.card["label"]["alpha"] == [1.0, 0.5]
    signal = np.asarray(MODEL.signal(1.0, 2.0))[None]
    m, x, t = (network(signal, 0.02).values[0] for network in (mixed, only_a, truth))
    assert m[0] == pytest.approx(x[0], rel=0.1)
    assert m[1] == pytest.approx((x[1] + t[1]) / 2, rel=0.1)


def test_fitted_labels_are_kept_in_the_cache(tmp_path, monkeypatch):
    label = MLE(MODEL, NOISE, start="truth")
    (first,) = teach(lesson(label), cache=tmp_path)
    assert len(list(tmp_path.glob("labels-*.safetensors"))) == 1

    def refuse(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(MLE, "__call__", refuse)
    (again,) = teach(lesson(label), cache=tmp_path)
    assert weights_of(again) == weights_of(first)
    assert again.card["label"]["kind"] == "maximum likelihood"


def test_a_black_box_is_taught_by_fits_and_not_by_itself():
    model = BlackBox(MODEL.b)
    with pytest.raises(ValueError, match=r"BlackBox cannot be differentiated.*mle-rician"):
        lesson(SelfSupervised(), model=model)
    label = MLE(model, NOISE, start="truth")
    (network,) = teach(lesson(label, model=model, recipe=Recipe(**vars(FAST))))
    found = network(model.signal(1.0, np.array([[0.8], [1.6]])), 0.02)
    np.testing.assert_allclose(found.values[:, 1], [0.8, 1.6], rtol=0.3)
    assert network.card["model"]["class"] == "BlackBox"


@pytest.fixture(scope="module")
def objectives():
    """One lesson with three objectives."""
    labels = (SelfSupervised(), GroundTruth(), SelfSupervised(NOISE))
    return teach(lesson(*labels, recipe=dataclasses.replace(FAST, epochs=8)))


def test_different_objectives_are_trained_in_one_lesson(objectives):
    assert [network.card["label"] for network in objectives] == [
        {"kind": "self-supervised", "loss": "sum of squares"},
        {"kind": "ground truth"},
        {"kind": "self-supervised", "loss": "Rician"},
    ]
    assert [network.card["label_report"] is None for network in objectives] == [True, False, True]


@pytest.mark.parametrize("which", [0, 2])
def test_self_supervision_learns_from_the_signal_alone(objectives, which):
    network = objectives[which]
    untaught = dataclasses.replace(
        network, weights=network.architecture.initial(np.random.default_rng(0))
    )
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
    (network,) = teach(lesson(sigma=0.05, normalise=False, weights=(1.0, 2.0)))
    card = network.card
    assert card["model"]["acquisition"] == {"b": [0.0, 0.2, 0.5, 1.0]}
    assert card["noise_range"] == pytest.approx([0.05, 0.05])
    assert (card["normalised"], card["sigma"], card["noise"]) == (False, 0.05, "Rician")
    assert card["weights"] == [1.0, 2.0]
    assert card["ranges"] == Uniform.typical(MODEL).ranges.tolist()
    assert card["validation"]["loss"] == pytest.approx(min(card["validation"]["restarts"]))
    assert network.architecture.inputs == 4
    assert not network.scaling.reference


def test_a_weight_favours_its_parameter():
    narrow = dataclasses.replace(FAST, width=1, depth=1, epochs=8)
    voxels = simulate(MODEL, NOISE, Uniform.typical(MODEL), 0.03, 500, jax.random.key(9))

    def errors(weights):
        (network,) = teach(lesson(weights=weights, recipe=narrow, normalise=False, sigma=0.03))
        return np.mean((network(voxels.signal, 0.03).values - voxels.params) ** 2, axis=0)

    assert errors((100.0, 1.0))[0] < 0.7 * errors((1.0, 100.0))[0]


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


# --- the reference and the noise


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (IVIM([0.8, 0, 0.1, 0, 0.4]), (1, 3)),
        (ADC([0.5, 0.1, 1.0]), (1,)),
        (ADC([0.0, 0.0005, 0.5, 1.0]), (0, 1)),
        (T2([40.0, 10.0, 80.0]), (1,)),
        (T1InversionRecovery([3000.0, 50.0, 400.0, 1100.0]), (0, 1, 2, 3)),  # each has a null
        (Kurtosis([2.5, 0.0, 1.0, 0.0]), (1, 3)),  # some draws explode at high b
        (BlackBox([1.0, 0.0]), (1,)),
        (Offset([0.0, 1.0]), ()),
    ],
)
def test_the_reference_is_the_lowest_b_or_what_never_vanishes(model, expected):
    assert reference_measurements(model) == expected


def brightness(reference, n=100):
    return np.tile(reference * np.asarray(MODEL.signal(1.0, 1.0)), (n, 1))


@pytest.mark.parametrize(
    ("sigma", "low", "high"),
    [(50.0, -14, -13), (49.0, -14, -13), (1e-9, -27, -26), (1e9, -2, -1)],
)
def test_noise_levels_are_rounded_outwards_and_limited(sigma, low, high):
    levels = noise_levels(MODEL, brightness(1000.0), sigma)
    assert levels == pytest.approx((1.25**low, 1.25**high))


def test_noise_levels_enclose_those_of_the_image():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(10, 90, 1000)
    low, high = noise_levels(MODEL, brightness(1000.0, 1000), sigma)
    inside = (sigma / 1000 >= low) & (sigma / 1000 <= high)
    assert inside.mean() > 0.95
    assert low > 0.01 / 1.25**2
    assert high < 0.09 * 1.25


def test_a_level_on_a_step_is_a_range_all_the_same():
    """Once lowest and highest were equal, which is no range to simulate."""
    low, high = noise_levels(MODEL, brightness(1.0), 1.25**-10)
    assert low < high
    assert low * 0.9999 <= 1.25**-10 <= high * 1.0001


def test_bad_voxels_have_no_noise_level():
    signal = brightness(1000.0)
    expected = noise_levels(MODEL, signal, 50.0)
    signal[:40, 0] = np.resize([np.nan, 0.0, -5.0, np.inf], 40)
    assert noise_levels(MODEL, signal, np.r_[50.0 * np.ones(90), np.zeros(10)]) == expected
    with pytest.raises(ValueError, match="no voxel has a finite signal"):
        noise_levels(MODEL, np.zeros_like(signal), 50.0)


def test_a_model_without_a_scale_has_no_relative_noise():
    with pytest.raises(ValueError, match=r"Offset: no parameter scales .* --sigma"):
        noise_levels(Offset([0.0, 1.0]), np.ones((3, 2)), 0.1)


# --- the dial


@pytest.fixture
def quick(monkeypatch):
    """A small recipe for the dial; and the lessons that are taught."""
    monkeypatch.setattr(
        teaching,
        "dial_lesson",
        lambda *how, **more: dataclasses.replace(dial_lesson(*how, **more), recipe=FAST),
    )
    lessons, teach = [], teaching.teach
    monkeypatch.setattr(
        teaching, "teach", lambda lesson, **how: lessons.append(lesson) or teach(lesson, **how)
    )
    return lessons


def told(blend):
    signal = np.asarray(MODEL.signal(1.0, 1.0))[None]
    estimate = blend(signal, 0.05)
    return estimate.values.tobytes(), estimate.stats["standard_error"].tobytes()


def test_a_dial_is_trained_once_and_kept(quick, tmp_path):
    levels = (1 / 50, 1 / 10)
    first, done = dial(MODEL, NOISE, levels, cache=tmp_path / "cache")
    assert isinstance(first, Blend)
    assert (done["cached"], len(quick)) == (False, 1)
    assert set(first.alphas.values()) == {1.0}
    assert first.mle.card["label"]["start"] == "search"
    assert first.gt.card["label"] == {"kind": "ground truth"}
    again, done = dial(MODEL, NOISE, levels, cache=tmp_path / "cache")
    assert (done["cached"], len(quick)) == (True, 1)
    assert told(again) == told(first)
    other, done = dial(MODEL, NOISE, levels, cache=tmp_path / "cache", seed=1)
    assert (done["cached"], len(quick)) == (False, 2)
    assert told(other) != told(first)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another network"])
def test_a_damaged_dial_is_trained_anew(quick, tmp_path, damage):
    first, done = dial(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    (path,) = tmp_path.glob("dial-*.safetensors")
    assert done["path"] == str(path)
    data = path.read_bytes()
    if damage == "another network":
        first.mle.save(path)
    else:
        flipped = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
        path.write_bytes({"truncated": data[:-9], "flipped": flipped}[damage])
    again, done = dial(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    assert (done["cached"], len(quick)) == (False, 2)
    assert told(again) == told(first)
    assert path.read_bytes() == data


def test_a_dial_needs_no_cache(quick, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for cache in (None, tmp_path / "file" / "cache"):
        blend, done = dial(MODEL, NOISE, (1 / 50, 1 / 10), cache=cache)
        assert (done["cached"], done["path"]) == (False, None)
        assert isinstance(blend, Blend)


def test_the_dial_s_lesson_needs_no_truth_and_knows_every_level():
    whole = dial_lesson(MODEL, NOISE, (0.02, 0.1), seed=3)
    assert whole.conditioned
    assert whole.seed == 3
    assert [label.describe()["kind"] for label in whole.labels] == [
        "maximum likelihood",
        "ground truth",
    ]
    assert whole.recipe.name == "every-level"
    assert whole.normalise
