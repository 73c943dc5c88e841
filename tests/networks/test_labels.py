"""Label sources: what they train_networks, what a mix is, which labels count."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from helpers import Fixed, assert_same
from labelwise import ADC, IVIM, Gaussian, MaximumLikelihood, Rician, SignalModel, per_measurement
from labelwise.networks.labels import (
    MLE,
    FromEstimator,
    GroundTruth,
    Mix,
    describe_model,
    label_report,
    usable,
)
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, InputError, Parameter, Status, Voxels

B = [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8]
MODEL = IVIM(B)
VOXELS = simulate(MODEL, Rician(), Uniform.paper(), 1 / 15, 200, jax.random.key(2))
UNKNOWN = Voxels(VOXELS.signal, VOXELS.sigma)
A, C = Parameter("A", "1", (0, 1)), Parameter("C", "1", (0, 1))


class Decay(SignalModel):
    """One exponential."""

    t: Float[Array, " M"] = per_measurement()
    parameters = (Parameter("S0", "a.u.", (0, np.inf)), Parameter("R", "1/ms", (0, 4)))

    def signal(self, s0, r):
        return s0 * jnp.exp(-self.t * r)


class NumpyADC(SignalModel):
    """ADC as a black box, with a constant."""

    b: Float[Array, " M"] = per_measurement()
    floor: float = 0.0
    differentiable = False
    parameters = ADC.parameters

    def signal(self, s0, adc):
        return s0 * np.exp(-self.b * adc) + self.floor


def with_bad_signals():
    signal, sigma = VOXELS.signal[:6].copy(), VOXELS.sigma[:6].copy()
    signal[1, 3], signal[2], signal[3, 0], sigma[4] = np.nan, 0, -1, 0
    return Voxels(signal, sigma, VOXELS.params[:6])


BAD = (Status.NOT_FINITE, Status.ALL_ZERO, Status.NEGATIVE, Status.BAD_SIGMA)


# --- sources


def test_ground_truth_is_the_truth_and_a_copy_of_it():
    labels = GroundTruth()(VOXELS)
    np.testing.assert_array_equal(labels.values, VOXELS.params)
    assert not np.shares_memory(labels.values, VOXELS.params)
    assert np.all(labels.status == Status.CONVERGED)


def test_a_truth_that_is_not_finite_is_no_label():
    params = np.array([[1.0, 2.0], [np.inf, 2.0]])
    labels = GroundTruth()(Voxels(np.ones((2, 3)), np.ones(2), params))
    np.testing.assert_array_equal(labels.values, [[1, 2], [np.nan, np.nan]])
    assert labels.status.tolist() == [Status.CONVERGED, Status.NOT_FINITE]


def test_labels_from_the_truth_are_the_fit_started_there():
    fit = MaximumLikelihood(MODEL, Rician())
    expected = fit(VOXELS.signal, VOXELS.sigma, start=VOXELS.params)
    assert_same(MLE(MODEL, Rician())(VOXELS), expected)


def test_labels_can_start_from_one_place_for_all():
    middle = Uniform.typical(MODEL).ranges.mean(axis=1)
    source = MLE(MODEL, Rician(), start=middle.tolist())
    expected = MaximumLikelihood(MODEL, Rician())(
        VOXELS.signal, VOXELS.sigma, start=np.tile(middle, (len(VOXELS), 1))
    )
    unknown = Voxels(VOXELS.signal, VOXELS.sigma)
    assert_same(source(unknown), expected)
    assert source.describe()["start"] == middle.tolist()


def test_labels_by_search_know_nothing_of_the_truth():
    source = MLE(MODEL, Rician(), start="search")
    lied = Voxels(VOXELS.signal, VOXELS.sigma, VOXELS.params * 0.5)
    assert_same(source(UNKNOWN), source(lied))
    assert_same(source(UNKNOWN), MaximumLikelihood(MODEL, Rician())(VOXELS.signal, VOXELS.sigma))


def test_the_options_of_the_fit_reach_it():
    model = Decay([0, 0.5, 1.0])
    voxels = simulate(
        model, Rician(), Uniform({"S0": (0.8, 1.2), "R": (0, 3)}), 0.1, 100, jax.random.key(0)
    )
    labels = MLE(model, Rician(), bounds={"R": (1, 2)}, max_iterations=2, threads=1)(voxels)
    assert np.nanmin(labels.values[:, 1]) == 1
    assert np.nanmax(labels.values[:, 1]) == 2
    assert np.mean(labels.status == Status.NOT_CONVERGED) > 0.1


@pytest.mark.parametrize("start", ["truth", "search"])
def test_noise_free_labels_named_a_black_box_are_the_truth(start):
    model = NumpyADC([0, 0.3, 0.6, 1.0])
    truth = np.array([[1.0, 0.5], [0.9, 1.5], [1.1, 2.5]], np.float32)
    signal = np.stack([model.signal(*voxel) for voxel in truth])
    labels = MLE(model, Rician(), start)(Voxels(signal, np.full(3, 1e-3), truth))
    np.testing.assert_allclose(labels.values, truth, rtol=2e-3)


@pytest.mark.parametrize("start", ["truth", "search"])
def test_a_bad_voxel_has_no_label_and_changes_no_other(start):
    source = MLE(MODEL, Rician(), start)
    labels = source(with_bad_signals())
    assert tuple(labels.status[1:5]) == BAD
    assert np.all(np.isnan(labels.values[1:5]))
    alone = source(Voxels(VOXELS.signal[[0, 5]], VOXELS.sigma[[0, 5]], VOXELS.params[[0, 5]]))
    np.testing.assert_array_equal(labels.values[[0, 5]], alone.values)


def test_an_estimator_is_a_source():
    fit = MaximumLikelihood(MODEL, Rician())
    source = FromEstimator(fit, {"net": "other.safetensors"})
    assert_same(source(VOXELS), fit(VOXELS.signal, VOXELS.sigma))
    assert source.describe()["estimator"] == {"net": "other.safetensors"}


@pytest.mark.parametrize("source", [GroundTruth(), MLE(MODEL, Rician())], ids=["truth", "mle"])
def test_a_truth_that_is_not_known_is_asked_for(source):
    with pytest.raises(ValueError, match=r"voxels\.params: .* got None; .*start='search'"):
        source(UNKNOWN)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"start: expected 'truth', 'search', or 4 .*got 'mean'"):
        MLE(MODEL, Rician(), start="mean")
    with pytest.raises(ValueError, match=r"or 4 parameters .* got \(1\.0, 0\.3\)"):
        MLE(MODEL, Rician(), start=(1.0, 0.3))
    with pytest.raises(ValueError, match="bounds: no parameter 'D'"):
        MLE(MODEL, Rician(), bounds={"D": (0, 1)})
    with pytest.raises(ValueError, match="on_bound: expected 'drop' or 'keep'"):
        usable(GroundTruth()(VOXELS), on_bound="maybe")
    with pytest.raises(InputError, match="description: expected JSON data"):
        FromEstimator(MaximumLikelihood(MODEL, Rician()), {"net": np.ones(2)})


# --- mixes


@pytest.mark.parametrize("alpha", [1, 1.0, [1, 1, 1, 1]])
def test_mix_of_one_is_the_first(alpha):
    never = Fixed(np.zeros((200, 4)))
    assert_same(Mix(alpha, MLE(MODEL, Rician()), never)(VOXELS), MLE(MODEL, Rician())(VOXELS))
    assert never.calls == 0


@pytest.mark.parametrize("alpha", [0, 0.0, [0, 0, 0, 0]])
def test_mix_of_none_is_the_second(alpha):
    never = Fixed(np.zeros((200, 4)))
    assert_same(Mix(alpha, never, MLE(MODEL, Rician()))(VOXELS), MLE(MODEL, Rician())(VOXELS))
    assert never.calls == 0


@pytest.mark.parametrize("alpha", [0.25, [0.25, 0.25], [0.25, 0.75], [0.0, 0.5], [0.0, 1.0]])
def test_mix_is_linear_and_exact_at_its_ends(alpha):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 2)).astype(np.float32)
    mixed = Mix(alpha, Fixed(a), Fixed(b))(VOXELS).values
    share = np.broadcast_to(alpha, 2)
    np.testing.assert_allclose(mixed, share * a + (1 - share) * b, rtol=1e-6)
    np.testing.assert_array_equal(mixed[:, share == 0], b[:, share == 0])
    np.testing.assert_array_equal(mixed[:, share == 1], a[:, share == 1])
    assert mixed.dtype == np.float32


def test_mixing_labels_is_mixing_squared_losses_but_not_absolute_ones():
    a, b, alpha, outputs = 0.7, 0.2, 0.3, np.array([0.1, 0.5, 0.9])
    label = Mix(alpha, Fixed([[a]]), Fixed([[b]]))(VOXELS).values[0, 0].astype(float)

    def slope_of_hybrid(slope):
        return alpha * slope(outputs - a) + (1 - alpha) * slope(outputs - b)

    np.testing.assert_allclose(slope_of_hybrid(np.copy), outputs - label, atol=1e-7)
    assert not np.allclose(slope_of_hybrid(np.sign), np.sign(outputs - label))


def test_a_mix_is_as_bad_as_the_worse_of_the_two_either_way_round():
    names = [(a, b) for a in Status for b in Status]
    first = np.array([[np.nan if not a.has_values else 1.0] for a, _ in names])
    second = np.array([[np.nan if not b.has_values else 3.0] for _, b in names])
    a, b = (
        Fixed(rows, status)
        for rows, status in zip((first, second), np.transpose(names), strict=True)
    )
    mixed, swapped = Mix(0.5, a, b)(VOXELS), Mix(0.5, b, a)(VOXELS)
    np.testing.assert_array_equal(mixed.status, swapped.status)
    both = [a.has_values and b.has_values for a, b in names]
    np.testing.assert_array_equal([Status(code).has_values for code in mixed.status], both)
    np.testing.assert_array_equal(np.isfinite(mixed.values[:, 0]), both)
    same = [a == b for a, b in names]
    np.testing.assert_array_equal(mixed.status[same], [a for a, b in names if a == b])
    by_names = dict(zip(names, mixed.status, strict=True))
    assert by_names[Status.CONVERGED, Status.ON_BOUND] == Status.ON_BOUND
    assert by_names[Status.ON_BOUND, Status.NOT_CONVERGED] == Status.NOT_CONVERGED
    assert by_names[Status.PREDICTED, Status.EXTRAPOLATED] == Status.EXTRAPOLATED


def test_a_failed_label_makes_the_whole_row_none():
    a = Fixed([[np.nan, 2], [1, 2]], [Status.NOT_CONVERGED, Status.CONVERGED])
    mixed = Mix([0.5, 0.0], a, Fixed([[3, 4], [3, 4]]))(VOXELS)
    np.testing.assert_array_equal(mixed.values, [[np.nan, np.nan], [2, 4]])
    assert mixed.status.tolist() == [Status.NOT_CONVERGED, Status.CONVERGED]


def test_a_mix_remembers_which_bound():
    stuck = np.array([[0, 1], [0, 0]], np.int8)
    a = Fixed([[1, 2], [1, 2]], [Status.ON_BOUND, Status.CONVERGED], on_bound=stuck)
    for mix in (Mix(0.5, a, Fixed([[3, 4], [3, 4]])), Mix(0.5, Fixed([[3, 4], [3, 4]]), a)):
        labels = mix(VOXELS)
        np.testing.assert_array_equal(labels.stats["on_bound"], stuck)
        assert label_report(labels, (A, C))["on_bound_of"] == {"A": 0.0, "C": 0.5}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan, [0.5, 2], [], [[0.5]]])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1"):
        Mix(alpha, GroundTruth(), GroundTruth())


@pytest.mark.parametrize("alpha", [[0.5, 0.5], [1, 1], [0, 0]])
def test_an_alpha_for_other_parameters_is_refused(alpha):
    with pytest.raises(ValueError, match="one for each of 4 parameters, got 2"):
        Mix(alpha, GroundTruth(), GroundTruth())(VOXELS)


# --- which labels count


@pytest.mark.parametrize(
    ("status", "drop", "keep"),
    [
        *((s, True, True) for s in (Status.CONVERGED, Status.PREDICTED, Status.EXTRAPOLATED)),
        (Status.ON_BOUND, False, True),
        *((s, False, False) for s in (*BAD, Status.NOT_CONVERGED, Status.NOT_FITTED)),
    ],
)
def test_usable_labels(status, drop, keep):
    labels = Estimate(np.array([[1.0, 2.0], [1.0, np.nan]]), np.array([status, status]))
    assert usable(labels).tolist() == [drop, False]
    assert usable(labels, "keep").tolist() == [keep, False]


def test_the_report_adds_up():
    labels = MLE(MODEL, Rician())(VOXELS)
    report = label_report(labels, MODEL.parameters)
    assert json.loads(json.dumps(report)) == report
    assert report["labels"] == 200
    assert report["usable"] == np.mean(usable(labels))
    assert report["usable"] + report["on_bound"] + report["failed"] == pytest.approx(1)
    shares = report["on_bound_of"]
    assert max(shares.values()) <= report["on_bound"] <= sum(shares.values())
    assert report["on_bound"] > 0.1  # this is IVIM at SNR 15
    assert shares["D_fast"] == np.mean(labels.stats["on_bound"][:, 3] != 0)


def test_the_report_says_what_it_cannot_know():
    stuck = Estimate(np.ones((2, 2)), np.array([Status.ON_BOUND, Status.CONVERGED]))
    assert label_report(stuck, (A, C))["on_bound_of"] == {"A": None, "C": None}
    assert label_report(GroundTruth()(VOXELS), MODEL.parameters)["on_bound_of"]["f"] == 0
    nothing = Estimate(np.ones((0, 2)), np.zeros(0, int))
    assert label_report(nothing, (A, C))["usable"] == 0


# --- descriptions


SOURCES = {
    "truth": GroundTruth(),
    "mle": MLE(MODEL, Rician(), bounds={"D_fast": (4, 150)}),
    "black box": MLE(NumpyADC([0, 1.0], floor=np.inf), Gaussian(), start="search"),
    "mix": Mix([0.5, 0, 1, 1], MLE(MODEL, Rician()), GroundTruth()),
    "estimator": FromEstimator(MaximumLikelihood(MODEL, Rician()), {"a": 1}),
}


@pytest.mark.parametrize("source", [s for n, s in SOURCES.items() if n != "black box"])
def test_descriptions_are_json(source):
    said = source.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said


@pytest.mark.parametrize(
    "other",
    [
        MLE(IVIM([*B[:-1], 0.9]), Rician()),
        MLE(MODEL, Gaussian()),
        MLE(MODEL, Rician(), start="search"),
        MLE(MODEL, Rician(), start=(1.0, 0.3, 1.0, 50.0)),
        MLE(MODEL, Rician(), bounds={"D_fast": (4, 150)}),
        MLE(MODEL, Rician(), max_iterations=100),
        Mix(0.5, MLE(MODEL, Rician()), GroundTruth()),
    ],
    ids=["acquisition", "noise", "start", "one start", "bounds", "iterations", "mix"],
)
def test_what_changes_a_label_changes_the_description(other):
    assert other.describe() != MLE(MODEL, Rician()).describe()


def test_threads_do_not_change_the_description():
    assert MLE(MODEL, Rician(), threads=1).describe() == MLE(MODEL, Rician(), threads=2).describe()


def test_a_model_is_described_with_its_constants():
    said = describe_model(NumpyADC([0, 1.0], floor=0.25))
    assert said["class"].endswith(":NumpyADC")
    assert said["acquisition"] == {"b": [0.0, 1.0]}
    assert said["constants"] == {"floor": 0.25}
    assert [p["name"] for p in said["parameters"]] == ["S0", "ADC"]
    assert said["parameters"][0]["bounds"][1] == "inf"
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def typed_at_a_prompt(equation):
    """A class of which no file is known."""
    code = f"class Mine(ADC):\n    def signal(self, s0, adc):\n        return {equation}"
    exec(code, place := {"ADC": ADC, "__name__": "at_a_prompt"})
    return place["Mine"]([0, 1.0])


def test_a_model_without_a_file_is_known_by_its_code():
    plus, minus, again = (
        describe_model(typed_at_a_prompt(f"s0 {sign} adc"))["source"] for sign in "+-+"
    )
    assert plus == again != minus
    assert len(plus) == 64


def test_a_model_is_known_by_its_whole_file_and_those_it_builds_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    seen = set()
    for index, factor in enumerate((1, 2)):
        file = tmp_path / f"user_model_{index}.py"
        file.write_text(
            "from labelwise import ADC\n"
            f"def helper(x):\n    return {factor} * x\n"
            "class Base(ADC):\n    def signal(self, s0, adc):\n        return helper(s0)\n"
        )
        base = importlib.import_module(file.stem).Base
        child = typed_at_a_prompt("self.b")
        seen.add(describe_model(base([0, 1.0]))["source"])
        mixed = type("Mixed", (type(child), base), {"__module__": "at_a_prompt"})
        seen.add(describe_model(mixed([0, 1.0]))["source"])
    assert len(seen - {None}) == 4
