import os
import shutil
import stat
from pathlib import Path

import pytest

from labelwise.io.files import (
    check_outputs,
    from_json,
    from_toml,
    refuse_existing,
    write_whole,
)
from labelwise.types import InputError


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "net").touch()
    with pytest.raises(FileExistsError, match="net: is there already; choose another name"):
        refuse_existing(tmp_path / "net", overwrite=False)
    refuse_existing(tmp_path / "net", overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_is_never_replaced(tmp_path, overwrite):
    with pytest.raises(FileExistsError, match="a folder is where a file should go"):
        refuse_existing(tmp_path, overwrite)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder; make it first"):
        refuse_existing(tmp_path / "missing" / "net", overwrite=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "Exceeds the limit"),
        ('{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        ("[1", "Expecting"),
    ],
)
def test_json_from_outside_is_refused_with_a_sentence(text, words):
    with pytest.raises(InputError, match=rf"a\.json: not valid JSON \(.*{words}"):
        from_json(text, "a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "[" * 150 + "]" * 150, "nested too deeply"),
        ("a" + ".a" * 5000 + " = 1", "nested too deeply"),
        ("a = " + "9" * 5000, "Exceeds the limit"),
        ("a = 1\na = 2", "overwrite"),
    ],
)
def test_toml_from_outside_is_refused_with_a_sentence(text, words):
    with pytest.raises(InputError, match=rf"a\.toml: not valid TOML \(.*{words}"):
        from_toml(text, "a.toml")


def test_data_that_are_nested_as_usual_are_read():
    assert from_json("[" * 90 + "]" * 90, "a.json")
    assert from_toml("a = " + "[" * 90 + "]" * 90, "a.toml")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", fails)
    with pytest.raises(OSError, match=r"net: cannot be written \(Permission denied\); choose"):
        refuse_existing(tmp_path / "net", overwrite=False)


def test_a_name_too_long_for_what_is_written_beside_it_is_refused(tmp_path):
    refuse_existing(tmp_path / "net", overwrite=False)
    with pytest.raises(OSError, match=r"cannot be written .*File name too long"):
        refuse_existing(tmp_path / ("n" * 240), overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_of_any_new_file(tmp_path, mode, monkeypatch):
    """The mask of the process is not changed meanwhile: other threads make files, too."""
    before = os.umask(mode)
    monkeypatch.setattr(os, "umask", None)
    try:
        write_whole(tmp_path / "net", b"1")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o666 & ~mode
    assert (tmp_path / "net").read_bytes() == b"1"


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "net").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "net", "no bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_bytes() == b"old"


@pytest.fixture
def out(tmp_path):
    """An output folder with a file and a folder, whose names are written."""
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "one.png").write_text("1")
    (tmp_path / "out" / "D.nii.gz").write_text("D")
    (tmp_path / "mine").write_text("mine")
    return tmp_path / "out"


def link(path, target):
    path.symlink_to(target)
    return path


def twin(path, target):
    path.hardlink_to(target)
    return path


INPUTS = {
    "itself": lambda out: out / "D.nii.gz",
    "relative": lambda out: Path(os.path.relpath(out / "D.nii.gz")),
    "dots": lambda out: out / "figures" / ".." / "D.nii.gz",
    "link": lambda out: link(out.parent / "in", out / "D.nii.gz"),
    "link to a link": lambda out: link(
        out.parent / "on", link(out.parent / "in", out / "D.nii.gz")
    ),
    "linked folder": lambda out: link(out.parent / "there", out) / "D.nii.gz",
    "hard link": lambda out: twin(out.parent / "twin", out / "D.nii.gz"),
    "in a folder": lambda out: out / "figures" / "one.png",
    "link into a folder": lambda out: link(out.parent / "in", out / "figures" / "one.png"),
    "link in a folder": lambda out: link(out / "figures" / "two", out.parent / "mine"),
}


@pytest.mark.parametrize("source", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("overwrite", [True, False])
def test_no_input_is_replaced_or_removed(out, source, overwrite):
    source = source(out)
    with pytest.raises(InputError, match="is an input of this run, which would replace or remove"):
        check_outputs(out, ["D.nii.gz", "figures"], overwrite=overwrite, inputs=[source])


def test_an_input_beside_the_outputs_is_welcome(out):
    (out / "dwi.nii.gz").touch()
    inputs = [out / "dwi.nii.gz", out / "figures" / ".." / "dwi.nii.gz", out.parent / "mine"]
    check_outputs(out, ["D.nii.gz", "figures"], overwrite=True, inputs=inputs)


def test_a_single_file_is_never_its_own_input(out):
    for source in (out / "D.nii.gz", twin(out.parent / "twin", out / "D.nii.gz")):
        with pytest.raises(InputError, match="is an input of this run"):
            refuse_existing(out / "D.nii.gz", True, [source])


@pytest.mark.parametrize("name", ["figures/one.png", "figures", "figures/deep"])
def test_nothing_outside_of_the_folder_is_written(out, tmp_path, name):
    """A link to a folder would be written through."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    shutil.rmtree(out / "figures")
    link(out / "figures", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"figures: leads out of the output folder"):
        check_outputs(out, [name], overwrite=True)
    (out / "figures").unlink()
    (out / "figures").mkdir()
    link(out / "figures" / "deep", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"deep: leads out of the output folder"):
        check_outputs(out, ["figures"], overwrite=True)


def test_the_output_folder_itself_may_be_a_link(out, tmp_path):
    check_outputs(link(tmp_path / "there", out), ["D.nii.gz", "figures"], overwrite=True)


def test_a_link_to_nowhere_is_there(out):
    link(out / "f.nii.gz", out / "nowhere")
    with pytest.raises(FileExistsError, match=r"already holds f\.nii\.gz"):
        check_outputs(out, ["f.nii.gz"], overwrite=False)
    with pytest.raises(FileExistsError, match=r"is there already"):
        refuse_existing(out / "f.nii.gz", overwrite=False)
