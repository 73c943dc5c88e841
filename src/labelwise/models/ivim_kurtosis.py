"""Intravoxel incoherent motion with diffusion kurtosis of the tissue."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, log_linear, per_measurement
from labelwise.models.ivim import IVIM
from labelwise.types import Parameter


class IVIMKurtosis(SelfStarting):
    """S(b) = S0 (f exp(-b (D_fast + D_slow)) + (1 - f) exp(-b D_slow + (b D_slow)² K / 6)).

    `IVIM` for b-values beyond 1 ms/µm², where tissue departs from a Gaussian. As for `Kurtosis`,
    the series in b ends at b = 3 / (D_slow K).

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), up to 2 or 2.5.

    Source: Lu et al. 2012, doi:10.1002/jmri.23770, with D_fast as in `IVIM`.

    Example:
        >>> [round(float(s), 3) for s in IVIMKurtosis([0, 0.1, 2]).signal(1, 0.1, 1.0, 50.0, 0.9)]
        [1.0, 0.816, 0.222]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "b = 0, a b below 100 s/mm² and three from 200 s/mm² on, to at least 1500 s/mm²"
    parameters = (*IVIM.parameters, Parameter("K", "1", (0.0, 3.0), "K", (0.0, 2.0)))
    derived = IVIM.derived

    def signal(self, s0, f, d_slow, d_fast, k):
        """The equation above, for one voxel."""
        bd = self.b * d_slow
        tissue = jnp.exp(-bd + bd * bd * k / 6)
        return s0 * (f * jnp.exp(-self.b * d_fast - bd) + (1 - f) * tissue)

    def holds(self, s0, f, d_slow, d_fast, k):
        """Where the signal of the tissue falls up to the largest b, as for `Kurtosis`."""
        return self.b.max() * d_slow * k <= 3

    def guess(self, signal):
        """As for `IVIM`, from 0.2 <= b <= 1.2 ms/µm²; K of brain tissue."""
        weight = (self.b >= 0.2) & (self.b <= 1.2)
        intercept, d_slow = log_linear(self.b, signal, weight=weight)
        s0 = jnp.max(signal)
        return s0, 1 - intercept / s0, 1.2 * d_slow, 30.0, 0.8
