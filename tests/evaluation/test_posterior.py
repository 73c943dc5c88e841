"""The posterior mean against numerical integration, and as the floor of the mean squared error."""

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import special, stats

import labelwise as lw
from helpers import BlackBox, Offset
from labelwise.evaluation.posterior import PosteriorMean, posterior_quantiles
from labelwise.models.evaluate import signals
from labelwise.priors import Empirical, Uniform
from labelwise.types import Status

KEY = jax.random.key(5)
IVIM = lw.IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8])


class Level(lw.SignalModel):
    """S = a in every measurement."""

    t: Float[Array, " M"] = lw.per_measurement()
    parameters = (lw.Parameter("a", "1", (0, 9)),)

    def signal(self, a):
        return a + 0 * self.t


LEVEL = Level([0.0, 1.0, 2.0])
PRIOR = Uniform({"a": (0.5, 2.0)})


def simulated(model, noise, prior, sigma, n, key=KEY):
    first, second = jax.random.split(key)
    params = prior.sample(first, n)
    clean = signals(model, params).astype(np.float32)
    return np.asarray(noise.sample(second, clean, np.float32(sigma))), params


@pytest.mark.parametrize("noise", [lw.Gaussian(), lw.Rician()])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_agrees_with_the_integral_over_the_prior(noise, sigma):
    data, _ = simulated(LEVEL, noise, PRIOR, sigma, 40)
    estimate = PosteriorMean(LEVEL, noise, PRIOR, draws=50_000)(data, sigma)
    a = np.linspace(0.5, 2.0, 20_001)
    if isinstance(noise, lw.Gaussian):
        logs = stats.norm.logpdf(data[:, :, None], a, sigma).sum(axis=1)
    else:
        z = data[:, :, None].astype(float) * a / sigma**2
        logs = (np.log(special.ive(0, z)) - (data[:, :, None] - a) ** 2 / 2 / sigma**2).sum(axis=1)
    weight = np.exp(logs - logs.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    mean = weight @ a
    spread = np.sqrt(weight @ a**2 - mean**2)
    off = (estimate.values[:, 0] - mean) / estimate.stats["monte_carlo_error"][:, 0]
    assert np.sqrt(np.mean(off**2)) < 2.5  # the same draws for all: errors are correlated
    assert estimate.values[:, 0] == pytest.approx(mean, abs=0.06 * spread.mean())
    assert estimate.stats["posterior_std"][:, 0] == pytest.approx(spread, rel=0.05)
    assert np.all(estimate.status == Status.PREDICTED)


def test_monte_carlo_error_says_how_other_draws_differ():
    data, _ = simulated(LEVEL, lw.Gaussian(), PRIOR, 0.1, 20)
    runs = [
        PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, 2000, jax.random.key(n))(data, 0.1)
        for n in range(40)
    ]
    spread = np.std([run.values for run in runs], axis=0)
    error = np.mean([run.stats["monte_carlo_error"] for run in runs], axis=0)
    assert np.median(spread / error) == pytest.approx(1, abs=0.2)


def test_no_smaller_error_than_the_posterior_means():
    data, truth = simulated(IVIM, lw.Rician(), Uniform.paper(), 1 / 15, 600)
    mean = PosteriorMean(IVIM, lw.Rician(), Uniform.paper(), draws=20_000)(data, 1 / 15)
    fit = lw.MaximumLikelihood(IVIM, lw.Rician())(data, 1 / 15)
    found = np.isfinite(fit.values).all(axis=1)
    error = np.mean((mean.values - truth)[found] ** 2, axis=0)
    assert np.all(error < np.mean((fit.values - truth)[found] ** 2, axis=0))
    expected = np.mean(mean.stats["posterior_std"] ** 2, axis=0)
    assert error == pytest.approx(expected, rel=0.2)  # on its own prior it knows its own error


