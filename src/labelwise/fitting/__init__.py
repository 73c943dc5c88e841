"""Bounded maximum likelihood, one voxel at a time in meaning and thousands at a time in fact."""

from labelwise.fitting.maximum_likelihood import (
    MaximumLikelihood,
    available_cores,
    check_input,
    fit,
)

__all__ = ["MaximumLikelihood", "available_cores", "check_input", "fit"]
