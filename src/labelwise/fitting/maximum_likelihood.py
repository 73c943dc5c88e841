"""Bounded maximum-likelihood estimation for any signal and noise model."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting.batching import WIDTH, blocks, solve
from labelwise.fitting.engines import make_engine
from labelwise.fitting.newton import Problem, Stop
from labelwise.fitting.starts import Dictionary, find_starts
from labelwise.models.base import SignalModel, detached, measurements, scale_parameter
from labelwise.noise import NoiseModel, Rician
from labelwise.types import (
    Estimate,
    InputError,
    Parameter,
    Status,
    estimate_voxels,
    sigma_of_voxels,
)


class MaximumLikelihood:
    """Fits a signal model to every voxel by bounded maximum likelihood; an `Estimator`.

    Each voxel is fitted independently by damped Newton steps inside the bounds from several starts:
    entries of a coarse dictionary, and the initial guess of the model if it has one. Voxels are
    first divided by their largest measurement, so that the unit of the images does not matter.

    Args:
        model: the signal model with its acquisition.
        noise: `Rician()` for magnitude images, `Gaussian()` for least squares.
        bounds: replaces the bounds of parameters by name, e.g. `{"D_fast": (2, 100)}`.
        max_iterations: a fit that needs more is NOT_CONVERGED.
        tolerance: stop when the predicted decrease of the nll in a step is smaller than this.
        dtype: float32, or float64 for twice the time.
        threads: number of cores; all of them if None.

    Raises:
        InputError: if a bound names no parameter, is not ordered or is infinite.

    Example:
        >>> import labelwise as lw
        >>> model = lw.IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8])
        >>> signal = np.asarray(model.signal(500.0, 0.3, 1.0, 40.0))
        >>> estimate = MaximumLikelihood(model, lw.Rician())(signal[None], sigma=5.0)
        >>> [round(float(value), 1) for value in estimate.values[0]]
        [500.0, 0.3, 1.0, 40.0]
    """

    def __init__(
        self,
        model: SignalModel,
        noise: NoiseModel,
        *,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        max_iterations: int = 200,
        tolerance: float = 1e-4,
        dtype: type[np.floating] = np.float32,
        threads: int | None = None,
    ) -> None:
        if not isinstance(model, SignalModel):
            raise InputError(
                f"model: expected a signal model with its acquisition, such as ADC([0, 0.5, 1]), "
                f"got {model!r}"
            )
        if not isinstance(noise, NoiseModel):
            raise InputError(f"noise: expected a noise model, such as Rician(), got {noise!r}")
        self.model = model
        self.noise = noise
        self.parameters = _bounded(model.parameters, bounds or {})
        self.dtype = np.dtype(dtype)
        self.threads = (threads or available_cores()) if model.differentiable else 1
        self._stop = Stop(tolerance, max_iterations)
        self._scale = scale_parameter(model)
        _refuse_open_bounds(self.parameters, self._scale)
        self._detached = detached(model)
        self._engine = make_engine(self._detached, noise, self.parameters, self._stop)
        self._dictionary = Dictionary(model, self.parameters, self._scale)

    def __call__(
        self,
        signal: Float[np.ndarray, "*shape M"],
        sigma: Float[np.ndarray, "..."] | float,
        *,
        start: Float[np.ndarray, "... P"] | None = None,
        mask: Bool[np.ndarray, "*shape"] | None = None,
    ) -> Estimate:
        """Fit every voxel.

        Args:
            signal: (*shape, M) the measurements, in any unit.
            sigma: noise of one channel in that unit: a number, (*shape) or (*shape, M); for
                signals (N, M) also (1, M).
            start: (*shape, P) or (*shape, S, P) starts, in the parameters' units; searched if None.
            mask: (*shape) the voxels to fit; all of them if None.

        Returns:
            Values (*shape, P), NaN where the status is not CONVERGED or ON_BOUND, and the stats

            - `nll` (*shape): negative log-likelihood, up to terms in data and sigma only
            - `residual` (*shape): √(Σ (data - expected)² / variance / (M - P)), about 1 for a good
              fit
            - `iterations` (*shape): of the best start
            - `standard_error` (*shape, P): from the Fisher information; NaN for one on a bound
            - `on_bound` (*shape, P): -1 on the lower bound, +1 on the upper one, else 0

        Raises:
            InputError: if the shapes of signal, sigma, start or mask do not fit the model.
        """
        count = measurements(self.model)
        return estimate_voxels(self._voxels, signal, sigma, count, mask, start=start)

    def decrease(
        self,
        signal: Float[np.ndarray, "N M"],
        sigma: Float[np.ndarray, "#N #M"] | float,
        values: Float[np.ndarray, "N P"],
    ) -> Float[np.ndarray, " N"]:
        """How far estimates are from maximum likelihood: the predicted decrease of their nll.

        One Newton step inside the bounds from each estimate predicts it. Where the quadratic model
        of the likelihood holds, it is half the squared distance to the fit in standard errors. For
        true parameters, twice it has a chi-squared distribution with P degrees of freedom.

        Args:
            signal: (N, M) the measurements, in any unit.
            sigma: noise of one channel in that unit.
            values: (N, P) the estimates, in the parameters' units.

        Returns:
            NaN for invalid voxels and for estimates that are not finite.

        Source: Rao 1948, doi:10.1017/S0305004100023987 (the score test).
        """
        signal = np.asarray(signal, self.dtype)
        sigma = sigma_of_voxels(sigma, *signal.shape).astype(self.dtype)
        good = check_input(signal, sigma, self.noise) == Status.CONVERGED
        good &= np.isfinite(values).all(axis=1)
        decrease = np.full(len(signal), np.nan, self.dtype)
        if not good.any():
            return decrease
        signal, sigma, scale = signal[good], sigma[good], np.ones(good.sum(), self.dtype)
        if self._scale is not None:
            scale = np.max(np.abs(signal), axis=1)
        lower, upper = self._box(scale)
        unit = np.array(self._engine.unit, self.dtype)[:, None]
        q = self._scaled(np.asarray(values, self.dtype)[good].T, 1 / scale) / unit
        problem = Problem(signal.T / scale, sigma.T / scale, lower, upper)
        q, found = np.clip(q, lower, upper).astype(self.dtype), np.empty(len(scale), self.dtype)
        with jax.enable_x64(self.dtype == np.float64):
            for mine, lanes in blocks(len(found), WIDTH):
                block = Problem(*(rows[:, lanes] for rows in problem))
                part = self._engine.decrease(q[:, lanes], block)
                found[mine] = np.asarray(part)[: len(found[mine])]
        decrease[good] = found
        return decrease

    def __repr__(self) -> str:
        return f"MaximumLikelihood({self.model}, {self.noise})"

    def _voxels(self, signal, sigma, start) -> Estimate:
        """Fit the valid ones of N voxels in threads; invalid input is marked by its status."""
        signal = np.asarray(signal, self.dtype)
        sigma = sigma_of_voxels(sigma, *signal.shape).astype(self.dtype)
        start = self._start_of_voxels(start, len(signal))
        status = check_input(signal, sigma, self.noise)
        good = np.flatnonzero(status == Status.CONVERGED)
        if not len(good):
            return _failed(status, self.parameters, self.dtype)

        def fit(voxels: Int[np.ndarray, " n"]) -> Estimate:
            return self._fit(
                signal[voxels], sigma[voxels], None if start is None else start[voxels]
            )

        parts = np.array_split(good, min(self.threads, -(-len(good) // WIDTH)))
        with ThreadPoolExecutor(len(parts)) as pool:
            fitted = list(pool.map(fit, parts))
        return _assemble(status, good, fitted, self.parameters)

    def _fit(
        self,
        signal: Float[np.ndarray, "N M"],
        sigma: Float[np.ndarray, "N #M"],
        start: Float[np.ndarray, "N S P"] | None,
    ) -> Estimate:
        """Fit valid voxels in one thread; values of NOT_CONVERGED fits are included."""
        scale = np.ones(len(signal), self.dtype)
        if self._scale is not None:
            scale = np.max(np.abs(signal), axis=1)
        unit = np.array(self._engine.unit, self.dtype)[:, None]
        lower, upper = self._box(scale)
        data = np.ascontiguousarray(signal.T) / scale  # voxels last, also in memory
        if start is None:
            q = find_starts(self._detached, self._dictionary, signal / scale[:, None])
            q = q / unit[:, None]
        else:
            q = self._scaled(np.moveaxis(start, -1, 0).swapaxes(1, 2), 1 / scale) / unit[:, None]
        q = np.clip(q, lower[:, None], upper[:, None]).astype(self.dtype)
        problem = Problem(data, np.ascontiguousarray(sigma.T) / scale, lower, upper)
        with jax.enable_x64(self.dtype == np.float64):
            solution = solve(self._engine.advance, q, problem, self._stop)
        on_bound = (solution.q >= upper).astype(np.int8) - (solution.q <= lower)
        errors, residual = self._describe(solution.q, problem, on_bound == 0)
        bounds = np.array([p.bounds for p in self.parameters], self.dtype)[..., None]
        values = np.clip(self._scaled(solution.q * unit, scale), *bounds.swapaxes(0, 1))
        values = np.where(on_bound == 0, values, np.where(on_bound < 0, *bounds.swapaxes(0, 1)))
        status = np.where(on_bound.any(axis=0), Status.ON_BOUND, Status.CONVERGED)
        finished = solution.converged & np.isfinite(solution.nll)
        return Estimate(
            values=values.T,
            status=np.where(finished, status, Status.NOT_CONVERGED),
            stats={
                "nll": solution.nll,
                "residual": residual,
                "iterations": solution.iterations,
                "standard_error": self._scaled(errors * unit, scale).T,
                "on_bound": on_bound.T,
            },
        )

    def _describe(self, q, problem: Problem, free) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors and residuals, in float64 for near-singular information matrices."""
        voxels = q.shape[1]
        errors, residuals = [], []
        # the standard error of a T2 near 0 overflows in float32: it is infinite
        with jax.enable_x64(True), np.errstate(over="ignore"):
            for _, lanes in blocks(voxels, WIDTH):
                block = Problem(*(rows[:, lanes].astype(float) for rows in problem))
                error, residual = self._engine.describe(
                    q[:, lanes].astype(float), block, free[:, lanes]
                )
                errors.append(np.asarray(error, self.dtype))
                residuals.append(np.asarray(residual, self.dtype))
        return np.concatenate(errors, -1)[:, :voxels], np.concatenate(residuals)[:voxels]

    def _box(self, scale: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper bounds (P, N) in coordinates."""
        bounds = np.array([p.bounds for p in self.parameters]).T[:, :, None]
        unit = np.array(self._engine.unit)[:, None]
        lower, upper = (
            self._scaled(np.repeat(rows, len(scale), axis=1), 1 / scale) / unit for rows in bounds
        )
        return lower.astype(self.dtype), upper.astype(self.dtype)

    def _scaled(self, rows: Float[np.ndarray, "P *S N"], factor: Float[np.ndarray, " N"]):
        """`rows` with the parameter that scales the signal multiplied by `factor`."""
        if self._scale is not None:
            rows = rows.copy()
            rows[self._scale] *= factor
        return rows

    def _start_of_voxels(self, start, voxels: int) -> Float[np.ndarray, "N S P"] | None:
        if start is None:
            return None
        start = np.asarray(start, self.dtype)
        size = len(self.parameters)
        if start.ndim == 2:
            start = start[:, None]
        if start.ndim != 3 or start.shape[0] != voxels or start.shape[2] != size:
            raise InputError(
                f"start: expected ({voxels}, {size}) or ({voxels}, starts, {size}) parameters, "
                f"got {start.shape}"
            )
        if not np.all(np.isfinite(start)):
            raise InputError("start: has NaN or infinite values; omit `start` to search for one")
        return start


def available_cores() -> int:
    """The number of cores available to this process, which may be limited by a scheduler."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _bounded(
    parameters: tuple[Parameter, ...], bounds: Mapping[str, tuple[float, float]]
) -> tuple[Parameter, ...]:
    names = [parameter.name for parameter in parameters]
    unknown = [name for name in bounds if name not in names]
    if unknown:
        raise InputError(f"bounds: no parameter {unknown[0]!r}; the model has {', '.join(names)}")
    return tuple(
        replace(p, bounds=bounds[p.name], typical=None) if p.name in bounds else p
        for p in parameters
    )


