"""Trained networks in use: apply, dial, save, load.

A file is one `.safetensors`: the weights, and in its header the card, which says what the network
was trained for and how. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from labelwise.compiler import PLAIN_KERNELS
from labelwise.fitting import available_cores, check_input
from labelwise.networks import Architecture, Scaling, Weights
from labelwise.noise import Gaussian, NoiseModel, Rician
from labelwise.types import Estimate, Parameter, Status

VERSION = 1
"""Of the file; one that a reader does not know is refused."""
WIDTH = 8192
"""Voxels at a time: always so many, so that a voxel's bytes do not depend on its neighbours."""
_NOISES: dict[str, type[NoiseModel]] = {"Rician": Rician, "Gaussian": Gaussian}
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
        card: what it was trained for and how, as JSON data.
    """

    architecture: Architecture
    scaling: Scaling
    weights: Weights
    parameters: tuple[Parameter, ...]
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
            ValueError: if a shape does not fit.
        """
        return _estimate([(self, np.ones(len(self.parameters), np.float32))], signal, sigma)

    @property
    def taught(self) -> Float[np.ndarray, "P 2"]:
        """Lowest and highest value of each parameter that it was taught."""
        return np.array(self.card.get("taught", self.card["ranges"]), float)

    def check_acquisition(self, settings: Mapping[str, Float[np.ndarray, " M"]]) -> None:
        """Refuse settings other than those it was trained for, listing the differences.

        Args:
            settings: by name, in the units of the model: b in ms/µm², times in ms.

        Raises:
            ValueError: if a setting is missing, or another.
        """
        _check_acquisition(self.card, settings)

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
        ValueError: if alpha is not from 0 to 1, names no parameter, or the networks were trained
            for different acquisitions or parameters.

    Source: eq. 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """

    alpha: float | Sequence[float] | Mapping[str, float]
    mle: TrainedNetwork
    gt: TrainedNetwork

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        if names != [parameter.name for parameter in self.gt.parameters]:
            raise ValueError(
                f"blend: the networks estimate different parameters, {', '.join(names)} and "
                f"{', '.join(parameter.name for parameter in self.gt.parameters)}"
            )
        self.gt.check_acquisition(_settings(self.mle.card))
        given = self.alpha
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in names]
            if unknown:
                raise ValueError(
                    f"alpha: no parameter {unknown[0]!r}; there are {', '.join(names)}"
                )
            given = [given.get(name, 1.0) for name in names]
        values = np.asarray(given, float)
        if values.shape not in ((), (len(names),)) or not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                f"alpha: expected a number from 0 to 1, or one for each of {', '.join(names)}, "
                f"got {self.alpha}"
            )
        alphas = tuple(np.broadcast_to(values, len(names)).tolist())
        object.__setattr__(self, "alpha", alphas)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it estimates."""
        return self.mle.parameters

    @property
    def alphas(self) -> dict[str, float]:
        """Alpha by parameter name."""
        names = (parameter.name for parameter in self.parameters)
        return dict(zip(names, self.alpha, strict=True))  # type: ignore[arg-type]

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
        alpha = np.array(list(self.alphas.values()), np.float32)
        members = [(self.mle, alpha), (self.gt, 1 - alpha)]
        return _estimate([m for m in members if m[1].any()], signal, sigma)

    def check_acquisition(self, settings: Mapping[str, Float[np.ndarray, " M"]]) -> None:
        """See `TrainedNetwork`."""
        self.mle.check_acquisition(settings)

    def save(self, path: str | Path) -> None:
        """Write both networks as one `.safetensors` file, which is whole or not there.

        Raises:
            OSError: if it cannot be written.
        """
        _save(Path(path), [self.mle, self.gt], list(self.alphas.values()))