@pytest.mark.parametrize("draws", [5000, 30_000])
def test_weights_are_the_likelihoods_of_the_draws(draws):
    """By hand, of one tile of draws and of several."""
    prior = Empirical(np.array([[1.0], [2.0]]), ("a",))
    estimator = PosteriorMean(LEVEL, lw.Gaussian(), prior, draws=draws)
    estimate = estimator(np.full((1, 3), 1.45), 0.5)
    draws = np.asarray(prior.sample(jax.random.key(0), draws))[:, 0]
    weight = np.exp(-3 * (1.45 - draws) ** 2 / 2 / 0.25)
    assert estimate.values[0, 0] == pytest.approx(np.average(draws, weights=weight), rel=1e-5)
    assert estimate.stats["effective_sample_size"][0] == pytest.approx(
        weight.sum() ** 2 / (weight**2).sum(), rel=1e-4
    )


def test_the_effective_sample_size_holds_across_tiles():
    """The best draw for a narrow likelihood comes late; the sums before it must fade."""
    estimator = PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=40_000)
    draws = PRIOR.sample(jax.random.key(0), 40_000)[:, 0].astype(float)
    data = np.linspace(0.6, 1.9, 20)
    weight = np.exp(-3 * (data[:, None] - draws) ** 2 / 2 / 2e-4**2)
    estimate = estimator(np.repeat(data[:, None], 3, axis=1), 2e-4)
    expected = weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1)
    assert estimate.stats["effective_sample_size"] == pytest.approx(expected, rel=0.02)


def test_a_signal_far_from_the_prior_gets_the_nearest_draw():
    """Padding of the last tile, whose signal is 0, must not count as the likeliest draw."""
    estimate = PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=1000)(np.full((1, 3), 0.01), 0.01)
    assert estimate.values[0, 0] == pytest.approx(0.5, abs=0.01)
    assert estimate.status[0] == Status.PREDICTED


def test_without_information_it_is_the_prior():
    estimator = PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=10_000)
    estimate = estimator(np.ones((1, 3)), 1e4)
    assert estimate.stats["effective_sample_size"][0] == pytest.approx(10_000, rel=1e-3)
    assert estimate.values[0, 0] == pytest.approx(1.25, abs=0.02)
    assert estimate.stats["posterior_std"][0, 0] == pytest.approx(1.5 / np.sqrt(12), rel=0.02)


def test_permuting_voxels_permutes_estimates():
    data, _ = simulated(LEVEL, lw.Rician(), PRIOR, 0.2, 300)
    sigma = np.linspace(0.1, 0.4, 300)
    estimator = PosteriorMean(LEVEL, lw.Rician(), PRIOR, draws=5000)
    order = np.random.default_rng(0).permutation(300)
    straight, permuted = estimator(data, sigma), estimator(data[order], sigma[order])
    assert permuted.values == pytest.approx(straight.values[order], rel=1e-5)
    alone = estimator(data[7:8], sigma[7])
    assert alone.values == pytest.approx(straight.values[7:8], rel=1e-5)


def test_sigma_per_measurement_weighs_measurements():
    estimator = PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=20_000)
    data = np.array([[0.7, 1.8, 1.8]])
    assert estimator(data, np.array([[0.02, 2.0, 2.0]])).values[0, 0] == pytest.approx(
        0.7, abs=0.02
    )
    assert estimator(data, np.array([[2.0, 0.03, 0.03]])).values[0, 0] > 1.7


def test_bad_voxels_are_nan_with_the_fitters_status_and_harm_no_other():
    data = np.full((6, 3), 1.2)
    data[0] = 0
    data[1, 1] = np.nan
    data[2, 0] = -1
    data[3, 2] = np.inf
    sigma = np.array([0.1, 0.1, 0.1, 0.1, -1.0, 0.1])
    estimate = PosteriorMean(LEVEL, lw.Rician(), PRIOR, draws=2000)(data, sigma)
    assert estimate.status.tolist() == [
        Status.ALL_ZERO,
        Status.NOT_FINITE,
        Status.NEGATIVE,
        Status.NOT_FINITE,
        Status.BAD_SIGMA,
        Status.PREDICTED,
    ]
    assert np.isnan(estimate.values[:5]).all()
    assert estimate.values[5, 0] == pytest.approx(1.2, abs=0.05)
    assert all(np.isfinite(rows[5]).all() for rows in estimate.stats.values())


