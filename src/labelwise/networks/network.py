"""Trained networks in use: apply, dial, save, load.

A file is one `.safetensors`: the weights, and in its header the card, which says what the network
was trained for and how. Nothing in it can run code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from labelwise.fitting import check_input
from labelwise.io.files import read_arrays, write_arrays
from labelwise.networks.inference import Member, apply
from labelwise.networks.mlp import Architecture, Scaling, Weights, named
from labelwise.noise import (
    Gaussian,
    NoiseModel,
    Rician,
    describe_noise,
    noise_from,
    sigma_of_voxels,
)
from labelwise.types import Estimate, InputError, Parameter, Status

VERSION = 2
"""Of the file. Version 1 is read too; one that a reader does not know is refused."""
_SPOKEN = {"b": (1000, " s/mm²"), "te": (1, " ms"), "ti": (1, " ms")}  # as people say settings
_SLACK = 0.1  # an estimate may leave the simulated range by so much of its width
_NOISE_SLACK = 1.05  # and a noise level by this factor
OUTSIDE_NOISE, OUTSIDE_RANGE, OUTSIDE_SIGNAL = 1, 2, 4
"""What a voxel can be outside of: the noise levels, the labels, and (which only a map knows, that
has the signal model) the signals that the network's estimates explain."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network that estimates the parameters of voxels; an `Estimator`. Made by `teach`.

    Args:
        architecture: its layers.
        scaling: what stands between measurements, network and parameters.
        weights: its weights.
        parameters: what it estimates.
        noise: the noise model it was trained for.
        card: what it was trained for and how, as JSON data.
    """

    architecture: Architecture
    scaling: Scaling
    weights: Weights
    parameters: tuple[Parameter, ...]
    noise: NoiseModel
    card: Mapping[str, Any]

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N"] | float
    ) -> Estimate:
        """Estimate N voxels.

        Args:
            signal: (N, M) measurements of the acquisition it was trained for, in its order.
            sigma: noise of one channel in the signal's unit: a number, (N,) or (N, 1).

        Returns:
            Values (N, P) within the parameters' bounds, with status PREDICTED, or EXTRAPOLATED
            outside of what it was trained for; NaN with a reason for bad input. The stats are

            - `standard_error` (N, P): how much the noise of this voxel makes the estimate scatter,
              to first order; NaN where the estimate is held on a bound. It does not hold the
              network's bias, and below an SNR of about 10 can be several times too small
            - `outside` (N,): 1 where the noise level is outside of the trained range, 2 where an
              estimate leaves the range of the labels taught by more than a tenth of its width,
              3 for both

        Raises:
            InputError: if a shape does not fit.
        """
        return _estimate(self.members, signal, sigma)

    @property
    def members(self) -> Members:
        """Itself, with all of every parameter."""
        return [(self, np.ones(len(self.parameters), np.float32))]

    @property
    def taught(self) -> Float[np.ndarray, "P 2"]:
        """Lowest and highest value of each parameter that it was taught."""
        return np.array(self.card["taught"], float)

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The settings it was trained for, by name, in the units of the model."""
        return {name: np.array(rows) for name, rows in self.card["model"]["acquisition"].items()}

    def check_acquisition(self, settings: Mapping[str, Float[np.ndarray, " M"]]) -> None:
        """Refuse settings other than those it was trained for, listing the differences.

        Args:
            settings: by name, in the units of the model: b in ms/µm², times in ms.

        Raises:
            InputError: if a setting is missing, or another.
        """
        _check_acquisition(self.acquisition, settings)

    def save(self, path: str | Path) -> None:
        """Write it as one `.safetensors` file, which is whole or not there.

        Raises:
            OSError: if it cannot be written.
        """
        _save(Path(path), [self], None)


