"""Apparent diffusion coefficient: one exponential in b."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class ADC(SignalModel):
    """S(b) = S0 exp(-b ADC).

    Assumes one Gaussian compartment: perfusion (b below about 0.2 ms/µm²) raises ADC, non-Gaussian
    diffusion (b above about 1.5 ms/µm²) lowers it. Several directions: average them first.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²).

    Source: Stejskal & Tanner 1965, doi:10.1063/1.1695690; as a map, Le Bihan et al. 1986,
    doi:10.1148/radiology.161.2.3763909. Free water at 37 °C has 3.0 µm²/ms, hence the bounds.

    Example:
        >>> [round(float(s), 3) for s in ADC([0, 0.5, 1.0]).signal(1.0, 2.0)]
        [1.0, 0.368, 0.135]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "two b-values, such as 0 and 800 s/mm²"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("ADC", "µm²/ms", (0.0, 5.0), "ADC", (0.1, 3.5)),
    )

    def signal(self, s0, adc):
        """The equation above, for one voxel."""
        return s0 * jnp.exp(-self.b * adc)
