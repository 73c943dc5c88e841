"""What an interrupted training needs to go on, in one file that is whole or not there."""

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
    """Write the state after so many epochs; the earlier file stays until this one is whole.

    Args:
        path: where; its folder must exist.
        states: a pytree of arrays for each group of networks.
        history: (E, L) losses of every epoch, NaN for those to come.
        epochs: how many are done.
        fingerprint: what a training must be to go on from here.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {f"{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(states))}
    header = {"epochs": epochs, "fingerprint": fingerprint}
    write_arrays(path, arrays | {"history": history}, header)


def load_checkpoint(
    path: Path, like: State, history: np.ndarray, fingerprint: str
) -> tuple[State, np.ndarray, int]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: the file.
        like: states of the same shapes.
        history: an array of the shape of the losses.
        fingerprint: must be the one that was saved.

    Returns:
        The states, the losses, and how many epochs are done.

    Raises:
        InputError: if the file is damaged or belongs to another training.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        arrays, header = read_arrays(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: this checkpoint is damaged ({error}); delete it to train from the beginning"
        ) from error
    expected = {**{str(i): leaf for i, leaf in enumerate(leaves)}, "history": history}
    fits = {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in expected.items()}
    if not fits or header.get("fingerprint") != fingerprint:
        raise InputError(
            f"{path}: this checkpoint is of another training (other data, labels, network, recipe "
            "or seed); delete it to train from the beginning, or train with the settings it had"
        )
    states = [jnp.asarray(arrays[str(i)]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, states), arrays["history"], int(header["epochs"])
