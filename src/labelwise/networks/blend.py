"""The blend that `labelwise map` trains for the noise levels of an image, and where it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.fitting.many import UNROLLED
from labelwise.io.files import canonical
from labelwise.models.base import SignalModel, settings_of
from labelwise.networks.cache import code_of
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.network import Member, Network, load
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.reference import B_TOLERANCE, reference_measurements, typical_signals
from labelwise.networks.train import is_trained_by, joined, train_networks
from labelwise.noise import NoiseModel
from labelwise.priors import Prior, Uniform
from labelwise.types import InputError, Progress

_LEVEL_STEP = 1.25  # rounding factor of noise levels: similar scans share a network
LEVEL_LIMITS = (1 / 100, 1 / 1.5)
"""The lowest and highest sigma / reference of trainings: a fit is better above an SNR of 100."""


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
    low, high = np.percentile(ratio[good] / mean[good], [2, 98])
    return rounded(float(low), float(high))


def rounded(low: float, high: float) -> tuple[float, float]:
    """Noise levels clipped to `LEVEL_LIMITS`, then rounded outwards to two powers of 1.25.

    Example:
        >>> [round(1 / level, 2) for level in rounded(1 / 60, 1 / 5)]
        [69.39, 4.77]
    """
    low, high = np.clip([low, high], *LEVEL_LIMITS)
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
        intervals: whether to train networks of intervals, too; never for more than 8 parameters.

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
        intervals=intervals and len(model.parameters) <= UNROLLED,
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
    similar: bool = False,
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
        similar: use a cached network that would be this one but for the order of the measurements,
            a wider range of noise levels, and b-values within the tolerance: that of the narrowest
            range. It depends on what is in the cache, so results do, too.
        progress: called during the training.

    Returns:
        The blend at alpha = 1, and a record: `cached`, `path` and `seconds` of each stage.
    """
    plan = blend_plan(
        model, noise, levels, prior, seed=seed, b_tolerance=b_tolerance, intervals=intervals
    )
    path, kin = None, ""
    if cache is not None:
        kin = _kin(plan)
        path = cache / f"blend-{kin}-{plan.fingerprint}.safetensors"
    begin = time.perf_counter()
    if path is not None:
        with contextlib.suppress(InputError, OSError):  # missing, damaged, a folder: train again
            found = load(path, noise=noise)
            if is_trained_by(found, plan):
                seconds = {"load": time.perf_counter() - begin}
                return found, {"cached": True, "path": str(path), "seconds": seconds}
    if path is not None and similar:
        others = sorted(path.parent.glob(f"blend-{kin}-*.safetensors"))
        fitting = [(each, other) for each in others if (other := _usable(each, plan)) is not None]
        if fitting:
            chosen, found = min(fitting, key=lambda pair: _width(pair[1]))
            seconds = {"load": time.perf_counter() - begin}
            return found, {"cached": True, "path": str(chosen), "seconds": seconds}
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


def _kin(plan: TrainingPlan) -> str:
    """A hash of a plan of `blend_plan`, apart from acquisition, noise levels and intervals."""
    record = plan.describe()
    ours = ("noise", "prior", "recipe", "seed", "normalise", "on_bound", "b_tolerance")
    kept = {name: record[name] for name in ours}
    kept |= {name: record["model"][name] for name in ("class", "constants", "source")}
    kept |= {"code": code_of("labelwise.networks.train", "labelwise.models")}
    return hashlib.sha256(canonical(kept, "plan").encode()).hexdigest()[:16]


def _usable(path: Path, plan: TrainingPlan) -> Network | None:
    """A cached network for the measurements of a plan, in its order; None if it does not fit."""
    try:
        found = load(path, noise=plan.noise)
    except (InputError, OSError):
        return None
    theirs, ours = found.card.acquisition, settings_of(plan.model)
    order = matched(theirs, ours, plan.b_tolerance)
    if order is None or not isinstance(found.card.sigma, list):
        return None
    (low, high), (least, most) = np.array(plan.sigma), found.card.sigma
    covered = least <= low * (1 + 1e-9) and high * (1 - 1e-9) <= most
    whole = all(member.interval is not None for member in found.members)
    if not covered or (plan.intervals and not whole):
        return None
    model = replace(plan.model, **theirs)
    trained_by = blend_plan(model, plan.noise, LEVEL_LIMITS, plan.prior, seed=plan.seed)
    same = replace(
        trained_by, sigma=(least, most), recipe=plan.recipe, b_tolerance=plan.b_tolerance
    )
    if not is_trained_by(found, same):
        return None
    return replace(reordered(found, order), intervals=plan.intervals)


def _width(network: Network) -> float:
    low, high = network.card.noise_range
    return high / low


def matched(
    theirs: Mapping[str, Float[np.ndarray, " M"]],
    ours: Mapping[str, Float[np.ndarray, " M"]],
    b_tolerance: float,
) -> list[int] | None:
    """Which of our measurements is each of theirs; None if they are not the same.

    Args:
        theirs: settings by name, in the units of the model.
        ours: the same of the other acquisition.
        b_tolerance: in ms/µm²; b-values this close are equal.

    Example:
        >>> matched({"b": np.array([0, 0.8, 0])}, {"b": np.array([0.8, 0, 0])}, 0.001)
        [1, 0, 2]
    """
    if set(theirs) != set(ours) or {len(x) for x in theirs.values()} != {
        len(x) for x in ours.values()
    }:
        return None
    size = len(next(iter(ours.values())))
    equal = np.ones((size, size), bool)
    for name, values in theirs.items():
        apart = np.abs(values[:, None] - ours[name])
        slack = b_tolerance * (1 + 1e-9) + 1e-12 if name == "b" else 0.0
        equal &= (apart <= slack) | np.isclose(values[:, None], ours[name], rtol=1e-4, atol=1e-6)
    order: list[int] = []
    for row in equal:
        left = [index for index in np.flatnonzero(row).tolist() if index not in order]
        if not left:
            return None
        order.append(left[0])
    return order


def reordered(network: Network, order: Sequence[int]) -> Network:
    """The same network for measurements in another order.

    Args:
        network: the network.
        order: where each of its measurements is among the new ones.
    """
    if list(order) == sorted(order):
        return network
    source = np.argsort(order)

    def moved(rows):
        return np.asarray(rows)[..., source].tolist()

    def member_for(member: Member) -> Member:
        scaling, card = member.scaling, member.card
        groups = tuple(tuple(sorted(order[i] for i in group)) for group in scaling.groups)
        reference = tuple(sorted(order[i] for i in scaling.reference))
        model = {
            **card.model,
            "acquisition": {name: moved(rows) for name, rows in card.model["acquisition"].items()},
            "signals": moved(card.model["signals"]),
        }
        return replace(
            member,
            scaling=replace(scaling, groups=groups, reference=reference),
            card=replace(card, model=model),
        )

    return replace(network, members=tuple(member_for(each) for each in network.members))


def _reference_of(model: SignalModel, b_tolerance: float) -> list[int]:
    reference = reference_measurements(model, b_tolerance)
    if not reference:
        raise InputError(
            f"{type(model).__name__}: no parameter scales the whole signal, so the noise "
            "level relative to the signal is undefined; train a "
            "network with `labelwise train --sigma`"
        )
    return list(reference)
