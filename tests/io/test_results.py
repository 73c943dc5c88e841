import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labelwise.io.nifti import open_series
from labelwise.io.results import as_json, output_folder
from labelwise.io.staging import PARTIAL

SHAPE, VOXELS = (5, 4, 3), 60
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 3.0, -70], [0, 0, 0, 1]])
TURNED = np.array([[0, -2.0, 0, 5], [2.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def make_series(tmp_path):
    def save(sform=1, qform=2, kind=nib.Nifti1Image):
        header = kind.header_class()
        header.set_data_shape((*SHAPE, 2))
        header.set_data_dtype(np.int16)
        header.set_zooms((2, 2, 3, 1.7))
        header.set_xyzt_units("mm", "sec")
        header.set_qform(TURNED if qform else None, qform)
        header.set_sform(AFFINE if sform else None, sform)
        header["descrip"], header["cal_max"] = b"Jane Doe", 99
        header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Jane Doe"))
        image = kind(np.ones((*SHAPE, 2), np.int16), header.get_best_affine(), header)
        nib.save(image, tmp_path / "dwi.nii")
        return open_series(tmp_path / "dwi.nii")

    return save


@pytest.fixture
def series(make_series):
    with make_series() as series:
        yield series


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "maps"


def run(folder, series, names=("S0", "D"), **options):
    with output_folder(folder, like=series, **options) as out:
        for value, name in enumerate(names):
            out.write_map(name, np.full(VOXELS, float(value)), {"unit": "1"})
        out.path("maps.png").write_bytes(b"picture")
        out.write_run({"model": "test"})


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["D.json", "D.nii.gz", "S0.json", "S0.nii.gz", "maps.png", "run.json"]


def test_a_run_leaves_its_files_and_nothing_else(folder, series):
    run(folder, series)
    assert listing(folder) == WHOLE
    record = json.loads((folder / "run.json").read_text())
    assert record == {"schema": "labelwise run 1", "model": "test", "labelwise_files": WHOLE}


def test_flat_values_come_back_as_the_image_they_are(folder, series):
    values = np.random.default_rng(2).normal(size=VOXELS)
    values[::7] = np.nan
    with output_folder(folder, like=series) as out:
        out.write_map("D", values, {})
        out.write_map("D_error", np.stack([values, 2 * values], axis=1), {})
    one, two = (nib.load(folder / f"{name}.nii.gz") for name in ("D", "D_error"))
    assert (one.shape, two.shape) == (SHAPE, (*SHAPE, 2))
    expected = values.reshape(SHAPE, order="F").astype(np.float32)
    np.testing.assert_array_equal(np.asarray(one.dataobj), expected)
    np.testing.assert_array_equal(np.asarray(two.dataobj)[..., 1], 2 * expected)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("f4", "f4"),
        ("f8", "f4"),
        ("u1", "u1"),
        ("i1", "i1"),
        ("?", "u1"),
        ("i4", "i4"),
        ("i8", "i4"),
        (">f4", "f4"),
    ],
)
def test_types_on_disk_are_exact(folder, series, given, stored):
    values = (np.arange(VOXELS) % 2).astype(given)
    with output_folder(folder, like=series) as out:
        out.write_map("x", values, {})
    image = nib.load(folder / "x.nii.gz")
    assert image.get_data_dtype() == np.dtype(stored)
    assert (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(order="F"), values)


def test_integers_are_never_wrapped(folder, series):
    with (
        output_folder(folder, like=series) as out,
        pytest.raises(ValueError, match="beyond 32 bits"),
    ):
        out.write_map("x", np.full(VOXELS, 2**31), {})


def test_negative_codes_survive(folder, series):
    values = np.resize(np.array([-1, 0, 1], np.int8), VOXELS)
    with output_folder(folder, like=series) as out:
        out.write_map("on_bound", values, {})
    stored = np.asarray(nib.load(folder / "on_bound.nii.gz").dataobj)
    np.testing.assert_array_equal(stored.ravel(order="F"), values)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("sform", "qform"), [(1, 2), (4, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_geometry_is_kept(folder, make_series, sform, qform, kind, columns):
    with make_series(sform, qform, kind) as series, output_folder(folder, like=series) as out:
        assert (series.header["sform_code"], series.header["qform_code"]) == (sform, qform)
        out.write_map("D", np.ones((VOXELS, *columns)), {})
    header = nib.load(folder / "D.nii.gz").header
    assert isinstance(header, kind.header_class)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)
    np.testing.assert_allclose(header.get_best_affine(), series.affine, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), series.header.get_qform(), atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), series.header.get_sform(), atol=1e-5)
    assert header.get_zooms()[:3] == (2, 2, 3)
    assert header.get_xyzt_units() == ("mm", "sec")


def test_nothing_else_of_the_series_header_is_kept(folder, series):
    run(folder, series)
    header = nib.load(folder / "D.nii.gz").header
    assert header["descrip"].item() == b"labelwise D"
    assert header["cal_max"] == 0
    assert len(header.extensions) == 0


