"""Intervals by networks: what they hold, whose they are, and how they are kept in files."""

import dataclasses
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from helpers import BlackBox
from labelwise import ADC, IVIM, Gaussian, train
from labelwise.evaluation.posterior import posterior_quantiles
from labelwise.evaluation.scores import interval_score
from labelwise.io.files import read_arrays, write_arrays
from labelwise.networks.intervals import Heads, IntervalNetwork
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.mlp import Architecture
from labelwise.networks.network import blend, load, with_interval
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, InputError, Status

B = np.array([0.0, 0.0, 0.3, 0.6, 1.0])
MODEL, NOISE = ADC(B), Gaussian()
PRIOR = Uniform.typical(MODEL)
SIGMA = (1 / 50, 1 / 10)
RECIPE = Recipe.every_level(signals=20_000, epochs=16, restarts=1, warmup=100)


class GridProfile:
    """Profile-likelihood ends of S0 and ADC under Gaussian noise, on a grid."""

    def __init__(self, failed=lambda signal: np.zeros(len(signal), bool)):
        self.failed = failed
        self.calls = 0

    def __call__(self, signal, sigma):
        self.calls += 1
        adc = np.linspace(*MODEL.parameters[1].bounds, 400)
        shapes = np.exp(-B[:, None] * adc)
        size = np.sum(shapes**2, axis=0)
        ends = np.empty((2, len(signal), 2), np.float32)
        for first in range(0, len(signal), 500):
            rows = slice(first, first + 500)
            data, noise = signal[rows], sigma[rows, None]
            s0 = np.maximum(data @ shapes / size, 0)
            total = np.sum(data**2, axis=1, keepdims=True)
            best = (total - 2 * s0 * (data @ shapes) + s0**2 * size) / noise**2  # for each ADC
            least = best.min(axis=1, keepdims=True)
            likely = best <= least + 3.84
            reach = np.sqrt(np.maximum(least + 3.84 - best, 0) / size) * noise  # of S0, at that ADC
            for end, of, sign in ((0, np.min, -1), (1, np.max, 1)):
                none = np.inf if end == 0 else -np.inf
                edge = np.where(likely, s0 + sign * reach, none)
                ends[end, rows, 0] = np.maximum(of(edge, axis=1), 0)
                ends[end, rows, 1] = of(np.where(likely, adc, none), axis=1)
        bad = self.failed(signal)
        ends[:, bad] = np.nan
        status = np.where(bad, Status.NOT_CONVERGED, Status.CONVERGED).astype(np.uint8)
        return Estimate(ends.mean(axis=0), status, {"low": ends[0], "high": ends[1]})


def lesson(*labels, model=MODEL, **changes):
    fixed = {"sigma": SIGMA, "recipe": RECIPE, "on_bound": "keep", "intervals": True}
    settings = fixed | changes
    return TrainingPlan(model, NOISE, PRIOR, labels=labels or (GroundTruth(),), **settings)


@pytest.fixture(scope="module")
def ends():
    """Networks of maximum likelihood and of the ground truth, both with intervals."""
    labels = MLE(MODEL, NOISE, start="search"), GroundTruth()
    return train_networks(lesson(*labels), ends=GridProfile())


@pytest.fixture(scope="module")
def voxels():
    return simulate(MODEL, NOISE, PRIOR, SIGMA, 4000, jax.random.key(9))


def share_inside(estimate, truth):
    return np.mean((estimate.stats["low"] <= truth) & (truth <= estimate.stats["high"]), axis=0)


# --- what they hold


def test_credible_intervals_are_as_good_as_those_of_the_exact_posterior(ends, voxels):
    found = ends[1](voxels.signal, voxels.sigma)
    truth = voxels.params
    assert share_inside(found, truth) == pytest.approx(0.95, abs=0.02)
    few = slice(400)
    exact, size = posterior_quantiles(
        MODEL,
        NOISE,
        PRIOR,
        voxels.signal[few],
        voxels.sigma[few],
        (0.025, 0.16, 0.84, 0.975),
        sigma_range=SIGMA,
    )
    assert size.min() > 1000
    ours = interval_score(found.stats["low"], found.stats["high"], truth)[few].mean(axis=0)
    best = interval_score(exact[..., 0], exact[..., 3], truth[few]).mean(axis=0)
    assert np.all(ours < 1.06 * best)
    sd = (exact[..., 2] - exact[..., 1]) / 2
    assert np.median(found.stats["sd"][few] / sd, axis=0) == pytest.approx(1, abs=0.1)


