"""A signal model of your own: one class, one file, and everything else serves it.

labelwise fit scan.nii.gz --bvals scan.bval --model own_model.py:StretchedExponential ...
"""

# %% The equation for ONE voxel, with names, units and bounds beside it
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import labelwise as lw
from labelwise.models.check import check_signal_model


class StretchedExponential(lw.SignalModel):
    """S(b) = S0 exp(-(b DDC)^alpha)   (Bennett et al. 2003, doi:10.1002/mrm.10581)."""

    b: Float[Array, " M"] = lw.per_measurement()
    parameters = (
        lw.Parameter("S0", "a.u.", (0, np.inf), "S_0"),
        lw.Parameter("DDC", "µm²/ms", (0.01, 4), "DDC"),
        lw.Parameter("alpha", "1", (0.3, 1), r"\alpha"),
    )

    def signal(self, s0, ddc, alpha):
        # b = 0 is kept away from the power, whose slope there is infinite
        x = jnp.where(self.b > 0, self.b, 1) * ddc
        return s0 * jnp.where(self.b > 0, jnp.exp(-(x**alpha)), 1)


# %% What is wrong with it? Nothing, or a sentence for each fault
b = np.array([0, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5])
check_signal_model(StretchedExponential(b))

# %% A common fault: the power at b = 0 has no slope


class Careless(StretchedExponential):
    """The same, without the care at b = 0."""

    def signal(self, s0, ddc, alpha):
        return s0 * jnp.exp(-((self.b * ddc) ** alpha))


try:
    check_signal_model(Careless(b))
except ValueError as fault:
    print(fault)

# %% It fits like any other
model = StretchedExponential(b)
signal = np.asarray(model.signal(500.0, 0.9, 0.75))[None]
estimate = lw.MaximumLikelihood(model, lw.Rician())(signal, sigma=5.0)
for parameter, value, error in zip(
    model.parameters, estimate.values[0], estimate.stats["standard_error"][0], strict=True
):
    print(f"{parameter.name:6} {value:8.3f} ± {error:.3f} {parameter.unit}")
