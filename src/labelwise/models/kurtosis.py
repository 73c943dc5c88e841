"""Diffusion kurtosis of a powder average: how far diffusion departs from a Gaussian."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, per_measurement
from labelwise.types import Parameter


class Kurtosis(SelfStarting):
    """S(b) = S0 exp(-b D + (b D)² K / 6).

    The first two terms of a series in b: use b up to 2.5 or 3 ms/µm². Beyond b = 3 / (D K) the
    equation rises again, which no tissue does, so that it holds for K <= 3 / (b_max D) (Tabesh et
    al. 2011, doi:10.1002/mrm.22655). For the signal averaged over directions; D is then
    the mean diffusivity, and K also holds the spread of D over directions, so it is larger than
    the mean of the kurtosis tensor.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), two of them above zero.

    Source: Jensen et al. 2005, doi:10.1002/mrm.20508.

    Example:
        >>> [round(float(s), 3) for s in Kurtosis([0, 1.0, 2.0]).signal(1.0, 1.0, 0.9)]
        [1.0, 0.427, 0.247]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "three b-values, the largest at least 1500 s/mm²"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("D", "µm²/ms", (0.01, 4.0), "D", (0.2, 3.5)),
        Parameter("K", "1", (0.0, 3.0), "K", (0.0, 2.0)),
    )

    def signal(self, s0, d, k):
        """The equation above, for one voxel."""
        bd = self.b * d
        return s0 * jnp.exp(-bd + bd * bd * k / 6)

    def holds(self, s0, d, k):
        """Where the signal falls up to the largest b."""
        return self.b.max() * d * k <= 3

    def guess(self, signal):
        """A parabola through the log of the signal; none if it falls up to the largest b.

        Where it rises, the signal changes by large factors between entries of a dictionary.
        """
        first = jnp.max(jnp.where(self.b == jnp.min(self.b), signal, 0))
        curve, slope, log_s0 = jnp.polyfit(
            jnp.asarray(self.b), jnp.log(jnp.maximum(signal, 1e-3 * first + 1e-30)), 2
        )
        d = jnp.maximum(-slope, 0.01)
        rises = 2 * curve * jnp.max(self.b) > d
        return tuple(jnp.where(rises, x, jnp.nan) for x in (jnp.exp(log_s0), d, 6 * curve / d**2))
