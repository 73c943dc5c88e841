"""Common types: parameter, status, voxels, estimate, estimator."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import marshal
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from labelwise.errors import InputError as InputError
from labelwise.formatting import plain
from labelwise.volumes import html, save

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, amount done, total amount, details)."""


def no_progress(stage: str, done: int, total: int, details: str) -> None:
    """A `Progress` without output."""


@dataclass(frozen=True)
class Setting:
    """A quantity that an acquisition varies, with its units in files and in models.

    Args:
        words: the name of its values in messages.
        unit: in files, options and messages.
        model_unit: in models.
        factor: from `model_unit` to `unit`.
        plausible: expected range of the largest value of an acquisition, in `unit`.
        possible: possible range of that value; beyond it, values are in another unit.
        mistake: the remedy for values in another unit.
        others: other units that it is given in by mistake, and how many of each make one `unit`.
    """

    words: str
    unit: str
    model_unit: str
    factor: float
    plausible: tuple[float, float]
    possible: tuple[float, float]
    mistake: str
    others: Mapping[str, float]


_TIMES = {"s": 1e-3, "µs": 1000.0}
_FROM_SECONDS = "times in seconds have to be multiplied by 1000"
SETTINGS = {
    "b": Setting(
        *("b-values", "s/mm²", "ms/µm²", 1000.0, (20.0, 30_000.0), (0.0, 50_000.0)),
        "divide s/mm² by 1000 (800 s/mm² is 0.8 ms/µm²), or read the .bval file with "
        "labelwise.read_bvals, which does so",
        {"s/m²": 1e6, "s/cm²": 100.0, "ms/µm²": 1e-3},
    ),
    "te": Setting(
        *("echo times", "ms", "ms", 1.0, (1.0, 10_000.0), (0.5, 100_000.0), _FROM_SECONDS, _TIMES)
    ),
    "ti": Setting(
        *("inversion times", "ms", "ms", 1.0, (20.0, 100_000.0), (10.0, 1e6), _FROM_SECONDS, _TIMES)
    ),
    "flip_angle": Setting(
        *("flip angles", "degrees", "degrees", 1.0, (4.0, 180.0), (3.2, 360.0)),
        "angles in radians have to be multiplied by 57.296",
        {"radians": 0.017453292519943295},
    ),
}
"""The settings with known units, by name; others are in the unit stated by their model."""


