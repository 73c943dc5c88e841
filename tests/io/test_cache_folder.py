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
