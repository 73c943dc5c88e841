"""Designs of acquisitions: against a known optimum, and their laws."""

from itertools import combinations_with_replacement

import jax
import numpy as np
import pytest
from scipy import stats

import labelwise as lw
from labelwise.evaluation.cramer_rao import fisher_information, measurement_information
from labelwise.evaluation.design import GAUSSIAN, PRESENT, THIS
from labelwise.io.results import as_json

B = np.array([0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.28, 1.4, 1.6, 2.0])
NARROW = lw.Uniform({"S0": (0.99, 1.01), "ADC": (0.99, 1.01)})
WIDE = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.3, 3.0)})


def designed(model=None, noise=None, prior=NARROW, sigma=0.02, volumes=23, **options):
    given = {"estimator": "fit", "voxels": 500, "simulated": False} | options
    return lw.design(model or lw.ADC(B), noise or lw.Gaussian(), prior, sigma, volumes, **given)


def counts(row):
    return {
        float(b): int(n) for b, n in zip(*np.unique(row.model.b, return_counts=True), strict=True)
    }


def test_an_adc_needs_two_b_values_that_differ_by_1_28_over_it():
    """d/dx of (1 + exp(x)) / x is 0 at x = 1.278, where volumes are as 1 : exp(x) = 1 : 3.59.

    Source: Jones et al. 1999, doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q.
    """
    for row in designed().rows:
        assert counts(row) == {0.0: 5, 1.28: 18}


def test_no_design_on_the_grid_has_a_smaller_bound():
    model, draws = lw.ADC(B[::2]), WIDE.sample(jax.random.key(0), 256)
    found = designed(model, lw.Rician(), WIDE, 0.1, 5)
    each = measurement_information(model, lw.Rician(), draws, 0.1)

    def bound(rows):
        return np.linalg.inv(each[:, list(rows)].sum(axis=1) + np.diag([1e-9, 12 / 3.99**2]))[
            :, 1, 1
        ].mean()

    mine = [int(np.flatnonzero(model.b == b)[0]) for b in found.model.b]
    every = [
        rows
        for rows in combinations_with_replacement(range(len(model.b)), 5)
        if rows[0] != rows[-1]
    ]
    assert bound(mine) == pytest.approx(min(map(bound, every)), rel=0.01)
    assert all(np.all(path <= 1 + 1e-12) for path in found.search)
    assert max(path[-1] for path in found.search) == 1


def test_the_information_of_measurements_adds_up():
    given = lw.ADC(B), lw.Rician(), WIDE.sample(jax.random.key(1), 20), 0.1
    total = measurement_information(*given).sum(axis=1)
    np.testing.assert_allclose(total, fisher_information(*given), rtol=1e-12)


def test_the_table_has_the_errors_of_fresh_voxels():
    present = lw.ADC([0.0, 0.2, 0.2, 0.4])
    found = designed(present=present, volumes=8, voxels=4000)
    assert [row.name for row in found.rows] == [THIS, PRESENT, GAUSSIAN]
    assert found.reference == PRESENT
    assert counts(found.rows[1]) == {0.0: 2, 0.2: 4, 0.4: 2}
    for row in found.rows:
        bound = lw.cramer_rao(row.model, lw.Gaussian(), np.array([[1.0, 1.0]]), 0.02)[0]
        np.testing.assert_allclose(row.rmse, bound, atol=4 * row.error.max())
        assert np.all(row.error < 0.05 * row.rmse)
    assert found.rows[0].ratio[1] < 0.6
    assert np.all(found.rows[1].ratio == 1)
    assert np.all(found.rows[1].ratio_error < 1e-9)


def test_what_is_kept_does_not_get_worse():
    b = np.array([0, 5, 10, 20, 40, 80, 200, 400, 600, 800]) / 1000
    prior = lw.Uniform.typical(lw.IVIM(b), f=(0.1, 0.4), D_slow=(0.6, 2.5), D_fast=(60, 300))
    given = lw.IVIM(b), lw.Rician(), prior, 0.02, 16
    alone, kept = (
        designed(*given, minimise=["D_fast"], keep=keep, simulated=True, voxels=4000)
        for keep in ([], ["D_slow"])
    )
    assert (alone.kept, kept.kept) == ((), ("D_slow",))
    assert alone.rows[0].ratio[2] > 1.2
    assert kept.rows[0].ratio[2] < 1.02 + 3 * kept.rows[0].ratio_error[2]


