"""Intravoxel incoherent motion: tissue diffusion and blood pseudo-diffusion in one voxel."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Derived, Parameter


class IVIM(SignalModel):
    """S(b) = S0 (f exp(-b (D_fast + D_slow)) + (1 - f) exp(-b D_slow)).

    D_fast adds to D_slow in the perfused compartment, so the two cannot be exchanged. Bounds of
    f, D_slow and D_fast are those of the source's maximum-likelihood labels.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²).

    Source: Le Bihan et al. 1986, doi:10.1148/radiology.161.2.3763909, in the parametrisation of
    Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> [round(float(s), 3) for s in IVIM([0, 0.1, 0.8]).signal(1.0, 0.3, 1.0, 50.0)]
        [1.0, 0.635, 0.315]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "b = 0, a b below 100 s/mm² and two from 200 s/mm² on"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("f", "1", (0.01, 0.5), "f", (0.01, 0.5)),
        Parameter("D_slow", "µm²/ms", (0.01, 4.0), "D_{slow}", (0.2, 3.0)),
        Parameter("D_fast", "µm²/ms", (2.0, 300.0), "D_{fast}", (5.0, 150.0)),
    )

    derived = (
        Derived("D_star", "µm²/ms", lambda s0, f, d_slow, d_fast, *rest: d_fast + d_slow),
        Derived("f_D_star", "µm²/ms", lambda s0, f, d_slow, d_fast, *rest: f * (d_fast + d_slow)),
    )

    def signal(self, s0, f, d_slow, d_fast):
        """The equation above, for one voxel."""
        return s0 * (f * jnp.exp(-self.b * (d_fast + d_slow)) + (1 - f) * jnp.exp(-self.b * d_slow))
