import errno
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

import nibabel as nib
import numpy as np
import pytest

from labelwise.io import nifti as images
from labelwise.io.nifti import file_hash, open_series, read_map, read_mask
from labelwise.types import InputError

SHAPE = (5, 4, 3, 6)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 3.0, -70], [0, 0, 0, 1]])


@pytest.fixture
def data():
    return np.random.default_rng(5).uniform(0, 1000, SHAPE).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    def save_image(
        data, name="dwi.nii", affine=AFFINE, slope=None, inter=0.0, kind=nib.Nifti1Image
    ):
        """The stored numbers exactly as given, with the scaling written into the header."""
        image = kind(data, affine)
        path = tmp_path / name.removesuffix(".gz")
        nib.save(image, path)
        if slope is not None:
            raw = bytearray(path.read_bytes())
            raw[112:120] = np.array([slope, inter], np.float32).tobytes()
            path.write_bytes(raw)
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress(path.read_bytes(), 1))
            path.unlink()
        return tmp_path / name

    return save_image


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def flat(data):
    return data.reshape(-1, *data.shape[3:], order="F")


def read_all(series, **options):
    blocks = list(series.blocks(**options))
    return np.concatenate([i for i, _ in blocks]), np.concatenate([s for _, s in blocks])


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_blocks_are_the_data_in_flat_order(save, data, name, size):
    with open_series(save(data, name)) as series:
        assert (series.shape, series.volumes, series.voxels) == ((5, 4, 3), 6, 60)
        np.testing.assert_array_equal(series.affine, AFFINE)
        assert max(len(index) for index, _ in series.blocks(size=size)) == min(size, 60)
        index, signal = read_all(series, size=size)
    np.testing.assert_array_equal(index, np.arange(60))
    np.testing.assert_array_equal(signal, flat(data))
    assert signal.dtype == np.float32


def test_only_voxels_of_the_mask_come(save, data):
    mask = np.random.default_rng(1).random(60) < 0.3
    with open_series(save(data)) as series:
        index, signal = read_all(series, mask=mask, size=5)
    np.testing.assert_array_equal(index, np.flatnonzero(mask))
    np.testing.assert_array_equal(signal, flat(data)[mask])


def test_only_the_volumes_asked_for_come_in_their_order(save, data):
    with open_series(save(data)) as series:
        _, signal = read_all(series, volumes=[4, 0])
    np.testing.assert_array_equal(signal, flat(data)[:, [4, 0]])


def test_a_mask_of_nothing_gives_no_block(save, data):
    with open_series(save(data)) as series:
        assert list(series.blocks(np.zeros(60, bool))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones(59, bool)}, r"each of the 60 voxels .* got shape \(59,\)"),
        ({"mask": np.ones((5, 4, 3), bool)}, r"got shape \(5, 4, 3\)"),
        ({"volumes": [6]}, r"volumes 0 to 5, got \[6\]"),
        ({"volumes": [-1]}, r"volumes 0 to 5, got \[-1\]"),
        ({"size": 0}, r"at least 1 voxel, got 0"),
    ],
)
def test_blocks_refuse_at_the_call(save, data, options, message):
    with open_series(save(data)) as series, pytest.raises(ValueError, match=message):
        series.blocks(**options)


@pytest.mark.parametrize("name", ["dwi.nii", "dwi.nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i4", "<f4", "<f8", "<u1", ">i2", ">f4", ">f8"])
def test_every_type_and_byte_order(tmp_path, data, name, dtype):
    stored = (data / 5).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(stored.dtype)
    nib.save(nib.Nifti1Image(stored, AFFINE, header), tmp_path / name)
    with open_series(tmp_path / name) as series:
        np.testing.assert_array_equal(read_all(series)[1], flat(stored).astype(np.float32))


def test_nifti_2(save, data):
    with open_series(save(data, kind=nib.Nifti2Image)) as series:
        np.testing.assert_array_equal(read_all(series)[1], flat(data))


def test_a_trailing_axis_of_one_is_accepted(save, data):
    with open_series(save(data[..., None])) as series:
        assert (series.shape, series.volumes) == ((5, 4, 3), 6)


