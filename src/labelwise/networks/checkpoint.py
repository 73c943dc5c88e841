"""Checkpoints: the state of an interrupted training in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from labelwise.io.files import read_arrays, write_arrays
from labelwise.types import InputError

State = TypeVar("State")


def save_checkpoint(
    path: Path, states: list[Any], history: np.ndarray, epochs: int, fingerprint: str
) -> None:
    """Write a checkpoint; the previous one is replaced once the new one is complete.

    Args:
        path: the file; its folder must exist.
        states: a pytree of arrays for each group of networks.
        history: (E, L) validation loss of each epoch, NaN for later epochs.
        epochs: the number of completed epochs.
        fingerprint: identifies the training; must match on resuming.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {f"{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(states))}
    header = {"epochs": epochs, "fingerprint": fingerprint}
    write_arrays(path, arrays | {"history": history}, header)


def load_checkpoint(
    path: Path, like: State, history: np.ndarray, fingerprint: str
) -> tuple[State, np.ndarray, int]:
    """Read a checkpoint of `save_checkpoint`.

    Args:
        path: the file.
        like: states of the same shapes.
        history: an array of the same shape as the saved losses.
        fingerprint: the expected one.

    Returns:
        The states, the losses and the number of completed epochs.

    Raises:
        InputError: if the file is damaged or belongs to another training.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        arrays, header = read_arrays(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: the checkpoint is damaged ({error}); delete it to train from the beginning"
        ) from error
    expected = {**{str(i): leaf for i, leaf in enumerate(leaves)}, "history": history}
    fits = {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in expected.items()}
    done = header.get("epochs")
    done = done if isinstance(done, int) else -1
    if not fits or not 0 <= done <= len(history) or header.get("fingerprint") != fingerprint:
        raise InputError(
            f"{path}: the checkpoint is of another training (other data, labels, network, recipe "
            "or seed); delete it to train from the beginning, or train with its settings"
        )
    states = [jnp.asarray(arrays[str(i)]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, states), arrays["history"], done
