"""Whole images as arrays: attributes, files and HTML of estimates and of reports of runs."""

import copy
import gc
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from labelwise.types import InputError

MODEL = lw.ADC([0, 0, 0.2, 0.4, 0.8])
NET = Path(__file__).parent / "data" / "records_of_0.1" / "net.safetensors"
AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)
MASK = np.ones(SHAPE, bool)
MASK[0] = False


@pytest.fixture(scope="module")
def signal():
    adc = np.linspace(0.5, 2, 60).reshape(*SHAPE, 1)
    noise = np.random.default_rng(0).normal(0, 12, (2, *SHAPE, 5))
    return np.hypot(500 * np.exp(-adc * MODEL.b) + noise[0], noise[1]).astype(np.float32)


@pytest.fixture(scope="module")
def estimate(signal):
    return lw.fit(signal, MODEL, sigma=12, mask=MASK)


def test_parameters_are_attributes(estimate):
    np.testing.assert_array_equal(estimate.ADC, estimate["ADC"])
    with pytest.raises(AttributeError, match="an estimate of S0, ADC has no 'adc'"):
        _ = estimate.adc
    for again in (copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        np.testing.assert_array_equal(again.ADC, estimate.ADC)


def test_an_estimate_is_saved_as_images(estimate, tmp_path):
    estimate.save(tmp_path / "maps", AFFINE)
    names = {"S0", "ADC"}
    endings = ("", "_low", "_high", "_standard_error")
    expected = {f"{name}{ending}.nii.gz" for name in names for ending in endings}
    assert {p.name for p in (tmp_path / "maps").iterdir()} == expected | {"status.nii.gz"}
    image = nib.load(tmp_path / "maps" / "ADC_high.nii.gz")
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(image.get_fdata(), estimate.high["ADC"].astype(np.float32))
    with pytest.raises(InputError, match="maps: it already holds S0"):
        estimate.save(tmp_path / "maps", AFFINE)
    estimate.save(tmp_path / "maps", AFFINE, overwrite=True)
    with pytest.raises(InputError, match=r"affine: expected \(4, 4\), got \(3, 3\)"):
        estimate.save(tmp_path / "other", np.eye(3))
    assert not (tmp_path / "other").exists()


def test_notebooks_show_a_table_and_a_slice(estimate):
    page = estimate._repr_html_()
    assert page.count("data:image/png;base64,") == 2
    assert "<td>ADC</td>" in page
    assert "48 converged" in page
    assert len(page) < 10_000
    row = lw.Estimate(estimate.values[1, 1], estimate.status[1, 1], {}, MODEL.parameters)
    assert "<img" not in row._repr_html_()
    empty = lw.Estimate(np.full((2, 2, 2), np.nan), np.zeros((2, 2), int), {}, MODEL.parameters)
    assert "none to none" in empty._repr_html_()


@pytest.fixture(scope="module")
def files(signal, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    nib.save(nib.Nifti1Image(signal, AFFINE), folder / "dwi.nii")
    nib.save(nib.Nifti1Image(MASK.astype(np.uint8), AFFINE), folder / "mask.nii")
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("verb", [lw.fit_image, lw.map_image])
def test_arrays_give_the_maps_of_files(verb, signal, files, tmp_path):
    settings = {"sigma": 12} | ({"net": NET} if verb is lw.map_image else {})
    mask = files / "mask.nii"
    one = verb(files / "dwi.nii", MODEL, mask=mask, out=tmp_path / "a", **settings)
    two = verb(signal, MODEL, mask=MASK, affine=AFFINE, **settings)
    for name in ("ADC", "S0", "ADC_standard_error", "status"):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
    assert two.ADC.shape == SHAPE
    folder = two.folder
    two.save(tmp_path / "b")
    same = [(tmp_path / place / "ADC.nii.gz").read_bytes() for place in "ab"]
    assert same[0] == same[1]
    assert (tmp_path / "b" / "run.json").exists()
    with pytest.raises(InputError, match="b: it already holds"):
        two.save(tmp_path / "b")
    assert two._repr_html_().count("<img") == 2
    with pytest.raises(AttributeError, match="a report has no 'adc'"):
        _ = two.adc
    assert len(repr(two)) < 500
    del two
    gc.collect()
    assert not folder.exists()  # as temporary as the report
    assert one.folder.exists()


def test_arrays_that_are_no_image_are_refused(signal, files):
    with pytest.raises(InputError, match="signal: expected numbers along 4 axes, got float32"):
        lw.fit_image(signal[0], MODEL, sigma=12)
    with pytest.raises(InputError, match="mask: expected numbers along 3 axes"):
        lw.fit_image(signal, MODEL, sigma=12, mask=MASK[0])
    with pytest.raises(InputError, match="affine: is for arrays"):
        lw.fit_image(files / "dwi.nii", MODEL, sigma=12, affine=AFFINE)