@dataclass(frozen=True)
class Parameter:
    """An estimated quantity: its name, unit, bounds and symbol.

    Args:
        name: for maps and tables, e.g. `"D_slow"`; a Python identifier.
        unit: its physical unit, e.g. `"µm²/ms"`; `"1"` for a fraction.
        bounds: lowest and highest possible estimate, in that unit.
        symbol: for figures, in mathtext without dollar signs, e.g. `"D_{slow}"`.
        typical: the range of values in tissue, the default prior of simulated training data; the
            bounds if None.

    Raises:
        InputError: if the name is not an identifier, is that of another output (`OUTPUTS`) or no
            file name, the unit is empty or a range is not ordered.

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
        if not self.name.isidentifier() or not self.name.isprintable():
            raise InputError(
                f"parameter name {self.name!r}: expected letters, digits and underscores "
                "(maps are files named after it), e.g. 'D_slow'"
            )
        _refuse_name(self.name)
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


@dataclass(frozen=True)
class Derived:
    """A quantity that is calculated from the parameters of a voxel, with a map of its own.

    Args:
        name: of its map; as for `Parameter`.
        unit: its physical unit; `"1"` for a fraction.
        function: from the parameters, in the model's order, to the quantity, in jax.numpy.

    Raises:
        InputError: as for `Parameter`.

    Example:
        >>> Derived("R2", "1/s", lambda s0, t2: 1000 / t2).function(1, 80)
        12.5
    """

    name: str
    unit: str
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        Parameter(self.name, self.unit, (0.0, 1.0))  # refuses what is no name or unit


OUTPUTS = frozenset(
    (
        *("status", "on_bound", "nll", "residual", "iterations", "outside", "sigma"),
        *("runner_up", "left_out"),
        *("run", "maps", "net", "report"),  # other files
        *("estimator", "parameter", "other"),  # dimensions of evaluations
        *("name", "all"),  # words of tissues and options
    )
)
"""Names that outputs and options have already: no parameter may have them."""
STANDARD_ERROR = "_standard_error"
"""The end of the names of maps of standard errors."""
LOW, HIGH, UNCERTAINTY, SD = "_low", "_high", "_uncertainty", "_sd"
"""The ends of the names of maps of intervals: their ends, half their width, and half the width of
the central 68 % of the posterior."""
ENDINGS = (STANDARD_ERROR, LOW, HIGH, UNCERTAINTY, SD)
"""The ends of the names of maps beside that of a parameter."""
_DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)\d")  # no files of Windows
_LONGEST_NAME = 100  # bytes: file names have 255, and endings are added


def same_file(name: str) -> str:
    """What names have in common that some file systems do not distinguish: case, composition."""
    return unicodedata.normalize("NFKC", name).casefold()


def _refuse_name(name: str) -> None:
    """Refuse the name of a parameter whose maps would be other outputs, or no files."""
    plain = same_file(name)
    if plain in OUTPUTS or plain.endswith(ENDINGS):
        raise InputError(
            f"parameter name {name!r}: another output of labelwise is called that; choose another "
            "name"
        )
    if _DEVICES.fullmatch(plain) or len(name.encode()) > _LONGEST_NAME:
        raise InputError(
            f"parameter name {name[:20]!r}: maps are files named after it, and it is no possible "
            f"file name on every system; choose one of at most {_LONGEST_NAME} bytes"
        )


def is_natural(parameter: Parameter, bound: float) -> bool:
    """Whether a bound is a limit of nature rather than a choice: 0, or 1 where the unit is 1.

    Example:
        >>> f = Parameter("f", "1", (0.0, 0.5))
        >>> [is_natural(f, bound) for bound in f.bounds]
        [True, False]
    """
    return bound == 0 or (bound == 1 and parameter.unit == "1")


class Status(IntEnum):
    """The outcome of the estimate of a voxel; its code in status maps.

    NO_SIGNAL has an amplitude of 0, and NaN for all other parameters.
    """

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
    NO_SIGNAL = 11
    TOO_FEW = 12

    @property
    def reason(self) -> str:
        """The status as a short phrase for tables and sidecars."""
        return _REASONS[self]

    @property
    def has_values(self) -> bool:
        """Whether the voxel has estimates; otherwise they are NaN."""
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
    Status.NO_SIGNAL: "no signal above the noise",
    Status.TOO_FEW: "too few usable measurements",
}
_WITH_VALUES = (Status.CONVERGED, Status.ON_BOUND, Status.PREDICTED, Status.EXTRAPOLATED)


def has_values(status: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """The voxels with estimates, which are NaN in all others."""
    return np.isin(status, _WITH_VALUES)


@dataclass(frozen=True)
class Voxels:
    """The signals of N voxels, and their true parameters if known.

    Args:
        signal: (N, M) measurements.
        sigma: (N,) noise of one channel, in the signal's unit.
        params: (N, P) the true parameters of simulated signals; None for real data.
    """

    signal: Float[np.ndarray, "N M"]
    sigma: Float[np.ndarray, " N"]
    params: Float[np.ndarray, "N P"] | None = None

    def __len__(self) -> int:
        """The number of voxels, N."""
        return len(self.signal)

    def __repr__(self) -> str:
        truth = "unknown" if self.params is None else "known"
        return f"Voxels({' x '.join(map(str, np.shape(self.signal)))}, truth {truth})"


@dataclass(frozen=True, repr=False)
class Estimate:
    """The estimated parameters of voxels; `estimate["D_slow"]` is one of them.

    So is `estimate.D_slow`, if no other attribute has that name. A notebook shows a table and the
    middle slice.

    Args:
        values: (*shape, P) in each parameter's unit; NaN where `status` is a failure.
        status: (*shape) codes of `Status`.
        stats: other results by name: arrays (*shape) or (*shape, P).
        parameters: the P columns of `values`, if known.

    Example:
        >>> adc = Parameter("ADC", "µm²/ms", (0.0, 5.0))
        >>> estimate = Estimate(np.array([[1.2], [0.8]]), np.array([1, 1]), {}, (adc,))
        >>> estimate["ADC"]
        array([1.2, 0.8])
    """

    values: Float[np.ndarray, "*shape P"]
    status: Int[np.ndarray, "*shape"]
    stats: Mapping[str, Shaped[np.ndarray, "*shape_P"]] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()

    def __getitem__(self, name: str) -> Float[np.ndarray, "*shape"]:
        """The values of a parameter, in its unit.

        Raises:
            KeyError: if there is no such parameter.
        """
        return self._column(self.values, name)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Float[np.ndarray, "*shape"]:
            if not name.startswith("_") and name in self.names:
                return self[name]
            raise AttributeError(f"an estimate of {', '.join(self.names)} has no {name!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def standard_error(self) -> Mapping[str, Float[np.ndarray, "*shape"]]:
        """The standard error of each parameter by name, in its unit."""
        return {name: self._column(self.stats["standard_error"], name) for name in self.names}

    @property
    def low(self) -> Mapping[str, Float[np.ndarray, "*shape"]]:
        """The low end of the interval of each parameter by name, in its unit."""
        return {name: self._column(self.stats["low"], name) for name in self.names}

    @property
    def high(self) -> Mapping[str, Float[np.ndarray, "*shape"]]:
        """The high end of the interval of each parameter by name, in its unit."""
        return {name: self._column(self.stats["high"], name) for name in self.names}

    def _column(self, rows: np.ndarray, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(
                f"no parameter {name!r}; there are {', '.join(self.names) or 'no names'}"
            )
        return rows[..., self.names.index(name)]

    def save(
        self, folder: str | Path, affine: Float[np.ndarray, "4 4"], overwrite: bool = False
    ) -> None:
        """Write the estimates of an image of up to three axes as NIfTI files.

        `NAME.nii.gz` for each parameter, `NAME_low`, `NAME_high` and `NAME_standard_error` where
        they are known, and `status`. `lw.fit_image` and `lw.map_image` write further maps, and a
        record of the run.

        Args:
            folder: made if missing.
            affine: of the image, from the indices of voxels to mm.
            overwrite: replace files.

        Raises:
            InputError: if a file is there, or the affine or the voxels have another shape.
            OSError: if a file cannot be written.
        """
        units = {parameter.name: parameter.unit for parameter in self.parameters}
        maps = {name: (self[name], unit) for name, unit in units.items()}
        for stat, ending in (("low", LOW), ("high", HIGH), ("standard_error", STANDARD_ERROR)):
            if stat in self.stats:
                columns = {name: self._column(self.stats[stat], name) for name in units}
                maps |= {f"{name}{ending}": (columns[name], unit) for name, unit in units.items()}
        save(folder, maps | {"status": (self.status, "codes")}, affine, overwrite)

    def __repr__(self) -> str:
        return f"Estimate({', '.join(self.names)}; {self._outcome()})"[:400]

    def _outcome(self) -> str:
        counts = np.bincount(np.ravel(self.status).astype(int), minlength=1 + max(Status))
        outcome = ", ".join(f"{counts[code]} {code.reason}" for code in Status if counts[code])
        shape = " x ".join(map(str, self.status.shape)) or "1"
        return f"{shape} voxels: {outcome}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        maps = {each.name: (self[each.name], each.unit) for each in self.parameters}
        return html(self._outcome(), maps)


def estimate_voxels(
    estimate: Callable[..., Estimate],
    signal: Float[np.ndarray, "*shape M"],
    sigma: Float[np.ndarray, "..."] | float,
    measurements: int,
    mask: Bool[np.ndarray, "*shape"] | None = None,
    **more: Float[np.ndarray, "*shape K"] | None,
) -> Estimate:
    """Apply an estimator of N voxels to an image of any shape.

    Args:
        estimate: called with signal (N, M) and sigma: a number, (N,) or (N, K).
        signal: (*shape, M).
        sigma: noise of one channel: a number, (*shape) or (*shape, K); for signals (N, M),
            other shapes are passed on.
        measurements: number of measurements, M.
        mask: (*shape) the voxels to estimate; all of them if None. Others are NaN, with the status
            NOT_FITTED.
        more: further arguments of `estimate` with a row for each voxel.

    Raises:
        InputError: if the last axis of the signal is not M, or sigma or the mask has another shape.
    """
    signal, sigma = np.asarray(signal), np.asarray(sigma)
    shape = signal.shape[:-1]
    if not signal.ndim or signal.shape[-1] != measurements:
        expected = f"(..., {measurements})" if signal.ndim != 2 else f"(N, {measurements})"
        raise InputError(
            f"signal: expected {expected}, one value per measurement of the acquisition in the "
            f"last axis, got {signal.shape}"
        )
    flat = signal.reshape(-1, measurements)
    if len(shape) != 1:
        if sigma.shape == shape:
            sigma = sigma.reshape(-1)
        elif sigma.ndim == signal.ndim and sigma.shape[:-1] == shape:
            sigma = sigma.reshape(len(flat), sigma.shape[-1])
        elif sigma.size > 1:
            raise InputError(
                f"sigma: expected a number or one for each voxel, {shape}, got {sigma.shape}"
            )
    for name, rows in more.items():
        if rows is not None:
            given = np.asarray(rows)
            if given.shape[: len(shape)] != shape:
                raise InputError(
                    f"{name}: expected an array that begins with the voxels' shape {shape}, "
                    f"got {given.shape}"
                )
            more[name] = given.reshape(len(flat), *given.shape[len(shape) :])
    if mask is None:
        found = estimate(flat, sigma, **more)
        return found if len(shape) == 1 else _reshaped(found, shape)
    mask = np.asarray(mask)
    if mask.dtype.kind in "iu" and np.isin(mask, (0, 1)).all():  # as NIfTI masks are read
        mask = mask.astype(bool)
    if mask.shape != shape or mask.dtype != bool:
        raise InputError(
            f"mask: expected booleans, or 0 and 1, of shape {shape}, got {mask.dtype} of shape "
            f"{mask.shape}"
        )
    inside = np.flatnonzero(mask)
    sigma = sigma_of_voxels(sigma, len(flat), measurements)[inside]
    more = {name: None if rows is None else rows[inside] for name, rows in more.items()}
    part = estimate(flat[inside], sigma, **more)
    return _reshaped(_insert(part, inside, len(flat)), shape)


def _reshaped(estimate: Estimate, shape: tuple[int, ...]) -> Estimate:
    return Estimate(
        estimate.values.reshape((*shape, *estimate.values.shape[1:])),
        estimate.status.reshape(shape),
        {name: rows.reshape((*shape, *rows.shape[1:])) for name, rows in estimate.stats.items()},
        estimate.parameters,
    )


def _insert(part: Estimate, inside: Int[np.ndarray, " n"], voxels: int) -> Estimate:
    """The estimate of some voxels inserted among all; NaN, or 0 for integers, elsewhere."""

    def among_all(rows: np.ndarray) -> np.ndarray:
        empty = np.nan if np.issubdtype(rows.dtype, np.floating) else 0
        whole = np.full((voxels, *rows.shape[1:]), empty, rows.dtype)
        whole[inside] = rows
        return whole

    stats = {name: among_all(rows) for name, rows in part.stats.items()}
    return Estimate(among_all(part.values), among_all(part.status), stats, part.parameters)


def sigma_of_voxels(
    sigma: Shaped[np.ndarray, "#N *#M"] | float, voxels: int, measurements: int = 1
) -> Shaped[np.ndarray, "N #M"]:
    """Sigma with a row for each of N voxels, and one column or M.

    Args:
        sigma: a number, (N,), (N, 1), (N, M) or (1, M).
        voxels: number of voxels, N.
        measurements: number of measurements, M; 1 for one sigma in each voxel.

    Raises:
        InputError: if it has another shape.

    Example:
        >>> sigma_of_voxels(2.0, 3).shape, sigma_of_voxels(np.ones((1, 5)), 3, 5).shape
        ((3, 1), (3, 5))
    """
    given = np.asarray(sigma)
    if given.dtype.kind not in "fiu":
        raise InputError(f"sigma: expected numbers, got {sigma!r}")
    rows = given.reshape(-1, 1) if given.ndim < 2 else given
    fits = rows.ndim == 2 and rows.shape[0] in (1, voxels) and rows.shape[1] in (1, measurements)
    if not fits:
        expected = f"a number or ({voxels},)"
        if measurements > 1:
            expected = f"a number, ({voxels},), ({voxels}, {measurements}) or (1, {measurements})"
        raise InputError(f"sigma: expected {expected}, got {given.shape}")
    return np.broadcast_to(rows, (voxels, rows.shape[1]))


class Estimator(Protocol):
    """Estimates parameters from the signal of N voxels."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The columns of `Estimate.values`."""
        ...

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N *#M"] | float
    ) -> Estimate:
        """Estimate every voxel; `sigma` is the noise of one channel, in the signal's unit."""
        ...


