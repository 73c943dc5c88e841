import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from labelwise.io.acquisition import (
    average,
    average_settings,
    doubts,
    group_equal,
    read_bvals,
    read_bvecs,
    read_table,
    read_times,
    sigma_factor,
    times_file,
    zero_b,
)
from labelwise.types import InputError


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    "text",
    [
        "0 10 800\n",
        "0\n10\n800\n",
        "0\t10\t800",
        " 0  10 800 \r\n\r\n",
        "0, 10, 800",
        "\ufeff0 10 800",
        "0 10 800 \t",
        "0,\n10,\n800,\n",
        "0;10;800;",
        "0\r10\r800\r",
        "0 1e1 8.0E+02",
        "-0 10 800",
        "# s/mm²\n0 10 800 % by hand\n",
        "# s/mm²\n0 10 800".encode("cp1252"),
        "0 10 800\r\n\x1a",
        "0 10 800\0",
        "0 10 800\r\n".encode("utf-16"),
        "0 10 800\r\n".encode("utf-16") + b"\x1a",
        "0 10 800".encode("utf-16-le"),
        "0 10 800".encode("utf-16-be"),
        "# s/mm²\n0 10 800".encode("utf-32"),
        "[0, 10,\n 800]",
        "[  0.  10.\n 800.]\n",
        "[0;10;800]",
        "0, 10,800",
    ],
)
def test_bvals_are_converted_from_s_per_mm2(write, text):
    b = read_bvals(write("dwi.bval", text))
    np.testing.assert_allclose(b, [0, 0.01, 0.8])
    assert not np.signbit(b).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 10 b800", r"dwi.bval, line 1: expected numbers, got 'b800'"),
        ("b\n0 10 800", r"dwi.bval, line 1: expected numbers, got 'b'"),
        ("0 1_000", r"expected numbers, got '1_000'"),
        ("0 10 800 " + 200 * "x", r"got 'x{55}\.\.\.'$"),
        ("0 -10 800", r"expected values >= 0 s/mm², got -10 in .*dwi.bval"),
        ("0 nan 800", r"dwi.bval has NaN or infinite values \(number 2\)"),
        ("0 inf 800", r"dwi.bval has NaN or infinite values"),
        ("", r"dwi.bval is empty"),
        (
            "0 1 0\n0 0 1\n1 0 0\n",
            r"line 1: has 3 numbers, but there are 3 lines; expected",
        ),
        ("0\n10\n\n500 800\n", r"line 4: has 2 numbers, but there are 3 lines; expected one row"),
        (b"\x93NUMPY\xff\xfe\x00", r"dwi.bval: expected a text file, got binary data"),
        (b"0 10 800\x1a 900", r"dwi.bval: expected a text file, got binary data"),
        ("0,0 0,0 0,5", r"line 1: the commas in '0,0 0,0 0,5' could be decimal commas"),
        ("0,0\n0,0\n0,5\n", r"line 1: has 2 numbers, .* or decimal commas\?"),
        ("0,0; 0,5", r"could be decimal commas"),
        ("0,0, 0,5, 1,2", r"could be decimal commas"),
        ("0,05,1,20", r"could be decimal commas"),
        ("500,000 1,000", r"could be decimal commas"),
        ("0,,800", r"line 1: an entry is missing between two separators"),
        (", 0, 800", r"line 1: an entry is missing between two separators"),
        ("[0 10 800", r"line 1: expected numbers, got '\[0'"),
    ],
)
def test_bad_bvals_are_refused_with_a_sentence(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_bvals(write("dwi.bval", text))


def test_missing_bvals_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.bval"):
        read_bvals(tmp_path / "missing.bval")


@pytest.mark.parametrize("text", ["0 0.5 1 3", "0 40000"], ids=["ms/µm²", "very large"])
def test_implausible_bvals_warn_once_with_the_number(write, text):
    with pytest.warns(UserWarning, match=r"largest value .* expected 20 to 30000 s/mm²") as caught:
        read_bvals(write("dwi.bval", text))
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("0 1000000050 1000000800", r"1000000800, .*GE scanners add 1e9 .* subtract 1e9"),
        ("0 1e9", r"GE scanners add 1e9 .*; or they are in s/m²"),
        ("0 1e8 8e8", r"in s/m²\? divide by 1e\+06"),
        ("0 1e9 3e9", r"in s/m²\? divide by 1e\+06"),
        ("0 80000", r"in s/cm²\? divide by 100"),
        ("0 1e6", r"in s/cm²\? divide by 100"),
        ("0 1e15", r"expected 20 to 30000 s/mm²; convert"),
    ],
)
def test_impossible_bvals_are_refused_with_the_likely_cause(write, text, cause):
    with pytest.raises(InputError, match=rf"b: the largest value in .*bval is .*{cause}"):
        read_bvals(write("dwi.bval", text))


