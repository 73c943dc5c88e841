"""The alpha that serves a task best: areas and errors are right, halves apart, tissues as asked."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import stats

import labelwise.evaluation.tuning as module
from labelwise import ADC, Gaussian, Rician
from labelwise.evaluation.scores import auc, interval_score, rmse
from labelwise.evaluation.tuning import Curve, Detection, Rmse, tune
from labelwise.io.results import as_json
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.network import blend
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.priors import Normal, Tissue, Uniform
from labelwise.simulation import simulate
from labelwise.types import InputError

B = np.array([0.0, 0.0, 0.2, 0.5, 1.0])
MODEL, NOISE, SIGMA = ADC(B), Rician(), 1 / 15
RANGES = [[0.8, 1.2], [0.2, 3.0]]
RISE = Detection(Tissue({"ADC": (0.6, 1.2)}), Tissue({"ADC": (0.9, 1.5)}))


@pytest.fixture(scope="module")
def dial():
    """Trained well for its size."""
    recipe = Recipe.fast(signals=5000, batch=50, epochs=10, restarts=1, warmup=20)
    labels = MLE(MODEL, NOISE), GroundTruth()
    prior = Uniform(dict(zip(("S0", "ADC"), map(tuple, RANGES), strict=True)))
    return blend(*train_networks(TrainingPlan(MODEL, NOISE, prior, SIGMA, labels, recipe)))


@pytest.fixture
def random_dial(random_network):
    """Untrained: its estimates are often out of bounds."""
    groups = (0, 1), (2,), (3,), (4,)
    ends = (random_network(MODEL, groups, seed, ranges=RANGES) for seed in (0, 1))
    return blend(*(with_member(end, scaling={"unit": (1.0, 30.0)}) for end in ends), alpha=0.3)


def with_member(network, scaling=None, **changes):
    """The single network with another perceptron, or with changes to its scaling."""
    (member,) = network.members
    changes |= {"scaling": replace(member.scaling, **scaling or {})}
    return replace(network, members=(replace(member, **changes),))


@pytest.fixture
def seen(monkeypatch):
    """The voxels that `tune` simulates, in its order."""
    made = []

    def recorded(*arguments):
        made.append(simulate(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "simulate", recorded)
    return made


def tuned(dial, task, **options):
    return tune(dial, task, MODEL, NOISE, SIGMA, **{"voxels": 1000, **options})


def upright(network, sign=1, shift=0.0):
    """Its outputs plus or minus what is before the absolute value: far from it, and unbounded."""
    *hidden, (matrix, bias) = network.members[0].weights
    free = tuple(replace(each, bounds=(-1e6, np.inf)) for each in network.parameters)
    last = sign * matrix, np.float32(20 + shift) + sign * bias
    return replace(with_member(network, weights=(*hidden, last)), parameters=free)


# --- areas and errors


@pytest.mark.parametrize("digits", [1, 8], ids=["many ties", "no ties"])
def test_the_area_is_the_mann_whitney_statistic(digits):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(3, 40)).round(digits)
    after = rng.normal(0.7, size=(3, 55)).round(digits)
    expected = stats.mannwhitneyu(after, before, axis=1).statistic / (40 * 55)
    assert auc(before, after)[0] == pytest.approx(expected)


@pytest.mark.parametrize("rising", [np.exp, lambda score: 3 * score - 7], ids=["exp", "linear"])
def test_increasing_maps_change_no_area(rising):
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(2, 50)), rng.normal(0.5, size=(2, 60))
    plain, mapped = auc(before, after), auc(rising(before), rising(after))
    assert mapped[0] == pytest.approx(plain[0], abs=1e-12)
    assert mapped[1] == pytest.approx(plain[1], abs=1e-12)


def test_turning_the_question_round_turns_the_area_round():
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=(2, 50)), rng.normal(0.5, size=(2, 60))
    (there, error), (back, same) = auc(before, after), auc(after, before)
    assert there + back == pytest.approx(1)
    assert same == pytest.approx(error)


def repeated(measure):
    """Its values and covariances over 1000 repetitions of an experiment."""
    rng = np.random.default_rng(3)
    found = [measure(rng) for _ in range(1000)]
    return np.array([values for values, _ in found]), np.mean([cov for _, cov in found], axis=0)


def two_areas(rng):
    """Of two scores that have most of their noise in common."""
    before, after = rng.normal(size=150), rng.normal(1.0, size=200)
    scores = ([each, each + 0.6 * rng.normal(size=each.size)] for each in (before, after))
    return auc(*map(np.array, scores))


def two_rmses(rng):
    error = rng.normal(0.3, size=60)
    return rmse(np.array([error, 0.7 * error + 0.5 * rng.normal(size=60)]))


@pytest.mark.parametrize("measure", [two_areas, two_rmses])
def test_covariances_are_those_of_repeated_experiments(measure):
    values, covariance = repeated(measure)
    assert covariance == pytest.approx(np.cov(values.T), rel=0.15)
    apart = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert apart == pytest.approx(np.var(values[:, 0] - values[:, 1]), rel=0.15)


# --- the curve


def test_a_curve_is_what_the_dial_itself_says_at_each_alpha(random_dial, seen):
    found = tuned(random_dial, Rmse(), points=5)
    (voxels,) = seen
    ends_held = 0
    for alpha_index, alpha in enumerate((0, 0.25, 0.5, 0.75, 1)):
        values = random_dial.with_alpha(alpha)(voxels.signal, voxels.sigma).values.astype(float)
        halves = np.sqrt(np.square(values - voxels.params).reshape(2, 1000, 2).mean(axis=1))
        for column, curve in enumerate(found.curves.values()):
            assert curve.tuning[alpha_index] == pytest.approx(halves[0, column], rel=1e-5)
            assert curve.value[alpha_index] == pytest.approx(halves[1, column], rel=1e-5)
        ends_held += np.mean(values[:, 1] == 5)
    assert 0.1 < ends_held < 4.9  # so that it matters whether the bounds hold the ends or the blend


def test_an_area_is_what_the_dial_itself_says(random_dial, seen):
    found = tuned(random_dial, RISE, points=3)
    dial = random_dial.with_alpha(0.5)
    before, after = (dial(each.signal, each.sigma).values[1000:, 1] for each in seen)
    expected = stats.mannwhitneyu(after, before).statistic / 1000**2
    assert found.curves["ADC"].value[1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "task", "best"),
    [
        ("random_dial", RISE, np.argmax),
        ("dial", Rmse(("ADC",), Tissue({"ADC": (2.8, 3.0)})), np.argmin),
    ],
    ids=["auc", "rmse"],
)
def test_alpha_is_chosen_on_the_tuning_half(request, name, task, best):
    network = request.getfixturevalue(name)
    found = [
        tuned(network, task, points=101, voxels=200, key=jax.random.key(seed)).curves["ADC"]
        for seed in range(5)
    ]
    assert any(best(curve.value) != best(curve.tuning) for curve in found)
    for curve in found:
        assert curve.best == best(curve.tuning)
        assert curve.worse[curve.best] == curve.worse_error[curve.best] == 0


def test_over_its_own_prior_the_truth_taught_is_best(dial):
    found = tuned(dial, Rmse(("ADC",)), voxels=5000)
    assert list(found.alphas) == ["ADC"]
    assert found.alphas["ADC"] <= 0.2
    curve = found.curves["ADC"]
    assert curve.worse[-1] > 4 * curve.worse_error[-1]
    assert not curve.flat


def test_far_from_the_middle_of_the_prior_less_bias_is_worth_more(dial):
    middle, edge = (
        tuned(dial, Rmse(("ADC",), Tissue({"ADC": (low, low + 0.2)})), voxels=5000).alphas["ADC"]
        for low in (1.5, 2.8)
    )
    assert edge > middle


def test_a_constant_bias_changes_no_area_but_the_error(random_dial):
    network = upright(random_dial.ends[1])
    biased = blend(upright(random_dial.ends[1], shift=0.5), network)
    curve = tuned(biased, RISE).curves["ADC"]
    assert curve.value == pytest.approx(np.full(21, curve.value[0]), abs=1e-5)
    assert (curve.best, curve.flat, curve.span) == (20, True, (0.0, 1.0))
    assert not tuned(biased, Rmse()).curves["ADC"].flat


def test_two_equal_networks_leave_the_dial_at_1(random_dial):
    same = blend(random_dial.ends[1], random_dial.ends[1], alpha=0.5)
    for task in (RISE, Rmse()):
        found = tuned(same, task)
        assert set(found.alphas.values()) == {1.0}
        assert all(curve.flat for curve in found.curves.values())


@pytest.mark.parametrize(
    "tissues", [(0.8, 1.2), (1.2, 0.8), ((0.6, 0.9), Normal(1.4, 0.2))], ids=str
)
def test_an_area_says_whether_the_estimate_goes_the_right_way(dial, tissues):
    before, after = (Tissue({"ADC": each}) for each in tissues)
    assert np.all(tuned(dial, Detection(before, after)).curves["ADC"].value > 0.8)


def test_where_it_goes_the_wrong_way_the_area_is_below_a_half(dial):
    areas = [
        tuned(blend(network, network, alpha=1), RISE).curves["ADC"].value[0]
        for network in (upright(dial.ends[1]), upright(dial.ends[1], sign=-1))
    ]
    assert sum(areas) == pytest.approx(1, abs=1e-4)
    assert min(areas) < 0.2


def test_where_the_truth_does_not_say_which_way_the_tuning_half_does(dial):
    wide, narrow = Tissue({"ADC": (0.2, 3.0)}), Tissue({"ADC": 1.6})
    curve = tuned(dial, Detection(wide, narrow)).curves["ADC"]
    assert curve.differs
    assert np.max(np.abs(curve.tuning - 0.5)) == np.max(curve.tuning) - 0.5


def test_what_is_the_same_in_both_counts_upwards(dial, seen):
    found = tuned(dial, RISE)
    before, after = (dial(each.signal, each.sigma).values[1000:, 0] for each in seen)
    expected = stats.mannwhitneyu(after, before).statistic / 1000**2
    assert found.curves["S0"].value[-1] == pytest.approx(expected, abs=1e-5)


def test_what_is_the_same_in_both_is_not_tuned(random_dial):
    found = tuned(blend(random_dial.ends[1], random_dial.ends[0], alpha=1), RISE)
    assert found.curves["S0"].worse.min() < -0.01  # though another alpha would tell them apart
    assert [curve.differs for curve in found.curves.values()] == [False, True]
    assert found.alphas["S0"] == 1
    assert found.describe()["parameters"]["S0"]["as_good"] is None


def test_all_parameters_together_tell_no_less_than_one(dial):
    found = tuned(dial, RISE, voxels=5000)
    both, alone = found.discriminant, found.curves["ADC"]
    for place, index in enumerate((alone.best, 0, -1)):
        assert both.value[place] > alone.value[index] - 2 * alone.error[index]
    assert both.worse[0] == both.worse_error[0] == 0


def test_a_linear_discriminant_knows_no_units(random_dial):
    wide = tuple(replace(each, bounds=(-1e9, np.inf)) for each in random_dial.parameters)
    ends = [replace(end, parameters=wide) for end in (random_dial.ends[0], random_dial.ends[1])]
    scaled = [with_member(end, scaling={"unit": (1.0, 1500.0), "scale": 0}) for end in ends]
    plain, other = (tuned(blend(*each, alpha=1), RISE).discriminant for each in (ends, scaled))
    assert other.value == pytest.approx(plain.value, abs=1e-4)


@pytest.fixture(scope="module")
def with_intervals():
    """Two networks of the truth, so that their intervals need no fits."""
    recipe = Recipe.fast(signals=1000, batch=50, epochs=2, restarts=1, warmup=5)
    prior = Uniform(dict(zip(("S0", "ADC"), map(tuple, RANGES), strict=True)))
    plan = TrainingPlan(MODEL, NOISE, prior, SIGMA, (GroundTruth(),), recipe, intervals=True)
    return blend(*train_networks(plan), *train_networks(replace(plan, seed=1)))


@pytest.mark.parametrize("task", [Rmse(), RISE], ids=["rmse", "detection"])
def test_intervals_are_checked_at_the_chosen_alphas_on_the_held_out_half(
    with_intervals, seen, task
):
    found = tuned(with_intervals, task)
    signal, sigma, truth = (
        np.concatenate([getattr(tissue, name)[1000:] for tissue in seen])
        for name in ("signal", "sigma", "params")
    )
    stats = with_intervals.with_alpha(found.alphas)(signal, sigma).stats
    low, high = stats["low"], stats["high"]
    held = (low <= truth) & (truth <= high)
    scores = interval_score(low, high, truth)
    for column, name in enumerate(with_intervals.names):
        check = found.intervals[name]
        assert check.kind == "credible"
        assert check.coverage == pytest.approx(held[:, column].mean())
        assert check.score == pytest.approx(scores[:, column].mean(), rel=1e-5)
        assert found.describe()["parameters"][name]["interval"]["coverage"] == check.coverage


def test_networks_without_intervals_have_none_to_check(random_dial):
    found = tuned(random_dial, RISE)
    assert not found.intervals
    assert "interval" not in found.describe()["parameters"]["ADC"]


def test_those_as_good_are_in_a_row():
    value = np.array([0.5, 0.8, 0.7, 0.9, 0.89, 0.8])
    worse, error = 0.9 - value, np.full(6, 0.06)
    curve = Curve(ADC.parameters[1], np.arange(6) / 5, 3, value, value, error, worse, error)
    assert curve.as_good.tolist() == [False, True, False, True, True, True]
    assert curve.span == (0.6, 1.0)
    assert not curve.flat


def test_the_same_key_gives_the_same_bytes(dial):
    first, again, other = (
        as_json(tuned(dial, RISE, key=jax.random.key(seed)).describe()) for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other


def test_progress_counts_tissues(random_dial):
    told = []
    tuned(random_dial, RISE, progress=lambda *counts: told.append(counts))
    assert told == [(1, 2), (2, 2)]


# --- tissues


def test_what_is_left_out_is_as_before_or_as_in_training(dial):
    task = Detection(Tissue({"ADC": Normal(1, 0.2)}, "healthy"), Tissue({"S0": 1.0}))
    before, after = tuned(dial, task).task.tissues
    assert before.parts == {"S0": (0.8, 1.2), "ADC": Normal(1, 0.2)}
    assert after.parts == {"S0": 1.0, "ADC": Normal(1, 0.2)}
    assert (before.name, after.name) == ("healthy", "S0=1")


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (1.5, stats.uniform(1.5, 0)),
        ((0.5, 2.0), stats.uniform(0.5, 1.5)),
        (Normal(1.5, 0.3), stats.norm(1.5, 0.3)),
        (Normal(0.1, 0.4), stats.truncnorm(-0.25, 12.25, 0.1, 0.4)),  # cut at 0, far from 5
    ],
    ids=["value", "range", "normal", "cut normal"],
)
@pytest.mark.filterwarnings("ignore:.*is outside of")
def test_tissues_are_drawn_as_described(random_dial, seen, each, expected):
    tuned(random_dial, Rmse((), Tissue({"ADC": each})), voxels=5000)
    s0, adc = seen[0].params.T.astype(float)
    if isinstance(each, float):
        assert np.all(adc == np.float32(each))
    else:
        assert stats.kstest(adc, expected.cdf).pvalue > 0.01
    assert stats.kstest(s0, stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    assert abs(np.corrcoef(s0, adc)[0, 1]) < 0.05 if len(set(adc)) > 1 else True


def test_tissues_are_drawn_apart(random_dial, seen):
    tuned(random_dial, RISE)
    before, after = (each.params[:, 0] for each in seen)
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.1


def test_what_was_not_trained_for_is_said_with_its_share(random_dial):
    with pytest.warns(UserWarning, match=r"ADC=2:4: ADC is outside of 0.2 to 3, .* in 5\d% of"):
        tuned(random_dial, Rmse(("ADC",), Tissue({"ADC": (2.0, 4.0)})))


def test_voxels_without_an_estimate_are_counted_and_left_out(random_dial):
    def drowned(sigma):
        return tune(random_dial, Rmse(), MODEL, Gaussian(), sigma, voxels=150)

    with pytest.warns(UserWarning, match=r"\d+ of 300 voxels .* cannot be estimated"):
        found = drowned(0.15)
    assert np.isfinite(found.curves["ADC"].value).all()
    with (
        pytest.warns(UserWarning, match="cannot be estimated"),
        pytest.raises(ValueError, match=r"only \d+ of 150 voxels can be estimated"),
    ):
        drowned(50.0)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Rmse(("T2",)), "rmse: no parameter 'T2'; there are S0, ADC"),
        (Rmse((), Tissue({"T2": 1.0})), "T2=1: no parameter 'T2'"),
        (Rmse((), Tissue({"ADC": (1, 9)})), "ADC=1:9 is not within the bounds of ADC, 0 to 5"),
        (Rmse((), Tissue({"ADC": Normal(6, 1)})), "ADC=6±1 is not within the bounds"),
        (Detection(Tissue({"ADC": 1}), Tissue({"ADC": 1})), "the same in every parameter"),
        (Detection(Tissue({"ADC": 1}), Tissue({"ADC": (1, 1)})), "the same in every parameter"),
        (Detection(Tissue({"ADC": 1}, "a"), Tissue({}, "b")), "distinguish (a; b) are the same"),
    ],
)
def test_tasks_that_cannot_be_are_one_sentence(random_dial, task, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        tuned(random_dial, task)


@pytest.mark.parametrize("each", [(2, 1), (1, 2, 3), "many", np.nan, (0, np.inf), None, ()])
def test_no_distribution_is_refused(each):
    with pytest.raises(ValueError, match=r"ADC: (expected a finite value|the range 2 to 1)"):
        Tissue({"ADC": each})


@pytest.mark.parametrize("numbers", [(1, 0), (1, -1), (np.nan, 1), (1, np.inf)])
def test_no_normal_distribution_is_refused(numbers):
    with pytest.raises(ValueError, match="expected a finite mean and a positive std"):
        Normal(*numbers)


def test_other_arguments_are_checked(random_dial):
    with pytest.raises(ValueError, match="at least 2 alphas"):
        tuned(random_dial, RISE, points=1)
    with pytest.raises(ValueError, match="at least 100"):
        tuned(random_dial, RISE, voxels=99)
    with pytest.raises(InputError, match="expected a blend of two networks, got a single one"):
        tuned(random_dial.ends[1], RISE)
    with pytest.raises(ValueError, match="trained for another acquisition"):
        tune(random_dial, RISE, ADC(B[:4]), NOISE, SIGMA)
