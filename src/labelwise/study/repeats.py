"""A supersampled series split into the single acquisitions that it consists of.

The paper's scan is 16 repeats of 10 b-values: 160 volumes together give a gold standard, each
set of 10 by itself is what a clinic would have measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from labelwise.io.acquisition import group_equal
from labelwise.types import SETTINGS, InputError


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which volumes of a series make up each of its R single acquisitions of M measurements.

    Args:
        volumes: (R, M) the index of the volume that is measurement m of acquisition r. Its
            columns are sorted by setting (b first), equal settings side by side; each volume
            occurs once.
        settings: of one acquisition, by name, (M,) each; b in ms/µm². Each is the mean of its
            group, so that those of a group are equal.
        left_out: indices of the volumes that are in no acquisition, ascending.
    """

    volumes: Int[np.ndarray, "R M"]
    settings: Mapping[str, Float[np.ndarray, " M"]]
    left_out: Int[np.ndarray, " L"]

    @property
    def number(self) -> int:
        """R, how many acquisitions there are."""
        return len(self.volumes)

    @property
    def used(self) -> Int[np.ndarray, " RM"]:
        """All volumes that are in some acquisition, in the order of the file."""
        return np.sort(self.volumes, axis=None)

    def of(self, signal: Shaped[np.ndarray, "N V"]) -> Shaped[np.ndarray, "N R M"]:
        """The signal of N voxels, acquisition by acquisition.

        Args:
            signal: (N, V) all volumes of the series, in the order of the file.
        """
        return signal[:, self.volumes]


def split(
    settings: Mapping[str, Float[np.ndarray, " V"]],
    repeats: int | None = None,
    tolerance: float = 0.0,
) -> Repeats:
    """Split the V volumes of a series into R acquisitions with the same settings each.

    Volumes belong together by their settings, never by their position. Of each group the first
    acquisition gets the first volumes, the second the next ones, and so on, in the order of the
    file, so that an acquisition is as short in time as the series allows; the last ones of a group
    that cannot be shared out evenly are left out.

    Args:
        settings: by name, (V,) each, in the order of the file; b in ms/µm².
        repeats: R, at least 2 and at most the size of the smallest group. Left out: the greatest
            common divisor of the sizes, which leaves no volume out (60 volumes at b = 0, 36 and 24
            at the other b-values make 12 acquisitions).
        tolerance: the widest spread of b within one group, in ms/µm².

    Raises:
        InputError: if there are no repeats to be found, or `repeats` does not fit.

    Source: Epstein et al. 2024, section 3.5, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> two = split({"b": np.array([0.0, 0.8, 0.0, 0.0, 0.8, 0.0])})
        >>> two.volumes
        array([[0, 2, 1],
               [3, 5, 4]])
        >>> two.settings
        {'b': array([0. , 0. , 0.8])}
    """
    groups = group_equal(settings, tolerance)
    sizes = [len(group) for group in groups]
    number = math.gcd(*sizes) if repeats is None else repeats
    if number < 2 or number > min(sizes):
        counts = _counts(_means(settings, groups), sizes)
        raise InputError(_refusal(repeats, sizes, counts))
    shares = [size // number for size in sizes]
    parts = [
        group[: share * number].reshape(number, share)
        for group, share in zip(groups, shares, strict=True)
    ]
    volumes = np.concatenate(parts, axis=1)
    whole = np.arange(sum(sizes))
    return Repeats(
        volumes=volumes,
        settings={name: np.repeat(row, shares) for name, row in _means(settings, groups).items()},
        left_out=np.setdiff1d(whole, volumes),
    )


def _means(
    rows: Mapping[str, Float[np.ndarray, " V"]], groups: Sequence[Int[np.ndarray, " n"]]
) -> dict[str, Float[np.ndarray, " G"]]:
    """The mean setting of each group; of equal ones exactly their own value."""

    def mean(values: Float[np.ndarray, " n"]) -> float:
        return values[0] + np.mean(values - values[0])

    return {name: np.array([mean(row[group]) for group in groups]) for name, row in rows.items()}


def _counts(settings: Mapping[str, np.ndarray], sizes: list[int]) -> str:
    """`"b = 0 s/mm² (4 times), b = 10 s/mm² (once)"`; the first dozen."""
    entries = []
    for index, size in enumerate(sizes[:12]):
        values = []
        for name, rows in settings.items():
            known = SETTINGS.get(name)
            value, unit = (rows[index] * known.factor, known.unit) if known else (rows[index], "")
            values.append(f"{name} = {value:g} {unit}".rstrip())
        entries.append(f"{', '.join(values)} ({'once' if size == 1 else f'{size} times'})")
    more = [f"and {len(sizes) - 12} more"] if len(sizes) > 12 else []
    return ", ".join([*entries, *more])


def _refusal(repeats: int | None, sizes: list[int], counts: str) -> str:
    if min(sizes) == 1:
        return (
            f"repeats: the series has none: {counts}; give a series in which each setting occurs "
            "more than once (or a tolerance, if b-values that are meant to be equal differ)"
        )
    if repeats is None:
        return (
            f"repeats: the series does not divide evenly into any: {counts}; give their number "
            f"(--repeats, 2 to {min(sizes)}), and the volumes left over are left out"
        )
    return (
        f"repeats: expected 2 to {min(sizes)}, as often as the rarest setting occurs, got "
        f"{repeats}: the series has {counts}"
    )
