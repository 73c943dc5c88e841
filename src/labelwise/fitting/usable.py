"""The fit of arrays, in one call."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from labelwise.fitting.maximum_likelihood import MaximumLikelihood
from labelwise.models import SignalModel
from labelwise.noise import NoiseModel, Rician
from labelwise.types import Estimate


def fit(
    signal: Float[np.ndarray, "*shape M"],
    model: SignalModel,
    sigma: Float[np.ndarray, "..."] | float,
    *,
    noise: NoiseModel | None = None,
    mask: Bool[np.ndarray, "*shape"] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Estimate:
    """Fit a signal model to every voxel by bounded maximum likelihood.

    Args:
        signal: (*shape, M) measurements in any unit; a whole 4D image, or a single voxel (M,).
        model: the signal model with its acquisition of M measurements.
        sigma: noise of one channel in the signal's unit: a number, (*shape) or (*shape, M).
        noise: `Rician()` if None; `Gaussian()` for least squares.
        mask: (*shape) the voxels to fit; all of them if None.
        bounds: replaces the bounds of parameters by name.

    Returns:
        See `MaximumLikelihood`.

    Raises:
        InputError: if shapes or bounds do not fit the model.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> estimate = fit([100.0, 70.5, 49.7], model, sigma=2)
        >>> round(float(estimate["ADC"]), 2)
        0.7
    """
    return MaximumLikelihood(model, noise or Rician(), bounds=bounds)(signal, sigma, mask=mask)
