"""The in vivo pipeline, on estimators whose answers are known, and on real scans."""

from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import labelwise as lw
from helpers import BlackBox, noise_of_repeats
from labelwise.io.acquisition import read_bvals
from labelwise.io.nifti import open_series, read_mask
from labelwise.study.in_vivo import (
    Reference,
    assess,
    binned,
    matching,
    usable_reference,
)
from labelwise.study.repeats import split
from labelwise.types import Estimate, Status

SCANS = Path(__file__).parents[3] / "shared" / "data"
ADC = lw.ADC([0.0, 0.4, 0.8])
SIGMA = 2.0
RANGES = np.array([[80.0, 120.0], [0.5, 2.5]])


class FromSignal:
    """Estimates that are the first two measurements; fails where the third is negative."""

    parameters = ADC.parameters

    def __init__(self, slope=1.0, offset=0.0):
        self.slope, self.offset = slope, offset
        self.sizes = []

    def __call__(self, signal, sigma):
        assert np.shape(sigma) == (len(signal),)
        self.sizes.append(len(signal))
        values = self.slope * np.asarray(signal, float)[:, :2] + self.offset
        bad = ~(np.asarray(signal)[:, 2] >= 0)
        values[bad] = np.nan
        return Estimate(values, np.where(bad, Status.NEGATIVE, Status.CONVERGED))


class Sigma:
    """Says sigma of everything."""

    parameters = ADC.parameters

    def __call__(self, signal, sigma):
        return Estimate(np.tile(sigma[:, None], 2), np.full(len(signal), Status.PREDICTED))


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def truth(rng):
    return np.stack([rng.uniform(70, 130, 200), rng.uniform(0.2, 3.0, 200)], axis=1)


@pytest.fixture
def tries(rng, truth):
    """(200, 7, 3): what `FromSignal` turns into the truth plus noise."""
    noisy = truth[:, None] + rng.normal(0, 0.1, (200, 7, 2))
    return np.concatenate([noisy, np.ones((200, 7, 1))], axis=2)


def assessed(tries, truth, **options):
    return assess({"same": FromSignal(), "off": FromSignal(0.5, 1)}, tries, SIGMA, truth, **options)


# assess


def test_measures_are_those_of_numpy(tries, truth):
    result = assessed(tries, truth)
    estimates = np.stack([tries[..., :2], 0.5 * tries[..., :2] + 1])
    errors = estimates - truth[:, None]
    np.testing.assert_allclose(result["mean"], estimates.mean(axis=2), rtol=1e-12)
    np.testing.assert_allclose(result["bias"], errors.mean(axis=2), atol=1e-12)
    np.testing.assert_allclose(result["std"], estimates.std(axis=2), rtol=1e-9)
    np.testing.assert_allclose(result["rmse"], np.sqrt((errors**2).mean(axis=2)), rtol=1e-12)
    np.testing.assert_array_equal(result["first"], estimates[:, :, 0])
    np.testing.assert_array_equal(result["failed"], np.zeros((2, 200)))
    assert result["bias"].dims == ("estimator", "voxel", "parameter")
    assert result["failed"].dims == ("estimator", "voxel")
    assert result["parameter"].values.tolist() == ["S0", "ADC"]
    assert result.attrs == {"voxels": 200, "repeats": 7}


def test_rmse_is_bias_and_std_together(tries, truth):
    tries[::3, 2, 2] = -1
    result = assessed(tries, truth)
    np.testing.assert_allclose(
        result["rmse"] ** 2, result["bias"] ** 2 + result["std"] ** 2, rtol=1e-9
    )


def test_an_estimator_that_says_the_reference_has_no_bias(truth):
    tries = np.concatenate([np.tile(truth[:, None], (1, 4, 1)), np.ones((200, 4, 1))], axis=2)
    result = assess({"same": FromSignal()}, tries, SIGMA, truth)
    for name in ("bias", "std", "rmse"):
        np.testing.assert_allclose(result[name], 0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 20, 10_000])
def test_blocks_change_nothing_but_memory(tries, truth, block):
    xr.testing.assert_identical(assessed(tries, truth, block=block), assessed(tries, truth))
    estimator = FromSignal()
    assess({"it": estimator}, tries, SIGMA, truth, block=block)
    assert max(estimator.sizes) <= max(block, 7)
    assert sum(estimator.sizes) == 200 * 7


