"""Derived maps: values, errors propagated with correlations, and what is written."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from helpers import SHAPE, Job, inside
from labelwise.evaluation.cramer_rao import fisher_information
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.derived import maps_of_derived, with_derived
from labelwise.mapping.gradients import corrected, scaled_by_b
from labelwise.models.evaluate import signals
from labelwise.types import Derived, InputError

B = np.array([0, 0, 10, 20, 40, 60, 100, 150, 200, 400, 600, 800]) / 1000
MODEL, VOXEL = lw.IVIM(B), np.array([1.0, 0.25, 1.1, 40.0])


def fitted(sigma, voxels=4000, seed=0):
    rng = np.random.default_rng(seed)
    signal = signals(MODEL, VOXEL[None]) + rng.normal(0, sigma, (voxels, len(B)))
    return lw.MaximumLikelihood(MODEL, lw.Gaussian())(signal, sigma)


def test_the_propagated_error_is_the_scatter_of_noisy_voxels():
    estimate = with_derived(fitted(0.003), MODEL, lw.Gaussian(), np.full((1, 1), 0.003))
    values, errors = estimate.stats["derived_value"], estimate.stats["derived_standard_error"]
    expected = [VOXEL[3] + VOXEL[2], VOXEL[1] * (VOXEL[3] + VOXEL[2])]
    np.testing.assert_allclose(np.median(values, axis=0), expected, rtol=0.02)
    np.testing.assert_allclose(np.median(errors, axis=0), values.std(axis=0), rtol=0.05)


def test_without_the_correlations_it_would_not_be():
    """f and D* are anticorrelated: the error of their product is less than half of the sum."""
    estimate = with_derived(fitted(0.003, 500), MODEL, lw.Gaussian(), np.full((1, 1), 0.003))
    f, d = (estimate.stats["standard_error"][:, i] for i in (1, 3))
    independent = np.hypot(f * VOXEL[3], d * VOXEL[1])
    assert np.median(estimate.stats["derived_standard_error"][:, 1] / independent) < 0.9


def test_errors_of_a_network_are_scaled_not_replaced():
    estimate = fitted(0.003, 50)
    doubled = {**estimate.stats, "standard_error": 2 * estimate.stats["standard_error"]}
    one, two = (
        with_derived(
            lw.Estimate(estimate.values, estimate.status, stats), MODEL, lw.Gaussian(), sigma
        ).stats["derived_standard_error"]
        for stats, sigma in ((estimate.stats, np.full((1, 1), 0.003)), (doubled, np.ones((50, 1))))
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_no_error_where_a_parameter_has_none():
    """D_star does not depend on f; f D_star does."""
    estimate = fitted(0.003, 20)
    errors = estimate.stats["standard_error"].copy()
    errors[:10, 1] = np.nan
    estimate = lw.Estimate(
        estimate.values, estimate.status, {**estimate.stats, "standard_error": errors}
    )
    found = with_derived(estimate, MODEL, lw.Gaussian(), np.full((1, 1), 0.003)).stats
    expected = np.stack([np.zeros(20), np.arange(20) < 10], axis=1)
    np.testing.assert_array_equal(np.isnan(found["derived_standard_error"]), expected)
    assert np.isfinite(found["derived_value"]).all()


def test_measurements_that_are_left_out_do_not_count():
    estimate, left = fitted(0.003, 3), np.zeros((3, len(B)), np.uint8)
    left[:, 2:6] = 1
    estimate = lw.Estimate(estimate.values, estimate.status, {**estimate.stats, "left_out": left})
    part = lw.IVIM(np.delete(B, np.s_[2:6]))
    sigma = np.full((1, 1), 0.003)
    found, expected = (
        with_derived(each, model, lw.Gaussian(), sigma).stats["derived_standard_error"]
        for each, model in ((estimate, MODEL), (fitted(0.003, 3), part))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_infinite_sigma_carries_no_information():
    sigma = np.full((1, len(B)), 0.1)
    sigma[0, 5:] = np.inf
    part = fisher_information(lw.IVIM(B[:5]), lw.Rician(), VOXEL[None], 0.1)
    whole = fisher_information(MODEL, lw.Rician(), VOXEL[None], sigma)
    np.testing.assert_allclose(whole, part, rtol=1e-12)


def test_failed_voxels_stay_failed():
    nothing = np.full((2, 4), np.nan, np.float32)
    estimate = lw.Estimate(nothing, np.array([4, 4]), {"standard_error": nothing})
    found = with_derived(estimate, MODEL, lw.Rician(), np.ones((1, 1))).stats
    assert np.isnan(found["derived_value"]).all()
    assert np.isnan(found["derived_standard_error"]).all()


def test_the_maps_are_written(tmp_path):
    params = np.broadcast_to(VOXEL * [500, 1, 1, 1], (*SHAPE, 4)).reshape(-1, 4)
    rng = np.random.default_rng(0)
    data = np.abs(signals(MODEL, params) + rng.normal(0, 2, (len(params), len(B))))
    for name, values in (("dwi", data.reshape(*SHAPE, -1)), ("mask", inside().astype(np.uint8))):
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    job = Job.of(
        ByFit(),
        image=tmp_path / "dwi.nii.gz",
        model=MODEL,
        noise=lw.Rician(),
        sigma=2.0,
        folder=tmp_path / "maps",
        mask=tmp_path / "mask.nii.gz",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job.run()
    maps = {
        name: nib.load(tmp_path / "maps" / f"{name}.nii.gz").get_fdata()
        for name in ("D_star", "D_slow", "D_fast", "f_D_star", "f_D_star_standard_error")
    }
    np.testing.assert_allclose(maps["D_star"], maps["D_slow"] + maps["D_fast"], rtol=1e-5)
    assert np.nanmedian(maps["f_D_star"]) == pytest.approx(0.25 * 41.1, rel=0.03)
    assert np.isfinite(maps["f_D_star_standard_error"][inside()]).mean() > 0.9
    said = json.loads((tmp_path / "maps" / "f_D_star.json").read_text())
    assert said["unit"] == "µm²/ms"


def test_two_maps_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"Own\.derived: expected names that differ"):
        type(
            "Own",
            (lw.SignalModel,),
            {
                "parameters": lw.ADC.parameters,
                "derived": (Derived("adc", "1", lambda s0, adc: adc),),
            },
        )
    with pytest.raises(InputError, match="another output of labelwise is called that"):
        Derived("status", "1", lambda s0: s0)


def test_each_has_a_map_of_its_value_and_of_its_interval_or_error():
    d_star = lw.IVIM.derived[:1]
    names = [each.name for each in maps_of_derived(d_star, set(), errors=False)]
    assert names == ["D_star", "D_star_standard_error"]
    names = [each.name for each in maps_of_derived(d_star, {"confidence"}, errors=True)]
    endings = ("", "_low", "_high", "_uncertainty", "_standard_error")
    assert names == [f"D_star{ending}" for ending in endings]
    mixed = maps_of_derived(d_star, {"confidence", "credible"}, errors=False)
    assert mixed[1].details["interval"] == "blend"


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_intervals_hold_the_truth(sigma):
    """At SNR 20 and 100; the ends of D_fast are far from symmetric in the former."""
    rng = np.random.default_rng(1)
    signal = signals(MODEL, VOXEL[None]) + rng.normal(0, sigma, (1000, len(B)))
    fit = lw.MaximumLikelihood(MODEL, lw.Gaussian(), intervals=0.95)
    found = with_derived(fit(signal, sigma), MODEL, lw.Gaussian(), np.full((1, 1), sigma)).stats
    truth = [VOXEL[3] + VOXEL[2], VOXEL[1] * (VOXEL[3] + VOXEL[2])]
    held = (found["derived_low"] <= truth) & (truth <= found["derived_high"])
    assert (np.abs(held.mean(axis=0) - 0.95) < 0.03).all(), held.mean(axis=0)


def test_a_product_of_positive_parameters_has_no_negative_end():
    """f is 0.1 and D* 20: the changes -2 and -1.5 would be -2.5 together, from 2."""
    values = np.array([[1.0, 0.1, 1.0, 19.0]], np.float32)
    low, high = np.array([[1, 0, 1, 4]], np.float32), np.array([[1, 0.4, 1, 60]], np.float32)
    errors = np.array([[0.1, 0.1, np.nan, np.nan]], np.float32)
    stats = {"standard_error": errors, "low": low, "high": high}
    estimate = lw.Estimate(values, np.array([1]), stats)
    found = with_derived(estimate, MODEL, lw.Gaussian(), np.full((1, 1), 0.1)).stats
    assert found["derived_low"][0, 1] == 0
    assert 2 < found["derived_high"][0, 1] <= 0.4 * 61


def test_a_function_of_one_parameter_has_its_interval():
    """R2* = 1000 / T2* decreases: its low end is at the high end of T2*."""
    model = lw.T2Star([5, 10, 20, 40, 60])
    rng = np.random.default_rng(2)
    signal = signals(model, np.array([[1.0, 30.0]])) + rng.normal(0, 0.03, (50, 5))
    estimate = lw.MaximumLikelihood(model, lw.Gaussian(), intervals=0.95)(signal, 0.03)
    found = with_derived(estimate, model, lw.Gaussian(), np.full((1, 1), 0.03)).stats
    np.testing.assert_allclose(found["derived_low"][:, 0], 1000 / estimate.high["T2_star"], 1e-5)
    np.testing.assert_allclose(found["derived_high"][:, 0], 1000 / estimate.low["T2_star"], 1e-5)


def test_correlations_are_those_at_the_estimate_before_b_is_corrected():
    """With b 1.5 times the nominal one, the error of f D* was off by up to 3 %."""
    factor, voxels = 1.5, np.random.default_rng(0).uniform(0.8, 1.2, (50, 4)) * VOXEL
    actual, sigma = lw.IVIM(factor * B), np.full((1, 1), 0.003)
    signal = signals(actual, voxels)
    fits = [lw.MaximumLikelihood(each, lw.Gaussian())(signal, 0.003) for each in (actual, MODEL)]
    expected = with_derived(fits[0], actual, lw.Gaussian(), sigma).stats
    part = corrected(fits[1], scaled_by_b(MODEL), np.full(len(voxels), factor))
    found = with_derived(part, MODEL, lw.Gaussian(), sigma, fits[1].values).stats
    name = "derived_standard_error"
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
