"""Stretched-exponential diffusion: a spread of diffusivities in one voxel."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Parameter


class StretchedExponential(SignalModel):
    """S(b) = S0 exp(-(b DDC)^alpha).

    DDC is the distributed diffusion coefficient, alpha the heterogeneity: 1 for one Gaussian
    compartment, smaller for a wider spread of diffusivities. Where alpha is below 1, the equation
    has an infinite slope at b = 0, so that perfusion lowers alpha; leave b below about 0.1 ms/µm²
    out, apart from b = 0, where tissue is meant.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), two of them above zero.

    Source: Bennett et al. 2003, doi:10.1002/mrm.10581.

    Example:
        >>> [round(float(s), 3) for s in StretchedExponential([0, 1.0, 2.0]).signal(1, 1.0, 0.8)]
        [1.0, 0.368, 0.175]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "three b-values, the largest at least 1000 s/mm²"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("DDC", "µm²/ms", (0.01, 5.0), "DDC", (0.2, 3.5)),
        Parameter("alpha", "1", (0.2, 1.0), r"\alpha", (0.5, 1.0)),
    )

    def signal(self, s0, ddc, alpha):
        """The equation above, for one voxel."""
        x = jnp.where(self.b > 0, self.b, 1.0) * ddc  # a power of 0 has no slope
        return s0 * jnp.where(self.b > 0, jnp.exp(-(x**alpha)), 1.0)
