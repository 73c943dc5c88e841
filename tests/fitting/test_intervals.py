"""Confidence intervals by profile likelihood, beside brute force and repeats."""

import jax
import numpy as np
import pytest
from scipy.special import ive

import labelwise as lw
from helpers import BlackBox, assert_same
from labelwise.fitting import MaximumLikelihood
from labelwise.fitting.batching import solve
from labelwise.fitting.newton import Problem
from labelwise.simulation import simulate

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000
SHORT = np.array([0, 0.1, 0.4, 0.8])
LIMIT = 3.8414588


def repeats(model, truth, sigma, count, seed=0, noise=None):
    clean = np.tile(np.asarray(model.signal(*truth), np.float32), (count, 1))
    noise = noise or lw.Rician()
    return np.array(noise.sample(jax.random.key(seed), clean, np.float32(sigma)))


def rician_nll(signal, data, sigma):
    log_bessel = np.log(ive(0, data * signal / sigma**2))
    return np.sum(0.5 * ((data - signal) / sigma) ** 2 - log_bessel, axis=-1)


@pytest.fixture(scope="module")
def ivim():
    model = lw.IVIM(B)
    voxels = simulate(
        model, lw.Rician(), lw.Uniform.typical(model), (1 / 40, 1 / 10), 300, jax.random.key(2)
    )
    fitter = MaximumLikelihood(model, lw.Rician(), intervals=0.95)
    return fitter, voxels, fitter(voxels.signal, voxels.sigma)


def test_ends_are_those_of_a_fine_grid():
    model, sigma = lw.ADC(SHORT), 1 / 15
    signal = repeats(model, (1.0, 1.3), sigma, 20)
    stats = MaximumLikelihood(model, lw.Rician(), intervals=0.95)(signal, sigma).stats
    s0, adc = np.linspace(0.6, 1.5, 1500), np.linspace(0.01, 4, 1500)
    for voxel, low, high in zip(signal, stats["low"], stats["high"], strict=True):
        grid = s0[:, None, None] * np.exp(-SHORT * adc[:, None])
        nll = rician_nll(grid, voxel, sigma)
        for index, values in enumerate((s0, adc)):
            inside = values[2 * (nll.min(axis=1 - index) - nll.min()) <= LIMIT]
            step = values[1] - values[0]
            width = inside[-1] - inside[0]
            close = 2 * step + 0.01 * width
            assert low[index] == pytest.approx(max(inside[0], adc[0] * index), abs=close)
            assert high[index] == pytest.approx(inside[-1], abs=close)


def test_no_other_optimum_is_likely_beyond_an_end(ivim):
    fitter, voxels, estimate = ivim
    scale = np.max(voxels.signal, axis=1)
    lower, upper = fitter._box(scale)
    rng, starts = np.random.default_rng(0), 10
    highest = np.where(np.isinf(upper), 1.3, upper)
    q = lower[:, None] + (highest - lower)[:, None] * rng.uniform(size=(4, starts, len(scale)))
    for index, parameter in enumerate(fitter.parameters):
        for name in ("low", "high"):
            end = estimate.stats[name]
            value = end + 0.05 * (end - estimate.values)
            value = fitter._coordinates.of(fitter._scaled(value.T, 1 / scale))[index]
            value = np.clip(value, lower[index], upper[index]).astype(np.float32)
            free = ~np.isin(end[:, index], np.float32(parameter.bounds))
            low, high = lower.copy(), upper.copy()
            low[index] = high[index] = value
            sigma = (voxels.sigma / scale)[None]
            problem = Problem(np.ascontiguousarray(voxels.signal.T) / scale, sigma, low, high)
            begin = np.clip(q, low[:, None], high[:, None]).astype(np.float32)
            found, _ = solve(fitter._engine.newton, begin, problem, fitter._stop)
            excess = 2 * (found.nll - estimate.stats["nll"])[free]
            assert np.mean(excess < 0.97 * LIMIT) < 0.04


def test_coverage():
    model, truth = lw.T2(np.arange(10, 170, 20.0)), (1.0, 60.0)
    signal = repeats(model, truth, 1 / 20, 3000, seed=5)
    stats = MaximumLikelihood(model, lw.Rician(), intervals=0.95)(signal, 1 / 20).stats
    share = np.mean((stats["low"] <= truth) & (truth <= stats["high"]), axis=0)
    np.testing.assert_allclose(share, 0.95, atol=0.016)  # four standard errors
    narrow = MaximumLikelihood(model, lw.Rician(), intervals=0.68)(signal, 1 / 20).stats
    share = np.mean((narrow["low"] <= truth) & (truth <= narrow["high"]), axis=0)
    np.testing.assert_allclose(share, 0.68, atol=0.034)


def test_estimates_lie_inside_and_ends_within_the_bounds(ivim):
    fitter, _, estimate = ivim
    low, high = estimate.stats["low"], estimate.stats["high"]
    bounds = np.array([p.bounds for p in fitter.parameters], np.float32).T
    assert np.all((bounds[0] <= low) & (low <= estimate.values))
    assert np.all((estimate.values <= high) & (high <= bounds[1]))
    assert np.isfinite([low, high]).all()
    limit = (high == bounds[1]).mean(axis=0)
    assert limit[3] > 0.3  # D_fast has no upper limit in many voxels
    on_bound = estimate.stats["on_bound"] > 0
    assert on_bound.any()
    np.testing.assert_array_equal(high[on_bound], np.broadcast_to(bounds[1], high.shape)[on_bound])