def test_the_same_values_give_the_same_bytes(tmp_path, series, monkeypatch):
    run(tmp_path / "a", series)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    run(tmp_path / "b", series)
    first, second = (tmp_path / name / "D.nii.gz" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("shape", [(59,), SHAPE, (), (VOXELS, 2, 2)])
def test_values_that_are_not_one_row_per_voxel_are_refused(folder, series, shape):
    with (
        output_folder(folder, like=series) as out,
        pytest.raises(ValueError, match=r"map D: expected .* each of the 60 voxels .* got shape"),
    ):
        out.write_map("D", np.ones(shape), {})


@pytest.mark.parametrize("name", ["a/b.json", "../b.json", "/b.json", "..", ".", ""])
def test_files_stay_inside_the_folder(folder, series, name):
    with (
        output_folder(folder, like=series) as out,
        pytest.raises(ValueError, match="plain file name"),
    ):
        out.path(name)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_an_empty_folder_or_one_with_other_files_is_welcome(folder, series, options):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    run(folder, series, **options)
    assert listing(folder) == sorted([*WHOLE, "notes.txt"])


def test_an_earlier_run_is_refused_before_the_work(folder, series):
    run(folder, series)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds run\.json; choose another"):
        output_folder(folder, like=series).__enter__()
    assert listing(folder) == WHOLE
    assert (folder / "run.json").read_bytes() == before


def test_an_announced_file_that_exists_is_refused_before_the_work(folder, series):
    folder.mkdir(parents=True)
    (folder / "D.nii.gz").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"already holds D\.nii\.gz"):
        output_folder(folder, like=series, names=["D.nii.gz", "S0.nii.gz"]).__enter__()
    assert listing(folder) == ["D.nii.gz"]


def test_a_file_nobody_announced_is_refused_at_the_end_and_stays(folder, series):
    folder.mkdir(parents=True)
    (folder / "D.nii.gz").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"already holds D\.nii\.gz"):
        run(folder, series)
    assert listing(folder) == ["D.nii.gz"]
    assert (folder / "D.nii.gz").read_bytes() == b"mine"


def test_overwriting_replaces_the_run_and_removes_its_other_files(folder, series):
    run(folder, series, names=("S0", "f", "D_fast"))
    (folder / "notes.txt").write_text("mine")
    run(folder, series, overwrite=True)
    assert listing(folder) == sorted([*WHOLE, "notes.txt"])


def test_a_run_record_cannot_name_files_elsewhere(folder, series, tmp_path):
    run(folder, series)
    (tmp_path / "results" / "mine.txt").write_text("mine")
    (folder / "run.json").write_text('{"labelwise_files": ["..", "../mine.txt", "D.nii.gz"]}')
    run(folder, series, names=("S0",), overwrite=True)
    assert (tmp_path / "results" / "mine.txt").exists()
    assert "D.nii.gz" not in listing(folder)


@pytest.mark.parametrize(
    "record",
    [
        *("not json", "[]", '{"labelwise_files": 3}', '{"labelwise_files": [1]}', "{}"),
        "[" * 200_000,
    ],
)
def test_a_strange_run_record_can_be_overwritten(folder, series, record):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record)
    run(folder, series, overwrite=True)
    assert listing(folder) == WHOLE


def test_a_failed_run_leaves_the_earlier_one_it_would_have_replaced(folder, series):
    run(folder, series)
    with pytest.raises(RuntimeError), output_folder(folder, like=series, overwrite=True) as out:
        fail_after_a_map(out, RuntimeError("no"))
    assert listing(folder) == WHOLE


def fail_after_a_map(out, error):
    out.write_map("D", np.ones(VOXELS), {})
    raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_an_exception_leaves_nothing(folder, series, tmp_path, error):
    with pytest.raises(type(error)), output_folder(folder, like=series) as out:
        fail_after_a_map(out, error)
    assert listing(tmp_path) == ["dwi.nii"]


def test_an_exception_leaves_the_folder_and_files_that_were_there(folder, series):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), output_folder(folder, like=series) as out:
        fail_after_a_map(out, RuntimeError("no"))
    assert listing(folder) == ["notes.txt"]


def test_nothing_shows_before_the_run_is_whole(folder, series):
    with output_folder(folder, like=series) as out:
        out.write_map("D", np.ones(VOXELS), {})
        assert [name for name in listing(folder) if not name.startswith(".")] == []


def test_run_json_comes_last(folder, series, monkeypatch):
    moves = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moves.append(Path(b).name), replace(a, b)))
    run(folder, series)
    assert moves[-1] == "run.json"
    assert sorted(moves) == WHOLE


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_failure_while_moving_leaves_nothing(folder, series, tmp_path, monkeypatch, error):
    replace = os.replace

    def fails_at_the_third(source, target):
        if Path(target).name == "S0.json":
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_third)
    with pytest.raises(type(error)):
        run(folder, series)
    assert listing(tmp_path) == ["dwi.nii"]


@pytest.mark.parametrize("below", [".", "maps", "maps/deep"])
def test_a_file_in_the_way_is_refused(tmp_path, series, below):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match=r"must be a folder, not a file|cannot write there \(Not a d"):
        output_folder(tmp_path / "taken" / below, like=series).__enter__()
    assert listing(tmp_path) == ["dwi.nii", "taken"]


