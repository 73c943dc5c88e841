"""Maps by a network: one from a file, or one that is trained for the series."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from labelwise.fitting import MaximumLikelihood
from labelwise.fitting.goodness import goodness
from labelwise.fitting.maximum_likelihood import left_out
from labelwise.fitting.usable import estimate_usable
from labelwise.formatting import distinct_names
from labelwise.io.nifti import paths_of
from labelwise.mapping.maps import maps_of_network
from labelwise.mapping.method import Clock, Prepared, Sample, excess, with_scatter
from labelwise.mapping.request import Groups, Request
from labelwise.mapping.summary import NetworkUse, beyond_ranges, outside_training
from labelwise.models.find import name_of, refuse_other_model
from labelwise.networks.blend import noise_levels, trained_blend
from labelwise.networks.card import Card
from labelwise.networks.intervals import LEVEL
from labelwise.networks.network import (
    OUTSIDE_SIGNAL,
    OUTSIDE_VERIFIED,
    Network,
    alpha_of,
    load,
)
from labelwise.networks.verification import advice_on_alpha, verified
from labelwise.noise import chi2_quantile, describe_noise
from labelwise.priors import Uniform
from labelwise.types import (
    Estimate,
    InputError,
    Parameter,
    Progress,
    Status,
    has_values,
    is_built_in,
)

NETWORK = "net.safetensors"
"""The network that was trained for a run, in the folder of its maps."""

_ENDS = (2, 98)  # percentiles of the noise levels in a report
_COMPATIBLE = 0.999  # of true parameters are as likely as an estimate that is kept
_COMPATIBLE_FIT = 0.95  # the same for an estimate that stands for the most likely parameters
_ADDED = ("standard_error", "low", "high", "sd")  # all are due to the same noise
_MISSED = 3.0  # a residual above this is not noise: about 1 is expected


@dataclass(frozen=True)
class ByNetwork:
    """A network in every voxel; a `Method`.

    Args:
        net: the file of the network; if None, one is trained for the images.
        alpha: from 0 (least variance) to 1 (least bias), a number or by parameter's name; the
            network's own if None.
        ranges: replaces ranges of the simulated parameters by name, in their units, where a network
            is trained.
        cache: folder for trained networks; None to keep none.
        loaded: a network that is in memory already.
    """

    net: Path | None = None
    alpha: float | Mapping[str, float] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cache: Path | None = None
    loaded: Network | None = None

    stage = "map"

    @property
    def files(self) -> tuple[str, ...]:
        """Files besides the maps."""
        return () if self.net or self.loaded else (NETWORK,)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The network's file."""
        return (self.net,) if self.net else ()

    def groups(self, request: Request) -> Groups:
        """Each volume is a measurement of its own, as in training."""
        return request.single_volumes

    def maps(
        self,
        request: Request,
        parameters: tuple[Parameter, ...],
        network: Network | None = None,
    ):
        """The maps that are written."""
        kinds = self._kinds(request, network or self.loaded)
        return maps_of_network(parameters, kinds, request.standard_errors)

    def _kinds(self, request: Request, network: Network | None) -> Mapping[str, str]:
        """The kind of interval of each parameter; empty if there are no intervals."""
        if request.level is None:
            return {}
        if network is not None:
            return network.interval_kinds
        names = [parameter.name for parameter in request.model.parameters]
        alphas = alpha_of(1.0 if self.alpha is None else self.alpha, names)
        kinds = {1.0: "confidence", 0.0: "credible"}  # of the blend that is trained
        return {name: kinds.get(a, "blend") for name, a in zip(names, alphas, strict=True)}

    def check(self, request: Request) -> list[str]:
        """Refuse contradictory options; note b-values unlike those of the network's training.

        Raises:
            InputError: if alpha is not between 0 and 1 or names no parameter, or a network that
                is trained already is given another prior.
        """
        if self.alpha is not None:
            alpha_of(self.alpha, [parameter.name for parameter in request.model.parameters])
        if (self.net or self.loaded) and self.ranges:
            name = self.net.name if self.net else "the network"
            raise InputError(
                f"prior: {name} was trained already, so --prior cannot change it; leave "
                "out --prior (or --preset), or --net"
            )
        return [] if self.loaded is None else _other_b(request, self.loaded.card)

    def settings(self, request: Request) -> dict[str, Any]:
        """None; the record holds the network's card."""
        return {}

    def begin(self, request: Request) -> ByNetwork:
        """Load the network, and refuse one for another acquisition, model or noise."""
        if self.net is None and self.loaded is None:
            Uniform.typical(request.model, **self.ranges)  # refuses impossible ranges
            return self
        own = None if is_built_in(type(request.noise)) else request.noise
        place = self.net or Path("the network")
        network = self.loaded or load(place, noise=own)
        _check(request, place, network.card)
        network.check_acquisition(request.acquisition, request.b_tolerance)
        if self.alpha is not None:
            if not network.is_blend:
                raise InputError(
                    f"alpha: {place.name} holds a single network, trained on one kind of label, "
                    "so it has no alpha; leave --alpha out"
                )
            network = network.with_alpha(self.alpha)
        if request.level is None:
            network = replace(network, intervals=False)
        return replace(self, loaded=network)

    def prepare(
        self, request: Request, sample: Sample, progress: Progress, clock: Clock
    ) -> Prepared:
        """The network, loaded, from the cache or newly trained; then compiled."""
        signal, sigma = sample()
        sigma = _single_sigma(request, sigma)
        clock.lap("prepare")
        if self.loaded is not None:
            network = self.loaded
            use = _use(network, "file", self.net, {}, signal, sigma)
            (low, high), (least, most) = use.trained, use.image
            if not network.card.normalised and (most < low / 2 or least > high * 2):
                raise InputError(
                    f"{self.net or 'network'}: was trained with --absolute, for sigma {low:.3g} to "
                    f"{high:.3g} and signals of that unit, but here sigma is {least:.3g} to "
                    f"{most:.3g}; bring the images to that unit, or train without --absolute"
                )
        else:
            network, use = self._trained(request, signal, sigma, progress)
        fits = None
        if network.conditioned:
            network = verified(network, request.model, request.noise)
            fits = _Fits(request, network)
            if self.alpha is None and len(signal) and set(network.alpha) == {1.0}:
                level = float(np.median(_levels(network, signal, sigma)))
                use = replace(use, advice=advice_on_alpha(network, level))
        clock.lap("train")

        fitter = fits.fitter if fits else _fitter(request, network)

        def by_network(signal, sigma, beyond):
            sigma = np.broadcast_to(sigma[:, 0], len(signal))
            part = fits(signal, sigma, beyond) if fits else network(signal, sigma)
            nll, residual = goodness(request.model, request.noise, signal, sigma, part.values)
            stats = {**part.stats, "nll": nll, "residual": residual}
            part = Estimate(part.values, part.status, stats, request.model.parameters)
            stats = with_scatter(part, beyond)
            predicted = np.isin(part.status, (Status.PREDICTED, Status.EXTRAPOLATED))
            missed = (stats["residual"] > _MISSED) & predicted
            stats["outside"] = stats["outside"] | OUTSIDE_SIGNAL * missed.astype(np.uint8)
            return Estimate(part.values, part.status, stats, request.model.parameters)

        def step(signal, sigma, codes, top, scatter):
            def estimate(signal, sigma):
                left = left_out(sigma).any(axis=1)
                beyond = excess(scatter, sigma)
                found = by_network(signal, sigma.min(axis=1, keepdims=True), beyond)
                if left.any():  # a network needs all measurements
                    part = fitter(signal[left], sigma[left])
                    beyond = excess(scatter, sigma[left])
                    by_fit = with_scatter(part, beyond) | {"outside": np.uint8(0)}
                    by_fit["sd"] = by_fit["standard_error"]
                    found.values[left], found.status[left] = part.values, part.status
                    for name, rows in found.stats.items():
                        rows[left] = by_fit[name]
                return found

            return estimate_usable(estimate, fitter, signal, sigma, codes, top)

        if len(signal):
            by_network(signal[:1], sigma[:1, None], None)  # compiles: all blocks have one shape
        clock.lap("start")

        def ends(signal, sigma, scatter, found):
            return _ends(network, fits, signal, sigma, excess(scatter, sigma), found)

        return Prepared(
            step,
            request.model.parameters,
            request.workers,
            network,
            use,
            ends if network.is_blend else None,
        )

    def limits(self, estimate: Estimate, prepared: Prepared) -> dict[str, np.ndarray]:
        """By parameter, -1 where a value is below the range of the labels, +1 above."""
        assert prepared.use is not None
        return beyond_ranges(estimate, estimate.names, prepared.use)

    def notes(self, estimate: Estimate, summary, prepared: Prepared) -> list[str]:
        """Notes on voxels outside the training range, and on alpha."""
        assert prepared.use is not None
        advice = [prepared.use.advice] if prepared.use.advice else []
        return outside_training(estimate, summary, prepared.use) + advice

    def _trained(self, request: Request, signal, sigma, progress) -> tuple[Network, NetworkUse]:
        prior = Uniform.typical(request.model, **self.ranges)
        levels = _noise_levels(request, signal, sigma)
        network, how = trained_blend(
            request.model,
            request.noise,
            levels,
            prior,
            b_tolerance=request.b_tolerance,
            intervals=request.level is not None,
            cache=self.cache,
            similar=True,
            progress=progress,
        )
        if self.alpha is not None:
            network = network.with_alpha(self.alpha)
        origin = "cache" if how["cached"] else "trained"
        path = Path(how["path"]) if how["path"] else None
        return network, _use(network, origin, path, how["seconds"], signal, sigma)


