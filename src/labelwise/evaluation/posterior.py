"""The posterior mean: the estimator with the smallest mean squared error under a prior.

E[params | signal] = Σ_d w_d params_d / Σ_d w_d over draws d from the prior, with w_d the likelihood
of draw d. A network trained on the ground truth with squared errors approximates it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from labelwise.fitting import check_input
from labelwise.fitting.batching import blocks
from labelwise.models.base import SignalModel, measurements
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.priors import Prior
from labelwise.types import Estimate, InputError, Status, sigma_of_voxels

_VOXELS, _DRAWS = 256, 8192  # in one tile: enough work for all cores
_UNROLL = 16  # measurements in one fused loop: twice as fast as one at a time


class PosteriorMean:
    """Posterior mean under a prior, by importance sampling with the prior's draws; an `Estimator`.

    No estimator has a smaller mean squared error, in any weighting of the parameters, on signals
    simulated from the same model, noise and prior: it is the lower limit for networks. Signals must
    be in the unit of the prior (divided by a reference, if the prior has S0 around 1); the estimate
    of a signal far from all draws is the nearest draw. Cost grows with voxels · draws ·
    measurements.

    Args:
        model: the signal model with its acquisition.
        noise: the noise model.
        prior: of the parameters.
        draws: number of draws from the prior, the same for all voxels. More informative data (many
            measurements, high SNR) need more; check `effective_sample_size`.
        key: random key for the draws; a fixed one if None.

    Raises:
        InputError: if the prior has other parameters than the model or there are no draws.

    Source: Robert & Casella 2004, Monte Carlo Statistical Methods, section 3.3,
    doi:10.1007/978-1-4757-4145-2.

    Example:
        >>> import labelwise as lw
        >>> from labelwise.priors import Uniform
        >>> model = lw.ADC([0.0, 0.5, 1.0])
        >>> prior = Uniform({"S0": (0.8, 1.2), "ADC": (0.5, 2.5)})
        >>> mean = PosteriorMean(model, lw.Gaussian(), prior, draws=20_000)
        >>> estimate = mean(np.asarray(model.signal(1.0, 1.5))[None], sigma=0.02)
        >>> [round(float(value), 1) for value in estimate.values[0]]
        [1.0, 1.5]
    """

    def __init__(
        self,
        model: SignalModel,
        noise: NoiseModel,
        prior: Prior,
        draws: int = 100_000,
        key: PRNGKeyArray | None = None,
    ) -> None:
        names = tuple(parameter.name for parameter in model.parameters)
        if tuple(prior.names) != names:
            raise InputError(
                f"prior: draws {', '.join(prior.names)}, but the model's parameters are "
                f"{', '.join(names)}, in that order"
            )
        if draws < 1:
            raise InputError(f"draws: expected at least 1, got {draws}")
        self.model, self.noise = model, noise
        self.parameters = model.parameters
        params = np.asarray(prior.sample(jax.random.key(0) if key is None else key, draws), float)
        expected = signals(model, params)
        usable = np.isfinite(expected).all(axis=1) & np.isfinite(params).all(axis=1)
        if not usable.any():
            raise InputError("prior: the model's signal is not finite for a single draw")
        params, expected = params[usable], expected[usable]
        # sums of squares of standardised parameters, for the precision of float32
        self._centre = params.mean(axis=0)
        self._width = np.where(params.std(axis=0) > 0, params.std(axis=0), 1.0)
        unit = (params - self._centre) / self._width
        moments = np.concatenate([np.ones((len(unit), 1)), unit, unit**2], axis=1)
        blocks = -(-len(unit) // _DRAWS)
        room = (0, blocks * _DRAWS - len(unit))
        self._weight = _blocks(np.pad(np.zeros(len(unit)), room, constant_values=-np.inf), blocks)
        self._moments = _blocks(np.pad(moments, (room, (0, 0))), blocks)
        self._expected = _blocks(np.pad(expected, (room, (0, 0))), blocks).swapaxes(1, 2).copy()

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N *#M"] | float
    ) -> Estimate:
        """Estimate N voxels of M measurements.

        Args:
            signal: the measurements, in the prior's unit.
            sigma: noise of one channel in that unit: a number, (N,), (N, M) or (1, M).

        Returns:
            Values (N, P) with the status PREDICTED; NaN for invalid input, with the status
            of a fit, and NOT_CONVERGED where no draw has a finite weight in float32. The stats:

            - `posterior_std` (N, P): the spread of the posterior, in the parameters' units
            - `monte_carlo_error` (N, P): standard error of the values for this number of draws
            - `effective_sample_size` (N,): (Σ w)² / Σ w², of the draws; values are unreliable
              below a few tens

        Raises:
            InputError: if the shapes of signal or sigma do not fit the model.
        """
        signal = np.asarray(signal, np.float32)
        if signal.ndim != 2 or signal.shape[1] != measurements(self.model):
            raise InputError(
                f"signal: expected (N, {measurements(self.model)}), one column per measurement of "
                f"the model's acquisition, got {signal.shape}"
            )
        level = sigma_of_voxels(np.asarray(sigma, np.float32), *signal.shape)
        status = check_input(signal, level, self.noise)
        good = np.flatnonzero(status == Status.CONVERGED)
        size = len(self.parameters)
        sums = np.full((len(signal), 2, 1 + 2 * size), np.nan)
        for mine, rows in blocks(len(good), _VOXELS):
            index, lanes = good[mine], good[rows]
            sums[index] = self._sums(signal[lanes].T, level[lanes].T)[: len(index)]
        return self._estimate(sums, status)

    def _sums(
        self, signal: Float[np.ndarray, "M n"], sigma: Float[np.ndarray, "#M n"]
    ) -> Float[np.ndarray, "n 2 Q"]:
        """Σ w (1, u, u²) and Σ w² (1, u, u²) over all draws, u standardised, of one tile of voxels.

        The loop is in Python, since a compiled loop is four times slower.
        """
        data, level = signal.copy(), np.broadcast_to(sigma, signal.shape).copy()
        largest = jnp.full(signal.shape[1], -jnp.inf)
        sums = jnp.zeros((signal.shape[1], 2, self._moments.shape[-1]))
        for expected, moments, logs in zip(
            self._expected, self._moments, self._weight, strict=True
        ):
            for first in range(0, len(data), _UNROLL):
                some = slice(first, first + _UNROLL)
                logs = _add_log_likelihood(
                    self.noise, logs, expected[some], data[some], level[some]
                )
            largest, sums = _accumulate(largest, sums, logs, moments)
        return np.asarray(sums)

    def _estimate(self, sums: Float[np.ndarray, "N 2 Q"], status) -> Estimate:
        """Means, standard deviations and Monte Carlo errors from the sums of `_sums`."""
        size = len(self.parameters)
        total, squared = sums[:, 0, :1], sums[:, 1] / sums[:, 0, :1] ** 2
        mean = sums[:, 0, 1 : 1 + size] / total
        variance = sums[:, 0, 1 + size :] / total - mean**2
        error = squared[:, 1 + size :] - 2 * mean * squared[:, 1 : 1 + size]
        error += mean**2 * squared[:, :1]
        found = np.isfinite(mean).all(axis=1)
        status = np.where(status == Status.CONVERGED, np.uint8(Status.PREDICTED), status)
        lost = (status == Status.PREDICTED) & ~found
        return Estimate(
            values=(self._centre + self._width * mean).astype(np.float32),
            status=np.where(lost, np.uint8(Status.NOT_CONVERGED), status),
            stats={
                "posterior_std": (self._width * np.sqrt(np.maximum(variance, 0))).astype(
                    np.float32
                ),
                "monte_carlo_error": (self._width * np.sqrt(np.maximum(error, 0))).astype(
                    np.float32
                ),
                "effective_sample_size": (1 / squared[:, 0]).astype(np.float32),
            },
            parameters=self.parameters,
        )


@eqx.filter_jit
def _add_log_likelihood(
    noise: NoiseModel,
    logs: Float[Array, "*n d"],
    expected: Float[Array | np.ndarray, "m d"],
    signal: Float[Array | np.ndarray, "m n"],
    sigma: Float[Array | np.ndarray, "m n"],
) -> Float[Array, "n d"]:
    """Add the log-likelihood of some measurements of every voxel under every draw to `logs`."""
    for one, data, level in zip(expected, signal, sigma, strict=True):
        logs = logs - noise.nll(one[None, :], data[:, None], level[:, None])
    return logs


@jax.jit
def _accumulate(
    largest: Float[Array, " n"],
    sums: Float[Array, "n 2 Q"],
    logs: Float[Array, "n d"],
    moments: Float[Array, "d Q"],
) -> tuple[Float[Array, " n"], Float[Array, "n 2 Q"]]:
    """Add the weights of a block of draws to the sums, relative to the largest weight so far."""
    maximum = jnp.maximum(largest, jnp.max(logs, axis=1))
    weights, decay = jnp.exp(logs - maximum[:, None]), jnp.exp(largest - maximum)[:, None]
    added = jnp.stack([weights @ moments, (weights * weights) @ moments], axis=1)
    return maximum, sums * jnp.stack([decay, decay * decay], axis=1) + added


def _blocks(rows: np.ndarray, blocks: int) -> Float[np.ndarray, "B d *Q"]:
    return rows.reshape(blocks, _DRAWS, *rows.shape[1:]).astype(np.float32)
