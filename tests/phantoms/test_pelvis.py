"""The simulated pelvis: plausible, deterministic, called simulated, and written whole."""

import json

import jax
import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from helpers import noise_of_repeats
from labelwise.io.acquisition import read_bvals
from labelwise.io.nifti import open_series, read_mask
from labelwise.phantoms.pelvis import B_VALUES, TISSUES, pelvis, write
from labelwise.study.in_vivo import (
    assess,
    binned,
    matching,
    usable_reference,
)
from labelwise.study.repeats import split

SMALL = (28, 20, 2)
NAMES = ("S0", "f", "D_slow", "D_fast")


@pytest.fixture(scope="module")
def scan():
    return pelvis(repeats=2)


@pytest.fixture(scope="module")
def small():
    return pelvis(shape=SMALL, repeats=2)


def load(path):
    return np.asarray(nib.load(path).dataobj)


def test_it_has_the_papers_protocol():
    whole = pelvis(shape=SMALL)
    assert whole.series.shape == (*SMALL, 160)
    assert whole.series.dtype == np.float32
    np.testing.assert_array_equal(whole.b, np.tile(B_VALUES, 16))
    parts = split({"b": whole.b / 1000})
    np.testing.assert_array_equal(parts.volumes, np.arange(160).reshape(16, 10))


def test_it_has_as_many_voxels_as_the_study_needs(scan):
    assert 8_000 <= scan.mask.sum() <= 12_000
    np.testing.assert_allclose(np.abs(np.diag(scan.affine)), [3.125, 3.125, 7, 1])


def test_every_tissue_is_in_every_slice(scan):
    for z in range(scan.tissue.shape[2]):
        assert set(np.unique(scan.tissue[:, :, z])) == set(range(len(TISSUES) + 1))
    np.testing.assert_array_equal(scan.mask, scan.tissue > 0)
    for values in scan.truth.values():
        np.testing.assert_array_equal(np.isfinite(values), scan.mask)


def test_the_truth_is_within_the_bounds_of_the_model(scan):
    for parameter in lw.IVIM.parameters:
        values = scan.truth[parameter.name][scan.mask]
        assert parameter.bounds[0] < values.min()
        assert np.mean(values < parameter.bounds[1]) > 0.999


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_factor_brings_s0_into_the_range_that_networks_are_trained_on(seed):
    s0 = pelvis(seed, repeats=1).truth["S0"]
    relative = s0[np.isfinite(s0)] / np.nanmedian(s0)
    assert np.mean((relative > 0.8) & (relative < 1.2)) > 0.99
    assert relative.std() > 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parameters_are_spread_as_in_the_papers_volunteer(seed):
    """Well populated for f < 0.40, D_slow < 1.5 and all of D_fast; few voxels elsewhere."""
    truth = pelvis(seed, repeats=1).truth
    rows = np.stack([truth[name][np.isfinite(truth[name])] for name in NAMES], axis=1)
    ranges = lw.Uniform.paper().ranges
    inside = (rows >= ranges[:, 0]) & (rows <= ranges[:, 1])
    rows = rows[inside[:, 1:].all(axis=1)]
    counts = {name: np.histogram(rows[:, p], 10, ranges[p])[0] for p, name in enumerate(NAMES) if p}
    assert counts["f"][:7].min() > 100 > counts["f"][8:].max()
    assert counts["D_slow"][:4].min() > 300
    assert counts["D_slow"][5:].sum() < 0.1 * len(rows)
    assert counts["D_fast"].min() > 80


def test_parameters_are_correlated_in_space_and_with_each_other(scan):
    muscle = scan.tissue == 1
    both = muscle[1:] & muscle[:-1]
    for name in NAMES[1:]:
        values = scan.truth[name]
        assert np.corrcoef(values[1:][both], values[:-1][both])[0, 1] > 0.3
    within = np.corrcoef([scan.truth[name][muscle] for name in NAMES[1:]])
    assert within[0, 1] < -0.15
    assert within[0, 2] > 0.1


@pytest.mark.parametrize("snr", [15.0, 40.0])
def test_noise_is_rician_at_the_snr_asked_for(snr):
    scan = pelvis(repeats=6, snr=snr)
    sigma, s0 = noise_of_repeats(scan.series[scan.mask], scan.b / 1000)
    assert sigma == pytest.approx(scan.sigma, rel=0.02)
    assert np.median(s0) / sigma == pytest.approx(snr, rel=0.03)
    corner = scan.series[:8, :8]
    assert np.sqrt((corner**2).mean() / 2) == pytest.approx(scan.sigma, rel=0.02)