@pytest.mark.parametrize("estimator", ["gt", "mle"])
def test_a_network_is_trained_for_each_acquisition(estimator):
    recipe = lw.Recipe.fast(signals=4000, epochs=5, restarts=1)
    again = [
        designed(prior=WIDE, volumes=6, estimator=estimator, recipe=recipe, seed=3)
        for _ in range(2)
    ]
    assert len({as_json(each.describe()) for each in again}) == 1
    adc = again[0].rows[0].rmse[1]
    assert 0.01 < adc < WIDE.sample(jax.random.key(0), 1000)[:, 1].std()


def test_the_prior_counts_for_a_network_taught_the_truth():
    """Without it, parameters that cannot be measured would decide the design."""
    bound = {}
    for estimator in ("gt", "fit"):
        found = designed(prior=WIDE, sigma=2.0, volumes=6, estimator=estimator, recipe=QUICK)
        bound[estimator] = counts(found.rows[0])
    assert bound["gt"] != bound["fit"]


QUICK = lw.Recipe.fast(signals=2000, epochs=1, restarts=1)


def test_a_noise_level_near_0_and_a_poor_acquisition_leave_a_design():
    model = lw.IVIM([0.0, 0.005, 0.02, 0.05, 0.2, 0.8])
    prior = lw.Uniform.typical(model)
    present = lw.IVIM([0.0, 0.8])  # does not determine the parameters
    given = model, lw.Gaussian(), prior, 1e-5, 8
    found = designed(*given, present=present, voxels=100)
    assert len(counts(found.rows[0])) >= 4
    assert found.rows[0].ratio[1:].max() < 0.5


HEALTHY = lw.Tissue({"ADC": lw.Normal(0.98, 0.01)}, "healthy")
LESION = lw.Tissue({"ADC": lw.Normal(1.02, 0.02)}, "lesion")
NEAR = lw.Uniform({"S0": (0.99, 1.01), "ADC": (0.8, 1.2)})


def test_the_area_is_that_of_normal_estimates():
    task = lw.Detection(HEALTHY, LESION)
    found = designed(prior=NEAR, task=task, present=lw.ADC([0.0, 0.2, 0.2, 0.4]), voxels=4000)
    assert (found.minimised, found.kept, found.voxels) == (("ADC",), (), 8000)
    for row in found.rows:
        noise = lw.cramer_rao(row.model, lw.Gaussian(), np.array([[1.0, 1.0]]), 0.02)[0, 1]
        expected = stats.norm.cdf(0.04 / np.sqrt(0.01**2 + 0.02**2 + 2 * noise**2))
        assert [*row.auc] == ["ADC"]
        assert row.auc["ADC"].value == pytest.approx(expected, abs=4 * row.auc["ADC"].error)
        assert 0 < row.auc["ADC"].error < 0.01
    first, reference, _ = (row.auc["ADC"] for row in found.rows)
    assert first.gain == first.value - reference.value
    assert first.gain > 0.1
    assert (reference.gain, reference.gain_error) == (0, 0)


def test_tissues_that_differ_in_one_parameter_need_its_least_variance():
    found = designed(prior=NEAR, task=lw.Detection(LESION, HEALTHY))  # whose ADC is lower
    assert counts(found.rows[0]) == {0.0: 5, 1.28: 18}
    assert found.rows[0].auc["ADC"].value > 0.7


@pytest.mark.parametrize("after", [{"D": 1.02}, {"K": 1.015}])
def test_efficiency_along_the_search_is_that_of_the_areas(after):
    model, before = lw.Kurtosis([0, 0.5, 1, 1.5, 2, 2.5]), {"S0": 1.0, "D": 1.0, "K": 1.0}
    prior = lw.Uniform({"S0": (0.99, 1.01), "D": (0.9, 1.1), "K": (0.9, 1.1)})
    task = lw.Detection(lw.Tissue(before), lw.Tissue(after))
    found = designed(model, prior=prior, sigma=0.005, volumes=12, task=task, keep=[], voxels=4000)
    best, gauss = (stats.norm.ppf(row.auc[found.minimised[0]].value) for row in found.rows)
    assert found.search[0][0] == pytest.approx((gauss / best) ** 2, abs=0.06)
    assert found.search[0][0] < 0.85