@pytest.mark.parametrize(
    ("model", "truth", "bounds"),
    [
        (lw.IVIM(B), (1.0, 0.0, 1.2, 50.0), {"f": (0.0, 1.0)}),
        (lw.T2Biexponential(np.arange(8, 328, 16.0)), (1.0, 0.0, 15.0, 90.0), {}),
    ],
    ids=["ivim", "t2_biexponential"],
)
def test_where_a_bound_takes_the_effect_of_another_parameter(model, truth, bounds):
    """Where f is 0, its compartment has no effect: the ends of S0 were 0 and infinity."""
    signal = repeats(model, truth, 0.1, 200)
    estimate = MaximumLikelihood(model, lw.Rician(), bounds=bounds, intervals=0.95)(signal, 0.1)
    assert (estimate["f"] == 0).mean() > 0.1
    assert (estimate.low["S0"] > 0.3).all()
    assert (estimate.high["S0"] < 4).all()


def test_intervals_do_not_change_the_fit(ivim):
    fitter, voxels, estimate = ivim
    plain = MaximumLikelihood(fitter.model, fitter.noise)(voxels.signal, voxels.sigma)
    np.testing.assert_array_equal(plain.values, estimate.values)
    np.testing.assert_array_equal(plain.status, estimate.status)
    assert "low" not in plain.stats


def test_where_two_optima_are_nearly_as_likely_the_interval_holds_both():
    model = lw.IVIM(B)
    truth = (1.0, 0.06, 0.8, 12.0)
    signal = repeats(model, truth, 1 / 10, 1500, seed=1)
    stats = MaximumLikelihood(model, lw.Rician(), intervals=0.95)(signal, 1 / 10).stats
    ambiguous = stats["runner_up"] < 3.84
    assert ambiguous.sum() > 20
    held = (stats["low"] <= truth) & (truth <= stats["high"])
    assert np.all(held[ambiguous].mean(axis=0) > 0.9)


def test_a_voxel_does_not_depend_on_its_neighbours(ivim):
    fitter, voxels, estimate = ivim
    order = np.random.default_rng(0).permutation(len(voxels.signal))
    shuffled = fitter(voxels.signal[order], voxels.sigma[order])
    one = MaximumLikelihood(fitter.model, fitter.noise, intervals=0.95, threads=1)
    cut = one(voxels.signal[:77], voxels.sigma[:77])
    for name in ("low", "high"):
        assert shuffled.stats[name].tobytes() == estimate.stats[name][order].tobytes()
        assert cut.stats[name].tobytes() == estimate.stats[name][:77].tobytes()


def test_a_black_box_has_the_intervals_of_the_equation():
    signal = repeats(lw.ADC(SHORT), (1.0, 1.3), 1 / 20, 60)
    fits = [
        MaximumLikelihood(model, lw.Rician(), intervals=0.95, dtype=np.float64)(signal, 1 / 20)
        for model in (lw.ADC(SHORT), BlackBox(SHORT))
    ]
    width = fits[0].stats["high"] - fits[0].stats["low"]
    for name in ("low", "high"):
        apart = np.abs(fits[0].stats[name] - fits[1].stats[name]) / width
        assert apart.max() < 0.01


def test_left_out_measurements_have_no_effect():
    model = lw.ADC([0, 0, 0.1, 0.4, 0.8, 0.8])
    signal = repeats(model, (1.0, 1.3), 1 / 20, 40)
    sigma = np.full(signal.shape, 1 / 20)
    sigma[:, [1, 3]] = np.inf
    fitter = MaximumLikelihood(model, lw.Rician(), intervals=0.95)
    spoilt = signal.copy()
    spoilt[:, [1, 3]] = 50
    assert_same(fitter(signal, sigma), fitter(spoilt, sigma))
    fewer = MaximumLikelihood(lw.ADC([0, 0.1, 0.8, 0.8]), lw.Rician(), intervals=0.95)
    expected = fewer(np.delete(signal, [1, 3], axis=1), 1 / 20).stats
    found = fitter(spoilt, sigma).stats
    width = expected["high"] - expected["low"]
    for name in ("low", "high"):
        assert np.max(np.abs(found[name] - expected[name]) / width) < 0.02


def test_failed_voxels_have_none_and_silent_ones_the_bounds():
    model = lw.ADC(SHORT)
    signal = repeats(model, (1.0, 1.3), 1 / 20, 4)
    signal[1], signal[2] = np.nan, 0.02
    estimate = lw.fit(signal, model, [1 / 20, 1 / 20, 1.0, 1 / 20], intervals=0.95)
    low, high = estimate.stats["low"], estimate.stats["high"]
    assert np.isnan([low[1], high[1]]).all()
    assert estimate.status[2] == lw.Status.NO_SIGNAL
    adc = np.float32(model.parameters[1].bounds)
    assert low[2, 0] == 0
    assert 0 < high[2, 0] < 10
    assert (low[2, 1], high[2, 1]) == tuple(adc)
    assert np.isfinite(low[[0, 3]]).all()


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_the_level_is_between_0_and_1(level):
    with pytest.raises(lw.InputError, match="between 0 and 1"):
        MaximumLikelihood(lw.ADC(SHORT), lw.Rician(), intervals=level)
