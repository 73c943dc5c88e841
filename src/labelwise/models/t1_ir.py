"""Longitudinal relaxation: the magnitude of the signal after an inversion."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class T1InversionRecovery(SignalModel):
    """S(TI) = S0 |1 - k exp(-TI / T1)|.

    k is 2 for a perfect inversion of fully relaxed magnetisation. A finite repetition time needs no
    other equation: 1 - 2 exp(-TI / T1) + exp(-TR / T1) is S0 (1 - k exp(-TI / T1)) with
    S0 = 1 + exp(-TR / T1) and k = 2 / S0; an imperfect inversion also only lowers k, to 1 for a
    saturation. So 1 <= k <= 2; its upper bound is 2.2 lest noise put every good inversion on it.

    Args:
        ti: (M,) inversion times in ms, best from well before to well after T1 log 2.

    Source: Barral et al. 2010, doi:10.1002/mrm.22497.

    Example:
        >>> [round(float(s), 3) for s in T1InversionRecovery([0, 700, 3000]).signal(1, 1000, 2)]
        [1.0, 0.007, 0.9]
    """

    ti: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T1"
    minimum = "three inversion times, from before to after T1 log 2"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T1", "ms", (50.0, 6000.0), "T_1", (100.0, 4500.0)),
        Parameter("k", "1", (1.0, 2.2), "k"),
    )

    def signal(self, s0, t1, k):
        """The equation above, for one voxel."""
        return s0 * jnp.abs(1 - k * jnp.exp(-self.ti / t1))
