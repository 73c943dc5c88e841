"""ADC and kurtosis against the equations written in NumPy."""

import numpy as np
import pytest

from labelwise import ADC, Kurtosis

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


def test_kurtosis_turns_where_its_docstring_says():
    d, k = 1.2, 1.5
    turn = 3 / (d * k)
    before, at, after = Kurtosis([turn - 0.2, turn, turn + 0.2]).signal(1.0, d, k)
    assert at < before
    assert at < after
