import warnings

import nibabel as nib
import numpy as np
import pytest

from labelwise.io.geometry import distance
from labelwise.io.nifti import open_series, read_mask
from labelwise.io.results import output_folder
from labelwise.types import InputError

SHAPE = (5, 4, 3)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 3.0, -70], [0, 0, 0, 1]])
KINDS = [nib.Nifti1Image, nib.Nifti2Image]
NAN = float("nan")


@pytest.fixture
def make(tmp_path):
    def save(name="dwi.nii", shape=(*SHAPE, 2), sform=0, qform=0, kind=nib.Nifti1Image, **fields):
        """An image with raw header fields, which nibabel would not write."""
        forms = kind.header_class()
        forms.set_data_shape(shape)
        forms.set_sform(AFFINE if sform else None, sform)
        forms.set_qform(AFFINE, qform)
        image = kind(np.ones(shape, np.float32), None, forms)
        path = tmp_path / name
        nib.save(image, path)
        raw = path.read_bytes()
        size = kind.header_class.sizeof_hdr
        header = kind.header_class(raw[:size], check=False)
        for field, value in fields.items():
            header[field] = value
        path.write_bytes(header.binaryblock + raw[size:])
        return path

    return save


def written(series, folder):
    """The header of a map of the series, read with nibabel's own checks."""
    with output_folder(folder, like=series) as out:
        out.write_map("D", np.ones(series.voxels), {})
    return nib.load(folder / "D.nii.gz").header


