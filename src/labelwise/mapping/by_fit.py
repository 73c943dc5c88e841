"""Maps by a fit: maximum likelihood in every voxel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from labelwise.fitting import MaximumLikelihood, check_input
from labelwise.fitting.maximum_likelihood import left_out
from labelwise.fitting.usable import estimate_usable
from labelwise.io.acquisition import average, average_settings, sigma_factor
from labelwise.mapping.maps import maps_of_fit
from labelwise.mapping.method import Clock, Prepared, Sample, excess, with_scatter
from labelwise.mapping.request import Groups, Request, describe_settings
from labelwise.mapping.summary import ambiguous, bounds_that_bind
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

    def maps(self, request: Request, parameters: tuple[Parameter, ...], network=None):
        """The maps that are written."""
        return maps_of_fit(parameters, request.level is not None, request.standard_errors)

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
        single = self._fitter(request, request.model) if self.average else fitter
        how = self.average or "arithmetic"
        factor = sigma_factor(groups)
        if np.all(factor == factor[0]):
            factor = factor[:1]  # one sigma for all measurements of a voxel

        def step(signal, sigma, codes, top, scatter):
            def estimate(signal, sigma):
                raw = check_input(
                    signal, sigma, request.noise
                )  # an average can hide invalid values
                good = raw == Status.CONVERGED
                if sigma.shape[1] > 1:
                    left = left_out(sigma)
                    measured = average(signal, groups, how, left)
                    level = _averaged_sigma(sigma, left, groups)
                else:
                    measured, level = average(signal, groups, how), sigma * factor
                part = fitter(np.where(good[:, None], measured, np.nan), level)
                return Estimate(
                    part.values,
                    np.where(good, part.status, raw),
                    with_scatter(part, excess(scatter, sigma)),
                    part.parameters,
                )

            return estimate_usable(estimate, single, signal, sigma, codes, top, len(groups))

        return Prepared(step, fitter.parameters, workers=1)

    def limits(self, estimate: Estimate, prepared: Prepared) -> dict[str, np.ndarray]:
        """By parameter, -1 on the lower bound, +1 on the upper one, else 0."""
        on_bound = estimate.stats["on_bound"]
        return {name: on_bound[:, column] for column, name in enumerate(estimate.names)}

    def notes(self, estimate: Estimate, summary, prepared: Prepared) -> list[str]:
        """Notes on bounds that shift estimates, and on ambiguous voxels."""
        return [*bounds_that_bind(estimate), *ambiguous(estimate)]

    def _fitted(self, request: Request) -> SignalModel:
        """The model of the G measurements that are fitted."""
        settings = average_settings(request.acquisition, self.groups(request))
        return replace(request.model, **settings)

    def _fitter(self, request: Request, model: SignalModel | None = None) -> MaximumLikelihood:
        return MaximumLikelihood(
            model or self._fitted(request),
            request.noise,
            bounds=self.bounds,
            max_iterations=self.max_iterations,
            threads=request.threads,
            intervals=request.level,
        )


def _averaged_sigma(
    sigma: Float[np.ndarray, "n M"], left: Bool[np.ndarray, "n M"], groups: Groups
) -> Float[np.ndarray, "n G"]:
    """Sigma of the averages of the measurements that are not left out; infinite without any."""
    variance = np.where(left, 0, sigma).astype(float) ** 2
    used = [(~left[:, group]).sum(axis=1) for group in groups]
    return np.stack(
        [
            np.where(n > 0, np.sqrt(variance[:, group].sum(axis=1)) / np.maximum(n, 1), np.inf)
            for group, n in zip(groups, used, strict=True)
        ],
        axis=1,
    )
