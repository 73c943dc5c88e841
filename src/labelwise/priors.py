"""Priors of simulated parameters: uniform ranges, a grid, or estimates from a real scan.

A prior is the distribution of *simulated* parameters; the bounds of a `Parameter` limit estimates.
The two are independent: a network may be trained on a narrow range within the bounds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from labelwise.limits import check_whole
from labelwise.models.base import SignalModel, scale_parameter
from labelwise.types import InputError, Parameter

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value of each parameter, in the model's order and the parameter's unit."""

SCALE_RANGE = (0.8, 1.2)
"""The simulated range of an amplitude, since signals are divided by a reference."""

_TRIED, _FEWEST_HELD = 1000, 0.01  # parameters, and the share of them for which a model must hold


class Prior(Protocol):
    """The distribution of the parameters of simulated voxels."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the model's order."""
        ...

    @property
    def ranges(self) -> Float[np.ndarray, "P 2"]:
        """Lowest and highest value of each parameter, in float64."""
        ...

    def sample(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """n samples in float32; the same key gives the same samples."""
        ...

    def describe(self) -> dict[str, Any]:
        """The description as JSON data; for one model, equal ones give equal samples."""
        ...


class Uniform:
    """Every parameter uniform over its own range, independent of the others.

    Args:
        ranges: lowest and highest value by name, in the model's order and each parameter's unit;
            a parameter with two equal values is fixed.
        logarithmic: the parameters whose logarithm is uniform; their ranges must be positive.
        model: draw only parameters for which its equation holds (`SignalModel.holds`).

    Raises:
        InputError: if a range is not finite and ordered, there is none, or the equation of the
            model holds for hardly any of these parameters.

    Example:
        >>> import labelwise as lw
        >>> prior = Uniform({"S0": (0.8, 1.2), "T2": (20.0, 200.0)})
        >>> prior.names, prior.sample(jax.random.key(0), 5).shape
        (('S0', 'T2'), (5, 2))
        >>> Uniform.typical(lw.T2([10, 20, 40]), T2=(20, 120)).describe()
        {'kind': 'uniform', 'ranges': {'S0': [0.8, 1.2], 'T2': [20.0, 120.0]}}
    """

    def __init__(
        self,
        ranges: Ranges,
        logarithmic: Collection[str] = (),
        model: SignalModel | None = None,
    ) -> None:
        if not ranges:
            raise InputError("ranges: expected one range for each parameter, got none")
        self.names = tuple(ranges)
        self.ranges = _fixed_array([_checked_range(*entry) for entry in ranges.items()])
        _refuse_unknown("logarithmic", logarithmic, self.names)
        self.logarithmic = tuple(name for name in self.names if name in logarithmic)
        for name, (low, _) in zip(self.names, self.ranges, strict=True):
            if name in self.logarithmic and low <= 0:
                raise InputError(
                    f"ranges: {name} starts at {low:g}, but its logarithm is to be uniform; "
                    "give a positive value"
                )
        unlimited = model is None or type(model).holds is SignalModel.holds
        self.model = None if unlimited else model
        if self.model is None:
            return
        if held(self.model, self._box(jax.random.key(0), _TRIED)).mean() < _FEWEST_HELD:
            raise InputError(
                f"ranges: the equation of {type(model).__name__} holds for hardly any parameters "
                f"within {self} with this acquisition; choose other ranges, or smaller b-values"
            )

    @classmethod
    def typical(cls, model: SignalModel, /, **overrides: tuple[float, float]) -> Uniform:
        """The uniform prior over the typical ranges of tissue.

        The range of a parameter is its `typical` range, else its bounds. It is 0.8 to 1.2 for a
        parameter without typical range that scales the whole signal or has no upper bound.
        Parameters for which the equation does not hold are left out.

        Args:
            model: the signal model.
            overrides: other ranges by parameter name: `T2=(20, 120)`.

        Raises:
            InputError: if an override names no parameter, a range is not ordered, or the equation
                holds for hardly any of these parameters.
        """
        names = [parameter.name for parameter in model.parameters]
        _refuse_unknown("overrides", overrides, names)
        scale = scale_parameter(model)
        ranges = {}
        for index, parameter in enumerate(model.parameters):
            free = index == scale or math.isinf(parameter.bounds[1])
            default = parameter.typical or (SCALE_RANGE if free else parameter.bounds)
            ranges[parameter.name] = overrides.get(parameter.name, default)
        return cls(ranges, model=model)

    @classmethod
    def paper(cls) -> Uniform:
        """The IVIM ranges of the source: S0 0.8-1.2, f 0.1-0.5, D_slow 0.4-3, D_fast 10-150 µm²/ms.

        Source: Epstein et al. 2024, section 3.3, doi:10.59275/j.melba.2024-geb5.
        """
        return cls({"S0": (0.8, 1.2), "f": (0.1, 0.5), "D_slow": (0.4, 3.0), "D_fast": (10, 150)})

    def sample(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """See `Prior`."""
        return _drawn(self._box, self.model, key, n)

    def _box(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """Samples of the ranges, whether the equation holds or not."""
        share = np.asarray(jax.random.uniform(key, (n, len(self.names)), jnp.float32), float)
        low, high = self.ranges.T
        params = low + share * (high - low)
        for index, name in enumerate(self.names):
            if name in self.logarithmic:
                params[:, index] = low[index] * (high[index] / low[index]) ** share[:, index]
        return params.astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """See `Prior`."""
        logarithmic = {"logarithmic": list(self.logarithmic)} if self.logarithmic else {}
        where = {"where": f"{type(self.model).__name__} holds"} if self.model is not None else {}
        return {"kind": "uniform", "ranges": _by_name(self), **logarithmic, **where}

    def __repr__(self) -> str:
        return f"Uniform({_by_name(self)})"


class Grid:
    """All combinations of a few values of each parameter, for evaluation.

    Args:
        axes: the values by name, in the model's order, ascending, in each parameter's unit; a
            parameter with one value is fixed.

    Raises:
        InputError: if an axis is empty, not finite or not ascending, or there is none.

    Example:
        >>> counts = {"f": 5, "D_slow": 3, "D_fast": 2}
        >>> grid = Grid.over(Uniform.paper(), points=counts, fixed={"S0": 1.0})
        >>> grid.shape, grid.points.shape
        ((1, 5, 3, 2), (30, 4))
        >>> grid.axes["D_slow"]
        array([0.4, 1.7, 3. ])
    """

    def __init__(self, axes: Mapping[str, Sequence[float] | Float[np.ndarray, " K"]]) -> None:
        if not axes:
            raise InputError("axes: expected the values of each parameter, got none")
        self.axes = {name: _checked_axis(name, values) for name, values in axes.items()}
        self.names = tuple(self.axes)
        self.shape = tuple(len(values) for values in self.axes.values())
        self.ranges = _fixed_array([(values[0], values[-1]) for values in self.axes.values()])

    @classmethod
    def over(
        cls,
        ranges: Prior | Ranges,
        points: int | Mapping[str, int] = 10,
        fixed: Mapping[str, float] | None = None,
    ) -> Grid:
        """Equally spaced values over the ranges of a prior, both ends included.

        Args:
            ranges: a prior, or lowest and highest value by name.
            points: number of values of each parameter (10 in the source), or by name; 10 for
                those not named.
            fixed: the only value of some parameters, e.g. `{"S0": 1.0}`.

        Raises:
            InputError: if `points` or `fixed` names no parameter, or a count is below 2.
        """
        box = Uniform(ranges) if isinstance(ranges, Mapping) else ranges
        fixed = fixed or {}
        counts = points if isinstance(points, Mapping) else dict.fromkeys(box.names, points)
        _refuse_unknown("points", counts, box.names)
        _refuse_unknown("fixed", fixed, box.names)
        axes = {}
        for name, (low, high) in zip(box.names, box.ranges, strict=True):
            count = counts.get(name, 10)
            if name in fixed or low == high:
                axes[name] = [fixed.get(name, low)]
            elif count < 2:
                raise InputError(
                    f"points: {name} needs at least 2, got {count}; to fix its value, "
                    f'use fixed={{"{name}": value}}'
                )
            else:
                check_whole("points", count, name)
                axes[name] = np.linspace(low, high, count)
        return cls(axes)

    @property
    def points(self) -> Float[np.ndarray, "G P"]:
        """All grid points in float64, the last parameter varying fastest."""
        return np.stack(np.meshgrid(*self.axes.values(), indexing="ij"), -1).reshape(
            -1, len(self.names)
        )

    def sample(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """Samples of grid points with equal probability; see `Prior`."""
        picks = np.unravel_index(_rows(key, n, math.prod(self.shape)), self.shape)
        columns = [values[pick] for values, pick in zip(self.axes.values(), picks, strict=True)]
        return np.stack(columns, axis=1).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """See `Prior`."""
        return {
            "kind": "grid",
            "axes": {name: values.tolist() for name, values in self.axes.items()},
        }

    def __repr__(self) -> str:
        axes = zip(self.shape, self.names, strict=True)
        return f"Grid({' x '.join(f'{count} {name}' for count, name in axes)})"


class Empirical:
    """The parameters of real voxels, resampled with replacement to preserve correlations.

    Args:
        params: (K, P) one row for each voxel, in the parameters' units; rows with NaN or infinite
            values are excluded.
        names: of its columns, in the model's order.

    Raises:
        InputError: if the shapes do not fit, or no row is finite.

    Example:
        >>> prior = Empirical([[1.0, 80.0], [0.9, 95.0], [np.nan, 70.0]], ("S0", "T2"))
        >>> prior.describe()["count"], prior.ranges[1]
        (2, array([80., 95.]))
    """

    def __init__(self, params: Float[np.ndarray, "K P"], names: Sequence[str]) -> None:
        rows = np.asarray(params, np.float32)
        self.names = tuple(names)
        if rows.ndim != 2 or rows.shape[1] != len(self.names) or not self.names:
            raise InputError(
                f"params: expected (K, {len(self.names)}), one column for each of "
                f"{', '.join(self.names)}, got {rows.shape}"
            )
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            raise InputError(
                "params: no row has finite values only; give the parameters of at least one voxel "
                "that could be fitted"
            )
        self.params = _fixed_array(rows, np.float32)
        self.ranges = _fixed_array(np.stack([rows.min(axis=0), rows.max(axis=0)], axis=1))

    def sample(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """See `Prior`."""
        return self.params[_rows(key, n, len(self.params))]

    def describe(self) -> dict[str, Any]:
        """See `Prior`; the rows are represented by their SHA-256."""
        return {
            "kind": "empirical",
            "count": len(self.params),
            "ranges": _by_name(self),
            "sha256": hashlib.sha256(np.ascontiguousarray(self.params, "<f4").data).hexdigest(),
        }

    def __repr__(self) -> str:
        return f"Empirical({len(self.params)} voxels, {_by_name(self)})"


def held(model: SignalModel | None, params: Float[np.ndarray, "n P"]) -> Bool[np.ndarray, " n"]:
    """Which rows of parameters the equation of a model holds for."""
    return np.broadcast_to(model is None or model.holds(*params.T), len(params))


def _drawn(
    draw: Callable[[PRNGKeyArray, int], Float[np.ndarray, "n P"]],
    model: SignalModel | None,
    key: PRNGKeyArray,
    n: int,
    rounds: float = math.inf,
) -> Float[np.ndarray, "n P"]:
    """Draws, of which rows that the equation of a model does not hold for are drawn again."""
    params, again = draw(key, n), 0
    while again < rounds and (missing := np.flatnonzero(~held(model, params))).size:
        again += 1
        count = 1 << int(missing.size - 1).bit_length()  # few sizes: each is compiled
        params[missing] = draw(jax.random.fold_in(key, again), count)[: missing.size]
    return params


def _rows(key: PRNGKeyArray, n: int, count: int) -> np.ndarray:
    return np.asarray(jax.random.randint(key, (n,), 0, count, jnp.int32))


def _checked_range(name: str, limits: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(limit) for limit in limits)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(
            f"ranges: {name} is {tuple(limits)}; expected a finite lowest value and a highest one "
            "that is not smaller"
        )
    return low, high


def _checked_axis(name: str, values: Any) -> Float[np.ndarray, " K"]:
    axis = np.array(values, float)
    ascending = axis.ndim == 1 and len(axis) > 0 and bool(np.all(np.diff(axis) > 0))
    if not ascending or not np.all(np.isfinite(axis)):
        raise InputError(f"axes: {name} needs finite values in ascending order, got {values!r}")
    axis.flags.writeable = False
    return axis


def _refuse_unknown(what: str, given: Collection[str], names: Sequence[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(f"{what}: no parameter {unknown[0]!r}; there are {', '.join(names)}")


def _by_name(prior: Prior) -> dict[str, list[float]]:
    return dict(zip(prior.names, prior.ranges.tolist(), strict=True))


def _fixed_array(rows: Any, dtype: type[np.floating] = np.float64) -> np.ndarray:
    array = np.array(rows, dtype)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Normal:
    """A normal distribution, truncated at the bounds of the parameter.

    Args:
        mean: before truncation, in the unit of the parameter.
        std: before truncation, in the unit of the parameter.

    Raises:
        InputError: if the mean or std is not finite, or the std is not positive.
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
"""A fixed value, a uniform range (low, high) or a `Normal`, in the unit of the parameter."""


@dataclass(frozen=True)
class Tissue:
    """The independent distributions of the parameters of a tissue.

    Args:
        parts: distributions by parameter name; those not named are as in the tissue for comparison,
            or as in the prior of the training.
        name: for tables and figures; its distributions if empty.

    Raises:
        InputError: if a range is not finite and ordered, or a value is not finite.

    Example:
        >>> Tissue({"f": (0.1, 0.2), "D_slow": 1.1, "D_fast": Normal(60, 10)}).label
        'f=0.1:0.2,D_slow=1.1,D_fast=60±10'
    """

    parts: Mapping[str, Distribution] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        parts = {name: _distribution(name, each) for name, each in self.parts.items()}
        object.__setattr__(self, "parts", parts)

    @property
    def label(self) -> str:
        """The name, or the distributions."""
        parts = (f"{name}={distribution_label(each)}" for name, each in self.parts.items())
        return self.name or ",".join(parts) or "all that it was trained for"

    def describe(self) -> dict[str, Any]:
        """The description as JSON data."""
        parts = {
            name: {"mean": each.mean, "std": each.std} if isinstance(each, Normal) else each
            for name, each in self.parts.items()
        }
        return {"name": self.name, "parts": parts}


@dataclass(frozen=True)
class Population:
    """A tissue with distributions of all parameters in the model's order; a `Prior`.

    Args:
        tissue: with all parameters.
        parameters: of the model.
        model: parameters for which its equation does not hold are drawn again, a hundred times at
            most, since a tissue may leave no others.
    """

    tissue: Tissue
    parameters: tuple[Parameter, ...]
    model: SignalModel | None = None

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
        return _drawn(self._all, self.model, key, n, rounds=100)

    def _all(self, key: PRNGKeyArray, n: int) -> Float[np.ndarray, "n P"]:
        """Samples whether the equation of the model holds or not."""
        keys = jax.random.split(key, len(self.parameters))
        distributions = zip(self.tissue.parts.values(), self.parameters, keys, strict=True)
        return np.stack([_draw(*each, n) for each in distributions], axis=1)

    def describe(self) -> dict[str, Any]:
        """See `Prior`."""
        return {"kind": "tissue", **self.tissue.describe()}


def _draw(
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


def _distribution(name: str, each: Any) -> Distribution:
    """A validated distribution; a range with equal ends becomes a value."""
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
        raise InputError(f"{name}: the range {low:g} to {high:g} is not ordered; swap its ends")
    return low if low == high else (low, high)


def centre(each: Distribution) -> float:
    """The centre of a distribution: the value, the middle of the range, or the mean."""
    return each.mean if isinstance(each, Normal) else float(np.mean(each))


def distribution_label(each: Distribution) -> str:
    """A distribution as on the command line."""
    if isinstance(each, Normal):
        return f"{each.mean:g}±{each.std:g}"
    return f"{each[0]:g}:{each[1]:g}" if isinstance(each, tuple) else f"{each:g}"
