"""The noise level of a series: a number, a map, or estimated from the series itself.

Noise is two things on a real scan. Its floor, sigma, biases magnitudes and belongs in the
likelihood. Repeats of one measurement scatter by more, since tissue moves: that scatter belongs
in the standard errors, and would bias low signals if it were taken for the floor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import MaximumLikelihood
from labelwise.io.nifti import Series, read_map
from labelwise.io.noise_level import (
    NoiseLevel,
    from_background,
    from_repeats,
    from_variances,
    repeated_volumes,
)
from labelwise.mapping.request import METHODS, Request
from labelwise.models.base import measurements
from labelwise.models.evaluate import signals
from labelwise.noise import Gaussian, NoiseModel, evaluate
from labelwise.types import InputError

Level = float | Float[np.ndarray, " V"]
Found = dict[str, tuple[NoiseLevel, Level]]
"""By method, the estimate as a number and where it comes from; what it gives for each voxel."""

_SAMPLES = 2_000_000  # of a series, for one estimate
_VOXELS = 200_000  # at most
_FITTED = 1_000  # voxels whose residuals are used
_SIGNAL = 0.1  # of the 99th percentile of the mean signal: tissue, where there is no mask
_VOLUMES = 15  # fewer do not separate noise from signal by principal components
_PATCHES = 250  # at most
_PATCH_SAMPLES = 10_000_000  # of all patches together
_UNEVEN = 3.0  # a ratio of sigmas within an image that makes no sense
_SCATTER = 1.5  # times the noise floor: parallel imaging raises noise in the middle by less
_CHEAP = ("repeats", "background")  # compared with a sigma that is given, too


@dataclass(frozen=True)
class Noise:
    """The noise of a series.

    Args:
        sigma: the noise floor, a number or one for each voxel.
        level: the same as a number, and where it comes from.
        others: what other methods give.
        refused: by method, why it gives nothing.
        notes: what was decided, where that matters.
        mended: notes on the geometry of the map of sigma.
    """

    sigma: Level
    level: NoiseLevel
    others: list[NoiseLevel] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mended: Sequence[str] = ()


def noise_level(request: Request, series: Series, inside: Bool[np.ndarray, " V"]) -> Noise:
    """The noise of a series by the requested method.

    Args:
        request: with the source of sigma.
        series: the open series.
        inside: the voxels inside the mask.

    Raises:
        InputError: if the map does not fit the series or is positive nowhere, or the series does
            not allow the requested method.
    """
    wanted = request.sigma
    if not isinstance(wanted, str):
        given, sigma, mended = _given(wanted, request, series, inside)
        found, _ = _estimates(_CHEAP, request, series, inside)
        return Noise(sigma, given, [level for level, _ in found.values()], mended=mended)
    found, refused = _estimates(
        METHODS if wanted == "auto" else dict.fromkeys((wanted, *_CHEAP)), request, series, inside
    )
    if wanted in refused:
        raise refused[wanted]
    reasons = {name: _reason(error) for name, error in refused.items()}
    if not found:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InputError(f"sigma: give a number or a map; no method can estimate it: {listed}")
    if wanted in ("auto", "repeats") and "repeats" in found and request.noise.magnitude:
        found = _compared(found, request, series, inside)
    doubtful = [name for name, (level, _) in found.items() if level.doubt]
    taken = wanted
    if wanted == "auto" or (wanted in doubtful and request.noise.magnitude):
        sure = [name for name in METHODS[:-1] if name in found and name not in doubtful]
        taken = sure[0] if sure else min(found, key=lambda name: found[name][0].sigma)
    level, sigma = found[taken]
    notes = []
    if doubtful and wanted in ("auto", "repeats"):
        repeats = found["repeats"][0]
        if taken in ("mppca", "background") and repeats.sigma > level.sigma:
            level = replace(level, scatter=repeats.sigma)
        notes = [_two_things(level, repeats, request)]
    return Noise(
        sigma,
        level,
        [other for name, (other, _) in found.items() if name != taken],
        reasons if wanted == "auto" else {},
        notes,
    )


def _compared(found: Found, request: Request, series: Series, inside) -> Found:
    """Estimates with a doubt on repeats that scatter by far more than the noise floor."""
    level, sigma = found["repeats"]
    suspect = "background" in found and level.sigma > _SCATTER * found["background"][0].sigma
    if (level.doubt or suspect) and "mppca" not in found:
        found = found | _estimates(("mppca",), request, series, inside)[0]
    floor = next((found[name][0] for name in ("mppca", "background") if name in found), None)
    if not level.doubt and floor is not None and level.sigma > _SCATTER * floor.sigma:
        doubt = (
            f"they scatter by {level.sigma:.3g}, {level.sigma / floor.sigma:.2g} times the noise "
            f"floor ({floor.method})"
        )
        found = found | {"repeats": (replace(level, doubt=doubt), sigma)}
    return found


def _reason(error: InputError) -> str:
    """What is wrong in a message, without what it is about and the remedy."""
    return str(error).partition(": ")[2].partition("; ")[0]


def _two_things(level: NoiseLevel, repeats: NoiseLevel, request: Request) -> str:
    """What was decided where repeats differ by more than noise, and its consequence."""
    why = f"sigma: the repeats differ by more than noise: {repeats.doubt}"
    if level.scatter is not None:
        return (
            f"{why}; {level.sigma:.3g} ({level.method}) was used as the noise floor, and their "
            f"scatter of {repeats.sigma:.3g} multiplies the standard errors by "
            f"{repeats.sigma / level.sigma:.2g}"
        )
    if level.method != "repeats":
        return f"{why}; {level.sigma:.3g} ({level.method}) was used instead of {repeats.sigma:.3g}"
    if not request.noise.magnitude:
        return (
            f"{why}; the standard errors contain their scatter of {repeats.sigma:.3g}, and "
            "--sigma auto looks for the noise alone"
        )
    return (
        f"{why}; no other method gave the noise floor, so that their scatter of "
        f"{repeats.sigma:.3g} was used: where the signal is not far above it, estimates are biased "
        "(a diffusivity is too high); give the noise floor as a number, or try --sigma auto"
    )


def _given(
    source: float | Path, request: Request, series: Series, inside: Bool[np.ndarray, " V"]
) -> tuple[NoiseLevel, Level, Sequence[str]]:
    if not isinstance(source, Path):
        return NoiseLevel(source, "given", 0, "a number given by the user"), source, ()
    whole = series.volumes + len(request.excluded)
    sigma, mended = read_map(source, series, whole)
    if sigma.ndim == 2 and sigma.shape[1] > series.volumes:
        sigma = sigma[:, request.volumes]
    usable = sigma[inside]
    usable = usable[np.isfinite(usable) & (usable > 0)]
    if not usable.size:
        raise InputError(f"{source}: sigma is positive nowhere inside the mask")
    note = f"median inside the mask of the map {source.name}"
    return NoiseLevel(float(np.median(usable)), "map", usable.size, note), sigma, mended


def _estimates(
    methods: Iterable[str], request: Request, series: Series, inside: Bool[np.ndarray, " V"]
) -> tuple[Found, dict[str, InputError]]:
    """The estimates by some methods, and why others are not possible."""
    estimators = {
        "repeats": _by_repeats,
        "mppca": _by_mppca,
        "background": _by_background,
        "residuals": _by_residuals,
    }
    found, refused = {}, {}
    for name in methods:
        try:
            found[name] = estimators[name](request, series, inside)
        except InputError as error:
            refused[name] = error
    return found, refused


def _by_repeats(request: Request, series: Series, inside) -> tuple[NoiseLevel, Level]:
    volumes = repeated_volumes(request.acquisition, request.b_tolerance)
    _, signal = _sample(series, inside, volumes)
    level = from_repeats(_known(signal), request.noise)
    return level, level.sigma


def _by_background(request: Request, series: Series, inside) -> tuple[NoiseLevel, Level]:
    """From voxels outside the mask; without a mask, from all, among which air is found."""
    outside = ~inside if request.mask is not None else np.ones_like(inside)
    _, signal = _sample(series, outside, np.arange(series.volumes))
    level = from_background(_known(signal), request.noise)
    return level, level.sigma


def _by_residuals(request: Request, series: Series, inside) -> tuple[NoiseLevel, Level]:
    """From the residuals of least-squares fits of the model to some bright voxels."""
    model, count = request.model, measurements(request.model)
    if count <= len(model.parameters):
        raise InputError(
            f"sigma from residuals: {count} measurements leave no residuals after a fit of "
            f"{len(model.parameters)} parameters; give sigma as a number or a map"
        )
    _, signal = _sample(series, inside, np.arange(series.volumes))
    signal = signal[np.isfinite(signal).all(axis=1)].astype(float)
    signal = signal[_bright(signal.mean(axis=1))]
    signal = signal[:: math.ceil(max(len(signal), 1) / _FITTED)]
    peak = np.abs(signal).max(axis=1, initial=0, keepdims=True)
    fitter = MaximumLikelihood(model, Gaussian(), threads=request.threads)
    estimate = fitter(signal, 0.02 * peak)  # least squares, whatever sigma is
    fitted = np.isfinite(estimate.values).all(axis=1)
    expected = signals(model, estimate.values[fitted].astype(float))
    free = (estimate.stats["on_bound"][fitted] == 0).sum(axis=1)
    freedom = count - free
    variance = ((signal[fitted] - expected) ** 2).sum(axis=1) / freedom
    sigma, clear = from_variances(variance, freedom, expected, request.noise, "residuals")
    note = (
        f"median over {clear.sum()} voxels of the squared residuals of least-squares fits over "
        "their degrees of freedom; whatever the model does not describe raises it"
    )
    return NoiseLevel(sigma, "residuals", int(clear.sum()), note), sigma


def _by_mppca(request: Request, series: Series, inside) -> tuple[NoiseLevel, Level]:
    """A map from the noise components of patches of bright voxels inside the mask, by dipy.

    A patch is the voxels nearest to its centre; each voxel gets the mean of the four nearest.
    The variance of a magnitude is corrected for the noise floor, as in `from_variances`.

    Source: Veraart, Fieremans & Novikov 2016, doi:10.1002/mrm.26059.
    """
    if series.volumes < _VOLUMES:
        raise InputError(
            f"sigma by mppca: expected at least {_VOLUMES} volumes, got {series.volumes}; give "
            "sigma as a number or a map, or estimate it by another method"
        )
    try:
        from dipy.denoise.localpca import mppca
    except ImportError as error:
        raise InputError(
            "sigma by mppca: needs dipy, which pip install 'labelwise[mppca]' adds"
        ) from error
    from scipy.spatial import KDTree

    size = 2 * series.volumes + 1  # an odd number; with fewer, the components do not separate
    every = np.flatnonzero(inside)
    with np.errstate(invalid="ignore", over="ignore"):
        means = [block.mean(axis=1, dtype=float) for _, block in series.blocks(inside)]
    voxels = every[_bright(np.concatenate(means))]
    if len(voxels) < size:
        raise InputError(
            f"sigma by mppca: expected at least {size} voxels with signal inside the mask, twice "
            f"the volumes, got {len(voxels)}; give sigma as a number or a map"
        )
    zooms = [float(zoom) or 1.0 for zoom in series.header.get_zooms()[:3]]
    places, targets = (
        np.stack(np.unravel_index(index, series.shape, order="F"), axis=1) * zooms
        for index in (voxels, every)
    )
    most = max(min(_PATCHES, _PATCH_SAMPLES // (size * series.volumes)), 1)
    centres = places[:: math.ceil(len(voxels) / most)]
    _, rows = KDTree(places).query(centres, size)
    used, rows = np.unique(rows, return_inverse=True)
    read = np.zeros_like(inside)
    read[voxels[used]] = True
    signal = np.concatenate([block for _, block in series.blocks(read)])
    middle = np.arange(size) == size // 2
    found, mean = [], []
    for patch in rows.reshape(len(centres), size):
        samples = signal[patch]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # outside its only patch, dipy divides by 0
            sigma = mppca(
                samples[:, None, None],
                mask=middle[:, None, None],
                patch_radius=size // 2,  # along the only axis longer than 1
                return_sigma=True,
            )[1]
        found.append(np.asarray(sigma)[size // 2, 0, 0])
        mean.append(samples.mean(axis=0, dtype=float))
    sigma = _without_floor(np.array(found, float), np.array(mean), request.noise)
    good = np.isfinite(sigma) & (sigma > 0)
    if not good.any() or np.divide(*np.quantile(sigma[good], [0.9, 0.1])) > _UNEVEN:
        raise InputError(
            "sigma by mppca: its estimates differ by more than a factor of "
            f"{_UNEVEN:g} between places, or there are none: the noise does not separate from the "
            "signal; give sigma as a number or a map, or estimate it by another method"
        )
    _, nearest = KDTree(centres[good]).query(targets, min(4, int(good.sum())))
    map_ = np.full(series.voxels, np.nan)
    map_[every] = sigma[good][nearest].reshape(len(every), -1).mean(axis=1)
    note = (
        f"median of a map by principal components of {int(good.sum())} patches of {size} voxels "
        "(MP-PCA, dipy)"
    )
    return NoiseLevel(float(np.median(map_[every])), "mppca", len(voxels), note), map_


def _bright(mean: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Voxels with signal: where there is no mask, most of an image is air."""
    finite = mean[np.isfinite(mean)]
    return mean > (_SIGNAL * np.quantile(finite, 0.99) if finite.size else np.inf)


