"""Limits of whole numbers and noise levels, in one table; and of memory.

They are far beyond what is of use, and refuse what would end in hours of compiling or in a lack of
memory: a mistyped number, or one in another unit.
"""

from __future__ import annotations

import contextlib
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from labelwise.errors import InputError

LIMITS: dict[str, tuple[int, int]] = {
    "signals": (1, 10**9),
    "batch": (1, 10**6),
    "epochs": (1, 10**6),
    "warmup": (0, 10**9),
    "restarts": (1, 1000),
    "patience": (1, 10**6),
    "width": (1, 4096),
    "depth": (1, 64),
    "trainings": (1, 1000),
    "wide": (0, 4096),
    "deep": (0, 64),
    "points": (2, 10_000),
    "repeats": (2, 10**7),
    "training_repeats": (2, 10**7),
    "voxels": (1, 10**9),
    "alphas": (2, 10_000),
    "seed": (0, 2**31 - 1),
    "max_iterations": (1, 10**6),
    "threads": (1, 1024),
    "coils": (1, 256),
}
"""Lowest and highest value of whole numbers, by name."""

SNR = (1e-3, 1e6)
"""Lowest and highest signal over noise of a simulation; float32 has no more digits."""


def check_whole(name: str, value: Any, what: str = "") -> None:
    """Refuse a number that is not whole or outside of its limits.

    Args:
        name: its name in `LIMITS`.
        value: the number.
        what: what it belongs to, for the message.

    Raises:
        InputError: if it is not a whole number within its limits.

    Example:
        >>> check_whole("depth", 3)
    """
    low, high = LIMITS[name]
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:
        got = _short(value)
        where = f"{what}: " if what else ""
        raise InputError(
            f"{where}{name}: expected a whole number from {low:,} to {high:,}, got {got}"
        )


def check_sigma(sigma: Any) -> None:
    """Refuse noise levels of a simulation, for signals of about 1, beyond the limits of `SNR`.

    Args:
        sigma: a number or several.

    Raises:
        InputError: if one is beyond.
    """
    levels = [sigma] if isinstance(sigma, Real) else sigma
    for level in map(float, levels):
        if not 1 / SNR[1] <= level <= 1 / SNR[0]:
            snr = f"SNR {1 / level:.3g}" if level else "no noise"
            raise InputError(
                f"sigma: expected noise for an SNR from {SNR[0]:g} to {SNR[1]:,.0f}, got "
                f"{level:.3g} ({snr})"
            )


def check_memory(need: float, what: str, remedy: str) -> None:
    """Refuse work that needs more memory than there is.

    Args:
        need: bytes, by a rough estimate.
        what: the work, in a message.
        remedy: what to change.

    Raises:
        InputError: if `need` exceeds the memory of this machine, or of its container.
    """
    there = _memory()
    if there is not None and need > there:
        raise InputError(
            f"{what}: needs about {_gigabytes(need)} GB of memory, but there are "
            f"{_gigabytes(there)} GB; {remedy}"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f}" if size >= 1e10 else f"{size / 1e9:.2g}"


def _memory() -> float | None:
    """Bytes of memory of this machine, or of its container if that has less; None if unknown."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return min(sizes, default=None)


def _short(value: Any) -> str:
    """A value in a message; a number of many digits by its size."""
    if isinstance(value, Integral) and abs(int(value)) >= 10**15:
        try:
            return f"{float(value):.3g}"
        except OverflowError:
            return f"a number of {len(hex(value)) * 1.2:.0f} digits"
    return repr(value)