@dataclass(frozen=True, eq=False)
class Blend:
    """The dial: alpha times one network plus (1 - alpha) times another; an `Estimator`.

    Under squared error the best network for the mixed label alpha·mle + (1 - alpha)·gt is this
    blend of outputs (the mean of a mix is the mix of the means), so bias and variance can be traded
    when the network is used, for each parameter by itself, without training again. That holds where
    both were taught the same voxels: exactly so with labels on a bound kept, roughly without.

    Args:
        alpha: 1 for the network taught maximum-likelihood estimates (least bias), 0 for the one
            taught the ground truth (least variance): a number, one for each parameter, or by name
            (1 for those not named).
        mle: the network taught maximum-likelihood estimates.
        gt: the network taught the ground truth.

    Raises:
        InputError: if alpha is not from 0 to 1, names no parameter, or the networks were trained
            for different acquisitions or parameters.

    Source: eq. 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """

    alpha: float | Sequence[float] | Mapping[str, float]
    mle: TrainedNetwork
    gt: TrainedNetwork

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        if names != [parameter.name for parameter in self.gt.parameters]:
            raise InputError(
                f"blend: the networks estimate different parameters, {', '.join(names)} and "
                f"{', '.join(parameter.name for parameter in self.gt.parameters)}"
            )
        self.gt.check_acquisition(self.mle.acquisition)
        if describe_noise(self.gt.noise) != describe_noise(self.mle.noise):
            raise InputError(
                f"blend: the networks are for different noise, {self.mle.noise} and {self.gt.noise}"
            )
        if isinstance(self.alpha, Mapping):
            unknown = [name for name in self.alpha if name not in names]
            if unknown:
                raise InputError(
                    f"alpha: no parameter {unknown[0]!r}; there are {', '.join(names)}"
                )
            values = np.array(list(self.alpha.values()), float)
        else:
            values = np.asarray(self.alpha, float)
            if values.shape not in ((), (len(names),)):
                raise InputError(
                    f"alpha: expected a number, or one for each of {', '.join(names)}, "
                    f"got {values.size}"
                )
        if not np.all((values >= 0) & (values <= 1)):
            raise InputError(f"alpha: expected a number from 0 to 1, got {self.alpha}")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it estimates."""
        return self.mle.parameters

    @property
    def noise(self) -> NoiseModel:
        """The noise model it was trained for."""
        return self.mle.noise

    @property
    def alphas(self) -> dict[str, float]:
        """Alpha by parameter name."""
        names = [parameter.name for parameter in self.parameters]
        if isinstance(self.alpha, Mapping):
            return {name: float(self.alpha.get(name, 1.0)) for name in names}
        values = np.broadcast_to(np.asarray(self.alpha, float), len(names))
        return dict(zip(names, values.tolist(), strict=True))

    @property
    def taught(self) -> Float[np.ndarray, "P 2"]:
        """Lowest and highest value of each parameter that it was taught, blended likewise."""
        alpha = np.array(list(self.alphas.values()))[:, None]
        return alpha * self.mle.taught + (1 - alpha) * self.gt.taught

    @property
    def card(self) -> Mapping[str, Any]:
        """The card of the network at alpha = 1; that at alpha = 0 differs in its label."""
        return {**self.mle.card, "dial": {"alpha": self.alphas, "gt": self.gt.card["label"]}}

    def with_alpha(self, alpha: float | Sequence[float] | Mapping[str, float]) -> Blend:
        """The same networks, the dial elsewhere."""
        return Blend(alpha, self.mle, self.gt)

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N"] | float
    ) -> Estimate:
        """Estimate N voxels; see `TrainedNetwork`."""
        return _estimate(self.members, signal, sigma)

    @property
    def members(self) -> Members:
        """The networks that have a part in it, and their share of each parameter."""
        alpha = np.array(list(self.alphas.values()), np.float32)
        return [(n, share) for n, share in ((self.mle, alpha), (self.gt, 1 - alpha)) if share.any()]

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """See `TrainedNetwork`."""
        return self.mle.acquisition

    def check_acquisition(self, settings: Mapping[str, Float[np.ndarray, " M"]]) -> None:
        """See `TrainedNetwork`."""
        self.mle.check_acquisition(settings)

    def save(self, path: str | Path) -> None:
        """Write both networks as one `.safetensors` file, which is whole or not there.

        Raises:
            OSError: if it cannot be written.
        """
        _save(Path(path), [self.mle, self.gt], list(self.alphas.values()))


@dataclass(frozen=True, eq=False)
class PointEstimates:
    """The estimates of a network alone, without standard errors: an `Estimator`, and much faster.

    For simulations, which see the scatter itself.

    Args:
        network: whose values it gives.
    """

    network: TrainedNetwork | Blend

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it estimates."""
        return self.network.parameters

    def __call__(
        self, signal: Float[np.ndarray, "N M"], sigma: Float[np.ndarray, "#N"] | float
    ) -> Estimate:
        """Estimate N voxels; the stats are those of `TrainedNetwork` less `standard_error`."""
        return _estimate(self.network.members, signal, sigma, errors=False)


