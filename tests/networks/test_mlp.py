"""The perceptron against NumPy, and the scaling around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from labelwise.networks.mlp import ACTIVATIONS, Architecture, Scaling, apart, elu, fit_scaling

NUMPY = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
}
RNG = np.random.default_rng(0)
SIGNAL = RNG.uniform(0.2, 1.5, (200, 5)).astype(np.float32)
SIGMA = RNG.uniform(0.02, 0.1, 200).astype(np.float32)
PARAMS = RNG.uniform([0.8, 10], [1.2, 150], (200, 2)).astype(np.float32)
GROUPS = ((1, 4), (0,), (2,), (3,))
SCALING = Scaling(
    groups=GROUPS,
    reference=(1, 4),
    scale=0,
    conditioned=True,
    centre=(0.0, 0.5, 0.5, 0.5, -3.0),
    spread=(1.0, 0.2, 0.2, 0.25, 0.5),
    unit=(1.0, 80.0),
)


def fitted(params=PARAMS, **changes):
    settings = {"groups": GROUPS, "reference": (1, 4), "scale": 0, "conditioned": True} | changes
    return fit_scaling(SIGNAL, SIGMA, params, **settings)


def seen_by(scaling, signal=SIGNAL, sigma=SIGMA):
    return np.asarray(scaling.inputs(jnp.asarray(signal.T), jnp.asarray(sigma)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_is_the_matrices_it_says(activation):
    architecture = Architecture(inputs=4, outputs=3, width=6, depth=2, activation=activation)
    weights = architecture.initial(np.random.default_rng(1))
    x = np.random.default_rng(2).normal(size=(4, 50)).astype(np.float32)
    hidden = x.astype(float)
    for matrix, bias in weights[:-1]:
        hidden = NUMPY[activation](matrix.astype(float) @ hidden + bias)
    expected = np.abs(weights[-1][0].astype(float) @ hidden + weights[-1][1])
    outputs = np.asarray(architecture(weights, jnp.asarray(x)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert np.all(outputs >= 0)


def test_signed_outputs_keep_their_sign():
    usual = Architecture(inputs=4, outputs=3, width=6)
    weights, x = (
        usual.initial(np.random.default_rng(1)),
        np.random.default_rng(2).normal(scale=30, size=(4, 50)),
    )
    raw = np.asarray(usual.linear(weights, jnp.asarray(x, jnp.float32)))
    assert (raw < 0).any(axis=1).all()
    signed = Architecture(inputs=4, outputs=3, width=6, signed=True)
    outputs = signed(weights, jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(outputs, raw)


def test_the_number_of_weights_is_counted():
    architecture = Architecture(inputs=4, outputs=3, width=6, depth=2)
    weights = architecture.initial(np.random.default_rng(0))
    assert sum(array.size for pair in weights for array in pair) == architecture.weights


def test_first_weights_lie_within_the_fan_in_and_follow_the_seed():
    architecture = Architecture(inputs=9, outputs=3, width=100, depth=1)
    first, again, other = (architecture.initial(np.random.default_rng(s)) for s in (0, 0, 1))
    (matrix, bias), _ = first
    assert 0.3 < np.abs(matrix).max() <= 1 / 3
    assert 0.3 < np.abs(bias).max() <= 1 / 3
    assert matrix.tobytes() == again[0][0].tobytes()
    assert matrix.tobytes() != other[0][0].tobytes()


@pytest.mark.parametrize("x", [-200.0, -3.0, -0.1, 0.1, 3.0, 200.0])
def test_the_slope_of_elu_is_that_of_its_equation(x):
    expected = 1.0 if x > 0 else np.exp(x)
    assert float(jax.grad(elu)(x)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"width": 0}, "size"), ({"depth": 0}, "size"), ({"activation": "swish"}, "known are elu")],
)
def test_an_impossible_architecture_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Architecture(**({"inputs": 2, "outputs": 2, "width": 2} | changes))


def test_inputs_are_relative_to_the_reference_averaged_and_scaled():
    reference = SIGNAL[:, [1, 4]].astype(float).mean(axis=1)
    relative = np.stack([SIGNAL[:, list(group)].mean(axis=1) / reference for group in GROUPS])
    raw = np.vstack([relative, np.log(SIGMA / reference)])
    expected = (raw - np.array(SCALING.centre)[:, None]) / np.array(SCALING.spread)[:, None]
    np.testing.assert_allclose(seen_by(SCALING), expected, rtol=1e-5, atol=2e-5)


def test_without_a_reference_signals_are_seen_as_they_are():
    scaling = fitted(reference=(), groups=((0,), (1,), (2,), (3,), (4,)), conditioned=False)
    undone = seen_by(scaling) * np.array(scaling.spread)[:, None]
    np.testing.assert_allclose(undone + np.array(scaling.centre)[:, None], SIGNAL.T, rtol=1e-5)
    assert scaling.scale is None


def test_inputs_are_centred_with_unit_spread_and_targets_are_one_on_average():
    scaling = fitted()
    seen = seen_by(scaling)
    np.testing.assert_allclose(seen.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(seen[1:].std(axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(seen[0], 0, atol=1e-5)  # the reference over itself
    reference = scaling.reference_of(jnp.asarray(SIGNAL.T))
    targets = np.asarray(scaling.targets(jnp.asarray(PARAMS.T), reference))
    np.testing.assert_allclose(targets.mean(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("scaling", [SCALING, fitted(), fitted(reference=())])
def test_targets_are_what_params_undoes(scaling):
    reference = scaling.reference_of(jnp.asarray(SIGNAL.T))
    back = scaling.params(scaling.targets(jnp.asarray(PARAMS.T), reference), reference)
    np.testing.assert_allclose(back, PARAMS.T, rtol=3e-7)


def test_the_unit_of_the_signal_changes_no_input_and_scales_one_parameter():
    louder = 1024 * SIGNAL  # a power of two, which rounds nothing
    np.testing.assert_array_equal(seen_by(SCALING, louder, 1024 * SIGMA), seen_by(SCALING))
    outputs = jnp.ones((2, 200))
    quiet, loud = (
        np.asarray(SCALING.params(outputs, SCALING.reference_of(jnp.asarray(each.T))))
        for each in (SIGNAL, louder)
    )
    np.testing.assert_array_equal(loud, quiet * [[1024], [1]])


def test_a_bad_voxel_changes_no_other():
    spoilt = SIGNAL.copy()
    spoilt[7] = np.nan
    spoilt[8] = 0
    others = np.setdiff1d(np.arange(200), [7, 8])
    np.testing.assert_array_equal(seen_by(SCALING, spoilt)[:, others], seen_by(SCALING)[:, others])


def test_a_parameter_that_is_always_zero_has_no_scale():
    with pytest.raises(ValueError, match="0 in every simulated voxel"):
        fitted(PARAMS * np.array([1, 0], np.float32))


def test_a_product_apart_is_a_product_and_has_its_slopes():
    rng = np.random.default_rng(0)
    matrix, values, weights = (
        rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 40), (5, 40))
    )

    def slopes(product):
        return jax.grad(lambda x: jnp.sum(weights * jnp.tanh(product(matrix, x))))(values)

    np.testing.assert_allclose(apart(matrix, values), matrix @ values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(apart), slopes(jnp.matmul), rtol=1e-5, atol=1e-6)
