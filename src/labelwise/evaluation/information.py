"""Information about the truth that estimates retain from the signal.

Two measures which, unlike the slope of a bias curve, are invariant to shrinkage of the estimates:

- linear Fisher information: how well *similar* values of all parameters can be distinguished by a
  linear function of the estimates, relative to the information of the signal (Cramér-Rao).
- mutual information: how well the grid values of *one* parameter can be distinguished.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

GROUPS = 8  # of repeats; the jackknife leaves out one at a time
_BLIND = 1e-9  # eigenvalue of a correlation matrix below which a direction is constant


def retained_information(
    estimates: Float[np.ndarray, "G R P"],
    score: Float[np.ndarray, "G R P"],
    good: Bool[np.ndarray, "G R"],
    fisher: Float[np.ndarray, "G P P"],
) -> tuple[Float[np.ndarray, "G P"], Float[np.ndarray, "G P"]]:
    """The share of the signal's information about each parameter in the estimates.

    retained_p = [F⁻¹]_pp / [I⁻¹]_pp, with the other parameters unknown. F is the Fisher information
    of the signal and I = Jᵀ C⁻¹ J the linear Fisher information of the estimates, with their
    covariance C and J = d E[estimate] / d truth = Cov(estimate, score); the score is d log
    p(signal) / d truth. The share is at most 1 and invariant under invertible linear maps of the
    estimates: shrinkage towards the mean by a common factor loses nothing, whatever the slope of
    the bias curve. An estimator that ignores a direction of the parameter space retains nothing of
    any parameter with a component along it.

    I is computed from the regression of the score on the estimates, with R² adjusted for the P
    degrees of freedom of the estimates. The remaining uncertainty is about P / R; smaller shares
    are dominated by noise. Information in the spread or shape of the estimates, rather than in
    their mean, is not counted.

    Args:
        estimates: (G, R, P) of R repeats at each of G true values, from any origin.
        score: (G, R, P) d log p(signal) / d truth of the same repeats.
        good: (G, R) the repeats to use.
        fisher: (G, P, P) the Fisher information of the signal at each true value.

    Returns:
        (G, P) the retained share, between 0 and 1, and its standard error by a jackknife over 8
        groups of repeats. NaN where the signal does not determine all parameters or where
        there are fewer than P + 2 good repeats.

    Source: Beck, Bejjanki & Pouget 2011, doi:10.1162/NECO_a_00125; on few repeats Kanitscheider et
    al. 2015, doi:10.1371/journal.pcbi.1004218.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> score = rng.normal(size=(1, 800, 1))  # of one normal measurement, sigma = 1
        >>> half = 0.5 * score + 0.5 * rng.normal(size=score.shape)
        >>> good, fisher = np.ones((1, 800), bool), np.ones((1, 1, 1))
        >>> share, error = retained_information(half, score, good, fisher)
        >>> bool(abs(share - 0.5) < 3 * error)
        True
    """
    size = estimates.shape[-1]
    scale = np.sqrt(np.diagonal(fisher, axis1=1, axis2=2))
    usable = np.all(np.isfinite(scale) & (scale > 0), axis=1)
    scale = np.where(usable[:, None], scale, 1.0)
    truth = np.where(usable[:, None, None], fisher / (scale[:, :, None] * scale[:, None, :]), 1.0)
    values, vectors = np.linalg.eigh(np.where(usable[:, None, None], truth, np.eye(size)))
    usable &= values[:, 0] > 1e-12
    direction = _root(np.maximum(values, 1e-12), vectors)  # row p is F^-1/2 e_p

    count, covariance = _jackknifed(estimates, score / scale[:, None, :], good)
    rounding = 1e-9 * np.max(np.abs(estimates), axis=1, where=good[..., None], initial=0.0)
    explained = _explained(count, covariance, rounding[:, None])
    share = _shares(explained, direction[:, None])
    share[~usable] = np.nan
    left_out = share[:, 1:]
    mean = left_out.mean(axis=1)
    spread = np.sum((left_out - mean[:, None]) ** 2, axis=1)
    # jackknife bias correction: few repeats make the share too small
    return GROUPS * share[:, 0] - (GROUPS - 1) * mean, np.sqrt(spread * (GROUPS - 1) / GROUPS)


def _jackknifed(estimates, score, good):
    """Counts (G, 1+K) and covariances (G, 1+K, 2P, 2P) of (estimate, score), with and without
    each group."""
    points, repeats, size = estimates.shape
    both = np.where(good[..., None], np.concatenate([estimates, score], axis=-1), 0.0)
    number = np.maximum(good.sum(axis=1), 1)[:, None, None]
    both = np.where(good[..., None], both - both.sum(axis=1, keepdims=True) / number, 0.0)
    room = -(-repeats // GROUPS) * GROUPS - repeats
    both = np.pad(both, ((0, 0), (0, room), (0, 0))).reshape(points, GROUPS, -1, 2 * size)
    parts = np.pad(good, ((0, 0), (0, room))).reshape(points, GROUPS, -1).sum(axis=-1)

    def with_and_without(part):
        whole = part.sum(axis=1, keepdims=True)
        return np.concatenate([whole, whole - part], axis=1)

    count = with_and_without(parts).astype(float)
    safe = np.maximum(count, 1.0)[..., None]
    mean = with_and_without(both.sum(axis=2)) / safe
    square = with_and_without(both.swapaxes(2, 3) @ both) / safe[..., None]
    return count, square - mean[..., :, None] * mean[..., None, :]


def _explained(count, covariance, rounding):
    """Covariance of the whitened score explained by estimates: eigenvalues are adjusted R²."""
    size = rounding.shape[-1]
    among = covariance[..., :size, :size]
    between = covariance[..., size:, :size]
    variance = np.diagonal(among, axis1=-2, axis2=-1)
    spread = np.sqrt(np.maximum(variance, 0))  # may be negative by rounding
    spread = np.where(spread > rounding, spread, np.inf)  # constant estimates explain nothing
    values, vectors = np.linalg.eigh(among / (spread[..., :, None] * spread[..., None, :]))
    varies = values > _BLIND
    inverse_root = vectors / np.sqrt(np.where(varies, values, np.inf))[..., None, :]
    whitened = _root(*_clipped(covariance[..., size:, size:])) @ (
        between / spread[..., None, :] @ inverse_root
    )
    explained = whitened @ whitened.swapaxes(-1, -2)
    free = count - varies.sum(axis=-1) - 1
    inflation = np.where(free > 0, (count - 1) / np.where(free > 0, free, 1.0), np.nan)
    eye = np.eye(size)
    return eye - (eye - explained) * inflation[..., None, None]


def _clipped(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values, 1e-12), vectors


def _root(values, vectors):
    """The symmetric inverse square root of a positive matrix, from its eigenvalues and vectors."""
    return (vectors / np.sqrt(values)[..., None, :]) @ vectors.swapaxes(-1, -2)


def _shares(explained, direction):
    """|a|² / aᵀ R⁻¹ a for each row a of `direction`; 0 where R is singular along a."""
    known = np.isfinite(explained).all(axis=(-1, -2))
    values, vectors = np.linalg.eigh(np.where(known[..., None, None], explained, 0.0))
    along = (direction @ vectors) ** 2
    length = along.sum(axis=-1)
    blind = values <= 0
    lost = np.any(blind[..., None, :] & (along > 1e-9 * length[..., None]), axis=-1)
    needed = np.sum(along / np.where(blind, np.inf, np.minimum(values, 1.0))[..., None, :], axis=-1)
    share = np.where(lost | (needed == 0), 0.0, length / np.where(needed > 0, needed, 1.0))
    return np.where(known[..., None], share, np.nan)


def quantile_edges(values: Float[np.ndarray, " n"], bins: int) -> Float[np.ndarray, " edges"]:
    """Edges of bins with equal numbers of `values`; fewer edges where values repeat.

    Edges are values, so that bins are invariant under increasing maps of the values.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return np.empty(0)
    shares = np.arange(1, bins) / bins
    return np.unique(np.quantile(values, shares, method="lower"))


