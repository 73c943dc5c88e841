import nibabel as nib
import numpy as np
import pytest

from labelwise.io.prior import read_prior
from labelwise.types import Status


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


def test_a_mask_of_a_prior_is_where_it_is_above_a_half(maps):
    """An interpolated mask; the note says how many voxels that decided."""
    values = np.full((3, 2, 2), 0.02, np.float32)
    values[2] = 0.97
    nib.save(nib.Nifti1Image(values, np.eye(4)), maps / "mask.nii.gz")
    with pytest.warns(UserWarning, match="this decided 8 voxels"):
        prior = read_prior(maps, ("S0", "T2"), maps / "mask.nii.gz")
    np.testing.assert_array_equal(np.sort(prior.params[:, 0]), [9, 10, 11, 12])


def test_fill_values_are_no_estimates(maps):
    status = np.full((3, 2, 2), Status.CONVERGED, np.uint8)
    status[2, 1] = Status.NOT_CONVERGED, Status.NOT_FITTED
    nib.save(nib.Nifti1Image(status, np.eye(4)), maps / "status.nii.gz")
    for name in ("S0", "T2"):
        (maps / f"{name}.json").write_text('{"fill": {"value": 0.0}}')
    prior = read_prior(maps, ("S0", "T2"))
    np.testing.assert_array_equal(np.sort(prior.params[:, 0]), np.arange(2, 11))
