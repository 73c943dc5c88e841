"""Diffusion and kurtosis tensors: non-Gaussian diffusion that depends on the direction."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, per_measurement
from labelwise.models.dti import (
    INVARIANTS,
    TENSOR,
    check_directions,
    mean_diffusivity,
    second_order,
    weighted_log_fit,
)
from labelwise.types import Derived, Parameter

_FOURTH = {  # the elements of a symmetric tensor of order 4, and how often each occurs
    **dict.fromkeys(("xxxx", "yyyy", "zzzz"), 1),
    **dict.fromkeys(("xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz"), 4),
    **dict.fromkeys(("xxyy", "xxzz", "yyzz"), 6),
    **dict.fromkeys(("xxyz", "xyyz", "xyzz"), 12),
}


def fourth_order(gx, gy, gz):
    """The factors of the fifteen elements of a tensor in Σ V_ijkl g_i g_j g_k g_l."""
    g = {"x": gx, "y": gy, "z": gz}
    return [
        count * g[name[0]] * g[name[1]] * g[name[2]] * g[name[3]] for name, count in _FOURTH.items()
    ]


def _half_sphere(rings: int = 8, points: int = 24):
    """Directions (3, K) and weights (K,) that integrate over directions, by Gauss and Legendre."""
    height, weight = np.polynomial.legendre.leggauss(2 * rings)
    height, weight = height[rings:], weight[rings:]
    turn = 2 * np.pi * (np.arange(points) + 0.5) / points
    across = np.sqrt(1 - height**2)[:, None]
    columns = across * np.cos(turn), across * np.sin(turn), height[:, None] + 0 * turn
    return np.stack([c.ravel() for c in columns]), np.repeat(weight, points) / points


_DIRECTIONS, _WEIGHTS = _half_sphere()
_LEAST = 0.05  # µm²/ms, less than in any tissue; noise can make D negative along some direction


def mean_kurtosis(s0, *tensors):
    """The mean over directions n of K(n) = V(n) / D(n)², D at least 0.05 µm²/ms."""
    d = sum(x * t for x, t in zip(tensors[:6], second_order(*_DIRECTIONS), strict=True))
    v = sum(x * t for x, t in zip(tensors[6:], fourth_order(*_DIRECTIONS), strict=True))
    return jnp.sum(_WEIGHTS * v / jnp.maximum(d, _LEAST) ** 2)


def mean_kurtosis_tensor(s0, *tensors):
    """The mean over directions n of V(n) / MD², in closed form."""
    v = dict(zip(_FOURTH, tensors[6:], strict=True))
    trace = v["xxxx"] + v["yyyy"] + v["zzzz"] + 2 * (v["xxyy"] + v["xxzz"] + v["yyzz"])
    return trace / 5 / jnp.maximum(mean_diffusivity(s0, *tensors), _LEAST) ** 2


class DKI(SelfStarting):
    """S(b, g) = S0 exp(-b gᵀ D g + b² / 6 Σ V_ijkl g_i g_j g_k g_l).

    V is the kurtosis tensor W times MD²; with V instead of W the log of the signal is linear in the
    parameters, which leaves one optimum. As for `Kurtosis`, the series ends at b of about
    3 / (D K). The maps are derived: those of `DTI`, MK (the mean kurtosis over directions) and MKT
    (the mean of the kurtosis tensor).

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), up to 2 or 2.5.
        gx: (M,) first component of the unit vectors of the directions; 0 where b is 0.
        gy: (M,) second component.
        gz: (M,) third component.

    Raises:
        InputError: if a direction is not of unit length.

    Source: Jensen et al. 2005, doi:10.1002/mrm.20508; MK and MKT, Hansen et al. 2013,
    doi:10.1002/mrm.24743.

    Example:
        >>> model = DKI(b=[0, 1, 2], gx=[0, 1, 1], gy=[0, 0, 0], gz=[0, 0, 0])
        >>> tensor, fourth = [1.0] * 3 + [0.0] * 3, [0.9] * 3 + [0.0] * 6 + [0.3] * 3 + [0.0] * 3
        >>> [round(float(s), 3) for s in model.signal(1.0, *tensor, *fourth)]
        [1.0, 0.427, 0.247]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    gx: Float[Array | np.ndarray, " M"] = per_measurement()
    gy: Float[Array | np.ndarray, " M"] = per_measurement()
    gz: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion tensor"
    minimum = (
        "22 volumes or more: b = 0, and 15 directions or more at two b-values, the larger at least "
        "1500 s/mm²"
    )
    parameters = (
        *TENSOR,
        *(
            Parameter(
                f"V{name}",
                "µm⁴/ms²",
                (-1.0, 4.0) if count == 1 else (-2.0, 2.0),
                f"V_{{{name}}}",
                (0.2, 1.5) if count == 1 else (0.1, 0.4) if count == 6 else (-0.1, 0.1),
            )
            for name, count in _FOURTH.items()
        ),
    )
    derived = (
        *INVARIANTS,
        Derived("MK", "1", mean_kurtosis),
        Derived("MKT", "1", mean_kurtosis_tensor),
    )

    def __check_init__(self) -> None:
        """Refuse directions that are not of unit length."""
        check_directions(type(self).__name__, self.b, self.gx, self.gy, self.gz)

    def signal(self, s0, *tensors):
        """The equation above, for one voxel."""
        terms = second_order(self.gx, self.gy, self.gz)
        d = sum(x * t for x, t in zip(tensors[:6], terms, strict=True))
        terms = fourth_order(self.gx, self.gy, self.gz)
        v = sum(x * t for x, t in zip(tensors[6:], terms, strict=True))
        return s0 * jnp.exp(-self.b * d + self.b * self.b / 6 * v)

    def guess(self, signal):
        """A linear fit to the log of the signal, weighted by its square."""
        columns = [
            jnp.ones_like(signal),
            *(-self.b * term for term in second_order(self.gx, self.gy, self.gz)),
            *(self.b * self.b / 6 * term for term in fourth_order(self.gx, self.gy, self.gz)),
        ]
        log_s0, *tensors = weighted_log_fit(columns, signal)
        return jnp.exp(log_s0), *tensors
