import numpy as np
import pytest

from labelwise import Estimate, Parameter, Status


def test_parameter_keeps_what_it_was_given():
    parameter = Parameter("D_slow", "µm²/ms", (0, np.inf), "D_{slow}")
    assert (parameter.name, parameter.unit, parameter.symbol) == ("D_slow", "µm²/ms", "D_{slow}")
    assert parameter.bounds == (0.0, np.inf)


def test_symbol_defaults_to_the_name():
    assert Parameter("f", "1", (0, 1)).symbol == "f"


@pytest.mark.parametrize(
    ("name", "unit", "bounds", "message"),
    [
        ("D slow", "µm²/ms", (0, 1), "letters, digits and underscores"),
        ("", "µm²/ms", (0, 1), "letters, digits and underscores"),
        ("D", "", (0, 1), "give its unit"),
        ("D", "µm²/ms", (1, 1), "larger upper"),
        ("D", "µm²/ms", (2, 1), "larger upper"),
        ("D", "µm²/ms", (np.nan, 1), "finite lower bound"),
        ("D", "µm²/ms", (0, np.nan), "larger upper"),
        ("D", "µm²/ms", (-np.inf, 1), "finite lower bound"),
    ],
)
def test_parameter_refuses(name, unit, bounds, message):
    with pytest.raises(ValueError, match=message):
        Parameter(name, unit, bounds)


def test_parameters_are_values():
    one, same = Parameter("f", "1", (0, 1)), Parameter("f", "1", (0.0, 1.0))
    assert one == same
    assert hash(one) == hash(same)


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_every_status_has_a_reason_of_its_own(status):
    others = {other.reason for other in Status if other is not status}
    assert status.reason
    assert status.reason not in others


def test_status_codes_do_not_change():
    """They are written into files: a new one gets a new number."""
    assert {status.name: int(status) for status in Status} == {
        "NOT_FITTED": 0,
        "CONVERGED": 1,
        "ON_BOUND": 2,
        "NOT_CONVERGED": 3,
        "NOT_FINITE": 4,
        "NEGATIVE": 5,
        "ALL_ZERO": 6,
        "BAD_SIGMA": 7,
        "NO_REFERENCE": 8,
        "PREDICTED": 9,
        "EXTRAPOLATED": 10,
    }


def test_only_fitted_and_predicted_voxels_have_values():
    with_values = {Status.CONVERGED, Status.ON_BOUND, Status.PREDICTED, Status.EXTRAPOLATED}
    assert {status for status in Status if status.has_values} == with_values


@pytest.mark.parametrize("typical", [(0.0, 0.4), (0.1, 0.6), (0.3, 0.2), (0.2, 0.2)])
def test_a_typical_range_outside_the_bounds_or_empty_is_refused(typical):
    with pytest.raises(ValueError, match="parameter f: typical range"):
        Parameter("f", "1", (0.01, 0.5), typical=typical)


def test_estimates_do_not_share_their_stats():
    first, second = (Estimate(np.zeros((1, 2)), np.zeros(1, int)) for _ in range(2))
    assert first.stats is not second.stats
