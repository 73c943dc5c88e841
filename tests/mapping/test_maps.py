"""The names of maps and files, and the names that parameters may not have because of them."""

import pytest

from labelwise import ADC
from labelwise.evaluation import grid
from labelwise.io.results import RUN
from labelwise.mapping.by_network import NETWORK
from labelwise.mapping.maps import PICTURE, maps_of_fit, maps_of_network
from labelwise.mapping.page import PAGE
from labelwise.types import ENDINGS, OUTPUTS, STANDARD_ERROR

KINDS = dict.fromkeys(("S0", "ADC"), "credible")


@pytest.mark.parametrize("errors", [True, False])
def test_no_parameter_may_be_named_like_a_map(errors):
    maps = maps_of_fit(ADC.parameters, True, errors)
    maps += maps_of_network(ADC.parameters, KINDS, errors)
    names = {each.name for each in maps}
    parameters = {parameter.name for parameter in ADC.parameters}
    beside = {f"{name}{ending}" for name in parameters for ending in ENDINGS}
    if not errors:
        beside -= {f"{name}{STANDARD_ERROR}" for name in parameters}
    assert beside < names
    assert names - parameters - beside <= OUTPUTS


@pytest.mark.parametrize("kind", ["confidence", "credible", "blend"])
def test_a_map_of_an_end_has_the_kind_and_the_level_of_its_interval(kind):
    maps = {each.name: each for each in maps_of_network(ADC.parameters, {"ADC": kind})}
    assert ("ADC_sd" in maps) == (kind == "credible")
    for name in ("ADC_low", "ADC_high", "ADC_uncertainty"):
        assert maps[name].details["interval"] == kind
        assert maps[name].details["level"] == 0.95
    assert "S0_low" not in maps  # without an interval: its standard error
    assert "S0_standard_error" in maps
    assert "ADC_standard_error" not in maps


def test_no_parameter_may_be_named_like_another_file():
    assert {
        file.partition(".")[0] for file in (RUN, PICTURE, PAGE, NETWORK, "sigma.json")
    } <= OUTPUTS


def test_no_parameter_may_be_named_like_a_dimension_of_an_evaluation():
    assert set(grid._OWN_DIMENSIONS) <= OUTPUTS
