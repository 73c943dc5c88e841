"""Estimate the noise level of a series: from repeats, residuals or the background.

The methods measure different things and may disagree by a factor of 2 or 3 on a real scan: motion
between repeats raises their scatter; filtering and coil combination lower the background. Each
tests its data first: whether repeats differ by noise only, and whether background samples have the
distribution of noise without signal. The noise model provides both distributions.

`sigma` is the standard deviation of one channel, in the signal's unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import gammaincinv

from labelwise.io.acquisition import group_equal, zero_b
from labelwise.noise import NoiseModel, chi2_quantile, evaluate
from labelwise.types import InputError

_FEWEST = 20  # voxels, for a robust estimate
_SIGNAL = 3.0  # sigma: a signal above this is clear of the noise floor
_ABOVE = 1.7  # sigma: above the mean of noise without signal
_OFFSET = 0.3  # sigma: a volume that differs by more from the other repeats is none
_UNEVEN = 2.0  # a ratio of variances that noise does not explain
_DISTANCE = 0.05  # between distribution functions: interpolated noise has 0.1, tissue 0.2
_SAMPLES = 500  # of the background: for fewer, that distance means nothing
_COARSE = 0.1  # of the median: a step of integers that rounds many samples to 0
_COARSEST = 1.2  # sigma: coarser steps do not determine it
_DRIFT = 0.15  # relative standard deviation of the mean square between volumes
_CORRELATED = 0.12  # between volumes: 0.04 in air of real scans, 0.15 and more in tissue
_WIDTH = 25.0  # squares in a voxel's mean square, at most: sigma varies over an image, too


@dataclass(frozen=True)
class NoiseLevel:
    """An estimate of sigma and where it comes from.

    Args:
        sigma: standard deviation of one channel, in the signal's unit; the median of a map.
        method: `"repeats"`, `"mppca"`, `"background"`, `"residuals"`, `"map"` or `"given"`.
        voxels: number of voxels used.
        note: how it was estimated, and its limitations.
        doubt: why it is more than noise, if it failed its test; else empty.
        scatter: standard deviation between repeats, where it exceeds `sigma`, the noise floor, and
            determines the standard errors; else None.
    """

    sigma: float
    method: str
    voxels: int
    note: str
    doubt: str = ""
    scatter: float | None = None


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
            "sigma as a number or a map, or estimate it by another method (--sigma auto)"
        )
    return volumes


def from_repeats(signal: Float[np.ndarray, "N r"], noise: NoiseModel) -> NoiseLevel:
    """Sigma from repeated volumes: the median over voxels of their variance between repeats.

    See `from_variances`. The repeats fail the test (`NoiseLevel.doubt`) where they do not differ
    by noise alone: the median over voxels differs from one repeat to another by more than 0.3
    sigma (a b-value that is not 0, drift), the variance grows with the signal, or it is far more
    uneven over voxels than that of noise (motion, pulsation).

    Args:
        signal: (N, r) the repeats of one measurement, such as all volumes at b = 0.
        noise: the noise model.

    Raises:
        InputError: with fewer than 2 repeats, or fewer than 20 voxels with signal above the noise.

    Example:
        >>> from labelwise.noise import Gaussian
        >>> volumes = np.random.default_rng(0).normal(100.0, 5.0, (20_000, 6))
        >>> round(from_repeats(volumes, Gaussian()).sigma, 1)
        5.0
    """
    repeats = signal.shape[1]
    if repeats < 2:
        raise InputError(
            f"sigma from repeats: expected at least 2 volumes of the same measurement (b = 0), "
            f"got {repeats}; give sigma as a number or a map, or estimate it from the background"
        )
    with np.errstate(invalid="ignore", over="ignore"):  # invalid voxels are left out
        variance, mean = signal.var(axis=1, ddof=1, dtype=float), signal.mean(axis=1, dtype=float)
    sigma, clear = from_variances(variance, repeats - 1, mean[:, None], noise, "repeats")
    difference = signal[clear] - mean[clear, None]
    return NoiseLevel(
        sigma,
        "repeats",
        int(clear.sum()),
        f"median over {clear.sum()} of {clear.size} voxels (mean above {_SIGNAL:g} sigma) of the "
        f"variance between {repeats} repeats; motion between them raises it",
        _more_than_noise(difference, variance[clear], mean[clear], sigma),
    )


def from_variances(
    variance: Float[np.ndarray, " N"],
    freedom: int | Int[np.ndarray, " N"],
    signal: Float[np.ndarray, "N K"],
    noise: NoiseModel,
    method: str,
) -> tuple[float, Bool[np.ndarray, " N"]]:
    """Sigma from variances of voxels that scatter by noise, and the voxels used.

    The median of the variances, each divided by that of chi²(freedom) / freedom, is sigma² where
    the noise is Gaussian. Near the noise floor the variance of a magnitude is smaller, so only
    voxels whose mean is above 3 sigma are used (found by iteration), and each variance is
    divided by what the noise model expects for sigma = 1.

    Args:
        variance: (N,) unbiased estimates of the variance of each voxel.
        freedom: their degrees of freedom, (N,) or the same for all.
        signal: (N, K) the expected measurements that they scatter about.
        noise: the noise model.
        method: the method's name, for messages.

    Raises:
        InputError: if there are fewer than 20 voxels with signal above the noise.
    """
    variance, signal = np.asarray(variance, float), np.asarray(signal, float)
    freedom = np.broadcast_to(freedom, len(variance))
    mean = signal.mean(axis=1)
    usable = np.isfinite(variance) & np.isfinite(mean) & (mean > 0) & (freedom > 0)
    levels, inverse = np.unique(freedom, return_inverse=True)
    median = chi2_quantile(0.5, np.maximum(levels, 1)) / np.maximum(levels, 1)
    scaled = variance / median[inverse]
    sigma = float(np.sqrt(np.median(scaled[usable]))) if usable.any() else 0.0
    clear = usable & (sigma > 0)
    for _ in range(20 if clear.any() else 0):
        floor = float(evaluate(noise.mean, 0.0, sigma)) + _ABOVE * sigma  # higher for several coils
        clear = usable & (mean > max(_SIGNAL * sigma, floor))
        if clear.sum() < _FEWEST:
            break
        share = evaluate(noise.variance_near, signal[clear], sigma).mean(axis=1) / sigma**2
        before, sigma = sigma, float(np.sqrt(np.median(scaled[clear] / share)))
        if abs(sigma - before) <= 1e-9 * before:
            break
    if clear.sum() < _FEWEST or not sigma > 0:
        raise InputError(
            f"sigma from {method}: expected at least {_FEWEST} voxels with varying signal above "
            f"{_SIGNAL:g} sigma, got {int(clear.sum())} of {usable.size}; give sigma as a number "
            "or a map"
        )
    return sigma, clear


def _more_than_noise(
    difference: Float[np.ndarray, "N r"],
    variance: Float[np.ndarray, " N"],
    mean: Float[np.ndarray, " N"],
    sigma: float,
) -> str:
    """Why repeats do not differ by noise alone; empty if they may."""
    voxels, repeats = difference.shape
    offset = float(np.abs(np.median(difference, axis=0)).max() / sigma)
    if offset > _OFFSET + 2.5 / np.sqrt(voxels):
        return (
            f"the median of a repeat differs from the others by {offset:.2g} sigma (is b = 0 in "
            "all of them? drift?)"
        )
    allowed = _UNEVEN * np.exp(4.8 * np.sqrt(6 / (repeats - 1) / voxels))  # of medians: 3 errors
    low, high = np.quantile(mean, [1 / 3, 2 / 3])
    growth = float(np.median(variance[mean >= high]) / np.median(variance[mean <= low]))
    if growth > allowed:
        return f"their variance grows {growth:.2g}-fold with the signal (motion, pulsation)"
    expected = chi2_quantile(0.9, repeats - 1) / chi2_quantile(0.5, repeats - 1)
    tail = float(np.quantile(variance, 0.9) / np.median(variance) / expected)
    if tail > allowed:
        return f"in a tenth of the voxels their variance is {tail:.2g} times that of noise (motion)"
    return ""


def from_background(samples: Float[np.ndarray, "N M"], noise: NoiseModel) -> NoiseLevel:
    """Sigma from the voxels without signal, found among others by their distribution.

    Air has the same mean square in all M volumes of all its voxels, up to noise. Such voxels are
    searched at several levels of the mean square. Sigma is that for which the distribution of
    their samples is nearest to what the noise model expects without signal (Rayleigh for
    `Rician`, half-normal for the size of `Gaussian` samples). They pass where the distributions
    differ by less than 0.05 everywhere, the mean square varies between volumes by less than 15 %,
    and the volumes are not correlated over the voxels, as they are in tissue (by less than 0.12);
    of several such sets of voxels the largest is used. Exact zeros are left out: scanners
    blank the background; but coarse integers may be 0 by rounding. Integers may be rounded or cut:
    the better of both is used.

    Several coils combined by sum of squares raise it (`NoncentralChi` allows for them), parallel
    imaging varies it over the image, and the scanner's filtering lowers it.

    Args:
        samples: (N, M) voxels, with or without signal, in all volumes.
        noise: the noise model.

    Raises:
        InputError: if no voxels pass, or the noise model has no such distribution.

    Source: Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618, for the distribution; Koay,
    Özarslan & Pierpaoli 2009, doi:10.1016/j.jmr.2009.03.005, for the search by mean squares.

    Example:
        >>> from labelwise.noise import Rician
        >>> samples = np.random.default_rng(0).rayleigh(2.0, (2_000, 10))
        >>> round(from_background(samples, Rician()).sigma, 1)
        2.0
    """
    null = _Null.of(noise)
    size = np.abs(np.asarray(samples, dtype=float))
    size = size[np.isfinite(size).all(axis=1) & (size > 0).any(axis=1)]
    if size.size < _SAMPLES:
        raise InputError(
            f"sigma from the background: expected at least {_SAMPLES} samples that are not "
            f"blanked, got {size.size} (voxels times volumes); give sigma as a number or a map, or "
            "estimate it by another method"
        )
    found = None
    for air in _alike(np.mean(size**2, axis=1), min(null.shape * size.shape[1], _WIDTH)):
        sigma, distance = _nearest(size[air], null)
        largest = found is None or air.sum() > found[1].sum()
        if distance < _DISTANCE and largest and _independent(size[air]):
            found = sigma, air
    if found is None:
        raise InputError(
            f"sigma from the background: of {len(samples)} voxels, {len(size)} are not blanked, "
            f"and no {_FEWEST} or more of them are distributed like {type(noise).__name__} noise "
            "without signal: there is no air, or it is blanked, filtered or of several coils; give "
            "sigma as a number or a map, or estimate it by another method"
        )
    sigma, air = found
    return NoiseLevel(
        sigma,
        "background",
        int(air.sum()),
        f"{air.sum()} of {len(samples)} voxels are distributed like noise without signal; "
        "filtering and parallel imaging on the scanner lower it",
    )


@dataclass(frozen=True)
class _Null:
    """The size |x| of a measurement x without signal, at sigma = 1.

    Args:
        size: |x|, ascending from 0.
        below: the probability of a smaller one.
        shape: E[x²]² / Var[x²]: the mean of n squares has a gamma distribution of n times this
            shape, exactly so for the noise models of labelwise.
    """

    size: Float[np.ndarray, " K"]
    below: Float[np.ndarray, " K"]
    shape: float

    @classmethod
    def of(cls, noise: NoiseModel) -> _Null:
        """By quadrature over the density of a noise model.

        Raises:
            InputError: if its density is none, or does not scale with sigma.
        """

        def density(sigma):  # of |x| / sigma
            data = sigma * np.stack([size, -size])
            return sigma * np.exp(evaluate(noise.log_density, 0.0, data, sigma)).sum(axis=0)

        size = np.linspace(1e-9, float(evaluate(noise.mean, 0.0, 1.0)) + 12, 40_001)
        one, other = density(1.0), density(3.0)
        below = np.append(0, np.cumsum((one[1:] + one[:-1]) / 2 * np.diff(size)))
        if not abs(below[-1] - 1) < 1e-3 or not np.allclose(one, other, atol=1e-3):
            raise InputError(
                f"sigma from the background: without signal, the density of {type(noise).__name__} "
                "does not integrate to 1 or does not scale with sigma; give sigma as a number or "
                "a map"
            )
        second, fourth = (np.trapezoid(one * size**power, size) for power in (2, 4))
        return cls(size, below, float(second**2 / (fourth - second**2)))


def _alike(square: Float[np.ndarray, " N"], shape: float) -> list[Bool[np.ndarray, " N"]]:
    """Sets of voxels whose mean squares could be those of noise at one sigma.

    Those in the central 99.8 % of a gamma distribution whose median is that of the set.
    """
    low, high = gammaincinv(shape, [0.001, 0.999]) / gammaincinv(shape, 0.5)
    sets = {}
    for share in (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7) if square.size else ():
        median = np.quantile(square, share)
        for _ in range(50):
            alike = (square > low * median) & (square < high * median)
            if alike.sum() < _FEWEST:
                break
            before, median = median, np.median(square[alike])
            if median == before:
                sets[float(median)] = alike
                break
    return list(sets.values())


def _independent(size: Float[np.ndarray, "N M"]) -> bool:
    """Whether samples are alike in all volumes, and not correlated between them."""
    squares = np.mean(size**2, axis=0)
    if size.shape[1] < 2 or not squares.std() < _DRIFT * squares.mean():
        return False
    standard = (size - size.mean(axis=0)) / size.std(axis=0)
    # the mean of M standardised columns has the variance (1 + (M - 1) correlation) / M
    correlation = (len(squares) * standard.mean(axis=1).var() - 1) / (len(squares) - 1)
    return bool(correlation < _CORRELATED)


def _nearest(size: Float[np.ndarray, "N M"], null: _Null) -> tuple[float, float]:
    """The sigma whose distribution is nearest to that of samples, and its largest distance.

    Nearest in the mean square (Cramér-von Mises). Exact zeros are left out, unless integers are so
    coarse that noise is rounded to 0; the distribution is that of samples not below the smallest
    one. An integer k may stand for k - 1/2 to k + 1/2 (rounded) or for k to k + 1 (cut).
    """
    values = np.sort(size[size > 0])
    distinct = np.unique(values)
    if values.size < _SAMPLES or distinct.size < 2:
        return np.nan, np.inf
    step = np.diff(distinct).min()  # next to none in continuous data
    if step > _COARSE * np.median(values):
        values = np.sort(size.ravel())
        distinct = np.unique(values)
    if distinct.size > 1000:
        distinct = np.quantile(values, np.linspace(0.0005, 0.9995, 1000), method="lower")
    from scipy.optimize import fminbound  # takes a sixth of the time of all imports

    below = np.searchsorted(values, distinct, "right") / values.size
    share = np.diff(below, prepend=0)
    guess = np.log(values[-1])

    def fit(above: float) -> tuple[float, float]:
        edges = np.append(max(values[0] - (1 - above) * step, 0), distinct + above * step)

        def excess(log_sigma):
            expected = np.interp(edges / np.exp(log_sigma), null.size, null.below)
            first = min(expected[0], 1 - 1e-9)
            return (expected[1:] - first) / (1 - first) - below

        best = fminbound(
            lambda log_sigma: np.sum(share * excess(log_sigma) ** 2), guess - 5, guess + 1
        )
        return float(np.abs(excess(best)).max()), float(np.exp(best))

    distance, sigma = min(fit(0.5), fit(1.0))
    return sigma, distance if step < _COARSEST * sigma else np.inf
