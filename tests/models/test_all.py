"""Laws of every built-in signal model. A new one joins this list and is checked."""

from dataclasses import replace

import numpy as np
import pytest

from helpers import MODELS
from labelwise import ADC, IVIM, T2, Kurtosis, T1InversionRecovery
from labelwise.models.base import SelfStarting, measurements, scale_parameter, settings_of
from labelwise.models.check import check_signal_model
from labelwise.models.evaluate import signals
from labelwise.models.find import available_models

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)


def a_voxel(model):
    shares = np.resize([0.7, 0.3, 0.4, 0.2], len(model.parameters))
    pairs = zip(model.parameters, shares, strict=True)
    return [p.bounds[0] + share * min(p.bounds[1] - p.bounds[0], 100.0) for p, share in pairs]


def test_every_built_in_model_is_in_the_list():
    assert {type(model) for model in MODELS} == set(available_models().values())


@each_model
def test_keeps_the_contract(model):
    check_signal_model(model)


@each_model
def test_s0_comes_first_and_multiplies_everything(model):
    assert model.parameters[0].name == "S0"
    assert scale_parameter(model) == 0


@each_model
def test_documents_source_and_units(model):
    documentation = type(model).__doc__
    assert "doi:10." in documentation
    assert "Example:" in documentation
    assert " in ms" in documentation


@pytest.mark.parametrize(
    "model",
    [model for model in MODELS if not hasattr(model, "t1")],  # a train of echoes is one whole
    ids=lambda m: type(m).__name__,
)
def test_signal_of_a_subset_is_the_subset_of_the_signal(model):
    chosen = [3, 0, 2]
    part = replace(model, **{k: values[chosen] for k, values in settings_of(model).items()})
    whole = np.asarray(model.signal(*a_voxel(model)))
    # XLA's scalar and vector loops round differently
    np.testing.assert_allclose(part.signal(*a_voxel(model)), whole[chosen], rtol=2e-7)


@pytest.mark.parametrize(
    "model",
    [model for model in MODELS if isinstance(model, SelfStarting)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("data", ["zeros", "ones", "one measurement", "noise-free"])
def test_guess_is_finite_or_none_for_any_data(model, data):
    """It must not break on flat or sparse data; a voxel of zeros may have any."""
    signal = {
        "zeros": np.zeros(measurements(model)),
        "ones": np.ones(measurements(model)),
        "one measurement": np.eye(measurements(model))[0],
        "noise-free": signals(model, np.array([a_voxel(model)]))[0],
    }[data]
    guess = np.array([float(value) for value in model.guess(signal)])
    assert guess.shape == (len(model.parameters),)
    assert np.isfinite(guess).all() or np.isnan(guess).all() or data == "zeros"


@pytest.mark.parametrize("model_class", [ADC, IVIM, Kurtosis, T2, T1InversionRecovery])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "1D array"),
        (3.0, "1D array"),
        ([[1.0, 2.0]], "1D array"),
        ([1.0, np.nan], "NaN or infinite"),
        ([1.0, np.inf], "NaN or infinite"),
    ],
)
def test_refuses_an_acquisition_that_is_none(model_class, settings, message):
    with pytest.raises(ValueError, match=message):
        model_class(settings)
