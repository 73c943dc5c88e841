"""What an interrupted training needs to go on, in one file that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_VERSION = "1"
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
    arrays = {f"{i}": np.ascontiguousarray(leaf) for i, leaf in enumerate(jax.tree.leaves(states))}
    arrays["history"] = np.ascontiguousarray(history)
    header = {"version": _VERSION, "epochs": str(epochs), "fingerprint": fingerprint}
    header["checksum"] = _checksum(header, list(arrays.values()))
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(save(arrays, {"labelwise": json.dumps(header)}))
    os.replace(part, path)


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
        ValueError: if the file is damaged or belongs to another training.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with safe_open(path, "np") as file:
            header = json.loads(file.metadata()["labelwise"])
            arrays = [file.get_tensor(str(i)) for i in range(len(leaves))]
            losses = file.get_tensor("history")
        if header.pop("checksum") != _checksum(header, [*arrays, losses]):
            raise ValueError("its checksum is another")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: this checkpoint is damaged or of another training ({error}); delete it to "
            "train from the beginning"
        ) from error
    fits = all(a.shape == b.shape for a, b in zip(arrays, leaves, strict=True))
    same = (header.get("version"), header.get("fingerprint")) == (_VERSION, fingerprint)
    if not (fits and same and losses.shape == history.shape):
        raise ValueError(
            f"{path}: this checkpoint is of another training (other data, labels, network, recipe "
            "or seed); delete it to train from the beginning, or train with the settings it had"
        )
    states = jax.tree.unflatten(structure, [jnp.asarray(array) for array in arrays])
    return states, losses, int(header["epochs"])


def _checksum(header: dict[str, str], arrays: list[np.ndarray]) -> str:
    total = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()
