"""Measurements with an infinite sigma are left out of the fit of their voxel."""

import jax
import numpy as np
import pytest

import labelwise as lw
from helpers import BlackBox, assert_same
from labelwise.fitting import MaximumLikelihood

TIMES = np.array([25, 75, 150, 300, 600, 1200, 2400, 4000.0])
MODELS = {
    "adc": (lw.ADC([0, 0, 0.1, 0.4, 0.8, 0.8]), (1.0, 1.3)),
    "black box": (BlackBox(np.array([0, 0, 0.1, 0.4, 0.8, 0.8])), (1.0, 1.3)),
    "ivim": (lw.IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8]), (1, 0.3, 1.2, 40)),
    "kurtosis": (lw.Kurtosis([0, 0.5, 1, 1.5, 2, 2.5]), (1.0, 1.1, 0.9)),
    "t2": (lw.T2(np.arange(10, 170, 20.0)), (1.0, 60.0)),
    "t2_biexponential": (lw.T2Biexponential(np.arange(4, 324, 16.0)), (1.0, 0.25, 15.0, 90.0)),
    "t1_ir": (lw.T1InversionRecovery(TIMES), (1.0, 850.0, 1.9)),
}
SIGMA = 0.02


def noisy(name, noise, count=40, seed=1):
    model, truth = MODELS[name]
    clean = np.tile(np.asarray(model.signal(*truth)), (count, 1))
    return model, np.array(noise.sample(jax.random.key(seed), clean, SIGMA), np.float32)


def without(model, gone):
    name = next(name for name in ("b", "te", "ti") if hasattr(model, name))
    return type(model)(np.delete(getattr(model, name), gone))


CASES = [
    *((name, lw.Rician(), np.nan) for name in MODELS),
    *(("adc", noise, np.nan) for noise in (lw.Gaussian(), lw.NoncentralChi(4))),
    *(("adc", lw.Rician(), junk) for junk in (0.0, -7.0, 1e30)),
]


@pytest.mark.parametrize(("name", "noise", "junk"), CASES)
def test_a_fit_is_that_of_the_other_measurements(name, noise, junk):
    model, signal = noisy(name, noise)
    gone = [2, 4]
    sigma = np.full(signal.shape, SIGMA)
    sigma[:, gone] = np.inf
    spoilt = signal.copy()
    spoilt[:, gone] = junk
    found = MaximumLikelihood(model, noise, dtype=np.float64)(spoilt, sigma)
    fitter = MaximumLikelihood(without(model, gone), noise, dtype=np.float64)
    expected = fitter(np.delete(signal, gone, axis=1), SIGMA)
    apart = np.abs(found.values - expected.values) / expected.stats["standard_error"]
    close = np.nan_to_num(apart, nan=0) < 0.02
    assert close.all(axis=1).mean() > 0.9  # some voxels have two optima
    same = close.all(axis=1)
    np.testing.assert_array_equal(found.status[same], expected.status[same])
    for stat, tolerance in (("residual", 1e-3), ("standard_error", 0.05)):
        np.testing.assert_allclose(
            found.stats[stat][same], expected.stats[stat][same], rtol=tolerance
        )


@pytest.mark.parametrize("noise", [lw.Rician(), lw.Gaussian()])
def test_the_residual_is_that_of_the_other_measurements_in_float32(noise):
    model, signal = noisy("adc", noise)
    sigma = np.full(signal.shape, SIGMA)
    sigma[:, [2, 4]] = np.inf
    found = MaximumLikelihood(model, noise)(signal, sigma)
    fitter = MaximumLikelihood(without(model, [2, 4]), noise)
    expected = fitter(np.delete(signal, [2, 4], axis=1), SIGMA)
    np.testing.assert_allclose(found.stats["residual"], expected.stats["residual"], rtol=0.02)


@pytest.mark.parametrize("name", ["adc", "ivim", "t1_ir"])
def test_voxels_that_use_all_measurements_keep_every_byte(name):
    model, signal = noisy(name, lw.Rician(), 300)
    sigma = np.full(signal.shape, SIGMA)
    sigma[5:20, 1] = np.inf
    fitter = MaximumLikelihood(model, lw.Rician())
    found, whole = fitter(signal, sigma), fitter(signal, SIGMA)
    others = np.r_[:5, 20:300]
    for rows, expected in (
        (found.values, whole.values),
        *((found.stats[stat], whole.stats[stat]) for stat in whole.stats),
    ):
        assert rows[others].tobytes() == expected[others].tobytes()
    assert not np.allclose(found.values[5:20], whole.values[5:20])


def test_one_sigma_row_leaves_a_measurement_out_of_every_voxel():
    model, signal = noisy("adc", lw.Rician())
    sigma = np.array([[SIGMA, np.inf, SIGMA, SIGMA, SIGMA, SIGMA]])
    fitter = MaximumLikelihood(model, lw.Rician())
    assert_same(fitter(signal, sigma), fitter(signal, np.tile(sigma, (len(signal), 1))))