def load(path: str | Path) -> TrainedNetwork | Blend:
    """Read a network, or a dial of two, that `save` wrote.

    Args:
        path: the `.safetensors` file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of an unknown version, or no network of labelwise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such network file")
    damaged = f"{path}: not a network of labelwise, or damaged; train it again or copy it anew"
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["labelwise"])
        version = header["version"]
        arrays = load_arrays(data)
    except (SafetensorError, KeyError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(damaged) from error
    if version != VERSION:
        raise ValueError(
            f"{path}: version {version} of the network file, this labelwise reads {VERSION}; "
            "upgrade labelwise, or train the network again"
        )
    if header.get("checksum") != _checksum(header, arrays):
        raise ValueError(damaged)
    networks = [
        TrainedNetwork(
            architecture=Architecture(**member["architecture"]),
            scaling=_read_scaling(member["scaling"]),
            weights=tuple(
                (arrays[f"{index}.{layer}.matrix"], arrays[f"{index}.{layer}.bias"])
                for layer in range(member["architecture"]["depth"] + 1)
            ),
            parameters=tuple(_read_parameter(each) for each in member["parameters"]),
            card=member["card"],
        )
        for index, member in enumerate(header["networks"])
    ]
    return networks[0] if header["alpha"] is None else Blend(header["alpha"], *networks)


def _save(path: Path, networks: list[TrainedNetwork], alpha: list[float] | None) -> None:
    arrays = {
        f"{index}.{layer}.{name}": np.ascontiguousarray(values, np.float32)
        for index, network in enumerate(networks)
        for layer, pair in enumerate(network.weights)
        for name, values in zip(("matrix", "bias"), pair, strict=True)
    }
    header = {
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
    header = json.loads(json.dumps(header, allow_nan=False))
    header["checksum"] = _checksum(header, arrays)
    write_whole(path, save_arrays(arrays, {"labelwise": json.dumps(header, ensure_ascii=False)}))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there; an earlier one stays until then.

    Args:
        path: where; its folder must exist.
        data: what is in it.

    Raises:
        OSError: if it cannot be written.
    """
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _checksum(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    said = {name: value for name, value in header.items() if name != "checksum"}
    total = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return total.hexdigest()


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


def _settings(card: Mapping[str, Any]) -> dict[str, Float[np.ndarray, " M"]]:
    return {name: np.array(rows) for name, rows in card["model"]["acquisition"].items()}


def _check_acquisition(card: Mapping[str, Any], settings: Mapping[str, np.ndarray]) -> None:
    trained = _settings(card)
    differences = []
    for name, values in trained.items():
        factor, unit = (1000, "s/mm²") if name == "b" else (1, "ms")
        given = settings.get(name)
        if given is None:
            differences.append(f"{name} is missing")
        elif len(given) != len(values):
            differences.append(f"{len(given)} values of {name} where it has {len(values)}")
        else:
            other = np.flatnonzero(~np.isclose(given, values, rtol=1e-4, atol=1e-6))
            shown = [
                f"{name} of volume {i + 1} is {factor * given[i]:g}, not {factor * values[i]:g}"
                f" {unit}"
                for i in other[:5]
            ]
            more = [f"and {len(other) - 5} more"] if len(other) > 5 else []
            differences += [*shown, *more]
    if differences:
        raise ValueError(
            "network: it was trained for another acquisition: "
            + "; ".join(differences)
            + "; train one for these settings"
        )


def _estimate(
    members: list[tuple[TrainedNetwork, Float[np.ndarray, " P"]]],
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "#N"] | float,
) -> Estimate:
    """Check the input, run full blocks on all cores, and say where the answer is to be doubted."""
    network = members[0][0]
    card, scaling = network.card, network.scaling
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        signal, level = np.asarray(signal, np.float32), np.asarray(sigma, np.float32)
    if signal.ndim != 2 or signal.shape[1] != scaling.measurements:
        raise ValueError(
            f"signal: expected (N, {scaling.measurements}), one column per measurement the network "
            f"was trained for, got {signal.shape}"
        )
    voxels = len(signal)
    if level.ndim == 2 and level.shape[1] == 1:
        level = level[:, 0]
    if level.ndim > 1 or (level.ndim == 1 and len(level) not in (1, voxels)):
        raise ValueError(f"sigma: expected a number or ({voxels},), got {np.shape(sigma)}")
    level = np.broadcast_to(level, voxels)
    noise = _NOISES.get(card["noise"], Gaussian)()
    status = check_input(signal, level[:, None], noise)
    if scaling.reference:
        with np.errstate(invalid="ignore", over="ignore"):
            reference = signal[:, list(scaling.reference)].mean(axis=1)
        empty = (status == Status.CONVERGED) & ~(reference > 0)
        status = np.where(empty, np.uint8(Status.NO_REFERENCE), status)
    good = np.flatnonzero(status == Status.CONVERGED)
    size = len(network.parameters)
    values = np.full((voxels, size), np.nan, np.float32)
    errors = np.full((voxels, size), np.nan, np.float32)
    outside = np.zeros(voxels, np.uint8)
    if len(good):
        run = _program(tuple(_Key(m) for m, _ in members), noise)
        weights = tuple(m.weights for m, _ in members)
        alphas = tuple(a for _, a in members)
        whole = len(good) == voxels
        ranges = _ranges(members)
        bounds = np.array([p.bounds for p in network.parameters], np.float32).T

        def block(first: int) -> None:
            rows = slice(first, min(first + WIDTH, len(good)))
            here = rows if whole else good[rows]
            count = rows.stop - rows.start
            data, noises = signal[here], level[here]
            if count < WIDTH:
                fill = np.arange(WIDTH) % count
                data, noises = data[fill], noises[fill]
            found, error, ratio = (
                np.asarray(part).T[:count] for part in run(weights, alphas, data.T, noises)
            )
            values[here] = np.clip(found, *bounds)
            errors[here] = np.where(values[here] == found, error, np.nan)
            low, high = card["noise_range"]
            flags = (ratio < low / _NOISE_SLACK) | (ratio > high * _NOISE_SLACK)
            beyond = (found < ranges[0]) | (found > ranges[1])
            outside[here] = flags * OUTSIDE_NOISE + beyond.any(axis=1) * OUTSIDE_RANGE

        firsts = range(0, len(good), WIDTH)
        block(0)  # compiles
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(block, firsts[1:]))
        finite = np.isfinite(values[good]).all(axis=1)
        said = np.where(outside[good] > 0, Status.EXTRAPOLATED, Status.PREDICTED)
        status[good] = np.where(finite, said, Status.NOT_FINITE)
        values[good[~finite]] = np.nan
        errors[good[~finite]] = np.nan
        outside[good[~finite]] = 0
    return Estimate(
        values,
        status.astype(np.uint8),
        {"standard_error": errors, "outside": outside},
    )


