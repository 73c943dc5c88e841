"""Starting points: near what they should find, apart from each other, the same in any company."""

import numpy as np
import pytest

import labelwise as lw
from labelwise.fitting.starts import MAXIMA, Dictionary, find_starts
from labelwise.models.base import scale_parameter

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000


def dictionary(model):
    return Dictionary(model, model.parameters, scale_parameter(model))


@pytest.fixture(scope="module")
def signal():
    rng = np.random.default_rng(0)
    params = rng.uniform([0.8, 0.1, 0.4, 10], [1.2, 0.5, 3.0, 150], (100, 4))
    return np.stack([np.asarray(lw.IVIM(B).signal(*p)) for p in params]).astype(np.float32)


def starts_of(model, signal, sigma=0.02):
    signal = np.asarray(signal, np.float32)
    sigma = np.full((len(signal), 1), sigma, np.float32)
    return find_starts(model, lw.Gaussian(), dictionary(model), signal, sigma)


def test_an_entry_of_the_dictionary_is_its_own_best_start():
    entries = dictionary(lw.IVIM(B))
    entry = entries.params[:, 77] * np.array([2.5, 1, 1, 1])
    entry[1] = 0.2  # linear: solved, not searched
    start = starts_of(lw.IVIM(B), np.asarray(lw.IVIM(B).signal(*entry))[None])[:, 0, 0]
    np.testing.assert_allclose(start, entry, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "linear"),
    [
        (lw.IVIM(B), ["f"]),
        (lw.T2Biexponential(np.arange(8, 168, 8.0)), ["f"]),
        (lw.T1InversionRecovery([50, 400, 1100, 2500]), []),
        (lw.Kurtosis([0, 0.5, 1, 2]), []),
        (lw.T2EPG(np.arange(1, 9) * 10.0), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_linear_parameters_are_found_by_trial(model, linear):
    assert [model.parameters[i].name for i in dictionary(model).linear] == linear


def test_both_optima_of_an_ambiguous_inversion_recovery_are_started_from():
    model = lw.T1InversionRecovery([100, 800, 3000])
    signal = np.asarray(model.signal(1.0, 900.0, 1.9))[None]
    t1 = starts_of(model, signal, sigma=0.005)[1, :, 0]
    assert np.nanmax(t1) / np.nanmin(t1) > 1.5


def test_a_clear_signal_needs_fewer_starts_than_a_noisy_one():
    rng = np.random.default_rng(0)
    model = lw.IVIM(B)
    clean = np.asarray(model.signal(1.0, 0.3, 1.2, 40.0))
    used = [
        np.isfinite(starts_of(model, clean + rng.normal(0, s, (300, 10)), sigma=s)[0]).sum(0).mean()
        for s in (0.005, 0.1)
    ]
    assert used[0] < used[1]


def test_self_starting_models_add_their_guess(signal):
    model = lw.IVIM(B)
    starts = starts_of(model, signal)
    assert starts.shape == (4, MAXIMA + 1, 100)
    assert np.all(np.isfinite(starts[:, [0, -1]]))


@pytest.mark.parametrize("voxels", [1, 7, 99])
def test_starts_do_not_depend_on_the_company(signal, voxels):
    model = lw.IVIM(B)
    whole = starts_of(model, signal)
    np.testing.assert_array_equal(starts_of(model, signal[:voxels]), whole[..., :voxels])


def test_a_model_of_one_scale_parameter_and_one_other_is_searched():
    model = lw.ADC([0, 0.5, 1.0])
    starts = starts_of(model, np.asarray(model.signal(3.0, 1.1))[None])
    np.testing.assert_allclose(starts[1, 0, 0], 1.1, rtol=0.1)


def test_an_entry_whose_signal_overflows_is_never_picked():
    model = lw.Kurtosis([0.0, 1.0, 6.0])
    assert np.all(np.isfinite(dictionary(model).terms))
    assert np.all(np.isfinite(starts_of(model, [[1.0, 0.4, 0.02]])[:, 0]))
