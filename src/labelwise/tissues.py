"""Kinds of tissue: what their parameters are, each by a distribution of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from labelwise.types import InputError, Parameter


@dataclass(frozen=True)
class Normal:
    """A normal distribution, cut off at the parameter's bounds.

    Args:
        mean: before it is cut off, in the parameter's unit.
        std: likewise.

    Raises:
        InputError: if one is not finite, or the std not positive.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise InputError(
                f"normal distribution: expected a finite mean and a positive std, got {self.mean} "
                f"and {self.std}"
            )


Distribution = float | tuple[float, float] | Normal
"""Of one parameter, in its unit: a value, lowest and highest of a uniform one, or a `Normal`."""


@dataclass(frozen=True)
class Tissue:
    """What the parameters of a kind of tissue are; each is independent of the others.

    Args:
        parts: distributions by the parameter's name; one that is not named is as in the tissue it
            is compared with, or as the network's training was simulated.
        name: what tables and figures call it; its distributions if left out.

    Raises:
        InputError: if a range is not finite and ordered, or a value not finite.

    Example:
        >>> Tissue({"f": (0.1, 0.2), "D_slow": 1.1, "D_fast": Normal(60, 10)}).label
        'f=0.1:0.2,D_slow=1.1,D_fast=60±10'
    """

    parts: Mapping[str, Distribution] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        parts = {name: _checked(name, each) for name, each in self.parts.items()}
        object.__setattr__(self, "parts", parts)

    @property
    def label(self) -> str:
        """Its name, or what it is made of."""
        parts = (f"{name}={spoken(each)}" for name, each in self.parts.items())
        return self.name or ",".join(parts) or "all that it was trained for"

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON data."""
        parts = {
            name: {"mean": each.mean, "std": each.std} if isinstance(each, Normal) else each
            for name, each in self.parts.items()
        }
        return {"name": self.name, "parts": parts}


@dataclass(frozen=True)
class Population:
    """A tissue of which every parameter has a distribution, in the model's order; a `Prior`."""

    tissue: Tissue
    parameters: tuple[Parameter, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """See `Prior`."""
        return tuple(self.tissue.parts)

    @property
    def ranges(self) -> Float[np.ndarray, "P 2"]:
        """See `Prior`."""
        spans = [
            parameter.bounds if isinstance(each, Normal) else np.broadcast_to(each, 2)
            for each, parameter in zip(self.tissue.parts.values(), self.parameters, strict=True)
        ]
        return np.array(spans, float)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """See `Prior`."""
        keys = jax.random.split(key, len(self.parameters))
        drawn = zip(self.tissue.parts.values(), self.parameters, keys, strict=True)
        return np.stack([_sample(*each, n) for each in drawn], axis=1)

    def describe(self) -> dict[str, Any]:
        """See `Prior`."""
        return {"kind": "tissue", **self.tissue.describe()}


def _sample(
    each: Distribution, parameter: Parameter, key: PRNGKeyArray, n: int
) -> Float[np.ndarray, " n"]:
    if isinstance(each, Normal):
        low, high = ((bound - each.mean) / each.std for bound in parameter.bounds)
        scores = jax.random.truncated_normal(key, low, high, (n,), jnp.float32)
        values = each.mean + each.std * np.asarray(scores, float)
        return np.clip(values, *parameter.bounds).astype(np.float32)
    low, high = each if isinstance(each, tuple) else (each, each)
    share = np.asarray(jax.random.uniform(key, (n,), jnp.float32), float)
    return (low + share * (high - low)).astype(np.float32)


def _checked(name: str, each: Any) -> Distribution:
    """A distribution in its plain form; two equal ends are one value."""
    if isinstance(each, Normal):
        return each
    try:
        numbers = [float(number) for number in np.atleast_1d(np.asarray(each, float))]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{name}: expected a finite value, a range (low, high) or Normal(mean, std), "
            f"got {each!r}"
        )
    low, high = numbers[0], numbers[-1]
    if low > high:
        raise InputError(f"{name}: the range {low:g} to {high:g} is not ordered; turn it round")
    return low if low == high else (low, high)


def centre(each: Distribution) -> float:
    """The value, the middle of the range, or the mean."""
    return each.mean if isinstance(each, Normal) else float(np.mean(each))


def spoken(each: Distribution) -> str:
    """As on the command line."""
    if isinstance(each, Normal):
        return f"{each.mean:g}±{each.std:g}"
    return f"{each[0]:g}:{each[1]:g}" if isinstance(each, tuple) else f"{each:g}"
