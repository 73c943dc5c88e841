"""Bounded maximum-likelihood estimation for any signal and noise model."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting.batching import WIDTH, Solution, solve
from labelwise.fitting.engines import NO_WEIGHT, Coordinates, has_kinks, make_engine
from labelwise.fitting.intervals import profile_ends
from labelwise.fitting.many import UNROLLED
from labelwise.fitting.newton import Problem, Stop
from labelwise.fitting.starts import Dictionary
from labelwise.limits import check_whole
from labelwise.models.base import SignalModel, detached, measurements, scale_parameter, settings_of
from labelwise.noise import NoiseModel
from labelwise.types import (
    Estimate,
    InputError,
    Parameter,
    Status,
    estimate_voxels,
    is_natural,
    sigma_of_voxels,
)

SILENT = 10.0
"""A signal that lowers the nll by less than this many tolerances of the search is none."""
FAR, FAR_OFF = 4.0, 0.1
"""Two optima are distinct if they differ by this many standard errors; or if one is on a bound, by
this share of the width of its bounds."""


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
        intervals: the confidence of intervals, such as 0.95; no intervals if None.

    Raises:
        InputError: if a bound names no parameter, is not ordered or is infinite, the confidence is
            not between 0 and 1, or intervals are wanted of more than 8 parameters.

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
        intervals: float | None = None,
    ) -> None:
        if not isinstance(model, SignalModel):
            raise InputError(
                f"model: expected a signal model with its acquisition, such as ADC([0, 0.5, 1]), "
                f"got {model!r}"
            )
        if not isinstance(noise, NoiseModel):
            raise InputError(f"noise: expected a noise model, such as Rician(), got {noise!r}")
        check_whole("max_iterations", max_iterations)
        if threads is not None:
            check_whole("threads", threads)
        if intervals is not None and not 0 < intervals < 1:
            raise InputError(
                f"intervals: expected a confidence between 0 and 1, such as 0.95, got {intervals!r}"
            )
        self.model = model
        self.noise = noise
        self.parameters = _bounded(model.parameters, bounds or {})
        self.dtype = np.dtype(dtype)
        self.threads = (threads or available_cores()) if model.differentiable else 1
        self.intervals = intervals
        self._stop = Stop(tolerance, max_iterations)
        self._scale = scale_parameter(model)
        _refuse_open_bounds(self.parameters, self._scale)
        self._coordinates = Coordinates.within(self.parameters)
        self._off = self._coordinates.off(self.parameters, FAR_OFF)
        few = len(self.parameters) <= UNROLLED
        if intervals is not None and not few:
            raise InputError(
                f"intervals: profile likelihood is for up to {UNROLLED} parameters, and "
                f"{type(model).__name__} has {len(self.parameters)}; use standard errors "
                "(intervals=None)"
            )
        # a black box may be slow: it is not tried at thousands of points
        kinked = few and (model.differentiable or model.vectorized) and has_kinks(model)
        self._engine = make_engine(detached(model), noise, self._coordinates, self._stop, kinked)
        self._dictionary = Dictionary(model, self.parameters, self._scale, kinked)
        settings = np.stack(list(settings_of(model).values()), axis=1)
        self._distinct = np.unique(settings, axis=0, return_inverse=True)[1].ravel()

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
                signals (N, M) also (1, M). A measurement whose sigma is infinite is left out.
            start: (*shape, P) or (*shape, S, P) starts, in the parameters' units; searched if None.
            mask: (*shape) the voxels to fit; all of them if None.

        Returns:
            Values (*shape, P), NaN where the status is not CONVERGED or ON_BOUND (NO_SIGNAL has an
            amplitude of 0), and the stats

            - `nll` (*shape): negative log-likelihood, up to terms in data and sigma only
            - `residual` (*shape): √(Σ (data - expected)² / variance / (M - P)), about 1 for a good
              fit; M without the measurements that were left out
            - `iterations` (*shape): of the best start
            - `standard_error` (*shape, P): from the Fisher information; NaN for one on a bound, and
              for one that is shifted by a bound which the measurements reject
            - `on_bound` (*shape, P): -1 on the lower bound, +1 on the upper one, else 0
            - `runner_up` (*shape): 2 (nll - nll of the estimate) of the most likely optimum far
              from the estimate; infinite if the search found none. Below 3.84 the estimate is
              ambiguous
            - `low`, `high` (*shape, P), with `intervals` only: the ends of the confidence intervals
              by profile likelihood. An end on a bound means that the data set no limit there

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
        problem = Problem(signal.T / scale, sigma.T / scale, *self._box(scale))
        q = self._coordinates.of(self._scaled(np.asarray(values, self.dtype)[good].T, 1 / scale))
        q = np.clip(q, problem.lower, problem.upper).astype(self.dtype)
        with jax.enable_x64(self.dtype == np.float64):
            found = self._engine.decrease(q, problem)
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
        left = left_out(sigma)
        status[~self._enough(~left) & (status == Status.CONVERGED)] = Status.TOO_FEW
        good = np.flatnonzero(status == Status.CONVERGED)
        if not len(good):
            return _failed(status, self.parameters, self.dtype, self.intervals is not None)
        batches = [(good, sigma)]
        if left.any():  # the others are fitted as if there were none that is left out
            some = left[good].any(axis=1)
            whole = sigma[:, :1] if _constant(sigma[good[~some]]) else sigma
            batches = [(good[~some], whole), (good[some], np.where(left, NO_WEIGHT, sigma))]

        def fit(batch: tuple[Int[np.ndarray, " n"], Float[np.ndarray, "N #M"]]) -> Estimate:
            voxels, level = batch
            begin = None if start is None else start[voxels]
            return self._fit(signal[voxels], level[voxels], begin)

        parts = [
            (part, level)
            for voxels, level in batches
            if len(voxels)
            for part in np.array_split(voxels, min(self.threads, -(-len(voxels) // WIDTH)))
        ]
        if len(parts) == 1:
            fitted = [fit(parts[0])]  # in this thread, which an interrupt can end
        else:
            with ThreadPoolExecutor(min(len(parts), self.threads)) as pool:
                fitted = list(pool.map(fit, parts))
        good = np.concatenate([part for part, _ in parts])
        return _assemble(status, good, fitted, self.parameters)

    def _enough(self, used: Bool[np.ndarray, "N #M"]) -> Bool[np.ndarray, " N"]:
        """Whether as many measurements, and distinct ones, are used as there are parameters."""
        if used.shape[1] == 1 or used.all():
            return np.ones(len(used), bool)
        size, of = len(self.parameters), len(self._distinct)
        distinct = used @ np.eye(1 + self._distinct.max())[self._distinct] > 0
        return (used.sum(axis=1) >= min(size, of)) & (
            distinct.sum(axis=1) >= min(size, distinct.shape[1])
        )

    def _fit(
        self,
        signal: Float[np.ndarray, "N M"],
        sigma: Float[np.ndarray, "N #M"],
        start: Float[np.ndarray, "N S P"] | None,
    ) -> Estimate:
        """Fit valid voxels in one thread; values of NOT_CONVERGED fits are included.

        A measurement that is left out has the finite sigma `NO_WEIGHT`: every noise model gives it
        a weight of 0, also the user's own, without NaN from infinite arguments.
        """
        used = None
        if sigma.shape[1] > 1 and (sigma == NO_WEIGHT).any():
            used = sigma != NO_WEIGHT
            signal = np.where(used, signal, 0)
        scale = np.ones(len(signal), self.dtype)
        if self._scale is not None:
            scale = np.max(np.abs(signal), axis=1)
        scaled, level = signal / scale[:, None], sigma / scale[:, None]
        level = np.minimum(level, self.dtype.type(NO_WEIGHT))  # its square is finite
        if used is not None:
            level = np.where(used, level, self.dtype.type(NO_WEIGHT))
        data, level = (np.ascontiguousarray(each.T) for each in (scaled, level))  # voxels last
        problem = Problem(data, level, *self._box(scale))
        lower, upper = problem.lower, problem.upper
        with jax.enable_x64(self.dtype == np.float64):
            if start is None:
                params = self._dictionary.starts(self.noise, data, level)
            else:
                params = self._scaled(np.moveaxis(start, -1, 0).swapaxes(1, 2), 1 / scale)
            q = self._coordinates.of(params)
            q = np.clip(q, lower[:, None], upper[:, None]).astype(self.dtype)
            # the likelihood of a magnitude is smooth where the signal has a kink
            kinked = self._engine.kinked and not self.noise.magnitude
            beside = self._engine.beside if kinked and start is None else None
            solution, every = solve(self._engine.newton, q, problem, self._stop, beside)
        on_bound = (solution.q >= upper).astype(np.int8) - (solution.q <= lower)
        errors, residual, gain = self._describe(solution.q, problem, on_bound)
        params = np.stack([np.asarray(row) for row in self._coordinates.params(solution.q)])
        bounds = np.array([p.bounds for p in self.parameters], self.dtype)[..., None]
        values = np.clip(self._scaled(params, scale), *bounds.swapaxes(0, 1))
        values = np.where(on_bound == 0, values, np.where(on_bound < 0, *bounds.swapaxes(0, 1)))
        status = np.where(on_bound.any(axis=0), Status.ON_BOUND, Status.CONVERGED)
        runner_up = _runner_up(solution, every, on_bound, errors, self._off)
        spread = errors
        if self._scale is not None and self.parameters[self._scale].bounds[0] == 0:
            silent = gain <= SILENT * self._stop.tolerance
            status = np.where(silent, Status.NO_SIGNAL, status)
            errors = np.where(silent, np.nan, errors)
            values[:, silent], on_bound[:, silent] = np.nan, 0
            values[self._scale, silent], on_bound[self._scale, silent] = 0, -1
            runner_up[silent] = np.inf
        finished = solution.converged & np.isfinite(solution.nll)
        ends = {}
        if self.intervals is not None:
            ends = self._intervals(
                self.intervals, solution, every, spread, problem, scale, finished
            )
            if self._scale is not None:
                silent = finished & (status == Status.NO_SIGNAL)
                others = np.arange(len(values)) != self._scale
                ends["low"][silent] = np.where(others, bounds[:, 0, 0], 0)
                ends["high"][np.ix_(silent, others)] = bounds[others, 1, 0]
        return Estimate(
            values=values.T,
            status=np.where(finished, status, Status.NOT_CONVERGED),
            stats=ends
            | {
                "nll": solution.nll,
                "residual": residual,
                "iterations": solution.iterations,
                "standard_error": self._scaled(errors * self._coordinates.lengths(params), scale).T,
                "on_bound": on_bound.T,
                "runner_up": runner_up,
            },
        )

    def _intervals(
        self,
        level: float,
        solution: Solution,
        every: Solution,
        errors: Float[np.ndarray, "P N"],
        problem: Problem,
        scale: Float[np.ndarray, " N"],
        finished: Bool[np.ndarray, " N"],
    ) -> dict[str, Float[np.ndarray, "N P"]]:
        """The ends of the intervals, in the parameters' units."""
        ends = {
            name: np.full((len(scale), len(self.parameters)), np.nan, self.dtype)
            for name in ("low", "high")
        }
        if not finished.any():
            return ends
        solution, every = (
            Solution(*(row[..., finished] for row in rows)) for rows in (solution, every)
        )
        problem = Problem(*(row[..., finished] for row in problem))
        with jax.enable_x64(self.dtype == np.float64):
            errors = errors[:, finished]
            found = profile_ends(self._engine, solution, every, errors, problem, level)
        box = (problem.lower, problem.upper)
        for rows, q in zip(ends.values(), found, strict=True):
            params = np.stack([np.asarray(row) for row in self._coordinates.params(q)])
            params = self._scaled(params, scale[finished])
            for q_bound, side in zip(box, (0, 1), strict=True):
                bound = np.array([p.bounds[side] for p in self.parameters], self.dtype)
                params = np.where(q == q_bound, bound[:, None], params)
            rows[finished] = params.T
        return ends

    def _describe(self, q, problem: Problem, on_bound) -> tuple[np.ndarray, ...]:
        """Errors in coordinates, residuals and gains."""
        natural = np.array([[is_natural(p, bound) for bound in p.bounds] for p in self.parameters])
        below, above = on_bound < 0, on_bound > 0
        chosen = (below & ~natural[:, :1]) | (above & ~natural[:, 1:])
        # the standard error of a T2 near 0 overflows in float32: it is infinite
        with jax.enable_x64(self.dtype == np.float64), np.errstate(over="ignore"):
            return self._engine.describe(q, problem, ~(below | above), chosen)

    def _box(self, scale: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper bounds (P, N) in coordinates."""
        bounds = np.array([p.bounds for p in self.parameters]).T[:, :, None]
        lower, upper = (
            self._coordinates.of(self._scaled(np.repeat(rows, len(scale), axis=1), 1 / scale))
            for rows in bounds
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


def left_out(sigma: Float[np.ndarray, "N #M"]) -> Bool[np.ndarray, "N #M"]:
    """The measurements that are left out: those with an infinite sigma of their own."""
    if sigma.shape[1] == 1:
        return np.zeros(sigma.shape, bool)
    return np.isposinf(sigma)


def check_input(signal, sigma, noise: NoiseModel) -> Int[np.ndarray, " N"]:
    """CONVERGED for valid voxels, else the reason why the measurements that count are invalid."""
    out = left_out(sigma)
    if out.any():
        signal, sigma = np.where(out, 0, signal), np.where(out, 1, sigma)
    status = np.full(len(signal), Status.CONVERGED, np.uint8)
    status[~np.any(signal, axis=1)] = Status.ALL_ZERO
    if noise.magnitude:
        status[np.any(signal < 0, axis=1)] = Status.NEGATIVE
    status[~np.all(np.isfinite(signal), axis=1)] = Status.NOT_FINITE
    status[out.all(axis=1)] = Status.TOO_FEW
    valid = np.all(np.isfinite(sigma) & (sigma > 0), axis=1)
    return np.where(valid, status, np.uint8(Status.BAD_SIGMA))


def _constant(rows: Float[np.ndarray, "n #M"]) -> bool:
    return bool((rows == rows[:, :1]).all())


def _runner_up(
    best: Solution,
    every: Solution,
    on_bound: Int[np.ndarray, "P N"],
    errors: Float[np.ndarray, "P N"],
    off: Float[np.ndarray, "2 P"],
) -> Float[np.ndarray, " N"]:
    """2 (nll - nll of the best) of the most likely optimum far from the best one; else infinite.

    Far is more than FAR standard errors in some parameter; for one on a bound, more than `off` the
    lower or upper one.
    """
    limit = np.where(np.isnan(errors), np.inf, FAR * errors)
    off = off.astype(errors.dtype)[..., None]
    limit = np.where(on_bound < 0, off[0], np.where(on_bound > 0, off[1], limit))[:, None]
    far = np.any(np.abs(every.q - best.q[:, None]) > limit, axis=0) & every.converged
    with np.errstate(invalid="ignore"):  # no finite nll at all
        return 2 * (np.min(np.where(far, every.nll, np.inf), axis=0) - best.nll)


def _failed(
    status: Int[np.ndarray, " N"],
    parameters: tuple[Parameter, ...],
    dtype: np.dtype,
    intervals: bool,
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
            "runner_up": nothing[:, 0].copy(),
        }
        | ({"low": nothing.copy(), "high": nothing.copy()} if intervals else {}),
        parameters=parameters,
    )


def _assemble(
    status: Int[np.ndarray, " N"],
    good: Int[np.ndarray, " n"],
    fitted: list[Estimate],
    parameters: tuple[Parameter, ...],
) -> Estimate:
    """Insert the fitted voxels among the failed ones; fits that did not converge are NaN, too."""
    intervals = "low" in fitted[0].stats
    whole = _failed(status, parameters, fitted[0].values.dtype, intervals)
    whole.status[good] = np.concatenate([part.status for part in fitted])
    converged = whole.status[good] != Status.NOT_CONVERGED
    whole.values[good[converged]] = np.concatenate([part.values for part in fitted])[converged]
    for name, rows in whole.stats.items():
        rows[good[converged]] = np.concatenate([part.stats[name] for part in fitted])[converged]
    return whole
