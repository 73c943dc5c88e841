"""Longitudinal relaxation: spoiled gradient echoes at several flip angles."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, constant, per_measurement
from labelwise.types import InputError, Parameter


class T1VariableFlipAngle(SignalModel):
    """S(α) = S0 sin(α) (1 - E) / (1 - E cos(α)), E = exp(-TR / T1).

    The steady state of a perfectly spoiled gradient echo; S0 includes the decay until the echo. The
    angle is α = B1 times the nominal one. One that is wrong by a factor makes T1 wrong by about its
    square.

    Args:
        flip_angle: (M,) nominal excitation angles in degrees, some below and some above the angle
            arccos(E) of the largest signal.
        tr: the repetition time in ms.
        b1: flip angle over the nominal one.

    Raises:
        InputError: if the repetition time or B1 is not positive.

    Source: Fram et al. 1987, doi:10.1016/0730-725X(87)90021-X.

    Example:
        >>> model = T1VariableFlipAngle([2, 5, 15], tr=10)
        >>> [round(float(s), 4) for s in model.signal(1000.0, 1000.0)]
        [32.905, 63.2191, 58.951]
    """

    flip_angle: Float[Array | np.ndarray, " M"] = per_measurement()
    tr: float = constant()
    b1: float = 1.0
    measures = "T1"
    minimum = "two flip angles, on both sides of that of the largest signal"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("T1", "ms", (50.0, 6000.0), "T_1", (100.0, 4500.0)),
    )

    def __check_init__(self) -> None:
        """Refuse an impossible repetition time or B1."""
        if not self.tr > 0:
            raise InputError(
                f"T1VariableFlipAngle.tr: expected a positive time in ms, got {self.tr}"
            )

        if not 0.2 <= self.b1 <= 2:
            raise InputError(
                f"T1VariableFlipAngle.b1: expected a share of the nominal angle, from 0.2 to 2, "
                f"got {self.b1:g}"
            )

    def signal(self, s0, t1):
        """The equation above, for one voxel."""
        angle = jnp.deg2rad(self.flip_angle) * self.b1
        lost = -jnp.expm1(-self.tr / t1)  # 1 - E, and 1 - E cos(α) = lost + E (1 - cos(α))
        return s0 * jnp.sin(angle) * lost / (lost + (1 - lost) * 2 * jnp.sin(angle / 2) ** 2)
