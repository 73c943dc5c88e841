"""One iteration: its linear algebra and its step inside the box, against SciPy and NumPy."""

import jax
import numpy as np
import pytest
from scipy.optimize import lsq_linear

import labelwise as lw
from labelwise.fitting import newton
from labelwise.fitting.engines import NO_WEIGHT
from labelwise.fitting.newton import (
    Evaluated,
    Problem,
    lower_triangle,
    propose,
    solve_symmetric,
)


def random_problem(seed, size=4):
    """A well-conditioned quadratic model, (P, P) and (P,), of one voxel."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size + 3, size))
    return root.T @ root, rng.normal(size=size), root


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_symmetric_systems_are_solved_as_by_numpy(size):
    matrix, target, _ = random_problem(size, size)
    entries = {(i, j): np.array([matrix[i, j]], np.float32) for i, j in lower_triangle(size)}
    solution = solve_symmetric(entries, [np.array([x], np.float32) for x in target])
    np.testing.assert_allclose(
        np.ravel(solution), np.linalg.solve(matrix, target), rtol=1e-3, atol=1e-4
    )


def propose_from_zero(hessian, gradient, lower, upper, damping=1e-7):
    """The step (P,) proposed for one voxel at the origin, and the decrease it promises."""
    q = tuple(np.zeros((4, 1), np.float32))
    at = Evaluated(
        nll=np.zeros(1, np.float32),
        gradient=tuple(gradient[:, None].astype(np.float32)),
        hessian={(i, j): np.array([hessian[i, j]], np.float32) for i, j in lower_triangle(4)},
    )
    box = lower[:, None].astype(np.float32), upper[:, None].astype(np.float32)
    trial, predicted = propose(q, at, damping, Problem(np.zeros((1, 1)), np.ones((1, 1)), *box))
    return np.ravel(trial), float(predicted[0])


@pytest.mark.parametrize("bounded", range(4))
@pytest.mark.parametrize("seed", range(4))
def test_the_step_minimises_the_quadratic_model_when_a_bound_binds(seed, bounded):
    hessian, gradient, root = random_problem(seed)
    newton = -np.linalg.solve(hessian, gradient)
    lower, upper = np.full(4, -100.0), np.full(4, 100.0)
    upper[bounded] = abs(newton[bounded]) / 3
    lower[bounded] = -upper[bounded]
    step, predicted = propose_from_zero(hessian, gradient, lower, upper)
    target = -np.linalg.lstsq(root.T, gradient, rcond=None)[0]
    best = lsq_linear(root, target, bounds=(lower, upper), tol=1e-12).x
    np.testing.assert_allclose(step, best, rtol=1e-3, atol=1e-4)
    model = gradient @ step + 0.5 * step @ hessian @ step
    np.testing.assert_allclose(predicted, -model, rtol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_a_damped_step_in_a_tight_box_stays_inside_and_promises_a_decrease(seed):
    hessian, gradient, _ = random_problem(seed)
    rng = np.random.default_rng(100 + seed)
    lower, upper = -rng.uniform(0.0, 0.4, 4), rng.uniform(0.0, 0.4, 4)
    step, predicted = propose_from_zero(hessian, gradient, lower, upper, damping=1e3)
    assert np.all((step >= np.float32(lower)) & (step <= np.float32(upper)))
    assert predicted > 0


@pytest.mark.parametrize("noise", [lw.Rician(), lw.Gaussian()])
@pytest.mark.parametrize("count", [4, 8, 9, 17, 24])
@pytest.mark.parametrize("model_class", [lw.IVIM, lw.T2MultiEcho])
def test_sums_over_measurements_are_those_of_all_at_once(model_class, count, noise, monkeypatch):
    settings = (
        np.linspace(0, 0.8, count) if model_class is lw.IVIM else 10.0 * np.arange(1, 1 + count)
    )
    fitter = lw.MaximumLikelihood(model_class(settings), noise)
    rng = np.random.default_rng(count)
    middle = np.array([np.mean(p.typical or (1.0, 1.0)) for p in fitter.parameters])
    params = (middle[:, None] * rng.uniform(0.9, 1.1, (len(middle), 5))).astype(np.float32)
    q = tuple(fitter._coordinates.of(params))
    sigma = np.full((count, 5), 0.05, np.float32)
    sigma[count // 2, :2] = NO_WEIGHT
    data = rng.uniform(0.2, 1.0, (count, 5)).astype(np.float32)
    problem = Problem(data, sigma, np.zeros_like(params), np.ones_like(params))
    found = []
    for fused in (True, False):
        monkeypatch.setattr(newton, "kernels_are_fused", lambda fused=fused: fused)
        found.append(newton.evaluate(fitter._engine.expand, noise, q, problem))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-3 * np.abs(other).max())
