"""T2 from a multi-echo spin-echo train whose refocusing angle is known."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, constant, per_measurement
from labelwise.models.t2_epg import check_train
from labelwise.models.t2_mese import echoes
from labelwise.types import InputError, Parameter


class T2MultiEchoB1(SignalModel):
    """S(TE) = S0 |EPG(TE; T2, B1)|: the train of `T2MultiEcho`, pulses of a known angle 180° B1.

    Args:
        te: (M,) echo times in ms: ESP, 2 ESP, ... M ESP, as for `T2EPG`.
        b1: refocusing angle over 180°.
        t1: T1 in ms, the same for all voxels; the echoes hardly depend on it.

    Raises:
        InputError: if the echo times are not such a train, or B1 or T1 is not positive.

    Source: Hennig 1991, doi:10.1002/cmr.1820030302; Weigel 2015, doi:10.1002/jmri.24619.

    Example:
        >>> [round(float(s), 3) for s in T2MultiEchoB1([10, 20, 30], b1=0.7).signal(1.0, 80.0)]
        [0.701, 0.777, 0.601]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    b1: float = constant()
    t1: float = 1000.0
    measures = "T2"
    minimum = "two echoes of one train"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T2", "ms", (5.0, 2000.0), "T_2", (10.0, 500.0)),
    )

    def __check_init__(self) -> None:
        """Refuse echo times that are not one train, and an impossible angle."""
        check_train(type(self).__name__, self.te, self.t1)
        if not 0.2 <= self.b1 <= 1.8:
            raise InputError(
                f"T2MultiEchoB1.b1: expected a share of 180°, from 0.2 to 1.8, got {self.b1:g}"
            )

    def signal(self, s0, t2):
        """The equation above, for one voxel."""
        return s0 * jnp.abs(echoes(self.te, t2, self.b1, self.t1))