def load(path: str | Path, *, noise: NoiseModel | None = None) -> TrainedNetwork | Blend:
    """Read a network, or a dial of two, that `save` wrote.

    Args:
        path: the `.safetensors` file.
        noise: the noise model it was trained for, if that is not one of labelwise's.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is damaged, of an unknown version, no network of labelwise, or of a noise
            model that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such network file")
    damaged = f"{path}: not a network of labelwise, or damaged; train it again or copy it anew"
    try:
        arrays, said = read_arrays(path)
        version = said["version"]
    except (ValueError, LookupError) as error:
        raise InputError(damaged) from error
    if version == 1:
        for member in said["networks"]:
            member["card"] = _upgraded(member["card"])
    elif version != VERSION:
        raise InputError(
            f"{path}: version {version} of the network file, this labelwise reads {VERSION}; "
            "upgrade labelwise, or train the network again"
        )
    networks = [
        TrainedNetwork(
            architecture=Architecture(**member["architecture"]),
            scaling=_read_scaling(member["scaling"]),
            weights=tuple(
                (arrays[f"{index}.{layer}.matrix"], arrays[f"{index}.{layer}.bias"])
                for layer in range(member["architecture"]["depth"] + 1)
            ),
            parameters=tuple(_read_parameter(each) for each in member["parameters"]),
            noise=noise_from(member["card"]["noise"], noise, path),
            card=member["card"],
        )
        for index, member in enumerate(said["networks"])
    ]
    return networks[0] if said["alpha"] is None else Blend(said["alpha"], *networks)


# The sources of labelwise's own models, where they were known by their names alone.
_VERSION_1 = {
    "6d05de4f9779dceb19bb06ea80c3944c2e1a1bfb92a7b0338d4610f328fff13e": "adc:ADC",
    "6e850ebb296280eb69fd68c9805af2dd85036a7bd28219acc8aee490ed0f7244": "ivim:IVIM",
    "e9095740441f349b38cbc0449a70eb1db8e1d627f7d8c425dbb1c6aca77c2c5f": "kurtosis:Kurtosis",
    "714efe3a268dad0ced5dc73e1812c46ae0957966d181bfb8f1cb045e63eb0871": "t1_ir:T1InversionRecovery",
    "8fe1d321f7a3351957836594c2505702a6fc6617b9d97136f753bff772d7507e": "t2:T2",
    "cf5c0f2bf65a235edec378273f2463f487546aabcc6e05c2cb33121ed067730e": (
        "t2_biexponential:T2Biexponential"
    ),
    "619b50494c21a78cc1d9f7463a20278c97f11581c4a9034cd930ac9501ec2319": "t2_epg:T2EPG",
}


def _upgraded(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a file of version 1, which named classes without the place they come from."""
    model, known = card["model"], _VERSION_1.get(card["model"]["source"])
    if known is not None:
        model = {**model, "class": f"labelwise.models.{known}", "source": None}
    kinds = {kind.__name__: describe_noise(kind()) for kind in (Rician, Gaussian)}
    unknown = {"class": card["noise"], "fields": {}, "source": None}
    return {**card, "model": model, "noise": kinds.get(card["noise"], unknown)}


def _save(path: Path, networks: list[TrainedNetwork], alpha: list[float] | None) -> None:
    arrays = {
        f"{index}.{name}": values
        for index, network in enumerate(networks)
        for name, values in named(network.weights).items()
    }
    said = {
        "version": VERSION,
        "alpha": alpha,
        "networks": [
            {
                "architecture": asdict(network.architecture),
                "scaling": asdict(network.scaling),
                "parameters": [_plain_parameter(each) for each in network.parameters],
                "card": network.card,
            }
            for network in networks
        ],
    }
    write_arrays(path, arrays, said)


def _plain_parameter(parameter: Parameter) -> dict[str, Any]:
    lower, upper = parameter.bounds
    bounds = [lower, upper if math.isfinite(upper) else None]
    return asdict(parameter) | {"bounds": bounds}


def _read_parameter(said: Mapping[str, Any]) -> Parameter:
    lower, upper = said["bounds"]
    typical = said["typical"]
    return Parameter(
        said["name"],
        said["unit"],
        (lower, math.inf if upper is None else upper),
        said["symbol"],
        None if typical is None else tuple(typical),
    )


def _read_scaling(said: Mapping[str, Any]) -> Scaling:
    return Scaling(
        groups=tuple(tuple(group) for group in said["groups"]),
        reference=tuple(said["reference"]),
        scale=said["scale"],
        conditioned=said["conditioned"],
        centre=tuple(said["centre"]),
        spread=tuple(said["spread"]),
        unit=tuple(said["unit"]),
    )


