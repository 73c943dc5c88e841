"""Signal models, one file each; the file name is the model name on the command line.

A new model is a file here and a line below, which makes it `labelwise.Class`.
"""

from labelwise.models.adc import ADC as ADC
from labelwise.models.adc_floor import ADCFloor as ADCFloor
from labelwise.models.base import SelfStarting as SelfStarting
from labelwise.models.base import SignalModel as SignalModel
from labelwise.models.base import constant as constant
from labelwise.models.base import per_measurement as per_measurement
from labelwise.models.dki import DKI as DKI
from labelwise.models.dti import DTI as DTI
from labelwise.models.ivim import IVIM as IVIM
from labelwise.models.ivim_kurtosis import IVIMKurtosis as IVIMKurtosis
from labelwise.models.ivim_simplified import IVIMSimplified as IVIMSimplified
from labelwise.models.ivim_triexponential import IVIMTriexponential as IVIMTriexponential
from labelwise.models.kurtosis import Kurtosis as Kurtosis
from labelwise.models.stretched import StretchedExponential as StretchedExponential
from labelwise.models.t1_ir import T1InversionRecovery as T1InversionRecovery
from labelwise.models.t1_ir_general import T1InversionRecoveryGeneral as T1InversionRecoveryGeneral
from labelwise.models.t1_ir_signed import T1SignedInversionRecovery as T1SignedInversionRecovery
from labelwise.models.t1_look_locker import T1LookLocker as T1LookLocker
from labelwise.models.t1_vfa import T1VariableFlipAngle as T1VariableFlipAngle
from labelwise.models.t2 import T2 as T2
from labelwise.models.t2_biexponential import T2Biexponential as T2Biexponential
from labelwise.models.t2_epg import T2EPG as T2EPG
from labelwise.models.t2_mese import T2MultiEcho as T2MultiEcho
from labelwise.models.t2_mese_b1 import T2MultiEchoB1 as T2MultiEchoB1
from labelwise.models.t2_star import T2Star as T2Star
from labelwise.models.verdict import Verdict as Verdict