def test_the_order_of_voxels_changes_nothing(rng, tries, truth):
    order = rng.permutation(200)
    moved = assessed(tries[order], truth[order], block=50)
    xr.testing.assert_identical(moved, assessed(tries, truth).isel(voxel=order))


def test_failed_estimates_are_counted_and_left_out(tries, truth):
    tries[3, [0, 4], 2] = -1  # two of seven
    tries[8, :, 2] = -1
    result = assessed(tries, truth).sel(estimator="same")
    assert result["failed"][3] == pytest.approx(2 / 7)
    assert result["failed"][8] == 1
    kept = np.delete(tries[3, :, :2], [0, 4], axis=0)
    np.testing.assert_allclose(result["mean"][3], kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result["std"][3], kept.std(axis=0), rtol=1e-9)
    assert np.isnan(result["first"][[3, 8]]).all()
    for name in ("mean", "bias", "std", "rmse"):
        assert np.isnan(result[name][8]).all()


def test_an_estimate_that_lacks_one_parameter_has_failed(tries, truth):
    tries[3, 1, 0] = np.nan
    result = assessed(tries, truth).sel(estimator="same")
    assert result["failed"][3] == pytest.approx(1 / 7)
    kept = np.delete(tries[3, :, 1], 1)
    assert result["mean"][3, 1] == pytest.approx(kept.mean())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_bad_voxel_touches_no_other(tries, truth, bad):
    before = assessed(tries, truth)
    tries[50], truth[50] = bad, np.nan
    after = assessed(tries, truth)
    others = np.delete(np.arange(200), 50)
    xr.testing.assert_identical(after.isel(voxel=others), before.isel(voxel=others))
    assert np.isnan(after["bias"][:, 50]).all()


def test_without_a_reference_there_is_a_spread_and_no_bias(tries, truth):
    truth[4, 1] = np.nan
    result = assessed(tries, truth)
    assert np.isnan(result["bias"][:, 4, 1]).all()
    assert np.isnan(result["rmse"][:, 4, 1]).all()
    assert np.isfinite(result["std"][:, 4]).all()
    assert np.isfinite(result["bias"][:, 4, 0]).all()


def test_each_voxel_has_its_own_sigma(tries, truth):
    sigma = np.linspace(1, 2, 200)
    result = assess({"sigma": Sigma()}, tries, sigma, truth, block=30)
    np.testing.assert_array_equal(result["first"][0, :, 1], sigma)
    np.testing.assert_allclose(result["std"], 0, atol=1e-12)


def test_progress_ends_at_all(tries, truth):
    calls = []
    assessed(tries, truth, block=700, progress=lambda done, whole: calls.append((done, whole)))
    assert calls == [(700, 2800), (1400, 2800), (2100, 2800), (2800, 2800)]


# binned


def bins_of(tries, truth, **options):
    options = {"scale": 0} | options
    return binned(assessed(tries, truth), truth, ADC.parameters, RANGES, **options)


def test_bins_hold_what_a_histogram_holds(tries, truth):
    table = bins_of(tries, truth)
    others = truth[(truth[:, 1] >= 0.5) & (truth[:, 1] <= 2.5)]  # S0 decides about S0 only
    for p, (low, high) in enumerate(RANGES):
        count, edges = np.histogram(others[:, p], 10, (low, high))
        np.testing.assert_array_equal(table["count"][p], count)
        np.testing.assert_allclose(table["centre"][p], (edges[1:] + edges[:-1]) / 2)
        assert table["width"][p] == pytest.approx(edges[1] - edges[0])