@pytest.mark.parametrize(
    ("dtype", "stored", "slope", "inter"),
    [
        (np.int16, 32767, 10.0, 0.0),
        (np.int16, -32768, -2.5, 7.0),
        (np.uint16, 65535, 3.0, -1000.0),
        (np.uint8, 255, 1e6, 0.0),
        (np.int16, 1234, 1.0, 40000.0),
    ],
)
def test_scaling_does_not_overflow_the_stored_type(save, dtype, stored, slope, inter):
    path = save(np.full(SHAPE, stored, dtype), slope=slope, inter=inter)
    with open_series(path) as series:
        signal = read_all(series)[1]
    expected = stored * float(np.float32(slope)) + inter
    np.testing.assert_array_equal(signal, np.full((60, 6), expected, np.float32))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_zero_or_nan_means_none(save, slope):
    path = save(np.full(SHAPE, 30000, np.int16), slope=slope, inter=5.0)
    with open_series(path) as series:
        np.testing.assert_array_equal(read_all(series)[1], 30000)


@pytest.mark.parametrize("slope", [None, 1e10])
def test_values_beyond_float32_become_infinite_in_their_own_voxel(save, slope):
    values = np.ones(SHAPE)
    values[2, 1, 0, 3] = 1e300
    with open_series(save(values, slope=slope)) as series:
        signal = read_all(series)[1]
    assert np.flatnonzero(np.isinf(signal).any(axis=1)).tolist() == [2 + 5 * 1]
    assert np.isinf(signal).sum() == 1


def truncate(path, share=0.9):
    os.truncate(path, int(share * path.stat().st_size))


def flip_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def break_the_header(path):
    raw = bytearray(path.read_bytes())
    raw[70:72] = np.int16(12345).tobytes()
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("dwi.nii", truncate, r"dwi.nii: truncated: its header needs 1440 bytes"),
        ("dwi.nii", lambda path: truncate(path, 0.21), r"truncated: .*1440 .*, 24 are there"),
        ("dwi.nii", lambda path: truncate(path, 0.1), r"dwi.nii: not a NIfTI file"),
        ("dwi.nii", break_the_header, r"dwi.nii: its NIfTI header is damaged \(.*12345"),
        ("dwi.nii", lambda path: path.write_bytes(b""), r"dwi.nii: not a NIfTI file"),
        ("dwi.nii", lambda path: path.write_text("b" * 2000), r"dwi.nii: not a NIfTI file"),
        ("dwi.nii.gz", truncate, r"dwi.nii.gz: truncated: the compressed file ends early"),
        ("dwi.nii.gz", flip_a_byte, r"dwi.nii.gz: corrupt: it does not decompress"),
        (
            "dwi.nii.gz",
            lambda path: path.write_bytes(gzip.compress(b"x" * 2000)),
            r"dwi.nii.gz: not a NIfTI file",
        ),
    ],
)
def test_damaged_files_are_refused_with_a_sentence_and_leave_nothing(
    save, data, temporary, name, damage, message
):
    path = save(data, name)
    damage(path)
    with pytest.raises(ValueError, match=message) as caught, open_series(path):
        pass
    assert "\n" not in str(caught.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (SHAPE[:3], np.float32, r"expected a 4D series .* got a 3D image of shape \(5, 4, 3\)"),
        ((*SHAPE, 2), np.float32, r"one axis of measurements .* got a 5D image of shape"),
        (SHAPE, np.complex64, r"expected real numbers, its data type is complex64"),
        (SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")], r"its data type is RGB"),
    ],
    ids=["3D", "5D", "complex", "RGB"],
)
def test_images_that_are_no_series_are_refused(save, shape, dtype, message):
    path = save(np.zeros(shape, dtype))
    with pytest.raises(ValueError, match=message), open_series(path):
        pass


def test_half_of_a_pair_is_refused(tmp_path, data):
    nib.save(nib.Nifti1Pair(data, AFFINE), tmp_path / "dwi.hdr")
    with (
        pytest.raises(ValueError, match=r"half of an \.hdr/\.img pair"),
        open_series(tmp_path / "dwi.hdr"),
    ):
        pass


def test_a_missing_file_and_a_folder(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"no\.nii: there is no such file"),
        open_series(tmp_path / "no.nii"),
    ):
        pass
    with pytest.raises(ValueError, match="not a folder"), open_series(tmp_path):
        pass


