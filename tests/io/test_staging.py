import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import pytest

from labelwise.io.staging import LOCK, MARK, PARTIAL, locked, remove_partial, staged, whole_folder
from labelwise.types import InputError


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(folder, **texts):
    with staged(folder, "last.txt", overwrite=True) as staging:
        for name, text in texts.items():
            (staging / f"{name}.txt").write_text(text)


def write_below(folder):
    with staged(folder, "one.txt") as staging:
        (staging / "truth").mkdir()
        (staging / "truth" / "T2.txt").write_text("80")
        (staging / "one.txt").write_text("1")


def test_files_in_folders_below_keep_their_places(tmp_path):
    write_below(tmp_path / "out")
    assert listing(tmp_path / "out") == ["one.txt", "truth", "truth/T2.txt"]


def test_the_last_file_is_removed_first_and_moved_last(tmp_path, monkeypatch):
    write(tmp_path, a="old", last="old", z="old")
    replace, seen = os.replace, []

    def watch(source, target):
        seen.append((Path(target).name, (tmp_path / "last.txt").exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write(tmp_path, a="new", last="new", z="new")
    assert seen == [("a.txt", False), ("z.txt", False), ("last.txt", False)]
    assert (tmp_path / "last.txt").read_text() == "new"


def test_a_failure_while_moving_removes_the_folders_below_too(tmp_path, monkeypatch):
    def fail(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_below(tmp_path / "out" / "deep")
    assert listing(tmp_path) == []


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path):
    with (
        locked(tmp_path / LOCK, "in use"),
        pytest.raises(FileExistsError, match=r"^in use$"),
        locked(tmp_path / LOCK, "in use"),
    ):
        pass
    with locked(tmp_path / LOCK, "in use"):
        pass


def test_a_link_is_no_lock_file_and_keeps_its_target(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError, match="a symbolic link"), locked(tmp_path / LOCK, "no"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_system_without_locks_stops_nothing(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks"):
        filelock.FileLock(tmp_path / LOCK).acquire()
    write(tmp_path / "out", one="1")
    assert listing(tmp_path / "out") == ["one.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from labelwise.io.staging import LOCK, locked, staged

folder = Path(sys.argv[1])
with locked(folder / LOCK, "in use"), staged(folder, "last.txt"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_lock_that_blocks(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(f"{PARTIAL}*/{LOCK}"))) == 1
    with locked(tmp_path / LOCK, "in use"):
        remove_partial(tmp_path)
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


@pytest.mark.parametrize("content", ["mine.txt", LOCK, None])
def test_a_folder_of_the_person_that_looks_like_a_partial_one_stays(tmp_path, content):
    out = tmp_path / "out"
    mine = out / f"{PARTIAL}abcdefgh"
    mine.mkdir(parents=True)
    if content:
        (mine / content).write_text("precious")
    linked = tmp_path / "elsewhere"
    with whole_folder(linked):
        pass
    (linked / MARK).touch()
    (out / f"{PARTIAL}link").symlink_to(linked)
    before = listing(out)
    write(out, one="1")
    assert sorted([*before, "one.txt"]) == listing(out)
    assert not content or (mine / content).read_text() == "precious"
    assert listing(linked) == [MARK]


def test_a_folder_appears_whole_in_place_of_an_earlier_one(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").touch()
    with whole_folder(tmp_path / "place") as partial:
        (partial / "new").touch()
        assert listing(tmp_path / "place") == ["old"]
    assert listing(tmp_path) == ["place", "place/new"]


def test_a_folder_that_fails_leaves_the_earlier_one(tmp_path):
    (tmp_path / "place").mkdir()
    with contextlib.suppress(ZeroDivisionError), whole_folder(tmp_path / "place"):
        1 / 0  # noqa: B018
    assert listing(tmp_path) == ["place"]


def test_a_hard_link_is_no_lock_file(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK).hardlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError, match="a hard link"), locked(tmp_path / LOCK, "no"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_the_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("out"), one="1")
    assert (tmp_path / "out" / "one.txt").read_text() == "1"


def test_a_link_that_looks_like_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / LOCK).write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{PARTIAL}x").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / MARK).touch()
    write(tmp_path / "out", one="1")
    remove_partial(tmp_path / "out")
    assert (tmp_path / "mine" / LOCK).read_text() == "precious"


def test_an_input_in_a_leftover_is_not_removed(tmp_path):
    (tmp_path / f"{PARTIAL}x").mkdir()
    (tmp_path / f"{PARTIAL}x" / MARK).touch()
    source = tmp_path / f"{PARTIAL}x" / "mask.nii"
    source.write_text("mask")
    with (
        pytest.raises(InputError, match=r"mask\.nii: is an input of this run"),
        staged(tmp_path, "last.txt", inputs=[source]),
    ):
        pass
    assert source.read_text() == "mask"


def test_a_stale_file_is_removed_at_the_end_unless_it_is_an_input(tmp_path):
    write(tmp_path, a="old", last="old", z="old")
    with (
        pytest.raises(InputError, match=r"z\.txt: is an input of this run"),
        staged(tmp_path, "last.txt", stale=["z.txt"], inputs=[tmp_path / "z.txt"], overwrite=True),
    ):
        pass
    with staged(tmp_path, "last.txt", stale=["z.txt", "a.txt"], overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
        (staging / "last.txt").write_text("new")
        assert (tmp_path / "z.txt").exists()
    assert listing(tmp_path) == ["a.txt", "last.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_of_two_runs_that_start_together_at_most_one_goes_on(tmp_path, monkeypatch):
    """Both have found no other run, before either has a folder of its own."""
    make, other = tempfile.mkdtemp, contextlib.ExitStack()

    def late(**options):
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        other.enter_context(staged(tmp_path, "last.txt"))
        return make(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", late)
    with other:
        with (
            pytest.raises(FileExistsError, match="another labelwise run is writing there"),
            staged(tmp_path, "last.txt"),
        ):
            pass
        assert len(list(tmp_path.glob(f"{PARTIAL}*"))) == 1
    assert listing(tmp_path) == []
