"""The interface of a method: the part of a run that differs between fits and networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting.usable import Ceiling
from labelwise.mapping.maps import Map
from labelwise.mapping.request import Groups, Request
from labelwise.mapping.summary import NetworkUse, ParameterSummary
from labelwise.networks.network import Network
from labelwise.types import Estimate, Parameter, Progress

Sample = Callable[[], tuple[Float[np.ndarray, "n M"], Float[np.ndarray, "n #M"]]]
"""Reads the signal and the sigma of some usable voxels."""
Step = Callable[
    [
        Float[np.ndarray, "n M"],
        Float[np.ndarray, "#n #M"],
        Int[np.ndarray, "n M"],
        Ceiling | None,
        float | None,
    ],
    Estimate,
]
"""The estimate of some voxels from their signal, their sigma, why measurements are left out
already (else 0), the largest value of the series, if it may be clipped, and the scatter of the
measurements, if it is not sigma."""

Ends = Callable[
    [Float[np.ndarray, "n M"], Float[np.ndarray, "#n #M"], float | None, Estimate],
    Float[np.ndarray, "2 n P"],
]
"""Both ends of a blend of networks (alpha 1, then 0) before they are clipped to the bounds, from
signal, sigma and scatter of some voxels as for `Step`, and their estimate with its `left_out`."""


@dataclass(frozen=True)
class Prepared:
    """A method that is ready to estimate the voxels of one series.

    Args:
        step: estimates a block of voxels.
        parameters: what it estimates.
        workers: how many blocks at a time; 1 if a step uses all cores by itself.
        network: the network, if it is one; it is written if it was trained for this run.
        use: the network's part of the report.
        ends: of a blend, gives the estimates between which alpha blends.
    """

    step: Step
    parameters: tuple[Parameter, ...]
    workers: int
    network: Network | None = None
    use: NetworkUse | None = None
    ends: Ends | None = None


class Method(Protocol):
    """How voxels are estimated: `ByFit` or `ByNetwork`."""

    @property
    def stage(self) -> str:
        """The name of the estimation in reports: `"fit"` or `"map"`."""
        ...

    @property
    def inputs(self) -> Sequence[Path]:
        """The files that the method reads."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """Files besides the maps."""
        ...

    def groups(self, request: Request) -> Groups:
        """The volumes that make up each of the G measurements of a voxel."""
        ...

    def check(self, request: Request) -> list[str]:
        """Refuse requests that the method cannot handle for any series; return notes.

        Raises:
            InputError: if one option contradicts another, or the model.
        """
        ...

    def settings(self, request: Request) -> dict[str, Any]:
        """The method's part of the provenance."""
        ...

    def maps(
        self,
        request: Request,
        parameters: tuple[Parameter, ...],
        network: Network | None = None,
    ) -> list[Map]:
        """The maps that are written, once `network` is prepared, or expected before."""
        ...

    def begin(self, request: Request) -> Method:
        """Load files, and refuse invalid requests before any work."""
        ...

    def prepare(
        self, request: Request, sample: Sample, progress: Progress, clock: Clock
    ) -> Prepared:
        """Prepare the estimation, once the noise of the series is known: train, compile."""
        ...

    def limits(self, estimate: Estimate, prepared: Prepared) -> Mapping[str, np.ndarray]:
        """By parameter, negative where a value is at its lower limit, positive at the upper."""
        ...

    def notes(
        self,
        estimate: Estimate,
        summary: tuple[ParameterSummary, ...],
        prepared: Prepared,
    ) -> list[str]:
        """Notes on possible mistakes."""
        ...


def with_scatter(
    estimate: Estimate, excess: Float[np.ndarray, "#n 1"] | None
) -> dict[str, np.ndarray]:
    """The stats of measurements that scatter by more than the noise floor.

    An estimate moves in proportion to the scatter of the measurements, whatever its cause.

    Args:
        estimate: of n voxels, computed with sigma, the noise floor.
        excess: the scatter over sigma, at least 1; None where they are the same.
    """
    stats = estimate.stats
    if excess is None:
        return dict(stats)
    widths = {name: stats[name] * excess for name in ("standard_error", "sd") if name in stats}
    if "low" in stats:  # the distance of an end is in proportion, too, up to a bound
        lower, upper = np.array([p.bounds for p in estimate.parameters], np.float32).T
        ends = {
            name: np.clip(estimate.values + (stats[name] - estimate.values) * excess, lower, upper)
            for name in ("low", "high")
        }
        unlimited = {"low": lower, "high": upper}
        widths |= {n: np.where(stats[n] == unlimited[n], stats[n], ends[n]) for n in ends}
    ambiguity = {name: stats[name] / excess[:, 0] ** 2 for name in ("runner_up",) if name in stats}
    return {
        **stats,
        **ambiguity,
        **widths,
        "residual": stats["residual"] / excess[:, 0],
    }


def excess(
    scatter: float | None, sigma: Float[np.ndarray, "#n #M"]
) -> Float[np.ndarray, "#n 1"] | None:
    """The scatter of measurements over sigma, for `with_scatter`."""
    if scatter is None:
        return None
    return np.maximum(scatter / sigma.min(axis=1, keepdims=True), 1).astype(np.float32)


@dataclass
class Clock:
    """Wall time by part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """Record the time since the last call as that of a part."""
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now
