"""Protocols: every acquisition is one of its model, and has a source or a statement of its lack."""

import numpy as np
import pytest

from labelwise.io.protocols import Protocol, find_protocol, protocols
from labelwise.io.toml import checked
from labelwise.models.base import acquisition_names
from labelwise.models.check import check_signal_model
from labelwise.models.find import find_model
from labelwise.networks.reference import reference_measurements
from labelwise.types import InputError


def test_there_are_ten_and_they_cover_what_is_asked():
    assert len(protocols()) == 10
    assert {each.model for each in protocols().values()} == {
        *("ivim", "ivim_simplified", "adc", "kurtosis", "t1_ir", "t2_mese")
    }


@pytest.mark.parametrize("name", protocols())
def test_a_network_can_be_trained_for_each(name):
    protocol = find_protocol(name)
    kind = find_model(protocol.model)
    assert set(protocol.acquisition) == set(acquisition_names(kind))
    model = kind(**protocol.acquisition)
    check_signal_model(model)
    assert reference_measurements(model)


@pytest.mark.parametrize("name", protocols())
def test_each_has_a_source_or_states_that_it_is_not_confirmed(name):
    protocol = find_protocol(name)
    assert protocol.title
    assert protocol.checked
    assert protocol.source or "not confirmed" in protocol.checked or "neither" in protocol.checked
    assert all(doi.startswith("10.") and "/" in doi for doi in protocol.source)


def test_units_are_those_of_the_models():
    assert find_protocol("liver_ivim").acquisition["b"][-1] == 0.8
    np.testing.assert_array_equal(
        find_protocol("brain_mese").acquisition["te"], 10 * np.arange(1, 33)
    )


def test_mistakes():
    with pytest.raises(
        InputError, match=r"protocol 'liver': did you mean 'liver_ivim'\? Known are"
    ):
        find_protocol("liver")
    with pytest.raises(InputError, match=r"x: b must be a list of numbers, one for each volume"):
        checked(Protocol, {"title": "", "model": "", "source": [], "checked": "", "b": "0"}, "x")
