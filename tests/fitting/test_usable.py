"""Dropouts and clipped measurements are left out; what the noise explains is kept."""

import numpy as np
import pytest

import labelwise as lw
from helpers import BlackBox, assert_same
from labelwise.fitting import MaximumLikelihood
from labelwise.fitting.usable import CLIPPED, DROPOUT, ceiling

B = np.array([0] * 3 + [0.4] * 3 + [0.8] * 3)
MODEL = lw.ADC(B)
SIGMA = 15.0


def noisy(clean, sigma=SIGMA, seed=0):
    real, imaginary = np.random.default_rng(seed).normal(0, sigma, (2, *clean.shape))
    return np.hypot(clean + real, imaginary)


@pytest.fixture
def signal():
    """60 voxels of S0 1000 and ADC 1.2 µm²/ms."""
    return noisy(np.tile(1000 * np.exp(-1.2 * B), (60, 1)))


LOST = [
    *([place] for place in range(9)),
    *([0, 3], [4, 7], [1, 8], [0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 3, 6]),
]


@pytest.mark.parametrize(
    ("model", "share"), [(MODEL, 0.0), (MODEL, 0.3), (BlackBox(B), 0.0)], ids=str
)
def test_a_lost_signal_is_left_out(signal, model, share):
    lost = LOST if share == 0 else LOST[:12]  # a whole shell at 30 % is another decay
    whole = lw.fit(signal, model, SIGMA)
    expected = np.zeros(signal.shape, np.uint8)
    for voxel, places in enumerate(lost):
        signal[voxel, places] *= share
        expected[voxel, places] = DROPOUT
    found = lw.fit(signal, model, SIGMA)
    np.testing.assert_array_equal(found.stats["left_out"], expected)
    spoilt = slice(0, len(lost))
    apart = np.abs(found["ADC"] - 1.2)[spoilt] / found.standard_error["ADC"][spoilt]
    assert apart.max() < 4
    rest = slice(len(lost), None)
    assert found.values[rest].tobytes() == whole.values[rest].tobytes()
    assert not whole.stats["left_out"].any()


def test_all_other_models_leave_a_zero_out():
    models = [
        (lw.T2(np.arange(10, 170, 20.0)), (1000.0, 100.0)),
        (lw.T1InversionRecovery([25, 75, 150, 300, 600, 1200, 2400, 4000]), (1000.0, 850.0, 1.9)),
    ]
    for model, truth in models:
        signal = noisy(np.tile(np.asarray(model.signal(*truth)), (8, 1)))
        signal[np.arange(8), np.arange(8)] = 0
        expected = np.asarray(model.signal(*truth)) > 8 * SIGMA
        found = lw.fit(signal, model, SIGMA).stats["left_out"]
        np.testing.assert_array_equal(found, DROPOUT * np.diag(expected))


@pytest.mark.parametrize("snr", [3, 5, 8, 20, 100])
def test_nothing_is_left_out_of_clean_integers(snr):
    """Zeros are common among coarse integers at a low SNR, and natural."""
    rng = np.random.default_rng(snr)
    s0, adc = rng.uniform([50, 0.2], [100, 3.0], (20_000, 2)).T[..., None]
    signal = noisy(s0 * np.exp(-adc * B), 100 / snr, snr).round(-1 if snr < 10 else 0)
    assert snr > 10 or (signal == 0).sum() > 50
    assert not lw.fit(signal, MODEL, 100 / snr).stats["left_out"].any()


def test_a_wrong_sigma_or_model_leaves_nothing_out(signal):
    assert not lw.fit(signal, MODEL, SIGMA / 5).stats["left_out"].any()
    kurtosis = lw.Kurtosis(3 * B)
    curved = noisy(np.tile(np.asarray(kurtosis.signal(1000.0, 1.0, 1.2)), (60, 1)), 5.0)
    assert not lw.fit(curved, lw.ADC(3 * B), 5.0).stats["left_out"].any()


def test_too_few_others_are_a_status():
    model = lw.ADC([0, 0.8])
    signal = noisy(np.tile([1000.0, 380.0], (10, 1)))
    signal[4, 0] = 0
    found = lw.fit(signal, model, SIGMA)
    assert found.status[4] == lw.Status.TOO_FEW
    assert np.isnan(found.values[4]).all()
    assert (np.delete(found.status, 4) == lw.Status.CONVERGED).all()


@pytest.mark.parametrize(("top", "scale"), [(4095, 1.0), (5000, 1.0)])
def test_clipped_measurements_are_left_out(top, scale):
    te = np.arange(10, 170, 10.0)
    clean = np.asarray(lw.T2(te).signal(9000.0, 80.0))
    signal = np.minimum(noisy(np.tile(clean, (60, 1)), 20.0).round(), top)
    spoilt = MaximumLikelihood(lw.T2(te), lw.Rician())(signal, 20.0)
    assert np.median(spoilt["T2"]) > 88
    found = lw.fit(signal, lw.T2(te), 20.0)
    assert np.median(found["T2"]) == pytest.approx(80, rel=0.02)
    clipped = found.stats["left_out"] == CLIPPED
    assert clipped.sum() > 0.9 * (signal == top).sum()
    assert not clipped[signal < top].any()


def test_all_measurements_but_one_clipped_are_too_few():
    signal = np.minimum(noisy(np.tile([9000.0, 8000.0, 3000.0], (20, 1))).round(), 4095)
    assert (lw.fit(signal, lw.T2([10.0, 20.0, 90.0]), SIGMA).status == lw.Status.TOO_FEW).all()


def test_an_equal_largest_value_that_the_others_predict_is_kept():
    adc = np.random.default_rng(0).uniform(0.5, 2, (60, 1))
    clean = 1000 * np.exp(-adc * B)
    found = lw.fit(clean, MODEL, SIGMA, intervals=None)
    assert_same(
        MaximumLikelihood(MODEL, lw.Rician())(clean, SIGMA),
        lw.Estimate(
            found.values,
            found.status,
            {name: rows for name, rows in found.stats.items() if name != "left_out"},
        ),
    )
    assert not found.stats["left_out"].any()


@pytest.mark.parametrize(
    ("stored", "certain"), [(4095, True), (65535, True), (255, True), (4000, False), (4094, False)]
)
def test_full_integers_are_certain_ceilings(stored, certain):
    signal = np.minimum(np.arange(200.0)[:, None] + stored - 100, stored)
    for slope, intercept in ((1.0, 0.0), (0.37, -12.5)):
        top = ceiling([signal * slope + intercept], [(slope, intercept)])
        assert top is not None
        assert (top.certain, top.voxels, top.share) == (certain, 100, 0.5)
    assert ceiling([signal[:103]]) is None
    assert ceiling([0 * signal]) is None


def test_a_mask_and_any_shape(signal):
    signal[3, 4] = 0
    mask = np.arange(60).reshape(6, 10) % 2 == 1
    found = lw.fit(signal.reshape(6, 10, 9), MODEL, np.full((6, 10), SIGMA), mask=mask)
    assert found.stats["left_out"].shape == (6, 10, 9)
    assert np.argwhere(found.stats["left_out"]).tolist() == [[0, 3, 4]]


def test_what_is_excluded_by_an_infinite_sigma_is_marked(signal):
    sigma = np.full(signal.shape, SIGMA)
    sigma[:, 2] = np.inf
    signal[7, 5] = 0
    found = lw.fit(signal, MODEL, sigma)
    assert (found.stats["left_out"][:, 2] == 1).all()
    assert found.stats["left_out"][7, 5] == DROPOUT
    assert np.count_nonzero(found.stats["left_out"]) == 61