def test_nothing_but_bad_voxels_is_fine():
    estimate = PosteriorMean(LEVEL, lw.Rician(), PRIOR, draws=10)(np.zeros((2, 3)), 0.1)
    assert estimate.values.shape == (2, 1)
    assert np.isnan(estimate.values).all()


def test_a_signal_beyond_float32_is_lost_not_nan_with_a_good_status():
    estimate = PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=10)(np.full((1, 3), 1e30), 1e-3)
    assert estimate.status[0] == Status.NOT_CONVERGED


def test_many_measurements_are_added_in_groups():
    model = Level(np.zeros(37))
    data, _ = simulated(model, lw.Gaussian(), PRIOR, 1.0, 5)
    estimate = PosteriorMean(model, lw.Gaussian(), PRIOR, draws=50_000)(data, 1.0)
    inside = stats.truncnorm
    mean, std = data.mean(axis=1), 1 / np.sqrt(37)
    expected = inside.mean((0.5 - mean) / std, (2.0 - mean) / std, mean, std)
    assert estimate.values[:, 0] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": Uniform({"b": (0, 1)})}, "draws b, but the model's parameters are a"),
        ({"draws": 0}, "at least 1"),
    ],
)
def test_refuses(change, message):
    arguments = {"model": LEVEL, "noise": lw.Gaussian(), "prior": PRIOR, "draws": 10} | change
    with pytest.raises(ValueError, match=message):
        PosteriorMean(**arguments)


@pytest.mark.parametrize(
    ("signal", "sigma", "message"),
    [
        (np.ones((2, 4)), 1.0, r"expected \(N, 3\)"),
        (np.ones((2, 3)), np.ones(3), r"sigma: expected a number, \(2,\)"),
    ],
)
def test_refuses_shapes(signal, sigma, message):
    with pytest.raises(ValueError, match=message):
        PosteriorMean(LEVEL, lw.Gaussian(), PRIOR, draws=10)(signal, sigma)


# --- quantiles


def integrated(density, values, levels):
    """Quantiles (N, Q) of densities (N, n) on equidistant values (n,)."""
    below = np.cumsum(density, axis=1)
    middle = (below - density / 2) / below[:, -1:]
    return np.stack([np.interp(levels, each, values) for each in middle])


@pytest.mark.parametrize("noise", [lw.Gaussian(), lw.Rician()])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_quantiles_agree_with_the_integral_over_the_prior(noise, sigma):
    data, _ = simulated(LEVEL, noise, PRIOR, sigma, 30)
    levels = (0.025, 0.5, 0.975)
    found, size = posterior_quantiles(LEVEL, noise, PRIOR, data, np.full(30, sigma), levels)
    a = np.linspace(0.5, 2.0, 20_001)
    nll = noise.nll(a, data[:, :, None].astype(float), sigma)
    nll = np.sum(np.asarray(nll, float), axis=1)
    expected = integrated(np.exp(nll.min(axis=1, keepdims=True) - nll), a, levels)
    width = expected[:, -1:] - expected[:, :1]
    assert size.min() >= 4000
    np.testing.assert_allclose((found[:, 0] - expected) / width, 0, atol=0.03)


