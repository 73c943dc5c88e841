"""Which measurements of a voxel count: those that the model and the noise allow.

A measurement is left out of the fit of its voxel

- if it is far below what the others predict (a signal dropout, zero padding): by more than
  `DEFICIT` standard deviations of its noise and of the prediction, and by half of the prediction;
- if it equals the largest value of the series and the scanner clipped that, or may have.

The first fit finds the suspects, a fit of the other measurements decides. Most voxels have none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting.batching import blocks
from labelwise.fitting.many import UNROLLED
from labelwise.fitting.maximum_likelihood import MaximumLikelihood, left_out
from labelwise.models import SignalModel
from labelwise.models.base import measurements
from labelwise.models.evaluate import jacobian, signals
from labelwise.noise import NoiseModel, Rician, chi2_quantile, evaluate
from labelwise.types import Estimate, Status, estimate_voxels, has_values, sigma_of_voxels

EXCLUDED, CLIPPED, DROPOUT = 1, 2, 3
"""Why a measurement was left out."""
REASONS = {
    EXCLUDED: "excluded on request",
    CLIPPED: "clipped at the largest value of the series",
    DROPOUT: "far below what the other measurements predict (dropout, zero padding)",
}
DEFICIT = 5.0
"""Standard deviations: clean measurements are not so far below (tests)."""

_SUSPECT = 3.0  # standard deviations below the first fit, which a dropout pulls towards itself
_RARE = 0.99  # quantile of χ²: a fit that is worse is examined
_SMALL = 0.05  # of the voxel's largest: a smaller deficit may be the model's, near a null
_ROUNDS = 4
_BLOCK = 512
_SHARED = 10  # voxels that share the largest value of a series


@dataclass(frozen=True)
class Ceiling:
    """The largest value of a series, where so many voxels share it that it may be clipped.

    Args:
        value: the largest value.
        certain: whether it is the largest value of an integer type or of 8 to 16 bits, which is no
            coincidence; else a measurement is clipped only if the others of its voxel predict more.
        voxels: how many voxels share it.
        share: the fraction of the voxels.
    """

    value: float
    certain: bool
    voxels: int
    share: float


def ceiling(
    blocks_of_voxels: Iterable[Float[np.ndarray, "n M"]],
    scalings: Iterable[tuple[float, float]] = ((1.0, 0.0),),
) -> Ceiling | None:
    """The ceiling of a series; None if its largest value is no more common than the next lower.

    Args:
        blocks_of_voxels: the signal, in blocks.
        scalings: slopes and intercepts of the stored numbers, as in the headers of the images.

    Example:
        >>> signal = np.random.default_rng(0).normal(4000, 200, (50, 3)).round()
        >>> ceiling([np.minimum(signal, 4095)])
        Ceiling(value=4095.0, certain=True, voxels=33, share=0.66)
        >>> ceiling([signal])
    """
    peaks = [
        np.max(signal, axis=1, initial=-np.inf, where=np.isfinite(signal))
        for signal in blocks_of_voxels
    ]
    peak = np.concatenate([np.empty(0), *peaks])
    peak = peak[np.isfinite(peak)]
    top = peak.max(initial=-np.inf)
    count, lower = np.count_nonzero(peak == top), peak[peak < top]
    next_lower = np.count_nonzero(lower == lower.max(initial=-np.inf))
    few = count < max(2, min(_SHARED, len(peak) / 2)) or count <= 2 * next_lower
    if few or top <= 0:
        return None  # the largest values of coarse integers are shared, too, but not more so
    certain = any(_full((float(top) - intercept) / slope) for slope, intercept in scalings)
    return Ceiling(float(top), certain, int(count), float(count / len(peak)))


def _full(stored: float) -> bool:
    """Whether a stored number is the largest one of 8 to 16 bits, signed or not."""
    nearest = round(stored)
    close = abs(stored - nearest) < 1e-4 * max(1.0, abs(stored)) and abs(stored - nearest) < 0.01
    return close and nearest in {2**bits - 1 for bits in range(8, 17)}


UsableEstimate = Callable[[Float[np.ndarray, "n M"], Float[np.ndarray, "n #M"]], Estimate]
"""The estimate of some voxels; a measurement whose sigma is infinite is left out."""


def estimate_usable(
    estimate: UsableEstimate,
    fitter: MaximumLikelihood,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "N #M"],
    codes: Int[np.ndarray, "N M"],
    top: Ceiling | None = None,
    fitted: int | None = None,
) -> Estimate:
    """Estimate voxels, without the measurements that are clipped or far below the others.

    Args:
        estimate: by any method.
        fitter: decides which measurements are far below the others.
        signal: the measurements.
        sigma: their noise; not infinite.
        codes: why a measurement is left out already, else 0.
        top: the largest value of the series, if it may be clipped.
        fitted: the number of measurements after averaging; M if None.

    Returns:
        The estimate; its stat `left_out` (N, M) is why a measurement was left out, else 0.
    """
    sigma = sigma_of_voxels(sigma, *signal.shape)
    if top is not None and top.certain:
        codes = np.where((codes == 0) & (signal == top.value), np.uint8(CLIPPED), codes)

    def attempt(index, codes) -> Estimate:
        level = sigma[index]
        return estimate(signal[index], np.where(codes, np.inf, level) if codes.any() else level)

    found = attempt(np.arange(len(signal)), codes)
    used = (codes == 0).sum(axis=1)
    freedom = np.minimum(used, fitted or used) - len(fitter.parameters)
    more = _more(fitter, signal, sigma, codes > 0, found, _poor(found, freedom), top)
    index = np.flatnonzero(more.any(axis=1))
    if len(index):
        codes = codes | more
        again = attempt(index, codes[index])
        found.values[index], found.status[index] = again.values, again.status
        for name, rows in found.stats.items():
            rows[index] = again.stats[name]
    return Estimate(
        found.values, found.status, {**found.stats, "left_out": codes}, found.parameters
    )


def _more(fitter, signal, sigma, left, first, poor, top) -> Int[np.ndarray, "N M"]:
    """DROPOUT or CLIPPED where a further measurement must be left out, else 0."""
    codes = np.zeros(signal.shape, np.uint8)
    plateau = np.zeros(signal.shape, bool)
    if top is not None and not top.certain:
        plateau = (signal == top.value) & ~left
    tried = has_values(first.status) | (first.status == Status.NOT_CONVERGED)
    zero = (signal == 0) & ~left
    index = np.flatnonzero(tried & (poor | zero.any(axis=1) | plateau.any(axis=1)))
    if len(index):
        suspects = _Suspects(fitter, signal[index], sigma[index], left[index], plateau[index])
        out = suspects.decide(first.values[index], poor[index])
        codes[index] = np.where(out, np.where(plateau[index], CLIPPED, DROPOUT), 0)
    return codes


def _poor(estimate: Estimate, freedom: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Whether the residual of a voxel is one of the largest per cent, or unknown."""
    freedom = np.maximum(freedom, 1)
    levels, where = np.unique(freedom, return_inverse=True)
    limit = np.sqrt(chi2_quantile(_RARE, levels) / levels)[where]
    return ~(estimate.stats["residual"] <= limit)


