"""Cells, vessels and the space between them: restricted diffusion of the prostate (VERDICT)."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

from labelwise.models.base import SignalModel, per_measurement
from labelwise.types import Derived, InputError, Parameter

_ROOTS = np.array(  # of the derivative of the spherical Bessel function of order 1
    [
        *(2.081575978, 5.940369990, 9.205840145, 12.40444502, 15.57923641),
        *(18.74264558, 21.89969648, 25.05282528, 28.20336100, 31.35209173),
        *(34.49951492, 37.64596032, 40.79165523, 43.93676147, 47.08139741),
    ]
)


class Verdict(SignalModel):
    """S = S0 (f_ic sphere(R) + (1 - f_ic) (v stick(b) + (1 - v) exp(-b D_ees))).

    Cells are impermeable spheres of one radius, by the Gaussian phase approximation; vessels are
    sticks in all directions, √π/2 erf(√(b D_vasc)) / √(b D_vasc); the space between them is free. v
    is the vascular share of what is not in cells: f_vasc = (1 - f_ic) v. Radius and diffusivities
    are fixed, so that three or more b-values are enough. The signal is that averaged over
    directions, and relaxation is not part of the equation: divide images of different echo times
    by the image at b = 0 of the same echo time.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²).
        small_delta: (M,) durations of the gradient pulses in ms.
        big_delta: (M,) times between the starts of the pulses in ms.
        radius: of the cells in µm.
        d_ic: diffusivity in cells in µm²/ms.
        d_ees: diffusivity between cells and vessels in µm²/ms.
        d_vasc: pseudo-diffusivity in vessels in µm²/ms.

    Raises:
        InputError: if a pulse is longer than the time between the pulses, or a constant is not from
            0.1 to 100.

    Source: Panagiotaki et al. 2015, doi:10.1097/RLI.0000000000000115; the sphere, Murday & Cotts
    1968, doi:10.1063/1.1668899.

    Example:
        >>> model = Verdict([0, 0.5, 3.0], small_delta=[12, 12, 24], big_delta=[32, 32, 44])
        >>> [round(float(s), 3) for s in model.signal(1.0, 0.4, 0.2)]
        [1.0, 0.578, 0.277]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    small_delta: Float[Array | np.ndarray, " M"] = per_measurement()
    big_delta: Float[Array | np.ndarray, " M"] = per_measurement()
    radius: float = 8.0
    d_ic: float = 2.0
    d_ees: float = 2.0
    d_vasc: float = 8.0
    measures = "diffusion"
    minimum = "b = 0 and two b-values, one below 500 and one above 1500 s/mm²"
    parameters = (
        Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
        Parameter("f_ic", "1", (0.0, 1.0), "f_{ic}", (0.05, 0.8)),
        Parameter("v", "1", (0.0, 1.0), "v", (0.02, 0.5)),
    )
    derived = (
        Derived("f_vasc", "1", lambda s0, f_ic, v: (1 - f_ic) * v),
        Derived("f_ees", "1", lambda s0, f_ic, v: (1 - f_ic) * (1 - v)),
    )

    def __check_init__(self) -> None:
        """Refuse impossible pulses and constants."""
        if np.any(self.small_delta <= 0) or np.any(self.big_delta < self.small_delta):
            raise InputError(
                "Verdict: expected 0 < small_delta <= big_delta in ms for each measurement"
            )
        for name in ("radius", "d_ic", "d_ees", "d_vasc"):
            if not 0.1 <= getattr(self, name) <= 100:
                raise InputError(
                    f"Verdict.{name}: expected a number from 0.1 to 100, got {getattr(self, name)}"
                )

    def signal(self, s0, f_ic, v):
        """The equation above, for one voxel."""
        cells = sphere(self.b, self.small_delta, self.big_delta, self.radius, self.d_ic)
        root = jnp.sqrt(jnp.maximum(self.b * self.d_vasc, 1e-8))
        vessels = jnp.sqrt(jnp.pi) / 2 * erf(root) / root
        between = v * vessels + (1 - v) * jnp.exp(-self.b * self.d_ees)
        return s0 * (f_ic * cells + (1 - f_ic) * between)


def sphere(b, small_delta, big_delta, radius, d):
    """The signal of water in impermeable spheres, 1 at b = 0, with Gaussian phases.

    Args:
        b: diffusion weighting in ms/µm².
        small_delta: duration of the pulses in ms.
        big_delta: time between the starts of the pulses in ms.
        radius: in µm.
        d: diffusivity in µm²/ms.
    """
    strength = b / (small_delta**2 * (big_delta - small_delta / 3))  # (γ G)²
    total = 0.0
    for root in _ROOTS:
        rate = (root / radius) ** 2 * d
        x, y = rate * small_delta, rate * big_delta
        small = jnp.minimum(x, 0.5)
        series = small * small * (0.5 - small * (1 / 6 - small * (1 / 24 - small / 120)))
        ramp = jnp.where(x < 0.5, series, x + jnp.expm1(-x))  # keeps the digits of a large sphere
        passed = (2 * ramp - jnp.exp(x - y) * jnp.expm1(-x) ** 2) / rate
        total = total + (radius / root) ** 4 / (root**2 - 2) * passed
    return jnp.exp(-2 * strength / d * total)
