"""Apparent diffusion coefficient with the noise floor of magnitude images as a parameter."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, log_linear, per_measurement
from labelwise.types import Derived, Parameter


class ADCFloor(SelfStarting):
    """S(b) = S0 √(exp(-2 b ADC) + floor²).

    For magnitudes whose noise level is not known, or not the same after the reconstruction: the
    mean square of a magnitude is that of the signal plus a constant. `floor` is √2 sigma / S0 for
    one coil. The Rician likelihood has this floor already, so use Gaussian noise with this model.
    Where all signals are above about 3 floors, the floor is not determined.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), some of them so large that
            the signal is near the floor.

    Source: Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618; Jones & Basser 2004,
    doi:10.1002/mrm.20283.

    Example:
        >>> [round(float(s), 3) for s in ADCFloor([0, 1.0, 3.0]).signal(1.0, 2.0, 0.1)]
        [1.005, 0.168, 0.1]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "three b-values, the largest where the signal is near the noise floor"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("ADC", "µm²/ms", (0.0, 5.0), "ADC", (0.1, 3.5)),
        Parameter("floor", "1", (0.0, 1.0), "floor", (0.02, 0.3)),
    )
    derived = (Derived("floor_signal", "a.u.", lambda s0, adc, floor: s0 * floor),)

    def signal(self, s0, adc, floor):
        """The equation above, for one voxel."""
        decay = jnp.exp(-self.b * adc)
        return s0 * jnp.sqrt(decay * decay + floor * floor)

    def guess(self, signal):
        """The floor from the largest b, where a fit cannot leave a floor of 0: its slope is 0."""
        floor = 0.9 * jnp.min(jnp.where(self.b == jnp.max(self.b), signal, jnp.inf))
        above = jnp.sqrt(jnp.maximum(signal**2 - floor**2, (0.05 * signal) ** 2))
        s0, adc = log_linear(self.b, above)
        return s0, adc, floor / s0