def test_credible_intervals_are_within_the_simulated_range(ends, voxels):
    noisy = ends[1](voxels.signal * 0 + 1, 10.0)
    for found in (ends[1](voxels.signal, voxels.sigma), noisy):
        low, high = found.stats["low"][:, 1], found.stats["high"][:, 1]
        assert np.all(low <= high)
        assert low.min() >= PRIOR.ranges[1, 0] - 1e-5
        assert high.max() <= PRIOR.ranges[1, 1] + 1e-4


@pytest.mark.parametrize("adc", [0.7, 3.7, 4.5])  # two are outside the prior
def test_confidence_intervals_hold_any_truth_in_95_percent_of_repeats(ends, adc):
    truth = (1.0, adc)
    clean = np.tile(np.asarray(MODEL.signal(*truth), np.float32), (4000, 1))
    sigma = np.full(len(clean), 1 / 20, np.float32)
    signal = np.asarray(NOISE.sample(jax.random.key(4), clean, sigma[:, None]))
    found = ends[0](signal, sigma)
    assert np.all(share_inside(found, truth) > 0.92)
    taught = GridProfile()(signal, sigma)
    for end in ("low", "high"):
        error = found.stats[end] - taught.stats[end]
        width = np.mean(taught.stats["high"] - taught.stats["low"], axis=0)
        assert np.all(np.median(np.abs(error), axis=0) < 0.15 * width)


def test_estimates_are_inside_their_intervals(ends, voxels):
    for alpha in (0.0, 0.5, 1.0):
        found = blend(*ends, alpha=alpha)(voxels.signal, voxels.sigma)
        assert np.all(share_inside(found, found.values) >= (1 if alpha == 1 else 0.985))


def test_a_black_box_has_credible_intervals(voxels):
    (network,) = train_networks(lesson(model=BlackBox(B)))
    found = network(voxels.signal, voxels.sigma)
    assert share_inside(found, voxels.params) == pytest.approx(0.95, abs=0.02)


def test_without_normalisation_and_for_one_noise_level():
    plan = lesson(sigma=1 / 20, normalise=False)
    (network,) = train_networks(plan)
    some = simulate(MODEL, NOISE, PRIOR, 1 / 20, 4000, jax.random.key(9))
    found = network(some.signal, some.sigma)
    assert share_inside(found, some.params) == pytest.approx(0.95, abs=0.02)


# --- ends near bounds


def test_an_end_on_a_bound_is_exactly_the_bound():
    """The logarithm of a bound in float32 gave 2.0000002 for 2, above an estimate of 2."""
    model = IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000)
    recipe = Recipe.every_level(signals=4000, epochs=3)
    network = train(model, snr=(10, 40), label="mle-rician", recipe=recipe, intervals=True)
    drawn = simulate(
        model, network.noise, Uniform.typical(model), (1 / 40, 1 / 10), 4000, jax.random.key(3)
    )
    found = network(drawn.signal, drawn.sigma)
    for ends, side in ((found.low, 0), (found.high, 1)):
        bound = np.float32(model.parameters[3].bounds[side])
        near = np.abs(ends["D_fast"] - bound) < 1e-4 * bound
        assert near.any()
        np.testing.assert_array_equal(ends["D_fast"][near], bound)