def levels_to_train_for(
    request: Request, signal: Float[np.ndarray, "n M"], sigma: Float[np.ndarray, "n #M"]
) -> tuple[float, float]:
    """The lowest and highest noise level of a series, for a network that several series share.

    Args:
        request: the series and its model.
        signal: of some usable voxels.
        sigma: of the same voxels.

    Raises:
        InputError: if there is no usable voxel, or sigma differs between measurements.
    """
    return _noise_levels(request, signal, _single_sigma(request, sigma))


def _single_sigma(request: Request, sigma: Float[np.ndarray, "n #M"]) -> Float[np.ndarray, " n"]:
    """Sigma of each voxel, if it is the same for all measurements of a voxel."""
    if sigma.shape[1] > 1:
        raise InputError(
            f"{request.sigma}: sigma of each measurement cannot be used by a network, which "
            "takes one for each voxel; give a map of one volume, or use `labelwise fit`"
        )
    return sigma[:, 0]


def _noise_levels(request: Request, signal, sigma) -> tuple[float, float]:
    if not len(signal):
        raise InputError(
            f"{paths_of(request.image)[0]}: no voxel inside the mask can be used with all its "
            "measurements, so there is no noise level to train a network for; try labelwise fit"
        )
    return noise_levels(request.model, signal, sigma, request.b_tolerance)


