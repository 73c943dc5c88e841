"""Splitting a series: by value, evenly, in the order of the file, each volume once."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.io.acquisition import read_bvals
from labelwise.study.repeats import Repeats, split

SCANS = Path(__file__).parents[3] / "shared" / "data"
PAPER = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000


def test_the_papers_scan_becomes_its_sixteen_blocks():
    repeats = split({"b": np.tile(PAPER, 16)})
    np.testing.assert_array_equal(repeats.volumes, np.arange(160).reshape(16, 10))
    np.testing.assert_array_equal(repeats.settings["b"], PAPER)
    assert repeats.number == 16
    assert len(repeats.left_out) == 0


def test_settings_are_found_by_value_wherever_they_stand():
    order = np.random.default_rng(1).permutation(160)
    b = np.tile(PAPER, 16)[order]
    repeats = split({"b": b})
    np.testing.assert_array_equal(b[repeats.volumes], np.tile(PAPER, (16, 1)))
    assert np.all(np.diff(repeats.volumes, axis=0) > 0)  # earlier volumes, earlier acquisition


def test_a_group_is_shared_out_in_consecutive_runs():
    repeats = split({"b": np.array([0, 0, 0, 0, 0.8, 0.8])})
    np.testing.assert_array_equal(repeats.volumes, [[0, 1, 4], [2, 3, 5]])
    np.testing.assert_array_equal(repeats.settings["b"], [0, 0, 0.8])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_each_volume_is_used_once_or_left_out_once(sizes, random):
    b = np.repeat(np.arange(len(sizes)) / 10, sizes)
    random.shuffle(b)
    number = random.randint(2, min(sizes))
    repeats = split({"b": b}, number)
    both = np.concatenate([repeats.used, repeats.left_out])
    np.testing.assert_array_equal(np.sort(both), np.arange(len(b)))
    assert repeats.volumes.shape == (number, sum(size // number for size in sizes))
    np.testing.assert_array_equal(b[repeats.volumes], np.tile(repeats.settings["b"], (number, 1)))
    assert len(repeats.left_out) == sum(size % number for size in sizes)
    divisor = math.gcd(*sizes)
    if divisor > 1:
        assert split({"b": b}).number == divisor
        assert len(split({"b": b}).left_out) == 0


def test_what_does_not_divide_is_left_out_from_the_end_of_its_group():
    repeats = split({"b": np.array([0, 0.5, 0, 0.5, 0])}, repeats=2)
    np.testing.assert_array_equal(repeats.volumes, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(repeats.left_out, [4])


def test_b_values_within_the_tolerance_are_one_setting_at_their_mean():
    repeats = split({"b": np.array([0, 0.798, 0.001, 0.8])}, tolerance=0.005)
    np.testing.assert_array_equal(repeats.volumes, [[0, 1], [2, 3]])
    np.testing.assert_allclose(repeats.settings["b"], [0.0005, 0.799])


def test_settings_of_several_kinds_are_equal_only_together():
    te, ti = np.array([10.0, 20, 10, 20] * 2), np.array([100.0, 100, 500, 500] * 2)
    repeats = split({"te": te, "ti": ti})
    assert repeats.volumes.shape == (2, 4)
    np.testing.assert_array_equal(repeats.settings["te"], [10, 10, 20, 20])
    np.testing.assert_array_equal(repeats.settings["ti"], [100, 500, 100, 500])


def test_the_signal_by_acquisition():
    repeats = split({"b": np.array([0, 0.5, 0, 0.5, 0])}, repeats=2)
    signal = np.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(repeats.of(signal), [[[0, 1], [2, 3]], [[5, 6], [7, 8]]])


@pytest.mark.parametrize(
    ("b", "repeats", "message"),
    [
        (
            PAPER,
            None,
            r"repeats: the series has none: b = 0 s/mm² \(once\), b = 10 .* more than on",
        ),
        ([0, 0, 0, 0.8], None, r"has none: b = 0 s/mm² \(3 times\), b = 800 s/mm² \(once\);"),
        ([0, 0, 0, 0.8], 2, r"has none: b = 0 s/mm² \(3 times\), b = 800 s/mm² \(once\);"),
        ([0, 0, 0, 0.8, 0.8], None, r"does not divide evenly .*\(--repeats, 2 to 2\)"),
        ([0, 0, 0, 0.8, 0.8], 3, r"expected 2 to 2, as often as the rarest .* got 3: the series"),
        ([0, 0, 0.8, 0.8], 1, r"expected 2 to 2, .* got 1"),
        ([0, 0, 0.8, 0.8], 0, r"expected 2 to 2, .* got 0"),
        (np.arange(30.0), None, r"and 18 more; give a series"),
    ],
)
def test_what_cannot_be_split_says_why(b, repeats, message):
    with pytest.raises(ValueError, match=message):
        split({"b": np.array(b)}, repeats)


@pytest.mark.skipif(not SCANS.exists(), reason="the shared scans are not there")
@pytest.mark.parametrize(
    ("scan", "shape"), [("abdomen_ivim_repeats", (6, 9)), ("abdomen_ivim", (12, 25))]
)
def test_real_scans(scan, shape):
    b = read_bvals(SCANS / scan / "dwi.bval")
    repeats: Repeats = split({"b": b})
    assert repeats.volumes.shape == shape
    assert len(repeats.left_out) == 0
    np.testing.assert_array_equal(b[repeats.volumes], np.tile(repeats.settings["b"], (shape[0], 1)))
