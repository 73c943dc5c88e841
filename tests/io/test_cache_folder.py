import os
import sys

import pytest

from labelwise.io.files import cache_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "LABELWISE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other places")
def test_the_cache_is_where_the_system_keeps_caches(home, monkeypatch):
    assert cache_folder() == home / ".cache" / "labelwise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert cache_folder("labels") == home / "elsewhere" / "labelwise" / "labels"
    assert (home / "elsewhere" / "labelwise" / "labels").is_dir()


def test_the_person_moves_the_cache_or_turns_it_off(home, monkeypatch):
    monkeypatch.setenv("LABELWISE_CACHE", str(home / "mine"))
    assert cache_folder("labels") == home / "mine" / "labels"
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    assert cache_folder() is None


def test_a_place_that_cannot_be_made_is_none(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("LABELWISE_CACHE", str(home / "file" / "below"))
    assert cache_folder() is None


def test_without_a_home_nothing_is_made_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("labelwise.io.files.user_cache_dir", lambda *a, **k: "~/.cache/it")
    assert cache_folder() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["off", "OFF", "Off ", "no", "none", "None", "0", "false"])
def test_words_that_mean_no_cache_make_no_folder(home, monkeypatch, tmp_path, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", word)
    assert cache_folder("labels") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["", " ", "on", "YES", "1", "true"])
def test_words_that_mean_a_cache_are_the_usual_folder(home, monkeypatch, word):
    usual = cache_folder()
    monkeypatch.setenv("LABELWISE_CACHE", word)
    assert cache_folder() == usual


def test_a_tilde_is_the_home(home, monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("LABELWISE_CACHE", "~/mine")
    assert cache_folder("labels") == home / "mine" / "labels"
    monkeypatch.setenv("LABELWISE_CACHE", "~nobody-of-that-name/mine")
    assert cache_folder() is None
    assert not list((tmp_path / "work").iterdir())


posix = pytest.mark.skipif(sys.platform == "win32", reason="no modes of files")


@posix
@pytest.mark.parametrize("place", ["mine/labels", "mine", "."])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_cache_that_others_can_write_to_is_not_used(home, monkeypatch, place, mode):
    monkeypatch.setenv("LABELWISE_CACHE", str(home / "mine"))
    folder = cache_folder("labels")
    assert folder == home / "mine" / "labels"
    (home / place).chmod(mode)
    if mode == 0o1777 and folder != home / place:  # sticky: others cannot replace what is in it
        assert cache_folder("labels") == folder
        return
    with pytest.warns(UserWarning, match=rf"other users can write to .* \(mode {mode:o}\)"):
        assert cache_folder("labels") is None


@posix
def test_what_lies_above_the_home_is_not_examined(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "me"))
    home.chmod(0o777)
    assert cache_folder() == home / "me" / ".cache" / "labelwise"
    assert (home / "me" / ".cache" / "labelwise").stat().st_mode & 0o777 == 0o700


@posix
def test_a_group_of_several_people_is_others_and_that_of_one_is_not(home, monkeypatch):
    import grp

    cache_folder()
    folder = home / ".cache" / "labelwise"
    folder.chmod(0o775)
    own = grp.struct_group(("me", "x", 12, []))
    monkeypatch.setattr("pwd.getpwuid", lambda uid: type("User", (), {"pw_name": "me"}))
    monkeypatch.setattr(grp, "getgrgid", lambda group: own)
    assert cache_folder() == folder
    monkeypatch.setattr("labelwise.io.files._own_group", lambda group: False)
    with pytest.warns(UserWarning, match="other users can write to"):
        assert cache_folder() is None


@posix
@pytest.mark.parametrize("place", ["labelwise", "labelwise/jit_one"])
def test_what_belongs_to_another_user_is_not_used(home, monkeypatch, place):
    folder = cache_folder()
    (folder / "jit_one").touch()
    if os.getuid() == 0:
        os.chown(folder.parent / place, 12345, 12345)
    else:
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert cache_folder() is None
