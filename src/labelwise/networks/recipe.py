"""Training recipes (hyperparameters): that of the paper, and faster ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.limits import check_memory, check_whole
from labelwise.types import InputError


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training.

    Args:
        name: for cards and tables.
        signals: number of simulated voxels, including those for validation.
        batch: voxels in a batch.
        epochs: the maximum number of passes over the training set.
        rate: learning rate of Adam, the maximum of the schedule.
        schedule: `"constant"`, or `"cosine"`: linear warm-up, then cosine decay to 0.
        warmup: steps of the linear warm-up to `rate`.
        restarts: trainings of each network; the one with the smallest validation loss is used.
        patience: early stopping after this number of epochs without a smaller validation loss;
            None for no early stopping. The weights of the best epoch are used in either case.
        shared_start: train the restarts on the ground truth, and start all other networks from
            the weights of the best one.
        validation: fraction of the voxels held out for validation.
        width: nodes in each hidden layer; as many as measurements if None.
        depth: number of hidden layers.
        activation: see `Architecture`.
        loss: `"squared"`, `"absolute"` or `"huber"` (quadratic up to a weighted error of 0.1).

    Raises:
        InputError: if a number is out of its range.

    Example:
        >>> Recipe.paper().restarts, Recipe.fast(restarts=2).restarts
        (16, 2)
    """

    name: str
    signals: int
    batch: int
    epochs: int
    rate: float
    schedule: Literal["constant", "cosine"]
    warmup: int
    restarts: int
    patience: int | None
    shared_start: bool
    validation: float = 0.2
    width: int | None = None
    depth: int = 3
    activation: str = "elu"
    loss: Literal["squared", "absolute", "huber"] = "squared"

    def __post_init__(self) -> None:
        for name in ("signals", "batch", "epochs", "warmup", "restarts", "depth"):
            check_whole(name, getattr(self, name), "recipe")
        for name in ("patience", "width"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), "recipe")
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"recipe: schedule {self.schedule!r}; known are constant, cosine")
        if not 0 < self.rate < math.inf:
            raise InputError(f"recipe: rate must be positive, got {self.rate}")
        if not 0 < self.validation < 1:
            raise InputError(f"recipe: validation must be between 0 and 1, got {self.validation}")
        if self.loss not in PENALTIES:
            raise InputError(f"recipe: loss {self.loss!r}; known are {', '.join(PENALTIES)}")
        if self.training_voxels < self.batch:
            raise InputError(
                f"recipe: {self.training_voxels} training voxels do not fill one batch of "
                f"{self.batch}; simulate more, or make the batch smaller"
            )

    @staticmethod
    def paper(**changes) -> Recipe:
        """Section 3.4 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

        The paper does not state when training stops; here it stops after 20 epochs without
        improvement. In the paper, all networks start from the weights of one trained at SNR 30;
        here each training plan determines them at its own noise level, unless
        `TrainingPlan.start` gives them. Voxels without a usable label have zero weight.
        """
        return replace(
            Recipe(
                name="paper",
                signals=100_000,
                batch=100,
                epochs=200,
                rate=1e-3,
                schedule="constant",
                warmup=0,
                restarts=16,
                patience=20,
                shared_start=True,
            ),
            **changes,
        )

    @staticmethod
    def fast(**changes) -> Recipe:
        """Linear warm-up and cosine decay: the same validation error in fewer epochs."""
        return replace(
            Recipe(
                name="fast",
                signals=100_000,
                batch=100,
                epochs=30,
                rate=1e-2,
                schedule="cosine",
                warmup=500,
                restarts=8,
                patience=None,
                shared_start=False,
            ),
            **changes,
        )

    @staticmethod
    def every_level(**changes) -> Recipe:
        """For a network with the noise level as an input: wider, with a larger training set."""
        return replace(
            Recipe.fast(
                name="every-level",
                signals=400_000,
                batch=250,
                epochs=30,
                rate=5e-3,
                restarts=2,
                width=32,
            ),
            **changes,
        )

    @property
    def validation_voxels(self) -> int:
        """The number of voxels held out for validation."""
        return max(1, round(self.validation * self.signals))

    @property
    def training_voxels(self) -> int:
        """The number of voxels in the training set."""
        return self.signals - self.validation_voxels

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return self.training_voxels // self.batch

    def check_memory(self, measurements: int, parameters: int, labels: int) -> None:
        """Refuse a training that needs more memory than there is.

        Args:
            measurements: of the acquisition.
            parameters: of the model.
            labels: the number of labels; each has its own networks.

        Raises:
            InputError: if a rough estimate exceeds the memory of this machine.
        """
        width = self.width or measurements
        lanes = labels * (1 if self.shared_start else self.restarts)
        lanes = max(lanes, self.restarts)
        weights = width * (measurements + parameters + width * (self.depth - 1))
        voxel = 6 * measurements + 4 * parameters + labels * (8 * parameters + 6)
        numbers = (
            self.signals * voxel
            + lanes * 8 * weights
            + lanes * 3 * self.batch * width * self.depth
            + 6 * self.epochs * self.steps
        )
        check_memory(
            4.0 * numbers,
            f"training on {self.signals:,} signals",
            "simulate fewer signals, or choose a smaller batch, width or depth",
        )

    def rates(self) -> Float[np.ndarray, "E steps"]:
        """The learning rate of each step."""
        step = np.arange(self.epochs * self.steps, dtype=np.float64)
        rate = np.full_like(step, self.rate)
        if self.schedule == "cosine":
            done = np.clip((step - self.warmup) / max(1, len(step) - self.warmup), 0, 1)
            rate *= 0.5 * (1 + np.cos(np.pi * done))
        rate *= np.minimum(1, (step + 1) / max(1, self.warmup))
        return rate.reshape(self.epochs, self.steps).astype(np.float32)


def _huber(error: Array, limit: float = 0.1) -> Array:
    size = jnp.abs(error)
    return jnp.where(size < limit, error * error, limit * (2 * size - limit))


PENALTIES: dict[str, Callable[[Array], Array]] = {
    "squared": jnp.square,
    "absolute": jnp.abs,
    "huber": _huber,
}