def test_means_and_their_errors_are_those_of_the_voxels_inside(tries, truth):
    voxelwise = assessed(tries, truth)
    table = binned(voxelwise, truth, ADC.parameters, RANGES, scale=0)
    inside = (truth[:, 1] >= 0.7) & (truth[:, 1] < 0.9)
    assert table["count"][1, 1] == inside.sum()
    for name in ("bias", "std", "rmse"):
        rows = voxelwise[name].values[:, inside, 1]
        if name == "std":  # unbiased: of few repeats, divided by one less
            repeats = voxelwise.attrs["repeats"]
            rows = rows * np.sqrt(repeats / (repeats - 1))
        error = rows.std(axis=1, ddof=1) / np.sqrt(inside.sum())
        np.testing.assert_allclose(table[name][:, 1, 1], rows.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(table[f"{name}_error"][:, 1, 1], error, rtol=1e-9)
    assert table["bias"].dims == ("estimator", "parameter", "bin")
    assert table["unit"].values.tolist() == ["a.u.", "µm²/ms"]


@pytest.mark.parametrize("scale", [0, None])
def test_every_voxel_is_accounted_for(tries, truth, scale):
    truth[:20] = np.nan
    table = bins_of(tries, truth, scale=scale)
    attrs = table.attrs
    assert attrs["voxels"] == 200
    assert attrs["without_reference"] == 20
    assert attrs["used"] + attrs["without_reference"] + attrs["outside_ranges"] == 200
    known = np.isfinite(truth).all(axis=1)
    inside = (truth >= RANGES[:, 0]) & (truth <= RANGES[:, 1])
    others = inside[:, [1]] if scale == 0 else inside.all(axis=1, keepdims=True)
    expected = inside & others
    np.testing.assert_array_equal(
        table["count"].sum("bin"), (expected & known[:, None]).sum(axis=0)
    )
    assert attrs["used"] == (expected & known[:, None]).any(axis=1).sum()


def test_what_was_left_out_is_said(tries, truth):
    truth[:20] = np.nan
    table = bins_of(tries, truth, left_out={"converged on a bound": 15})
    outside = table.attrs["outside_ranges"]
    assert table.attrs["left_out"] == (
        f"15 converged on a bound, 5 without a reference, {outside} outside the ranges"
    )
    truth[:] = (100.0, 1.0)
    assert bins_of(tries, truth).attrs["left_out"] == "none"


def test_both_ends_of_a_range_belong_to_it(tries):
    truth = np.tile([[80.0, 0.5], [120.0, 2.5]], (100, 1))
    table = bins_of(tries, truth)
    np.testing.assert_array_equal(table["count"], [[100, *[0] * 8, 100]] * 2)


def test_an_empty_bin_is_nan_and_a_single_voxel_has_no_error(tries, truth):
    truth[:] = (100.0, 0.6)
    truth[7] = (100.0, 2.4)
    table = bins_of(tries, truth).sel(parameter="ADC", estimator="same")
    np.testing.assert_array_equal(table["count"], [199, *[0] * 8, 1])
    for name in ("bias", "std", "rmse"):
        np.testing.assert_array_equal(np.isfinite(table[name]), table["count"] > 0)
        np.testing.assert_array_equal(np.isfinite(table[f"{name}_error"]), table["count"] > 1)


def test_voxels_without_an_estimate_are_counted_but_make_no_mean(tries, truth):
    truth[:] = (100.0, 1.0)
    tries[:50, :, 2] = -1
    voxelwise = assessed(tries, truth)
    table = binned(voxelwise, truth, ADC.parameters, RANGES, scale=0)
    assert table["count"][1, 2] == 200
    np.testing.assert_allclose(table["failed"][:, 1, 2], 0.25)
    mean = voxelwise["bias"].values[:, 50:, 1].mean(axis=1)
    np.testing.assert_allclose(table["bias"][:, 1, 2], mean, rtol=1e-9)


def test_tables_go_to_a_file_and_back(tmp_path, tries, truth):
    for table in (bins_of(tries, truth), assessed(tries, truth)):
        table.to_netcdf(tmp_path / "table.nc", engine="scipy")
        with xr.open_dataset(tmp_path / "table.nc", engine="scipy") as again:
            xr.testing.assert_equal(again.load(), table)
            assert again.attrs == table.attrs


# the reference


def test_a_reference_converged_inside_the_bounds():
    status = np.array([1, 2, 2, 3, 4, 9, 1])
    values = np.full((7, 2), 5.0)
    values[[3, 4, 6]] = np.nan
    reference = usable_reference(Estimate(values, status))
    np.testing.assert_array_equal(reference.usable, status_is_good := np.isin(range(7), [0, 5]))
    assert np.isnan(reference.values[~status_is_good]).all()
    assert reference.left_out == {
        "converged": 1,  # an estimator that says so of NaN
        "converged on a bound": 2,
        "not converged": 1,
        "NaN or infinite measurement": 1,
    }
    assert Reference(values).left_out == {}


# the matching set


def test_matching_data_scatter_around_the_references_signal(truth):
    data = matching(ADC, lw.Gaussian(), truth, SIGMA, 400, jax.random.key(1))
    clean = truth[:, :1] * np.exp(-ADC.b * truth[:, 1:])
    z = (data.mean(axis=1) - clean) / SIGMA * 20
    assert z.mean() == pytest.approx(0, abs=0.15)
    assert z.std() == pytest.approx(1, abs=0.1)
    assert data.std(axis=1).mean() == pytest.approx(SIGMA, rel=0.01)


@pytest.mark.parametrize("block", [1, 30, 64, 100_000])
def test_matching_data_depend_on_the_key_and_nothing_else(truth, block):
    data = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    again = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1), block=block)
    assert again.tobytes() == data.tobytes()
    assert data.shape == (200, 5, 3)
    assert data.dtype == np.float32
    other = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(2))
    assert np.mean(other == data) < 0.01
    with jax.enable_x64(True):
        wide = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    assert wide.tobytes() == data.tobytes()


