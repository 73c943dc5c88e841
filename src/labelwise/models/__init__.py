"""Signal models, one file each; the name of a model at the command line is the name of its file."""

from labelwise.models.base import SelfStarting, SignalModel, acquisition
from labelwise.models.ivim import IVIM

__all__ = ["IVIM", "SelfStarting", "SignalModel", "acquisition"]
