"""Longitudinal relaxation: the signed signal after an inversion."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.models.t1_ir import T1InversionRecovery


class T1SignedInversionRecovery(SignalModel):
    """S(TI) = S0 (1 - k exp(-TI / T1)).

    The model of `T1InversionRecovery` for images that keep the sign (the real part after phase
    correction); their noise is Gaussian. It has no ambiguity of the sign near the zero crossing.

    Args:
        ti: (M,) inversion times in ms, best from well before to well after T1 log 2.

    Source: Barral et al. 2010, doi:10.1002/mrm.22497.

    Example:
        >>> model = T1SignedInversionRecovery([0, 700, 3000])
        >>> [round(float(s), 3) for s in model.signal(1, 1000, 2)]
        [-1.0, 0.007, 0.9]
    """

    ti: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "T1"
    minimum = "three inversion times, from before to after T1 log 2"
    parameters = T1InversionRecovery.parameters

    def signal(self, s0, t1, k):
        """The equation above, for one voxel."""
        return s0 * (1 - k * jnp.exp(-self.ti / t1))
