"""Starting points: near what they should find, apart from each other, the same in any company."""

import jax.numpy as jnp
import numpy as np
import pytest

import labelwise as lw
from labelwise.fitting.engines import has_kinks
from labelwise.fitting.starts import MAXIMA, Dictionary
from labelwise.models.base import scale_parameter
from labelwise.models.t1_ir_signed import T1SignedInversionRecovery

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000


def dictionary(model):
    return Dictionary(model, model.parameters, scale_parameter(model))


@pytest.fixture(scope="module")
def signal():
    rng = np.random.default_rng(0)
    params = rng.uniform([0.8, 0.1, 0.4, 10], [1.2, 0.5, 3.0, 150], (100, 4))
    return np.stack([np.asarray(lw.IVIM(B).signal(*p)) for p in params]).astype(np.float32)


def starts_of(model, signal, sigma=0.02):
    data = np.ascontiguousarray(np.asarray(signal, np.float32).T)
    sigma = np.full((1, data.shape[1]), sigma, np.float32)
    return dictionary(model).starts(lw.Gaussian(), data, sigma)


def test_an_entry_of_the_dictionary_is_its_own_best_start():
    entries = dictionary(lw.IVIM(B))
    entry = entries.params[:, 77] * np.array([2.5, 1, 1, 1])
    entry[1] = 0.2  # linear: solved, not searched
    start = starts_of(lw.IVIM(B), np.asarray(lw.IVIM(B).signal(*entry))[None])[:, 0, 0]
    np.testing.assert_allclose(start, entry, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "linear"),
    [
        (lw.IVIM(B), ["f"]),
        (lw.T2Biexponential(np.arange(8, 168, 8.0)), ["f"]),
        (lw.T1InversionRecovery([50, 400, 1100, 2500]), []),
        (lw.Kurtosis([0, 0.5, 1, 2]), []),
        (lw.T2EPG(np.arange(1, 9) * 10.0), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_linear_parameters_are_found_by_trial(model, linear):
    assert [model.parameters[i].name for i in dictionary(model).linear] == linear


def test_both_optima_of_an_ambiguous_inversion_recovery_are_started_from():
    model = lw.T1InversionRecovery([100, 800, 3000])
    signal = np.asarray(model.signal(1.0, 900.0, 1.9))[None]
    t1 = starts_of(model, signal, sigma=0.005)[1, :, 0]
    assert np.nanmax(t1) / np.nanmin(t1) > 1.5


def test_a_clear_signal_needs_fewer_starts_than_a_noisy_one():
    rng = np.random.default_rng(0)
    model = lw.IVIM(B)
    clean = np.asarray(model.signal(1.0, 0.3, 1.2, 40.0))
    used = [
        np.isfinite(starts_of(model, clean + rng.normal(0, s, (300, 10)), sigma=s)[0]).sum(0).mean()
        for s in (0.005, 0.1)
    ]
    assert used[0] < used[1]


class Guessed(lw.SelfStarting):
    """A decay with a guess that no entry of the dictionary equals."""

    b: np.ndarray = lw.per_measurement()
    parameters = lw.ADC.parameters

    def signal(self, s0, adc):
        """S0 exp(-b ADC)."""
        return s0 * jnp.exp(-self.b * adc)

    def guess(self, signal):
        """The first measurement, and 1.234."""
        return signal[0], 1.234


def test_self_starting_models_add_their_guess():
    starts = starts_of(Guessed([0, 0.5, 1.0]), [[2.0, 1.0, 0.5], [4.0, 3.0, 2.0]])
    assert starts.shape == (2, MAXIMA + 1, 2)
    np.testing.assert_allclose(starts[:, -1], [[2.0, 4.0], [1.234, 1.234]])


def test_a_guess_sees_the_best_entry_where_a_measurement_is_left_out():
    model = Guessed([0, 0.5, 1.0])
    data = np.array(model.signal(2.0, 1.1), np.float32)[:, None]
    data[0] = 0.0
    sigma = np.array([[1e15], [0.01], [0.01]], np.float32)
    start = dictionary(model).starts(lw.Gaussian(), data, sigma)[0, -1, 0]
    np.testing.assert_allclose(start, 2.0, rtol=0.05)


@pytest.mark.parametrize(
    ("model", "kinked"),
    [
        (lw.IVIM(B), False),
        (lw.Kurtosis([0, 0.5, 1, 2]), False),
        (lw.T2(np.arange(10, 170, 10.0)), False),
        (lw.T1InversionRecovery([50, 400, 1100, 2500]), True),
        (T1SignedInversionRecovery([50, 400, 1100, 2500]), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kinks_are_found_by_trial(model, kinked):
    assert has_kinks(model) == kinked


@pytest.mark.parametrize("voxels", [1, 7, 99])
def test_starts_do_not_depend_on_the_company(signal, voxels):
    model = lw.IVIM(B)
    whole = starts_of(model, signal)
    np.testing.assert_array_equal(starts_of(model, signal[:voxels]), whole[..., :voxels])


def test_a_model_of_one_scale_parameter_and_one_other_is_searched():
    model = lw.ADC([0, 0.5, 1.0])
    starts = starts_of(model, np.asarray(model.signal(3.0, 1.1))[None])
    np.testing.assert_allclose(starts[1, 0, 0], 1.1, rtol=0.1)


def test_an_entry_whose_signal_overflows_is_never_picked():
    model = lw.Kurtosis([0.0, 1.0, 6.0])
    assert np.all(np.isfinite(dictionary(model).terms))
    assert np.all(np.isfinite(starts_of(model, [[1.0, 0.4, 0.02]])[:, 0]))


class Offset(lw.SignalModel):
    """A decay on an offset: no parameter multiplies the whole signal."""

    b: np.ndarray = lw.per_measurement()
    parameters = (
        lw.Parameter("A", "a.u.", (0.0, 1e16)),
        lw.Parameter("k", "1", (0.1, 5.0)),
        lw.Parameter("c", "a.u.", (0.0, 1e16)),
    )

    def signal(self, a, k, c):
        """A exp(-k b) + c."""
        return a * jnp.exp(-k * self.b) + c


def test_bounds_that_overflow_the_dictionary_leave_a_start():
    starts = starts_of(Offset([0, 0.5, 1.0, 2.0]), [[110.0, 70.0, 45.0, 25.0]])
    assert np.isfinite(starts[:, 0]).all()
