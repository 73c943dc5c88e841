"""Fisher information and Cramér-Rao bounds against closed forms, quadrature and estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import optimize

from labelwise import (
    ADC,
    IVIM,
    T2,
    T2EPG,
    Gaussian,
    Parameter,
    Rician,
    SignalModel,
    per_measurement,
)
from labelwise.evaluation.cramer_rao import cramer_rao, fisher_information
from labelwise.models.evaluate import differences, jacobian, signals

B = np.array([0.0, 0.2, 0.5, 1.0])
TE = 10.0 * np.arange(1, 9)
VOXELS = np.array([[100.0, 0.8], [50.0, 2.0], [10.0, 0.3]])


class NumpyADC(SignalModel):
    """ADC as a black box, one voxel at a time."""

    b: Float[Array, " M"] = per_measurement()
    differentiable = False
    parameters = ADC.parameters

    def signal(self, s0, adc):
        return s0 * np.exp(-self.b * adc)


class OnlyInside(NumpyADC):
    """Refuses to be called outside its bounds."""

    def signal(self, s0, adc):
        if not 0 <= adc <= 5:
            raise ValueError("outside")
        return s0 * np.exp(-self.b * adc)


class Twice(SignalModel):
    """Two parameters of which only the sum is seen."""

    b: Float[Array, " M"] = per_measurement()
    parameters = (
        Parameter("S0", "a.u.", (0, np.inf)),
        Parameter("D1", "µm²/ms", (0, 4)),
        Parameter("D2", "µm²/ms", (0, 4)),
    )

    def signal(self, s0, d1, d2):
        return s0 * jnp.exp(-self.b * (d1 + d2))


def test_gaussian_information_is_the_normal_matrix():
    s0, adc = VOXELS[0]
    decay = np.exp(-B * adc)
    slopes = np.stack([decay, -s0 * B * decay], axis=1)
    np.testing.assert_allclose(
        fisher_information(ADC(B), Gaussian(), VOXELS[:1], 2.0)[0],
        slopes.T @ slopes / 4,
        rtol=1e-12,
    )


def test_bound_is_the_root_of_the_inverse():
    information = fisher_information(IVIM(B), Rician(), np.array([[100.0, 0.2, 1.0, 20.0]]), 2.0)
    expected = np.sqrt(np.diag(np.linalg.inv(information[0])))
    ours = cramer_rao(IVIM(B), Rician(), np.array([[100.0, 0.2, 1.0, 20.0]]), 2.0)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-6)


def test_rician_is_gaussian_at_high_snr_and_knows_less_at_low():
    high, low = (
        [[noise_bound(noise, snr)] for noise in (Gaussian(), Rician())] for snr in (200, 2)
    )
    np.testing.assert_allclose(high[0], high[1], rtol=1e-3)
    assert (np.array(low[1]) > 1.05 * np.array(low[0])).all()


def noise_bound(noise, snr):
    return cramer_rao(ADC(B), noise, np.array([[1.0, 1.0]]), 1 / snr)[0]


@pytest.mark.parametrize("noise", [Gaussian(), Rician()], ids=["Gaussian", "Rician"])
def test_scales_with_the_units(noise):
    """Ten times the signal and the noise: ten times the bound of S0, the same of ADC."""
    once = cramer_rao(ADC(B), noise, VOXELS, 2.0)
    tenfold = cramer_rao(ADC(B), noise, VOXELS * [10, 1], 20.0)
    np.testing.assert_allclose(tenfold, once * [10, 1], rtol=1e-9)


def test_repeating_every_measurement_halves_the_variance():
    once = cramer_rao(ADC(B), Rician(), VOXELS, 2.0)
    twice = cramer_rao(ADC(np.tile(B, 2)), Rician(), VOXELS, 2.0)
    np.testing.assert_allclose(twice, once / np.sqrt(2), rtol=1e-9)


@pytest.mark.parametrize(
    "sigma",
    [2.0, np.full(3, 2.0), np.full((3, 4), 2.0), np.full((1, 4), 2.0), np.full((3, 1), 2.0)],
    ids=lambda sigma: str(np.shape(sigma)),
)
def test_sigma_of_every_shape(sigma):
    expected = cramer_rao(ADC(B), Rician(), VOXELS, 2.0)
    np.testing.assert_array_equal(cramer_rao(ADC(B), Rician(), VOXELS, sigma), expected)


def test_sigma_per_voxel_and_per_measurement_are_not_mixed_up():
    by_voxel = cramer_rao(ADC(B), Rician(), VOXELS, np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(by_voxel[2], cramer_rao(ADC(B), Rician(), VOXELS[2:], 4.0)[0])
    noisy_last = np.array([[1.0, 1.0, 1.0, 1e9]])
    without_last = cramer_rao(ADC(B[:3]), Rician(), VOXELS, 1.0)
    np.testing.assert_allclose(
        cramer_rao(ADC(B), Rician(), VOXELS, noisy_last), without_last, rtol=1e-9
    )


@pytest.mark.parametrize(
    "sigma", [np.ones(4), np.ones((4, 3)), np.ones((3, 4, 1)), np.ones((1, 3))]
)
def test_sigma_of_another_shape_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma: expected a number"):
        cramer_rao(ADC(B), Rician(), VOXELS, sigma)


@pytest.mark.parametrize("params", [np.ones(2), np.ones((3, 3)), np.ones((1, 2, 1))])
def test_params_of_another_shape_are_refused(params):
    with pytest.raises(ValueError, match=r"params: expected shape \(N, 2\).*S0, ADC"):
        fisher_information(ADC(B), Rician(), params, 1.0)


@pytest.mark.parametrize("noise", [Gaussian(), Rician()], ids=["Gaussian", "Rician"])
def test_what_cannot_be_known_is_infinite(noise):
    blind = cramer_rao(IVIM(np.arange(8) / 8), noise, np.array([[100.0, 0.0, 1.0, 20.0]]), 2.0)[0]
    assert np.isinf(blind[3])
    assert np.isfinite(blind[:3]).all()


def test_what_is_known_in_combination_only_is_infinite():
    bound = cramer_rao(Twice(B), Gaussian(), np.array([[100.0, 0.5, 0.7]]), 2.0)[0]
    known = cramer_rao(ADC(B), Gaussian(), np.array([[100.0, 1.2]]), 2.0)[0]
    assert np.isinf(bound[1:]).all()
    assert bound[0] == pytest.approx(known[0])


def test_fewer_measurements_than_parameters_is_infinite():
    assert np.isinf(cramer_rao(ADC([1.0]), Gaussian(), VOXELS, 2.0)).all()


@pytest.mark.parametrize("model", [ADC(B), NumpyADC(B)], ids=["JAX", "black box"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_parameters_are_nan_and_leave_the_others_alone(model, bad):
    params = np.array([[100.0, 0.8], [bad, 0.8], [10.0, 0.3]])
    bounds = cramer_rao(model, Rician(), params, 2.0)
    assert np.isnan(bounds[1]).all()
    np.testing.assert_array_equal(bounds[[0, 2]], cramer_rao(model, Rician(), params[[0, 2]], 2.0))


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_bad_sigma_is_nan(bad):
    bounds = cramer_rao(ADC(B), Rician(), VOXELS, np.array([2.0, bad, 2.0]))
    np.testing.assert_array_equal(np.isnan(bounds).all(axis=1), [False, True, False])


def test_a_black_box_has_the_bounds_of_the_same_equation_in_jax():
    np.testing.assert_allclose(
        cramer_rao(NumpyADC(B), Rician(), VOXELS, 2.0),
        cramer_rao(ADC(B), Rician(), VOXELS, 2.0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("adc", [0.0, 1e-9, 0.5, 4.9999999, 5.0])
def test_differences_are_the_slopes_also_on_a_bound(adc):
    params = np.array([[100.0, adc]])
    np.testing.assert_allclose(
        differences(ADC(B), params), jacobian(ADC(B), params), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("adc", [0.0, 1e-9, 4.9999999, 5.0])
def test_differences_stay_inside_the_bounds(adc):
    assert np.isfinite(differences(OnlyInside(B), np.array([[100.0, adc]]))).all()


def test_perfect_pulses_say_as_much_of_t2_as_one_exponential():
    """Near B1 = 1 the slope along B1 vanishes, so B1 is hardly known and T2 as in T2(TE)."""
    epg = fisher_information(T2EPG(TE), Gaussian(), np.array([[1.0, 80.0, 0.999]]), 0.01)[0]
    plain = fisher_information(T2(TE), Gaussian(), np.array([[1.0, 80.0]]), 0.01)[0]
    np.testing.assert_allclose(epg[:2, :2], plain, rtol=3e-3)


@pytest.mark.parametrize("model", [ADC(B), NumpyADC(B)], ids=["JAX", "black box"])
def test_signals_are_double_precision(model):
    expected = VOXELS[:, :1] * np.exp(-B * VOXELS[:, 1:])
    np.testing.assert_allclose(signals(model, VOXELS), expected, rtol=1e-14)


def test_maximum_likelihood_reaches_the_bound_at_high_snr():
    """SNR 100, Rician; scipy's fitter: its scatter is the bound, within the scatter's error."""
    n, sigma = 400, 0.01
    truth = np.array([1.0, 1.0])
    clean = jnp.tile(jnp.asarray(signals(ADC(B), truth[None]), jnp.float32), (n, 1))
    data = np.asarray(Rician().sample(jax.random.key(0), clean, sigma), float)
    start = truth * 1.05
    fits = [
        optimize.curve_fit(lambda b, s, d: s * np.exp(-b * d), B, row, start)[0] for row in data
    ]
    bound = cramer_rao(ADC(B), Rician(), truth[None], sigma)[0]
    np.testing.assert_allclose(np.std(fits, axis=0), bound, rtol=4 / np.sqrt(2 * n))
