"""Quantitative MRI: parameter maps by bounded maximum likelihood, and by networks taught it."""

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
from labelwise.networks.labels import MLE, FromEstimator, GroundTruth, Mix
from labelwise.networks.network import Blend, TrainedNetwork, load
from labelwise.networks.plan import Lesson, SelfSupervised
from labelwise.networks.recipe import Recipe
from labelwise.noise import Gaussian, NoiseModel, Rician
from labelwise.priors import Empirical, Grid, Uniform
from labelwise.types import Estimate, Estimator, LabelSource, Parameter, Status, Voxels

__all__ = [
    "ADC",
    "IVIM",
    "MLE",
    "T2",
    "T2EPG",
    "Blend",
    "Empirical",
    "Estimate",
    "Estimator",
    "FromEstimator",
    "Gaussian",
    "Grid",
    "GroundTruth",
    "Kurtosis",
    "LabelSource",
    "Lesson",
    "MaximumLikelihood",
    "Mix",
    "NoiseModel",
    "Parameter",
    "Recipe",
    "Rician",
    "SelfStarting",
    "SelfSupervised",
    "SignalModel",
    "Status",
    "T1InversionRecovery",
    "T2Biexponential",
    "TrainedNetwork",
    "Uniform",
    "Voxels",
    "load",
    "per_measurement",
]
