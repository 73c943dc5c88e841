"""What a method is: the part of a run that differs between a fit and a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from labelwise.mapping.maps import Map
from labelwise.mapping.request import Groups, Request
from labelwise.mapping.summary import NetworkUse, ParameterSummary
from labelwise.networks.network import Network
from labelwise.types import Estimate, Parameter, Progress

Sample = Callable[[], tuple[Float[np.ndarray, "n M"], Float[np.ndarray, " n"]]]
"""Reads the signal and the sigma of some usable voxels."""
Step = Callable[[Float[np.ndarray, "n M"], Float[np.ndarray, "#n 1"]], Estimate]
"""The estimate of some voxels from their signal and sigma."""


@dataclass(frozen=True)
class Prepared:
    """A method that is ready to estimate the voxels of one series.

    Args:
        step: estimates a block of voxels.
        parameters: what it estimates.
        workers: how many blocks at a time; 1 if a step uses all cores by itself.
        network: the network, if it is one; it is written if it was trained for this run.
        use: what a report says of the network.
    """

    step: Step
    parameters: tuple[Parameter, ...]
    workers: int
    network: Network | None = None
    use: NetworkUse | None = None


class Method(Protocol):
    """How voxels are estimated: `ByFit` or `ByNetwork`."""

    @property
    def stage(self) -> str:
        """What the estimation is called in reports: `"fit"` or `"map"`."""
        ...

    @property
    def inputs(self) -> Sequence[Path]:
        """The files that the method reads."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """What is written besides the maps."""
        ...

    def groups(self, request: Request) -> Groups:
        """The volumes that make up each of the G measurements of a voxel."""
        ...

    def check(self, request: Request) -> list[str]:
        """Refuse what the method cannot do, whatever the series; return notes.

        Raises:
            InputError: if one option contradicts another, or the model.
        """
        ...

    def settings(self, request: Request) -> dict[str, Any]:
        """The method's part of the provenance."""
        ...

    def maps(self, parameters: tuple[Parameter, ...]) -> list[Map]:
        """What is written for each voxel."""
        ...

    def begin(self, request: Request) -> Method:
        """Load what is needed, and refuse what can be refused before any work."""
        ...

    def prepare(
        self, request: Request, sample: Sample, progress: Progress, clock: Clock
    ) -> Prepared:
        """Make it ready for a series whose noise is known: train, compile."""
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
        """What may be a mistake but need not be."""
        ...


@dataclass
class Clock:
    """Wall time by part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """The time since the last call was this part's."""
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now