def _ranges(
    members: list[tuple[TrainedNetwork, Float[np.ndarray, " P"]]],
) -> Float[np.ndarray, "2 P"]:
    """How far estimates may go before they count as outside; open for what the reference scales."""
    low, high = np.sum([alpha * network.taught.T for network, alpha in members], axis=0)
    slack = _SLACK * (high - low)
    ranges = np.stack([low - slack, high + slack])
    scale = members[0][0].scaling.scale
    if scale is not None:
        ranges[:, scale] = -np.inf, np.inf
    return ranges.astype(np.float32)


@dataclass(frozen=True)
class _Key:
    """What decides the program of a network: everything but its weights."""

    architecture: Architecture
    scaling: Scaling

    def __init__(self, network: TrainedNetwork) -> None:
        object.__setattr__(self, "architecture", network.architecture)
        object.__setattr__(self, "scaling", network.scaling)


_PROGRAMS: dict[Any, Any] = {}


def _program(keys: tuple[_Key, ...], noise: NoiseModel):
    """The compiled program of a blend: values (P, N), standard errors (P, N), noise level (N,)."""
    name = (keys, type(noise))
    if name not in _PROGRAMS:
        _PROGRAMS[name] = jax.jit(
            lambda *arrays: _predict(keys, noise, *arrays), compiler_options=PLAIN_KERNELS
        )
    return _PROGRAMS[name]


def _predict(keys, noise, weights, alphas, data, sigma):
    """Of data (M, N): turned inside, the last voxels of a block would be rounded differently."""

    def params(data):
        total = jnp.zeros((len(alphas[0]), data.shape[1]), data.dtype)
        for key, weight, alpha in zip(keys, weights, alphas, strict=True):
            outputs = key.architecture(weight, key.scaling.inputs(data, sigma))
            reference = key.scaling.reference_of(data)
            total += alpha[:, None] * key.scaling.params(outputs, reference)
        return total

    values, pull = jax.vjp(params, data)
    clean = data
    if noise.magnitude:
        clean = jnp.sqrt(jnp.maximum(data * data - 2 * sigma * sigma, 0))  # E[data²] is S² + 2σ²
    variance = noise.variance(clean, sigma)
    errors = []
    for parameter in range(len(values)):  # a pass for each takes a third of the time of a vmap
        (slopes,) = pull(jnp.zeros_like(values).at[parameter].set(1))
        errors.append(jnp.sqrt(jnp.sum(slopes * slopes * variance, axis=0)))
    ratio = sigma / keys[0].scaling.reference_of(data)
    return values, jnp.stack(errors), ratio
