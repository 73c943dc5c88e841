"""Trained networks: estimate parameters, blend two networks, save and load.

A network file is a `.safetensors` file of the weights, with the card of each network in its
header. It contains no executable code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.fitting import check_input
from labelwise.io.files import read_arrays, write_arrays
from labelwise.networks.card import VERSION, Card
from labelwise.networks.inference import apply
from labelwise.networks.intervals import LEVELS, Heads, IntervalNetwork
from labelwise.networks.mlp import Architecture, Scaling, Weights, named
from labelwise.noise import NoiseModel, describe_noise, noise_from
from labelwise.types import (
    SETTINGS,
    Estimate,
    InputError,
    Parameter,
    Status,
    estimate_voxels,
    sigma_of_voxels,
)

Alpha = float | Sequence[float] | Mapping[str, float]
"""One alpha, one for each parameter, or alpha by parameter name (1 for those not named)."""

_ROUNDING = 1e-5  # relative; an end on a bound, which is calculated as a logarithm, is the bound
_SLACK = 0.1  # estimates may exceed the range of the labels by this share of its width
_NOISE_SLACK = 1.05  # noise levels may exceed the training range by this factor
OUTSIDE_NOISE, OUTSIDE_RANGE, OUTSIDE_SIGNAL, OUTSIDE_VERIFIED = 1, 2, 4, 8
"""Why an estimate is not to be trusted: the noise level or the estimate itself is outside the
training range, (only where the signal model is available) the estimate does not fit the signal, or
the network is less precise than a fit at that noise level."""


@dataclass(frozen=True, eq=False)
class Member:
    """A trained perceptron with its scaling and card.

    Args:
        architecture: its layers.
        scaling: between measurements, perceptron and parameters.
        weights: of the layers.
        card: the record of its training.
        interval: the network of its intervals, if there is one.
    """

    architecture: Architecture
    scaling: Scaling
    weights: Weights
    card: Card
    interval: IntervalNetwork | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A trained network, or a blend of two; an `Estimator`.

    A blend (nicknamed the dial) is alpha times the estimate of a network trained on
    maximum-likelihood labels plus (1 - alpha) times that of one trained on the ground truth. For
    squared errors it is the optimal network for the mixed label alpha·mle + (1 - alpha)·gt, since
    expectation is linear. Alpha thus sets the bias-variance trade-off of each parameter without
    another training. This holds for networks trained on the same voxels: exactly if labels on a
    bound were kept, approximately if they were dropped.

    Args:
        members: one, or two for a blend: trained on maximum-likelihood labels, and on the truth.
        parameters: the estimated parameters; estimates are clipped to their bounds.
        noise: the noise model of its training.
        alpha: (P,) the share of the first member in each parameter; 1 for a single network.
        standard_errors: whether to compute standard errors, which take most of the time.
        intervals: whether to compute intervals, where the network has them.

    Source: Epstein et al. 2024, eq. 10, doi:10.59275/j.melba.2024-geb5.
    """

    members: tuple[Member, ...]
    parameters: tuple[Parameter, ...]
    noise: NoiseModel
    alpha: tuple[float, ...]
    standard_errors: bool = True
    intervals: bool = True

    def __call__(
        self,
        signal: Float[np.ndarray, "*shape M"],
        sigma: Float[np.ndarray, "..."] | float,
        *,
        alpha: Alpha | None = None,
        mask: Bool[np.ndarray, "*shape"] | None = None,
    ) -> Estimate:
        """Estimate the parameters of every voxel.

        Args:
            signal: (*shape, M) measurements, in the order of the acquisition it was trained for.
            sigma: noise of one channel in the signal's unit: a number, or one for each voxel.
            alpha: from 0 (least variance) to 1 (least bias): a number, one for each parameter, or
                by name; the alpha of the network if None. For blends only.
            mask: (*shape) the voxels to estimate; all of them if None.

        Returns:
            Values (*shape, P) within the parameters' bounds, with status PREDICTED, or EXTRAPOLATED
            outside the training range; NaN for invalid input, with its status. The stats are

            - `standard_error` (*shape, P): the noise of the voxel propagated to first order; NaN
              where the estimate is clipped to a bound. It excludes the bias of the network, and
              below an SNR of about 10 it can be several times too small
            - `outside` (*shape): the sum of 1 where the noise level is outside the training range,
              2 where an estimate exceeds the range of the labels by more than a tenth of its width,
              and 8 where the noise is lower than in training, or the network was found to be less
              precise than a fit at that noise level (`Card.verification`); use `fit` there
            - `low`, `high` (*shape, P): the ends of an interval of 95 %, within the bounds; of the
              kinds in `interval_kinds`, and absent if there is none. A confidence interval always
              holds the estimate
            - `sd` (*shape, P): half the width of the central 68 % of the posterior, where alpha is
              0, else NaN; absent if no alpha is 0 or there are no credible intervals

        Raises:
            InputError: if a shape does not fit, or alpha is not from 0 to 1.
        """
        network = self if alpha is None else self.with_alpha(alpha)
        count = self.members[0].scaling.measurements
        return estimate_voxels(network._estimate, signal, sigma, count, mask)

    @property
    def card(self) -> Card:
        """The card of its only member, or of the one trained on maximum-likelihood labels."""
        return self.members[0].card

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def conditioned(self) -> bool:
        """Whether it was trained for a range of noise levels, which is one of its inputs."""
        return self.members[0].scaling.conditioned

    @property
    def is_blend(self) -> bool:
        """Whether it has two members and thus an adjustable alpha."""
        return len(self.members) > 1

    @property
    def ends(self) -> tuple[Network, ...]:
        """Each member as a single network: for a blend, those of alpha = 1 and alpha = 0."""
        ones = (1.0,) * len(self.parameters)
        return tuple(replace(self, members=(member,), alpha=ones) for member in self.members)

    @property
    def alphas(self) -> dict[str, float]:
        """Alpha by parameter name."""
        names = (parameter.name for parameter in self.parameters)
        return dict(zip(names, self.alpha, strict=True))

    @property
    def shares(self) -> list[Float[np.ndarray, " P"]]:
        """The share (P,) of each member in each parameter."""
        alpha = np.array(self.alpha, np.float32)
        return [alpha, 1 - alpha][: len(self.members)]

    @property
    def interval_kinds(self) -> dict[str, str]:
        """The kind of interval of each parameter, by name; empty if it has no intervals.

        - `credible`, of a network of the ground truth: it holds the truth with a probability of
          95 %, if tissue is like the simulated one; on average, not for every tissue
        - `confidence`, of one of maximum-likelihood labels: it holds the truth in 95 % of repeats,
          whatever the truth
        - `blend`, whose ends are blended as the estimates are: nothing is known
        """
        used = [member.interval for member, _ in self._used]
        if not self.intervals or any(each is None for each in used):
            return {}
        kinds = {}
        for name, shares in zip(self.names, np.array(self.shares).T, strict=True):
            mine = {
                each.interval.heads.kind  # type: ignore[union-attr]
                for each, share in zip(self.members, shares, strict=True)
                if share
            }
            kinds[name] = mine.pop() if len(mine) == 1 else "blend"
        return kinds

    @property
    def label_range(self) -> Float[np.ndarray, "P 2"]:
        """Lowest and highest label of each parameter, blended by alpha."""
        ranges = [np.array(member.card.label_range, float) for member in self.members]
        return sum(
            share[:, None].astype(float) * span
            for share, span in zip(self.shares, ranges, strict=True)
        )  # type: ignore[return-value]  # there is at least one

    def with_alpha(self, alpha: Alpha) -> Network:
        """The same blend at another alpha.

        Raises:
            InputError: for a single network, or if alpha is not from 0 to 1 or names no parameter.
        """
        if not self.is_blend:
            raise InputError(
                f"alpha: this is a single network, trained on one label ({self.card.label['kind']})"
                ", so alpha is undefined; omit it"
            )
        names = [parameter.name for parameter in self.parameters]
        return replace(self, alpha=alpha_of(alpha, names))

    def without_errors(self) -> Network:
        """The same network without standard errors and intervals, which is much faster."""
        return replace(self, standard_errors=False, intervals=False)

    def unclipped_ends(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, " N"]
    ) -> Float[np.ndarray, "E N P"]:
        """The estimates of each of its E members for valid voxels, before they are clipped.

        A blend is clipped as a whole: at any alpha, its estimate is the blend of these, clipped to
        the bounds of the parameters.
        """
        ones = np.ones(len(self.parameters), np.float32)
        signal, sigma = np.asarray(signal, np.float32), np.asarray(sigma, np.float32)
        parts = [(m.architecture, m.scaling, m.weights, ones) for m in self.members]
        return np.stack(
            [apply([part], self.noise, signal, sigma, errors=False)[0] for part in parts]
        )

    def check_acquisition(
        self, settings: Mapping[str, Float[np.ndarray, " M"]], b_tolerance: float = 0.0
    ) -> None:
        """Check that settings are those of the training; the error lists the differences.

        Args:
            settings: by name, in the units of the model: b in ms/µm², times in ms.
            b_tolerance: in ms/µm²; b-values this close are equal.

        Raises:
            InputError: if a setting is missing or different.
        """
        _check_acquisition(self.card.acquisition, settings, b_tolerance)

    def save(self, path: str | Path) -> None:
        """Save the network as one `.safetensors` file, written completely or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        arrays = {
            f"{index}.{name}": values
            for index, member in enumerate(self.members)
            for name, values in _arrays(member).items()
        }
        signed = any(member.architecture.signed for member in self.members)
        header = {
            "version": VERSION if signed else VERSION - 1,
            "alpha": list(self.alpha) if self.is_blend else None,
            "networks": [
                {
                    "architecture": _architecture_to_json(member.architecture),
                    "scaling": asdict(member.scaling),
                    "parameters": [_parameter_to_json(each) for each in self.parameters],
                    "card": member.card.to_json(),
                    "interval": _interval_to_json(member.interval),
                }
                for member in self.members
            ],
        }
        write_arrays(Path(path), arrays, header)

    def __repr__(self) -> str:
        names = ", ".join(parameter.name for parameter in self.parameters)
        labels = " and ".join(member.card.label["kind"] for member in self.members)
        alpha = ", ".join(f"{name}={alpha:g}" for name, alpha in self.alphas.items())
        return f"Network({names}; trained on {labels}{f'; alpha {alpha}' * self.is_blend})"

    def _estimate(self, signal: Float[np.ndarray, "N M"], sigma: np.ndarray) -> Estimate:
        """Check the input, apply the members, and mark extrapolated estimates."""
        with np.errstate(
            over="ignore"
        ):  # overflow gives infinity, which is marked as invalid below
            signal, sigma = np.asarray(signal, np.float32), np.asarray(sigma, np.float32)
        level = sigma_of_voxels(sigma, len(signal))[:, 0]
        first = self.members[0].scaling
        status = _input_status(first, self.noise, signal, level)
        good = np.flatnonzero(status == Status.CONVERGED)
        values = np.full((len(signal), len(self.parameters)), np.nan, np.float32)
        outside = np.zeros(len(signal), np.uint8)
        stats: dict[str, np.ndarray] = {"outside": outside}
        if self.standard_errors:
            stats = {"standard_error": np.full_like(values, np.nan), **stats}
        kinds = self.interval_kinds
        if kinds:
            stats |= {name: np.full_like(values, np.nan) for name in ("low", "high", "sd")}
        if len(good):
            rows = slice(None) if len(good) == len(signal) else good  # a slice makes no copy
            parts = [(m.architecture, m.scaling, m.weights, share) for m, share in self._used]
            found, error, ratio, ends = apply(
                parts,
                self.noise,
                signal[rows],
                level[rows],
                errors=self.standard_errors,
                intervals=[m.interval for m, _ in self._used if m.interval and kinds],
            )
            bounds = np.array([p.bounds for p in self.parameters], np.float32).T
            finite = np.all(np.isfinite(found), axis=1)
            clipped = np.where(finite[:, None], np.clip(found, *bounds), np.nan)
            codes = np.where(finite, self._outside(found, ratio), 0)
            values[rows], outside[rows] = clipped, codes
            if error is not None:  # undefined where the estimate is clipped
                stats["standard_error"][rows] = np.where(clipped == found, error, np.nan)
            if ends is not None:
                np.clip(ends[:2], *bounds, out=ends[:2])
                inwards = np.copysign(_ROUNDING, bounds)  # also for a bound below 0
                lowest, highest = bounds[0] * (1 + inwards[0]), bounds[1] * (1 - inwards[1])
                np.copyto(ends[0], bounds[0], where=ends[0] <= lowest)
                np.copyto(ends[1], bounds[1], where=ends[1] >= highest)
                sure = [kind == "confidence" for kind in kinds.values()]  # they hold the estimate
                np.minimum(ends[0], clipped, out=ends[0], where=sure)
                np.maximum(ends[1], clipped, out=ends[1], where=sure)
                ends[:, ~finite] = np.nan
                ends[2][:, [kind != "credible" for kind in kinds.values()]] = np.nan
                for name, limits in zip(("low", "high", "sd"), ends, strict=True):
                    stats[name][rows] = limits
            estimated = np.where(codes > 0, Status.EXTRAPOLATED, Status.PREDICTED)
            status[rows] = np.where(finite, estimated, Status.NOT_FINITE)
        if "credible" not in kinds.values():
            stats.pop("sd", None)
        return Estimate(values, status, stats, self.parameters)

    @property
    def _used(self) -> list[tuple[Member, Float[np.ndarray, " P"]]]:
        """The members with a share, and the share (P,) of each in each parameter."""
        pairs = zip(self.members, self.shares, strict=True)
        return [(member, share) for member, share in pairs if share.any()]

    def _outside(
        self, found: Float[np.ndarray, "N P"], ratio: Float[np.ndarray, " N"]
    ) -> Int[np.ndarray, " N"]:
        """Why each estimate is extrapolated, as a sum of codes; 0 if it is not."""
        low, high = self.card.noise_range
        below = ratio < low / _NOISE_SLACK
        noise = below | (ratio > high * _NOISE_SLACK)
        less_precise = below & self.conditioned
        for member, share in zip(self.members, self.shares, strict=True):
            if share.any() and member.card.verification:
                less_precise |= _fails(member.card.verification, ratio)
        low, high = self.label_range.T
        slack = _SLACK * (high - low)
        least, most = low - slack, high + slack
        scale = self.members[0].scaling.scale
        if scale is not None:  # amplitudes are unlimited: the reference scales them
            least[scale], most[scale] = -np.inf, np.inf
        beyond = ((found < least.astype(np.float32)) | (found > most.astype(np.float32))).any(
            axis=1
        )
        codes = (noise, OUTSIDE_NOISE), (beyond, OUTSIDE_RANGE), (less_precise, OUTSIDE_VERIFIED)
        return sum(where * np.uint8(code) for where, code in codes)  # type: ignore[return-value]


def blend(mle: Network, gt: Network, alpha: Alpha = 1.0) -> Network:
    """A blend of two single networks; see `Network`.

    Args:
        mle: trained on maximum-likelihood labels (alpha = 1, least bias).
        gt: trained on the ground truth (alpha = 0, least variance).
        alpha: the default alpha of the blend.

    Raises:
        InputError: if the networks are blends, or were trained for different acquisitions,
            parameters or noise models; or alpha is not from 0 to 1 or names no parameter.
    """
    names = [parameter.name for parameter in mle.parameters]
    if mle.is_blend or gt.is_blend:
        raise InputError("blend: expected two single networks, got a blend")
    if names != [parameter.name for parameter in gt.parameters]:
        raise InputError(
            f"blend: the networks estimate different parameters, {', '.join(names)} and "
            f"{', '.join(parameter.name for parameter in gt.parameters)}"
        )
    gt.check_acquisition(mle.card.acquisition)
    if describe_noise(gt.noise) != describe_noise(mle.noise):
        raise InputError(f"blend: the networks are for different noise, {mle.noise} and {gt.noise}")
    return replace(mle, members=(*mle.members, *gt.members), alpha=alpha_of(alpha, names))


def with_interval(network: Network, interval: IntervalNetwork) -> Network:
    """A single network with a network of intervals beside it."""
    (member,) = network.members
    return replace(network, members=(replace(member, interval=interval),))


def load(path: str | Path, *, noise: NoiseModel | None = None) -> Network:
    """Load a network saved by `Network.save`.

    Args:
        path: the `.safetensors` file.
        noise: the noise model of its training, if it is not part of labelwise.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is damaged, of an unknown version, no network of labelwise, or of an
            unknown noise model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such network file")
    damaged = f"{path}: not a network of labelwise, or damaged; train it again or copy it again"
    try:
        arrays, header = read_arrays(path)
        version = header["version"]
    except (InputError, LookupError) as error:
        raise InputError(damaged) from error
    if version not in range(1, VERSION + 1):
        raise InputError(
            f"{path}: version {version} of the network file, but this labelwise reads 1 to "
            f"{VERSION}; upgrade labelwise, or train the network again"
        )
    try:
        return _network_from_json(arrays, header, noise, path)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError) as error:  # written by something else
        raise InputError(damaged) from error