def _fitter(request: Request, network: Network) -> MaximumLikelihood:
    """Fits that replace estimates of a network, with intervals if it has them."""
    level = LEVEL if network.interval_kinds else None
    return MaximumLikelihood(request.model, request.noise, threads=request.threads, intervals=level)


class _Fits:
    """Fits in the voxels in which a network is not as good as a fit.

    These are the voxels at a noise level where it is less precise, and those whose measurements
    contradict its estimate. In a blend, fits take the place of one of its networks, or of both.
    Measurements that scatter by more than sigma contradict an estimate by that much less.
    """

    def __init__(self, request: Request, network: Network) -> None:
        self.fitter = _fitter(request, network)
        self.network = network
        pairs = zip(network.ends, network.shares, strict=True)
        self.used = [(end, share) for end, share in pairs if share.any()]

    def __call__(
        self,
        signal: Float[np.ndarray, "n M"],
        sigma: Float[np.ndarray, " n"],
        excess: Float[np.ndarray, "#n 1"] | None = None,
    ) -> Estimate:
        """The estimate of the network, with fits where it is not as good as they are."""
        found = self.network(signal, sigma)
        ends = [found]
        if len(self.used) > 1:
            ends = [end.without_errors()(signal, sigma) for end, _ in self.used]
        pairs = zip(self.used, ends, strict=True)
        doubtful = np.stack(
            [self._doubtful(end, e, signal, sigma, excess) for (end, _), e in pairs]
        )
        rows = np.flatnonzero(doubtful.any(axis=0) & has_values(found.status))
        if len(rows):
            self._replace(found, rows, doubtful[:, rows], signal[rows], sigma[rows])
        return found

    def _doubtful(self, end: Network, estimate: Estimate, signal, sigma, excess) -> np.ndarray:
        """Where a single network is less precise than a fit, or contradicted."""
        copies = end.card.label["kind"] == "maximum likelihood"
        compatible = _COMPATIBLE_FIT if copies else _COMPATIBLE
        decrease = self.fitter.decrease(signal, sigma, estimate.values)
        if excess is not None:
            decrease = decrease / excess[:, 0] ** 2
        contradicted = 2 * decrease > chi2_quantile(compatible, len(end.parameters))
        return contradicted | ((estimate.stats["outside"] & OUTSIDE_VERIFIED) > 0)

    def _replace(self, found: Estimate, rows, doubtful, signal, sigma) -> None:
        fits = self.fitter(signal, sigma)
        fitted = has_values(fits.status)
        names = [name for name in _ADDED if name in found.stats]
        total = {name: np.zeros_like(fits.values) for name in ("values", *names)}
        by_fit = {"values": fits.values, "sd": fits.stats["standard_error"], **fits.stats}
        for (end, share), replaced in zip(self.used, doubtful, strict=True):
            own = end(signal, sigma)
            by_network = {"values": own.values, "sd": np.nan, **own.stats}
            for name, sums in total.items():
                member = np.where(replaced[:, None], by_fit[name], by_network[name])
                sums += np.where(share > 0, share * member, 0)
        whole = doubtful.all(axis=0)
        before = found.stats["outside"][rows]
        outside = np.where(whole, 0, before & ~np.uint8(OUTSIDE_VERIFIED))
        status = np.where(outside > 0, Status.EXTRAPOLATED, Status.PREDICTED)
        status = np.where(whole, fits.status, status)
        found.values[rows[fitted]] = total["values"][fitted]
        for name in names:
            found.stats[name][rows[fitted]] = total[name][fitted]
        found.stats["outside"][rows] = np.where(
            fitted, outside, before | np.uint8(OUTSIDE_VERIFIED)
        )
        found.status[rows] = np.where(fitted, status, Status.EXTRAPOLATED)