def test_a_full_temporary_disk_is_named(save, data, temporary, monkeypatch):
    def full(source, target, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with (
        pytest.raises(OSError, match=r"no room to decompress it in .*temporary"),
        open_series(save(data, "dwi.nii.gz")),
    ):
        pass
    assert list(temporary.iterdir()) == []


def interrupted(series):
    next(series.blocks())
    raise KeyboardInterrupt


def test_the_temporary_file_goes_away_when_the_series_is_closed(save, data, temporary):
    opened = open_series(save(data, "dwi.nii.gz"))
    with pytest.raises(KeyboardInterrupt), opened as series:
        interrupted(series)
    assert list(temporary.iterdir()) == []
    assert series._stored[0].file.closed


MEMORY = """
import resource, sys
import numpy as np
from labelwise.io.nifti import open_series

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
with open_series(sys.argv[1]) as series:
    mask = np.arange(series.voxels) % 8 == 0
    print(sum(len(index) for index, _ in series.blocks(mask, size=4096)), peak() - before)
"""


@pytest.mark.parametrize("name", ["big.nii", "big.nii.gz"])
def test_memory_does_not_grow_with_the_series(tmp_path, name):
    header = nib.Nifti1Header()
    header.set_data_shape((64, 64, 32, 240))
    header.set_data_dtype(np.float32)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith("gz") else open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.writelines(bytes(1 << 20) for _ in range(120))
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    voxels, grown = (int(word) for word in done.stdout.split())
    assert voxels == 64 * 64 * 32 / 8
    assert grown < 30e6  # of 126e6 in the file; a block is 4e6


@pytest.fixture
def series(save, data):
    with open_series(save(data)) as series:
        yield series


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
@pytest.mark.parametrize("axes", [3, 4])
def test_a_mask_is_where_it_is_above_a_half(save, series, name, axes):
    values = np.zeros(SHAPE[:3], np.float32)
    values[1, 2, 0], values[3, 0, 2], values[0, 0, 0], values[1, 0, 0] = 1, -0.7, np.nan, np.inf
    values[0, 3, 1], values[2, 2, 2], values[4, 0, 0] = 0.5, 0.51, -7.6e-6
    path = save(values if axes == 3 else values[..., None], name)
    mask, (note,) = read_mask(path, like=series)
    assert mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == [1 + 5 * 2, 2 + 5 * 2 + 20 * 2]
    assert f"{name}: the mask has 8 different values (-0.7 to 1)" in note
    assert "2 of 60 voxels; this decided 6 voxels" in note


@pytest.mark.parametrize("one", [1, 255, 0.6, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_mask_of_two_values_needs_no_note(save, series, one, dtype):
    values = np.zeros(SHAPE[:3], dtype)
    values[1:3] = one if dtype == np.float32 else np.ceil(one)
    mask, notes = read_mask(save(values, "mask.nii"), like=series)
    np.testing.assert_array_equal(mask, flat(values) > 0)
    assert notes == []


def test_a_mask_of_all_voxels_needs_no_note(save, series):
    mask, notes = read_mask(save(np.ones(SHAPE[:3], np.uint8), "mask.nii"), like=series)
    assert (mask.all(), notes) == (True, [])


def test_a_mask_of_labels_takes_all_of_them_and_says_so(save, series):
    values = (np.arange(60) % 5).astype(np.uint8).reshape(SHAPE[:3])
    mask, (note,) = read_mask(save(values, "rois.nii"), like=series)
    np.testing.assert_array_equal(mask, flat(values) > 0)
    assert "48 of 60 voxels; this decided 36 voxels that are neither 0 nor 1" in note


def test_a_mask_is_read_after_its_scaling(save, series):
    """Zero stored through a slope becomes -7.6e-6; it was taken for inside."""
    stored = np.full(SHAPE[:3], -32768, np.int16)
    stored[2, 2, 2] = 32767
    mask, _ = read_mask(save(stored, "mask.nii", slope=1 / 65535, inter=0.5), like=series)
    assert np.flatnonzero(mask).tolist() == [2 + 5 * 2 + 20 * 2]


@pytest.mark.parametrize("value", [0, 0.5, -1, np.nan])
def test_a_mask_without_a_voxel_above_a_half_is_refused(save, series, value):
    path = save(np.full(SHAPE[:3], value, np.float32), "mask.nii")
    with pytest.raises(InputError, match=r"mask.nii: the mask is empty: none .* above 0\.5"):
        read_mask(path, like=series)


def test_a_single_slice_may_be_a_2d_mask(save):
    with open_series(save(np.ones((5, 4, 1, 6), np.float32))) as series:
        assert read_mask(save(np.ones((5, 4), np.uint8), "mask.nii"), like=series)[0].all()


@pytest.mark.parametrize("read", [read_mask, read_map])
@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((5, 4, 4), AFFINE, r"its shape \(5, 4, 4\) is not that of .*dwi.nii, \(5, 4, 3\)"),
        ((4, 5, 3), AFFINE, r"its shape \(4, 5, 3\)"),
        ((5, 4, 3, 2), AFFINE, r"expected (one volume|1 or 6 volumes), got 2"),
        ((5, 4, 3), AFFINE + np.eye(4)[:, [3, 0, 1, 2]], r"affine differs from that of .* by up"),
        (
            (5, 4, 3),
            np.diag([2.0, 2, 3, 1]),
            r"affine differs from that .* by up to 8\d\.\d vox",
        ),
    ],
    ids=["shape", "order of axes", "volumes", "turned", "elsewhere"],
)
def test_images_off_the_grid_of_the_series_are_refused(save, series, read, shape, affine, message):
    path = save(np.ones(shape, np.float32), "other.nii", affine)
    with pytest.raises(ValueError, match=message):
        read(path, like=series)


def test_rounding_of_the_affine_is_forgiven(save, series):
    path = save(np.ones(SHAPE[:3], np.uint8), "mask.nii", AFFINE + 0.02 * (AFFINE != 0))
    assert read_mask(path, like=series)[0].all()


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_tolerance_of_grids_is_in_voxels(save, unit, share):
    """A fixed tolerance in mm passes any affine of a microscope and no rounding of another."""
    scaled = AFFINE.copy()
    scaled[:3] *= unit
    other = scaled.copy()
    other[0, 3] += share * 2 * unit
    with open_series(save(np.ones(SHAPE, np.float32), affine=scaled)) as series:
        path = save(np.ones(SHAPE[:3], np.uint8), "mask.nii", other)
        if share > 0.1:
            with pytest.raises(InputError, match=r"differs .*, by up to 0\.2 voxels"):
                read_mask(path, like=series)
        else:
            assert read_mask(path, like=series)[0].all()


def test_an_empty_mask_is_refused(save, series):
    with pytest.raises(ValueError, match=r"mask.nii: the mask is empty: none of its 60 voxels"):
        read_mask(save(np.zeros(SHAPE[:3], np.uint8), "mask.nii"), like=series)


def test_a_map_is_float64_with_its_scaling_and_bad_voxels_left_to_the_fitter(save, series):
    stored = np.arange(60, dtype=np.int16).reshape(SHAPE[:3], order="F")
    values, notes = read_map(save(stored, "sigma.nii", slope=0.5, inter=-3.0), like=series)
    assert notes == ()
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, np.arange(60) * 0.5 - 3)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_map_without_a_positive_value_is_refused(save, series, value):
    path = save(np.full(SHAPE[:3], value), "sigma.nii")
    with pytest.raises(ValueError, match=r"sigma.nii: expected positive values"):
        read_map(path, like=series)


