"""Training labels: the ground truth, maximum-likelihood estimates, or a mix of both.

Labels are an `Estimate`; its status marks failed ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import plain
from labelwise.io.files import canonical
from labelwise.models.base import SignalModel
from labelwise.models.find import describe_model
from labelwise.noise import NoiseModel, describe_noise
from labelwise.types import (
    Estimate,
    Estimator,
    InputError,
    LabelSource,
    Parameter,
    Status,
    Voxels,
    has_values,
)

_FROM_BEST_TO_WORST = (
    *(Status.CONVERGED, Status.PREDICTED, Status.EXTRAPOLATED, Status.ON_BOUND),
    *(Status.NO_SIGNAL, Status.NOT_CONVERGED, Status.NO_REFERENCE, Status.ALL_ZERO),
    *(Status.NEGATIVE, Status.NOT_FINITE, Status.BAD_SIGMA, Status.TOO_FEW, Status.NOT_FITTED),
)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The parameters that the signals were simulated from (the source's Supervised_GT).

    Source: Epstein et al. 2024, eq. 7, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.7]]))
        >>> GroundTruth()(voxels).values
        array([[1. , 0.7]])
    """

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; voxels with a truth that is not finite are NOT_FINITE.

        Raises:
            InputError: if the voxels have no ground truth.
        """
        truth = _truth(voxels, "GroundTruth()", "label real voxels by MLE(..., start='search')")
        known = np.all(np.isfinite(truth), axis=1)
        return Estimate(
            values=np.where(known[:, None], truth, truth.dtype.type(np.nan)),
            status=np.where(known, np.uint8(Status.CONVERGED), np.uint8(Status.NOT_FINITE)),
        )

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {"kind": "ground truth"}


class MLE:
    """Bounded maximum-likelihood estimates from the noisy training signal (Supervised_MLE).

    Started from the truth, as in the source, a fit finds a local optimum near the truth. At low SNR
    that is not the global one in a few percent of voxels. Started from a search, it needs no truth.

    Args:
        model: the signal model with its acquisition; a black box too.
        noise: the noise model of the likelihood, e.g. `Rician()`; the simulated one may differ.
        start: `"truth"`, `"search"`, or the start of every fit: (P,) in the parameters' units, such
            as the means of the prior.
        bounds: replaces the bounds of parameters by name.
        max_iterations: a fit that needs more has not converged, and its voxel has no label.
        threads: how many cores to use; all of them if None.

    Raises:
        InputError: if `start` is none of these, or the bounds do not fit the model.

    Source: Epstein et al. 2024, eq. 9 and section 3.3, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> truth = np.array([[1.0, 0.7]])
        >>> voxels = Voxels(np.asarray(model.signal(*truth[0]))[None], np.array([0.01]), truth)
        >>> MLE(model, lw.Gaussian())(voxels).values.round(3)
        array([[1. , 0.7]], dtype=float32)
    """

    def __init__(
        self,
        model: SignalModel,
        noise: NoiseModel,
        start: Literal["truth", "search"] | Sequence[float] = "truth",
        bounds: Mapping[str, tuple[float, float]] | None = None,
        max_iterations: int = 200,
        threads: int | None = None,
    ) -> None:
        size = len(model.parameters)
        known = start in ("truth", "search") if isinstance(start, str) else len(start) == size
        if not known:
            raise InputError(
                f"start: expected 'truth', 'search', or {size} parameters to start every fit from, "
                f"got {start!r}"
            )
        self.start = start if isinstance(start, str) else tuple(float(value) for value in start)
        self.max_iterations = max_iterations
        self.fitter = MaximumLikelihood(
            model, noise, bounds=bounds, max_iterations=max_iterations, threads=threads
        )

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; statuses and stats are those of `MaximumLikelihood`.

        Raises:
            InputError: if `start` is `"truth"` and the voxels have no ground truth.
        """
        if self.start == "search":
            return self.fitter(voxels.signal, voxels.sigma)
        if not isinstance(self.start, str):
            start = np.broadcast_to(np.array(self.start), (len(voxels), len(self.start)))
            return self.fitter(voxels.signal, voxels.sigma, start=start)
        truth = _truth(voxels, "MLE(start='truth')", "use MLE(..., start='search') for real voxels")
        return self.fitter(voxels.signal, voxels.sigma, start=truth)

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`; labels do not depend on the number of threads."""
        fitter = self.fitter
        return {
            "kind": "maximum likelihood",
            "model": describe_model(fitter.model),
            "noise": describe_noise(fitter.noise),
            "start": plain(self.start),
            "bounds": {p.name: plain(p.bounds) for p in fitter.parameters},
            "max_iterations": self.max_iterations,
        }

    def __repr__(self) -> str:
        return f"MLE({self.fitter.model}, {self.fitter.noise}, {self.start!r})"


class Mix:
    """A mixed label, alpha · a + (1 - alpha) · b: the source's hybrid of MLE (a) and truth (b).

    For *squared* errors only, a mix of labels is a mix of losses (eq. 10): the
    gradient of alpha (y - a)² + (1 - alpha) (y - b)² is that of (y - alpha a - (1 - alpha) b)².
    For an absolute or Huber loss the two differ.

    A source with no share (b where alpha is 1) is not evaluated: `Mix(1, a, b)` gives the labels
    of a. Where a source with a share failed, the label is NaN, with the worse status of the two.

    Args:
        alpha: the share of a, from 0 to 1: a number, or one for each parameter (P,).
        a: a label source.
        b: the other one.

    Raises:
        InputError: if alpha is not between 0 and 1, or has another shape.

    Source: Epstein et al. 2024, eq. 10, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> class Zero:
        ...     def __call__(self, voxels):
        ...         truth = GroundTruth()(voxels)
        ...         return Estimate(0 * truth.values, truth.status)
        ...
        ...     def describe(self):
        ...         return {"kind": "zero"}
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.8]]))
        >>> Mix((1.0, 0.25), Zero(), GroundTruth())(voxels).values
        array([[0. , 0.6]])
    """

    def __init__(self, alpha: float | Sequence[float], a: LabelSource, b: LabelSource) -> None:
        self.alpha = np.array(alpha, float)
        within = np.all((self.alpha >= 0) & (self.alpha <= 1))
        if self.alpha.ndim > 1 or not self.alpha.size or not within:
            raise InputError(
                f"alpha: expected a number from 0 to 1, or one for each parameter, got {alpha!r}"
            )
        self.a = a
        self.b = b

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; the only statistic of a mix is `on_bound`."""
        if np.all(self.alpha == 1):
            return self._check_size(self.a(voxels))
        if np.all(self.alpha == 0):
            return self._check_size(self.b(voxels))
        a, b = self._check_size(self.a(voxels)), self._check_size(self.b(voxels))
        mixed = self.alpha * a.values + (1 - self.alpha) * b.values
        status = _worse(a.status, b.status)
        values = np.where(has_values(status)[:, None], mixed, np.nan)
        bounds = [e.stats["on_bound"] for e in (a, b) if "on_bound" in e.stats]
        return Estimate(
            values=values.astype(np.result_type(a.values, b.values)),
            status=status,
            stats={"on_bound": np.where(bounds[0], bounds[0], bounds[-1])} if bounds else {},
        )

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {
            "kind": "mix",
            "alpha": self.alpha.tolist(),
            "a": self.a.describe(),
            "b": self.b.describe(),
        }

    def __repr__(self) -> str:
        return f"Mix({self.alpha.tolist()}, {self.a}, {self.b})"

    def _check_size(self, estimate: Estimate) -> Estimate:
        size = estimate.values.shape[1]
        if self.alpha.ndim and len(self.alpha) != size:
            raise InputError(
                f"alpha: expected a number or one for each of {size} parameters, "
                f"got {len(self.alpha)}"
            )
        return estimate


@dataclasses.dataclass(frozen=True)
class FromEstimator:
    """Labels from any estimator of the noisy signal, such as another trained network.

    Args:
        estimator: called with the noisy signal and sigma.
        description: JSON data that hold all that its estimates depend on.

    Raises:
        InputError: if the description is not JSON data.
    """

    estimator: Estimator
    description: Mapping[str, Any]

    def __post_init__(self) -> None:
        canonical(self.description, "description")

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`."""
        return self.estimator(voxels.signal, voxels.sigma)

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {"kind": "estimator", "estimator": dict(self.description)}


def usable(
    estimate: Estimate, on_bound: Literal["drop", "keep"] = "drop"
) -> Bool[np.ndarray, " N"]:
    """The labels that can be trained on.

    Args:
        estimate: the labels.
        on_bound: `"drop"` excludes labels on a bound, as in section 3.3 of the source, since they
            reflect the bound rather than the tissue; `"keep"` includes them.

    Raises:
        InputError: if `on_bound` is neither.

    Example:
        >>> status = np.array([Status.CONVERGED, Status.ON_BOUND, Status.NOT_CONVERGED])
        >>> usable(Estimate(np.array([[0.7], [4.0], [np.nan]]), status))
        array([ True, False, False])
    """
    if on_bound not in ("drop", "keep"):
        raise InputError(f"on_bound: expected 'drop' or 'keep', got {on_bound!r}")
    good = has_values(estimate.status) & np.isfinite(estimate.values).all(axis=1)
    return good if on_bound == "keep" else good & (estimate.status != Status.ON_BOUND)


def label_report(estimate: Estimate, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The outcome of labelling, as shares of all voxels, in JSON data.

    Args:
        estimate: the labels.
        parameters: their columns.

    Returns:
        `labels` (their number), `usable` (share, without those on a bound), `on_bound` (share on
        any bound), `on_bound_of` (share by parameter; None where the source does not report it),
        `not_converged`, and `failed` (share without a value, those not converged included).

    Example:
        >>> status = np.array([Status.CONVERGED, Status.ON_BOUND])
        >>> labels = Estimate(np.array([[0.7], [4.0]]), status, {"on_bound": np.array([[0], [1]])})
        >>> report = label_report(labels, (Parameter("ADC", "µm²/ms", (0.01, 4.0)),))
        >>> report["usable"], report["on_bound_of"]
        (0.5, {'ADC': 0.5})
    """
    stuck = estimate.status == Status.ON_BOUND
    which = estimate.stats.get("on_bound")
    if which is None:
        shares = [None if stuck.any() else 0.0] * len(parameters)
    else:
        shares = [_share((column != 0) & stuck) for column in np.asarray(which).T]
    return {
        "labels": len(estimate.status),
        "usable": _share(usable(estimate)),
        "on_bound": _share(stuck),
        "on_bound_of": {p.name: s for p, s in zip(parameters, shares, strict=True)},
        "not_converged": _share(estimate.status == Status.NOT_CONVERGED),
        "failed": _share(~has_values(estimate.status)),
    }


def _truth(voxels: Voxels, who: str, remedy: str) -> Float[np.ndarray, "N P"]:
    if voxels.params is None:
        raise InputError(f"voxels.params: {who} needs the true parameters, got None; {remedy}")
    return voxels.params


def _worse(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    rank = np.empty(1 + max(Status), np.uint8)
    rank[[int(status) for status in _FROM_BEST_TO_WORST]] = np.arange(len(_FROM_BEST_TO_WORST))
    return np.where(rank[a] >= rank[b], a, b)


def _share(mask: Bool[np.ndarray, " N"]) -> float:
    return float(np.mean(mask)) if len(mask) else 0.0
