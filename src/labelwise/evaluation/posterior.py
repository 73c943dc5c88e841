"""The posterior under a prior: its mean, and its quantiles, by importance sampling.

E[params | signal] = Σ_d w_d params_d / Σ_d w_d over draws d from the prior, with w_d the likelihood
of draw d. It has the smallest mean squared error of all estimators; a network trained on the ground
truth with squared errors approximates it. The interval between quantiles q and 1 - q has the
smallest mean interval score; a network trained with the pinball loss approximates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.stats import qmc

from labelwise.fitting import available_cores, check_input
from labelwise.fitting.batching import blocks
from labelwise.models.base import SignalModel, detached, measurements, scale_parameter
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.priors import Prior, Uniform
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


_DRAWS_OF_BATCH = 2**14
_BATCHES = 256  # at most
_BINS = 1024  # of a parameter, within the box of a voxel
_UNLIKELY = 14.0  # log-likelihoods below the largest are outside the box
_WIDER = 1.15  # than the error of the amplitude: its proposals have the longer tails


def posterior_quantiles(
    model: SignalModel,
    noise: NoiseModel,
    prior: Uniform,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, " N"],
    levels: Sequence[float],
    *,
    sigma_range: tuple[float, float] | None = None,
    effective: float = 4000.0,
) -> tuple[Float[np.ndarray, "N P Q"], Float[np.ndarray, " N"]]:
    """The quantiles of each parameter's posterior under a uniform prior.

    By importance sampling in a box around the likely parameters of each voxel; the parameter that
    scales the signal is drawn around its least-squares value for the others. Draws are added until
    the effective sample size is reached, about 15 ms of a core for a voxel of IVIM.

    Args:
        model: the signal model with its acquisition; differentiable.
        noise: the noise model.
        prior: of the parameters.
        signal: (N, M) the measurements, in the prior's unit.
        sigma: (N,) noise of one channel.
        levels: (Q,) of the quantiles.
        sigma_range: the range of a log-uniform distribution of sigma, of which only the ratio to
            the signal is known: the posterior is that under all that a network knows which divides
            both by a reference. If None, amplitude and sigma are known in the prior's unit.
        effective: the effective sample size (Σ w)² / Σ w²; the error of a quantile of level q is
            √(q (1 - q) / effective) in probability.

    Returns:
        The quantiles (N, P, Q) in the parameters' units, and the effective sample sizes (N,).

    Raises:
        InputError: if the prior is not uniform or has other parameters, or the model is a black
            box.

    Source: Robert & Casella 2004, section 3.3, doi:10.1007/978-1-4757-4145-2.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0.0, 0.5, 1.0])
        >>> prior = Uniform({"S0": (0.5, 2.0), "ADC": (0.1, 3.0)})
        >>> signal, sigma = np.asarray(model.signal(1.0, 1.0))[None], np.array([0.01])
        >>> ends, _ = posterior_quantiles(model, lw.Gaussian(), prior, signal, sigma, (0.16, 0.84))
        >>> bool(ends[0, 1, 0] < 1 < ends[0, 1, 1] < 1.05)
        True
    """
    names = tuple(parameter.name for parameter in model.parameters)
    if not isinstance(prior, Uniform) or prior.logarithmic or prior.names != names:
        raise InputError(f"prior: expected a uniform one of {', '.join(names)}, got {prior}")
    if not model.differentiable:
        raise InputError(f"{type(model).__name__}: a black box has no quantiles; use PosteriorMean")
    sobol = qmc.Sobol(len(names), rng=0).random(_DRAWS_OF_BATCH)
    shares = jnp.asarray(np.clip(sobol, 1e-6, 1 - 1e-6).T, jnp.float32)
    settings = (
        detached(model),
        noise,
        scale_parameter(model),
        prior.ranges.tolist(),
        sigma_range,
        float(effective),
        prior.model is not None,
    )

    def one(voxel: int) -> tuple[np.ndarray, np.ndarray]:
        data = jnp.asarray(signal[voxel], jnp.float32), jnp.float32(sigma[voxel])
        found = _quantiles(settings, *data, shares, jnp.asarray(levels, jnp.float32))
        return np.asarray(found[0]), np.asarray(found[1])

    with ThreadPoolExecutor(available_cores()) as pool:
        quantiles, sizes = zip(*pool.map(one, range(len(signal))), strict=True)
    return np.stack(quantiles), np.stack(sizes)


@eqx.filter_jit
def _quantiles(settings, data, sigma, shares, levels):
    """The quantiles of one voxel (P, Q), and its effective sample size."""
    model, noise, scale, ranges, sigma_range, effective, limited = settings
    clean = noise.signal_of(data, sigma)

    def draw(box, shares):
        """Parameters (P, d) in a box, their largest log-likelihood for any S0, their log-weight."""
        params = box[0] + (box[1] - box[0]) * shares
        if scale is not None:
            params = params.at[scale].set(1.0)
        shape = jax.vmap(model.signal, in_axes=-1, out_axes=-1)(*params)

        def log_likelihood(amplitude):
            logs = -jnp.sum(noise.nll(amplitude * shape, data[:, None], sigma), axis=0)
            return jnp.where(model.holds(*params), logs, -jnp.inf) if limited else logs

        if scale is None:
            return params, log_likelihood(1.0), log_likelihood(1.0)
        size = jnp.sqrt(jnp.sum(shape * shape, axis=0))
        best, spread, deviate = clean @ shape / size**2, _WIDER * sigma / size, ndtri(shares[scale])
        amplitude = jnp.maximum(best + spread * deviate, 1e-6 * spread)
        prior = _log_prior(amplitude, sigma, ranges[scale], sigma_range)
        weight = log_likelihood(amplitude) + prior + 0.5 * deviate**2 + jnp.log(spread)
        return params.at[scale].set(amplitude), log_likelihood(best), weight

    def span(params, logs):
        """The range of the parameters of likely draws, and a margin."""
        likely = logs > logs.max() - _UNLIKELY
        low = jnp.where(likely, params, jnp.inf).min(axis=1, keepdims=True)
        high = jnp.where(likely, params, -jnp.inf).max(axis=1, keepdims=True)
        margin = 0.1 * (high - low)
        return low - margin, high + margin

    limits = jnp.array(ranges, jnp.float32)[:, :, None]
    box = limits[:, 0], limits[:, 1]
    for _ in range(2):
        wide = 0.005 * (box[1] - box[0])
        low, high = span(*draw(box, shares)[:2])
        box = jnp.maximum(low - wide, box[0]), jnp.minimum(high + wide, box[1])
    params, _, logs = draw(box, shares)
    low, high = span(params, logs)  # of the bins
    width = jnp.maximum(high - low, 1e-12)

    def enough(state):
        batch, _, _, total, squares = state
        return (batch < _BATCHES) & (total**2 < effective * squares)

    def add(state):
        batch, largest, bins, total, squares = state
        shift = jax.random.uniform(jax.random.key(batch), (len(shares), 1))
        params, _, logs = draw(box, jnp.clip((shares + shift) % 1.0, 1e-6, 1 - 1e-6))
        maximum = jnp.maximum(largest, logs.max())
        weights, decay = jnp.exp(logs - maximum), jnp.exp(largest - maximum)
        place = jnp.clip((params - low) / width * _BINS, 0, _BINS - 1).astype(int)
        added = jax.vmap(lambda row: jnp.zeros(_BINS).at[row].add(weights))(place)
        total, squares = decay * total + weights.sum(), decay**2 * squares + (weights**2).sum()
        return batch + 1, maximum, decay * bins + added, total, squares

    start = 0, logs.max(), jnp.zeros((len(low), _BINS)), jnp.float32(0), jnp.float32(0)
    _, _, bins, total, squares = lax.while_loop(
        lambda state: (state[0] == 0) | enough(state), add, start
    )
    below = jnp.cumsum(bins, axis=1) / bins.sum(axis=1, keepdims=True)
    edges = low + width * jnp.arange(1, _BINS + 1) / _BINS
    below = jnp.concatenate([jnp.zeros_like(low), below], axis=1)
    edges = jnp.concatenate([low, edges], axis=1)
    quantiles = jax.vmap(lambda b, e: jnp.interp(levels, b, e))(below, edges)
    return quantiles, total**2 / squares


def _log_prior(amplitude, sigma, limits, sigma_range):
    """The logarithm of the amplitude's prior, but for a constant.

    If signal and sigma are known but for a common factor r, it is the integral over r of the
    probability that r amplitude and r sigma are within their ranges.
    """
    low, high = limits
    if sigma_range is None:
        return jnp.where((amplitude >= low) & (amplitude <= high), 0.0, -jnp.inf)
    least, most = sigma_range
    shared = jnp.minimum(high / amplitude, most / sigma) - jnp.maximum(
        low / amplitude, least / sigma
    )
    return jnp.log(jnp.maximum(shared, 1e-30))


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
