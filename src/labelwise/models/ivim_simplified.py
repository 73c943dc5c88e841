"""Intravoxel incoherent motion without the fast compartment's diffusivity: f and D_slow only."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class IVIMSimplified(SignalModel):
    """S(0) = S0, S(b) = S0 (1 - f) exp(-b D_slow) for b >= b_threshold.

    The segmented fit as one model: beyond the threshold the signal of blood is gone, so that two
    b-values beside 0 are enough. Measurements between 0 and the threshold are not described: maps
    leave them out with a note, and all else refuses them.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), 0 and from `b_threshold` on.
        b_threshold: in ms/µm². At 0.2 and D_fast 30 µm²/ms, 0.2 % of blood's signal is left.

    Source: Le Bihan et al. 1988, doi:10.1148/radiology.168.2.3393671.

    Example:
        >>> [round(float(s), 3) for s in IVIMSimplified([0, 0.2, 0.8]).signal(1.0, 0.1, 1.0)]
        [1.0, 0.737, 0.404]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    b_threshold: float = 0.2
    measures = "diffusion"
    minimum = "b = 0 and two b-values from 200 s/mm² on"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("f", "1", (0.0, 0.6), "f", (0.01, 0.5)),
        Parameter("D_slow", "µm²/ms", (0.01, 4.0), "D_{slow}", (0.2, 3.0)),
    )

    def described(self):
        """Those at b = 0 and from the threshold on."""
        b = np.asarray(self.b)
        return (b == 0) | (b >= self.b_threshold * (1 - 1e-9))

    def signal(self, s0, f, d_slow):
        """The equation above, for one voxel."""
        return s0 * jnp.where(self.b > 0, (1 - f) * jnp.exp(-self.b * d_slow), 1.0)