def fit(
    signal: Float[np.ndarray, "*shape M"],
    model: SignalModel,
    sigma: Float[np.ndarray, "..."] | float,
    *,
    noise: NoiseModel | None = None,
    mask: Bool[np.ndarray, "*shape"] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    intervals: float | None = 0.95,
) -> Estimate:
    """Fit a signal model to every voxel by bounded maximum likelihood.

    A measurement far below what the others of its voxel predict (a dropout, zero padding) is left
    out, and so is one that was clipped at the largest value of all; see the stat `left_out`.

    Args:
        signal: (*shape, M) measurements in any unit; a whole 4D image, or a single voxel (M,).
        model: the signal model with its acquisition of M measurements.
        sigma: noise of one channel in the signal's unit: a number, (*shape) or (*shape, M);
            infinite for a measurement to leave out.
        noise: `Rician()` if None; `Gaussian()` for least squares.
        mask: (*shape) the voxels to fit; all of them if None.
        bounds: replaces the bounds of parameters by name.
        intervals: the confidence of intervals by profile likelihood, such as 0.95, in the stats
            `low` and `high`; None for no intervals, which take most of the time. A model of more
            than 8 parameters has none.

    Returns:
        See `MaximumLikelihood`; and the stat `left_out` (*shape, M): 0 for a measurement that was
        used, 1 for one that was left out on request, 2 if it was clipped, 3 if it was far too low.

    Raises:
        InputError: if shapes or bounds do not fit the model, or the confidence is not in (0, 1).

    Warns:
        UserWarning: if there are no intervals since the model has more than 8 parameters.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> estimate = fit([100.0, 70.5, 49.7], model, sigma=2)
        >>> round(float(estimate["ADC"]), 2)
        0.7
    """
    fitter = estimate = MaximumLikelihood(model, noise or Rician(), bounds=bounds)
    if intervals is not None and (size := len(model.parameters)) > UNROLLED:
        warnings.warn(
            f"intervals: profile likelihood is for up to {UNROLLED} parameters, and "
            f"{type(model).__name__} has {size}, so there are standard errors only",
            stacklevel=2,
        )
    elif intervals is not None:
        estimate = MaximumLikelihood(fitter.model, fitter.noise, bounds=bounds, intervals=intervals)

    def usable(signal, sigma) -> Estimate:
        sigma = sigma_of_voxels(sigma, *signal.shape)
        left = np.broadcast_to(left_out(sigma), signal.shape)
        codes = np.where(left, np.uint8(EXCLUDED), np.uint8(0))
        if sigma.shape[1] > 1:
            sigma = np.where(left, 1, sigma)
        with np.errstate(invalid="ignore"):
            top = ceiling([np.where(left, np.nan, signal)])
        return estimate_usable(estimate, fitter, signal, sigma, codes, top)

    return estimate_voxels(usable, signal, sigma, measurements(model), mask)


