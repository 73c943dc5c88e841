"""Signal models, one file each; the file name is the model name on the command line.

A new model is a file here and a line below, which makes it `labelwise.Class`.
"""

from labelwise.models.adc import ADC as ADC
from labelwise.models.base import SelfStarting as SelfStarting
from labelwise.models.base import SignalModel as SignalModel
from labelwise.models.base import constant as constant
from labelwise.models.base import per_measurement as per_measurement
from labelwise.models.ivim import IVIM as IVIM
from labelwise.models.kurtosis import Kurtosis as Kurtosis
from labelwise.models.t1_ir import T1InversionRecovery as T1InversionRecovery
from labelwise.models.t1_ir_signed import T1SignedInversionRecovery as T1SignedInversionRecovery
from labelwise.models.t2 import T2 as T2
from labelwise.models.t2_biexponential import T2Biexponential as T2Biexponential
from labelwise.models.t2_epg import T2EPG as T2EPG
