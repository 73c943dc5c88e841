"""`check_signal_model` finds each thing that can be wrong with a model, and names it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from labelwise import IVIM, T2EPG, Parameter, SelfStarting, SignalModel, per_measurement
from labelwise.models.check import check_signal_model
from labelwise.types import InputError

B = [0.0, 0.3, 0.7, 1.0]
S0 = Parameter("S0", "a.u.", (0, np.inf))
D = Parameter("D", "µm²/ms", (0, 4))
K = Parameter("K", "1", (0, 3))


class Model(SignalModel):
    """A good model; those below break one thing each."""

    b: Float[Array, " M"] = per_measurement()
    parameters = (S0, D)

    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * d)


class HoldsNowhere(Model):
    def holds(self, s0, d):
        return d < 0


class HoldsForOneVoxel(Model):
    def holds(self, s0, d):
        if d < 1:
            return True
        return d == 2


class HoldsOutsideJAX(Model):
    def holds(self, s0, d):
        return np.less(np.asarray(d), 1)


class TooFewArguments(Model):
    def signal(self, s0):
        return s0 * jnp.exp(-self.b)


class Fails(Model):
    def signal(self, s0, d):
        return self.nonsense


class ScalarSignal(Model):
    def signal(self, s0, d):
        return jnp.sum(s0 * jnp.exp(-self.b * d))


class IntegerSignal(Model):
    def signal(self, s0, d):
        return jnp.round(100 * s0 * jnp.exp(-self.b * d)).astype(int)


class ComplexSignal(Model):
    def signal(self, s0, d):
        return s0 * jnp.exp(-1j * self.b * d)


class NumpyInside(Model):
    def signal(self, s0, d):
        return s0 * np.exp(-self.b * d)


class Branches(Model):
    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * d) if d > 1 else s0 * self.b


class InfiniteAtZero(Model):
    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * d) + s0 / (d * 1e300) * 1e-8 / 1e-300


class OverflowsInFloat32(Model):
    def signal(self, s0, d):
        return s0 * jnp.exp(40 * self.b * d)


class LosesDigitsInFloat32(Model):
    def signal(self, s0, d):
        return s0 * ((1 + 1e-6 * self.b * d) - 1) * 1e6 + s0 * 0.1


class NoSlopeAtZeroB(Model):
    """Stretched: at b = 0 the slope of (b D)^0.8 is infinite, and infinity times 0 is NaN."""

    def signal(self, s0, d):
        return s0 * jnp.exp(-((self.b * d) ** 0.8))


class WrongSlope(Model):
    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * (0.5 * d + 0.5 * jax.lax.stop_gradient(d)))


class WithoutUpperBound(Model):
    parameters = (S0, Parameter("D", "µm²/ms", (0, np.inf)))


class NoEffect(Model):
    parameters = (S0, D, K)

    def signal(self, s0, d, k):
        return s0 * jnp.exp(-self.b * d) + 0 * k


class Exchangeable(Model):
    parameters = (S0, D, K)

    def signal(self, s0, d, k):
        return s0 * jnp.exp(-self.b * (d + 0.3 * k))


class JointlyBlind(Model):
    """Three rates of which only two combinations are seen."""

    parameters = (S0, D, K, Parameter("L", "1", (0, 1)))

    def signal(self, s0, d, k, low):
        return s0 * jnp.exp(-self.b * (d + low) + self.b**2 * (k + low))


class BadGuess(SelfStarting):
    b: Float[Array, " M"] = per_measurement()
    parameters = (S0, D)

    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * d)

    def guess(self, signal):
        return signal[0], 1.0, 2.0


class NaNGuess(BadGuess):
    def guess(self, signal):
        return jnp.max(signal), jnp.nan


class BlackBox(Model):
    differentiable: ClassVar[bool] = False

    def signal(self, s0, d):
        return s0 * np.exp(-self.b * d)


class VectorizedBox(BlackBox):
    vectorized: ClassVar[bool] = True


class Moody(BlackBox):
    def signal(self, s0, d):
        return s0 * np.exp(-self.b * d) + np.random.default_rng().normal(size=4)


class Meddles(BlackBox):
    def signal(self, s0, d):
        self.b[1] += 1e-9
        return s0 * np.exp(-np.round(self.b, 3) * d)


class FailsInACorner(BlackBox):
    def signal(self, s0, d):
        if d == 0:
            raise RuntimeError("D must not be 0")
        return s0 * np.exp(-self.b * d)


class FalselyVectorized(VectorizedBox):
    def signal(self, s0, d):
        return np.ravel(s0)[0] * np.exp(-self.b * np.ravel(d)[0])


class WronglyVectorized(VectorizedBox):
    def signal(self, s0, d):
        return s0 * np.exp(-self.b * np.mean(d))


@pytest.mark.parametrize("model_class", [Model, BlackBox, VectorizedBox])
def test_a_good_model_passes(model_class):
    assert check_signal_model(model_class(B)) is None


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (HoldsNowhere, "holds is true nowhere within the bounds"),
        (HoldsForOneVoxel, r"holds fails for arrays of parameters \(ValueError\)"),
        (HoldsOutsideJAX, r"holds fails for arrays of parameters \(TracerArrayConversionError\)"),
        (TooFewArguments, r"signal\(s0\) does not take one argument per parameter \(S0, D\)"),
        (Fails, r"signal fails at S0 = .*, D = .*AttributeError"),
        (ScalarSignal, r"signal has shape \(\) for 4 measurements, expected \(4,\)"),
        (IntegerSignal, "signal has type int32, expected real"),
        (ComplexSignal, "signal has type complex64, expected real"),
        (NumpyInside, r"JAX cannot trace signal \(TracerArrayConversionError\)"),
        (Branches, r"JAX cannot trace signal \(TracerBoolConversionError\)"),
        (InfiniteAtZero, r"signal is not finite at .*D = 0 \(2 of 44 points tried\)"),
        (OverflowsInFloat32, "signal is not finite in float32 at .*D = "),
        (LosesDigitsInFloat32, r"signal in float32 is off by \d+%.*expm1"),
        (NoSlopeAtZeroB, r"the slope along S0 and D is not finite at .*powers"),
        (WrongSlope, "the slope along D differs from finite differences"),
        (WithoutUpperBound, "D has no upper bound and is no factor"),
        (NoEffect, "K has no effect on the signal of this acquisition"),
        (Exchangeable, "D and K cannot be distinguished"),
        (JointlyBlind, "D and K and L cannot be distinguished"),
        (BadGuess, r"guess gives values of shape \(3,\), expected 2 scalars"),
        (NaNGuess, "guess is not finite for a noise-free signal"),
        (Moody, "signal differs when called again"),
        (Meddles, "signal modifies its input or its acquisition"),
        (FailsInACorner, "fails somewhere inside the bounds: RuntimeError: D must not be 0"),
        (FalselyVectorized, r"shape \(40, 1\) give a signal of shape \(4,\), expected \(40, 4\)"),
        (WronglyVectorized, "a batch of voxels gives other signals than one voxel at a time"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_finds(model_class, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_signal_model(model_class(B))
    assert str(caught.value).startswith(f"{model_class.__name__}: 1 wrong")


def test_slopes_are_tried_at_zero_b_even_if_the_acquisition_has_none():
    with pytest.raises(ValueError, match=r"is not finite at .* and b = 0; powers"):
        check_signal_model(WithoutZero([0.3, 0.7, 1.0]))


class WithoutZero(Model):
    """Finite at D = 0 (its bounds begin above it), not at b = 0."""

    parameters = (S0, Parameter("D", "µm²/ms", (0.1, 4)))

    def signal(self, s0, d):
        return s0 * jnp.exp(-((self.b * d) ** 0.8))


def test_too_few_measurements():
    with pytest.raises(ValueError, match="1 measurements cannot determine 2 parameters"):
        check_signal_model(Model([0.5]))


def test_an_acquisition_that_cannot_tell_parameters_apart():
    """Two b-values, each many times, do not determine the four parameters of IVIM."""
    with pytest.raises(ValueError, match="cannot be distinguished"):
        check_signal_model(IVIM([0, 0, 0, 0.5, 0.5, 0.5]))


def test_everything_wrong_is_in_one_error():
    class Twice(BadGuess):
        parameters = (S0, Parameter("D", "µm²/ms", (0, np.inf)))

    with pytest.raises(ValueError, match=r"2 wrong\n- D has no upper bound.*\n- guess gives"):
        check_signal_model(Twice(B))


@pytest.mark.parametrize("model", [IVIM, T2EPG, "ivim", None], ids=str)
def test_refuses_what_is_no_model(model):
    with pytest.raises(InputError, match="expected a signal model with its acquisition"):
        check_signal_model(model)


def test_leaves_the_precision_switch_alone():
    before = jax.config.jax_enable_x64
    check_signal_model(Model(B))
    assert jax.config.jax_enable_x64 == before
