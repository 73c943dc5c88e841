"""Measurements that are left out of a run: dropouts, clipped ones, and those excluded by hand."""

import json

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from commands import run
from helpers import SHAPE, SIGMA, TRUTH, B, inside
from labelwise.fitting.usable import CLIPPED, DROPOUT, EXCLUDED
from labelwise.mapping.request import without_volumes
from labelwise.types import InputError, Status

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SPOT = (4, 4, 1)  # inside the mask


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(data), affine), path)
    return path


def load(folder, name):
    return np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)


@pytest.fixture
def fit(tmp_path, data):
    """Fits that series; returns the report."""

    def run(values=data, model=None, **options):
        given = {
            "sigma": SIGMA,
            "out": tmp_path / "maps",
            "mask": save(tmp_path / "mask.nii.gz", inside().astype(np.uint8)),
            "overwrite": True,
            "uncertainty": "both",
        } | options
        image = save(tmp_path / "dwi.nii.gz", values)
        return lw.fit_image(image, model or lw.ADC(B), **given)

    return run


@pytest.mark.filterwarnings("ignore:averag")
@pytest.mark.parametrize("average", [None, "geometric", "arithmetic"])
def test_a_zero_among_good_measurements(fit, data, average):
    spoilt = data.copy()
    spoilt[(*SPOT, 5)] = 0
    with pytest.warns(UserWarning, match=r"1 of 1 voxel .*volume 5 \(1\); .* at 0"):
        report = fit(spoilt, average=average)
    marks = load(report.folder, "left_out")
    assert marks.shape == data.shape
    assert np.argwhere(marks).tolist() == [[*SPOT, 5]]
    assert marks[(*SPOT, 5)] == DROPOUT
    adc, error = (load(report.folder, name)[SPOT] for name in ("ADC", "ADC_standard_error"))
    assert abs(adc - TRUTH[1]) < 3 * error
    record = json.loads((report.folder / "run.json").read_text())
    ((reason, counts),) = record["left_out"].items()
    assert "dropout" in reason
    assert counts == {"measurements": 1, "voxels": 1}
    assert any("volume 5" in note for note in record["notes"])


def test_nothing_left_out_is_no_map(fit):
    report = fit()
    assert report.left_out == {}
    assert not (report.folder / "left_out.nii.gz").exists()


def test_excluded_volumes_are_as_if_they_were_not_there(fit, data, tmp_path):
    spoilt = data.copy()
    spoilt[..., [1, 4]] = np.nan
    report = fit(spoilt, exclude=[4, 1], sigma="repeats")
    kept = [0, 2, 3, 5, 6, 7]
    expected = fit(data[..., kept], lw.ADC(B[kept]), out=tmp_path / "others", sigma="repeats")
    for name in ("S0", "ADC", "nll", "ADC_standard_error"):
        np.testing.assert_array_equal(load(report.folder, name), load(expected.folder, name))
    record = json.loads((report.folder / "run.json").read_text())
    assert record["acquisition"]["excluded_volumes"] == {"numbered_from": 0, "volumes": [1, 4]}


def test_an_excluded_map_leaves_single_measurements_out(fit, data, tmp_path):
    marks = np.zeros(data.shape, np.float32)
    marks[(*SPOT, slice(0, 2))] = 1
    marks[3, 3, 1, :7] = 1
    marks[2, 2, 1] = 0.4
    spoilt = data.copy()
    spoilt[(*SPOT, 0)] = np.nan
    with pytest.warns(UserWarning, match="1 voxel without a value: too few"):
        report = fit(spoilt, exclude_map=save(tmp_path / "outliers.nii.gz", marks))
    np.testing.assert_array_equal(load(report.folder, "left_out"), (marks > 0.5) * EXCLUDED)
    status = load(report.folder, "status")
    assert (status[SPOT], status[3, 3, 1]) == (Status.CONVERGED, Status.TOO_FEW)
    assert (
        str(tmp_path / "outliers.nii.gz")
        in json.loads((report.folder / "run.json").read_text())["inputs"]
    )


@pytest.mark.parametrize(
    ("volumes", "remedy"),
    [([8], "from 0 to 7 .*, got 8"), ([-1], "got -1"), (range(8), "all 8 volumes are excluded")],
)
def test_volumes_that_cannot_be_excluded_are_refused(volumes, remedy):
    with pytest.raises(InputError, match=remedy):
        without_volumes(lw.ADC(B), volumes)


def test_a_model_that_needs_every_volume_names_the_map():
    with pytest.raises(InputError, match="4D map of 0 and 1"):
        without_volumes(lw.T2EPG(10.0 * np.arange(1, 17)), [3])


@pytest.mark.parametrize(
    ("shape", "affine", "why"),
    [
        ((*SHAPE, 7), AFFINE, "one volume for each of the 8"),
        ((9, 8, 3, 8), AFFINE, "its shape"),
        ((*SHAPE, 8), 2 * AFFINE, "its affine"),
    ],
)
def test_a_map_of_another_series_is_refused(fit, tmp_path, shape, affine, why):
    path = save(tmp_path / "outliers.nii.gz", np.zeros(shape, np.uint8), affine)
    with pytest.raises(InputError, match=why):
        fit(exclude_map=path)
    assert not (tmp_path / "maps").exists()


