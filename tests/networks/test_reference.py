"""What a voxel is divided by, and which of its measurements are one."""

import pytest

from helpers import BlackBox, Offset
from labelwise import (
    ADC,
    IVIM,
    T2,
    InputError,
    Kurtosis,
    T1InversionRecovery,
    T1SignedInversionRecovery,
)
from labelwise.networks.reference import measurement_groups, reference_measurements


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (IVIM([0.8, 0, 0.1, 0, 0.4]), (1, 3)),
        (ADC([0.5, 0.1, 1.0]), (1,)),
        (ADC([0.0, 0.0005, 0.5, 1.0]), (0, 1)),
        (T2([40.0, 10.0, 80.0]), (1,)),
        (T1InversionRecovery([3000.0, 50.0, 400.0, 1100.0]), (0, 1, 2, 3)),  # each has a null
        (Kurtosis([2.5, 0.0, 1.0, 0.0]), (1, 3)),  # some draws explode at high b
        (BlackBox([1.0, 0.0]), (1,)),
        (Offset([0.0, 1.0]), ()),
    ],
)
def test_the_reference_is_the_lowest_b_or_what_never_vanishes(model, expected):
    assert reference_measurements(model) == expected


def test_equal_settings_are_one_measurement():
    assert measurement_groups(ADC([1.0, 0.0, 0.5, 0.0, 0.5005])) == ((1, 3), (2, 4), (0,))


def test_the_tolerance_decides_what_is_equal():
    model = ADC([0.0, 0.005, 0.5, 0.51, 1.0])
    assert measurement_groups(model) == ((0,), (1,), (2,), (3,), (4,))
    assert measurement_groups(model, 0.01) == ((0, 1), (2, 3), (4,))
    assert reference_measurements(model, 0.01) == (0, 1)


def test_a_signal_that_is_negative_for_some_tissue_has_no_reference():
    with pytest.raises(InputError, match="T1SignedInversionRecovery: its signal is negative"):
        reference_measurements(T1SignedInversionRecovery([50, 400, 1100, 2500]))
