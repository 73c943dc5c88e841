"""Parameters, statuses and estimates: by name, and of any shape."""

import numpy as np
import pytest

from labelwise import ADC, Estimate, InputError, MaximumLikelihood, Parameter, Rician, Status
from labelwise.types import estimate_voxels


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


@pytest.mark.parametrize(
    "name",
    [
        *("status", "nll", "residual", "iterations", "on_bound", "outside", "sigma", "Sigma"),
        *(
            "run",
            "maps",
            "net",
            "S0_standard_error",
            "STATUS",
            "D_Standard_Error",
            "D_low",
            "D_High",
            "all",
            "name",
        ),
        *("estimator", "parameter", "ſtatus"),
    ],
)
def test_a_parameter_named_like_an_output_is_refused(name):
    with pytest.raises(InputError, match=f"'{name}': another output of labelwise is called that"):
        Parameter(name, "1", (0, 1))


@pytest.mark.parametrize("name", ["con", "NUL", "Com1", "lpt9", "x" * 101, "µ" * 51])
def test_a_parameter_whose_map_could_be_no_file_is_refused(name):
    with pytest.raises(InputError, match="no possible file name on every system"):
        Parameter(name, "1", (0, 1))


@pytest.mark.parametrize("name", ["stat", "R2s", "sigma_b", "running", "D_µ", "com", "x" * 100])
def test_other_names_are_accepted(name):
    assert Parameter(name, "1", (0, 1)).name == name


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
        "NO_SIGNAL": 11,
        "TOO_FEW": 12,
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


# --- estimates by name

PARAMETERS = ADC.parameters


def some_estimate(shape=(3,)):
    values = np.arange(np.prod(shape) * 2, dtype=np.float32).reshape(*shape, 2)
    status = np.full(shape, Status.CONVERGED, np.uint8)
    return Estimate(values, status, {"standard_error": values / 10}, PARAMETERS)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_parameter_is_found_by_its_name(shape):
    estimate = some_estimate(shape)
    assert estimate.names == ("S0", "ADC")
    np.testing.assert_array_equal(estimate["ADC"], estimate.values[..., 1])
    errors = estimate.standard_error
    assert list(errors) == ["S0", "ADC"]
    np.testing.assert_array_equal(errors["S0"], estimate.values[..., 0] / 10)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(KeyError, match="no parameter 'D'; there are S0, ADC"):
        some_estimate()["D"]
    with pytest.raises(KeyError, match="no parameter 'D'; there are no names"):
        Estimate(np.zeros((1, 2)), np.zeros(1, int))["D"]


def test_an_estimate_is_printed_by_counts():
    estimate = some_estimate((50, 40))
    estimate.status[:10] = Status.ALL_ZERO
    assert repr(estimate) == (
        "Estimate(S0, ADC; 50 x 40 voxels: 1600 converged, 400 all measurements zero)"
    )
    status = np.arange(len(Status), dtype=np.uint8)
    assert len(repr(Estimate(np.zeros((len(Status), 2)), status, {}, PARAMETERS * 20))) < 500


# --- estimates of any shape

B = np.array([0.0, 0.2, 0.5, 1.0])
SHAPE = (4, 3, 2)
MASK = np.arange(24).reshape(SHAPE) % 3 > 0
SIGNAL = np.asarray(
    np.random.default_rng(0).uniform(80, 120, (*SHAPE, 1)) * np.exp(-0.9 * B), np.float32
)
SIGMA = np.linspace(2, 8, 24).reshape(SHAPE)
FIT = MaximumLikelihood(ADC(B), Rician())


def arrays(estimate):
    return {"values": estimate.values, "status": estimate.status, **estimate.stats}


def assert_same_voxels(found, flat, shape, where=slice(None)):
    assert found.parameters == flat.parameters
    assert found.status.shape == shape
    for name, rows in arrays(flat).items():
        part = arrays(found)[name]
        assert (part.shape, part.dtype) == ((*shape, *rows.shape[1:]), rows.dtype)
        assert part.reshape(rows.shape)[where].tobytes() == rows[where].tobytes()


@pytest.mark.parametrize(
    "sigma", [5.0, SIGMA, SIGMA[..., None] * [1.0, 1.1, 1.2, 1.3]], ids=["number", "map", "each"]
)
@pytest.mark.parametrize("shape", [(24,), (6, 4), SHAPE])
def test_voxels_are_estimated_in_any_shape(shape, sigma):
    rows = np.reshape(sigma, (24, *np.shape(sigma)[3:])) if np.ndim(sigma) else sigma
    flat = FIT(SIGNAL.reshape(24, 4), rows)
    if np.ndim(sigma):
        sigma = sigma.reshape(*shape, *sigma.shape[3:])
    assert_same_voxels(FIT(SIGNAL.reshape(*shape, 4), sigma), flat, shape)


@pytest.mark.parametrize("sigma", [5.0, [5.0, 5.5, 6.0, 6.5]])
def test_one_voxel_needs_no_axis_of_its_own(sigma):
    row = np.reshape(sigma, (1, -1)) if np.ndim(sigma) else sigma
    found = FIT(SIGNAL[0, 0, 0].tolist(), sigma)
    assert_same_voxels(found, FIT(SIGNAL[0, 0, :1], row), ())
    assert np.shape(found["ADC"]) == ()