def test_the_same_arguments_give_the_same_bytes(small):
    again = pelvis(shape=SMALL, repeats=2)
    assert again.series.tobytes() == small.series.tobytes()
    for name in NAMES:
        assert again.truth[name].tobytes() == small.truth[name].tobytes()
    other = pelvis(1, SMALL, 2)
    assert not np.array_equal(other.tissue, small.tissue)
    more = pelvis(shape=SMALL, repeats=3, snr=30)
    np.testing.assert_array_equal(more.truth["f"], small.truth["f"])


def test_files_are_read_as_they_were_written(tmp_path, small):
    files = write(small, tmp_path / "new" / "scan")
    assert files[-1] == tmp_path / "new/scan/dwi.nii.gz"
    assert {path for path in (tmp_path / "new/scan").rglob("*") if path.is_file()} == set(files)
    np.testing.assert_allclose(read_bvals(tmp_path / "new/scan/dwi.bval"), small.b / 1000)
    with open_series(files[-1]) as series:
        mask, _ = read_mask(tmp_path / "new/scan/mask.nii.gz", like=series)
        signal = np.concatenate([block for _, block in series.blocks(mask)])
        np.testing.assert_allclose(series.affine, small.affine)
        np.testing.assert_allclose(series.header.get_zooms()[:3], (12.5, 12.5, 7))
    inside = mask.reshape(SMALL, order="F")
    np.testing.assert_array_equal(inside, small.mask)
    flat = small.series.reshape(-1, small.series.shape[-1], order="F")
    np.testing.assert_array_equal(signal, flat[mask])
    for name in NAMES:
        np.testing.assert_array_equal(
            load(tmp_path / f"new/scan/truth/{name}.nii.gz"), small.truth[name]
        )
    np.testing.assert_array_equal(load(tmp_path / "new/scan/truth/tissue.nii.gz"), small.tissue)


def test_everything_says_that_it_is_simulated(tmp_path, small):
    files = write(small, tmp_path)
    assert "SIMULATED" in (tmp_path / "README.txt").read_text(encoding="utf-8")
    images = [path for path in files if path.suffix == ".gz"]
    assert len(images) == 7
    for path in images:
        said = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text("utf-8"))
        assert said["Simulated"] is True
        assert "no patient" in said["Description"]
        assert b"SIMULATED" in nib.load(path).header["descrip"].item()


def test_the_same_phantom_gives_the_same_files(tmp_path, small):
    for path in write(small, tmp_path / "a"):
        write(small, tmp_path / "b")
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path


def test_files_are_not_overwritten_unasked(tmp_path, small):
    write(small, tmp_path)
    before = (tmp_path / "dwi.nii.gz").read_bytes()
    other = pelvis(1, SMALL, 2)
    write(other, tmp_path)
    assert (tmp_path / "dwi.nii.gz").read_bytes() != before


def test_what_fails_leaves_no_file(tmp_path, small, monkeypatch):
    def full(image, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write(small, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_pipeline_finds_in_the_scan_what_it_finds_in_matching_data():
    scan = pelvis(shape=(56, 40, 2))
    signal, b = scan.series[scan.mask], scan.b / 1000
    parts = split({"b": b})
    sigma, s0 = noise_of_repeats(signal, b)
    reference = usable_reference(lw.MaximumLikelihood(lw.IVIM(b), lw.Rician())(signal, sigma))
    assert reference.usable.mean() > 0.95
    error = reference.values - np.stack([scan.truth[name][scan.mask] for name in NAMES], axis=1)
    assert np.nanmedian(np.abs(error), axis=0) == pytest.approx([10, 0.02, 0.06, 11], rel=0.5)

    model = lw.IVIM(parts.settings["b"])
    fit = lw.MaximumLikelihood(model, lw.Rician())
    voxelwise = assess({"MLE": fit}, parts.of(signal), sigma, reference.values)
    data = matching(model, lw.Rician(), reference.values, sigma, parts.number, jax.random.key(0))
    simulated = assess({"MLE": fit}, data, sigma, reference.values)
    ranges = lw.Uniform.paper().ranges * [[np.median(s0)], [1], [1], [1]]
    tables = [
        binned(each, reference.values, model.parameters, ranges, scale=0)
        for each in (voxelwise, simulated)
    ]
    for name in ("bias", "std"):
        error = np.hypot(*(table[f"{name}_error"] for table in tables))
        z = (tables[0][name] - tables[1][name]) / error.where(tables[0]["count"] > 20)
        assert abs(z).median() < 2
