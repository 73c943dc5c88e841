"""The noise models against scipy.stats, scipy.special, numerical integration and themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ive

from labelwise import Gaussian, NoncentralChi, Rician
from labelwise.noise import (
    NOISES as BY_NAME,
)
from labelwise.noise import (
    bessel_ratio,
    bessel_ratio_slope,
    describe_noise,
    evaluate,
    log_i0e,
    name_of_noise,
    noise_from,
    noise_named,
)
from labelwise.types import InputError, sigma_of_voxels

NOISES = [Gaussian(), Rician()]
SNRS = [0.0, 0.3, 1.0, 2.5, 10.0, 300.0]
Z = np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 400), [3.75, 29.999, 30.001]])

each_noise = pytest.mark.parametrize("noise", NOISES, ids=name_of_noise)
each_snr = pytest.mark.parametrize("snr", SNRS)
cheap = settings(deadline=None, derandomize=True, max_examples=60)


def scipy_log_density(noise, signal, data, sigma):
    if isinstance(noise, Gaussian):
        return stats.norm.logpdf(data, signal, sigma)
    return stats.rice.logpdf(data, signal / sigma, scale=sigma)


def quadrature(noise, signal, sigma, function):
    """∫ function(data) p(data) d data by the trapezium rule, p from scipy, far into both tails."""
    low = signal - 12 * sigma if isinstance(noise, Gaussian) else max(0.0, signal - 12 * sigma)
    data = np.linspace(low, signal + 12 * sigma, 40_001)[1:]
    return np.trapezoid(
        function(data) * np.exp(scipy_log_density(noise, signal, data, sigma)), data
    )


@each_noise
@cheap
@given(snr=st.floats(0.0, 300.0), offset=st.floats(-20.0, 20.0), sigma=st.floats(0.1, 10.0))
def test_log_density_is_scipys(noise, snr, offset, sigma):
    signal, data = snr * sigma, abs(snr + offset) * sigma + 1e-3
    with jax.enable_x64(True):
        ours = noise.log_density(jnp.float64(signal), jnp.float64(data), jnp.float64(sigma))
    expected = scipy_log_density(noise, signal, data, sigma)
    assert float(ours) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@each_noise
@each_snr
def test_log_density_in_float32_is_scipys(noise, snr):
    sigma = 3.0
    data = sigma * np.abs(snr + np.linspace(-4, 4, 41)) + 0.01
    ours = noise.log_density(jnp.float32(snr * sigma), jnp.float32(data), jnp.float32(sigma))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(
        ours, scipy_log_density(noise, snr * sigma, data, sigma), rtol=1e-4, atol=3e-4
    )


@each_noise
@each_snr
def test_density_integrates_to_one(noise, snr):
    sigma = 2.0
    with jax.enable_x64(True):
        data = np.linspace(-15 if snr < 15 else snr - 15, snr + 15, 60_001) * sigma
        density = np.exp(noise.log_density(snr * sigma, jnp.asarray(data), sigma))
    assert np.trapezoid(density, data) == pytest.approx(1, abs=1e-6)


@each_noise
@each_snr
def test_mean_is_the_integral(noise, snr):
    sigma = 2.0
    with jax.enable_x64(True):
        ours = float(noise.mean(jnp.float64(snr * sigma), jnp.float64(sigma)))
    assert ours == pytest.approx(quadrature(noise, snr * sigma, sigma, lambda m: m), rel=1e-6)


@each_noise
@pytest.mark.parametrize("snr", [0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 20.0, 100.0])
def test_information_is_the_variance_of_the_score(noise, snr):
    sigma = 2.0
    signal = snr * sigma

    def squared_score(data):
        if isinstance(noise, Gaussian):
            return ((data - signal) / sigma**2) ** 2
        z = data * signal / sigma**2
        return ((data * ive(1, z) / ive(0, z) - signal) / sigma**2) ** 2

    with jax.enable_x64(True):
        ours = float(noise.information(jnp.float64(signal), jnp.float64(sigma)))
    expected = quadrature(noise, signal, sigma, squared_score)
    assert ours * sigma**2 == pytest.approx(expected * sigma**2, abs=5e-6)


@each_noise
@given(snr=st.floats(0, 1e4), sigma=st.floats(0.1, 10.0))
@cheap
def test_magnitudes_never_know_more_than_the_complex_signal(noise, snr, sigma):
    with jax.enable_x64(True):
        information = float(noise.information(jnp.float64(snr * sigma), jnp.float64(sigma)))
    assert -1e-9 <= information * sigma**2 <= 1 + 5e-6


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 1.5e-6), (jnp.float64, 1e-13)],
    ids=["float32", "float64"],
)
class TestBesselFunctions:
    def test_log_i0e(self, dtype, tolerance):
        with jax.enable_x64(dtype == jnp.float64):
            z = jnp.asarray(Z, dtype)
            ours = log_i0e(z)
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours, np.log(ive(0, np.asarray(z, float))), rtol=tolerance, atol=tolerance
        )

    def test_ratio(self, dtype, tolerance):
        with jax.enable_x64(dtype == jnp.float64):
            z = jnp.asarray(Z, dtype)
            ours = bessel_ratio(z)
        exact = np.asarray(z, float)
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours, ive(1, exact) / ive(0, exact), rtol=tolerance, atol=tolerance
        )

    def test_slope_of_the_ratio(self, dtype, tolerance):
        exact = np.asarray(Z)
        ratio = ive(1, exact) / ive(0, exact)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(exact < 1e-3, 0.5, 1 - ratio**2 - ratio / exact)
        with jax.enable_x64(dtype == jnp.float64):
            ours = bessel_ratio_slope(jnp.asarray(Z, dtype))
        np.testing.assert_allclose(ours, slope, rtol=0, atol=1e-6)

    def test_no_slope_is_nan(self, dtype, tolerance):
        with jax.enable_x64(dtype == jnp.float64):
            z = jnp.asarray(Z, dtype)
            slopes = [jax.vmap(jax.grad(f))(z) for f in (log_i0e, bessel_ratio)]
        assert np.isfinite(slopes).all()


@pytest.mark.parametrize("function", [log_i0e, bessel_ratio], ids=["log_i0e", "bessel_ratio"])
def test_ad_of_bessel_functions_is_finite_differences(function):
    z = np.concatenate([np.linspace(0.01, 28, 50), np.linspace(35, 300, 30)])
    with jax.enable_x64(True):
        ad = jax.vmap(jax.grad(function))(jnp.asarray(z))
        step = 1e-5 * z
        measured = (np.asarray(function(z + step)) - np.asarray(function(z - step))) / (2 * step)
    np.testing.assert_allclose(ad, measured, rtol=2e-6, atol=1e-8)


@each_noise
@cheap
@given(snr=st.floats(0.01, 200.0), offset=st.floats(-4, 4), sigma=st.floats(0.1, 10.0))
def test_score_is_the_slope_of_the_nll(noise, snr, offset, sigma):
    signal, data = snr * sigma, abs(snr + offset) * sigma
    with jax.enable_x64(True):
        score, _ = noise.score_and_curvature(jnp.float64(signal), jnp.float64(data), sigma)
        ad = jax.grad(noise.nll)(jnp.float64(signal), jnp.float64(data), sigma)
        step = 1e-5 * sigma
        above, below = (noise.nll(jnp.float64(signal + h), data, sigma) for h in (step, -step))
    assert float(score) * sigma == pytest.approx(float(ad) * sigma, rel=1e-9, abs=1e-9)
    assert float(score) * sigma == pytest.approx(float(above - below) / 2e-5, rel=1e-5, abs=1e-6)


@each_noise
def test_nll_is_the_density_but_for_terms_of_the_data(noise):
    with jax.enable_x64(True):
        signal, data = jnp.linspace(0, 30, 31)[:, None], jnp.linspace(0.1, 30, 17)
        total = noise.nll(signal, data, 1.7) + noise.log_density(signal, data, 1.7)
    np.testing.assert_allclose(total - total[0], 0, atol=1e-9)


@each_noise
@cheap
@given(signal=st.floats(0, 1e3), data=st.floats(0, 1e3), sigma=st.floats(1.0, 10.0))
def test_score_curvature_and_nll_are_finite(noise, signal, data, sigma):
    arguments = jnp.float32(signal), jnp.float32(data), jnp.float32(sigma)  # z up to 10⁶
    score, curvature = noise.score_and_curvature(*arguments)
    assert np.isfinite(float(curvature))
    assert float(curvature) * sigma**2 <= 1.001
    assert np.isfinite([float(score), float(noise.nll(*arguments))]).all()


@each_noise
def test_curvature_is_the_second_derivative_of_the_nll(noise):
    with jax.enable_x64(True):
        signal, data = jnp.linspace(0.1, 40, 50), jnp.linspace(0.3, 39, 50)
        _, curvature = noise.score_and_curvature(signal, data, 1.0)
        second = jax.vmap(jax.grad(jax.grad(noise.nll)), (0, 0, None))(signal, data, 1.0)
    np.testing.assert_allclose(curvature, second, rtol=1e-6, atol=1e-9)


@each_noise
def test_data_of_exactly_zero(noise):
    signal = jnp.array([0.0, 0.1, 5.0, 100.0])
    score, curvature = noise.score_and_curvature(signal, jnp.zeros(4), 1.0)
    np.testing.assert_allclose(noise.nll(signal, jnp.zeros(4), 1.0), signal**2 / 2)
    np.testing.assert_allclose(score, signal)
    np.testing.assert_allclose(curvature, 1)


@pytest.mark.parametrize("data", [0.0, -1.0])
def test_a_magnitude_is_never_zero_or_negative(data):
    assert Rician().log_density(1.0, data, 1.0) == -np.inf


@each_noise
@each_snr
def test_sampler_and_likelihood_agree(noise, snr):
    """The mean score under a model's own samples is zero, its mean square the information."""
    n, sigma = 200_000, 2.0
    signal = jnp.full(n, snr * sigma)
    data = noise.sample(jax.random.key(1), signal, sigma)
    with jax.enable_x64(True):
        score, _ = noise.score_and_curvature(
            jnp.asarray(np.asarray(signal), float), jnp.asarray(np.asarray(data), float), sigma
        )
        information = float(noise.information(jnp.float64(snr * sigma), sigma))
    score = np.asarray(score)
    error = max(score.std(), 1e-12) / np.sqrt(n)
    assert abs(score.mean()) < 4 * error
    assert abs((score**2).mean() - information) < 4 * (score**2).std() / np.sqrt(n) + 2e-6