def test_file_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert file_hash(path) == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_out_of_space_includes_quotas():
    assert {errno.ENOSPC, errno.EDQUOT} <= images.OUT_OF_SPACE


def put(path, **fields):
    """Header fields changed in a file, packed or not, without nibabel's checks."""
    raw = path.read_bytes()
    packed = raw[:2] == b"\x1f\x8b"
    raw = gzip.decompress(raw) if packed else raw
    kind = nib.Nifti1Header if int.from_bytes(raw[:4], "little") == 348 else nib.Nifti2Header
    header = kind(raw[: kind.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    raw = header.binaryblock + raw[kind.sizeof_hdr :]
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    return path


KINDS = [nib.Nifti1Image, nib.Nifti2Image]
EVERYTHING = [open_series, read_mask, read_map]


def read_by(read, path, series):
    if read is not open_series:
        return read(path, like=series)
    with open_series(path):
        pass
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["other.nii", "other.nii.gz"])
@pytest.mark.parametrize("read", EVERYTHING)
@pytest.mark.parametrize("offset", [0, 1, 348, 351, -1, -352])
def test_data_inside_the_header_are_refused(save, series, read, name, kind, offset):
    """With vox_offset 0 the bytes of the header were read as voxels."""
    shape = SHAPE if read is open_series else SHAPE[:3]
    path = put(save(np.ones(shape, np.float32), name, kind=kind), vox_offset=offset)
    with pytest.raises(InputError, match=rf"{name}: its data would start at byte {offset} "):
        read_by(read, path, series)


@pytest.mark.parametrize("offset", [np.nan, np.inf, 352.5, 1e30])
def test_offsets_that_are_no_place_in_the_file_are_refused(save, data, offset):
    path = put(save(data), vox_offset=offset)
    with pytest.raises(InputError, match=r"dwi.nii: (its data would start|truncated)"):
        read_by(open_series, path, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [16, 48, 64])
def test_data_inside_an_extension_are_refused(tmp_path, data, kind, missing):
    image = kind(data, AFFINE)
    for _ in range(2):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * 20))
    nib.save(image, tmp_path / "dwi.nii")
    with open_series(tmp_path / "dwi.nii") as series:
        np.testing.assert_array_equal(read_all(series)[1], flat(data))
        end = series.header.get_data_offset()
    put(tmp_path / "dwi.nii", vox_offset=end - missing)
    with pytest.raises(InputError, match="an extension of its header ends"):
        read_by(open_series, tmp_path / "dwi.nii", None)


