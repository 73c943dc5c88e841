import nibabel as nib
import numpy as np
import pytest

from labelwise.io.prior import read_prior


@pytest.fixture
def maps(tmp_path):
    s0 = np.arange(1.0, 13.0).reshape(3, 2, 2)
    s0[0, 0, 0] = np.nan
    for name, values in (("S0", s0), ("T2", 10 * s0)):
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image((s0 > 8).astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    return tmp_path


def test_a_prior_of_maps_takes_the_voxels_that_were_fitted(maps):
    prior = read_prior(maps, ("S0", "T2"))
    assert len(prior.params) == 11
    np.testing.assert_array_equal(prior.params[:, 1], 10 * prior.params[:, 0])


@pytest.mark.parametrize("as_array", [True, False])
def test_a_prior_of_maps_takes_a_mask(maps, as_array):
    mask = maps / "mask.nii.gz"
    if as_array:
        mask = np.asarray(nib.load(mask).dataobj) > 0
    prior = read_prior(maps, ("S0", "T2"), mask)
    np.testing.assert_array_equal(np.sort(prior.params[:, 0]), [9, 10, 11, 12])


def test_a_prior_of_maps_names_a_map_that_is_missing(maps):
    with pytest.raises(
        FileNotFoundError, match=r"B1\.nii\.gz: no such map; give the output folder"
    ):
        read_prior(maps, ("S0", "B1"))


def test_a_prior_of_maps_refuses_another_grid(maps):
    with pytest.raises(ValueError, match=r"the mask has shape \(2, 2, 2\), S0 has \(3, 2, 2\)"):
        read_prior(maps, ("S0", "T2"), np.ones((2, 2, 2), bool))