@dataclass(frozen=True)
class _Suspects:
    """Voxels whose first fit is poor, or that have a measurement of 0 or at the ceiling."""

    fitter: MaximumLikelihood
    signal: Float[np.ndarray, "n M"]
    sigma: Float[np.ndarray, "n #M"]
    left: Bool[np.ndarray, "n M"]
    plateau: Bool[np.ndarray, "n M"]

    def decide(
        self, values: Float[np.ndarray, "n P"], poor: Bool[np.ndarray, " n"]
    ) -> Bool[np.ndarray, "n M"]:
        """The measurements to leave out, given the first estimate."""
        everyone = np.arange(len(values))
        apart, low = self._below(everyone, values, self.left)
        at_first = low & (apart < -DEFICIT)
        out = self._suspected(everyone, apart, low, self.left) | self.plateau
        out |= (self.signal == 0) & ~self.left & poor[:, None]
        changed = np.flatnonzero(out.any(axis=1))
        fits = self._unfitted()
        for _ in range(_ROUNDS):  # what was hidden behind others
            if not len(changed):
                break
            self._fit(fits, changed, out)
            rest = out[changed] | self.left[changed]
            apart, low = self._below(changed, fits.values[changed], rest)
            more = self._suspected(changed, apart, low, rest)
            out[changed] |= more
            changed = changed[more.any(axis=1)]
        changed = np.flatnonzero(out.any(axis=1))
        for _ in range(_ROUNDS):  # what the others allow after all comes back
            if not len(changed):
                break
            self._fit(fits, changed, out)
            rest = out[changed] | self.left[changed]
            apart, low = self._below(changed, fits.values[changed], rest)
            scale = np.maximum(1, np.nan_to_num(fits.stats["residual"][changed], nan=1))[:, None]
            certain = low & (apart < -DEFICIT * scale)
            certain |= self.plateau[changed] & (apart < -0.5)
            unknown = ~has_values(fits.status[changed])[:, None]
            keep = out[changed] & np.where(unknown, at_first[changed], certain)
            back = (keep != out[changed]).any(axis=1)
            out[changed] = keep
            changed = changed[back & keep.any(axis=1)]
        return out

    def _unfitted(self) -> Estimate:
        """Fits for `_fit` to fill in; the stat `gone` marks the measurements that each lacks."""
        voxels, parameters = len(self.signal), self.fitter.parameters
        stats = {"residual": np.full(voxels, np.nan), "gone": np.ones(self.signal.shape, bool)}
        values = np.full((voxels, len(parameters)), np.nan)
        return Estimate(values, np.full(voxels, Status.TOO_FEW, np.uint8), stats, parameters)

    def _fit(
        self, fits: Estimate, index: Int[np.ndarray, " k"], out: Bool[np.ndarray, "n M"]
    ) -> None:
        """Fit some voxels without the measurements in `out`, unless their fit is that already."""
        gone, fitted = out | self.left, fits.stats
        index = index[(gone[index] != fitted["gone"][index]).any(axis=1)]
        if len(index):
            sigma = np.where(gone[index], np.inf, self.sigma[index])
            found = self.fitter(self.signal[index], sigma)
            fits.values[index], fits.status[index] = found.values, found.status
            fitted["residual"][index], fitted["gone"][index] = found.stats["residual"], gone[index]

    def _suspected(self, index, apart, low, gone) -> Bool[np.ndarray, "k M"]:
        """The lowest of the others, and those that are at least half as far below."""
        apart = np.where(low & ~gone & np.isfinite(apart), apart, 0)
        worst = apart.min(axis=1, keepdims=True)
        return apart < np.minimum(-_SUSPECT, 0.5 * worst)

    def _below(
        self,
        index: Int[np.ndarray, " k"],
        values: Float[np.ndarray, "k P"],
        gone: Bool[np.ndarray, "k M"],
    ) -> tuple[Float[np.ndarray, "k M"], Bool[np.ndarray, "k M"]]:
        """Measured - predicted in standard deviations, and whether that is below half of it."""
        signal = self.signal[index]
        sigma = np.broadcast_to(self.sigma[index], signal.shape)
        expected, spread = prediction(self.fitter, values, sigma, ~gone)
        largest = np.max(signal, axis=1, where=~gone, initial=0)[:, None]
        low = (signal <= 0.5 * expected) & (expected - signal > _SMALL * largest)
        return (signal - expected) / spread, low


