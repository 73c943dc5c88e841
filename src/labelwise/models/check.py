"""A check of signal models, for your own models before their use."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from labelwise.models import SelfStarting, SignalModel
from labelwise.models.base import acquisition_names, measurements, scale_parameter, within
from labelwise.models.evaluate import differences, jacobian, signals
from labelwise.types import InputError

_INTERIOR = 40
"""Number of random test points inside the bounds."""


def check_signal_model(model: SignalModel) -> None:
    """Check a signal model; raise one error that lists all problems.

    At random points and at every corner of the bounds, the signal must have the right shape and be
    finite, also in float32, and each parameter must have a distinct effect on it. Differentiable
    models must be traceable by JAX, with finite slopes (also at b = 0) that agree with finite
    differences. Other models must be deterministic, not modify their input, and broadcast if they
    are `vectorized`. An open range is tested over one unit.

    Args:
        model: a signal model with the acquisition it is meant for.

    Raises:
        InputError: if `model` is no signal model, or a class instead of an instance; otherwise
            with one line for each problem.

    Example:
        >>> from labelwise import IVIM
        >>> check_signal_model(IVIM([0, 0.01, 0.05, 0.1, 0.4, 0.8]))
    """
    if not isinstance(model, SignalModel):
        raise InputError(
            "model: expected a signal model with its acquisition, such as IVIM([0, 0.1, 0.8]), "
            f"got {model!r}"
        )
    with np.errstate(all="ignore"):
        problems = _problems(model)
    if problems:
        raise InputError("\n- ".join([f"{type(model).__name__}: {len(problems)} wrong", *problems]))


def _problems(model: SignalModel) -> list[str]:
    """The problems of the first stage that has any: later stages depend on earlier ones."""
    for stage in (_call_problems, _trace_problems, _value_problems):
        if problems := list(stage(model)):
            return problems
    problems = [*_slope_problems(model), *_bound_problems(model), *_guess_problems(model)]
    problems += _range_problems(model)
    return problems or list(information_problems(model))


def _range_problems(model: SignalModel) -> Iterator[str]:
    """Problems of where the equation holds."""
    columns = _interior(model).T
    try:
        found = np.broadcast_to(model.holds(*columns), columns.shape[1:])
        if model.differentiable:
            jax.jit(lambda rows: model.holds(*rows))(columns)
    except (Exception, SystemExit) as error:
        yield (
            f"holds fails for arrays of parameters ({type(error).__name__}): use operators and "
            "jax.numpy, and no `if`"
        )
        return
    if not found.any():
        yield "holds is true nowhere within the bounds"


def _call_problems(model: SignalModel) -> Iterator[str]:
    """Problems of the signature and of the shape and type of the signal."""
    names = [parameter.name for parameter in model.parameters]
    signature = inspect.signature(model.signal)
    try:
        signature.bind(*names)
    except TypeError:
        yield f"signal{signature} does not take one argument per parameter ({', '.join(names)})"
        return
    voxel = _interior(model)[0]
    try:
        signal = np.asarray(model.signal(*voxel))
    except (Exception, SystemExit) as error:
        yield f"signal fails at {_at(model, voxel)}: {type(error).__name__}: {error}"
        return
    m = measurements(model)
    if signal.shape != (m,):
        yield f"signal has shape {signal.shape} for {m} measurements, expected ({m},)"
    if not np.issubdtype(signal.dtype, np.floating):
        yield f"signal has type {signal.dtype}, expected real floating-point numbers"


def _trace_problems(model: SignalModel) -> Iterator[str]:
    """Problems of tracing by JAX; for a black box, of determinism, side effects and batches."""
    points = _interior(model)
    if model.differentiable:
        try:
            jax.eval_shape(jax.vmap(lambda voxel: model.signal(*voxel)), jnp.asarray(points))
        except Exception as error:
            yield (
                f"JAX cannot trace signal ({type(error).__name__}); use jax.numpy and jnp.where "
                "instead of numpy and if, or set differentiable = False"
            )
        return
    if not np.array_equal(signals(model, points), signals(model, points), equal_nan=True):
        yield "signal differs when called again with the same parameters"
    arguments = [points[0, index : index + 1, None] for index in range(points.shape[1])]
    arguments = arguments if model.vectorized else [argument[0, 0] for argument in arguments]
    before = [np.array(value) for value in (*arguments, *_acquisition(model))]
    model.signal(*arguments)
    after = (*arguments, *_acquisition(model))
    if not all(np.array_equal(*pair) for pair in zip(before, after, strict=True)):
        yield "signal modifies its input or its acquisition; work on a copy"
    if model.vectorized:
        batch = signals(model, points)
        rows = np.stack([np.asarray(model.signal(*voxel)) for voxel in points])
        if batch.shape != rows.shape:
            yield (
                f"vectorized, but parameters of shape ({len(points)}, 1) give a signal of shape "
                f"{batch.shape}, expected {rows.shape}"
            )
        elif not np.allclose(batch, rows, rtol=1e-9, atol=0, equal_nan=True):
            yield "vectorized, but a batch of voxels gives other signals than one voxel at a time"


def _value_problems(model: SignalModel) -> Iterator[str]:
    """Problems of finite values and precision, in float64 and float32."""
    points = np.concatenate([_interior(model), _corners(model)])
    try:
        exact = signals(model, points)
    except (Exception, SystemExit) as error:
        yield f"signal fails somewhere inside the bounds: {type(error).__name__}: {error}"
        return
    bad = _not_finite(exact, keep=0)
    if bad.any():
        yield f"signal is not finite at {_worst(model, points, bad)}"
        return
    if not model.differentiable:
        return
    with jax.enable_x64(False):
        short = np.stack([model.signal(*voxel) for voxel in jnp.asarray(points)])
    bad = _not_finite(short, keep=0)
    if bad.any():
        yield f"signal is not finite in float32 at {_worst(model, points, bad)}"
        return
    error = np.abs(short - exact).max(axis=1) / np.abs(exact).max(axis=1)
    error = np.nan_to_num(error[:_INTERIOR])
    if error.max() > 1e-3:
        yield (
            f"signal in float32 is off by {error.max():.0%} of its largest value at "
            f"{_worst(model, points[:_INTERIOR], error > 1e-3)}; differences of nearly equal "
            "numbers cost digits (jnp.expm1 and jnp.log1p keep them)"
        )


def _slope_problems(model: SignalModel) -> Iterator[str]:
    """Problems of slopes by JAX: finite, also at b = 0, and in agreement with differences."""
    if not model.differentiable:
        return
    inside, corners = _interior(model), _corners(model)
    for case, where in ((model, ""), (_with_zero_b(model), " and b = 0")):
        if case is None:
            continue
        points = np.concatenate([inside, corners])
        slopes = jacobian(case, points)
        bad = _not_finite(slopes, keep=2)
        if bad.any():
            yield (
                f"the slope along {_names(model, bad)} is not finite at "
                f"{_worst(model, points, _not_finite(slopes, keep=0))}{where}; powers, roots and "
                "logarithms of zero do this, and jnp.where hides it only if its argument is safe"
            )
            return
    traced, measured = jacobian(model, inside), differences(model, inside)
    error = np.abs(traced - measured).max(axis=1)
    allowed = 1e-4 * np.abs(measured).max(axis=1) + 1e-9 * _size(model)
    bad = np.asarray(np.mean(error > allowed, axis=0) > 0.1)  # a point may be at a kink by chance
    if bad.any():
        yield (
            f"the slope along {_names(model, bad)} differs from finite differences; rounding, "
            "stop_gradient and custom derivatives do this"
        )


def _bound_problems(model: SignalModel) -> Iterator[str]:
    """Problems of bounds: only a factor of the whole signal may have no upper bound."""
    scale = scale_parameter(model)
    for index, parameter in enumerate(model.parameters):
        if index != scale and not np.isfinite(parameter.bounds[1]):
            yield (
                f"{parameter.name} has no upper bound and is no factor of the whole signal; give "
                "it one, since fits search for a start between the bounds"
            )


def _guess_problems(model: SignalModel) -> Iterator[str]:
    """Problems of the initial guesses of a self-starting model."""
    if not isinstance(model, SelfStarting):
        return
    guesses = [
        np.asarray([np.asarray(value) for value in model.guess(jnp.asarray(signal))])
        for signal in signals(model, _interior(model))
    ]
    p = len(model.parameters)
    if any(guess.shape != (p,) for guess in guesses):
        yield f"guess gives values of shape {guesses[0].shape}, expected {p} scalars"
        return
    none = np.isnan(guesses).all(axis=1)
    some = np.asarray(guesses)[~none]
    if not len(some) or not np.isfinite(some).all():
        yield "guess is not finite for a noise-free signal"


def information_problems(model: SignalModel) -> Iterator[str]:
    """Problems of identifiability: each parameter must have a distinct effect on the signal.

    They may be those of the acquisition; without noise, it must determine the parameters at least
    at some of the points tried.
    """
    slopes = jacobian(model, _interior(model)) * _widths(model)
    norms = np.linalg.norm(slopes, axis=1)
    without_effect = (norms <= 1e-9 * _size(model)).all(axis=0)
    if without_effect.any():
        yield f"{_names(model, without_effect)} has no effect on the signal of this acquisition"
        return
    m, p = measurements(model), len(model.parameters)
    if m < p:
        yield f"{m} measurements cannot determine {p} parameters"
        return
    unit = slopes / np.where(norms > 0, norms, 1)[:, None, :]
    _, singular, directions = np.linalg.svd(unit, full_matrices=False)
    if (singular[:, -1] < 1e-6).all():
        mixed = np.abs(directions[0, -1]) > 1e-3
        yield (
            f"{_names(model, mixed)} cannot be distinguished: this acquisition determines only "
            "a combination of them"
        )


def _interior(model: SignalModel) -> Float[np.ndarray, "{_INTERIOR} P"]:
    shares = np.random.default_rng(0).uniform(0.03, 0.97, (_INTERIOR, len(model.parameters)))
    return np.array([_point(model, share) for share in shares])


def _corners(model: SignalModel) -> Float[np.ndarray, "2**P P"]:
    shares = itertools.product((0.0, 1.0), repeat=min(len(model.parameters), 10))
    return np.array([_point(model, np.resize(share, len(model.parameters))) for share in shares])


def _point(model: SignalModel, shares: Float[np.ndarray, " P"]) -> list[float]:
    pairs = zip(model.parameters, shares, strict=True)
    return [within(parameter.bounds, share) for parameter, share in pairs]


def _widths(model: SignalModel) -> Float[np.ndarray, " P"]:
    ones, zeros = np.ones(len(model.parameters)), np.zeros(len(model.parameters))
    return np.subtract(_point(model, ones), _point(model, zeros))


def _size(model: SignalModel) -> float:
    """The largest signal inside the bounds."""
    return float(np.abs(signals(model, _interior(model))).max())


def _acquisition(model: SignalModel) -> list[np.ndarray]:
    return [np.asarray(getattr(model, name)) for name in acquisition_names(type(model))]


def _with_zero_b(model: SignalModel) -> SignalModel | None:
    """The model with its first b-value set to 0; None for a model without b."""
    if "b" not in acquisition_names(type(model)):
        return None
    b = np.array(model.b)  # pyright: ignore[reportAttributeAccessIssue]
    b[0] = 0
    return eqx.tree_at(lambda case: case.b, model, b)


def _not_finite(values: np.ndarray, keep: int) -> np.ndarray:
    """The entries along one axis with a NaN or infinity."""
    others = tuple(axis for axis in range(values.ndim) if axis != keep)
    return np.asarray(~np.isfinite(values).all(axis=others))


def _names(model: SignalModel, selected: np.ndarray) -> str:
    names = [p.name for p, take in zip(model.parameters, selected, strict=True) if take]
    return " and ".join(names)


def _worst(model: SignalModel, points: np.ndarray, bad: np.ndarray) -> str:
    return f"{_at(model, points[bad][0])} ({bad.sum()} of {len(bad)} points tried)"


def _at(model: SignalModel, voxel: np.ndarray) -> str:
    pairs = zip(model.parameters, voxel, strict=True)
    return ", ".join(f"{parameter.name} = {value:.4g}" for parameter, value in pairs)
