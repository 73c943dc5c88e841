"""The names of maps and files, and the names that parameters may not have because of them."""

import pytest

from labelwise import ADC
from labelwise.evaluation import grid
from labelwise.io.results import RUN
from labelwise.mapping.by_network import NETWORK
from labelwise.mapping.maps import PICTURE, maps_of_fit, maps_of_network
from labelwise.mapping.page import PAGE
from labelwise.types import OUTPUTS, STANDARD_ERROR


@pytest.mark.parametrize("maps", [maps_of_fit, maps_of_network])
def test_no_parameter_may_be_named_like_a_map(maps):
    names = {each.name for each in maps(ADC.parameters)}
    parameters = {parameter.name for parameter in ADC.parameters}
    errors = {f"{name}{STANDARD_ERROR}" for name in parameters}
    assert errors < names
    assert names - parameters - errors <= OUTPUTS


def test_no_parameter_may_be_named_like_another_file():
    assert {
        file.partition(".")[0] for file in (RUN, PICTURE, PAGE, NETWORK, "sigma.json")
    } <= OUTPUTS


def test_no_parameter_may_be_named_like_a_dimension_of_an_evaluation():
    assert set(grid._OWN_DIMENSIONS) <= OUTPUTS
