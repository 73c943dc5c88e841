"""The multilayer perceptron, and the scaling of its inputs and outputs.

Inputs and outputs of a network are near 1. `Scaling` turns measurements into inputs, and outputs
into parameters. Voxels are the last axis: a small matrix times many voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.types import InputError, Voxels

Weights = tuple[tuple[Array | np.ndarray, Array | np.ndarray], ...]
"""One (matrix, bias) for each layer, of shapes (..., to, from) and (..., to, 1)."""


def named(weights: Weights) -> dict[str, Float[np.ndarray, "to from"]]:
    """The arrays of weights by name, as in files."""
    return {
        f"{layer}.{name}": np.asarray(values, np.float32)
        for layer, pair in enumerate(weights)
        for name, values in zip(("matrix", "bias"), pair, strict=True)
    }


@jax.custom_vjp
def elu(x: Array) -> Array:
    """x above 0, exp(x) - 1 below. Clevert et al. 2015, arXiv:1511.07289.

    The derivative is computed from the value, which saves an exponential.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def _elu_forward(x):
    h = elu(x)
    return h, h


def _elu_backward(h, gradient):
    return (gradient * (jnp.minimum(h, 0) + 1),)


elu.defvjp(_elu_forward, _elu_backward)

Product = Callable[[Array, Array], Array]


@jax.custom_vjp
def apart(matrix: Float[Array, "to from"], values: Float[Array, "from N"]) -> Float[Array, "to N"]:
    """matrix @ values, in an array that the next operation does not overwrite.

    XLA does not vectorise plain kernels that overwrite their input: the activation of a layer takes
    five times as long. A part of a larger array is not overwritten.
    """
    padded = jnp.concatenate([matrix, matrix[:1]])
    return jax.lax.optimization_barrier(padded @ values)[: len(matrix)]