def test_an_end_near_a_bound_is_on_it():
    heads = Heads(
        "confidence", Architecture(2, 6, 4), (0.0, 0.0), (1.0, 2.0), (False, True), (True, True)
    )
    weights = heads.initial(np.random.default_rng(0))
    (matrix, _) = weights[-1]
    raw = np.array([[-9.0, 0.0, -9.0], [0.0, 3.0, 2.0]]).reshape(6, 1).astype(np.float32)
    weights = (*weights[:-1], (0 * matrix, raw))
    low, high, _ = np.asarray(heads.ends(weights, np.zeros((2, 1), np.float32)))[..., 0]
    assert (low[0], high[0]) == (0.0, 1.0)
    shares = np.cumsum(np.exp([0, 3, 2]) / np.exp([0, 3, 2]).sum())
    assert [low[1], high[1]] == pytest.approx(np.exp(2 * shares[:2]), rel=1e-5)
    unlimited = replace(heads, snapped=(False, False))
    low, high, _ = np.asarray(unlimited.ends(weights, np.zeros((2, 1), np.float32)))[..., 0]
    assert 0 < low[0] < 0.01 < 0.99 < high[0] < 1


def test_a_margin_is_clipped():
    heads = Heads(
        "credible", Architecture(2, 6, 4), (1.0,), (3.0,), (False,), (False,), margin=0.05
    )
    weights = heads.initial(np.random.default_rng(0))
    raw = np.array([0.0, 9.0, 9.0, 9.0, 9.0, 0.0], np.float32)[:, None]
    weights = (*weights[:-1], (0 * weights[-1][0], raw))
    shares = np.asarray(heads(weights, np.zeros((2, 1), np.float32)))[0, :, 0]
    steps = np.cumsum(np.exp(raw[:, 0]) / np.exp(raw[:, 0]).sum())[:5]
    assert shares == pytest.approx(1.1 * steps - 0.05, abs=1e-6)
    ends = np.asarray(heads.quantiles(weights, np.zeros((2, 1), np.float32)))[0, :, 0]
    assert ends == pytest.approx(np.clip(1 + 2 * shares, 1, 3), abs=1e-6)
    assert (ends[0], ends[-1]) == (1, 3)


def test_shares_are_the_inverse_of_ends():
    heads = Heads("confidence", Architecture(2, 6, 4), (0, -1), (2, 3), (False, True), (True,) * 2)
    ends = np.array([[[0.5, 1.5], [np.exp(0), np.exp(5)]]])
    np.testing.assert_allclose(heads.shares(ends), [[[0.25, 0.75], [0.25, 1.0]]])


# --- whose they are


def test_the_kind_follows_the_label(ends, voxels):
    both = blend(*ends)
    data = voxels.signal[:50], voxels.sigma[:50]
    mle, gt = (end(*data).stats for end in ends)
    assert "sd" not in mle
    kinds = {1.0: "confidence", 0.0: "credible", 0.25: "blend"}
    for alpha, kind in kinds.items():
        network = both.with_alpha(alpha)
        assert network.interval_kinds == {"S0": kind, "ADC": kind}
        found = network(*data).stats
        assert ("sd" in found) == (alpha == 0)
        for name in ("low", "high"):
            mixed = alpha * mle[name] + (1 - alpha) * gt[name]
            np.testing.assert_allclose(found[name], mixed, rtol=1e-4)
    apart = both.with_alpha({"S0": 1.0, "ADC": 0.0})
    assert apart.interval_kinds == {"S0": "confidence", "ADC": "credible"}
    found = apart(*data).stats
    np.testing.assert_allclose(found["low"], np.stack([mle["low"][:, 0], gt["low"][:, 1]], axis=1))
    assert np.isnan(found["sd"][:, 0]).all()
    np.testing.assert_allclose(found["sd"][:, 1], gt["sd"][:, 1])


def test_credible_ends_are_never_around_an_estimate_of_alpha_1(voxels):
    other = MLE(MODEL, NOISE, start="search", bounds={"ADC": (0.1, 3.0)})  # without intervals
    mle, gt = train_networks(lesson(other, GroundTruth()))
    both = blend(mle, gt)
    for alpha in (1.0, 0.5, (1.0, 0.0)):
        network = both.with_alpha(alpha)
        assert network.interval_kinds == {}
        assert not {"low", "high", "sd"} & set(network(voxels.signal[:9], 0.05).stats)
    assert set(both.with_alpha(0.0).interval_kinds.values()) == {"credible"}


def test_labels_without_a_promise_have_no_intervals():
    other = MLE(MODEL, NOISE, start="search", bounds={"ADC": (0.1, 3.0)})  # not the ends' bounds
    profile = GridProfile()
    (network,) = train_networks(lesson(other), ends=profile)
    assert network.interval_kinds == {}
    assert profile.calls == 0