def test_quantiles_know_no_more_than_a_ratio_to_a_reference():
    """With a range of sigma, signals and sigma of any unit have the same posterior."""
    model, noise = lw.ADC([0.0, 0.5, 1.0]), lw.Gaussian()
    prior, span = Uniform({"S0": (0.8, 1.2), "ADC": (0.2, 3.0)}), (0.02, 0.1)
    data, _ = simulated(model, noise, prior, 0.05, 20)
    sigma, levels = np.full(20, 0.05), (0.16, 0.84)

    def found(factor, **options):
        data_of = data * factor, sigma * factor
        return posterior_quantiles(model, noise, prior, *data_of, levels, **options)[0]

    ours = found(1, sigma_range=span)
    np.testing.assert_allclose(found(8, sigma_range=span)[:, 1], ours[:, 1], atol=0.02)
    # S0 of this voxel and its sigma, by the integral over both and ADC
    s0, adc = np.linspace(0.5, 1.6, 401), np.linspace(0.2, 3.0, 301)
    clean = s0[:, None, None] * np.exp(-adc[:, None] * np.array([0.0, 0.5, 1.0]))
    nll = np.sum((data[:, None, None] - clean) ** 2, axis=-1) / (2 * 0.05**2)
    density = np.exp(nll.min(axis=(1, 2), keepdims=True) - nll)
    shared = np.minimum(1.2 / s0, 0.1 / 0.05) - np.maximum(0.8 / s0, 0.02 / 0.05)
    density *= np.maximum(shared, 0)[:, None]
    for index, (axis, values) in enumerate([(2, s0), (1, adc)]):
        expected = integrated(density.sum(axis=axis), values, levels)
        np.testing.assert_allclose(ours[:, index], expected, atol=0.01)


def test_quantiles_of_a_model_that_nothing_scales():
    model, noise = Offset([0.0, 1.0, 2.0]), lw.Gaussian()
    prior = Uniform.typical(model)
    data, _ = simulated(model, noise, prior, 0.1, 20)
    found, _ = posterior_quantiles(model, noise, prior, data, np.full(20, 0.1), (0.1, 0.9))
    a, b = (np.linspace(*limits, 301) for limits in prior.ranges)
    clean = a[:, None, None] + b[:, None] * np.array([0.0, 1.0, 2.0])
    nll = np.sum((data[:, None, None] - clean) ** 2, axis=-1) / (2 * 0.1**2)
    density = np.exp(nll.min(axis=(1, 2), keepdims=True) - nll)
    for index, (axis, values) in enumerate([(2, a), (1, b)]):
        expected = integrated(density.sum(axis=axis), values, (0.1, 0.9))
        np.testing.assert_allclose(found[:, index], expected, atol=0.01)


def test_quantiles_are_those_of_parameters_for_which_the_equation_holds():
    model, noise = lw.Kurtosis([0.0, 0.5, 1.0, 2.0]), lw.Gaussian()
    prior, sigma, levels = Uniform.typical(model), 0.05, (0.1, 0.5, 0.9)
    data = np.array([[1.0, 0.5, 0.3, 0.2]], np.float32)
    found, _ = posterior_quantiles(model, noise, prior, data, np.full(1, sigma), levels)
    draws = prior.sample(jax.random.key(1), 400_000).astype(float)
    nll = np.sum((np.asarray(signals(model, draws)) - data) ** 2, axis=1) / (2 * sigma**2)
    for index, values in enumerate(draws.T):
        order = np.argsort(values)
        share = np.cumsum(np.exp(nll.min() - nll)[order])
        expected = values[order][np.searchsorted(share / share[-1], levels)]
        np.testing.assert_allclose(found[0, index], expected, rtol=0.02)


def test_quantiles_of_a_black_box_or_another_prior_are_refused():
    data, sigma = np.ones((1, 3)), np.ones(1)
    box = BlackBox([0.0, 0.5, 1.0])
    with pytest.raises(lw.InputError, match="BlackBox: a black box has no quantiles"):
        posterior_quantiles(box, lw.Rician(), Uniform.typical(box), data, sigma, (0.5,))
    with pytest.raises(lw.InputError, match="prior: expected a uniform one of a, got"):
        posterior_quantiles(
            LEVEL, lw.Rician(), Uniform.typical(lw.ADC([0, 1])), data, sigma, (0.5,)
        )
