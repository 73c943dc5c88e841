"""Laws of every built-in signal model. A new one joins this list and is checked."""

import numpy as np
import pytest

from labelwise import (
    ADC,
    IVIM,
    T2,
    T2EPG,
    Kurtosis,
    T1InversionRecovery,
    T1SignedInversionRecovery,
    T2Biexponential,
)
from labelwise.models.base import scale_parameter
from labelwise.models.check import check_signal_model
from labelwise.models.find import available_models

MODELS = [
    ADC([0, 0.1, 0.5, 1.0]),
    IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8]),
    Kurtosis([0, 0.5, 1.0, 2.0, 2.5]),
    T1InversionRecovery([0, 50, 400, 1100, 2500]),
    T1SignedInversionRecovery([0, 50, 400, 1100, 2500]),
    T2([0, 20, 40, 80, 160]),
    T2Biexponential(10.0 * np.arange(33)),
    T2EPG(10.0 * np.arange(1, 17)),
]

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)


def a_voxel(model):
    pairs = zip(model.parameters, [0.7, 0.3, 0.4, 0.2], strict=False)
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
    "model", [model for model in MODELS if model.differentiable], ids=lambda m: type(m).__name__
)
def test_signal_of_a_subset_is_the_subset_of_the_signal(model):
    name = "b" if hasattr(model, "b") else "ti" if hasattr(model, "ti") else "te"
    chosen = [3, 0, 2]
    part = type(model)(getattr(model, name)[chosen])
    whole = np.asarray(model.signal(*a_voxel(model)))
    np.testing.assert_array_equal(part.signal(*a_voxel(model)), whole[chosen])


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