def test_a_training_without_intervals_gives_the_same_estimates(voxels):
    recipe = dataclasses.replace(RECIPE, signals=2000, epochs=2)
    with_them, without = (
        train(MODEL, snr=(10, 50), label="gt", recipe=recipe, noise=NOISE, intervals=each)
        for each in (True, False)
    )
    assert without.interval_kinds == {}
    data = voxels.signal[:100], voxels.sigma[:100]
    assert with_them(*data).values.tobytes() == without(*data).values.tobytes()


# --- voxels without an estimate, labels without ends


def test_a_voxel_without_an_estimate_has_no_interval(ends, voxels):
    bad = np.array([np.nan, np.inf, 0.0])[:, None] * np.ones(len(B))
    found = ends[1](np.vstack([voxels.signal[:2], bad]), 0.05).stats
    alone = ends[1](voxels.signal[:2], 0.05).stats
    for name in ("low", "high", "sd"):
        assert np.isnan(found[name][2:]).all()
        assert found[name][:2].tobytes() == alone[name].tobytes()


def test_intervals_are_in_the_shape_and_unit_of_the_image(ends, voxels):
    image = 700 * voxels.signal[:12].reshape(3, 4, -1)
    found = ends[0](image, 700 * voxels.sigma[:12].reshape(3, 4)).stats["high"]
    alone = ends[0](voxels.signal[:12], voxels.sigma[:12]).stats["high"]
    np.testing.assert_allclose(found.reshape(12, 2), alone * [700, 1], rtol=1e-4)


def test_fits_without_ends_are_left_out_of_the_training():
    label = MLE(MODEL, NOISE, start="search")
    plan = lesson(label, recipe=dataclasses.replace(RECIPE, signals=2000, epochs=2))
    (network,) = train_networks(plan, ends=GridProfile(lambda signal: signal[:, 0] > 1))
    assert np.isfinite(network.members[0].interval.record["validation"]["loss"])
    with pytest.raises(InputError, match="no ends; train without intervals"):
        train_networks(plan, ends=GridProfile(lambda signal: signal[:, 0] > -9))


# --- in files


def test_a_file_holds_them(ends, voxels, tmp_path):
    both = blend(*ends, alpha=0.5)
    both.save(path := tmp_path / "net.safetensors")
    again = load(path)
    data = voxels.signal[:50], voxels.sigma[:50]
    for name, rows in both(*data).stats.items():
        assert again(*data).stats[name].tobytes() == rows.tobytes()
    again.save(other := tmp_path / "again.safetensors")
    assert other.read_bytes() == path.read_bytes()
    records = [each["interval"]["training"] for each in read_arrays(path)[1]["networks"]]
    assert [each["kind"] for each in records] == ["confidence", "credible"]
    assert {each["level"] for each in records} == {0.95}


@pytest.mark.parametrize(
    "change",
    [
        lambda heads: heads.update(kind="exact"),
        lambda heads: heads.update(low=[0.0]),
        lambda heads: heads["architecture"].update(width=7),
        lambda heads: heads.pop("snapped"),
        lambda heads: heads.update(margin="wide"),
    ],
)
def test_damaged_intervals_are_refused(ends, change, tmp_path):
    ends[1].save(path := tmp_path / "net.safetensors")
    arrays, header = read_arrays(path)
    header = json.loads(json.dumps(header))
    change(header["networks"][0]["interval"]["heads"])
    write_arrays(path, arrays, header)
    with pytest.raises(InputError, match="damaged"):
        load(path)


def test_random_intervals_have_ordered_ends_within_the_bounds(ends, voxels):
    heads = ends[1].members[0].interval.heads
    weights = jax.tree.map(lambda each: 30 * each, heads.initial(np.random.default_rng(0)))
    wild = with_interval(ends[1], IntervalNetwork(heads, weights, {}))
    found = wild(voxels.signal, voxels.sigma).stats
    low, high = np.array([parameter.bounds for parameter in MODEL.parameters]).T
    assert np.all((low <= found["low"]) & (found["low"] <= found["high"]))
    assert np.all(found["high"] <= high)