apart.defvjp(
    lambda matrix, values: (apart(matrix, values), matrix),
    lambda matrix, gradient: (jnp.zeros_like(matrix), apart(matrix.T, gradient)),
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": elu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}


@dataclass(frozen=True)
class Architecture:
    """A multilayer perceptron whose outputs are absolute values, unless they are signed.

    Args:
        inputs: number of inputs, I.
        outputs: number of outputs, P.
        width: nodes of each hidden layer.
        depth: number of hidden layers.
        activation: `"elu"` (the paper's), `"relu"`, `"tanh"` or `"softplus"`.
        signed: whether outputs may be negative, as a parameter of the model may be. All of them, as
            absolute values of some outputs vanish between voxels for which the last layer gives
            either sign: of the tensor, 2 % had an S0 near 0.

    Raises:
        InputError: if a size is not positive or the activation is unknown.

    Source: section 3.2 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> Architecture(inputs=10, outputs=4, width=10).weights
        374
    """

    inputs: int
    outputs: int
    width: int
    depth: int = 3
    activation: str = "elu"
    signed: bool = False

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.width, self.depth) < 1:
            raise InputError(f"network: every size must be at least 1, got {self}")
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"network: activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}"
            )

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(to, from) of each layer."""
        sizes = [self.inputs, *[self.width] * self.depth, self.outputs]
        return list(zip(sizes[1:], sizes[:-1], strict=True))

    @property
    def weights(self) -> int:
        """The number of trainable weights."""
        return sum(to * (fan_in + 1) for to, fan_in in self.layers)

    def initial(self, rng: np.random.Generator) -> Weights:
        """Random weights, uniform within ±1/√(inputs of the layer)."""

        def draw(fan_in: int, *shape: int) -> np.ndarray:
            return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

        return tuple((draw(fan_in, to, fan_in), draw(fan_in, to, 1)) for to, fan_in in self.layers)

    def __call__(
        self, weights: Weights, inputs: Float[Array, "I N"], product: Product = jnp.matmul
    ) -> Float[Array, "P N"]:
        """The outputs for N voxels; see `linear`."""
        outputs = self.linear(weights, inputs, product)
        return outputs if self.signed else jnp.abs(outputs)

    def linear(
        self, weights: Weights, inputs: Float[Array, "I N"], product: Product = jnp.matmul
    ) -> Float[Array, "P N"]:
        """The outputs before absolute values are taken.

        Args:
            weights: of the layers.
            inputs: of N voxels.
            product: of a matrix with the values of a layer; `apart` for plain kernels.
        """
        activation = ACTIVATIONS[self.activation]
        hidden = inputs
        for matrix, bias in weights[:-1]:
            hidden = activation(product(jnp.asarray(matrix), hidden) + bias)
        matrix, bias = weights[-1]
        return product(jnp.asarray(matrix), hidden) + bias


@dataclass(frozen=True)
class Scaling:
    """The map from measurements to inputs of a network, and from its outputs to parameters.

    The signal of a voxel, its sigma and the parameter that scales it are divided by the voxel's
    reference, the mean of its measurements at b = 0, so that the unit of images does not matter.
    Then measurements with equal settings are averaged, and each input is standardised.

    Args:
        groups: the measurements that are averaged into each input.
        reference: the measurements whose mean is the reference; empty to use signals unscaled.
        scale: the index of the parameter proportional to the reference, if any.
        conditioned: whether log(sigma / reference) is the last input.
        centre: (I,) subtracted from the inputs.
        spread: (I,) divides the centred inputs.
        unit: (P,) the parameters at outputs of 1, in their units (relative to the reference).
    """

    groups: tuple[tuple[int, ...], ...]
    reference: tuple[int, ...]
    scale: int | None
    conditioned: bool
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    unit: tuple[float, ...]

    @property
    def measurements(self) -> int:
        """The number of measurements, M."""
        return sum(len(group) for group in self.groups)

    @property
    def averages(self) -> Float[np.ndarray, "G M"]:
        """The matrix that averages each group of measurements."""
        averages = np.zeros((len(self.groups), self.measurements), np.float32)
        for row, group in zip(averages, self.groups, strict=True):
            row[list(group)] = 1 / len(group)
        return averages

    def reference_of(self, signal: Float[Array, "M N"]) -> Float[Array, " N"]:
        """The reference signal of each voxel; 1 without normalisation."""
        if not self.reference:
            return jnp.ones_like(signal[0])
        return jnp.mean(signal[np.array(self.reference)], axis=0)

    def inputs(self, signal: Float[Array, "M N"], sigma: Float[Array, " N"]) -> Float[Array, "I N"]:
        """The inputs of the network for N voxels."""
        reference = self.reference_of(signal)
        averages = self.averages
        inputs = (
            signal
            if np.array_equal(averages, np.eye(len(averages)))
            else jnp.asarray(averages) @ signal
        )
        inputs = inputs / reference
        if self.conditioned:
            inputs = jnp.concatenate([inputs, jnp.log(sigma / reference)[None]])
        centre, spread = (jnp.array(x, jnp.float32)[:, None] for x in (self.centre, self.spread))
        return (inputs - centre) / spread

    def params(
        self, outputs: Float[Array, "P N"], reference: Float[Array, " N"]
    ) -> Float[Array, "P N"]:
        """The parameters of given outputs, in their units."""
        return outputs * self._units(reference)

    def targets(
        self, params: Float[Array, "P N"], reference: Float[Array, " N"]
    ) -> Float[Array, "P N"]:
        """The outputs of given parameters; the inverse of `params`."""
        return params / self._units(reference)

    def _units(self, reference):
        unit = jnp.asarray(self.unit, jnp.float32)[:, None] * jnp.ones_like(reference)
        return unit if self.scale is None else unit.at[self.scale].multiply(reference)


def inputs_and_references(
    scaling: Scaling, voxels: Voxels
) -> tuple[Float[np.ndarray, "N I"], Float[np.ndarray, " N"]]:
    """The network inputs and the references of all voxels."""

    @jax.jit
    def both(signal: Array, sigma: Array) -> tuple[Array, Array]:
        return scaling.inputs(signal.T, sigma).T, scaling.reference_of(signal.T)

    inputs, reference = both(voxels.signal, voxels.sigma)
    return np.asarray(inputs), np.asarray(reference)


def fit_scaling(
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, " N"],
    params: Float[np.ndarray, "N P"],
    *,
    groups: tuple[tuple[int, ...], ...],
    reference: tuple[int, ...],
    scale: int | None,
    conditioned: bool,
) -> Scaling:
    """The scaling with inputs and outputs near 1 for a training set.

    Args:
        signal: (N, M) noisy measurements of the training set.
        sigma: (N,) their noise.
        params: (N, P) the true parameters; the means of their sizes become `unit`.
        groups: see `Scaling`.
        reference: see `Scaling`.
        scale: see `Scaling`.
        conditioned: see `Scaling`.

    Raises:
        InputError: if the mean of a parameter is 0, so that it has no scale.
    """
    size = len(groups) + conditioned
    raw = Scaling(
        groups=groups,
        reference=reference,
        scale=scale if reference else None,
        conditioned=conditioned,
        centre=(0.0,) * size,
        spread=(1.0,) * size,
        unit=(1.0,) * params.shape[1],
    )
    data = jnp.asarray(signal.T)
    inputs = np.asarray(raw.inputs(data, jnp.asarray(sigma)), np.float64)
    unit = np.asarray(raw.targets(jnp.asarray(params.T), raw.reference_of(data)), np.float64)
    unit = np.mean(np.abs(unit), axis=1)
    if not np.all(unit > 0):
        raise InputError(f"training: a parameter is 0 in every simulated voxel (means {unit})")
    spread = inputs.std(axis=1)
    return Scaling(
        groups=groups,
        reference=reference,
        scale=raw.scale,
        conditioned=conditioned,
        centre=_plain(inputs.mean(axis=1)),
        spread=_plain(np.where(spread > 1e-4, spread, 1.0)),  # the reference itself is always 1
        unit=_plain(unit),
    )


def _plain(values: np.ndarray) -> tuple[float, ...]:
    """Numbers rounded to float32, which files store exactly."""
    return tuple(float(value) for value in values.astype(np.float32))