def test_no_two_acquisitions_share_their_noise(truth):
    truth[:] = truth[0]
    data = matching(ADC, lw.Gaussian(), truth, SIGMA, 5, jax.random.key(1))
    assert len(np.unique(data.reshape(-1, 3), axis=0)) == 1000


def test_a_nan_reference_makes_nan_signals_of_its_own_only(truth):
    before = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    truth[9, 1] = np.nan
    after = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    assert np.isnan(after[9]).all()
    np.testing.assert_array_equal(np.delete(after, 9, axis=0), np.delete(before, 9, axis=0))


def test_matching_data_have_a_sigma_for_each_voxel(truth):
    sigma = np.repeat([1.0, 5.0], 100)
    data = matching(ADC, lw.Gaussian(), truth, sigma, 200, jax.random.key(1))
    spread = data.std(axis=1).mean(axis=1)
    assert spread[:100].mean() == pytest.approx(1, rel=0.03)
    assert spread[100:].mean() == pytest.approx(5, rel=0.03)


def test_a_black_box_has_matching_data_too(truth):
    ours = matching(ADC, lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    theirs = matching(BlackBox(ADC.b), lw.Rician(), truth, SIGMA, 5, jax.random.key(1))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


# all of it


@pytest.mark.slow
@pytest.mark.skipif(not SCANS.exists(), reason="the shared scans are not there")
@pytest.mark.parametrize(
    ("scan", "repeats", "sigma"), [("abdomen_ivim_repeats", 6, 4.9), ("abdomen_ivim", 12, 7.2)]
)
def test_a_real_scan_goes_all_the_way(scan, repeats, sigma):
    folder = SCANS / scan
    b = read_bvals(folder / "dwi.bval")
    with open_series(folder / "dwi.nii.gz") as series:
        mask, _ = read_mask(folder / "mask.nii.gz", series)
        signal = np.concatenate([block for _, block in series.blocks(mask)])
    found, mean = noise_of_repeats(signal, b)
    assert found == pytest.approx(sigma, rel=0.02)
    bright = mean / found > 10
    signal, s0 = signal[bright], np.median(mean[mean > 0])
    parts = split({"b": b})
    reference = usable_reference(lw.MaximumLikelihood(lw.IVIM(b), lw.Rician())(signal, found))
    assert len(signal) == reference.usable.sum() + sum(reference.left_out.values())

    model = lw.IVIM(parts.settings["b"])
    fit = lw.MaximumLikelihood(model, lw.Rician())
    voxelwise = assess({"MLE": fit}, parts.of(signal), found, reference.values)
    assert voxelwise.attrs["repeats"] == repeats
    np.testing.assert_allclose(
        voxelwise["rmse"] ** 2, voxelwise["bias"] ** 2 + voxelwise["std"] ** 2, rtol=1e-6
    )
    ranges = lw.Uniform.paper().ranges * [[s0], [1], [1], [1]]
    table = binned(voxelwise, reference.values, model.parameters, ranges, scale=0)
    assert table["count"].sel(parameter="f").sum() == table.attrs["used"] > 50

    truth = reference.values[reference.usable]
    data = matching(model, lw.Rician(), truth, found, repeats, jax.random.key(0))
    simulated = assess({"MLE": fit}, data, found, truth)
    same = binned(simulated, truth, model.parameters, ranges, scale=0)
    np.testing.assert_array_equal(same["count"], table["count"])