def _network_from_json(
    arrays: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
    noise: NoiseModel | None,
    path: Path,
) -> Network:
    members = tuple(
        Member(
            architecture=Architecture(**record["architecture"]),
            scaling=_scaling_from_json(record["scaling"]),
            weights=_weights_from(arrays, f"{index}.", record["architecture"]),
            card=Card.from_json(record["card"], header["version"]),
            interval=_interval_from_json(record.get("interval"), arrays, f"{index}.interval."),
        )
        for index, record in enumerate(header["networks"])
    )
    parameters = tuple(_parameter_from_json(each) for each in header["networks"][0]["parameters"])
    names = [parameter.name for parameter in parameters]
    alpha = 1.0 if header["alpha"] is None else header["alpha"]
    if len(members) != (1 if header["alpha"] is None else 2):
        raise ValueError("one network without alpha, or two with it")
    for member in members:
        _refuse_other_sizes(member, len(parameters))
    noise = noise_from(members[0].card.noise, noise, path)
    return Network(members, parameters, noise, alpha_of(alpha, names))


def _refuse_other_sizes(member: Member, parameters: int) -> None:
    """Refuse a member whose weights, scaling, card and parameters are not of one size.

    Raises:
        ValueError: if they are not, or a weight is not finite.
    """
    layers, scaling, card = member.architecture, member.scaling, member.card
    inputs = len(scaling.groups) + scaling.conditioned
    volumes = sorted(volume for group in scaling.groups for volume in group)
    sizes = [len(rows) for rows in card.acquisition.values()]
    fits = (
        _shapes(member.weights) == _shapes_of(layers)
        and (layers.inputs, layers.outputs) == (inputs, parameters)
        and len(scaling.centre) == len(scaling.spread) == inputs
        and len(scaling.unit) == len(card.label_range) == len(card.ranges) == parameters
        and volumes == list(range(len(volumes)))
        and set(sizes) == {len(volumes)}
        and set(scaling.reference) <= set(volumes)
        and scaling.scale in (None, *range(parameters))
        and {"class", "constants", "source"} <= set(card.model)
        and (member.interval is None or _fits(member.interval, inputs, parameters))
    )
    if not fits or not all(np.isfinite(rows).all() for rows in _arrays(member).values()):
        raise ValueError("sizes that do not fit each other")