def mutual_information(counts: Int[np.ndarray, "T K"]) -> tuple[float, float]:
    """Mutual information, in bits, of a binned estimate and T equally likely true values.

    I = H(bin) - mean over truths of H(bin | truth), each entropy with the correction of Miller and
    Madow for finite counts; between 0 and log2(T). Binning can only reduce it. It is the
    information of one estimate about its own parameter, marginalised over the other parameters;
    information in the other estimates is not included.

    Args:
        counts: (T, K) number of estimates in each bin for each true value.

    Returns:
        The bits and their standard error; NaN if a true value has no estimate.

    Source: Miller & Madow's correction as in Paninski 2003, doi:10.1162/089976603321780272.

    Example:
        >>> mutual_information(np.array([[500, 0], [0, 500]]))
        (1.0, 0.0)
    """
    number = counts.sum(axis=1)
    if not np.all(number > 0):
        return np.nan, np.nan
    conditional = counts / number[:, None]
    marginal = conditional.mean(axis=0)
    ratio = np.where(counts > 0, conditional / np.where(marginal > 0, marginal, 1.0), 1.0)
    gain = np.log(ratio)
    plain = np.sum(conditional * gain, axis=1)
    within = np.sum(conditional * gain**2, axis=1) - plain**2
    spare = np.sum(counts > 0, axis=1) - 1
    excess = np.mean(spare / (2 * number)) - (np.sum(marginal > 0) - 1) / (2 * number.sum())
    bits = (plain.mean() - excess) / np.log(2)
    error = np.sqrt(np.sum(np.maximum(within, 0) / number)) / len(counts) / np.log(2)
    return float(np.clip(bits, 0.0, np.log2(len(counts)))), float(error)