def _without_floor(sigma, mean: Float[np.ndarray, "n M"], noise: NoiseModel):
    """Sigma of the standard deviations of measurements that have some mean."""
    measured, sigma = sigma[:, None], sigma[:, None]
    with np.errstate(all="ignore"):
        for _ in range(10):
            variance = evaluate(noise.variance_near, mean, sigma)
            sigma = measured / np.sqrt(variance.mean(axis=1, keepdims=True) / sigma**2)
    return sigma[:, 0]


def _known(signal: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n L"]:
    """The volumes that are not excluded everywhere."""
    return signal[:, np.isfinite(signal).any(axis=0)] if len(signal) else signal


def _sample(
    series: Series, where: Bool[np.ndarray, " V"], volumes: Int[np.ndarray, " K"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n K"]]:
    """Some volumes of voxels, evenly subsampled: flat indices and signal."""
    index = np.flatnonzero(where)
    most = min(_VOXELS, max(_SAMPLES // max(len(volumes), 1), 1))
    sampled = np.zeros_like(where)
    sampled[index[:: math.ceil(max(len(index), 1) / most)]] = True
    empty = np.empty((0, len(volumes)), np.float32)
    blocks = list(series.blocks(sampled, volumes=volumes))
    index = np.concatenate([np.empty(0, int), *(rows for rows, _ in blocks)])
    return index, np.concatenate([empty, *(signal for _, signal in blocks)])
