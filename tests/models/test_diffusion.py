"""One compartment against the equations written in NumPy."""

import numpy as np
import pytest
import scipy.special

from labelwise import (
    ADC,
    ADCFloor,
    Gaussian,
    IVIMKurtosis,
    Kurtosis,
    MaximumLikelihood,
    StretchedExponential,
    Verdict,
)
from labelwise.models.evaluate import signals
from labelwise.models.verdict import _ROOTS, sphere
from labelwise.types import InputError

B = np.array([0.0, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5])


@pytest.mark.parametrize(("s0", "adc"), [(1.0, 0.0), (250.0, 0.8), (3.0, 5.0)])
def test_adc_equation(s0, adc):
    np.testing.assert_allclose(ADC(B).signal(s0, adc), s0 * np.exp(-B * adc), rtol=1e-6)


@pytest.mark.parametrize(("d", "k"), [(1.0, 0.0), (0.9, 1.1), (3.0, 0.1), (0.01, 3.0)])
def test_kurtosis_equation(d, k):
    expected = 70 * np.exp(-B * d + B**2 * d**2 * k / 6)
    np.testing.assert_allclose(Kurtosis(B).signal(70.0, d, k), expected, rtol=1e-5)


def test_kurtosis_without_kurtosis_is_adc():
    np.testing.assert_allclose(Kurtosis(B).signal(2.0, 1.3, 0.0), ADC(B).signal(2.0, 1.3))


@pytest.mark.parametrize("model", [Kurtosis, IVIMKurtosis])
def test_kurtosis_holds_where_the_signal_falls(model):
    b, fast = np.linspace(0, 2, 41), [0.0, 50.0] * (model is IVIMKurtosis)
    for d, k in [(1.0, 1.4), (1.0, 1.6), (0.7, 2.1), (0.8, 2.0), (3.0, 0.4), (3.0, 0.6), (1.0, 0)]:
        params = [1.0, *fast[:1], d, *fast[1:], k]
        falls = np.all(np.diff(np.asarray(model(b).signal(*params), float)) < 0)
        assert falls == model(b).holds(*params)


def test_kurtosis_turns_where_its_docstring_says():
    d, k = 1.2, 1.5
    turn = 3 / (d * k)
    before, at, after = Kurtosis([turn - 0.2, turn, turn + 0.2]).signal(1.0, d, k)
    assert at < before
    assert at < after


@pytest.mark.parametrize(("ddc", "alpha"), [(1.0, 1.0), (0.8, 0.6), (3.0, 0.2)])
def test_stretched_equation(ddc, alpha):
    expected = 70 * np.exp(-((B * ddc) ** alpha))
    np.testing.assert_allclose(
        StretchedExponential(B).signal(70.0, ddc, alpha), expected, rtol=1e-5
    )


def test_stretched_is_a_spread_of_rates():
    """alpha = 1/2 is the Laplace transform of the Levy distribution of rates, in closed form."""
    scale = 0.5  # exp(-sqrt(2 scale b)), hence DDC = 2 scale
    rate = np.geomspace(1e-4, 1e7, 400_001)
    density = np.sqrt(scale / (2 * np.pi)) * np.exp(-scale / (2 * rate)) / rate**1.5
    b = np.array([0.2, 1.0, 2.0])
    expected = np.trapezoid(density * np.exp(-b[:, None] * rate), rate, axis=1)
    ours = StretchedExponential(b).signal(1.0, 2 * scale, 0.5)
    np.testing.assert_allclose(ours, expected, rtol=2e-3)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.7])
def test_floor_equation(floor):
    expected = 5 * np.hypot(np.exp(-B * 1.3), floor)
    np.testing.assert_allclose(ADCFloor(B).signal(5.0, 1.3, floor), expected, rtol=1e-5)


def test_floor_is_the_root_mean_square_of_rician_magnitudes():
    rng, sigma = np.random.default_rng(1), 0.08
    clean = np.exp(-B * 1.5)
    noise = rng.normal(0, sigma, (2, 200_000, len(B)))
    measured = np.sqrt(np.mean((clean + noise[0]) ** 2 + noise[1] ** 2, axis=0))
    ours = ADCFloor(B).signal(1.0, 1.5, np.sqrt(2) * sigma)
    np.testing.assert_allclose(ours, measured, rtol=5e-3)