def _fits(interval: IntervalNetwork, inputs: int, parameters: int) -> bool:
    """Whether a network of intervals has the sizes of the network that it is beside."""
    heads = interval.heads
    layers, fields = heads.architecture, (heads.low, heads.high, heads.logarithmic, heads.snapped)
    return (
        heads.kind in LEVELS
        and layers.inputs == inputs
        and layers.outputs == parameters * (len(LEVELS[heads.kind]) + 1)
        and {len(each) for each in fields} == {parameters}
        and _shapes(interval.weights) == _shapes_of(layers)
    )


def _shapes(weights: Weights) -> list[tuple[tuple[int, ...], ...]]:
    return [(matrix.shape, bias.shape) for matrix, bias in weights]


def _shapes_of(layers: Architecture) -> list[tuple[tuple[int, ...], ...]]:
    return [((to, fan_in), (to, 1)) for to, fan_in in layers.layers]


def alpha_of(alpha: Alpha, names: Sequence[str]) -> tuple[float, ...]:
    """The validated alpha of each parameter."""
    if isinstance(alpha, Mapping):
        unknown = [name for name in alpha if name not in names]
        if unknown:
            raise InputError(f"alpha: no parameter {unknown[0]!r}; there are {', '.join(names)}")
        values = np.array([alpha.get(name, 1.0) for name in names], float)
    else:
        values = np.asarray(alpha, float)
        if values.shape not in ((), (len(names),)):
            raise InputError(
                f"alpha: expected a number, or one for each of {', '.join(names)}, "
                f"got {values.size}"
            )
    if not np.all((values >= 0) & (values <= 1)):
        raise InputError(
            f"alpha: expected a number from 0 (least variance) to 1 (least bias), got {alpha}"
        )
    return tuple(np.broadcast_to(values, len(names)).tolist())