def test_a_folder_in_the_way_of_a_file_is_refused_before_anything_is_touched(folder, series):
    run(folder, series)
    (folder / "D.nii.gz").unlink()
    (folder / "D.nii.gz").mkdir()
    with pytest.raises(FileExistsError, match=r"D\.nii\.gz: a folder is where a file should go"):
        run(folder, series, overwrite=True)
    assert listing(folder) == WHOLE


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_that_cannot_be_written_is_found_on_entering(
    folder, series, monkeypatch, code, existing
):
    if existing:
        folder.mkdir(parents=True)

    def refuse(path, *args, **options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OSError, match=rf"cannot write there \({os.strerror(code)}\); choose"):
        output_folder(folder, like=series).__enter__()
    assert folder.exists() == existing


FULL = """
import resource, sys
import numpy as np
from labelwise.io.nifti import open_series
from labelwise.io.results import output_folder

image, folder, how = sys.argv[1:]
try:
    with open_series(image) as series, output_folder(folder, series) as out:
        # No file may grow beyond 300 bytes: writes fail as on a full disk, for root too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        if how == "map":
            out.write_map("D", np.random.default_rng(0).normal(size=(60, 100)), {})
        elif how == "record":
            out.write_run({"model": "x" * 1000})
        else:
            out.path("maps.png").write_bytes(bytes(1000))
except OSError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("how", "what"), [("map", r"D\.nii\.gz"), ("record", r"run\.json"), ("file", "the results")]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, series, tmp_path, how, what):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(series.path), str(folder), how],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    full = rf"^\S+maps: could not write {what} \(File too large\); nothing is left [^\n]*$"
    assert re.fullmatch(full, done.stderr.strip())
    assert listing(tmp_path) == ["dwi.nii"]


KILLED = """
import os, signal, sys
import numpy as np
import labelwise.io.results
from labelwise.io.nifti import open_series
from labelwise.io.results import output_folder

image, folder, when = sys.argv[1:]
replace = os.replace

def die(source, target):
    if target.name == "S0.json":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

overwrite = when == "overwriting"
with open_series(image) as series, output_folder(folder, series, overwrite) as out:
    out.write_map("D", np.ones(60), {"unit": "1"})
    if when == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    out.write_map("S0", np.ones(60), {"unit": "1"})
    out.write_run({})
    os.replace = die
"""


def kill_a_run(folder, series, when):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(series.path), str(folder), when], check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_run_killed_while_writing_leaves_only_what_the_next_one_removes(folder, series):
    kill_a_run(folder, series, "writing")
    assert [name[: len(PARTIAL)] for name in listing(folder)] == [PARTIAL]
    run(folder, series)
    assert listing(folder) == WHOLE


def test_a_run_killed_while_moving_has_no_record_and_can_be_overwritten(folder, series):
    kill_a_run(folder, series, "moving")
    assert [name for name in listing(folder) if name[0] != "."] == ["D.json", "D.nii.gz"]
    with pytest.raises(FileExistsError, match=r"already holds D\.json, D\.nii\.gz"):
        run(folder, series)
    run(folder, series, overwrite=True)
    assert listing(folder) == WHOLE


def test_a_run_killed_while_replacing_another_has_no_record(folder, series):
    run(folder, series)
    kill_a_run(folder, series, "overwriting")
    assert "run.json" not in listing(folder)
    run(folder, series, overwrite=True)
    assert listing(folder) == WHOLE


def test_a_run_that_is_alive_is_not_taken_for_a_killed_one(folder, series):
    with output_folder(folder, like=series) as out:
        with pytest.raises(FileExistsError, match="another labelwise run is writing there"):
            output_folder(folder, like=series, overwrite=True).__enter__()
        out.write_map("D", np.ones(VOXELS), {})
    assert listing(folder) == ["D.json", "D.nii.gz"]


def test_sidecars_are_valid_json_in_their_own_order_and_utf_8(folder, series):
    sidecar = {
        "unit": "µm²/ms",
        "bounds": (0, np.inf),
        "lowest": -np.inf,
        "median": np.float32("nan"),
        "b": np.array([0.0, 0.5]),
        "count": np.int64(3),
        "image": Path("/data/dwi.nii"),
        "nested": {"flag": np.True_, "none": None},
    }
    with output_folder(folder, like=series) as out:
        out.write_map("D", np.ones(VOXELS), sidecar)
    text = (folder / "D.json").read_text(encoding="utf-8")
    assert "µm²/ms" in text
    assert list(json.loads(text)) == ["schema", *sidecar]
    assert json.loads(text, parse_constant=pytest.fail) == {
        "schema": "labelwise map 1",
        "unit": "µm²/ms",
        "bounds": [0, "inf"],
        "lowest": "-inf",
        "median": None,
        "b": [0.0, 0.5],
        "count": 3,
        "image": "/data/dwi.nii",
        "nested": {"flag": True, "none": None},
    }


def test_what_json_does_not_know_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        as_json({"model": object()})
