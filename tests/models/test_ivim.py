import numpy as np
import pytest

from labelwise import IVIM

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000


@pytest.mark.parametrize("f", [0.01, 0.2, 0.5])
@pytest.mark.parametrize(("d_slow", "d_fast"), [(0.5, 10.0), (1.5, 80.0), (4.0, 300.0)])
def test_equation(f, d_slow, d_fast):
    expected = 8 * (f * np.exp(-B * (d_fast + d_slow)) + (1 - f) * np.exp(-B * d_slow))
    np.testing.assert_allclose(IVIM(B).signal(8.0, f, d_slow, d_fast), expected, rtol=1e-5)


def test_compartments_cannot_be_exchanged():
    """Blood always decays faster, by D_fast >= 2; swapping f and 1 - f is another signal."""
    model = IVIM(B)
    swapped = model.signal(1.0, 0.7, 1.0, 30.0)
    assert np.abs(np.asarray(model.signal(1.0, 0.3, 1.0, 30.0)) - swapped).max() > 0.1
    assert model.parameters[1].bounds[1] <= 0.5
