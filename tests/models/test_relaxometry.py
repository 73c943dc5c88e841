"""T2, bi-exponential T2 and inversion recovery against their equations in NumPy."""

import numpy as np
import pytest

from labelwise import T2, T1InversionRecovery, T2Biexponential

TE = np.array([0.0, 10.0, 35.0, 80.0, 200.0])
TI = np.array([0.0, 50.0, 400.0, 1100.0, 2500.0, 9000.0])


@pytest.mark.parametrize("t2", [1.0, 45.0, 2000.0])
def test_t2_equation(t2):
    np.testing.assert_allclose(T2(TE).signal(9.0, t2), 9 * np.exp(-TE / t2), rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("f", [0.0, 0.15, 1.0])
def test_biexponential_equation(f):
    expected = 5 * (f * np.exp(-TE / 20) + (1 - f) * np.exp(-TE / 80))
    np.testing.assert_allclose(T2Biexponential(TE).signal(5.0, f, 20.0, 80.0), expected, rtol=2e-5)


def test_biexponential_pools_cannot_be_exchanged():
    *_, short, long = T2Biexponential.parameters
    assert short.bounds[1] <= long.bounds[0]


@pytest.mark.parametrize(("t1", "k"), [(900.0, 2.0), (300.0, 1.0), (4500.0, 1.8)])
def test_inversion_recovery_equation(t1, k):
    expected = 7 * np.abs(1 - k * np.exp(-TI / t1))
    np.testing.assert_allclose(
        T1InversionRecovery(TI).signal(7.0, t1, k), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tr", [2550.0, 6000.0, 20_000.0])
def test_a_finite_repetition_time_is_another_s0_and_k(tr):
    t1 = 1200.0
    recovered = np.exp(-tr / t1)
    expected = np.abs(1 - 2 * np.exp(-TI / t1) + recovered)
    signal = T1InversionRecovery(TI).signal(1 + recovered, t1, 2 / (1 + recovered))
    np.testing.assert_allclose(signal, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("angle", [180.0, 160.0, 120.0, 90.0])
@pytest.mark.parametrize("tr", [2500.0, 1e9])
def test_every_physical_inversion_has_k_between_1_and_2(angle, tr):
    """By iterating the magnetisation along z to its steady state, one 90° read-out each TR."""
    t1, ti = 1000.0, np.array([0.0, 500.0, 2000.0])
    before = np.full(3, 1.0)
    for _ in range(60):
        inverted = before * np.cos(np.deg2rad(angle))
        read = 1 + (inverted - 1) * np.exp(-ti / t1)
        before = 1 - np.exp(-(tr - ti) / t1)
    s0, slope = np.linalg.solve(np.stack([np.ones(2), -np.exp(-ti[:2] / t1)], axis=1), read[:2])
    k = slope / s0
    assert 1 - 1e-6 <= k <= 2 + 1e-6
    np.testing.assert_allclose(T1InversionRecovery(ti).signal(s0, t1, k), np.abs(read), atol=1e-5)
