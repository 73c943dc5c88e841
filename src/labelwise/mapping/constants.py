"""Constants of a model that differ from voxel to voxel, such as B1.

Voxels whose constants agree within STEP are fitted together, with a model of that constant. The
constant is an argument of the compiled programs, so that they are compiled once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.io.nifti import Series, open_image, read_map
from labelwise.models import SignalModel
from labelwise.models.base import constant_names, measurements
from labelwise.models.evaluate import signals
from labelwise.types import InputError

STEP = 0.002
"""Constants are rounded to powers of 1 + STEP. T1 by flip angles changes by twice as much at most,
half of it by rounding."""


@dataclass(frozen=True)
class Constants:
    """The constants of each voxel.

    Args:
        model: the signal model.
        rounded: (V,) the constants by name; NaN outside the mask.
    """

    model: SignalModel
    rounded: Mapping[str, Float[np.ndarray, " V"]]

    def groups(
        self, index: Int[np.ndarray, " n"]
    ) -> Iterator[tuple[tuple[float, ...], Int[np.ndarray, " k"]]]:
        """The constants that occur among some voxels, and the rows of those that have them."""
        rows = np.stack([values[index] for values in self.rounded.values()], axis=1)
        found, which = np.unique(rows, axis=0, return_inverse=True)
        for number, key in enumerate(found):
            yield tuple(key.tolist()), np.flatnonzero(which.ravel() == number)

    def model_of(self, key: tuple[float, ...]) -> SignalModel:
        """The model with some constants, from `groups`."""
        names = list(self.rounded)
        arrays = [np.asarray(value) for value in key]  # traced, unlike numbers
        return eqx.tree_at(lambda m: [getattr(m, name) for name in names], self.model, arrays)

    def signals(
        self, params: Float[np.ndarray, "n P"], index: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n M"]:
        """The noise-free signals of some voxels, each with its own constants."""
        found = np.empty((len(params), measurements(self.model)))
        for key, rows in self.groups(index):
            found[rows] = signals(self.model_of(key), params[rows])
        return found


def typical(path: Path) -> float:
    """The median of a map where it is positive, for what needs one number.

    Raises:
        InputError: if it is no image, or nowhere positive.
    """
    with open_image(path) as image:
        values = image.volume(0)
        good = values[np.isfinite(values) & (values > 0)]
    if not len(good):
        raise InputError(f"{path}: expected positive values, none of its {values.size} is")
    return float(np.median(good))


def read_constants(
    model: SignalModel,
    paths: Mapping[str, Path],
    series: Series,
    inside: Bool[np.ndarray, " V"],
) -> tuple[Constants, list[str]]:
    """The constants of each voxel from maps of one volume, and notes on their ranges.

    Raises:
        InputError: if the model has no such constant, or its value in a voxel inside the mask is
            not positive or one that the model refuses.
    """
    rounded, notes = {}, []
    for name, path in paths.items():
        known = [each for names in constant_names(type(model)) for each in names]
        if name not in known:
            raise InputError(
                f"constants: {type(model).__name__} has no {name}; its constants are "
                f"{', '.join(known) or 'none'}"
            )
        values, said = read_map(path, series, 1)
        good = np.isfinite(values) & (values > 0)
        if not good[inside].all():
            raise InputError(
                f"{path}: expected a positive number in each voxel inside the mask, but "
                f"{np.sum(~good[inside])} of {inside.sum()} have none; leave them out by --mask"
            )
        low, high = float(values[inside].min()), float(values[inside].max())
        for end in (low, high):
            try:
                replace(model, **{name: end})
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        width = np.log1p(STEP)
        steps = np.rint(np.log(values, where=good, out=np.full(len(values), np.nan)) / width)
        rounded[name] = np.where(inside, np.exp(width * steps), np.nan)
        notes += [*said, f"{path.name}: {name} is {low:.3f} to {high:.3f} inside the mask"]
    return Constants(model, rounded), notes
