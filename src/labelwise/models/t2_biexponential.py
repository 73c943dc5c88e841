"""Two pools of water with their own T2, such as myelin water and the rest."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class T2Biexponential(SignalModel):
    """S(TE) = S0 (f exp(-TE / T2_short) + (1 - f) exp(-TE / T2_long)).

    The bounds of T2_short and T2_long meet at 40 ms and do not overlap, so the pools cannot be
    exchanged. Assumes no exchange of water between them and perfect refocusing. Where f is 0,
    T2_short means nothing; where f is 1, T2_long.

    Args:
        te: (M,) echo times in ms; the first no later than about 10 ms to see myelin water.

    Source: MacKay et al. 1994, doi:10.1002/mrm.1910310614 (myelin water: T2 below 40 ms).

    Example:
        >>> [round(float(s), 3) for s in T2Biexponential([0, 20, 80]).signal(1.0, 0.2, 20.0, 80.0)]
        [1.0, 0.697, 0.298]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T2"
    minimum = "four echo times, the first at most 10 ms"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("f", "1", (0.0, 1.0), "f"),
        Parameter("T2_short", "ms", (5.0, 40.0), "T_{2,short}"),
        Parameter("T2_long", "ms", (40.0, 500.0), "T_{2,long}"),
    )

    def signal(self, s0, f, t2_short, t2_long):
        """The equation above, for one voxel."""
        return s0 * (f * jnp.exp(-self.te / t2_short) + (1 - f) * jnp.exp(-self.te / t2_long))
