"""T2 and the refocusing angle from a multi-echo spin-echo train, with stimulated echoes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.models.t2_epg import check_train
from labelwise.types import Parameter


class T2MultiEcho(SignalModel):
    """S(TE) = S0 |EPG(TE; T2, B1)|: echoes of a Carr-Purcell-Meiboom-Gill train, pulses of 180° B1.

    The equation of `T2EPG`, calculated for every voxel instead of looked up, so that JAX
    differentiates it: no limit on the number of echoes, and any T1. Angles above and below 180°
    give all but the same echoes, so that the slope along B1 vanishes at 1, which no fit could
    leave; B1 stops at 0.99, where echoes differ by less than 3e-4 of S0. If B1 is known, use
    `T2MultiEchoB1`.

    Args:
        te: (M,) echo times in ms: ESP, 2 ESP, ... M ESP, as for `T2EPG`.
        t1: T1 in ms, the same for all voxels; the echoes hardly depend on it.

    Raises:
        InputError: if the echo times are not such a train, or T1 is not positive.

    Source: Hennig 1991, doi:10.1002/cmr.1820030302; Weigel 2015, doi:10.1002/jmri.24619; fitted,
    Lebel & Wilman 2010, doi:10.1002/mrm.22487.

    Example:
        >>> [round(float(s), 3) for s in T2MultiEcho([10, 20, 30]).signal(1.0, 80.0, 0.7)]
        [0.701, 0.777, 0.601]
    """

    te: Float[Array | np.ndarray, " M"] = per_measurement()
    t1: float = 1000.0
    measures = "T2"
    minimum = "three echoes of one train"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T2", "ms", (5.0, 2000.0), "T_2", (10.0, 500.0)),
        Parameter("B1", "1", (0.5, 0.99), "B_1", (0.6, 0.98)),
    )

    def __check_init__(self) -> None:
        """Refuse echo times that are not one train."""
        check_train(type(self).__name__, self.te, self.t1)

    def signal(self, s0, t2, b1):
        """The equation above, for one voxel."""
        return s0 * jnp.abs(echoes(self.te, t2, b1, self.t1))


def echoes(te, t2, b1, t1):
    """The amplitudes of the M echoes of a train, by extended phase graphs; see `t2_epg.epg`.

    Args:
        te: (M,) echo times in ms; the spacing is that of the straight line through them and 0.
        t2: T2 in ms.
        b1: refocusing angle over 180°.
        t1: T1 in ms.
    """
    count = len(te)
    echo = np.arange(1, count + 1)
    spacing = jnp.sum(te * echo) / np.sum(echo**2)
    angle = jnp.pi * b1
    keep, swap, tip = jnp.cos(angle / 2) ** 2, jnp.sin(angle / 2) ** 2, jnp.sin(angle)
    turn = jnp.cos(angle)
    e2, e1 = jnp.exp(-spacing / t2), jnp.exp(-spacing / t1)
    first = jnp.zeros(count).at[0].set(1.0) * jnp.ones_like(e2)

    def pulse(state, _):
        ahead, back, stored = state
        ahead, back, stored = (
            keep * ahead + swap * back + tip * stored,
            swap * ahead + keep * back - tip * stored,
            turn * stored + tip / 2 * (back - ahead),
        )
        amplitude = e2 * back[0]
        ahead, back = (
            e2 * jnp.concatenate([back[:1], ahead[:-1]]),
            e2 * jnp.concatenate([back[1:], jnp.zeros_like(back[:1])]),
        )
        return (ahead, back, e1 * stored), amplitude

    return jax.lax.scan(pulse, (first, 0 * first, 0 * first), None, length=count)[1]
