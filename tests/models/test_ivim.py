import numpy as np
import pytest

from labelwise import (
    IVIM,
    Gaussian,
    IVIMKurtosis,
    IVIMSimplified,
    IVIMTriexponential,
    MaximumLikelihood,
)
from labelwise.types import InputError

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


def test_derived_maps_are_the_usual_ones():
    d_star, f_d_star = (each.function(1.0, 0.2, 1.0, 49.0) for each in IVIM.derived)
    assert (d_star, f_d_star) == (50.0, 10.0)


@pytest.mark.parametrize("k", [0.0, 0.8, 2.0])
def test_kurtosis_equation(k):
    b, f, d, fast = np.append(B, 1.6), 0.15, 1.1, 40.0
    expected = 8 * (f * np.exp(-b * (fast + d)) + (1 - f) * np.exp(-b * d + (b * d) ** 2 * k / 6))
    np.testing.assert_allclose(IVIMKurtosis(b).signal(8.0, f, d, fast, k), expected, rtol=1e-5)


def test_without_kurtosis_it_is_ivim():
    expected = IVIM(B).signal(3.0, 0.2, 1.0, 50.0)
    np.testing.assert_allclose(IVIMKurtosis(B).signal(3.0, 0.2, 1.0, 50.0, 0.0), expected)


def test_triexponential_equation():
    parts = [(0.1, 206.0), (0.25, 6.0), (0.65, 1.0)]
    expected = 4 * sum(share * np.exp(-B * d) for share, d in parts)
    model = IVIMTriexponential(B)
    voxel = (4.0, 0.1, 0.25, 1.0, 5.0, 200.0)
    np.testing.assert_allclose(model.signal(*voxel), expected, rtol=1e-5)
    derived = [each.function(*voxel) for each in model.derived]
    np.testing.assert_allclose(derived, [6.0, 206.0, 0.35])


@pytest.mark.parametrize("f_mid", [0.0, 0.3])
def test_triexponential_contains_ivim(f_mid):
    """Without one of the moving compartments, it is the model of two."""
    model = IVIMTriexponential(B)
    if f_mid:
        ours, theirs = (
            model.signal(1.0, 0.0, 0.3, 1.0, 10.0, 100.0),
            IVIM(B).signal(1, 0.3, 1, 10),
        )
    else:
        ours, theirs = (
            model.signal(1.0, 0.2, 0.0, 1.0, 10.0, 100.0),
            IVIM(B).signal(1, 0.2, 1, 110),
        )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_triexponential_compartments_are_ordered():
    """D_mid and D_fast are differences, and positive."""
    bounds = {parameter.name: parameter.bounds for parameter in IVIMTriexponential.parameters}
    assert bounds["D_mid"][0] > 0
    assert bounds["D_fast"][0] > 0


def test_simplified_is_the_segmented_fit():
    """Two b-values beside 0 determine f and D_slow in closed form."""
    signal = np.array([[100.0, 62.0, 30.0]])
    estimate = MaximumLikelihood(IVIMSimplified([0, 0.2, 0.8]), Gaussian())(signal, 0.01)
    d = np.log(62 / 30) / 0.6
    np.testing.assert_allclose(estimate["D_slow"], d, rtol=1e-4)
    np.testing.assert_allclose(estimate["f"], 1 - 0.62 * np.exp(0.2 * d), rtol=1e-3)


def test_simplified_is_ivim_beyond_the_threshold():
    b = np.array([0, 0.2, 0.4, 0.8])
    ours = IVIMSimplified(b).signal(1.0, 0.3, 1.2)
    np.testing.assert_allclose(ours, IVIM(b).signal(1.0, 0.3, 1.2, 300.0), rtol=1e-5)


def test_simplified_refuses_what_it_does_not_describe():
    with pytest.raises(InputError, match=r"does not describe 6 of the 10 .* 1, 2, .*leave them"):
        MaximumLikelihood(IVIMSimplified(B), Gaussian())
    np.testing.assert_array_equal(IVIMSimplified(B).described(), (B == 0) | (B >= 0.2))
    assert IVIMSimplified(B, b_threshold=0.1).described().sum() == 5