def _ends(
    network: Network,
    fits: _Fits | None,
    signal: Float[np.ndarray, "n M"],
    sigma: Float[np.ndarray, "#n #M"],
    beyond: Float[np.ndarray, "#n 1"] | None,
    found: Estimate,
) -> Float[np.ndarray, "2 n P"]:
    """The estimates at both ends of a blend, as a run at alpha 1 and one at 0 make them.

    They are not clipped to the bounds, since a blend is clipped as a whole, except where a fit
    takes the place of either, and where both are fits because measurements are left out.
    """
    ends = np.stack([found.values] * 2)
    rows = np.flatnonzero(has_values(found.status) & ~found.stats["left_out"].any(axis=1))
    if not len(rows):
        return ends
    signal, sigma = signal[rows], np.broadcast_to(sigma.min(axis=1), len(signal))[rows]
    raw = network.unclipped_ends(signal, sigma)
    ends[:, rows] = raw
    if fits is None:
        return ends
    if beyond is not None and len(beyond) > 1:
        beyond = beyond[rows]
    singles = [end.without_errors() for end in network.ends]
    own = [single(signal, sigma) for single in singles]
    doubtful = np.stack(
        [
            fits._doubtful(end, estimate, signal, sigma, beyond)
            for end, estimate in zip(singles, own, strict=True)
        ]
    )
    some = np.flatnonzero(doubtful.any(axis=0))
    if not len(some):
        return ends
    by_fit, status = found.values[rows[some]], found.status[rows[some]]
    new = np.isin(status, (Status.PREDICTED, Status.EXTRAPOLATED))  # the others are fits already
    if new.any():
        more = fits.fitter(signal[some[new]], sigma[some[new]])
        by_fit[new], status[new] = more.values, more.status
    clipped = np.stack([estimate.values[some] for estimate in own])
    replaced = doubtful[:, some, None] & has_values(status)[:, None]
    ends[:, rows[some]] = np.where(replaced, by_fit, clipped)
    return ends


