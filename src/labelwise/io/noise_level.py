"""Estimate the noise level of a series from repeats or from the background.

The two methods measure different things and may disagree by a factor of 2 or 3 on a real scan:
motion between repeats raises the first; filtering and coil combination lower the second.
`sigma` is the standard deviation of one channel, in the signal's unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2

from labelwise.io.acquisition import group_equal, zero_b
from labelwise.types import InputError

_FEWEST = 20  # voxels, for a robust estimate
_SIGNAL = 3.0  # sigma: a mean above this is clear of the Rician noise floor
_BACKGROUND = 3.0  # sigma: 1.1 % of pure noise lies above, and most signal


@dataclass(frozen=True)
class NoiseLevel:
    """An estimate of sigma and where it comes from.

    Args:
        sigma: standard deviation of one channel, in the signal's unit.
        method: `"repeats"` or `"background"`.
        voxels: number of voxels (`repeats`) or samples (`background`) used.
        note: how it was estimated, and its limitations.
    """

    sigma: float
    method: str
    voxels: int
    note: str


def repeated_volumes(
    settings: Mapping[str, Float[np.ndarray, " M"]], tolerance: float
) -> Int[np.ndarray, " r"]:
    """The volumes of one measurement that the noise level is estimated from.

    Those at b = 0; without b, those of the settings that occur most often (of several such, the
    first in ascending order: the shortest echo time).

    Args:
        settings: by name, (M,) each; b in ms/µm².
        tolerance: the widest spread of b within one group, and the largest b that still counts as
            0, in ms/µm².

    Raises:
        InputError: if there are fewer than 2.

    Example:
        >>> repeated_volumes({"b": np.array([0, 0.8, 0, 0.8, 0.8])}, tolerance=0.0)
        array([0, 2])
    """
    groups, where = group_equal(settings, tolerance), "with equal settings"
    if "b" in settings:
        groups = [group for group in groups if zero_b(settings["b"][group], tolerance).all()]
        where = f"at b = 0 (up to {1000 * tolerance:g} s/mm²)"
    volumes = max(groups, key=len, default=np.empty(0, int))
    if len(volumes) < 2:
        raise InputError(
            f"sigma from repeats: expected at least 2 volumes {where}, got {len(volumes)}; give "
            "sigma as a number or a map, or estimate it from the background"
        )
    return volumes


def over_repeats(
    blocks: Iterable[Float[np.ndarray, "n r"]],
) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " V"]]:
    """Sample variance and mean of each voxel over r repeats, from blocks of voxels."""
    variance, mean = [], []
    with np.errstate(invalid="ignore", over="ignore"):  # from_repeats leaves bad voxels out
        for signal in blocks:
            variance.append(signal.var(axis=1, ddof=1, dtype=float))
            mean.append(signal.mean(axis=1, dtype=float))
    return np.concatenate(variance), np.concatenate(mean)


def from_repeats(
    variance: Float[np.ndarray, " V"], mean: Float[np.ndarray, " V"], repeats: int
) -> NoiseLevel:
    """Sigma from repeated volumes: the median over voxels of their variance between repeats.

    The median of the sample variances, divided by that of chi²(r - 1) / (r - 1), is sigma²
    where the noise is Gaussian. Near the noise floor a Rician variance is smaller, so only
    voxels with mean > 3 sigma are used (found by iteration), each corrected to first order:
    variance = sigma² (1 - sigma² / (2 mean²)).

    Motion, pulsation and drift between the repeats raise it.

    Args:
        variance: (V,) sample variance (ddof = 1) of each voxel over the repeats.
        mean: (V,) their mean.
        repeats: r, at least 2; repeats of one measurement, such as all volumes at b = 0.

    Raises:
        InputError: with fewer than 2 repeats, or fewer than 20 voxels with signal above the noise.

    Source: Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618, for the Rician moments.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> volumes = rng.normal(100.0, 5.0, (6, 20_000))
        >>> round(from_repeats(volumes.var(0, ddof=1), volumes.mean(0), 6).sigma, 1)
        5.0
    """
    if repeats < 2:
        raise InputError(
            f"sigma from repeats: expected at least 2 volumes of the same measurement (b = 0), "
            f"got {repeats}; give sigma as a number or a map, or estimate it from the background"
        )
    variance, mean = np.asarray(variance, dtype=float), np.asarray(mean, dtype=float)
    usable = np.isfinite(variance) & np.isfinite(mean) & (mean > 0)
    variance, mean = variance[usable], mean[usable]
    median = chi2.median(repeats - 1) / (repeats - 1)
    sigma = np.sqrt(np.median(variance) / median) if variance.size else 0.0
    clear = mean > 0
    for _ in range(20):
        clear = mean > _SIGNAL * sigma
        if clear.sum() < _FEWEST or sigma == 0:
            break
        shrink = 1 - 0.5 * (sigma / mean[clear]) ** 2
        before, sigma = sigma, np.sqrt(np.median(variance[clear] / shrink) / median)
        if sigma == before:
            break
    if clear.sum() < _FEWEST or sigma == 0:
        raise InputError(
            f"sigma from repeats: expected at least {_FEWEST} voxels with varying signal above "
            f"{_SIGNAL:g} sigma, got {int(clear.sum()) if sigma else 0} of {usable.size}; give "
            "sigma as a number or a map"
        )
    return NoiseLevel(
        float(sigma),
        "repeats",
        int(clear.sum()),
        f"median over {int(clear.sum())} of {usable.size} voxels (mean above {_SIGNAL:g} sigma) of "
        f"the variance between {repeats} repeats; motion between them raises it",
    )


def from_background(samples: Float[np.ndarray, " K"]) -> NoiseLevel:
    """Sigma from magnitudes without signal: a Rayleigh fit with iterative removal of outliers.

    Squares of Rayleigh samples are exponential with mean 2 sigma². Exact zeros are left out
    (scanners blank the background). The fit starts from the lowest tenth, then drops all above
    3 sigma (tissue, ghosts) and takes the second moment, corrected for both cuts, until it
    converges.

    Several coils combined by sum of squares raise it, parallel imaging varies it over the image,
    and the scanner's filtering lowers it.

    Args:
        samples: (K,) magnitudes outside the object, of all volumes.

    Raises:
        InputError: if fewer than 20 are positive and finite (a blanked background).

    Source: Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> round(from_background(rng.rayleigh(2.0, 20_000)).sigma, 1)
        2.0
    """
    samples = np.asarray(samples, dtype=float).ravel()
    positive = samples[np.isfinite(samples) & (samples > 0)]
    distinct = np.unique(positive)
    if positive.size < _FEWEST or distinct.size < 2:
        raise InputError(
            f"sigma from the background: expected at least {_FEWEST} varying non-zero samples "
            f"outside the mask, got {positive.size} of {samples.size} non-zero, {distinct.size} "
            "distinct (the scanner may have blanked them); "
            "give sigma as a number or a map, or estimate it from repeats"
        )
    # Stored integers cover half a step on either side; continuous data have next to no step.
    step = np.diff(distinct).min()
    floor = max(distinct[0] - step / 2, 0.0)
    energy = positive**2 - floor**2  # exponential too: mean 2 sigma²
    sigma2 = np.quantile(energy, 0.1) / (-2 * np.log1p(-0.1))
    inliers = energy
    for _ in range(100):
        before = sigma2
        steps = max(np.floor((_BACKGROUND * np.sqrt(sigma2) - floor) / step), 1.0)
        ceiling = (floor + steps * step) ** 2 - floor**2
        inliers = energy[energy < ceiling]
        # E[y | y < c] = 2 sigma² - c / (exp(c / (2 sigma²)) - 1) for y exponential
        sigma2 = 0.5 * (inliers.mean() + ceiling / np.expm1(ceiling / (2 * sigma2)))
        if abs(sigma2 - before) <= 1e-6 * before:
            break
    return NoiseLevel(
        float(np.sqrt(sigma2)),
        "background",
        int(inliers.size),
        f"Rayleigh fit to {inliers.size} of {samples.size} samples outside the mask (non-zero, "
        f"below {_BACKGROUND:g} sigma); filtering and parallel imaging on the scanner lower it",
    )
