"""Verification of networks: their errors beside those of maximum-likelihood fits, by noise level.

A network approximates: its errors do not vanish with the noise as those of a fit do. Above some
signal-to-noise ratio, which depends on the range that it was trained for, a fit is thus better.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import plain
from labelwise.models.base import SignalModel
from labelwise.networks.network import Network
from labelwise.noise import NoiseModel
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, Voxels, has_values

_LEVELS = 24  # noise levels at most
_STEP = 1.25  # noise levels closer than this factor are one
_FEWEST = 400  # voxels in a noise level
_PARTS = 20  # of the voxels of a level, for the uncertainty of a ratio
_RATIO = 1.25  # of the median errors of network and fit, above which the network is less precise
_CERTAIN = 2.0  # standard errors of a ratio
_MATTERS = 1.25  # a ratio of the RMSE of two alphas that is worth a sentence
_VOXELS = 8000  # simulated for a network without a record


def verify(network: Network, voxels: Voxels, fits: Estimate) -> list[dict[str, Any]]:
    """The errors of a single network beside those of fits, by noise level.

    Args:
        network: a single network, without a verification.
        voxels: simulated voxels that it was not trained on, with their truth.
        fits: the maximum-likelihood estimates of these voxels.

    Returns:
        For each level, from the lowest noise to the highest, `noise` (lowest and highest sigma over
        the reference), `ratio` (by parameter, median |network - truth| over median |fit - truth|),
        `error` (their standard errors), `passed` (no ratio is above 1.25 by more than two standard
        errors), and by parameter the `rmse` of the network in its unit and the `slope` of its
        estimates over the truth, which is below 1 where they are pulled to the middle of the prior.
    """
    assert voxels.params is not None
    values = network.without_errors()(voxels.signal, voxels.sigma).values
    reference = network.members[0].scaling.reference
    level = voxels.sigma / (voxels.signal[:, list(reference)].mean(axis=1) if reference else 1.0)
    good = has_values(fits.status) & np.isfinite(values).all(axis=1)
    level, truth = level[good], voxels.params[good]
    values = values[good]
    errors = [np.abs(values - truth), np.abs(fits.values[good] - truth)]
    if len(level) < _FEWEST:
        return []
    low, high = np.percentile(level, [1, 99])
    count = math.ceil(math.log(high / low) / math.log(_STEP)) if high > low else 1
    order = np.argsort(level, kind="stable")
    count = min(max(count, 1), _LEVELS, len(order) // _FEWEST)
    found = []
    for rows in np.array_split(order, count):
        ratio, error = _ratios(*(each[rows] for each in errors))
        rmse = np.sqrt(np.mean(np.square(errors[0][rows], dtype=float), axis=0))
        centred = truth[rows] - truth[rows].mean(axis=0, dtype=float)
        varying = np.sum(centred**2, axis=0)
        slope = np.sum(centred * values[rows], axis=0) / np.where(varying > 0, varying, np.nan)
        numbers = {"ratio": ratio, "error": error, "rmse": rmse, "slope": slope}
        found.append(
            {
                "noise": [float(level[rows[0]]), float(level[rows[-1]])],
                "passed": bool(np.all(ratio - _CERTAIN * error <= _RATIO)),
            }
            | {
                name: plain(dict(zip(network.names, each.astype(float), strict=True)))
                for name, each in numbers.items()
            }
        )
    return found


def advice_on_alpha(network: Network, level: float) -> str:
    """A sentence on the alpha of a blend at a noise level; empty where alpha hardly matters.

    The RMSE over the prior of both its networks decides, as in `tune`, from their verification.
    """
    records = [member.card.verification for member in network.members]
    if len(records) != 2 or not all(records):
        return ""
    at = [_at(record, level) for record in records if record]
    scale = network.members[0].scaling.scale
    names = [name for index, name in enumerate(network.names) if index != scale]
    ratios = {
        name: at[0]["rmse"][name] / at[1]["rmse"][name] for name in names if at[1]["rmse"][name]
    }
    slopes = {name: at[1]["slope"][name] for name in ratios if at[1]["slope"][name] is not None}
    if not slopes or max(ratios.values()) < _MATTERS:
        return ""
    shown = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    pulled = min(slopes, key=lambda name: slopes[name])
    return (
        f"alpha 1 was used: at the median SNR of the image, {1 / level:.2g}, its error (RMSE) in "
        f"single voxels, simulated over the range of the prior, relative to that of alpha 0 is "
        f"{shown}; --alpha 0 is recommended for maps of single voxels, but it pulls values to the "
        f"middle of the prior (a difference of 1 in {pulled} becomes {slopes[pulled]:.2g}), so "
        "keep alpha 1 for averages over regions, or choose with labelwise tune"
    )


def _at(verification: list[dict[str, Any]], level: float) -> dict[str, Any]:
    """The entry of a noise level."""
    ends = [entry["noise"][1] for entry in verification[:-1]]
    return verification[int(np.searchsorted(ends, level))]


def verified(network: Network, model: SignalModel, noise: NoiseModel) -> Network:
    """The network with a verification of each member; simulated where its card has none.

    Networks for one noise level are not verified.

    Args:
        network: a network or a blend, for a range of noise levels.
        model: the signal model with the acquisition of its training.
        noise: the noise model of its training.
    """
    if not network.conditioned or all(m.card.verification is not None for m in network.members):
        return network
    card = network.card
    ranges = {n: (low, high) for n, (low, high) in zip(network.names, card.ranges, strict=True)}
    sigma = (card.sigma[0], card.sigma[1]) if isinstance(card.sigma, list) else card.sigma
    voxels = simulate(model, noise, Uniform(ranges, model=model), sigma, _VOXELS, jax.random.key(1))
    fits = MaximumLikelihood(model, noise)(voxels.signal, voxels.sigma)
    ends = [with_verification(end, verify(end, voxels, fits)) for end in network.ends]
    return replace(network, members=tuple(end.members[0] for end in ends))


def with_verification(network: Network, verification: list[dict[str, Any]]) -> Network:
    """A single network with a verification in its card."""
    (member,) = network.members
    card = replace(member.card, verification=verification)
    return replace(network, members=(replace(member, card=card),))


def _ratios(
    ours: Float[np.ndarray, "n P"], theirs: Float[np.ndarray, "n P"]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """The ratio of median errors of each parameter, and its standard error from parts."""
    tiny = np.finfo(np.float32).tiny

    def ratio(rows) -> Float[np.ndarray, " P"]:
        return np.median(ours[rows], axis=0) / np.maximum(np.median(theirs[rows], axis=0), tiny)

    parts = np.stack([ratio(slice(part, None, _PARTS)) for part in range(_PARTS)])
    return ratio(slice(None)), parts.std(axis=0, ddof=1) / math.sqrt(_PARTS)
