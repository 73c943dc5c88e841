"""Signal models, one file each; the file name is the model name on the command line."""

from labelwise.models.adc import ADC
from labelwise.models.base import SelfStarting, SignalModel, per_measurement
from labelwise.models.ivim import IVIM
from labelwise.models.kurtosis import Kurtosis
from labelwise.models.t1_ir import T1InversionRecovery
from labelwise.models.t1_ir_signed import T1SignedInversionRecovery
from labelwise.models.t2 import T2
from labelwise.models.t2_biexponential import T2Biexponential
from labelwise.models.t2_epg import T2EPG

__all__ = [
    "ADC",
    "IVIM",
    "T2",
    "T2EPG",
    "Kurtosis",
    "SelfStarting",
    "SignalModel",
    "T1InversionRecovery",
    "T1SignedInversionRecovery",
    "T2Biexponential",
    "per_measurement",
]
