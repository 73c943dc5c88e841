import pytest

from labelwise.io.files import from_json, from_toml, refuse_existing
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


def test_a_missing_folder_is_refused_unless_it_will_be_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder; make it first"):
        refuse_existing(tmp_path / "missing" / "net", overwrite=False)
    refuse_existing(tmp_path / "missing" / "net", overwrite=False, made=True)


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
    refuse_existing(tmp_path / "net", overwrite=False, made=True)


def test_a_name_too_long_for_what_is_written_beside_it_is_refused(tmp_path):
    refuse_existing(tmp_path / "net", overwrite=False)
    with pytest.raises(OSError, match=r"cannot be written .*File name too long"):
        refuse_existing(tmp_path / ("n" * 240), overwrite=False)
    assert not list(tmp_path.iterdir())