@pytest.mark.parametrize(
    "sigma", [5.0, SIGMA, SIGMA[..., None] * [1.0, 1.1, 1.2, 1.3]], ids=["number", "map", "each"]
)
@pytest.mark.parametrize("shape", [(24,), (6, 4), SHAPE])
def test_a_mask_leaves_the_other_voxels_nan_and_changes_no_byte_inside(shape, sigma):
    if np.ndim(sigma):
        sigma = sigma.reshape(*shape, *sigma.shape[3:])
    signal, mask = SIGNAL.reshape(*shape, 4), MASK.reshape(shape)
    rows = np.reshape(sigma, (24, *np.shape(sigma)[len(shape) :])) if np.ndim(sigma) else sigma
    found = FIT(signal, sigma, mask=mask)
    assert_same_voxels(found, FIT(signal.reshape(24, 4), rows), shape, mask.reshape(-1))
    assert np.all(found.status[~mask] == Status.NOT_FITTED)
    assert np.isfinite(found.values[mask]).all()
    for rows in arrays(found).values():
        outside = rows[~mask]
        assert np.all(np.isnan(outside) if outside.dtype.kind == "f" else outside == 0)


def test_starts_follow_the_voxels_of_the_mask():
    start = np.broadcast_to(np.float32([100, 0.9]), (*SHAPE, 2)).copy()
    whole = FIT(SIGNAL, SIGMA, start=start)
    assert not np.array_equal(whole["ADC"], FIT(SIGNAL, SIGMA, start=2 * start)["ADC"])
    start[~MASK] = np.nan
    found = FIT(SIGNAL, SIGMA, start=start, mask=MASK)
    assert found.values[MASK].tobytes() == whole.values[MASK].tobytes()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_no_voxels_are_no_estimates(shape, masked):
    found = FIT(
        np.zeros((*shape, 4)), np.ones(shape), mask=np.ones(shape, bool) if masked else None
    )
    assert (found.values.shape, found.status.shape) == ((*shape, 2), shape)


def test_an_empty_mask_leaves_every_voxel_out():
    found = FIT(SIGNAL, SIGMA, mask=np.zeros(SHAPE, bool))
    assert np.isnan(found.values).all()
    assert np.all(found.status == Status.NOT_FITTED)


@pytest.mark.parametrize(
    ("signal", "sigma", "mask", "words"),
    [
        (SIGNAL[..., :3], 5.0, None, r"signal: expected \(\.\.\., 4\), .* got \(4, 3, 2, 3\)"),
        (SIGNAL[0, 0, :, :3], 5.0, None, r"signal: expected \(N, 4\), .* got \(2, 3\)"),
        (5.0, 5.0, None, r"signal: expected \(\.\.\., 4\), .* got \(\)"),
        (SIGNAL, SIGMA[..., 0], None, r"sigma: .* one for each voxel, \(4, 3, 2\), got \(4, 3\)"),
        (SIGNAL, SIGMA.reshape(-1), MASK, r"sigma: .* \(4, 3, 2\), got \(24,\)"),
        (SIGNAL, SIGNAL[..., :3], None, r"sigma: .* got \(24, 3\)"),
        (SIGNAL[0, 0], SIGMA[:, 0, 0], None, r"sigma: .* \(2,\), \(2, 4\) or \(1, 4\), got \(4,\)"),
        (SIGNAL[0, 0], np.ones(3), np.array([True, False]), r"sigma: .* got \(3,\)"),
        (SIGNAL, 5.0, MASK[..., 0], r"mask: expected .* of shape \(4, 3, 2\), got bool of"),
        (
            SIGNAL,
            5.0,
            2 * MASK.astype(int),
            r"mask: expected booleans.* got int64 of shape \(4, 3",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(signal, sigma, mask, words):
    with pytest.raises(InputError, match=words):
        FIT(signal, sigma, mask=mask)


def test_sigma_for_the_voxels_inside_alone_is_refused():
    """Once it was taken where its length was that of the mask's voxels."""
    flat, mask = SIGNAL.reshape(24, 4), MASK.reshape(24)
    with pytest.raises(InputError, match=r"sigma: .* \(24,\), \(24, 4\) or \(1, 4\), got \(16,\)"):
        FIT(flat, SIGMA.reshape(24)[mask], mask=mask)


def copied(signal, sigma, start=None):
    return Estimate(signal[:, :2] * 1.0, np.ones(len(signal), int), {}, ())


def test_a_mask_of_0_and_1_is_one_of_booleans():
    signal = np.arange(48.0).reshape(3, 2, 2, 4)
    mask = np.arange(12).reshape(3, 2, 2) % 3 == 0
    one = estimate_voxels(copied, signal, 1.0, 4, mask)
    other = estimate_voxels(copied, signal, 1.0, 4, mask.astype(np.uint8))
    np.testing.assert_array_equal(one.values, other.values)
    with pytest.raises(InputError, match="mask: expected booleans, or 0 and 1"):
        estimate_voxels(copied, signal, 1.0, 4, 2 * mask.astype(int))


@pytest.mark.parametrize("shape", [(2, 2), (2,), (2, 2, 3, 2)])
def test_more_rows_than_voxels_are_refused_by_name(shape):
    signal = np.ones((3, 2, 2, 4))
    with pytest.raises(InputError, match=r"start: expected an array that begins with .* got"):
        estimate_voxels(copied, signal, 1.0, 4, start=np.ones(shape))