@pytest.mark.parametrize(
    "text", ["10,20,30", "10 20 30", "10, 20, 30", "[10, 20, 30]", "(10,20,30)", "{10;20;30}"]
)
def test_times_from_a_list(text):
    np.testing.assert_array_equal(read_times(text, "te"), [10, 20, 30])


@pytest.mark.parametrize("text", ["10,20,30", "10\n20\n30\n"])
def test_times_from_a_file(write, text):
    np.testing.assert_array_equal(read_times(str(write("echo.txt", text)), "te"), [10, 20, 30])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10,twenty", r"ti: expected times in ms .* got '10,twenty'"),
        ("no/such/file.txt", r"an existing text file of them, got 'no/such/file.txt'"),
        ("10,-20", r"ti: expected values >= 0 ms, got -20"),
        ("10,nan", r"ti: .* NaN"),
        (",", r"ti: .* is empty"),
        ("9,7 19,3", r"decimal commas"),
        ("[10, 20", r"got '\[10, 20' \(expected numbers, got '\[10'\)"),
        ("10\0", r"an existing text file of them, got '10\\x00'"),
    ],
)
def test_bad_times_are_refused_with_a_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        read_times(text, "ti")


@pytest.mark.parametrize(
    ("text", "name"),
    [("0.2,0.8", "te"), ("10000,80000", "te"), ("5,15", "ti"), ("50000,3e5", "ti")],
)
def test_implausible_times_warn(text, name):
    with pytest.warns(UserWarning, match=f"{name}: .* check that its unit is ms"):
        read_times(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("0.01,0.08", "te"), ("10000,8e6", "te"), ("0.05,3", "ti"), ("50000,3e6", "ti")],
)
def test_times_in_another_unit_are_refused(text, name):
    with pytest.raises(InputError, match=f"{name}: .* expected .* ms \\(in µ?s\\? "):
        read_times(text, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("acq.json", json.dumps({"b": [0, 500], "te": [60, 80.0], "profile": ["a", "b"]})),
        ("acq.tsv", "b\tte\tprofile\n0\t60\ta\n500\t80\tb\n"),
        ("ACQ.TSV", "b\tte\tprofile\r\n0\t60\ta\r\n\r\n500\t80\tb"),
    ],
)
def test_tables_give_numbers_by_name_and_leave_labels_out(write, name, content):
    table = read_table(write(name, content))
    assert list(table) == ["b", "te"]
    np.testing.assert_allclose(table["b"], [0, 0.5])
    np.testing.assert_allclose(table["te"], [60, 80])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("acq.csv", "b\n0\n", r"expected a .json or .tsv table"),
        ("acq.json", "[0, 500]", r"expected an object of lists"),
        ("acq.json", '{"b": 500}', r"expected an object of lists"),
        ("acq.json", '{"b": [0,', r"not valid JSON"),
        ("acq.json", '{"b": [0, null]}', r"column b, entry 2: expected numbers, got None"),
        ("acq.json", '{"b": [0, true]}', r"column b, entry 2: expected numbers, got True"),
        ("acq.json", '{"b": [0, "1_0"]}', r"column b, entry 2: expected numbers, got '1_0'"),
        ("acq.json", '{"b": [0], "b": [1]}', r"not valid JSON \('b' occurs twice\)"),
        ("acq.json", "[" * 200_000, r"not valid JSON \(nested too deeply\)"),
        ("acq.json", '{"b": ' + "[" * 150 + "]" * 150 + "}", r"not valid JSON \(nested too"),
        ("acq.json", '{"b": [0, ' + "9" * 5000 + "]}", r"not valid JSON \(Exceeds the limit"),
        ("acq.tsv", "b\tx\n0\t" + 140_000 * "1", r"line 2: no table \(field larger than"),
        ("acq.tsv", "b\n0,5\n1,0\n", r"column b, entry 1: expected numbers, got '0,5'"),
        ("acq.json", '{"b": [0, NaN]}', r"b: .* NaN"),
        ("acq.json", '{"b": [0, 500], "te": [60]}', r"columns differ in length: .*'te': 1"),
        ("acq.json", '{"b": []}', r"b: .* is empty"),
        ("acq.json", "{}", r"no column of numbers"),
        ("acq.tsv", "", r"no column of numbers"),
        ("acq.tsv", "b\tte\n0\t60\n500\n", r"line 3 has 1 entries, the header names 2"),
        ("acq.tsv", "b\tb\n0\t500\n", r"distinct column names"),
        ("acq.tsv", "b\tx\n0\t1\n500\tn/a\n", r"column x, entry 2: expected numbers, got 'n/a'"),
        ("acq.tsv", "b\nlow\nhigh\n", r"column b, entry 1: expected numbers, got 'low'"),
        ("acq.tsv", "b\n0\n-500\n", r"expected values >= 0 s/mm², got -500"),
    ],
)
def test_bad_tables_are_refused_with_a_sentence(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(name, content))


