"""Intravoxel incoherent motion with two compartments of moving fluid beside the tissue."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, log_linear, per_measurement
from labelwise.types import Derived, Parameter


class IVIMTriexponential(SelfStarting):
    """S(b) = S0 (f_fast e(D_fast + D_mid + D_slow) + f_mid e(D_mid + D_slow) + f e(D_slow)).

    e(D) is exp(-b D), f the rest, 1 - f_fast - f_mid. D_mid adds to D_slow and D_fast to both, so
    compartments cannot be exchanged: tissue, slowly moving fluid (tubules, capillaries) and blood
    in larger vessels. Where a fraction is 0, its D means nothing.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²), several below 0.05.

    Source: in the kidney, van Baalen et al. 2017, doi:10.1002/jmri.25519; in the liver, Chevallier
    et al. 2021, doi:10.3390/diagnostics11020379 (a review).

    Example:
        >>> model = IVIMTriexponential([0, 0.02, 0.2])
        >>> [round(float(s), 3) for s in model.signal(1.0, 0.1, 0.2, 1.0, 5.0, 200.0)]
        [1.0, 0.865, 0.633]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion"
    minimum = "b = 0, four b-values below 100 s/mm² and two from 200 s/mm² on"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("f_fast", "1", (0.0, 0.5), "f_{fast}", (0.02, 0.3)),
        Parameter("f_mid", "1", (0.0, 0.5), "f_{mid}", (0.05, 0.4)),
        Parameter("D_slow", "µm²/ms", (0.01, 4.0), "D_{slow}", (0.2, 2.5)),
        Parameter("D_mid", "µm²/ms", (1.0, 60.0), "D_{mid}", (3.0, 50.0)),
        Parameter("D_fast", "µm²/ms", (20.0, 1000.0), "D_{fast}", (80.0, 500.0)),
    )
    derived = (
        Derived("D_star_mid", "µm²/ms", lambda s0, ff, fm, slow, mid, fast: mid + slow),
        Derived("D_star_fast", "µm²/ms", lambda s0, ff, fm, slow, mid, fast: fast + mid + slow),
        Derived("f", "1", lambda s0, ff, fm, slow, mid, fast: ff + fm),
    )

    def signal(self, s0, f_fast, f_mid, d_slow, d_mid, d_fast):
        """The equation above, for one voxel."""
        moving = f_fast * jnp.exp(-self.b * (d_fast + d_mid)) + f_mid * jnp.exp(-self.b * d_mid)
        return s0 * jnp.exp(-self.b * d_slow) * (moving + 1 - f_fast - f_mid)

    def guess(self, signal):
        """D_slow from b >= 0.2 ms/µm²; its intercept, shared between the other compartments."""
        intercept, d_slow = log_linear(self.b, signal, weight=self.b >= 0.2)
        s0 = jnp.max(signal)
        half = (1 - intercept / s0) / 2
        return s0, half, half, d_slow, 6.0, 150.0
