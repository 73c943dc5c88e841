"""Diffusion tensor: Gaussian diffusion that depends on the direction."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, eliminate, per_measurement
from labelwise.types import Derived, InputError, Parameter

_UNIT_LENGTH = 0.02
_B_WITHOUT_DIRECTION = 0.05  # ms/µm²


def mean_diffusivity(s0, xx, yy, zz, *rest):
    """A third of the trace of the tensor, in µm²/ms."""
    return (xx + yy + zz) / 3


def fractional_anisotropy(s0, xx, yy, zz, xy, xz, yz, *rest):
    """√(3/2) times the length of the tensor without its isotropic part, over its length."""
    mean = (xx + yy + zz) / 3
    off = 2 * (xy**2 + xz**2 + yz**2)
    apart = (xx - mean) ** 2 + (yy - mean) ** 2 + (zz - mean) ** 2 + off
    whole = xx**2 + yy**2 + zz**2 + off
    return jnp.sqrt(1.5 * jnp.maximum(apart, 1e-20) / jnp.maximum(whole, 1e-20))


def axial_diffusivity(s0, xx, yy, zz, xy, xz, yz, *rest):
    """The largest eigenvalue, in µm²/ms.

    In closed form (Smith 1961, doi:10.1145/355578.366316): two threads that call LAPACK for many
    voxels wait for each other without end (jaxlib 0.10.2).
    """
    mean = (xx + yy + zz) / 3
    x, y, z = xx - mean, yy - mean, zz - mean
    square = x**2 + y**2 + z**2 + 2 * (xy**2 + xz**2 + yz**2)
    size = jnp.sqrt(jnp.maximum(square, 1e-11) / 6)  # its sixth power is no 0 in float32
    product = x * (y * z - yz**2) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
    cosine = product / (2 * size**3)
    inside = 1 - jnp.finfo(jnp.result_type(cosine)).eps
    return mean + 2 * size * jnp.cos(jnp.arccos(jnp.clip(cosine, -inside, inside)) / 3)


def radial_diffusivity(s0, xx, yy, zz, *rest):
    """The mean of the two smaller eigenvalues, in µm²/ms."""
    return (xx + yy + zz - axial_diffusivity(s0, xx, yy, zz, *rest)) / 2


INVARIANTS = (
    Derived("MD", "µm²/ms", mean_diffusivity),
    Derived("FA", "1", fractional_anisotropy),
    Derived("AD", "µm²/ms", axial_diffusivity),
    Derived("RD", "µm²/ms", radial_diffusivity),
)
"""Mean diffusivity, fractional anisotropy, axial and radial diffusivity."""
TENSOR = (
    Parameter("S0", "a.u.", (0.0, np.inf), "S_0"),
    *(
        Parameter(f"D{ij}", "µm²/ms", (0.0, 5.0), f"D_{{{ij}}}", (0.3, 2.0))
        for ij in ("xx", "yy", "zz")
    ),
    *(
        Parameter(f"D{ij}", "µm²/ms", (-2.5, 2.5), f"D_{{{ij}}}", (-0.3, 0.3))
        for ij in ("xy", "xz", "yz")
    ),
)


class DTI(SelfStarting):
    """S(b, g) = S0 exp(-b gᵀ D g).

    D is a symmetric tensor in the axes of the directions g; maps of what does not depend on the
    axes are derived: MD, FA, and the axial and radial diffusivities AD and RD. Assumes Gaussian
    diffusion: b up to about 1.2 ms/µm² in the brain. Noise can make an eigenvalue negative, and FA
    larger than 1.

    Args:
        b: (M,) diffusion weightings in ms/µm² (1 ms/µm² = 1000 s/mm²).
        gx: (M,) first component of the unit vectors of the directions; 0 where b is 0.
        gy: (M,) second component.
        gz: (M,) third component.

    Raises:
        InputError: if a direction is not of unit length.

    Source: Basser et al. 1994, doi:10.1016/S0006-3495(94)80775-1; FA, Basser & Pierpaoli 1996,
    doi:10.1006/jmrb.1996.0086.

    Example:
        >>> model = DTI(b=[0, 1, 1], gx=[0, 1, 0], gy=[0, 0, 1], gz=[0, 0, 0])
        >>> [round(float(s), 3) for s in model.signal(1.0, 1.5, 0.5, 0.5, 0.0, 0.0, 0.0)]
        [1.0, 0.223, 0.607]
    """

    b: Float[Array | np.ndarray, " M"] = per_measurement()
    gx: Float[Array | np.ndarray, " M"] = per_measurement()
    gy: Float[Array | np.ndarray, " M"] = per_measurement()
    gz: Float[Array | np.ndarray, " M"] = per_measurement()
    measures = "diffusion tensor"
    minimum = "b = 0 and six directions that are not on one cone"
    parameters = TENSOR
    derived = INVARIANTS

    def __check_init__(self) -> None:
        """Refuse directions that are not of unit length."""
        check_directions(type(self).__name__, self.b, self.gx, self.gy, self.gz)

    def signal(self, s0, xx, yy, zz, xy, xz, yz):
        """The equation above, for one voxel."""
        terms = second_order(self.gx, self.gy, self.gz)
        tensor = (xx, yy, zz, xy, xz, yz)
        along = sum(d * term for d, term in zip(tensor, terms, strict=True))
        return s0 * jnp.exp(-self.b * along)

    def guess(self, signal):
        """A linear fit to the log of the signal, weighted by its square."""
        terms = second_order(self.gx, self.gy, self.gz)
        columns = [jnp.ones_like(signal), *(-self.b * term for term in terms)]
        log_s0, *tensor = weighted_log_fit(columns, signal)
        return jnp.exp(log_s0), *tensor


def check_directions(name: str, b, gx, gy, gz) -> None:
    """Check the directions of a model.

    Raises:
        InputError: if one is not of unit length, where b is not about 0.
    """
    length = np.sqrt(np.asarray(gx) ** 2 + np.asarray(gy) ** 2 + np.asarray(gz) ** 2)
    needed = np.asarray(b) > _B_WITHOUT_DIRECTION
    wrong = np.flatnonzero(needed & ~np.isclose(length, 1, atol=_UNIT_LENGTH))
    if len(wrong):
        raise InputError(
            f"{name}: expected directions (gx, gy, gz) of unit length, got length "
            f"{length[wrong[0]]:.3g} for measurement {wrong[0] + 1}; normalise them"
        )


def second_order(gx, gy, gz):
    """The factors of the six elements of a tensor in gᵀ D g."""
    return gx * gx, gy * gy, gz * gz, 2 * gx * gy, 2 * gx * gz, 2 * gy * gz


def weighted_log_fit(columns, signal: Float[Array, " M"]) -> Float[Array, " P"]:
    """The coefficients of columns (M,) that fit the log of one voxel's signal, weighted by its
    square; finite for any signal that is."""
    safe = jnp.maximum(signal, 1e-3 * jnp.max(signal) + 1e-30)
    weight = safe / jnp.max(safe)
    design = jnp.stack(columns, axis=1) * weight[:, None]
    normal = design.T @ design
    ridge = 1e-6 * jnp.trace(normal) / len(columns)
    target = design.T @ (weight * jnp.log(safe))
    matrix = normal + ridge * jnp.eye(len(columns))
    return jnp.linalg.solve(matrix, target) if len(columns) < 8 else eliminate(matrix, target)