def test_zero_b_goes_by_value_not_by_position():
    b = np.array([0.005, 0.8, 0.0, 0.001])
    np.testing.assert_array_equal(zero_b(b, 0.0), [False, False, True, False])
    np.testing.assert_array_equal(zero_b(b, 0.001), [False, False, True, True])


@pytest.mark.parametrize(
    ("b", "tolerance", "expected"),
    [
        ([0.8, 0, 0.8, 0], 0.0, [[1, 3], [0, 2]]),
        ([0.8, 0, 0.81, 0], 0.0, [[1, 3], [0], [2]]),
        ([0.8, 0, 0.81, 0], 0.01, [[1, 3], [0, 2]]),
        ([0.995, 1.0, 1.005], 0.005, [[0, 1], [2]]),  # no chains
    ],
    ids=["equal", "not unasked", "tolerance", "chain"],
)
def test_groups_of_equal_b(b, tolerance, expected):
    groups = group_equal({"b": np.array(b)}, tolerance)
    assert [group.tolist() for group in groups] == expected


def test_measurements_of_other_settings_stay_apart():
    groups = group_equal(
        {"te": np.array([80, 60, 60, 80.0]), "b": np.array([0.5, 0.5, 0.501, 0.5])}, 0.01
    )
    assert [group.tolist() for group in groups] == [[1, 2], [0, 3]]


def test_the_tolerance_is_about_b_alone():
    groups = group_equal({"te": np.array([60.0, 60.001])}, 0.01)
    assert [group.tolist() for group in groups] == [[0], [1]]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30),
    st.integers(0, 10),
    st.randoms(use_true_random=False),
)
def test_groups_are_a_partition_that_does_not_depend_on_the_order(b, tolerance, random):
    b = np.array(b) / 10
    order = np.array(random.sample(range(len(b)), len(b)))
    groups, shuffled = (group_equal({"b": x}, tolerance / 10) for x in (b, b[order]))
    assert sorted(np.concatenate(groups)) == list(range(len(b)))
    assert all(np.ptp(b[group]) <= tolerance / 10 + 1e-9 for group in groups)
    firsts = [b[group].min() for group in groups]
    assert firsts == sorted(firsts)
    assert [sorted(order[group]) for group in shuffled] == [group.tolist() for group in groups]


@pytest.mark.parametrize(
    ("how", "reference"), [("geometric", scipy.stats.gmean), ("arithmetic", np.mean)]
)
def test_averages_agree_with_scipys_and_numpys(how, reference):
    signal = np.random.default_rng(3).uniform(1, 100, (50, 6)).astype(np.float32)
    groups = [np.array([1, 4]), np.array([0, 2, 5]), np.array([3])]
    mean = average(signal, groups, how)
    expected = [reference(signal[:, group].astype(float), axis=1) for group in groups]
    np.testing.assert_allclose(mean, np.stack(expected, axis=1), rtol=1e-6)
    assert mean.dtype == np.float32


def test_geometric_average_of_directions_has_the_mean_diffusivity():
    b, d = 0.8, np.array([[0.5, 1.0, 2.4]])
    signal = average(100 * np.exp(-b * d), [np.arange(3)], "geometric")
    np.testing.assert_allclose(-np.log(signal / 100) / b, d.mean(), rtol=1e-12)


