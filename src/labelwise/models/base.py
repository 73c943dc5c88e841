"""The base class of signal models: an equation for one voxel, with its acquisition.

A model is a frozen `equinox.Module`. Its fields without a default are the acquisition, arrays of
M settings each (b-values, echo times, ...), apart from those made by `constant`; `parameters` are
estimated; `signal` is the equation for ONE voxel, from scalars to M values. `vmap` applies it to
many voxels.
"""

import dataclasses
import itertools
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from labelwise.types import SETTINGS, Derived, InputError, Parameter, Setting, same_file

if TYPE_CHECKING:  # for type checkers, to which the one of Equinox is no ClassVar
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


Model = TypeVar("Model", bound="SignalModel")
_CONSTANT = "constant"


def per_measurement() -> Any:
    """A model field with one setting per measurement; lists and tuples are accepted.

    Example:
        >>> class Decay(SignalModel):
        ...     t: Float[Array, "M"] = per_measurement()
        ...     parameters = (Parameter("A", "a.u.", (0, 10)), Parameter("R", "1/ms", (0, 1)))
        ...
        ...     def signal(self, a, r):
        ...         return a * jnp.exp(-r * self.t)
        >>> Decay([0, 10, 20]).t
        array([ 0., 10., 20.])
    """
    return eqx.field(converter=lambda values: np.asarray(values, dtype=float))


def constant() -> Any:
    """A model field with one number for all measurements and voxels, which has no default.

    On the command line it is given by `--constant NAME=VALUE`.

    Example:
        >>> class Spoiled(SignalModel):
        ...     flip_angle: Float[Array, "M"] = per_measurement()
        ...     tr: float = constant()
        ...     parameters = (Parameter("A", "a.u.", (0, 10)), Parameter("R", "1/ms", (0, 1)))
        ...
        ...     def signal(self, a, r):
        ...         return a * self.flip_angle * r * self.tr
        >>> Spoiled([2, 5, 15], tr=15).tr
        15.0
    """
    return eqx.field(converter=float, metadata={_CONSTANT: True})