def test_sigma_of_each_measurement_goes_with_excluded_volumes(fit, data, tmp_path):
    level = np.full(data.shape, SIGMA, np.float32)
    level[..., 3] = 900
    whole = save(tmp_path / "sigma.nii.gz", level)
    report = fit(exclude=[3], sigma=whole)
    kept = [0, 1, 2, 4, 5, 6, 7]
    expected = fit(data[..., kept], lw.ADC(B[kept]), out=tmp_path / "others")
    np.testing.assert_allclose(load(report.folder, "ADC"), load(expected.folder, "ADC"), rtol=1e-4)


def test_an_infinite_sigma_is_recorded_as_excluded(fit, data, tmp_path):
    level = np.full(data.shape, SIGMA, np.float32)
    level[(*SPOT, 4)] = np.inf
    report = fit(sigma=save(tmp_path / "sigma.nii.gz", level))
    assert load(report.folder, "left_out")[(*SPOT, 4)] == EXCLUDED
    assert load(report.folder, "left_out").sum() == EXCLUDED


@pytest.mark.parametrize("sigma", ["repeats", SIGMA])
def test_an_excluded_map_holds_for_the_noise_and_the_ceiling(fit, data, tmp_path, sigma):
    spoilt = data.copy()
    spoilt[..., 1] = 4095  # of four at b = 0
    marks = np.zeros(data.shape, np.uint8)
    marks[..., 1] = 1
    report = fit(spoilt, exclude_map=save(tmp_path / "marks.nii.gz", marks), sigma=sigma)
    expected = fit(spoilt, exclude=[1], sigma=sigma, out=tmp_path / "others")
    assert report.sigma.sigma == pytest.approx(expected.sigma.sigma)
    assert not any("4095" in note for note in report.notes)
    files = json.loads((report.folder / "run.json").read_text())["labelwise_files"]
    assert not [name for name in files if name.startswith(".")]


def test_most_voxels_clipped_is_noted_and_mended(fit, tmp_path):
    te = np.arange(10, 170, 10.0)
    rng = np.random.default_rng(0)
    s0 = np.where(np.arange(72) < 50, 9000.0, 2000.0)[:, None]
    clean = s0 * np.exp(-te / 80)
    noisy = np.hypot(clean + rng.normal(0, 20, clean.shape), rng.normal(0, 20, clean.shape))
    values = np.minimum(noisy.round(), 4095).astype(np.int16).reshape(9, 8, 1, 16)
    with pytest.warns(UserWarning, match=r"50 voxels \(69.4 %\) .* 4095: the images were clipped"):
        report = fit(values, lw.T2(te), sigma=20, mask=None)
    assert report.parameters[1].quartiles[1] == pytest.approx(80, rel=0.02)
    np.testing.assert_array_equal(load(report.folder, "left_out"), CLIPPED * (values == 4095))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_leaves_such_voxels_to_the_fit(fit, data, tmp_path, random_network):
    net = random_network(lw.ADC(B), ((0, 1, 2, 3), (4,), (5, 6), (7,)))
    spoilt = data.copy()
    spoilt[(*SPOT, 5)] = 0
    image = save(tmp_path / "spoilt.nii.gz", spoilt)
    with pytest.warns(UserWarning, match="volume 5"):
        report = lw.map_image(
            image, lw.ADC(B), sigma=SIGMA, out=tmp_path / "mapped", net=net, cache=False
        )
    with pytest.warns(UserWarning, match="volume 5"):
        fitted = fit(spoilt)
    for name in ("ADC", "S0", "status", "residual"):
        assert load(report.folder, name)[SPOT] == load(fitted.folder, name)[SPOT]
    assert load(report.folder, "outside")[SPOT] == 0


TI = np.array([50, 400, 1100, 2500.0])


@pytest.fixture
def signed(tmp_path, monkeypatch):
    """A folder with a signed inversion recovery of T1 1000 ms."""
    monkeypatch.chdir(tmp_path)
    clean = np.tile(1000 * (1 - 1.95 * np.exp(-TI / 1000)), (100, 1))
    data = clean + np.random.default_rng(0).normal(0, 10, clean.shape)
    return save(tmp_path / "ir.nii", data.reshape(100, 1, 1, 4).astype(np.float32))


def fit_signed(*more):
    common = ("--model", "t1_ir", "--sigma", 10, "--ti", "50,400,1100,2500", "--out", "maps")
    return run("fit", "ir.nii", *common, *more)


def test_signed_inversion_recovery(signed, tmp_path):
    result = fit_signed("--signed")
    assert result.exit_code == 0, result.stderr
    assert np.median(load(tmp_path / "maps", "T1")) == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("noise", ["rician", "gaussian"])
def test_magnitude_model_of_signed_images_names_the_remedy(signed, tmp_path, noise):
    result = fit_signed("--noise", noise)
    assert result.exit_code == 2
    assert "--signed" in result.stderr
    assert not np.isfinite(load(tmp_path / "maps", "T1")).any()


def test_signed_images_do_not_have_noise_of_magnitudes(signed):
    result = fit_signed("--signed", "--noise", "noncentral-chi:4")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--signed" in result.stderr


@pytest.mark.filterwarnings("ignore")
def test_noise_about_zero_is_no_sign(fit):
    clean = np.asarray(lw.ADC(B).signal(*TRUTH)) * inside()[..., None]
    values = clean + np.random.default_rng(0).normal(0, SIGMA, clean.shape)
    report = fit(values, noise=lw.Gaussian(), mask=None)
    assert not any("negative" in note for note in report.notes)