@each_noise
@each_snr
def test_sampler_has_the_right_moments(noise, snr):
    n, sigma = 200_000, 2.0
    signal = snr * sigma
    data = np.asarray(noise.sample(jax.random.key(2), jnp.full(n, signal), sigma), float)
    mean = quadrature(noise, signal, sigma, lambda m: m)
    mean_square = signal**2 + (2 if noise.magnitude else 1) * sigma**2
    assert data.shape == (n,)
    assert data.mean() == pytest.approx(mean, abs=4 * sigma / np.sqrt(n))
    assert (data**2).mean() == pytest.approx(mean_square, abs=4 * (data**2).std() / np.sqrt(n))
    assert data.min() >= 0 or not noise.magnitude


@each_noise
def test_sampler_repeats_itself(noise):
    signal = jnp.linspace(0, 10, 7)
    first, second = (noise.sample(jax.random.key(3), signal, 1.0) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@each_noise
def test_arguments_broadcast(noise):
    signal, data, sigma = jnp.ones((5, 1)), jnp.ones((1, 3)), jnp.full((5, 3), 0.5)
    shapes = [noise.nll(signal, data, sigma).shape, noise.log_density(signal, data, sigma).shape]
    shapes += [part.shape for part in noise.score_and_curvature(signal, data, sigma)]
    assert shapes == [(5, 3)] * 4


def test_rician_becomes_gaussian_at_high_snr():
    with jax.enable_x64(True):
        signal, data = jnp.float64(1000.0), jnp.linspace(996.0, 1004.0, 9)
        gap = Rician().log_density(signal, data, 1.0) - Gaussian().log_density(signal, data, 1.0)
    np.testing.assert_allclose(gap, 0, atol=5e-3)


# --- several coils, against scipy's noncentral chi-squared


@pytest.mark.parametrize("coils", [1, 4, 16, 64])
class TestNoncentralChi:
    SIGNAL = np.array([0.0, 0.3, 1.0, 3.0, 12.0, 60.0])
    SIGMA = 2.0

    def test_log_density(self, coils):
        signal = self.SIGMA * self.SIGNAL[1:, None]
        data = np.linspace(0.5, 160, 400)
        found = NoncentralChi(coils).log_density(signal, data, self.SIGMA)
        square = stats.ncx2.logpdf((data / self.SIGMA) ** 2, 2 * coils, (signal / self.SIGMA) ** 2)
        expected = square + np.log(2 * data / self.SIGMA**2)
        likely = expected > -50
        np.testing.assert_allclose(np.asarray(found)[likely], expected[likely], atol=2e-4)

    def test_mean_and_variance(self, coils):
        noise, scaled = NoncentralChi(coils), self.SIGMA * self.SIGNAL[1:]
        mean = np.array(
            [stats.ncx2.expect(np.sqrt, (2 * coils, s**2), lb=0) for s in self.SIGNAL[1:]]
        )
        found = np.asarray(noise.mean(scaled, self.SIGMA))
        np.testing.assert_allclose(found, self.SIGMA * mean, rtol=1e-5)
        square = self.SIGNAL[1:] ** 2 + 2 * coils
        variance = np.asarray(noise.variance(scaled, self.SIGMA)) / self.SIGMA**2
        np.testing.assert_allclose(variance, square - mean**2, rtol=2e-3, atol=1e-4)

    def test_samples_have_these_moments_a_mean_score_of_0_and_this_information(self, coils):
        noise, sigma = NoncentralChi(coils), jnp.float32(self.SIGMA)
        clean = jnp.asarray(np.repeat(sigma * self.SIGNAL[1:, None], 200_000, axis=1), jnp.float32)
        data = np.asarray(noise.sample(jax.random.key(coils), clean, sigma), float)
        score = np.asarray(jax.jit(noise.score_and_curvature)(clean, data, sigma)[0], float)
        error = data.std(axis=1) / np.sqrt(data.shape[1])
        assert np.all(
            abs(data.mean(axis=1) - np.asarray(noise.mean(clean[:, 0], sigma))) < 4 * error
        )
        error = score.std(axis=1) / np.sqrt(data.shape[1])
        assert np.all(abs(score.mean(axis=1)) < 4 * error)
        information = np.asarray(noise.information(clean[:, 0], sigma))
        np.testing.assert_allclose(score.var(axis=1), information, rtol=0.02)

    def test_score_is_the_slope_of_the_nll(self, coils):
        noise = NoncentralChi(coils)
        data = np.linspace(0.1, 20, 60)
        with jax.enable_x64(True):
            for signal in (0.2, 2.0, 15.0):
                step = 1e-4
                ends = [np.asarray(noise.nll(signal + d, data, self.SIGMA)) for d in (-step, step)]
                score, curvature = noise.score_and_curvature(signal, data, self.SIGMA)
                np.testing.assert_allclose(score, (ends[1] - ends[0]) / (2 * step), atol=1e-5)
                middle = np.asarray(noise.nll(signal, data, self.SIGMA))
                second = (ends[0] - 2 * middle + ends[1]) / step**2
                np.testing.assert_allclose(curvature, second, atol=1e-4 / self.SIGMA**2)

    def test_nothing_is_nan(self, coils):
        z = np.r_[0.0, np.geomspace(1e-6, 1e6, 100)].astype(np.float32)
        for found in NoncentralChi(coils).score_and_curvature(z, np.float32(1.0), np.float32(1.0)):
            assert np.isfinite(np.asarray(found)).all()
        assert np.isfinite(np.asarray(NoncentralChi(coils).nll(z, 1.0, 1.0))).all()


def test_the_program_of_many_coils_is_short():
    """Once 30 operations for each coil, which took half a minute to compile for 32 coils."""
    program = jax.make_jaxpr(NoncentralChi(64).nll)(1.0, 1.0, 1.0)
    assert len(program.eqns) < 10 * 64 + 300


# --- names and identities


@pytest.mark.parametrize("noise", [*NOISES, NoncentralChi(4)], ids=name_of_noise)
def test_each_has_a_name_and_comes_back_from_its_description(noise):
    again = noise_named(name_of_noise(noise))
    assert describe_noise(again) == describe_noise(noise)
    assert noise_from(describe_noise(noise), None, "a file") == noise
    assert name_of_noise(noise).partition(":")[0] in BY_NAME


def test_models_with_other_settings_are_others():
    assert describe_noise(NoncentralChi(4)) != describe_noise(NoncentralChi(8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("poisson", "expected rician, gaussian, noncentral-chi"),
        ("noncentral-chi:two", "number of coils"),
        ("noncentral-chi:0", "coils: expected a whole number from 1"),
        ("rician:4", "number of coils"),
    ],
)
def test_what_is_no_noise_model_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        noise_named(name)


def test_values_in_blocks_are_those_computed_directly():
    data = np.random.default_rng(0).uniform(0, 40, (7, 5000))  # more than two blocks
    sigma = np.linspace(1, 3, 7)[:, None]
    for noise in (Rician(), Gaussian(), NoncentralChi(3)):
        with jax.enable_x64(True):
            direct = np.asarray(noise.variance(noise.signal_of(data, sigma), sigma))
        found = evaluate(noise.variance_near, data, sigma)
        np.testing.assert_allclose(found, direct, rtol=1e-11)
    assert evaluate(Rician().mean, 0.0, 2.0).shape == ()
    assert evaluate(Rician().mean, np.empty((0, 3)), 2.0).shape == (0, 3)


def test_one_coil_is_rician():
    signal, data = np.linspace(0, 30, 50), np.linspace(0.1, 31, 50)
    one, rician = NoncentralChi(1), Rician()
    np.testing.assert_allclose(one.nll(signal, data, 1.0), rician.nll(signal, data, 1.0), rtol=1e-5)
    np.testing.assert_allclose(one.mean(signal, 1.0), rician.mean(signal, 1.0), rtol=1e-5)
    np.testing.assert_allclose(one.signal_of(data, 1.0), rician.signal_of(data, 1.0))


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (2.0, np.full((3, 1), 2.0)),
        ([1.0, 2.0, 3.0], [[1.0], [2.0], [3.0]]),
        ([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]]),
        ([[1.0, 2.0]], [[1.0, 2.0]] * 3),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    ],
)
def test_sigma_gets_a_row_for_each_voxel(sigma, expected):
    np.testing.assert_array_equal(sigma_of_voxels(sigma, 3, 2), expected)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 3), (3, 2, 1)])
def test_a_sigma_of_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"expected a number, \(3,\), \(3, 2\) or \(1, 2\), got"):
        sigma_of_voxels(np.ones(shape), 3, 2)


def test_a_sigma_for_each_measurement_is_refused_where_a_voxel_has_one():
    with pytest.raises(InputError, match=r"expected a number or \(3,\), got \(1, 2\)"):
        sigma_of_voxels(np.ones((1, 2)), 3)
