"""The blend that `labelwise map` trains for the noise levels of an image."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.models.base import SignalModel
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.network import Network, load
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.reference import B_TOLERANCE, reference_measurements, typical_signals
from labelwise.networks.train import is_trained_by, joined, train_networks
from labelwise.noise import NoiseModel
from labelwise.priors import Prior, Uniform
from labelwise.types import InputError, Progress

_LEVEL_STEP = 1.25  # rounding factor of noise levels: similar scans share a network
_LEVEL_LIMITS = (1 / 100, 1 / 1.5)  # of sigma / reference: a fit is better above an SNR of 100


def noise_levels(
    model: SignalModel,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "#N"] | float,
    b_tolerance: float = B_TOLERANCE,
) -> tuple[float, float]:
    """The range of noise levels in an image, for `TrainingPlan.sigma`.

    The 2nd and 98th percentile of sigma over the reference (the mean at b = 0) of its voxels. They
    are clipped to 1/100 and 1/1.5, then rounded outwards to two different powers of 1.25.

    Args:
        model: the signal model with the acquisition of the image.
        signal: (N, M) the signal of a sample of the voxels.
        sigma: noise of one channel, in the unit of the signal: a number or (N,).
        b_tolerance: in ms/µm²; b-values this close are equal.

    Raises:
        InputError: if no voxel has a signal, or no parameter of the model scales it.
    """
    mean = np.asarray(signal, float)[:, _reference_of(model, b_tolerance)].mean(axis=1)
    ratio = np.broadcast_to(np.asarray(sigma, float), len(mean))
    good = np.isfinite(mean) & (mean > 0) & np.isfinite(ratio) & (ratio > 0)
    if not good.any():
        raise InputError("noise levels: no voxel has a finite signal and a positive sigma")
    low, high = np.clip(np.percentile(ratio[good] / mean[good], [2, 98]), *_LEVEL_LIMITS)
    steps = np.log([low, high]) / np.log(_LEVEL_STEP)
    first = np.floor(steps[0])
    low, high = _LEVEL_STEP ** np.array([first, max(first + 1, np.ceil(steps[1]))])
    return float(low), float(high)


def blend_plan(
    model: SignalModel,
    noise: NoiseModel,
    levels: tuple[float, float],
    prior: Prior | None = None,
    *,
    seed: int = 0,
    b_tolerance: float = B_TOLERANCE,
    intervals: bool = True,
) -> TrainingPlan:
    """The training plan of `labelwise map`: two networks of a blend, for a range of noise levels.

    Args:
        model: the signal model with the acquisition of the scan.
        noise: the noise model of the simulation and of the likelihood.
        levels: lowest and highest noise level, from `noise_levels`.
        prior: of the simulated parameters; the typical range of each if None.
        seed: of all random numbers.
        b_tolerance: in ms/µm²; b-values this close are equal.
        intervals: whether to train networks of intervals, too.

    Raises:
        InputError: if no parameter of the model scales the signal.
    """
    prior = prior or Uniform.typical(model)
    reference = _reference_of(model, b_tolerance)
    clean = typical_signals(model, prior)[:, reference].mean(axis=1)
    weak, strong = np.percentile(clean, [5, 95])
    return TrainingPlan(
        model=model,
        noise=noise,
        prior=prior,
        sigma=(float(levels[0] * weak), float(levels[1] * strong)),  # sigma / reference to sigma
        labels=(MLE(model, noise, start="search"), GroundTruth()),
        recipe=Recipe.every_level(
            signals=200_000, epochs=50
        ),  # fitting labels takes as long as training
        seed=seed,
        on_bound="keep",  # at low SNR most labels are on a bound: docs/decisions/0007
        b_tolerance=b_tolerance,
        intervals=intervals,
    )


def trained_blend(
    model: SignalModel,
    noise: NoiseModel,
    levels: tuple[float, float],
    prior: Prior | None = None,
    *,
    seed: int = 0,
    b_tolerance: float = B_TOLERANCE,
    intervals: bool = True,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Network, dict[str, Any]]:
    """Train the blend of `blend_plan`, or load it from the cache.

    Args:
        model: see `blend_plan`.
        noise: see `blend_plan`.
        levels: see `blend_plan`.
        prior: see `blend_plan`.
        seed: see `blend_plan`.
        b_tolerance: see `blend_plan`.
        intervals: see `blend_plan`.
        cache: folder of cached networks and labels; nothing is cached if None.
        progress: called during the training.

    Returns:
        The blend at alpha = 1, and a record: `cached`, `path` and `seconds` of each stage.
    """
    plan = blend_plan(
        model, noise, levels, prior, seed=seed, b_tolerance=b_tolerance, intervals=intervals
    )
    path = None if cache is None else cache / f"blend-{plan.fingerprint}.safetensors"
    begin = time.perf_counter()
    if path is not None:
        with contextlib.suppress(InputError, OSError):  # missing, damaged, a folder: train again
            found = load(path, noise=noise)
            if is_trained_by(found, plan):
                seconds = {"load": time.perf_counter() - begin}
                return found, {"cached": True, "path": str(path), "seconds": seconds}
    network = joined(train_networks(plan, cache=cache, progress=progress))
    saved = path
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            network.save(path)
        except OSError:  # read-only or full: the result does not depend on the cache
            saved = None
    seconds = {"train": time.perf_counter() - begin}
    saved = None if saved is None else str(saved)
    return network, {"cached": False, "path": saved, "seconds": seconds}


def _reference_of(model: SignalModel, b_tolerance: float) -> list[int]:
    reference = reference_measurements(model, b_tolerance)
    if not reference:
        raise InputError(
            f"{type(model).__name__}: no parameter scales the whole signal, so the noise "
            "level relative to the signal is undefined; train a "
            "network with `labelwise train --sigma`"
        )
    return list(reference)