class SignalModel(eqx.Module):
    """A signal equation with its parameters, their bounds and the acquisition.

    Subclasses define `parameters` and `signal`, with the acquisition as fields. A model whose
    `signal` cannot be traced by JAX (a simulation, a dictionary look-up) sets
    `differentiable = False` and works on NumPy arrays.
    """

    parameters: AbstractClassVar[tuple[Parameter, ...]]
    measures: ClassVar[str] = "other"
    """What is measured, by which `labelwise models` groups: `"diffusion"`, `"T1"`, ..."""
    minimum: ClassVar[str] = ""
    """The least acquisition that determines the parameters, for lists and refusals."""
    derived: ClassVar[tuple[Derived, ...]] = ()
    """Further maps, each a function of the parameters."""
    differentiable: ClassVar[bool] = True
    vectorized: ClassVar[bool] = False
    """Whether the signal of a non-differentiable model broadcasts over voxels, from parameters
    (N, 1) to (N, M); otherwise it is called once per voxel."""

    @abstractmethod
    def signal(self, *params: Any, **any_signature: Any) -> Float[Array, " M"]:
        """The noise-free signal of one voxel: M values from one scalar per parameter.

        Subclasses name their parameters; `any_signature` allows this for type checkers.
        """

    def described(self) -> Bool[np.ndarray, " M"]:
        """Which measurements the equation describes; maps leave the others out."""
        return np.ones(measurements(self), bool)

    def holds(self, *params: Any, **any_signature: Any) -> Bool[Array | np.ndarray, "..."] | bool:
        """Whether the equation describes a tissue, from one number or an array per parameter.

        Typical priors leave other parameters out; fits are limited by the bounds alone.
        """
        return True

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the parameters when a subclass is defined."""
        super().__init_subclass__(**options)
        parameters = cls.__dict__.get("parameters")
        if parameters is None:
            return
        if not isinstance(parameters, tuple) or not all(
            isinstance(parameter, Parameter) for parameter in parameters
        ):
            raise InputError(
                f"{cls.__name__}.parameters: expected a tuple of labelwise.Parameter, "
                f"got {parameters!r}"
            )
        names = [parameter.name for parameter in parameters]
        if not names or len(set(map(same_file, names))) < len(names):
            raise InputError(
                f"{cls.__name__}.parameters: expected distinct names, in lower case, too (maps are "
                f"files named after them), got {names}"
            )
        both = [*names, *(each.name for each in cls.derived)]
        if len(set(map(same_file, both))) < len(both):
            raise InputError(
                f"{cls.__name__}.derived: expected names that differ from each other and from "
                f"those of the parameters, in lower case, too, got {both}"
            )

    def __check_init__(self) -> None:
        """Check that the acquisition has one finite number per measurement."""
        for name in constant_names(type(self))[0]:
            if not np.isfinite(value := getattr(self, name)):
                raise InputError(f"{type(self).__name__}.{name}: expected a number, got {value}")
        sizes = {}
        for name in acquisition_names(type(self)):
            settings = getattr(self, name)
            if not hasattr(settings, "shape") or len(settings.shape) != 1 or not len(settings):
                raise InputError(
                    f"{type(self).__name__}.{name}: expected a 1D array with one value per "
                    f"measurement, got {settings!r}"
                )
            if not np.all(np.isfinite(settings)):
                raise InputError(f"{type(self).__name__}.{name}: has NaN or infinite values")
            if name in SETTINGS:
                _refuse_other_unit(f"{type(self).__name__}.{name}", settings, SETTINGS[name])
            sizes[name] = len(settings)
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"{type(self).__name__}: the acquisition's arrays differ in length: {sizes}"
            )


def _refuse_other_unit(
    where: str, values: Float[Array | np.ndarray, " M"], setting: Setting
) -> None:
    """Check that the largest setting is possible, which it is not in another unit."""
    low, high = (limit / setting.factor for limit in setting.possible)
    largest, smallest = float(np.max(values)), float(np.min(values))
    if smallest < 0:
        raise InputError(f"{where}: expected values >= 0 {setting.model_unit}, got {smallest:g}")
    if 0 < largest < low or largest > high:
        raise InputError(
            f"{where}: expected values in {setting.model_unit}, the largest from {low:g} to "
            f"{high:g}, got {largest:g}; {setting.mistake}"
        )


class SelfStarting(SignalModel):
    """A signal model with an initial guess from the measurements of a voxel, an additional start.

    For models whose signal changes much between the points of a grid over their bounds.
    """

    @abstractmethod
    def guess(self, signal: Float[Array, " M"]) -> tuple[Any, ...]:
        """An initial guess for one voxel, by linear or segmented fits; it may exceed the bounds.

        NaN for all parameters where the voxel needs none.
        """


def log_linear(
    x: Float[Array | np.ndarray, " M"],
    signal: Float[Array, " M"],
    weight: Shaped[Array | np.ndarray, " M"] | float = 1.0,
) -> tuple[Array, Array]:
    """Amplitude a and rate r of signal = a exp(-r x), fitted to the log of one voxel's signal.

    The weights are `weight` times signal², since the logarithm changes the variance of the noise.
    Zeros are allowed; r is 0 for fewer than two distinct x.
    """
    safe = jnp.maximum(signal, 1e-3 * jnp.max(signal) + 1e-30)
    w = weight * (safe / jnp.max(safe)) ** 2 + 1e-12
    y = jnp.log(safe)
    x_mean, y_mean = jnp.sum(w * x) / jnp.sum(w), jnp.sum(w * y) / jnp.sum(w)
    spread = jnp.sum(w * (x - x_mean) ** 2)
    rate = -jnp.sum(w * (x - x_mean) * (y - y_mean)) / jnp.maximum(spread, 1e-20)
    return jnp.exp(y_mean + rate * x_mean), rate


def eliminate(
    matrix: Float[Array, "P P *W"], target: Float[Array, "P *W"], floor: float = 1e-6
) -> Float[Array, "P *W"]:
    """x with matrix x = target, for positive matrices; pivots below `floor` · diagonal are raised.

    Not by LAPACK: two threads that solve 22 x 22 systems by it wait for each other without end
    (jaxlib 0.10.2).
    """
    least = floor * jnp.diagonal(matrix).T

    def column(j, carry):
        matrix, target, pivots = carry
        pivot = jnp.maximum(matrix[j, j], least[j])
        factor = (matrix[:, j] / pivot).at[j].set(0.0)
        matrix = matrix - factor[:, None] * matrix[j]
        return matrix, target - factor * target[j], pivots.at[j].set(pivot)

    _, target, pivots = jax.lax.fori_loop(0, len(matrix), column, (matrix, target, least))
    return target / pivots


def acquisition_names(model: type[SignalModel]) -> tuple[str, ...]:
    """The names of a model's acquisition fields: those without a default, apart from constants.

    Example:
        >>> from labelwise.models import IVIM
        >>> acquisition_names(IVIM)
        ('b',)
    """
    return tuple(
        f.name for f in dataclasses.fields(model) if _is_required(f) and _CONSTANT not in f.metadata
    )


def constant_names(model: type[SignalModel]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a model's constants without a default, and of its numbers with one.

    Example:
        >>> from labelwise.models import T2EPG
        >>> constant_names(T2EPG)
        ((), ('t1',))
    """
    fields = dataclasses.fields(model)
    return (
        tuple(f.name for f in fields if _CONSTANT in f.metadata),
        tuple(f.name for f in fields if isinstance(f.default, float)),
    )


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def settings_of(model: SignalModel) -> dict[str, Float[np.ndarray, " M"]]:
    """The acquisition of a model by name of the setting; b in ms/µm².

    Example:
        >>> from labelwise.models import IVIM
        >>> settings_of(IVIM([0, 0.8]))
        {'b': array([0. , 0.8])}
    """
    return {name: np.asarray(getattr(model, name)) for name in acquisition_names(type(model))}


