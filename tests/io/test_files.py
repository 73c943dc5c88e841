import pytest

from labelwise.io.files import refuse_existing


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
