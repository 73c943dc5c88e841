"""Quantitative MRI: parameter maps by bounded maximum likelihood, and by networks.

Everything in `labelwise.__all__` is imported when it is first used. Signal models are listed in
`labelwise.models`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelwise.evaluation.cramer_rao import cramer_rao as cramer_rao
    from labelwise.evaluation.design import Design as Design
    from labelwise.evaluation.design import design as design
    from labelwise.evaluation.grid import evaluate as evaluate
    from labelwise.evaluation.tuning import Detection as Detection
    from labelwise.evaluation.tuning import Rmse as Rmse
    from labelwise.evaluation.tuning import tune as tune
    from labelwise.fitting.compiler import use_fused_kernels as use_fused_kernels
    from labelwise.fitting.maximum_likelihood import MaximumLikelihood as MaximumLikelihood
    from labelwise.fitting.usable import fit as fit
    from labelwise.io.acquisition import read_bvals as read_bvals
    from labelwise.mapping.images import fit_image as fit_image
    from labelwise.mapping.images import map_image as map_image
    from labelwise.models import *  # noqa: F403
    from labelwise.models.check import check_signal_model as check_signal_model
    from labelwise.networks.labels import MLE as MLE
    from labelwise.networks.labels import FromEstimator as FromEstimator
    from labelwise.networks.labels import GroundTruth as GroundTruth
    from labelwise.networks.labels import Mix as Mix
    from labelwise.networks.network import Network as Network
    from labelwise.networks.network import blend as blend
    from labelwise.networks.network import load as load
    from labelwise.networks.plan import SelfSupervised as SelfSupervised
    from labelwise.networks.plan import TrainingPlan as TrainingPlan
    from labelwise.networks.recipe import Recipe as Recipe
    from labelwise.networks.train import train as train
    from labelwise.networks.train import train_networks as train_networks
    from labelwise.noise import Gaussian as Gaussian
    from labelwise.noise import NoiseModel as NoiseModel
    from labelwise.noise import NoncentralChi as NoncentralChi
    from labelwise.noise import Rician as Rician
    from labelwise.priors import Empirical as Empirical
    from labelwise.priors import Grid as Grid
    from labelwise.priors import Normal as Normal
    from labelwise.priors import Tissue as Tissue
    from labelwise.priors import Uniform as Uniform
    from labelwise.simulation import simulate as simulate
    from labelwise.types import Estimate as Estimate
    from labelwise.types import Estimator as Estimator
    from labelwise.types import InputError as InputError
    from labelwise.types import LabelSource as LabelSource
    from labelwise.types import Parameter as Parameter
    from labelwise.types import Status as Status
    from labelwise.types import Voxels as Voxels

_HOMES = {
    "evaluation.cramer_rao": ("cramer_rao",),
    "evaluation.design": ("Design", "design"),
    "evaluation.grid": ("evaluate",),
    "evaluation.tuning": ("Detection", "Rmse", "tune"),
    "fitting.compiler": ("use_fused_kernels",),
    "fitting.maximum_likelihood": ("MaximumLikelihood",),
    "fitting.usable": ("fit",),
    "io.acquisition": ("read_bvals",),
    "mapping.images": ("fit_image", "map_image"),
    "models.base": ("constant", "per_measurement"),
    "models.check": ("check_signal_model",),
    "networks.labels": ("MLE", "FromEstimator", "GroundTruth", "Mix"),
    "networks.network": ("Network", "blend", "load"),
    "networks.plan": ("SelfSupervised", "TrainingPlan"),
    "networks.recipe": ("Recipe",),
    "networks.train": ("train", "train_networks"),
    "noise": ("Gaussian", "NoiseModel", "NoncentralChi", "Rician"),
    "priors": ("Empirical", "Grid", "Normal", "Tissue", "Uniform"),
    "simulation": ("simulate",),
    "types": (
        "Estimate",
        "Estimator",
        "InputError",
        "LabelSource",
        "Parameter",
        "Status",
        "Voxels",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("labelwise")
    if name in _HOME:
        return getattr(import_module(f"labelwise.{_HOME[name]}"), name)
    if name == "__all__":
        return sorted([*_HOME, *_models()])
    if name[:1].isupper() and name in _models():  # a class: not the name of a module
        return _models()[name]
    raise AttributeError(f"module 'labelwise' has no attribute {name!r}")


def _models() -> dict[str, Any]:
    """The classes that `labelwise.models` imports: the models and their bases."""
    found = vars(import_module("labelwise.models"))
    return {name: value for name, value in found.items() if isinstance(value, type)}


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
