"""Effective transverse relaxation: one exponential in the echo time of gradient echoes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Derived, Parameter


class T2Star(SignalModel):
    """S(TE) = S0 exp(-TE / T2_star).

    Assumes one kind of water and a static field that is even across the voxel: a field gradient of
    the object shortens T2_star, and fat makes the echoes oscillate. R2_star is 1000 / T2_star.

    Args:
        te: (M,) echo times in ms, the first as short as T2_star if iron is expected.

    Source: in liver with iron, Wood et al. 2005, doi:10.1182/blood-2004-10-3982.

    Example:
        >>> [round(float(s), 3) for s in T2Star([1, 5, 20]).signal(1.0, 20.0)]
        [0.951, 0.779, 0.368]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T2*"
    minimum = "two echo times"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T2_star", "ms", (0.3, 1000.0), "T_2^*", (1.0, 100.0)),
    )
    derived = (Derived("R2_star", "1/s", lambda s0, t2_star: 1000.0 / t2_star),)

    def signal(self, s0, t2_star):
        """The equation above, for one voxel."""
        return s0 * jnp.exp(-self.te / t2_star)