def model_of(path: Path | None) -> str:
    """The name of the model that a network file was trained for.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if no file is given, or its model has no name.
    """
    if path is None:
        raise InputError(
            "--model is required: a name from `labelwise models` (ivim), or your own: FILE.py:Class"
        )
    return name_of(load(path).card.model, path)


def _use(
    network: Network,
    origin: Literal["file", "trained", "cache"],
    path: Path | None,
    seconds: Mapping[str, float],
    signal: Float[np.ndarray, "n M"],
    sigma: Float[np.ndarray, " n"],
) -> NetworkUse:
    """The network's part of a report: its training and the noise levels of some voxels."""
    card = network.card
    scaling = network.members[0].scaling
    levels = _levels(network, signal, sigma)
    spans = {
        parameter.name: _pair(span)
        for index, (parameter, span) in enumerate(
            zip(network.parameters, network.label_range, strict=True)
        )
        if index != scaling.scale
    }
    return NetworkUse(
        origin=origin,
        path=path,
        alpha=network.alphas if network.is_blend else None,
        trained=_pair(card.noise_range),
        image=_pair(np.percentile(levels, _ENDS)) if len(levels) else (math.nan, math.nan),
        ranges=spans,
        seconds=seconds,
        card=card.to_json(),
    )


def _levels(
    network: Network, signal: Float[np.ndarray, "n M"], sigma: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The noise level of each voxel: sigma over the reference."""
    chosen = list(network.members[0].scaling.reference)
    reference = signal[:, chosen].mean(axis=1) if chosen else 1.0
    with np.errstate(divide="ignore"):
        return np.broadcast_to(sigma / reference, len(sigma))


def _pair(numbers) -> tuple[float, float]:
    low, high = (float(number) for number in numbers)
    return low, high


def _other_b(request: Request, card: Card) -> list[str]:
    """A note on b-values that differ from those of the training within the tolerance."""
    ours, theirs = request.acquisition.get("b"), card.acquisition.get("b")
    if ours is None or theirs is None or np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        return []
    most = 1000 * float(np.abs(ours - theirs).max())
    return [
        f"b-values: those of the series differ by up to {most:.3g} s/mm² from those that the "
        "network was trained for, which counts as equal (--b-tolerance)"
    ]


def _check(request: Request, path: Path, card: Card) -> None:
    """Refuse a network for another model or noise; its acquisition is checked elsewhere."""
    refuse_other_model(request.model, card.model, path)
    ours, theirs = describe_noise(request.noise), card.noise
    if theirs != ours:
        trained, requested = distinct_names(theirs, ours)
        raise InputError(
            f"{path}: was trained for {trained} noise, not for {requested}; choose that --noise, "
            "or another network"
        )