@pytest.mark.parametrize("how", ["geometric", "arithmetic"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_measurement_that_is_not_finite_stays_visible_in_its_own_voxel(how, bad):
    signal = np.array([[4.0, bad], [4.0, 4.0]])
    mean = average(signal, [np.array([0, 1])], how)
    assert not np.isfinite(mean[0, 0])
    assert mean[1, 0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("values", "expected"), [([4, 0], 0), ([4, -1], np.nan), ([0, -1], np.nan), ([0, 0], 0)]
)
def test_geometric_average_of_zero_is_zero_and_of_negative_is_nan(values, expected):
    mean = average(np.array([values], dtype=float), [np.array([0, 1])], "geometric")
    np.testing.assert_array_equal(mean, [[expected]])


def test_a_group_of_one_is_passed_on_untouched():
    signal = np.array([[-1.0, 3.3]])
    groups = [np.array([0]), np.array([1])]
    np.testing.assert_array_equal(average(signal, groups, "geometric"), signal)


def test_another_average_is_refused():
    with pytest.raises(ValueError, match="'geometric' or 'arithmetic', got 'median'"):
        average(np.ones((1, 1)), [np.array([0])], "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["geometric", "arithmetic"])
def test_averaging_shrinks_the_noise_by_the_sigma_factor(how):
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((20_000, 6)) + 1j * rng.standard_normal((20_000, 6))
    groups = [np.array([0]), np.array([1, 2, 3, 4, 5])]
    spread = average(np.abs(30 + noise), groups, how).std(axis=0)
    np.testing.assert_allclose(spread, sigma_factor(groups), rtol=0.02)


def test_settings_are_averaged_like_the_signal():
    acquisition = {"b": np.array([0, 1, 1.01]), "te": np.array([60, 70, 70])}
    mean = average_settings(acquisition, group_equal(acquisition, 0.01))
    np.testing.assert_allclose(mean["b"], [0, 1.005])
    np.testing.assert_allclose(mean["te"], [60, 70])


@pytest.mark.parametrize("brackets", ["{}", "[{}]", "[{},]"])
def test_a_list_longer_than_a_file_name_may_be(brackets):
    times = brackets.format(", ".join(str(10 * echo) for echo in range(1, 200)))
    assert len(read_times(times, "te")) == 199
    assert times_file(times) is None


def test_a_list_is_no_file_even_if_there_is_one_of_that_name(write, monkeypatch, tmp_path):
    path = write("10", "30 40")
    monkeypatch.chdir(tmp_path)
    assert times_file("10") is None
    assert times_file(str(path)) == path


def test_doubts_about_units_need_no_file():
    settings = {"b": np.array([0, 1e-3]), "te": np.array([20_000.0]), "x": np.array([1e9])}
    b, te = doubts(settings)
    assert "(in ms/µm²? multiply by 1000); check that its unit is s/mm²" in b
    assert "(in µs? divide by 1000); check that its unit is ms" in te
    assert doubts({"b": np.array([0, 0.8]), "te": np.array([80.0])}) == []


BVECS = np.array([[0, 1, 0, 0.6], [0, 0, 1, 0.8], [0, 0, 0, 0]])


@pytest.mark.parametrize("table", [BVECS, BVECS.T], ids=["three lines", "a line each"])
def test_directions_are_read_in_both_layouts(write, table):
    text = "\n".join(" ".join(f"{value:g}" for value in row) for row in table)
    read = read_bvecs(write("dwi.bvec", text), np.array([0, 1.0, 1.0, 2.0]))
    assert list(read) == ["gx", "gy", "gz"]
    np.testing.assert_allclose(np.stack([*read.values()]), BVECS, atol=1e-12)


def test_directions_are_normalised_and_mean_nothing_at_b_0(write):
    path = write("dwi.bvec", "1 0.999\n0 0\n0 0.01\n")
    read = read_bvecs(path, np.array([0.0, 1.0]))
    np.testing.assert_allclose(np.linalg.norm([*read.values()], axis=0), [0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0\n0 1\n", "expected three lines of numbers of equal length.*got 2 lines of 2"),
        ("1 0\n0\n0 1\n", "got 3 lines of 1, 2 numbers"),
        ("", "got 0 lines of no numbers"),
        ("1 0 0 1\n0 1 0 0\n0 0 1 0\n", "expected 3 directions, one for each b-value, got 4"),
        ("1 0.5 0\n0 0 1\n0 0 0\n", "direction 2 has length 0.5, expected 1"),
        ("1 0 0\n0 0 1\n0 0 0\n", "direction 2 has length 0, expected 1"),
        ("1 x 0\n0 0 1\n0 0 0\n", "line 1: expected numbers, got 'x'"),
    ],
)
def test_bad_directions_are_refused_with_a_sentence(write, text, message):
    with pytest.raises(InputError, match=message):
        read_bvecs(write("dwi.bvec", text), np.array([0, 1.0, 1.0]))


def test_flip_angles_are_in_degrees():
    np.testing.assert_array_equal(read_times("2, 5, 15", "flip_angle"), [2, 5, 15])
    with pytest.raises(InputError, match=r"flip_angle: .* \(in radians\? multiply by 57"):
        read_times("0.1, 0.3", "flip_angle")
    with pytest.raises(InputError, match="flip_angle: expected numbers in degrees such as"):
        read_times("ten", "flip_angle")