def prediction(
    fitter: MaximumLikelihood,
    values: Float[np.ndarray, "N P"],
    sigma: Float[np.ndarray, "N M"],
    used: Bool[np.ndarray, "N M"],
) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N M"]]:
    """The expected measurements and their standard deviations; NaN where the values are.

    The variance is that of the noise; for a measurement that was not `used` in the fit, also that
    of the prediction, from the Fisher information of those that were, to first order.
    """
    expected, spread = np.full((2, *sigma.shape), np.nan)
    index = np.flatnonzero(np.isfinite(values).all(axis=1))
    for mine, rows in blocks(len(index), _BLOCK):
        mine, rows = index[mine], index[rows]
        found = _predict(fitter, values[rows].astype(float), sigma[rows].astype(float), used[rows])
        expected[mine], spread[mine] = (each[: len(mine)] for each in found)
    return expected, spread


def _predict(fitter, values, sigma, used):
    model: SignalModel = fitter.model
    noise: NoiseModel = fitter.noise
    clean = signals(model, values) / sigma  # in units of the noise
    mean, variance = (evaluate(moment, clean, 1.0) for moment in (noise.mean, noise.variance))
    if used.all():
        return mean * sigma, np.sqrt(variance) * sigma
    information = evaluate(noise.information, clean, 1.0)
    slopes = jacobian(model, values) / sigma[..., None]  # 0 for a parameter on a bound
    lower, upper = np.array([each.bounds for each in fitter.parameters]).T
    slopes *= ((values > lower) & (values < upper))[:, None]
    fisher = np.einsum("nm,nmi,nmj->nij", information * used, slopes, slopes)
    scale = np.sqrt(np.einsum("nii->ni", fisher))
    scale = np.where(scale > 0, scale, 1.0)
    ridge = 1e-8 * np.eye(values.shape[1])
    covariance = np.linalg.inv(fisher / (scale[:, :, None] * scale[:, None]) + ridge)
    slopes = slopes / scale[:, None]
    predicted = np.einsum("nmi,nij,nmj->nm", slopes, covariance, slopes)
    return mean * sigma, np.sqrt(variance + np.where(used, 0, predicted)) * sigma
