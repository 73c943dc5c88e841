"""Transverse relaxation: one exponential in the echo time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class T2(SignalModel):
    """S(TE) = S0 exp(-TE / T2).

    Assumes perfect refocusing: in a train of imperfect pulses stimulated echoes raise T2 by ten per
    cent and more, see `T2EPG`. The same equation gives T2* from gradient echoes.

    Args:
        te: (M,) echo times in ms.

    Source: Carr & Purcell 1954, doi:10.1103/PhysRev.94.630; Meiboom & Gill 1958,
    doi:10.1063/1.1716296.

    Example:
        >>> [round(float(s), 3) for s in T2([0, 40, 80]).signal(1.0, 80.0)]
        [1.0, 0.607, 0.368]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T2"
    minimum = "two echo times"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T2", "ms", (1.0, 2000.0), "T_2", (5.0, 500.0)),
    )

    def signal(self, s0, t2):
        """The equation above, for one voxel."""
        return s0 * jnp.exp(-self.te / t2)
