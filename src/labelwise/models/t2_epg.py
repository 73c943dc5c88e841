"""T2 and the refocusing angle from a multi-echo train, by dictionary: a model that is a black box.

Pulses short of 180 degrees store magnetisation along z and bring it back later: stimulated echoes,
which a plain exponential takes for a longer T2. Extended phase graphs count them.
"""

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import InputError, Parameter

_T2_BOUNDS = (5.0, 2000.0)
_LOG_T2_BOUNDS, _LOG_T2_NODES = (math.log(_T2_BOUNDS[0]), math.log(_T2_BOUNDS[1])), 60
_B1_BOUNDS, _B1_NODES = (0.5, 1.0), 64
_ROUNDING = 0.05 * (1 + 1e-6)  # ms: half of the last digit of times rounded to 0.1 ms


class T2EPG(SignalModel):
    """S(TE) = S0 |EPG(TE; T2, B1)|: echoes of a Carr-Purcell-Meiboom-Gill train, pulses of 180° B1.

    Looked up: the train is calculated once over a grid of (log T2, B1) and interpolated by cubics,
    to within 5e-5 of S0 for up to 48 echoes; T2 and B1 beyond their bounds count as on them.
    Angles above and below 180° give all but the same echoes, so B1 stops at 1. S0 includes what a
    wrong angle does to the excitation. Assumes crushed free induction decays and one angle across
    the slice. The magnitude is taken because late echoes of a short T2 can be negative.

    Args:
        te: (M,) echo times in ms: ESP, 2 ESP, ... M ESP, all of them and in that order; each may
            be off by 0.1 % of itself, or rounded to 0.1 ms. Of rounded times, ESP is the middle of
            the spacings that agree with all of them.
        t1: T1 in ms, the same for all voxels; the echoes hardly depend on it.

    Raises:
        InputError: if the echo times are not such a train, or T1 is not positive.

    Source: Hennig 1991, doi:10.1002/cmr.1820030302; Weigel 2015, doi:10.1002/jmri.24619.

    Example:
        >>> [round(float(s), 3) for s in T2EPG([10, 20, 30]).signal(1.0, 80.0, 1.0)]
        [0.882, 0.779, 0.687]
        >>> [round(float(s), 3) for s in T2EPG([10, 20, 30]).signal(1.0, 80.0, 0.7)]
        [0.701, 0.777, 0.601]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    t1: float = 1000.0
    differentiable: ClassVar[bool] = False
    vectorized: ClassVar[bool] = True
    measures = "T2"
    minimum = "three echoes of one train"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T2", "ms", _T2_BOUNDS, "T_2"),
        Parameter("B1", "1", _B1_BOUNDS, "B_1"),
    )

    def __check_init__(self) -> None:
        """Refuse echo times that are not one train."""
        check_train(type(self).__name__, self.te, self.t1)

    def signal(self, s0, t2, b1):
        """The echoes of one voxel (scalars in) or of N (arrays (N, 1) in, (N, M) out)."""
        table = _dictionary(_spacing(np.asarray(self.te)), len(self.te), float(self.t1))
        row, row_weights = _cubic(np.log(np.clip(t2, *_T2_BOUNDS)), *_LOG_T2_BOUNDS, _LOG_T2_NODES)
        column, column_weights = _cubic(np.asarray(b1), *_B1_BOUNDS, _B1_NODES)
        echoes = 0.0
        for i, row_weight in enumerate(row_weights):
            for j, column_weight in enumerate(column_weights):
                echoes = echoes + row_weight * column_weight * table[row + i, column + j]
        return s0 * np.abs(echoes)


def check_train(name: str, te: Float[Array | np.ndarray, " M"], t1: float) -> None:
    """Check the settings of a model of an echo train.

    Raises:
        InputError: if the echo times are not such a train, or T1 is not positive.
    """
    times = np.ravel(np.asarray(te))
    if math.isnan(_spacing(times)):
        raise InputError(
            f"{name}.te: expected equally spaced echoes ESP, 2 ESP, 3 ESP, ... from the first on "
            "(their amplitudes depend on each other), exact or rounded to 0.1 ms, got "
            f"{times.tolist()} ms"
        )
    if not 0 < t1 < np.inf:
        raise InputError(f"{name}.t1: expected a positive time in ms, got {t1}")


def _spacing(te: Float[np.ndarray, " M"]) -> float:
    """The echo spacing of a train; NaN if the times are none.

    Example:
        >>> round(_spacing(np.array([9.7, 19.3, 29.0, 38.7])), 3)
        9.669
        >>> _spacing(np.array([10, 20, 40]))
        nan
    """
    echo = np.arange(1, len(te) + 1)
    if np.any(te <= 0):
        return math.nan
    if np.allclose(te, echo * te[0], rtol=1e-3, atol=0):
        return float(te[0])
    low, high = np.max((te - _ROUNDING) / echo), np.min((te + _ROUNDING) / echo)
    return float(low + high) / 2 if 0 < low <= high else math.nan


def epg(
    t2: Float[np.ndarray, " D"],
    b1: Float[np.ndarray, " D"],
    *,
    spacing: float,
    echoes: int,
    t1: float,
) -> Float[np.ndarray, "D echoes"]:
    """Echo amplitudes of D spin systems, excited by a perfect 90° pulse, by extended phase graphs.

    Between pulses, states of order j + ½ (in units of the dephasing per echo spacing) are
    followed: `ahead` dephases further, `back` rephases, `stored` lies along z (times -i, so that
    all are real). Magnetisation recovered by T1 has whole orders and refocuses at no echo.

    Args:
        t2: T2 in ms.
        b1: refocusing angle over 180°.
        spacing: echo spacing in ms.
        echoes: number of echoes.
        t1: T1 in ms.

    Example:
        >>> epg(np.array([80.0]), np.array([1.0]), spacing=10.0, echoes=2, t1=1e3).round(3)
        array([[0.882, 0.779]])
    """
    angle = np.pi * b1[:, None]
    keep, swap, tip = np.cos(angle / 2) ** 2, np.sin(angle / 2) ** 2, np.sin(angle)
    e2, e1 = np.exp(-spacing / t2[:, None]), np.exp(-spacing / t1)
    ahead = np.zeros((len(t2), echoes))
    back, stored = ahead.copy(), ahead.copy()
    ahead[:, 0] = 1.0
    train = np.empty_like(ahead)
    for echo in range(echoes):
        ahead, back, stored = (
            keep * ahead + swap * back + tip * stored,
            swap * ahead + keep * back - tip * stored,
            np.cos(angle) * stored + tip / 2 * (back - ahead),
        )
        train[:, echo] = e2[:, 0] * back[:, 0]
        ahead = e2 * np.hstack([back[:, :1], ahead[:, :-1]])
        back = e2 * np.hstack([back[:, 1:], np.zeros_like(back[:, :1])])
        stored = e1 * stored
    return train


@lru_cache(maxsize=8)
def _dictionary(spacing: float, echoes: int, t1: float) -> Float[np.ndarray, "T2 B1 echoes"]:
    """The echoes at every node, and at one more beyond each bound for the cubics."""
    log_t2 = _nodes(*_LOG_T2_BOUNDS, _LOG_T2_NODES)
    b1 = _nodes(*_B1_BOUNDS, _B1_NODES)
    grid = [axis.ravel() for axis in np.meshgrid(np.exp(log_t2), b1, indexing="ij")]
    table = epg(*grid, spacing=spacing, echoes=echoes, t1=t1)
    table.flags.writeable = False
    return table.reshape(len(log_t2), len(b1), echoes)


def _nodes(lower: float, upper: float, nodes: int) -> Float[np.ndarray, " nodes+2"]:
    step = (upper - lower) / (nodes - 1)
    return lower + step * np.arange(-1, nodes + 1)


def _cubic(
    x: Float[np.ndarray, "..."], lower: float, upper: float, nodes: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """First of the four nodes around x, and their Catmull-Rom weights, which have smooth slopes."""
    position = np.clip((x - lower) / (upper - lower), 0, 1) * (nodes - 1)
    cell = np.minimum(position.astype(int), nodes - 2)
    u = position - cell
    weights = (
        u * (-0.5 + u * (1 - 0.5 * u)),
        1 + u * u * (-2.5 + 1.5 * u),
        u * (0.5 + u * (2 - 1.5 * u)),
        u * u * (-0.5 + 0.5 * u),
    )
    return cell.reshape(cell.shape[:-1]), weights