def test_a_network_taught_the_truth_distinguishes_better_by_its_design():
    b = np.array([0, 10, 20, 50, 100, 200, 400, 800]) / 1000
    parts = {"f": (0.3, 0.4), "D_slow": (1.0, 1.2), "D_fast": (50.0, 70.0)}
    task = lw.Detection(lw.Tissue(parts), lw.Tissue({"f": (0.2, 0.3), "D_slow": (1.2, 1.4)}))
    recipe = lw.Recipe.fast(signals=20_000, epochs=10, restarts=1)
    model = lw.IVIM(b)
    given = model, lw.Rician(), lw.Uniform.typical(model), 0.05, 12
    options = {"estimator": "gt", "recipe": recipe, "voxels": 2000}
    found = designed(*given, task=task, minimise=["D_slow"], keep=[], **options)
    area = found.rows[0].auc["D_slow"]
    assert area.gain > 3 * area.gain_error > 0


def test_what_is_kept_does_not_get_worse_for_a_task():
    b = np.array([0, 5, 10, 20, 40, 80, 200, 400, 600, 800]) / 1000
    prior = lw.Uniform.typical(lw.IVIM(b))
    tissues = ({"f": (0.3, 0.4), "D_slow": 1.1, "D_fast": (60.0, 90.0)}, {"D_slow": 1.3})
    task = lw.Detection(*map(lw.Tissue, tissues))
    given = lw.IVIM(b), lw.Rician(), prior, 0.02, 16
    alone, kept = (designed(*given, task=task, keep=keep) for keep in ([], ["f"]))
    assert alone.minimised == kept.minimised == ("D_slow",)
    assert alone.rows[0].ratio[1] > 1.1
    assert kept.rows[0].ratio[1] < 1.1


@pytest.mark.parametrize(("after", "area"), [(1.1, 1.0), (0.9801, 0.5)])
def test_tissues_far_apart_or_hardly_different_leave_a_design(after, area):
    task = lw.Detection(HEALTHY, lw.Tissue({"ADC": lw.Normal(after, 0.01)}))
    found = designed(prior=NEAR, task=task, sigma=1e-3)
    assert found.rows[0].auc["ADC"].value == pytest.approx(area, abs=0.05)
    assert all(np.all((path >= 0) & (path <= 1 + 1e-9)) for path in found.search)


def test_a_tissue_outside_of_the_prior_is_noted():
    prior = lw.Uniform({"S0": (0.99, 1.01), "ADC": (0.9, 1.01)})
    with pytest.warns(UserWarning, match="lesion: ADC is outside of 0.9 to 1.01"):
        designed(prior=prior, task=lw.Detection(HEALTHY, LESION))


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        ({"ADC": (0.97, 0.99)}, {}, "no parameter has another centre in healthy and other"),
        ({"ADC": 1.1, "S0": 0.999}, {"minimise": ["S0"]}, None),
        ({"ADC": 1.1}, {"minimise": ["S0"]}, "S0 has the same centre in healthy and other"),
        ({}, {}, "are the same in every parameter"),
        ({"T2": 1.0}, {}, "other: no parameter 'T2'"),
        ({"ADC": 9.0}, {}, "ADC=9 is not within the bounds of ADC"),
    ],
)
def test_tissues_that_cannot_be_distinguished_are_refused(after, options, message):
    task = lw.Detection(HEALTHY, lw.Tissue(after, "other"))
    if message is None:
        assert [*designed(prior=NEAR, task=task, **options).rows[0].auc] == ["S0", "ADC"]
        return
    with pytest.raises(lw.InputError, match=message):
        designed(prior=NEAR, task=task, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volumes": 1}, "volumes: expected at least 2"),
        ({"sigma": -1.0}, "sigma: expected noise"),
        ({"minimise": ["T2"]}, "minimise: unknown parameter 'T2'; known are S0, ADC"),
        ({"keep": ["ADC"]}, "keep: ADC is minimised"),
        ({"estimator": "best"}, "estimator: expected gt, mle, fit"),
        ({"voxels": 0}, "voxels: expected a whole number"),
        ({"prior": lw.Uniform.paper()}, "prior: expected the parameters S0, ADC"),
        ({"present": lw.T2([10.0, 20.0])}, "present: expected the model ADC, got T2"),
        ({"model": lw.ADC([0.0, 0.0, 1.0])}, "candidates: expected two or more"),
        (
            {"model": lw.T2EPG([10, 20, 30, 40]), "prior": lw.Uniform.typical(lw.T2EPG([10]))},
            "T2EPG",
        ),
    ],
)
def test_what_cannot_be_designed_is_refused(options, message):
    with pytest.raises(lw.InputError, match=message):
        designed(**options)