class LabelSource(Protocol):
    """Training labels: an `Estimate` of every voxel, with or without use of the truth."""

    def __call__(self, voxels: Voxels) -> Estimate:
        """The labels of N voxels; failed ones are NaN, with their status."""
        ...

    def describe(self) -> dict[str, Any]:
        """The description as JSON data; sources with equal descriptions give equal labels."""
        ...


USERS = "labelwise_user_"
"""Prefix of the names of modules from users' files."""


def class_name(kind: type) -> str:
    """The unique name of a class.

    `package.module:Class` if it can be imported, `FILE.py:Class` for one in a user's file.

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
    """Whether a class is part of labelwise."""
    return kind.__module__.startswith("labelwise.")


def identity(thing: Any, base: type) -> dict[str, Any]:
    """The identity of a signal or noise model as JSON data, for caches, files and comparisons.

    Args:
        thing: the model, a frozen dataclass.
        base: its base class, such as `NoiseModel`.

    Returns:
        `class` by `class_name`; `fields` by name; and `source`, the SHA-256 of the files that
        define its class (of the bytecode if there is no file, as in a notebook), without their
        imports. It is None for classes of labelwise, whose code is in the key of a cache.

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
        except (OSError, TypeError):  # defined at a prompt or in a notebook
            for name, value in sorted(vars(kind).items()):
                total.update(f"{name} {_code_of(value)}\n".encode())
    return total.hexdigest()


def _code_of(value: Any) -> str:
    """What an attribute of a class does: its bytecode, or its value if that is a plain one."""
    function = getattr(value, "__func__", getattr(value, "fget", value))
    if isinstance(function, FunctionType):
        code = inspect.unwrap(function).__code__.replace(co_filename="", co_firstlineno=1)
        return marshal.dumps(code, 2).hex()  # version 2: later ones depend on reference counts
    return repr(value) if isinstance(value, (bool, int, float, str, tuple)) else ""
