"""Fits with many parameters: arrays and loops give what unrolled programs give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import labelwise as lw
from helpers import assert_same, shells
from labelwise.fitting import engines, many
from labelwise.fitting.newton import Evaluated, Problem, lower_triangle, propose, slopes
from labelwise.models.base import eliminate, never_negative
from labelwise.models.evaluate import signals
from labelwise.networks.labels import MLE, GroundTruth
from labelwise.networks.plan import TrainingPlan
from labelwise.simulation import simulate
from labelwise.types import InputError, Status

RNG = np.random.default_rng(0)


def random_hessians(size, voxels):
    root = RNG.normal(size=(voxels, size + 5, size))
    return np.moveaxis(np.swapaxes(root, 1, 2) @ root, 0, -1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 9, 22])
def test_symmetric_systems_are_solved_as_by_numpy(size):
    matrix, target = random_hessians(size, 5), RNG.normal(size=(size, 5)).astype(np.float32)
    found = eliminate(jnp.asarray(matrix), jnp.asarray(target))
    expected = np.linalg.solve(np.moveaxis(matrix, -1, 0).astype(float), target.T[..., None])
    np.testing.assert_allclose(found, expected[..., 0].T, rtol=2e-3, atol=1e-3)
    one = eliminate(jnp.asarray(matrix[..., 0]), jnp.asarray(target[:, 0]))
    np.testing.assert_allclose(one, found[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reach", [0.05, 0.5, 100.0])
def test_steps_are_those_of_the_unrolled_program(reach):
    size, voxels = 4, 50
    hessian = random_hessians(size, voxels)
    gradient = RNG.normal(size=(size, voxels)).astype(np.float32)
    lower = -reach * RNG.uniform(0, 1, (size, voxels)).astype(np.float32)
    upper = reach * RNG.uniform(0, 1, (size, voxels)).astype(np.float32)
    q, damping = np.zeros((size, voxels), np.float32), np.full(voxels, 0.1, np.float32)
    entries = {(i, j): hessian[i, j] for i, j in lower_triangle(size)}
    at = Evaluated(np.zeros(voxels, np.float32), tuple(gradient), entries)
    problem = Problem(np.zeros((1, voxels)), np.ones((1, voxels)), lower, upper)
    expected, decrease = propose(tuple(q), at, damping, problem)
    step, predicted = many.propose(q, gradient, jnp.asarray(hessian), damping, lower, upper)
    np.testing.assert_allclose(step, np.stack(expected), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(predicted, decrease, rtol=1e-3, atol=1e-5)


def test_standard_errors_are_those_of_the_unrolled_program():
    """Also where a parameter is on a bound that the measurements reject, or has no effect."""
    model, noise, voxels = lw.DTI(**shells(1.0)), lw.Rician(), 40
    data = simulate(model, noise, lw.Uniform.typical(model), 0.03, voxels, jax.random.key(0))
    q = np.array(data.params.T)
    q[0, :5] = 0
    free = np.ones((7, voxels), bool)
    free[3, 10:20], free[5, 15:25] = False, False
    q[3, 10:20] += 0.5  # far from the optimum
    free[0, 25:] = False
    q[0, 25:] += 0.02  # about a standard error

    def signal(*q):
        return jax.vmap(model.signal, out_axes=-1)(*q)

    along = slopes(signal, tuple(jnp.asarray(q)))
    np.testing.assert_allclose(
        many.slopes(signal, jnp.asarray(q)), jnp.stack(along), rtol=1e-5, atol=1e-6
    )
    sigma = np.full((1, voxels), 0.03, np.float32)
    problem = Problem(data.signal.T, sigma, q - 1, q + 1)
    given = noise, signal(*q), along, problem, free, ~free
    expected, found = engines._errors(*given), engines._errors_of_many(*given)
    assert np.isinf(expected).any()
    assert np.isnan(expected[0, 10:20]).any()
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_a_fit_in_arrays_ends_where_the_unrolled_one_does(monkeypatch):
    model, noise = lw.DTI(**shells(1.0)), lw.Rician()
    data = simulate(model, noise, lw.Uniform.typical(model), 0.05, 300, jax.random.key(1))
    usual = lw.MaximumLikelihood(model, noise)(data.signal, 0.05)
    monkeypatch.setattr(many, "UNROLLED", 0)
    found = lw.MaximumLikelihood(model, noise, max_iterations=199)(data.signal, 0.05)
    assert (found.status == usual.status).all()
    error = usual.stats["standard_error"]
    assert np.nanmax(np.abs(found.values - usual.values) / error) < 0.02
    np.testing.assert_allclose(found.stats["standard_error"], error, rtol=0.02)
    np.testing.assert_allclose(found.stats["nll"], usual.stats["nll"], atol=1e-3)


# --- the kurtosis tensor: 22 parameters

DKI = lw.DKI(**shells(1.0, 2.0, zeros=5))
SIGMA = 0.02


@pytest.fixture(scope="module")
def fitter():
    return lw.MaximumLikelihood(DKI, lw.Rician(), threads=1)


@pytest.fixture(scope="module")
def data():
    middle = np.array([np.mean(p.typical or (1.0, 1.0)) for p in DKI.parameters])
    clean = signals(DKI, middle[None]).astype(np.float32)
    rows = np.repeat(clean, 3000, axis=0)
    return middle, np.asarray(lw.Rician().sample(jax.random.key(2), rows, np.float32(SIGMA)))


def test_estimates_of_22_parameters_reach_cramer_rao(fitter, data):
    truth, noisy = data
    found = fitter(noisy, SIGMA)
    assert (found.status == Status.CONVERGED).all()
    bound = lw.cramer_rao(DKI, lw.Rician(), truth[None], SIGMA)[0]
    np.testing.assert_allclose(found.values.std(axis=0) / bound, 1, atol=0.06)
    assert np.abs((found.values.mean(axis=0) - truth) / bound).max() < 0.3
    np.testing.assert_allclose(np.median(found.stats["standard_error"], axis=0), bound, rtol=0.06)
    assert np.median(found.stats["residual"]) == pytest.approx(1, abs=0.02)


def test_other_voxels_and_threads_change_none_of_22_parameters(fitter, data):
    """Two threads once waited for each other in their guesses."""
    noisy = data[1][:600]
    whole = fitter(noisy, SIGMA)
    assert_same(lw.MaximumLikelihood(DKI, lw.Rician(), threads=2)(noisy, SIGMA), whole)
    order = np.random.default_rng(1).permutation(600)[:70]
    part = fitter(noisy[order], SIGMA)
    assert part.values.tobytes() == whole.values[order].tobytes()
    assert part.stats["standard_error"].tobytes() == whole.stats["standard_error"][order].tobytes()


def test_a_measurement_that_is_left_out_does_not_matter(fitter, data):
    noisy, sigma = data[1][:100].copy(), np.full((100, DKI.b.size), SIGMA)
    sigma[:, [7, 20, 40, 64]] = np.inf
    found = fitter(noisy, sigma)
    noisy[:, 7], noisy[:, 40] = 0, 50
    assert_same(fitter(noisy, sigma), found)
    assert (found.status == Status.CONVERGED).all()


def test_intervals_of_many_parameters_are_refused():
    with pytest.raises(InputError, match="up to 8 parameters, and DKI has 22; use standard errors"):
        lw.MaximumLikelihood(DKI, lw.Rician(), intervals=0.95)


def test_many_parameters_have_standard_errors_only(data):
    with pytest.warns(UserWarning, match="DKI has 22, so there are standard errors only"):
        found = lw.fit(data[1][:3], DKI, SIGMA)
    assert "low" not in found.stats
    assert np.isfinite(found.stats["standard_error"]).all()


@pytest.mark.parametrize("label", [GroundTruth(), MLE(DKI, lw.Rician())])
def test_networks_of_many_parameters_have_no_intervals(label):
    with pytest.raises(InputError, match="up to 8 parameters, and DKI has 22; train without"):
        TrainingPlan(DKI, lw.Rician(), lw.Uniform.typical(DKI), SIGMA, (label,), intervals=True)


# --- one's own model without a guess


class Series(lw.SignalModel):
    """The exponential of a series of cosines."""

    t: np.ndarray = lw.per_measurement()
    parameters = tuple(lw.Parameter(f"c{k}", "1", (-0.6, 0.6)) for k in range(10))

    def signal(self, *c):
        return jnp.exp(sum(x * jnp.cos(k * self.t) for k, x in enumerate(c)))


def test_ten_parameters_are_found_from_entries_at_random():
    model = Series(np.linspace(0, np.pi, 30))
    truth = np.random.default_rng(3).uniform(-0.4, 0.4, (100, 10))
    fitter = lw.MaximumLikelihood(model, lw.Gaussian())
    assert len(fitter._dictionary.params.T) == 256
    found = fitter(signals(model, truth), 0.01)
    assert (found.status == Status.CONVERGED).all()
    np.testing.assert_allclose(found.values, truth, atol=1e-3)


def test_a_magnitude_of_many_parameters_is_recognised_at_some_points():
    assert never_negative(DKI)

    class Signed(Series):
        def signal(self, *c):
            return sum(x * jnp.cos(k * self.t) for k, x in enumerate(c))

    assert never_negative(Series(np.linspace(0, 1, 12)))
    assert not never_negative(Signed(np.linspace(0, 1, 12)))