def _refuse_open_bounds(parameters: tuple[Parameter, ...], scale: int | None) -> None:
    for index, parameter in enumerate(parameters):
        if index != scale and np.isinf(parameter.bounds[1]):
            raise InputError(
                f"bounds: {parameter.name} has no upper bound; only a parameter that multiplies "
                f'the whole signal may be open, so give one, e.g. {{"{parameter.name}": (0, 10)}}'
            )


def check_input(signal, sigma, noise: NoiseModel) -> Int[np.ndarray, " N"]:
    """CONVERGED for valid voxels, else the reason why a voxel is invalid."""
    status = np.full(len(signal), Status.CONVERGED, np.uint8)
    status[~np.any(signal, axis=1)] = Status.ALL_ZERO
    if noise.magnitude:
        status[np.any(signal < 0, axis=1)] = Status.NEGATIVE
    status[~np.all(np.isfinite(signal), axis=1)] = Status.NOT_FINITE
    valid = np.all(np.isfinite(sigma) & (sigma > 0), axis=1)
    return np.where(valid, status, np.uint8(Status.BAD_SIGMA))


def _failed(
    status: Int[np.ndarray, " N"], parameters: tuple[Parameter, ...], dtype: np.dtype
) -> Estimate:
    """An estimate without any fitted voxel."""
    voxels, size = len(status), len(parameters)
    nothing = np.full((voxels, size), np.nan, dtype)
    return Estimate(
        values=nothing,
        status=status,
        stats={
            "nll": nothing[:, 0].copy(),
            "residual": nothing[:, 0].copy(),
            "iterations": np.zeros(voxels, np.int32),
            "standard_error": nothing.copy(),
            "on_bound": np.zeros((voxels, size), np.int8),
        },
        parameters=parameters,
    )


