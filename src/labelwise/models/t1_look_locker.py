"""Longitudinal relaxation: a train of read-outs after one inversion."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Derived, Parameter


class T1LookLocker(SignalModel):
    """S(TI) = S0 |r - (1 + r) exp(-TI / (r T1))|.

    The read-outs drive the magnetisation to the share r of its equilibrium, with the time constant
    T1* = r T1. It is |A - B exp(-TI / T1*)| of the literature with A = r S0, B = (1 + r) S0, hence
    T1 = T1* (B / A - 1). Assumes a perfect inversion of fully relaxed magnetisation and read-outs
    that are evenly spaced and close together.

    Args:
        ti: (M,) times of the read-outs after the inversion in ms.

    Source: Look & Locker 1970, doi:10.1063/1.1684482; Deichmann & Haase 1992,
    doi:10.1016/0022-2364(92)90347-A; in the heart, Messroghli et al. 2004, doi:10.1002/mrm.20110.

    Example:
        >>> model = T1LookLocker([0, 500, 5000])
        >>> [round(float(s), 3) for s in model.signal(1.0, 1000.0, 0.8)]
        [1.0, 0.163, 0.797]
    """

    ti: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T1"
    minimum = "three times, from before to after T1* log(1 + 1 / r)"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T1", "ms", (50.0, 6000.0), "T_1", (200.0, 3000.0)),
        Parameter("r", "1", (0.2, 1.0), "T_1^*/T_1", (0.4, 0.98)),
    )
    derived = (Derived("T1_star", "ms", lambda s0, t1, r: r * t1),)

    def signal(self, s0, t1, r):
        """The equation above, for one voxel."""
        return s0 * jnp.abs(r - (1 + r) * jnp.exp(-self.ti / (r * t1)))