def test_roots_of_the_sphere():
    slopes = scipy.special.spherical_jn(1, _ROOTS, derivative=True)
    np.testing.assert_allclose(slopes, 0, atol=1e-8)


def test_a_large_sphere_is_free_but_for_its_surface():
    """For short times the diffusivity falls by 4 / (9 √π) S / V √(D t); Mitra et al. 1992."""
    b, small, big, radius = np.array([0.2, 0.5]), 0.5, 12.0, 100.0
    ours = -np.log(np.asarray(sphere(b, small, big, radius, 2.0))) / b
    expected = 2 * (1 - 4 / (9 * np.sqrt(np.pi)) * 3 / radius * np.sqrt(2 * big))
    np.testing.assert_allclose(ours, expected, rtol=0.01)


def test_a_small_sphere_is_in_the_limit_of_fast_motion():
    """Neuman 1974, a constant gradient: 8 R⁴ (γG)² / (175 D) · (2 δ - 581 R² / (840 D))."""
    b, small, big, radius, d = 2.0, 40.0, 40.0, 3.0, 2.0
    strength = b / (small**2 * (big - small / 3))
    decay = 8 * radius**4 * strength / (175 * d) * (2 * small - 581 * radius**2 / (840 * d))
    assert -np.log(float(sphere(b, small, big, radius, d))) == pytest.approx(decay, rel=2e-3)


def test_short_pulses_see_the_size_of_a_sphere():
    """For a long time between short pulses, -log S is q² R² / 5."""
    small, big, radius = 0.001, 400.0, 5.0
    q = 0.05  # 1/µm
    b = q**2 * (big - small / 3)
    ours = -np.log(float(sphere(b, small, big, radius, 2.0)))
    assert ours == pytest.approx(q**2 * radius**2 / 5, rel=2e-3)


def test_verdict_is_the_sum_of_its_compartments():
    b = np.array([0.001, 0.5, 3.0])
    model = Verdict(b, [12, 12, 24], [32, 32, 44])
    cells, vessels, between = (
        model.signal(1.0, *shares) for shares in ((1.0, 0.3), (0.0, 1.0), (0.0, 0.0))
    )
    np.testing.assert_allclose(between, np.exp(-2 * b), rtol=1e-5)
    cosine = np.linspace(0, 1, 20_001)
    sticks = np.trapezoid(np.exp(-8 * b[:, None] * cosine**2), cosine, axis=1)
    np.testing.assert_allclose(vessels, sticks, rtol=1e-4)
    expected = 7 * (0.4 * cells + 0.6 * (0.2 * vessels + 0.8 * between))
    np.testing.assert_allclose(model.signal(7.0, 0.4, 0.2), expected, rtol=1e-5)
    f_vasc, f_ees = (each.function(7.0, 0.4, 0.2) for each in model.derived)
    assert (f_vasc, f_ees) == pytest.approx((0.12, 0.48))


def test_verdict_refuses_impossible_pulses():
    with pytest.raises(InputError, match="expected 0 < small_delta <= big_delta"):
        Verdict([0, 1.0], [10, 40], [30, 30])
    with pytest.raises(InputError, match=r"Verdict\.radius: expected a number from 0\.1 to 100"):
        Verdict([0, 1.0], [10, 10], [30, 30], radius=0.0)


def test_kurtosis_guesses_only_where_the_signal_rises_again():
    model = Kurtosis([0, 0.5, 1, 1.5, 2, 2.5])
    guess = [float(x) for x in model.guess(model.signal(2.0, 2.5, 1.6))]
    np.testing.assert_allclose(guess, [2.0, 2.5, 1.6], rtol=1e-3)
    assert np.all(np.isnan(model.guess(model.signal(2.0, 1.0, 1.0))))


def test_a_fit_with_a_floor_does_not_end_at_a_floor_of_zero():
    """The slope along the floor is 0 there: a step onto that bound once was the last one."""
    model = ADCFloor([0, 0.3, 0.6, 1.0, 2.0, 3.0, 4.0])
    params = np.array([[1.14237857, 0.55395901, 0.071491]])
    found = MaximumLikelihood(model, Gaussian(), dtype=np.float64)(signals(model, params), 1e-4)
    np.testing.assert_allclose(found.values, params, rtol=1e-6)
