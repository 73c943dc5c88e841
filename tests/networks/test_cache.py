"""Labels on disk: what is read is what was made, or it is made again."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import Fixed, assert_same
from labelwise import IVIM, Rician
from labelwise.networks import cache as label_cache
from labelwise.networks.cache import cached
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import InputError, Status, Voxels

MODEL = IVIM([0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8])
VOXELS = simulate(MODEL, Rician(), Uniform.paper(), 1 / 15, 200, jax.random.key(2))
UNKNOWN = Voxels(VOXELS.signal, VOXELS.sigma)


@pytest.fixture
def source():
    stats = {"on_bound": np.eye(200, 4, dtype=np.int8), "nll": np.linspace(0, 1, 200)}
    status = np.where(np.arange(200) % 7, Status.CONVERGED, Status.NOT_CONVERGED)
    values = np.where(status[:, None] == Status.CONVERGED, VOXELS.params, np.nan)
    return Fixed(values, status, **stats)


def the_file(folder):
    (path,) = Path(folder).iterdir()
    return path


def test_a_hit_gives_the_same_bytes_without_asking(tmp_path, source):
    folder = tmp_path / "made" / "if missing"
    first = cached(source, VOXELS, folder, {"seed": 0})
    again = cached(source, VOXELS, folder, {"seed": 0})
    assert source.calls == 1
    assert_same(again, source(VOXELS))
    assert_same(again, first)
    assert the_file(folder).suffix == ".safetensors"


@pytest.mark.parametrize("kept", [True, False])
def test_labels_have_the_names_of_their_parameters_made_or_read(tmp_path, source, kept):
    for _ in range(2):
        labels = cached(source, VOXELS, tmp_path if kept else None, {}, MODEL.parameters)
        assert np.array_equal(labels["D_slow"], labels.values[:, 2], equal_nan=True)


def test_a_fit_is_kept_with_all_its_stats(tmp_path):
    source = MLE(MODEL, Rician())
    first = cached(source, VOXELS, tmp_path, {})
    assert_same(cached(MLE(MODEL, Rician(), threads=1), VOXELS, tmp_path, {}), first)
    the_file(tmp_path)


def changed(**fields):
    return Voxels(**{**vars(VOXELS), **fields})


@pytest.mark.parametrize(
    ("voxels", "key", "name", "fitter"),
    [
        (changed(signal=VOXELS.signal + np.eye(200, 10, dtype=np.float32)), {}, "fixed", None),
        (changed(sigma=VOXELS.sigma * 2), {}, "fixed", None),
        (changed(params=VOXELS.params * 2), {}, "fixed", None),
        (changed(params=None), {}, "fixed", None),
        (VOXELS, {"seed": 1}, "fixed", None),
        (VOXELS, {}, "other", None),
        (VOXELS, {}, "fixed", "another version"),
    ],
    ids=["signal", "sigma", "params", "no params", "key", "source", "version"],
)
def test_all_that_labels_depend_on_is_in_the_name(
    tmp_path, source, monkeypatch, voxels, key, name, fitter
):
    cached(source, VOXELS, tmp_path, {})
    source.name = name
    if fitter:
        monkeypatch.setattr(label_cache, "labels_version", lambda: fitter)
    cached(source, voxels, tmp_path, key)
    assert source.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "text": lambda data: b"not a file of labels" * 100,
    "header's length": lambda data: b"\xff" * 8 + data[8:],
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a byte of the values": lambda data: data[:-2000] + bytes([data[-2000] ^ 4]) + data[-1999:],
    "a name": lambda data: data.replace(b"stats.nll", b"stats.nlx"),
    "a type": lambda data: data.replace(b'"I8"', b'"U8"'),
    "a shape": lambda data: data.replace(b"[200,4]", b"[4,200]"),
    "checksum": lambda data: data.replace(b"sha256", b"sha265"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, source, damage):
    first = cached(source, VOXELS, tmp_path, {})
    path = the_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert_same(cached(source, VOXELS, tmp_path, {}), first)
    assert source.calls == 2
    assert path.read_bytes() == whole
    assert_same(cached(source, VOXELS, tmp_path, {}), first)
    assert source.calls == 2


def test_no_flipped_byte_is_believed(tmp_path):
    source = Fixed([[1, 2], [3, 4]], on_bound=np.zeros((2, 2), np.int8))
    voxels = Voxels(np.ones((2, 3)), np.ones(2))
    first = cached(source, voxels, tmp_path, {})
    path = the_file(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert_same(cached(source, voxels, tmp_path, {}), first)


def test_a_file_of_other_labels_is_not_taken_for_these(tmp_path, source):
    cached(source, VOXELS, tmp_path / "a", {})
    cached(Fixed(np.ones((200, 4)), name="other"), VOXELS, tmp_path / "b", {})
    the_file(tmp_path / "a").write_bytes(the_file(tmp_path / "b").read_bytes())
    assert_same(cached(source, VOXELS, tmp_path / "a", {}), source(VOXELS))


@pytest.mark.parametrize("shape", [(200, 4), (3,)], ids=["voxels", "dimensions"])
def test_a_file_of_another_shape_is_made_anew(tmp_path, monkeypatch, shape):
    """As a wrong source would have left it under the same name, checksum and all."""
    monkeypatch.setattr(label_cache, "canonical", lambda data, what: "the same")
    cached(Fixed(np.ones(shape)), VOXELS, tmp_path, {})
    right = Fixed(np.ones((3, 4)))
    assert_same(cached(right, Voxels(np.ones((3, 9)), np.ones(3)), tmp_path, {}), right(VOXELS))
    assert right.calls == 2  # one of them in the line above


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path, source):
    first = cached(source, VOXELS, tmp_path, {})
    path = the_file(tmp_path)
    left = tmp_path / f".{path.name}-abc123"
    other = tmp_path / ".labels-of-another-run-abc123"
    left.write_bytes(path.read_bytes()[:500])
    other.write_bytes(b"")
    path.unlink()
    assert_same(cached(source, VOXELS, tmp_path, {}), first)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_another_writer_at_the_same_time_does_no_harm(tmp_path, source):
    class Slow(Fixed):
        def __call__(self, voxels):
            cached(source, voxels, tmp_path, {})  # another process is quicker
            return super().__call__(voxels)

    slow = Slow(source.values, source.status, **source.stats)
    assert_same(cached(slow, VOXELS, tmp_path, {}), source(VOXELS))
    before = source.calls
    assert_same(cached(source, VOXELS, tmp_path, {}), source(VOXELS))
    assert source.calls == before + 1  # the one of this line


def test_a_partial_file_that_vanishes_does_no_harm(tmp_path, source, monkeypatch):
    def stolen(partial, path):
        raise FileNotFoundError(partial)

    monkeypatch.setattr(os, "replace", stolen)
    assert_same(cached(source, VOXELS, tmp_path, {}), source(VOXELS))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_only_costs_the_file(tmp_path, source, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert_same(cached(source, VOXELS, tmp_path, {}), source(VOXELS))


def test_without_a_folder_nothing_is_kept(tmp_path, source):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    for folder in (None, in_the_way, in_the_way / "below"):
        assert_same(cached(source, VOXELS, folder, {}), source(VOXELS))
    assert source.calls == 6
    assert list(tmp_path.iterdir()) == [in_the_way]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_only_costs_the_file(tmp_path, source):
    tmp_path.chmod(0o500)
    assert_same(cached(source, VOXELS, tmp_path, {}), source(VOXELS))
    tmp_path.chmod(0o700)


def test_stats_that_a_file_cannot_hold_are_not_kept(tmp_path):
    source = Fixed([[1.0]], words=np.array(["odd"]))
    voxels = Voxels(np.ones((1, 3)), np.ones(1))
    assert cached(source, voxels, tmp_path, {}).stats["words"] == "odd"
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_source_is_the_callers(tmp_path):
    with pytest.raises(ValueError, match="needs the true parameters"):
        cached(GroundTruth(), UNKNOWN, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [{"a": np.ones(2)}, {"a": {1, 2}}, {"a": float("nan")}])
def test_a_key_that_is_no_json_is_refused(tmp_path, source, key):
    with pytest.raises(InputError, match="cached labels: expected JSON data"):
        cached(source, VOXELS, tmp_path, key)


def test_the_code_is_read_in_several_threads():
    """Python 3.11 raises a SystemError where two threads parse at a time."""
    read = label_cache.code_of.__wrapped__
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: read("labelwise.networks.train"), range(12)))
    assert len(set(digests)) == 1
