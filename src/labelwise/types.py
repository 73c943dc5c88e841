"""The words every other file uses: parameter, status, estimate, estimator."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import marshal
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from labelwise.formatting import plain

Numbers = Array | np.ndarray | float
"""What elementwise functions take: arrays of JAX or NumPy that broadcast, or a number."""


class InputError(ValueError):
    """What a person gave cannot be used: one sentence with what, expected, got and the remedy.

    The command line prints it and ends with status 2. Every other exception is a bug.
    """


@dataclass(frozen=True)
class Parameter:
    """One quantity that is estimated: its name, unit, bounds and symbol.

    Args:
        name: what maps and tables call it, e.g. `"D_slow"`; a Python identifier.
        unit: its physical unit, e.g. `"µm²/ms"`; `"1"` for a fraction.
        bounds: lowest and highest value an estimate may take, in that unit.
        symbol: how it is typeset (mathtext without the dollars), e.g. `"D_{slow}"`.
        typical: the range of values that tissue has, from which training data are simulated
            unless told otherwise; the bounds if left out.

    Raises:
        InputError: if the name is no identifier, the unit is empty or a range is not ordered.

    Example:
        >>> Parameter("T2", "ms", (1.0, 2000.0), "T_2").bounds
        (1.0, 2000.0)
    """

    name: str
    unit: str
    bounds: tuple[float, float]
    symbol: str = ""
    typical: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(
                f"parameter name {self.name!r}: expected letters, digits and underscores "
                "(maps are files named after it), e.g. 'D_slow'"
            )
        if not self.unit:
            raise InputError(f"parameter {self.name}: give its unit, or '1' if it has none")
        lower, upper = (float(bound) for bound in self.bounds)
        if math.isnan(lower) or math.isinf(lower) or not lower < upper:
            raise InputError(
                f"parameter {self.name}: bounds {self.bounds} must be a finite lower bound "
                "and a larger upper one"
            )
        object.__setattr__(self, "bounds", (lower, upper))
        object.__setattr__(self, "symbol", self.symbol or self.name)
        if self.typical is not None:
            low, high = (float(value) for value in self.typical)
            if not lower <= low < high <= upper or math.isinf(high):
                raise InputError(
                    f"parameter {self.name}: typical range {self.typical} must be ordered, finite "
                    f"and within the bounds {self.bounds}"
                )
            object.__setattr__(self, "typical", (low, high))


class Status(IntEnum):
    """What became of one voxel; the code written into status maps."""

    NOT_FITTED = 0
    CONVERGED = 1
    ON_BOUND = 2
    NOT_CONVERGED = 3
    NOT_FINITE = 4
    NEGATIVE = 5
    ALL_ZERO = 6
    BAD_SIGMA = 7
    NO_REFERENCE = 8
    PREDICTED = 9
    EXTRAPOLATED = 10

    @property
    def reason(self) -> str:
        """The status as a short phrase for tables and sidecars."""
        return _REASONS[self]

    @property
    def has_values(self) -> bool:
        """Whether the voxel's estimates are numbers; the others are NaN."""
        return self in _WITH_VALUES


_REASONS = {
    Status.NOT_FITTED: "outside the mask",
    Status.CONVERGED: "converged",
    Status.ON_BOUND: "converged on a bound",
    Status.NOT_CONVERGED: "not converged",
    Status.NOT_FINITE: "NaN or infinite measurement",
    Status.NEGATIVE: "negative magnitude",
    Status.ALL_ZERO: "all measurements zero",
    Status.BAD_SIGMA: "sigma not positive and finite",
    Status.NO_REFERENCE: "no signal to divide by (b = 0)",
    Status.PREDICTED: "estimated by a network",
    Status.EXTRAPOLATED: "outside what the network was trained for",
}
_WITH_VALUES = (Status.CONVERGED, Status.ON_BOUND, Status.PREDICTED, Status.EXTRAPOLATED)