def detached(model: Model) -> Model:
    """The same model with copied arrays, for compiled programs.

    JAX (0.10.2) caches a NumPy array in the closure of a compiled function, in the precision at
    that time, and passes it to programs of another precision, which fail: while a user's
    `jax.jit(lambda p: model.signal(*p))` exists, no float64 program could use `model`.

    Raises:
        InputError: if the equation does not describe all measurements.
    """
    if not (described := model.described()).all():
        raise InputError(
            f"{type(model).__name__}: does not describe {np.sum(~described)} of the "
            f"{len(described)} measurements (numbered from 0: "
            f"{', '.join(map(str, np.flatnonzero(~described)))}); leave them out. It needs "
            f"{model.minimum}"
        )
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, model)


def measurements(model: SignalModel) -> int:
    """M, the number of measurements in the acquisition of a model."""
    return len(getattr(model, acquisition_names(type(model))[0]))


def scale_parameter(model: SignalModel) -> int | None:
    """The index of the parameter that multiplies the whole signal (S0), or None.

    Found numerically: doubling it doubles the signal at two points of the parameter space.
    """
    anchors = [[within(p.bounds, share) for p in model.parameters] for share in (0.3, 0.6)]
    for index in range(len(model.parameters)):
        if all(_doubles(model, anchor, index) for anchor in anchors):
            return index
    return None


def never_negative(model: SignalModel) -> bool:
    """Whether the signal is a magnitude: nowhere negative on a grid over the bounds.

    Of a grid over more than seven parameters, some points are tried.
    """
    size = len(model.parameters)
    shares: Any = itertools.product((0.1, 0.5, 0.9), repeat=size)
    if size > 7:
        shares = np.random.default_rng(0).choice((0.1, 0.5, 0.9), (200, size))
    return all(
        np.min(np.asarray(model.signal(*params))) >= 0
        for voxel in shares
        for params in [[within(p.bounds, s) for p, s in zip(model.parameters, voxel, strict=True)]]
    )


def within(bounds: tuple[float, float], share: float) -> float:
    """The value at a fraction of the way between two bounds; open ranges have width 1."""
    lower, upper = bounds
    return lower + share * ((upper if np.isfinite(upper) else lower + 1.0) - lower)


def _doubles(model: SignalModel, params: list[float], index: int) -> bool:
    once = np.asarray(model.signal(*params))
    doubled = [2 * value if i == index else value for i, value in enumerate(params)]
    twice = np.asarray(model.signal(*doubled))
    return bool(np.any(once != 0) and np.allclose(twice, 2 * once, rtol=1e-5, atol=0))
