"""Bounded maximum likelihood, one voxel at a time in meaning and thousands at a time in fact."""

from labelwise.fitting.maximum_likelihood import MaximumLikelihood, check_input

__all__ = ["MaximumLikelihood", "check_input"]