def _assemble(
    status: Int[np.ndarray, " N"],
    good: Int[np.ndarray, " n"],
    fitted: list[Estimate],
    parameters: tuple[Parameter, ...],
) -> Estimate:
    """Insert the fitted voxels among the failed ones; fits that did not converge are NaN, too."""
    whole = _failed(status, parameters, fitted[0].values.dtype)
    whole.status[good] = np.concatenate([part.status for part in fitted])
    converged = np.isin(whole.status[good], (Status.CONVERGED, Status.ON_BOUND))
    whole.values[good[converged]] = np.concatenate([part.values for part in fitted])[converged]
    for name, rows in whole.stats.items():
        rows[good[converged]] = np.concatenate([part.stats[name] for part in fitted])[converged]
    return whole


def fit(
    signal: Float[np.ndarray, "*shape M"],
    model: SignalModel,
    sigma: Float[np.ndarray, "..."] | float,
    *,
    noise: NoiseModel | None = None,
    mask: Bool[np.ndarray, "*shape"] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Estimate:
    """Fit a signal model to every voxel by bounded maximum likelihood.

    Args:
        signal: (*shape, M) measurements in any unit; a whole 4D image, or a single voxel (M,).
        model: the signal model with its acquisition of M measurements.
        sigma: noise of one channel in the signal's unit: a number, (*shape) or (*shape, M).
        noise: `Rician()` if None; `Gaussian()` for least squares.
        mask: (*shape) the voxels to fit; all of them if None.
        bounds: replaces the bounds of parameters by name.

    Returns:
        See `MaximumLikelihood`.

    Raises:
        InputError: if shapes or bounds do not fit the model.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> estimate = fit([100.0, 70.5, 49.7], model, sigma=2)
        >>> round(float(estimate["ADC"]), 2)
        0.7
    """
    return MaximumLikelihood(model, noise or Rician(), bounds=bounds)(signal, sigma, mask=mask)
