"""Simulation: the same key gives the same bytes, whole or in blocks; the noise is as asked."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import stats

from labelwise import ADC, IVIM, T2EPG, Gaussian, Rician, SignalModel, per_measurement
from labelwise.models.evaluate import signals
from labelwise.priors import Empirical, Grid, Uniform
from labelwise.simulation import BLOCK, simulate, stream

KEY = jax.random.key(11)
MODEL = IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8])
PRIOR = Uniform.paper()
ADC_PRIOR = Uniform({"S0": (0.8, 1.2), "ADC": (0.3, 3)})


class NumpyADC(SignalModel):
    """ADC as a black box, one voxel at a time."""

    b: Float[Array, " M"] = per_measurement()
    differentiable = False
    parameters = ADC.parameters
    calls = itertools.count()

    def signal(self, s0, adc):
        next(self.calls)
        return s0 * np.exp(-self.b * adc)


class Overflowing(SignalModel):
    """Not a number where ADC > 2."""

    b: Float[Array, " M"] = per_measurement()
    parameters = ADC.parameters

    def signal(self, s0, adc):
        return s0 * jnp.exp(-self.b * adc) * jnp.where(adc > 2, jnp.inf, 1.0)


class OverflowingInNumpy(NumpyADC):
    def signal(self, s0, adc):
        return s0 * np.exp(np.float64(1e3 * (adc > 2)) - self.b * adc)


def columns(voxels):
    return voxels.signal, voxels.sigma, voxels.params


def assert_same_bytes(a, b):
    for ours, theirs in zip(columns(a), columns(b), strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def test_same_key_same_bytes_and_another_key_others():
    first, again, other = (
        simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), 300, key)
        for key in (KEY, KEY, jax.random.key(12))
    )
    assert_same_bytes(first, again)
    for ours, theirs in zip(columns(first), columns(other), strict=True):
        assert not np.any(ours == theirs)


def test_fewer_voxels_are_the_first_of_more():
    many = simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), BLOCK + 100, KEY)
    for n in (0, 1, 77, BLOCK, BLOCK + 1):
        few = simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), n, KEY)
        for ours, theirs in zip(columns(few), columns(many), strict=True):
            assert ours.tobytes() == theirs[:n].tobytes()


def test_simulate_is_the_concatenation_of_stream():
    blocks = list(stream(MODEL, Rician(), PRIOR, (0.02, 0.2), BLOCK + 100, KEY))
    assert [len(block) for block in blocks] == [BLOCK, 100]
    whole = simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), BLOCK + 100, KEY)
    for rows, parts in zip(columns(whole), zip(*map(columns, blocks), strict=True), strict=True):
        assert rows.tobytes() == np.concatenate(parts).tobytes()


def test_a_block_depends_on_its_own_index_only():
    few = list(stream(MODEL, Rician(), PRIOR, 0.1, 10, KEY, size=4))
    more = list(stream(MODEL, Rician(), PRIOR, 0.1, 16, KEY, size=4))
    for short, full in zip(few[:2], more, strict=False):
        assert_same_bytes(short, full)
    np.testing.assert_array_equal(few[2].signal, more[2].signal[:2])
    every = np.concatenate([block.signal for block in more]).ravel()
    assert len(np.unique(every)) == len(every)  # no noise is used twice


def test_the_setting_of_float64_changes_no_byte():
    narrow = simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), 50, KEY)
    with jax.enable_x64(True):
        assert_same_bytes(simulate(MODEL, Rician(), PRIOR, (0.02, 0.2), 50, KEY), narrow)


@pytest.mark.parametrize("noise", [Rician(), Gaussian()])
def test_noise_has_the_mean_and_variance_of_its_model(noise):
    prior = Grid({"S0": [1.0], "f": [0.3], "D_slow": [1.5], "D_fast": [40.0]})
    voxels = simulate(MODEL, noise, prior, 0.2, 40_000, KEY)
    clean = np.asarray(MODEL.signal(*prior.points[0]), float)
    mean, variance = np.asarray(noise.mean(clean, 0.2)), np.asarray(noise.variance(clean, 0.2))
    error = np.sqrt(variance / 40_000)
    assert np.all(np.abs(voxels.signal.mean(axis=0) - mean) < 4.5 * error)
    np.testing.assert_allclose(voxels.signal.var(axis=0), variance, rtol=0.04)
    correlation = np.corrcoef(voxels.signal.T) - np.eye(10)
    assert np.max(np.abs(correlation)) < 4.5 / np.sqrt(40_000)


def test_each_voxel_has_the_noise_that_its_sigma_says():
    voxels = simulate(MODEL, Gaussian(), PRIOR, (0.01, 1.0), 20_000, KEY)
    residual = (voxels.signal - signals(MODEL, voxels.params)) / voxels.sigma[:, None]
    assert stats.kstest(residual.ravel()[::10], "norm").pvalue > 0.01


def test_sigma_is_log_uniform_or_one_number():
    drawn = simulate(MODEL, Rician(), PRIOR, (0.01, 1.0), 20_000, KEY).sigma
    assert stats.kstest(np.log10(drawn), stats.uniform(-2, 2).cdf).pvalue > 0.01
    fixed = simulate(MODEL, Rician(), PRIOR, 0.05, 10, KEY).sigma
    np.testing.assert_array_equal(fixed, np.full(10, 0.05, np.float32))


@pytest.mark.parametrize(
    "prior",
    [
        PRIOR,
        Grid.over(PRIOR, 3),
        Empirical([[1.0, 0.3, 1.0, 50.0], [1.0, 0.2, 2.0, 20.0]], PRIOR.names),
    ],
    ids=["uniform", "grid", "empirical"],
)
def test_everything_is_float32_and_can_be_written(prior):
    voxels = simulate(MODEL, Rician(), prior, (0.02, 0.2), 100, KEY)
    assert {rows.dtype for rows in columns(voxels)} == {np.dtype(np.float32)}
    assert all(rows.flags.writeable for rows in columns(voxels))
    assert np.all(voxels.signal >= 0)


def test_a_black_box_gives_what_its_traced_twin_gives():
    b = [0.0, 0.5, 1.0]
    traced = simulate(ADC(b), Rician(), ADC_PRIOR, (0.02, 0.2), 50, KEY)
    before = next(NumpyADC.calls)
    boxed = simulate(NumpyADC(b), Rician(), ADC_PRIOR, (0.02, 0.2), 50, KEY)
    assert next(NumpyADC.calls) - before <= 55  # not the whole block
    assert boxed.params.tobytes() == traced.params.tobytes()
    np.testing.assert_allclose(boxed.signal, traced.signal, atol=1e-6)


def test_a_vectorized_black_box_is_simulated_at_once():
    model = T2EPG([10, 20, 30])
    voxels = simulate(model, Gaussian(), Uniform.typical(model), 1e-6, 1000, KEY)
    np.testing.assert_allclose(voxels.signal, signals(model, voxels.params), atol=1e-5)


@pytest.mark.parametrize("model", [Overflowing([0, 1.0]), OverflowingInNumpy([0, 1.0])])
def test_a_signal_that_is_not_finite_is_named_with_its_parameters(model):
    with pytest.raises(
        ValueError,
        match=r"of \d+ of 100 .* not finite, first for S0 = [\d.]+, ADC = 2\.\d+; narrow",
    ):
        simulate(model, Rician(), ADC_PRIOR, 0.1, 100, KEY)


@pytest.mark.parametrize(
    "sigma",
    [0, -1, np.nan, np.inf, (0.2, 0.1), (0.1, 0.1), (0, 1), (0.1, np.inf), (1, 2, 3), [[1, 2]]],
)
def test_a_sigma_that_is_none_is_refused_at_the_call(sigma):
    with pytest.raises(ValueError, match="sigma: expected a positive number, or"):
        stream(MODEL, Rician(), PRIOR, sigma, 10, KEY)


@pytest.mark.parametrize(
    "prior", [Uniform({"ADC": (0.3, 3), "S0": (0.8, 1.2)}), Uniform({"S0": (0.8, 1.2)}), PRIOR]
)
def test_a_prior_of_other_parameters_is_refused(prior):
    with pytest.raises(ValueError, match=r"prior: expected the parameters of ADC .*S0, ADC; got"):
        stream(ADC([0, 1]), Rician(), prior, 0.1, 10, KEY)


def test_a_prior_of_another_shape_is_refused():
    class Transposed(Uniform):
        def sample(self, key, n):
            return super().sample(key, n).T

    prior = Transposed({"S0": (0.8, 1.2), "ADC": (0.3, 3)})
    with pytest.raises(ValueError, match=r"sample\(key, 65536\) must be \(65536, 2\)"):
        simulate(ADC([0, 1]), Rician(), prior, 0.1, 10, KEY)


@pytest.mark.parametrize(("n", "size"), [(-1, 10), (10, 0)])
def test_impossible_counts_are_refused(n, size):
    with pytest.raises(ValueError, match="n, size: expected"):
        stream(MODEL, Rician(), PRIOR, 0.1, n, KEY, size=size)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
def test_the_memory_of_a_stream_is_that_of_a_block():
    """1.5 million voxels are 90 MB; a stream that kept them would show."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = stream(MODEL, Rician(), PRIOR, (0.02, 0.2), 1_500_000, KEY)
    for _ in range(4):
        next(blocks)
    settled = resident()
    assert sum(len(block) for block in blocks) == 1_500_000 - 4 * BLOCK
    assert resident() - settled < 30e6