def _fails(
    verification: Sequence[Mapping[str, Any]], ratio: Float[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Where a network is less precise than a fit, by noise level."""
    ends = np.array([level["noise"][1] for level in verification[:-1]], np.float32)
    failed = np.array([not level["passed"] for level in verification])
    return failed[np.searchsorted(ends, ratio)]


def _arrays(member: Member) -> dict[str, np.ndarray]:
    """The weights of a member by name."""
    own = named(member.weights)
    beside = named(member.interval.weights) if member.interval else {}
    return own | {f"interval.{name}": values for name, values in beside.items()}


def _weights_from(
    arrays: Mapping[str, np.ndarray], prefix: str, architecture: Mapping[str, Any]
) -> Weights:
    return tuple(
        (arrays[f"{prefix}{layer}.matrix"], arrays[f"{prefix}{layer}.bias"])
        for layer in range(architecture["depth"] + 1)
    )


def _architecture_to_json(layers: Architecture) -> dict[str, Any]:
    record = asdict(layers)
    return record if layers.signed else {k: v for k, v in record.items() if k != "signed"}


def _interval_to_json(interval: IntervalNetwork | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    layers = {"architecture": _architecture_to_json(interval.heads.architecture)}
    return {"heads": asdict(interval.heads) | layers, "training": dict(interval.record)}


def _interval_from_json(
    record: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], prefix: str
) -> IntervalNetwork | None:
    if record is None:
        return None
    heads = record["heads"]
    fields = {n: tuple(heads[n]) for n in ("low", "high", "logarithmic", "snapped")}
    return IntervalNetwork(
        Heads(
            heads["kind"],
            Architecture(**heads["architecture"]),
            **fields,
            margin=float(heads["margin"]),
        ),
        _weights_from(arrays, prefix, heads["architecture"]),
        record["training"],
    )


def _parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    lower, upper = parameter.bounds
    bounds = [lower, upper if math.isfinite(upper) else None]
    return asdict(parameter) | {"bounds": bounds}


def _parameter_from_json(record: Mapping[str, Any]) -> Parameter:
    lower, upper = record["bounds"]
    typical = record["typical"]
    return Parameter(
        record["name"],
        record["unit"],
        (lower, math.inf if upper is None else upper),
        record["symbol"],
        None if typical is None else tuple(typical),
    )


def _scaling_from_json(record: Mapping[str, Any]) -> Scaling:
    return Scaling(
        groups=tuple(tuple(group) for group in record["groups"]),
        reference=tuple(record["reference"]),
        scale=record["scale"],
        conditioned=record["conditioned"],
        centre=tuple(record["centre"]),
        spread=tuple(record["spread"]),
        unit=tuple(record["unit"]),
    )


def _check_acquisition(
    trained: Mapping[str, Float[np.ndarray, " M"]],
    settings: Mapping[str, np.ndarray],
    b_tolerance: float,
) -> None:
    differences = []
    for name, values in trained.items():
        known = SETTINGS.get(name)
        factor, unit = (known.factor, f" {known.unit}") if known else (1, "")
        given = settings.get(name)
        if given is None:
            differences.append(f"{name} is missing")
        elif len(given) != len(values):
            differences.append(f"{len(given)} values of {name} where it has {len(values)}")
        else:
            allowed = b_tolerance * (1 + 1e-9) if name == "b" else 0.0
            equal = np.isclose(given, values, rtol=1e-4, atol=1e-6)
            other = np.flatnonzero(~(equal | (np.abs(given - values) <= allowed + 1e-12)))
            shown = [
                f"{name} of volume {i + 1} is {factor * given[i]:g}, "
                f"not {factor * values[i]:g}{unit}"
                for i in other[:5]
            ]
            more = [f"and {len(other) - 5} more"] if len(other) > 5 else []
            differences += [*shown, *more]
    if differences:
        raise InputError(
            "network: trained for another acquisition: "
            + "; ".join(differences)
            + "; train a network for these settings"
            + ", or raise --b-tolerance if the b-values are meant to be equal" * ("b" in trained)
        )


def _input_status(
    scaling: Scaling,
    noise: NoiseModel,
    signal: Float[np.ndarray, "N M"],
    level: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
    """CONVERGED for valid voxels, else the reason why a voxel is invalid."""
    status = check_input(signal, level[:, None], noise)
    if not scaling.reference:
        return status
    with np.errstate(invalid="ignore", over="ignore"):
        reference = signal[:, list(scaling.reference)].mean(axis=1)
    empty = (status == Status.CONVERGED) & ~(reference > 0)
    return np.where(empty, np.uint8(Status.NO_REFERENCE), status)
