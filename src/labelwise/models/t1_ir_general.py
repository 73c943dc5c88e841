"""Longitudinal relaxation: inversion recovery with an imperfect inversion and a finite TR."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, constant, per_measurement
from labelwise.types import InputError, Parameter


class T1InversionRecoveryGeneral(SignalModel):
    """S(TI) = S0 |1 - 2 e exp(-TI / T1) + (2 e - 1) exp(-TR / T1)|.

    The steady state of inversion pulses that leave the share 1 - 2 e of the magnetisation (e = 1
    inverts, e = 0.5 saturates), each followed by a read-out that saturates. TR separates S0 and
    the efficiency e, which `T1InversionRecovery` takes together as k, so that S0 is the signal
    at full recovery; T1 is the same. The upper bound of e is above 1 lest noise put every good
    inversion on it.

    Args:
        ti: (M,) inversion times in ms, best from well before to well after T1 log 2.
        tr: the repetition time in ms, from inversion to inversion, at least the longest `ti`.

    Raises:
        InputError: if the repetition time is shorter than an inversion time.

    Source: Barral et al. 2010, doi:10.1002/mrm.22497; Stikov et al. 2015, doi:10.1002/mrm.25135.

    Example:
        >>> model = T1InversionRecoveryGeneral([50, 700, 3000], tr=5000)
        >>> [round(float(s), 3) for s in model.signal(1.0, 1000.0, 0.95)]
        [0.801, 0.063, 0.911]
    """

    ti: Float[Array | np.ndarray, " M"] = per_measurement()
    tr: float = constant()
    measures = "T1"
    minimum = "three inversion times, from before to after T1 log 2"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T1", "ms", (50.0, 6000.0), "T_1", (100.0, 4500.0)),
        Parameter("efficiency", "1", (0.5, 1.1), "e", (0.7, 1.0)),
    )

    def __check_init__(self) -> None:
        """Refuse a repetition time that an inversion time exceeds."""
        if not self.tr >= np.max(self.ti):
            raise InputError(
                "T1InversionRecoveryGeneral.tr: expected a time in ms of at least the longest "
                f"inversion time ({np.max(self.ti):g} ms), got {self.tr:g}"
            )

    def signal(self, s0, t1, efficiency):
        """The equation above, for one voxel."""
        inverted = 2 * efficiency * jnp.exp(-self.ti / t1)
        return s0 * jnp.abs(1 - inverted + (2 * efficiency - 1) * jnp.exp(-self.tr / t1))