@pytest.mark.parametrize(
    ("gone", "enough"),
    [([0, 1, 2, 3], False), ([2, 3, 4, 5], False), ([1, 2, 3, 4], True), (range(6), False)],
)
def test_too_few_or_equal_measurements_are_no_fit(gone, enough):
    model, signal = noisy("adc", lw.Rician())
    sigma = np.full(signal.shape, SIGMA)
    sigma[3, list(gone)] = np.inf
    estimate = MaximumLikelihood(model, lw.Rician())(signal, sigma)
    assert (estimate.status[3] == lw.Status.TOO_FEW) is not enough
    assert np.isfinite(estimate.values[3]).all() == enough
    assert np.isfinite(np.delete(estimate.values, 3, axis=0)).all()


def test_what_is_left_out_is_not_checked():
    model, signal = noisy("adc", lw.Rician(), 4)
    signal[0, 1], signal[1, 1], signal[2] = np.nan, -1, 0
    signal[2, 1] = 3
    sigma = np.full(signal.shape, SIGMA)
    sigma[:, 1] = np.inf
    status = MaximumLikelihood(model, lw.Rician())(signal, sigma).status
    assert list(status[:3]) == [lw.Status.CONVERGED] * 2 + [lw.Status.ALL_ZERO]


def test_an_infinite_sigma_of_a_whole_voxel_is_a_bad_one():
    model, signal = noisy("adc", lw.Rician(), 4)
    estimate = MaximumLikelihood(model, lw.Rician())(signal, np.full(4, np.inf))
    assert (estimate.status == lw.Status.BAD_SIGMA).all()


def fit_without_one(model, signal, noise, sigma, **bounds):
    """The fit with measurement 1 spoilt and left out, and the fit of the others alone."""
    spoilt, level = signal.copy(), np.full(signal.shape, sigma)
    spoilt[:, 1], level[:, 1] = 7.0, np.inf
    found = MaximumLikelihood(model, noise, dtype=np.float64, bounds=bounds)(spoilt, level)
    fitter = MaximumLikelihood(without(model, 1), noise, dtype=np.float64, bounds=bounds)
    return found, fitter(np.delete(signal, 1, axis=1), sigma)


@pytest.mark.parametrize("noise", [lw.Rician(), lw.Gaussian()], ids=lambda n: type(n).__name__)
def test_no_signal_in_the_others_is_no_signal(noise):
    model = lw.ADC([0, 0, 0.1, 0.4, 0.8, 0.8])
    data = noise.sample(jax.random.key(0), np.zeros((300, 6)), 1.0)
    found, expected = fit_without_one(model, np.array(data), noise, 1.0)
    none = expected.status == lw.Status.NO_SIGNAL
    assert 0.1 < none.mean() < 0.9
    assert np.mean((found.status == lw.Status.NO_SIGNAL) == none) > 0.99
    both = none & (found.status == lw.Status.NO_SIGNAL)
    assert np.all(found.values[both, 0] == 0)
    assert np.all(np.isnan(found.values[both, 1:]))


def test_a_second_optimum_of_the_others_is_found():
    model = lw.T1InversionRecovery([100, 300, 800, 3000])
    t1 = np.geomspace(200, 4000, 200)
    clean = np.stack([np.asarray(model.signal(1.0, each, 1.8)) for each in t1])
    data = np.array(lw.Rician().sample(jax.random.key(0), clean, 0.005))
    found, expected = fit_without_one(model, data, lw.Rician(), 0.005)
    ambiguous = expected.stats["runner_up"] < 3.84
    assert ambiguous.mean() > 0.1
    assert np.mean((found.stats["runner_up"] < 3.84) == ambiguous) > 0.97


def test_a_bound_that_the_others_reject_leaves_no_errors_for_what_it_shifts():
    model = MODELS["ivim"][0]
    clean = np.tile(np.asarray(model.signal(1.0, 0.69, 1.3, 40.0)), (100, 1))
    data = np.array(lw.Rician().sample(jax.random.key(0), clean, 0.02))
    found, expected = fit_without_one(model, data, lw.Rician(), 0.02, f=(0.0, 0.5))
    shifted = np.isnan(expected.stats["standard_error"][:, 2])
    assert shifted.mean() > 0.9
    assert np.mean(np.isnan(found.stats["standard_error"][:, 2]) == shifted) > 0.97


def test_starts_of_other_measurements_do_not_depend_on_the_company():
    model, signal = noisy("ivim", lw.Rician(), 50)
    sigma = np.full(signal.shape, SIGMA)
    sigma[np.arange(50), np.arange(50) % 7] = np.inf
    fitter = MaximumLikelihood(model, lw.Rician())
    whole, some = fitter(signal, sigma), fitter(signal[:9], sigma[:9])
    for rows, expected in (
        (some.values, whole.values),
        *((some.stats[stat], whole.stats[stat]) for stat in whole.stats),
    ):
        assert rows.tobytes() == expected[:9].tobytes()