def test_a_wrong_flag_of_extensions_is_no_extension(save, data):
    path = save(data)
    raw = bytearray(path.read_bytes())
    raw[348] = 1
    path.write_bytes(raw)
    with open_series(path) as series:
        np.testing.assert_array_equal(read_all(series)[1], flat(data))


@pytest.mark.parametrize("shape", [(5, 4, 3, 1, 6), (5, 4, 3, 1, 1, 6), (5, 4, 3, 6, 1, 1)])
def test_measurements_may_be_along_a_later_axis(save, data, shape):
    with open_series(save(data.reshape(shape, order="F"))) as series:
        assert (series.shape, series.volumes) == ((5, 4, 3), 6)
        np.testing.assert_array_equal(read_all(series)[1], flat(data))


def test_one_file_for_each_measurement(save, data):
    """In the order given, each with its own type, scaling, byte order and packing."""
    stored = [data[..., 3], data[..., 0].astype(np.int16), data[..., 5].astype(">f8")[..., None]]
    paths = [
        save(stored[0], "3.nii.gz"),
        save(stored[1], "0.nii", slope=0.5, inter=7.0),
        str(save(stored[2], "5.nii", kind=nib.Nifti2Image)),
    ]
    expected = np.stack([stored[0], stored[1] * 0.5 + 7, stored[2][..., 0]], axis=-1)
    with open_series(paths) as series:
        assert (series.shape, series.volumes, series.name) == ((5, 4, 3), 3, "3.nii.gz and 2 more")
        np.testing.assert_array_equal(read_all(series)[1], flat(expected).astype(np.float32))
        np.testing.assert_array_equal(
            read_all(series, volumes=[2, 0])[1], flat(expected)[:, [2, 0]].astype(np.float32)
        )


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([((5, 4, 3, 6), AFFINE)], r"b0.nii: has 6 volumes, but of several files"),
        ([((5, 4, 2), AFFINE)], r"b0.nii: its shape \(5, 4, 2\) is not that of .*a.nii"),
        ([((5, 4, 3), np.eye(4))], r"b0.nii: its affine differs from that of .*a.nii"),
        ([((5, 4, 3, 2, 3), AFFINE)], r"b0.nii: expected one axis of measurements"),
        ([], r"a.nii: expected a 4D series .* give one such file for each measurement"),
    ],
)
def test_files_that_are_not_one_measurement_each_are_refused(save, others, message):
    paths = [save(np.ones(SHAPE[:3], np.float32), "a.nii")]
    paths += [save(np.ones(s, np.float32), f"b{i}.nii", a) for i, (s, a) in enumerate(others)]
    with pytest.raises(InputError, match=message):
        read_by(open_series, paths, None)


def test_the_same_file_twice_is_no_repeat(save, tmp_path):
    path = save(np.ones(SHAPE[:3], np.float32), "a.nii")
    (tmp_path / "link.nii").symlink_to(path)
    with pytest.raises(InputError, match=r"link.nii: is given twice"):
        read_by(open_series, [path, tmp_path / "link.nii"], None)


def test_a_map_may_have_a_volume_for_each_measurement(save, series, data):
    values, _ = read_map(save(data + 1, "sigma.nii"), like=series)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, flat(data + 1))
