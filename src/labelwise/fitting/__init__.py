"""Bounded maximum-likelihood fits of independent voxels, computed in batches."""

from labelwise.fitting.maximum_likelihood import (
    MaximumLikelihood,
    available_cores,
    check_input,
)
from labelwise.fitting.usable import fit

__all__ = ["MaximumLikelihood", "available_cores", "check_input", "fit"]
