"""Scores of estimates: area under the ROC curve and RMSE with their covariance, score of intervals.

Several estimates of the same voxels are scored together, so that their differences have errors.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def auc(
    before: Float[np.ndarray, "A m"], after: Float[np.ndarray, "A n"]
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, "A A"]]:
    """Area under the ROC curve of A scores of the same m + n voxels, and its covariance.

    The probability that a score is larger `after` than `before`; ties count half. The m and n
    voxels are independent. The covariance is too small where the groups hardly overlap.

    Args:
        before: (A, m) scores.
        after: (A, n) scores, expected to be larger.

    Returns:
        The areas (A,), and their covariance (A, A) over repetitions of the experiment.

    Source: DeLong et al. 1988, doi:10.2307/2531595, by sorting as in Sun & Xu 2014,
    doi:10.1109/LSP.2014.2337313.

    Example:
        >>> areas, covariance = auc(np.array([[0.0, 1.0, 2.0]]), np.array([[1.5, 3.0]]))
        >>> round(float(areas[0]), 4), covariance.shape
        (0.8333, (1, 1))
    """
    above = np.stack([_placements(a, b) for a, b in zip(after, before, strict=True)])
    below = np.stack([1 - _placements(b, a) for a, b in zip(after, before, strict=True)])
    covariance = scatter(above) / above.shape[1] + scatter(below) / below.shape[1]
    return above.mean(axis=1), covariance


def rmse(
    error: Float[np.ndarray, "A n"],
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, "A A"]]:
    """Root mean squared error of A estimates of the same n voxels, and its covariance.

    Args:
        error: (A, n) estimate minus truth.

    Returns:
        The RMSE (A,), and its covariance (A, A) to first order: that of the squares over
        4 RMSE RMSE' n.

    Example:
        >>> values, covariance = rmse(np.array([[3.0, -3.0], [4.0, 0.0]]))
        >>> [round(float(value), 3) for value in values], float(covariance[0, 0])
        ([3.0, 2.828], 0.0)
    """
    squares = np.square(error, dtype=float)
    values = np.sqrt(squares.mean(axis=1))
    slope = 0.5 / np.where(values > 0, values, 1)
    covariance = scatter(squares) / squares.shape[1]
    return values, covariance * slope[:, None] * slope


def interval_score(
    low: Float[np.ndarray, "..."],
    high: Float[np.ndarray, "..."],
    truth: Float[np.ndarray, "..."],
    level: float = 0.95,
) -> Float[np.ndarray, "..."]:
    """The width of intervals, plus 2 / (1 - level) times the distance to a truth outside.

    Its mean is smallest for the interval between the quantiles (1 - level) / 2 and (1 + level) / 2
    of the truth, so that it rewards both coverage and short intervals.

    Args:
        low: lower ends.
        high: upper ends.
        truth: the true values.
        level: the probability that the intervals claim.

    Source: Gneiting & Raftery 2007, section 6.2, doi:10.1198/016214506000001437.

    Example:
        >>> interval_score(np.zeros(2), np.ones(2), np.array([0.5, 1.5])).round(6)
        array([ 1., 21.])
    """
    outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return high - low + 2 / (1 - level) * outside


def _placements(
    scores: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """The share of the others below each score; ties count half."""
    ordered = np.sort(others)
    below, not_above = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (below + not_above) / (2 * len(others))


def scatter(rows: Float[np.ndarray, "A n"]) -> Float[np.ndarray, "A A"]:
    """The covariance matrix of A numbers over n voxels."""
    return np.atleast_2d(np.cov(rows))
