"""The claims of section 4.3: loss weights, noise model, hybrid, and conventional fitting.

Source: Epstein et al. 2024, section 4.3, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from labelwise.noise import Rician
from labelwise.study import methods
from labelwise.study.claims.judging import (
    QUANTITIES,
    ClaimDefinition,
    Parts,
    conditions,
    distance,
    in_between,
)
from labelwise.study.evidence import Evidence, Number, below
from labelwise.study.records import Part


def _own_weight(evidence: Evidence) -> Parts:
    hard = evidence.study.ill_determined
    for snr in evidence.study.snrs:
        for parameter in [hard] if hard else evidence.study.free:
            name = methods.own_weight(parameter)
            if not evidence.known(name):
                continue
            for quantity, words in QUANTITIES.items():
                own = evidence.number(snr, name, parameter, quantity)
                usual = evidence.number(snr, evidence.mle_network, parameter, quantity)
                what = f"SNR {snr:g}, {parameter}: {words} with its own weight below the usual"
                yield below(what, own, usual, evidence.unit(parameter))


def _at_the_floor(evidence: Evidence) -> Iterator[str]:
    chosen = evidence.study.noise_floor
    yield from [chosen] if chosen else evidence.study.free


def _upper_slope(evidence: Evidence, name: str, parameter: str) -> Number:
    """Of a line through the upper half of the bias curve, at the lowest SNR."""
    values = np.asarray(evidence.grids[evidence.low][parameter].values, float)
    half = len(values) // 2
    curve = evidence.curve(evidence.low, name, parameter, "bias")[half:]
    offset = values[half:] - values[half:].mean()
    share = offset / max((offset**2).sum(), 1e-300)
    value = sum(s * number.value for s, number in zip(share, curve, strict=True))
    error = math.sqrt(sum((s * n.error) ** 2 for s, n in zip(share, curve, strict=True)))
    return Number(float(value), error)


def _noise_model(evidence: Evidence) -> Parts:
    known = evidence.known(methods.MLE_RICIAN, methods.MLE_GAUSSIAN)
    if len(known) < 2 or not isinstance(evidence.study.noise, Rician):
        return
    rician, gaussian = methods.MLE_RICIAN, methods.MLE_GAUSSIAN
    low, high = evidence.low, max(evidence.study.snrs)
    others = evidence.known(gaussian, methods.SELF, methods.GT)
    for parameter in _at_the_floor(evidence):
        unit = evidence.unit(parameter)
        where = f"SNR {low:g}, {parameter}"
        top = abs(evidence.number(low, rician, parameter, "top"))
        flat = abs(_upper_slope(evidence, rician, parameter))
        for name in others:
            other = abs(evidence.number(low, name, parameter, "top"))
            yield below(
                f"{where}: |bias| at the top of the range, {rician} below {name}", top, other, unit
            )
            other = abs(_upper_slope(evidence, name, parameter))
            yield below(
                f"{where}: |bias slope| in the upper half, {rician} below {name}", flat, other
            )
            bits = evidence.number(low, rician, parameter, "mutual_information")
            other = evidence.number(low, name, parameter, "mutual_information")
            yield below(f"{where}: bits of {name} below those of {rician}", other, bits)
        if high > low:
            gains = []
            for snr in (high, low):
                pair = [abs(evidence.number(snr, n, parameter, "top")) for n in (gaussian, rician)]
                gains.append(pair[0] - pair[1])
            what = f"{parameter}: gain in |bias| at the top, SNR {high:g} below SNR {low:g}"
            yield below(what, gains[0], gains[1], unit)


def _hybrid(evidence: Evidence) -> Parts:
    if len(evidence.known(methods.HYBRID, methods.GT, evidence.mle_network)) == 3:
        yield from in_between(evidence, methods.HYBRID)


def _like_the_fit(evidence: Evidence) -> Parts:
    """The network is nearer to the fit that made its labels than GT is."""
    if len(evidence.known(methods.GT, evidence.mle_network, methods.MLE_MEAN)) < 3:
        return
    for snr, parameter, where, unit in conditions(evidence):
        for quantity, words in {"bias": "bias", "std": "std", "rmse": "RMSE"}.items():
            fit, network, truth = (
                evidence.curve(snr, name, parameter, quantity)
                for name in (methods.MLE_MEAN, evidence.mle_network, methods.GT)
            )
            near, far = distance(network, fit), distance(truth, fit)
            what = f"{where}: {words} curve nearer to MLE's than GT's is"
            yield below(what, near, far, unit)


def _beats_the_fit(evidence: Evidence) -> Parts:
    if not evidence.known(evidence.mle_network):
        return
    for snr, parameter, where, unit in conditions(evidence):
        for quantity, words in QUANTITIES.items():
            for name in evidence.known(methods.MLE_MEAN, methods.MLE_TRUTH):
                network, fit = (
                    evidence.number(snr, each, parameter, quantity)
                    for each in (evidence.mle_network, name)
                )
                what = f"{where}: {words} of the network below that of {name}"
                yield below(what, network, fit, unit)


def _fast(evidence: Evidence) -> Parts:
    speed = evidence.speed
    if evidence.mle_network in speed and methods.MLE_MEAN in speed:
        ratio = speed[evidence.mle_network] / speed[methods.MLE_MEAN]
        figures = " against ".join(
            f"{speed[name]:,.0f} voxels/s" for name in (evidence.mle_network, methods.MLE_MEAN)
        )
        yield Part("more voxels per second than MLE", f"{figures}: {ratio:.0f} x", ratio - 1, 0.0)


CLAIMS = (
    ClaimDefinition(
        "own-weight",
        "4.3.1",
        "A network whose loss gives {hard} by far the largest weight gains a little in precision "
        "and accuracy.",
        _own_weight,
    ),
    ClaimDefinition(
        "noise-model",
        "4.3.2",
        "Rician labels give less biased and more informative estimates than Gaussian ones where "
        "the signal nears the noise floor: at {floor} and low SNR.",
        _noise_model,
    ),
    ClaimDefinition(
        "hybrid",
        "4.3.4",
        "A network trained on a mixture of groundtruth and MLE labels lies between the two.",
        _hybrid,
    ),
    ClaimDefinition(
        "like-mle",
        "4.3.5",
        "MLE-labelled networks perform much like conventional MLE over the whole range.",
        _like_the_fit,
        "Compared with Supervised GT, whose curves should be further from MLE's.",
    ),
    ClaimDefinition(
        "beats-mle",
        "4.3.5",
        "In many cases they outperform the fits that made their labels: lower bias, variance and "
        "RMSE.",
        _beats_the_fit,
        "Conventional MLE started from the mean, as for real data, and from the truth, as for "
        "labels; run to convergence, whereas the paper's fits stop earlier.",
    ),
    ClaimDefinition(
        "fast",
        "4.3.5",
        "They do so near-instantaneously.",
        _fast,
        "Compared with labelwise's own compiled fitter on the same voxels and cores. The network "
        "computes no standard errors here.",
    ),
)
"""In the order of the paper."""
