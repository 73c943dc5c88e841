"""Maps by a fit: maximum likelihood in every voxel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labelwise.fitting import MaximumLikelihood, check_input
from labelwise.io.acquisition import average, average_settings, sigma_factor
from labelwise.mapping.maps import maps_of_fit
from labelwise.mapping.method import Clock, Prepared, Sample, with_scatter
from labelwise.mapping.request import Groups, Request, describe_settings
from labelwise.models import SignalModel
from labelwise.models.base import measurements, settings_of
from labelwise.types import Estimate, Parameter, Progress, Status


@dataclass(frozen=True)
class ByFit:
    """Maximum likelihood in every voxel; a `Method`.

    Args:
        bounds: replaces bounds of parameters by name, in their units.
        average: fit the average of measurements with equal settings instead of each of them.
        max_iterations: a voxel that needs more is given up as NOT_CONVERGED.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    average: Literal["geometric", "arithmetic"] | None = None
    max_iterations: int = 200

    stage = "fit"
    files: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

    def groups(self, request: Request) -> Groups:
        """The volumes that are averaged into each of the G measurements that are fitted."""
        return request.equal_volumes if self.average else request.single_volumes

    def maps(self, parameters: tuple[Parameter, ...]):
        """The maps that are written."""
        return maps_of_fit(parameters)

    def check(self, request: Request) -> list[str]:
        """Notes on averaging and bounds."""
        notes, label = [], request.settings_label
        count, fitted, distinct = (
            measurements(request.model),
            len(self.groups(request)),
            len(request.equal_volumes),
        )
        if self.average and distinct == count:
            notes.append(
                f"{request.settings_label}: no two are equal, so there was nothing to average"
            )
        elif self.average and fitted > count / 2:
            notes.append(
                f"{label}: averaging made {fitted} measurements of {count} volumes; values "
                "that should be equal may need a larger --b-tolerance"
            )
        if self.average and distinct < count and request.noise.magnitude:
            notes.append(
                "averaged magnitudes are no longer Rician: where the signal falls below about "
                "3 sigma of one volume, estimates are biased; leave out --average to avoid this"
            )
        for parameter in request.model.parameters:
            lower, upper = self.bounds.get(parameter.name, parameter.bounds)
            if lower < parameter.bounds[0] or upper > parameter.bounds[1]:
                notes.append(
                    f"bounds: {parameter.name} from {lower:g} to {upper:g} goes beyond the "
                    f"model's own {parameter.bounds[0]:g} to {parameter.bounds[1]:g}"
                )
        return notes

    def settings(self, request: Request) -> dict[str, Any]:
        """Iterations and averaging."""
        groups = self.groups(request)
        averaged = {
            "fitted_settings": describe_settings(settings_of(self._fitted(request))),
            "averaged_volumes": [len(group) for group in groups],
            "sigma_factor": sigma_factor(groups),
        }
        return {
            "max_iterations": self.max_iterations,
            "acquisition": {"average": self.average, **(averaged if self.average else {})},
        }

    def begin(self, request: Request) -> ByFit:
        """Refuse settings that the fitter does not accept, before any work."""
        self._fitter(request)
        return self

    def prepare(
        self, request: Request, sample: Sample, progress: Progress, clock: Clock
    ) -> Prepared:
        """The fitter, and the averaging before it, if any."""
        fitter, groups = self._fitter(request), self.groups(request)
        how = self.average or "arithmetic"
        factor = sigma_factor(groups)
        if np.all(factor == factor[0]):
            factor = factor[:1]  # one sigma for all measurements of a voxel

        def step(signal, sigma, excess):
            measured = average(signal, groups, how)
            raw = check_input(signal, sigma, request.noise)  # an average can hide invalid values
            good = raw == Status.CONVERGED
            part = fitter(np.where(good[:, None], measured, np.nan), sigma * factor)
            stats = with_scatter(part.stats, excess)
            return Estimate(part.values, np.where(good, part.status, raw), stats, part.parameters)

        return Prepared(step, fitter.parameters, workers=1)

    def limits(self, estimate: Estimate, prepared: Prepared) -> dict[str, np.ndarray]:
        """By parameter, -1 on the lower bound, +1 on the upper one, else 0."""
        on_bound = estimate.stats["on_bound"]
        return {name: on_bound[:, column] for column, name in enumerate(estimate.names)}

    def notes(self, estimate: Estimate, summary, prepared: Prepared) -> list[str]:
        """No further notes."""
        return []

    def _fitted(self, request: Request) -> SignalModel:
        """The model of the G measurements that are fitted."""
        settings = average_settings(request.acquisition, self.groups(request))
        return replace(request.model, **settings)

    def _fitter(self, request: Request) -> MaximumLikelihood:
        return MaximumLikelihood(
            self._fitted(request),
            request.noise,
            bounds=self.bounds,
            max_iterations=self.max_iterations,
            threads=request.threads,
        )
