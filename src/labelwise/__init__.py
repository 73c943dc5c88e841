"""Quantitative MRI: parameter maps from a series of images, by bounded maximum likelihood."""

from labelwise.compiler import ask_for_fused_kernels
from labelwise.fitting import MaximumLikelihood
from labelwise.models import (
    ADC,
    IVIM,
    T2,
    T2EPG,
    Kurtosis,
    SelfStarting,
    SignalModel,
    T1InversionRecovery,
    T2Biexponential,
    per_measurement,
)
from labelwise.noise import Gaussian, NoiseModel, Rician
from labelwise.types import Estimate, Estimator, Parameter, Status

ask_for_fused_kernels()

__all__ = [
    "ADC",
    "IVIM",
    "T2",
    "T2EPG",
    "Estimate",
    "Estimator",
    "Gaussian",
    "Kurtosis",
    "MaximumLikelihood",
    "NoiseModel",
    "Parameter",
    "Rician",
    "SelfStarting",
    "SignalModel",
    "Status",
    "T1InversionRecovery",
    "T2Biexponential",
    "per_measurement",
]
