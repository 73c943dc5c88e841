"""Quantitative MRI: parameter maps from a series of images, by bounded maximum likelihood."""

from labelwise.models import IVIM, SelfStarting, SignalModel, acquisition
from labelwise.noise import Gaussian, NoiseModel, Rician
from labelwise.types import Estimate, Estimator, Parameter, Status

__all__ = [
    "IVIM",
    "Estimate",
    "Estimator",
    "Gaussian",
    "NoiseModel",
    "Parameter",
    "Rician",
    "SelfStarting",
    "SignalModel",
    "Status",
    "acquisition",
]