def _check_acquisition(
    trained: Mapping[str, Float[np.ndarray, " M"]], settings: Mapping[str, np.ndarray]
) -> None:
    differences = []
    for name, values in trained.items():
        factor, unit = _SPOKEN.get(name, (1, ""))
        given = settings.get(name)
        if given is None:
            differences.append(f"{name} is missing")
        elif len(given) != len(values):
            differences.append(f"{len(given)} values of {name} where it has {len(values)}")
        else:
            other = np.flatnonzero(~np.isclose(given, values, rtol=1e-4, atol=1e-6))
            shown = [
                f"{name} of volume {i + 1} is {factor * given[i]:g}, "
                f"not {factor * values[i]:g}{unit}"
                for i in other[:5]
            ]
            more = [f"and {len(other) - 5} more"] if len(other) > 5 else []
            differences += [*shown, *more]
    if differences:
        raise InputError(
            "network: it was trained for another acquisition: "
            + "; ".join(differences)
            + "; train one for these settings"
        )


Members = list[tuple[TrainedNetwork, Float[np.ndarray, " P"]]]
"""Networks and the share of each parameter that is taken from them."""


def _estimate(
    shares: Members,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "#N"] | float,
    *,
    errors: bool = True,
) -> Estimate:
    """Check the input, apply the networks, and say where the answer is to be doubted."""
    network = shares[0][0]
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        signal, level = np.asarray(signal, np.float32), np.asarray(sigma, np.float32)
    level = _checked(network.scaling.measurements, signal, level)
    noise = network.noise
    status = _input_status(network.scaling, noise, signal, level)
    good = np.flatnonzero(status == Status.CONVERGED)
    values = np.full((len(signal), len(network.parameters)), np.nan, np.float32)
    outside = np.zeros(len(signal), np.uint8)
    stats: dict[str, np.ndarray] = {"outside": outside}
    if errors:
        stats = {"standard_error": np.full_like(values, np.nan), **stats}
    if len(good):
        members = [Member(n.architecture, n.scaling, n.weights, share) for n, share in shares]
        rows = slice(None) if len(good) == len(signal) else good  # a slice copies nothing
        found, error, ratio = apply(members, noise, signal[rows], level[rows], errors=errors)
        bounds = np.array([p.bounds for p in network.parameters], np.float32).T
        finite = np.all(np.isfinite(found), axis=1)
        kept = np.where(finite[:, None], np.clip(found, *bounds), np.nan)
        doubts = np.where(finite, _outside(shares, found, ratio), 0)
        said = np.where(doubts > 0, Status.EXTRAPOLATED, Status.PREDICTED)
        values[rows], outside[rows] = kept, doubts
        if error is not None:  # there is none where a bound holds the estimate
            stats["standard_error"][rows] = np.where(kept == found, error, np.nan)
        status[rows] = np.where(finite, said, Status.NOT_FINITE)
    return Estimate(values, status, stats)


def _checked(
    measurements: int, signal: Float[np.ndarray, "N M"], level: np.ndarray
) -> Float[np.ndarray, " N"]:
    if signal.ndim != 2 or signal.shape[1] != measurements:
        raise InputError(
            f"signal: expected (N, {measurements}), one column per measurement the network was "
            f"trained for, got {signal.shape}"
        )
    return sigma_of_voxels(level, len(signal))[:, 0]


def _input_status(
    scaling: Scaling,
    noise: NoiseModel,
    signal: Float[np.ndarray, "N M"],
    level: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
    """CONVERGED where a voxel may be estimated, else what is wrong with it."""
    status = check_input(signal, level[:, None], noise)
    if not scaling.reference:
        return status
    with np.errstate(invalid="ignore", over="ignore"):
        reference = signal[:, list(scaling.reference)].mean(axis=1)
    empty = (status == Status.CONVERGED) & ~(reference > 0)
    return np.where(empty, np.uint8(Status.NO_REFERENCE), status)


def _outside(
    shares: Members,
    found: Float[np.ndarray, "N P"],
    ratio: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
    """What each voxel is outside of, as a sum of codes."""
    low, high = shares[0][0].card["noise_range"]
    noise = (ratio < low / _NOISE_SLACK) | (ratio > high * _NOISE_SLACK)
    least, most = _ranges(shares)
    beyond = ((found < least) | (found > most)).any(axis=1)
    return noise * np.uint8(OUTSIDE_NOISE) + beyond * np.uint8(OUTSIDE_RANGE)


def _ranges(
    shares: Members,
) -> Float[np.ndarray, "2 P"]:
    """How far estimates may go before they count as outside; open for what the reference scales."""
    spans = np.stack([share[:, None] * each.taught for each, share in shares])
    low, high = spans.sum(axis=0).T
    slack = _SLACK * (high - low)
    ranges = np.stack([low - slack, high + slack])
    scale = shares[0][0].scaling.scale
    if scale is not None:
        ranges[:, scale] = -np.inf, np.inf
    return ranges.astype(np.float32)
