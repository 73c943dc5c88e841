"""Checkpoints: what is read is what was written, and nothing else is read."""

import jax
import numpy as np
import pytest

from labelwise.networks.checkpoint import load_checkpoint, save_checkpoint

HISTORY = np.array([[0.5, 0.4], [np.nan, np.nan]], np.float32)


def states(seed=0, width=3):
    rng = np.random.default_rng(seed)
    return [
        {"weights": rng.normal(size=(2, width)).astype(np.float32), "outcome": np.array([0, 2])},
        {"weights": rng.normal(size=(1, width)).astype(np.float32), "outcome": np.array([1])},
    ]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lesson.checkpoint"
    save_checkpoint(path, states(), HISTORY, 1, "a lesson")
    return path


def read(path, like=None, history=HISTORY, fingerprint="a lesson"):
    return load_checkpoint(path, like or states(seed=9), history, fingerprint)


def test_what_is_read_is_what_was_written(path):
    found, history, epochs = read(path)
    assert epochs == 1
    np.testing.assert_array_equal(history, HISTORY)
    jax.tree.map(np.testing.assert_array_equal, found, states())


def test_a_later_one_takes_its_place_and_leaves_nothing_else(path):
    save_checkpoint(path, states(seed=1), HISTORY, 2, "a lesson")
    assert read(path)[2] == 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "another lesson"},
        {"like": states(width=4)},
        {"history": HISTORY[:, :1]},
    ],
    ids=["fingerprint", "network", "lanes"],
)
def test_one_of_another_training_is_refused(path, other):
    with pytest.raises(ValueError, match=r"of another training .*; delete it"):
        read(path, **other)


def test_one_with_fewer_arrays_is_refused(path):
    with pytest.raises(ValueError, match="of another training"):
        read(path, like=[*states(), *states()])


@pytest.mark.parametrize("epochs", [-1, 3, 10**18, None, "1"])
def test_one_with_an_impossible_number_of_epochs_is_refused(path, epochs):
    save_checkpoint(path, states(), HISTORY, epochs, "a lesson")
    with pytest.raises(ValueError, match="of another training"):
        read(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_one_is_refused(path, damage):
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-5], "empty": b"", "text": b"not a checkpoint"}[damage])
    with pytest.raises(ValueError, match=r"damaged .*; delete it to train from the beginning"):
        read(path)


def test_a_flipped_bit_in_its_numbers_is_noticed(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        read(path)
