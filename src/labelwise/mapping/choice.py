"""Which network maps a series: one from a file, or one that is trained for it on the spot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from labelwise.formatting import told_apart
from labelwise.mapping.request import MapRequest
from labelwise.mapping.run import Source
from labelwise.mapping.summary import NetworkUse
from labelwise.models.find import name_of, refuse_other_model
from labelwise.networks.blend import noise_levels, trained_blend
from labelwise.networks.card import Card
from labelwise.networks.network import Network, load
from labelwise.noise import describe_noise
from labelwise.priors import Uniform
from labelwise.types import InputError, Progress

_ENDS = (2, 98)  # percentiles: the noise levels of the other voxels are not told


def find_network(request: MapRequest, cache: Path | None) -> Source:
    """Where the network of a request comes from; what can be refused early is refused here.

    Args:
        request: which network, for which images.
        cache: the folder where networks that are trained on the spot are kept; nowhere if None.

    Raises:
        FileNotFoundError: if there is no such network file.
        InputError: if the network was trained for another acquisition, model or noise, has no
            alpha, or a range is none.
    """
    return _from_file(request, request.net) if request.net else _trained_now(request, cache)


def model_of(path: Path | None) -> str:
    """The name of the model that a network file was trained for.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if there is no file to tell, or its model is not one that has a name.
    """
    if path is None:
        raise InputError(
            "--model is required: a name from `labelwise models` (ivim), or your own: FILE.py:Class"
        )
    return name_of(load(path).card.model, path)


def _from_file(request: MapRequest, path: Path) -> Source:
    network = load(path)
    _check(request, path, network.card)
    network.check_acquisition(request.acquisition)
    if request.alpha is not None:
        if not network.is_blend:
            raise InputError(
                f"alpha: {path.name} holds a single network, taught one kind of label, so there is "
                "nothing to choose between; leave --alpha out"
            )
        network = network.with_alpha(request.alpha)

    def source(signal, sigma, tell: Progress) -> tuple[Network, NetworkUse]:
        use = _use(network, "file", path, {}, signal, sigma)
        (low, high), (least, most) = use.trained, use.image
        if not network.card.normalised and (most < low / 2 or least > high * 2):
            raise InputError(
                f"{path}: was trained with --absolute, for sigma {low:.3g} to {high:.3g} and "
                f"signals of that unit, but sigma is {least:.3g} to {most:.3g} here; bring the "
                "images to that unit, or train without --absolute"
            )
        return network, use

    return source


def _trained_now(request: MapRequest, cache: Path | None) -> Source:
    prior = Uniform.typical(request.model, **request.ranges)

    def source(signal, sigma, tell: Progress) -> tuple[Network, NetworkUse]:
        if not len(signal):
            raise InputError(
                f"{request.image}: no voxel inside the mask can be used, so there is no noise "
                "level to train a network for"
            )
        levels = noise_levels(request.model, signal, sigma)
        network, how = trained_blend(
            request.model, request.noise, levels, prior, cache=cache, progress=tell
        )
        if request.alpha is not None:
            network = network.with_alpha(request.alpha)
        origin = "cache" if how["cached"] else "trained"
        kept = Path(how["path"]) if how["path"] else None
        return network, _use(network, origin, kept, how["seconds"], signal, sigma)

    return source


def _use(
    network: Network,
    origin: Literal["file", "trained", "cache"],
    path: Path | None,
    seconds: Mapping[str, float],
    signal: Float[np.ndarray, "n M"],
    sigma: Float[np.ndarray, " n"],
) -> NetworkUse:
    """What a report says of a network, and of some voxels of the series."""
    card = network.card
    scaling = network.members[0].scaling
    reference = signal[:, list(scaling.reference)].mean(axis=1) if scaling.reference else 1.0
    with np.errstate(divide="ignore"):
        levels = np.broadcast_to(sigma / reference, len(sigma))
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


def _pair(numbers) -> tuple[float, float]:
    low, high = (float(number) for number in numbers)
    return low, high


def _check(request: MapRequest, path: Path, card: Card) -> None:
    """Refuse a network of another model or noise; its acquisition is checked elsewhere."""
    refuse_other_model(request.model, card.model, path)
    ours, theirs = describe_noise(request.noise), card.noise
    if theirs != ours:
        trained, asked = told_apart(theirs, ours)
        raise InputError(
            f"{path}: was trained for {trained} noise, not for {asked}; choose that --noise, or "
            "another network"
        )
