"""Claims: margins that mean what they say, and verdicts that can go either way."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import labelwise as lw
from labelwise.study import methods
from labelwise.study.claims import CLAIMS
from labelwise.study.claims.judging import judge, with_training_scatter
from labelwise.study.evidence import Evidence, Number, below, between
from labelwise.study.records import Claim, Part, Verdict
from study.conftest import tiny

STUDY = tiny(wide=12, deep=2)
METHODS = (
    *(
        methods.MLE_MEAN,
        methods.MLE_TRUTH,
        methods.GT,
        methods.SELF,
        methods.MLE_RICIAN,
        methods.MLE_GAUSSIAN,
        methods.HYBRID,
    ),
    *(methods.GT_ABSOLUTE, methods.MLE_ABSOLUTE, methods.blend(0.5)),
    *(methods.own_weight(p) for p in STUDY.free),
    *methods.larger(methods.GT, 12, 2),
    *methods.larger(methods.MLE_RICIAN, 12, 2),
)
SHARE = {methods.GT: 1.0, methods.GT_ABSOLUTE: 1.0, methods.HYBRID: 0.5, methods.blend(0.5): 0.5}
SHARE |= dict.fromkeys(methods.larger(methods.GT, 12, 2), 1.0)


def evaluation(shrinkage=0.5, noise=1e-4, reverse=False):
    """Methods between an unbiased one and one that shrinks everything to the middle.

    `reverse` makes the groundtruth label the unbiased, noisy one: nothing the paper says is so.
    """
    grid, study = STUDY.grid, STUDY
    shape = (len(METHODS), len(study.names), *grid.shape)
    bias, std = np.zeros(shape), np.zeros(shape)
    retained, bits = np.zeros(shape), np.zeros(shape[:2])
    axes = [grid.axes[name] for name in study.names]
    values = np.meshgrid(*axes, indexing="ij")
    for m, name in enumerate(METHODS):
        share = SHARE.get(name, 0.0)
        share = 1 - share if reverse else share
        for p in range(len(study.names)):
            middle, width = axes[p].mean(), np.ptp(axes[p])
            bias[m, p] = -shrinkage * share * (values[p] - middle)
            if name in (methods.MLE_GAUSSIAN, methods.SELF):
                bias[m, p] -= 0.2 * np.maximum(values[p] - middle, 0)
            std[m, p] = width * (0.3 - 0.2 * share)
            retained[m, p], bits[m, p] = 0.9 - 0.5 * share, 2 - share
    dims = ("estimator", "parameter", *study.names)
    data = {"bias": bias, "std": std, "rmse": np.hypot(bias, std), "retained": retained}
    data |= {f"{k}_error": np.full(shape, noise) for k in (*data,)}
    return xr.Dataset(
        {k: (dims, v) for k, v in data.items()}
        | {
            "failed": (("estimator", *study.names), np.zeros(shape[:1] + shape[2:])),
            "mutual_information": (dims[:2], bits),
            "mutual_information_error": (dims[:2], np.full(bits.shape, noise)),
        },
        {"estimator": list(METHODS), "parameter": list(study.names), **grid.axes},
    )


def judged(*evaluations):
    evidence = [Evidence(STUDY, dict.fromkeys(STUDY.snrs, each)) for each in evaluations]
    several = evidence if len(evidence) > 1 else ()
    return {claim.key: claim for claim in judge(CLAIMS, evidence[0], several)}


def test_what_the_paper_describes_holds():
    claims = judged(evaluation())
    for key in ("spread", "gradient", "information", "fisher", "everywhere", "blend", "hybrid"):
        assert claims[key].verdict is Verdict.HOLDS, key
    assert claims["variants"].verdict is Verdict.HOLDS


def test_the_opposite_does_not_hold():
    claims = judged(evaluation(reverse=True))
    for key in ("spread", "information", "fisher", "everywhere"):
        assert claims[key].verdict is Verdict.NOT, key
    assert claims["gradient"].verdict is not Verdict.HOLDS


def coverages(confidence=0.95, credible=(0.95, 0.7), error=1e-4):
    """Coverage of two networks: `credible` over the prior, and at the ends of each range."""
    names, grid = [methods.GT, methods.MLE_RICIAN], STUDY.grid
    at = np.full((2, len(STUDY.names), *grid.shape), confidence)
    for p in range(len(STUDY.names)):
        for end in (0, -1):
            np.moveaxis(at[0, p], p, 0)[end] = credible[1]
    dims = ("estimator", "parameter")
    data = {
        "coverage": ((*dims, *STUDY.names), at),
        "coverage_error": ((*dims, *STUDY.names), np.full(at.shape, error)),
        "prior_coverage": (dims, np.full(at.shape[:2], credible[0])),
        "prior_coverage_error": (dims, np.full(at.shape[:2], error)),
    }
    return xr.Dataset(data, {"estimator": names, "parameter": list(STUDY.names), **grid.axes})


@pytest.mark.parametrize(
    ("changes", "confidence", "credible"),
    [
        ({}, Verdict.HOLDS, Verdict.HOLDS),
        ({"confidence": 0.9}, Verdict.NOT, Verdict.HOLDS),
        ({"credible": (0.93, 0.7)}, Verdict.HOLDS, Verdict.PART),
        ({"credible": (0.97, 0.97)}, Verdict.HOLDS, Verdict.NOT),
        ({"error": 10.0}, Verdict.NOISE, Verdict.NOISE),
    ],
)
def test_intervals_are_judged_by_what_their_kind_promises(changes, confidence, credible):
    grids = dict.fromkeys(STUDY.snrs, evaluation())
    claims = judge(CLAIMS, Evidence(STUDY, grids, intervals=coverages(**changes)))
    verdicts = {claim.key: claim.verdict for claim in claims}
    assert (verdicts["confidence"], verdicts["credible"]) == (confidence, credible)


def test_there_is_no_claim_about_intervals_without_them():
    assert not {"confidence", "credible"} & set(judged(evaluation()))


def test_what_is_lost_in_noise_is_called_so():
    claims = judged(evaluation(noise=1e3))
    assert claims["spread"].verdict is Verdict.NOISE
    assert claims["gradient"].verdict is Verdict.NOISE


def test_the_luck_of_a_training_is_part_of_the_error():
    alone = judged(evaluation())["spread"].parts[0]
    apart = judged(evaluation(), evaluation(reverse=True))["spread"].parts[0]
    assert alone.verdict is Verdict.HOLDS
    assert apart.verdict is Verdict.NOISE
    assert apart.margin == pytest.approx(0, abs=1e-9)  # the mean over trainings
    again = judged(evaluation(), evaluation())["spread"].parts[0]
    assert again.error == pytest.approx(alone.error)


def test_two_errors_of_several_trainings_are_a_t_interval():
    margins = np.array([1.0, 2.0, 4.0])
    found = with_training_scatter(Part("x", "", 1.1, 0.0), margins)
    low, high = stats.t.interval(0.95, 2, margins.mean(), stats.sem(margins))
    assert 2 * found.error == pytest.approx((high - low) / 2)
    assert found.margin == pytest.approx(1.1 + margins.mean() - margins[0])


# What each claim makes of a world as the paper describes it, and of the opposite one.
BOTH_WAYS = (
    *("bias", "spread", "gradient", "information", "fisher", "everywhere", "two-values"),
    *("misleading", "absolute-order"),
)


@pytest.mark.parametrize("key", BOTH_WAYS)
def test_a_claims_verdict_turns_with_the_world(key):
    forward, backward = (judged(evaluation(reverse=reverse))[key] for reverse in (False, True))
    ahead, behind = ({p.what: p.margin for p in c.parts} for c in (forward, backward))
    assert forward.count.get(Verdict.HOLDS, 0) > backward.count.get(Verdict.HOLDS, 0)
    turned = [what for what in ahead if what in behind and ahead[what] * behind[what] < 0]
    assert len(turned) >= 0.4 * len(ahead), f"{len(turned)} of {len(ahead)} parts turned"


@pytest.mark.parametrize(
    ("key", "words", "better", "worse"),
    [
        ("own-weight", "D_fast", methods.own_weight("D_fast"), methods.MLE_RICIAN),
        ("beats-mle", "below that of MLE, from the mean", methods.MLE_RICIAN, methods.MLE_MEAN),
        ("rmse", "Supervised GT below Self-supervised", methods.GT, methods.SELF),
        ("absolute", "loss below that of Supervised GT", methods.GT_ABSOLUTE, methods.GT),
    ],
)
def test_the_one_that_is_better_wins(key, words, better, worse):
    """Scale the spread and error of two methods one way, then the other."""
    for winner, loser, verdict in ((better, worse, Verdict.HOLDS), (worse, better, Verdict.NOT)):
        data = evaluation(shrinkage=0.0)
        for variable in ("std", "rmse", "bias"):
            data[variable].loc[{"estimator": winner}] = 0.1
            data[variable].loc[{"estimator": loser}] = 0.2
        parts = [p for p in judged(data)[key].parts if words in p.what and "bits" not in p.what]
        assert parts
        assert {part.verdict for part in parts} == {verdict}


def test_a_fit_like_the_network_taught_the_truth_is_noticed():
    data = evaluation()
    for variable in ("std", "rmse", "bias"):
        like = data[variable].sel(estimator=methods.GT).values
        data[variable].loc[{"estimator": methods.MLE_MEAN}] = like
    assert judged(evaluation())["like-mle"].verdict is Verdict.HOLDS
    assert judged(data)["like-mle"].verdict is Verdict.NOT


def test_the_two_values_are_a_low_and_a_high_one():
    parts = judged(evaluation())["two-values"].parts
    values = sorted(float(part.what.split(" = ")[1].split(":")[0]) for part in parts)
    axis = STUDY.grid.axes["D_slow"]
    assert values == pytest.approx([axis[1], axis[-2]], abs=0.01)
    few = dataclasses.replace(STUDY, points=3)
    data = evaluation().isel({name: slice(0, 3) for name in STUDY.names})
    evidence = Evidence(few, dict.fromkeys(few.snrs, data))
    keys = {claim.key for claim in judge(CLAIMS, evidence)}
    assert not keys & {"two-values", "two-regions"}


def test_gaussian_noise_has_no_floor_to_ask_about():
    study = dataclasses.replace(STUDY, noise=lw.Gaussian())
    evidence = Evidence(study, dict.fromkeys(study.snrs, evaluation()))
    assert "noise-model" not in {claim.key for claim in judge(CLAIMS, evidence)}


def test_every_part_has_its_own_words():
    for claim in judged(evaluation()).values():
        words = [part.what for part in claim.parts]
        assert len(set(words)) == len(words), claim.key


def test_rician_labels_win_where_gaussian_ones_bend():
    claim = judged(evaluation())["noise-model"]
    mine = [part for part in claim.parts if "at the top" in part.what and "Gaussian" in part.what]
    assert mine
    assert all(part.verdict is Verdict.HOLDS for part in mine)


def test_claims_that_do_not_apply_are_left_out():
    few = evaluation().sel(estimator=[methods.MLE_MEAN, methods.MLE_RICIAN])
    keys = set(judged(few))
    assert "beats-mle" in keys
    assert not keys & {"bias", "hybrid", "own-weight", "blend", "vivo", "variants", "absolute"}


def test_a_study_without_special_parameters_asks_about_all():
    study = dataclasses.replace(STUDY, noise_floor=None, ill_determined=None)
    evidence = Evidence(study, dict.fromkeys(study.snrs, evaluation()))
    claims = {claim.key: claim for claim in judge(CLAIMS, evidence)}
    assert {p.what.split(": ")[0] for p in claims["noise-model"].parts} >= {
        f"SNR 15, {name}" for name in study.free
    }
    assert "misleading" not in claims


def test_numbers_carry_their_errors():
    difference = Number(5.0, 3.0) - Number(2.0, 4.0)
    assert (difference.value, difference.error) == (3.0, 5.0)
    part = below("x", Number(1.0, 0.1), Number(2.0, 0.1))
    assert part.verdict is Verdict.HOLDS
    assert part.margin == 1
    assert below("x", Number(2.0), Number(1.0)).verdict is Verdict.NOT


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, Verdict.HOLDS), (1.5, Verdict.NOT), (0.99, Verdict.NOISE)]
)
def test_between(value, verdict):
    ends = [Number(1.0, 0.01), Number(0.0, 0.01)]
    assert between("x", Number(value, 0.01), ends).verdict is verdict


def part(margin, error=0.1):
    return Part("x", "", margin, error)


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [
        ([1, 1], Verdict.HOLDS),
        ([-1, -1], Verdict.NOT),
        ([0, 0.1], Verdict.NOISE),
        ([1, -1], Verdict.PART),
        ([1, 0], Verdict.PART),
        ([-1, 0], Verdict.NOT),
        ([np.nan, np.nan], Verdict.NOISE),
    ],
)
def test_verdicts_of_claims(margins, verdict):
    claim = Claim("key", "4.1", "Something.", tuple(part(m) for m in margins))
    assert claim.verdict is verdict
    assert sum(claim.count.values()) == len(margins)


def test_an_error_that_is_no_number_decides_nothing():
    assert part(1.0, np.nan).verdict is Verdict.NOISE


def test_a_claim_needs_parts():
    with pytest.raises(ValueError, match="at least one part"):
        Claim("key", "4.1", "Something.", ())
