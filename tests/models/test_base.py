import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from labelwise import (
    IVIM,
    Kurtosis,
    MaximumLikelihood,
    Parameter,
    Rician,
    SignalModel,
    per_measurement,
)
from labelwise.evaluation.cramer_rao import cramer_rao
from labelwise.fitting.goodness import goodness
from labelwise.models.base import acquisition_names, measurements, scale_parameter
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import InputError

S0, R = Parameter("S0", "a.u.", (0, np.inf)), Parameter("R", "1/ms", (0, 1))


class TwoSettings(SignalModel):
    te: Float[Array, " M"] = per_measurement()
    ti: Float[Array, " M"] = per_measurement()
    offset: float = 0.5
    parameters = (R, S0)

    def signal(self, r, s0):
        return s0 * (jnp.exp(-r * self.te) + 0.1 * jnp.exp(-r * self.ti))


class Offset(SignalModel):
    te: Float[Array, " M"] = per_measurement()
    parameters = (S0, R)

    def signal(self, s0, r):
        return s0 + jnp.exp(-r * self.te)


@pytest.mark.parametrize(("one", "other"), [("D", "d"), ("Df", "DF"), ("µ", "μ")])
def test_names_whose_maps_would_be_one_file_are_refused(one, other):
    both = Parameter(one, "1", (0, 1)), Parameter(other, "1", (0, 1))
    with pytest.raises(InputError, match="expected distinct names, in lower case, too"):
        type("Own", (SignalModel,), {"parameters": both})


def test_acquisition_is_what_has_no_default():
    assert acquisition_names(TwoSettings) == ("te", "ti")
    assert measurements(TwoSettings([1, 2, 3], [40, 50, 60])) == 3


def test_acquisition_accepts_lists_and_keeps_precision():
    assert IVIM([0, 1]).b.dtype == np.float64


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        TwoSettings([1, 2, 3], [40, 50])


def test_scale_parameter_is_found_by_trying():
    assert scale_parameter(TwoSettings([1, 2], [30, 40])) == 1
    assert scale_parameter(Offset([1, 2])) is None


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ([S0], InputError, "expected a tuple of labelwise.Parameter"),
        ((S0, "R"), InputError, "expected a tuple of labelwise.Parameter"),
        ((S0, S0), ValueError, "expected distinct names"),
        ((), ValueError, "expected distinct names"),
    ],
)
def test_a_plug_ins_mistakes_are_found_when_its_class_is_made(parameters, error, message):
    with pytest.raises(error, match=message):
        type("Broken", (SignalModel,), {"parameters": parameters, "__module__": __name__})


def test_a_model_is_frozen():
    with pytest.raises(AttributeError):
        IVIM([0, 1]).b = np.zeros(2)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_that_a_compiled_function_closed_over_is_still_usable():
    """Once every float64 program refused it: JAX remembered its array in float32."""
    model, params = Kurtosis([0, 0.5, 1.0, 1.5, 2.0]), np.array([[1.0, 1.0, 0.8]])
    compiled = jax.jit(lambda voxel: model.signal(*voxel))  # alive as long as this test
    signal = np.asarray(compiled(params[0]))[None]
    estimate = MaximumLikelihood(model, Rician())(signal, 0.001)
    np.testing.assert_allclose(estimate.values, params, rtol=1e-2)
    assert np.all(np.isfinite(cramer_rao(model, Rician(), params, 0.1)))
    assert np.all(np.isfinite(goodness(model, Rician(), signal, 0.1, params)))
    simulate(model, Rician(), Uniform.typical(model), 0.1, 10, jax.random.key(0))
