"""Starting points: near what they should find, apart from each other, the same in any company."""

import numpy as np
import pytest

import labelwise as lw
from labelwise.fitting.starts import Dictionary, find_starts
from labelwise.models.base import scale_parameter

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000


def dictionary(model):
    return Dictionary(model, model.parameters, scale_parameter(model))


@pytest.fixture(scope="module")
def signal():
    rng = np.random.default_rng(0)
    params = rng.uniform([0.8, 0.1, 0.4, 10], [1.2, 0.5, 3.0, 150], (100, 4))
    return np.stack([np.asarray(lw.IVIM(B).signal(*p)) for p in params]).astype(np.float32)


def test_an_entry_of_the_dictionary_is_its_own_best_start():
    entries = dictionary(lw.IVIM(B))
    entry = entries.params[:, 77] * np.array([2.5, 1, 1, 1])
    starts = entries.starts(np.asarray(lw.IVIM(B).signal(*entry), np.float32)[None])
    np.testing.assert_allclose(starts[:, 0, 0], entry, rtol=1e-3)


def test_starts_are_spread_along_the_worst_determined_parameter(signal):
    starts = dictionary(lw.IVIM(B)).starts(signal)
    d_fast = starts[3, 1:]
    assert np.all(np.diff(d_fast, axis=0) > 0)
    assert np.all(d_fast == d_fast[:, :1])
    assert np.all(starts[0] > 0)


def test_self_starting_models_add_their_guess(signal):
    model = lw.IVIM(B)
    starts = find_starts(model, dictionary(model), signal)
    assert starts.shape == (4, 5, 100)
    assert np.all(np.isfinite(starts))


@pytest.mark.parametrize("voxels", [1, 7, 99])
def test_starts_do_not_depend_on_the_company(signal, voxels):
    model = lw.IVIM(B)
    entries = dictionary(model)
    whole = find_starts(model, entries, signal)
    np.testing.assert_array_equal(find_starts(model, entries, signal[:voxels]), whole[..., :voxels])


def test_a_model_of_one_scale_parameter_and_one_other_is_searched():
    model = lw.ADC([0, 0.5, 1.0])
    starts = find_starts(model, dictionary(model), np.asarray(model.signal(3.0, 1.1))[None])
    np.testing.assert_allclose(starts[1, 0, 0], 1.1, rtol=0.1)


def test_an_entry_whose_signal_overflows_is_never_picked():
    model = lw.Kurtosis([0.0, 1.0, 6.0])
    entries = dictionary(model)
    assert np.all(np.isfinite(entries.signal))
    starts = entries.starts(np.array([[1.0, 0.4, 0.02]], np.float32))
    assert np.all(np.isfinite(starts))
