import labelwise as lw
from jaxtyping import Array, Float


class ADC(lw.SignalModel):
    """S(b) = S0 / (1 + b ADC)."""

    b: Float[Array, "M"] = lw.per_measurement()
    parameters = lw.ADC.parameters

    def signal(self, s0, adc):
        return s0 / (1 + self.b * adc)
