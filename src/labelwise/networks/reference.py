"""Repeated measurements, and the reference measurements that normalise a voxel."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from labelwise.io.acquisition import group_equal
from labelwise.models.base import SignalModel, acquisition_names, scale_parameter, settings_of
from labelwise.models.evaluate import signals
from labelwise.priors import Prior, Uniform
from labelwise.types import InputError

B_TOLERANCE = 0.001
"""In ms/µm²: closer b-values are equal, unless something else is requested."""


def measurement_groups(
    model: SignalModel, b_tolerance: float = B_TOLERANCE
) -> tuple[tuple[int, ...], ...]:
    """Groups of measurements with equal settings; sorted by b, if there is one.

    Args:
        model: the signal model with its acquisition.
        b_tolerance: in ms/µm²; b-values this close are equal.
    """
    equal = group_equal(settings_of(model), b_tolerance)
    return tuple(tuple(int(i) for i in group) for group in equal)


def reference_measurements(model: SignalModel, b_tolerance: float = B_TOLERANCE) -> tuple[int, ...]:
    """The measurements whose mean normalises a voxel.

    Those at the lowest b; without b, those with the largest signal for any tissue (the first
    echo). If there are none, as in an inversion recovery, where each measurement vanishes for some
    T1, all measurements. Empty if no parameter scales the whole signal.

    Args:
        model: see `measurement_groups`.
        b_tolerance: see `measurement_groups`.

    Raises:
        InputError: if their mean is negative for some tissue (a signed inversion recovery).

    Example:
        >>> import labelwise as lw
        >>> reference_measurements(lw.IVIM([0.8, 0, 0.1, 0, 0.4]))
        (1, 3)
        >>> reference_measurements(lw.T1InversionRecovery([50, 400, 3000]))
        (0, 1, 2)
    """
    if scale_parameter(model) is None:
        return ()
    groups = measurement_groups(model, b_tolerance)
    if "b" in acquisition_names(type(model)):
        return groups[0]  # they are sorted by b
    clean = typical_signals(model, Uniform.typical(model))
    means = np.stack([clean[:, list(group)].mean(axis=1) for group in groups])
    first = int(np.argmax(means.mean(axis=1)))
    largest = np.all(means[first] >= means.max(axis=0))
    chosen = groups[first] if largest else tuple(range(clean.shape[1]))
    if clean[:, list(chosen)].mean(axis=1).min() < 0:
        raise InputError(
            f"{type(model).__name__}: its signal is negative for some tissue, and a network "
            "divides by a positive one; use labelwise fit, or images and model of magnitudes"
        )
    return chosen


def typical_signals(model: SignalModel, prior: Prior, count: int = 256) -> Float[np.ndarray, "n M"]:
    """Noise-free signals of `count` draws from a prior."""
    return signals(model, np.asarray(prior.sample(jax.random.key(0), count), float))
