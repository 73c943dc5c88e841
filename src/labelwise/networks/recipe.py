"""How networks are trained, in numbers: the recipe of the paper, and faster ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.types import InputError


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Args:
        name: what cards and tables call it.
        signals: how many voxels to simulate, those for validation included.
        batch: voxels in one step.
        epochs: at most so many passes over the training set.
        rate: learning rate of Adam, the largest one of a schedule.
        schedule: `"constant"`, or `"cosine"`: up in `warmup` steps, down to 0 at the last step.
        warmup: steps in which the rate grows to `rate`.
        restarts: networks for each label, of which the one with the smallest validation loss stays.
        patience: stop a network after so many epochs without a smaller validation loss; never
            if None. In either case the weights of its best epoch are kept.
        shared_start: choose one network among the restarts by training on the ground truth, and
            let all others begin with its weights.
        validation: the share of the voxels held out for validation.
        width: nodes in each hidden layer; as many as measurements if None.
        depth: hidden layers.
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
        for name in ("signals", "batch", "epochs", "restarts", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe: {name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise InputError(
                f"recipe: patience must be at least 1 epoch, or None, got {self.patience}"
            )
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"recipe: schedule {self.schedule!r}; known are constant, cosine")
        if not 0 < self.rate < math.inf:
            raise InputError(f"recipe: rate must be positive, got {self.rate}")
        if not 0 < self.validation < 1:
            raise InputError(f"recipe: validation is a share between 0 and 1: {self.validation}")
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

        The paper does not say when training stops; here after 20 epochs without progress. It took
        the first weights of all its networks from one trained at SNR 30; here each lesson chooses
        them at its own noise level, unless `TrainingPlan.start` gives them. Voxels without a
        usable label stay in the batches with no weight.
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
        """A rate that rises, then falls to nothing: the same validation error, sooner."""
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
        """For one network that is told the noise level: wider, with more to learn from."""
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
        """How many voxels are held out."""
        return max(1, round(self.validation * self.signals))

    @property
    def training_voxels(self) -> int:
        """How many voxels are trained on."""
        return self.signals - self.validation_voxels

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.training_voxels // self.batch

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