def opened(path, folder):
    """Affine and notes of a series, and the header of its maps; nothing on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_series(path) as series:
            return series.affine, series.notes, written(series, folder)


def half_turns():
    """Half turns about random axes: as float32, many are longer than 1."""
    axes = np.random.default_rng(0).normal(size=(60, 3))
    return np.float32(axes / np.linalg.norm(axes, axis=1, keepdims=True))


@pytest.mark.parametrize("kind", KINDS)
def test_half_turns_rounded_to_float32_are_read_and_written(make, tmp_path, kind):
    for index, (b, c, d) in enumerate(half_turns()):
        turn = {"quatern_b": b, "quatern_c": c, "quatern_d": d}
        path = make(qform=1, kind=kind, **turn)
        affine, notes, header = opened(path, tmp_path / str(index))
        axis = np.array([b, c, d], float)
        flip, *sizes = header["pixdim"][:4]
        expected = (2 * np.outer(axis, axis) / (axis @ axis) - np.eye(3)) * sizes * [1, 1, flip]
        np.testing.assert_allclose(affine[:3, :3], expected, atol=1e-2)
        np.testing.assert_allclose(header.get_best_affine(), affine, atol=1e-5)
        assert notes == ()


@pytest.mark.parametrize("form", [{"qform": 1}, {"qform": 1, "sform": 1}, {}])
@pytest.mark.parametrize("digits", [7, 4, 3, 2, 1])
def test_a_quaternion_that_is_rounded_is_mended(make, tmp_path, form, digits):
    rounded = np.ceil(10**digits * np.sqrt(0.5)) / 10**digits
    path = make(**form, quatern_b=rounded, quatern_c=rounded, quatern_d=0)
    if digits == 1 and form == {"qform": 1}:
        with pytest.raises(InputError, match=r"dwi.nii: its qform is broken \(its quaternion has"):
            opened(path, tmp_path / "maps")
        return
    affine, _, header = opened(path, tmp_path / "maps")
    header.get_qform()  # nibabel refuses one that is longer than 1
    if form == {"qform": 1}:
        expected = np.array([[0, 2, 0], [2, 0, 0], [0, 0, -3 * header["pixdim"][0]]])
        np.testing.assert_allclose(affine[:3, :3], expected, atol=1e-5)


BROKEN = {
    "quaternion NaN": {"quatern_c": NAN},
    "quaternion infinite": {"quatern_b": np.inf},
    "quaternion too long": {"quatern_b": 0.9, "quatern_c": 0.9},
    "offset NaN": {"qoffset_y": NAN},
    "sizes NaN": {"pixdim": [-1, NAN, NAN, NAN, 1, 1, 1, 1]},
    "size 0": {"pixdim": [-1, 2, 0, 3, 1, 1, 1, 1]},
    "size negative": {"pixdim": [-1, 2, 2, -3, 1, 1, 1, 1]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", BROKEN.values(), ids=BROKEN)
def test_a_broken_qform_alone_is_refused_on_opening(make, tmp_path, kind, fields):
    with pytest.raises(InputError, match=r"dwi.nii: its qform is broken .* position .* unknown"):
        opened(make(qform=1, kind=kind, **fields), tmp_path / "maps")


@pytest.mark.parametrize("fields", BROKEN.values(), ids=BROKEN)
def test_a_broken_qform_beside_a_sound_sform_is_left_out_or_mended(make, tmp_path, fields):
    affine, (note,), header = opened(make(qform=1, sform=1, **fields), tmp_path / "maps")
    np.testing.assert_array_equal(affine, AFFINE)
    np.testing.assert_array_equal(header.get_best_affine(), AFFINE)
    np.testing.assert_array_equal(header["pixdim"][1:4], [2, 2, 3])
    assert "dwi.nii: its " in note
    if "pixdim" in fields:
        np.testing.assert_allclose(header.get_qform()[:3, 3], AFFINE[:3, 3])
    else:
        assert header["qform_code"] == 0


SFORMS = {
    "NaN": {f"srow_{axis}": [NAN] * 4 for axis in "xyz"},
    "one infinite": {"srow_y": [0, np.inf, 0, 0]},
    "all zero": {f"srow_{axis}": [0] * 4 for axis in "xyz"},
    "an axis of no length": {"srow_z": [0, 0, 0, -70]},
    "axes that coincide": {"srow_x": [2, 2, 0, 0], "srow_y": [2, 2, 0, 0]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", SFORMS.values(), ids=SFORMS)
def test_a_broken_sform_is_refused_unless_there_is_a_qform(make, tmp_path, kind, fields):
    with pytest.raises(InputError, match=r"dwi.nii: its sform is broken"):
        opened(make(sform=2, kind=kind, **fields), tmp_path / "alone")
    affine, (note,), header = opened(make(sform=2, qform=1, kind=kind, **fields), tmp_path / "two")
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    assert "its sform is broken" in note
    assert note.endswith("its qform is used")
    assert (header["sform_code"], header["qform_code"]) == (0, 1)


@pytest.mark.parametrize(
    ("sizes", "used"),
    [
        ((NAN, NAN, NAN), (1, 1, 1)),
        ((0, 2, 0), (1, 2, 1)),
        ((-2, 2, np.inf), (2, 2, 1)),
    ],
)
def test_without_any_form_impossible_sizes_are_replaced_and_noted(make, tmp_path, sizes, used):
    path = make(pixdim=[1, *sizes, 1, 1, 1, 1])
    affine, (note,), header = opened(path, tmp_path / "maps")
    assert f"pixdim) are {', '.join(f'{size:g}' for size in sizes)};" in note
    np.testing.assert_array_equal(np.abs(affine[:3, :3]), np.diag(used))
    np.testing.assert_array_equal(header["pixdim"][1:4], used)


@pytest.mark.parametrize("form", [{}, {"qform": 1}, {"sform": 1}])
def test_the_thickness_of_a_single_slice_may_be_missing(make, tmp_path, form):
    path = make(shape=(5, 4, 1, 2), pixdim=[1, 2, 2, 0, 1, 1, 1, 1], **form)
    affine, notes, _ = opened(path, tmp_path / "maps")
    assert np.isfinite(affine).all()
    assert notes == ()


def test_fields_of_absent_forms_do_not_matter_and_are_not_passed_on(make, tmp_path):
    path = make(sform=1, quatern_b=NAN, qoffset_x=NAN)
    affine, notes, header = opened(path, tmp_path / "maps")
    np.testing.assert_array_equal(affine, AFFINE)
    assert notes == ()
    assert np.isfinite(header["quatern_b"])
    path = make(qform=1, srow_x=[NAN] * 4)
    affine, notes, header = opened(path, tmp_path / "other")
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    assert notes == ()
    assert np.isfinite(header["srow_x"]).all()


def test_a_code_that_is_not_one_is_said(make, tmp_path):
    _, (note,), _ = opened(make(sform=1, qform=1, sform_code=77), tmp_path / "maps")
    assert "its sform is broken (its code is 77" in note


@pytest.mark.parametrize(("code", "said"), [(1, 1), (4, 0)])
def test_forms_that_disagree_are_noted_if_they_claim_the_same(make, tmp_path, code, said):
    """A qform of the scanner and an sform of a template differ on purpose."""
    path = make(sform=1, qform=1, sform_code=code, qoffset_x=50)
    affine, notes, _ = opened(path, tmp_path / "maps")
    np.testing.assert_array_equal(affine, AFFINE)
    assert len(notes) == said
    if said:
        assert "its qform and its sform disagree by up to 20 voxels; the sform is used" in notes[0]


def test_a_mask_whose_quaternion_is_rounded_fits_its_series(make):
    turn = {"quatern_b": 0.7071072, "quatern_c": 0.7071072, "quatern_d": 0}
    exact = {"quatern_b": np.sqrt(0.5), "quatern_c": np.sqrt(0.5), "quatern_d": 0}
    mask = make("mask.nii", SHAPE, qform=1, **turn)
    with open_series(make(qform=1, **exact)) as series:
        assert read_mask(mask, like=series)[0].all()


def test_a_mask_with_a_broken_geometry_is_named(make):
    mask = make("mask.nii", SHAPE, sform=1, srow_x=[NAN] * 4)
    with open_series(make(sform=1)) as series, pytest.raises(InputError, match=r"k\.nii: its sfo"):
        read_mask(mask, like=series)


def test_distance_is_that_of_the_farthest_corner():
    turned = AFFINE @ np.diag([1, 1, 1, 1])
    turned[0, 1] = 0.1
    assert distance(AFFINE, turned, (5, 21, 3)) == pytest.approx(1.0)
    assert distance(AFFINE, turned, (5, 1, 3)) == 0
    assert distance(AFFINE, AFFINE, (1, 1, 1)) == 0
