"""Voxel-wise b: diffusivities are corrected for gradients that are not linear."""

import json

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from labelwise.mapping.gradients import scaled_by_b

B = np.array([0, 0, 0.05, 0.1, 0.2, 0.4, 0.8])
FACTORS = np.linspace(0.85, 1.2, 24).reshape(4, 3, 2)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lw.ADC(B), ["ADC"]),
        (lw.IVIM(B), ["D_slow", "D_fast"]),
        (lw.Kurtosis(B), ["D"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_parameters_that_b_multiplies_are_found(model, names):
    assert [model.parameters[i].name for i in scaled_by_b(model)] == names


def test_a_model_without_b_is_refused():
    with pytest.raises(lw.InputError, match="b multiplies diffusivities; T2 is none"):
        scaled_by_b(lw.T2([10, 20, 40]))


def save(path, data):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def series(tmp_path):
    """A series of ADC 1.1 in every voxel, measured with b that is multiplied by FACTORS."""
    rng = np.random.default_rng(0)
    signal = rng.uniform(900, 1100, FACTORS.shape)[..., None]
    signal = signal * np.exp(-B * FACTORS[..., None] * 1.1)
    return save(tmp_path / "dwi.nii.gz", signal + rng.normal(0, 5, signal.shape))


def adc_of(folder):
    return nib.load(folder / "ADC.nii.gz").get_fdata()


def test_a_map_of_factors_gives_the_true_diffusivity(tmp_path, series):
    scale = save(tmp_path / "scale.nii.gz", FACTORS)
    out = tmp_path / "out"
    given = {"sigma": 5.0, "uncertainty": "both"}
    lw.fit_image(series, lw.ADC(B), out=tmp_path / "plain", **given)
    report = lw.fit_image(series, lw.ADC(B), out=out, b_scale=scale, **given)
    np.testing.assert_allclose(adc_of(out), 1.1, rtol=0.05)
    np.testing.assert_allclose(adc_of(out) * FACTORS, adc_of(tmp_path / "plain"), rtol=1e-5)
    errors = [
        nib.load(each / "ADC_standard_error.nii.gz").get_fdata()
        for each in (out, tmp_path / "plain")
    ]
    np.testing.assert_allclose(errors[0] * FACTORS, errors[1], rtol=1e-4)
    assert any("b is multiplied by 0.850 to 1.200" in note for note in report.notes)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["acquisition"]["b_scale"] == str(scale)
    assert str(scale) in record["inputs"]


def test_a_gradient_deviation_gives_the_mean_over_directions(tmp_path, series):
    """A deviation of (√c - 1) times the identity multiplies every b by c."""
    deviation = (np.sqrt(FACTORS) - 1)[..., None] * np.eye(3).ravel()
    scale = save(tmp_path / "grad_dev.nii.gz", deviation)
    lw.fit_image(series, lw.ADC(B), sigma=5.0, out=tmp_path / "out", b_scale=scale)
    np.testing.assert_allclose(adc_of(tmp_path / "out"), 1.1, rtol=0.05)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((4, 3, 1)), "its shape .* is not that of"),
        (np.ones((4, 3, 2, 2)), "expected one volume, .* got 2"),
        (1000 * FACTORS, "expected factors of b from 0.3 to 3"),
        (np.zeros((4, 3, 2)), "expected factors of b from 0.3 to 3"),
    ],
)
def test_maps_that_are_no_factors_are_refused(tmp_path, series, data, message):
    scale = save(tmp_path / "scale.nii.gz", data)
    with pytest.raises(lw.InputError, match=message):
        lw.fit_image(series, lw.ADC(B), sigma=5.0, out=tmp_path / "out", b_scale=scale)
    assert not (tmp_path / "out").exists()


def test_a_deviation_is_refused_for_a_model_with_directions(tmp_path, series):
    """Its factor depends on the direction: FA was 0.82 instead of 0.73 with the mean."""
    scale = save(tmp_path / "grad_dev.nii.gz", np.zeros((4, 3, 2, 9)))
    directions = np.random.default_rng(0).normal(size=(3, 8))
    directions /= np.linalg.norm(directions, axis=0)
    b = np.array([0, 1, 1, 1, 1, 1, 1, 1.0])
    image = save(tmp_path / "dti.nii.gz", np.full((4, 3, 2, 8), 100.0))
    with pytest.raises(lw.InputError, match="differently in each direction"):
        lw.fit_image(image, lw.DTI(b, *directions), sigma=5.0, out=tmp_path / "out", b_scale=scale)