def has_values(status: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Which voxels' estimates are numbers."""
    return np.isin(status, _WITH_VALUES)


@dataclass(frozen=True)
class Voxels:
    """The signals of N voxels, and the truth where it is known.

    Args:
        signal: (N, M) measurements.
        sigma: (N,) noise of one channel, in the signal's unit.
        params: (N, P) the parameters that the signals were simulated from; None for real data.
    """

    signal: Float[np.ndarray, "N M"]
    sigma: Float[np.ndarray, " N"]
    params: Float[np.ndarray, "N P"] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.signal)


@dataclass(frozen=True)
class Estimate:
    """What an estimator says of N voxels and P parameters.

    Args:
        values: (N, P) in each parameter's unit; NaN where `status` says the voxel failed.
        status: (N,) codes of `Status`.
        stats: what else the estimator knows, by name: arrays (N,) or (N, P).
    """

    values: Float[np.ndarray, "N P"]
    status: Int[np.ndarray, " N"]
    stats: Mapping[str, Shaped[np.ndarray, "N *P"]] = field(default_factory=dict)


class Estimator(Protocol):
    """Anything that turns the signal of N voxels into an `Estimate`."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the columns of `Estimate.values` are."""
        ...

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N *#M"] | float
    ) -> Estimate:
        """Estimate every voxel; `sigma` is the noise of one channel, in the signal's unit."""
        ...


class LabelSource(Protocol):
    """What a network is taught: an `Estimate` for every voxel, made with or without the truth."""

    def __call__(self, voxels: Voxels) -> Estimate:
        """The labels of N voxels; a failed one is NaN with its status."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON data: two sources that say the same give the same labels."""
        ...


USERS = "labelwise_user_"
"""What the names of modules begin with that are made of a person's own files."""


def class_name(kind: type) -> str:
    """What a class is called wherever it must not be taken for another.

    `package.module:Class` if it can be imported, `FILE.py:Class` for one in a person's own file.

    Example:
        >>> class_name(Parameter)
        'labelwise.types:Parameter'
    """
    place = kind.__module__
    if place == "__main__" or place.startswith(USERS):
        file = getattr(sys.modules.get(place), "__file__", None)
        place = Path(file).name if file else place
    return f"{place}:{kind.__qualname__}"


def is_built_in(kind: type) -> bool:
    """Whether a class is labelwise's own."""
    return kind.__module__.startswith("labelwise.")


def identity(thing: Any, base: type) -> dict[str, Any]:
    """What a model or a noise model is, as JSON data: whatever caches, loads or compares asks this.

    Args:
        thing: a frozen dataclass.
        base: the class that it and others of its sort derive from.

    Returns:
        `class` by `class_name`; `fields` by name; and `source`, the SHA-256 of the files that
        define its class (of the bytecode where there is no file, as in a notebook), not of what
        these import. It is None for labelwise's own classes, whose code is in the key of a cache.

    Example:
        >>> from labelwise.noise import NoiseModel, Rician
        >>> identity(Rician(), NoiseModel)
        {'class': 'labelwise.noise:Rician', 'fields': {}, 'source': None}
    """
    own = [kind for kind in type(thing).__mro__ if issubclass(kind, base) and kind is not base]
    fields = {each.name: getattr(thing, each.name) for each in dataclasses.fields(thing)}
    return {
        "class": class_name(type(thing)),
        "fields": json.loads(json.dumps(plain(fields), default=repr)),
        "source": _source([kind for kind in own if not is_built_in(kind)]),
    }


def _source(kinds: list[type]) -> str | None:
    if not kinds:
        return None
    total = hashlib.sha256()
    for kind in kinds:
        try:
            total.update(Path(inspect.getfile(kind)).read_bytes())
        except (OSError, TypeError):  # typed at a prompt or in a notebook
            for name, function in sorted(vars(kind).items()):
                if isinstance(function, FunctionType):
                    # version 2: the later ones depend on reference counts
                    code = marshal.dumps(inspect.unwrap(function).__code__, 2)
                    total.update(name.encode() + code)
    return total.hexdigest()
