"""The definition of a claim, its evaluation, and comparisons that several claims use.

A claim is a function from the evidence of one training to the comparisons that it comes down to;
each holds by a margin with a standard error. `judge` evaluates them for every training: the
variation between trainings is part of the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import t as student

from labelwise.study import methods
from labelwise.study.evidence import Evidence, Number, below, between
from labelwise.study.records import CERTAIN, Claim, Part

Parts = Iterator[Part]

QUANTITIES = {"abs_bias": "|bias|", "std": "std", "rmse": "RMSE"}


@dataclass(frozen=True)
class ClaimDefinition:
    """A claim as it is defined, before it is evaluated.

    Args:
        key: a short name.
        section: of the paper; `""` for ours.
        statement: in one sentence; `{floor}` and `{hard}` stand for the study's
            `noise_floor` and `ill_determined`.
        parts: the comparisons, from the evidence of one training; none where it does not apply.
        note: a remark for the reader.
    """

    key: str
    section: str
    statement: str
    parts: Callable[[Evidence], Parts]
    note: str = ""


def judge(
    definitions: Sequence[ClaimDefinition], first: Evidence, trainings: Sequence[Evidence] = ()
) -> list[Claim]:
    """Every claim that applies, judged.

    A part's figures are those of the first training. With several trainings its margin is the mean
    over them, and its error combines their scatter and the noise: two errors are the half-width of
    a 95 % interval by Student's t, which is wide for few trainings.

    Args:
        definitions: the claims.
        first: the evidence of the first training, by all repeats.
        trainings: the evidence of each training, the first too, all by as many repeats; fewer
            would shift some figures. Empty if there is one training only.
    """
    study = first.study
    words = {
        "floor": f"high {study.noise_floor}" if study.noise_floor else "the top of each range",
        "hard": study.ill_determined or "one parameter",
    }
    claims = []
    for definition in definitions:
        by_training = [{p.what: p.margin for p in definition.parts(each)} for each in trainings]
        judged = []
        for part in definition.parts(first):
            margins = [found[part.what] for found in by_training if part.what in found]
            judged.append(with_training_scatter(part, np.array(margins)))
        if judged:
            claims.append(
                Claim(
                    definition.key,
                    definition.section,
                    definition.statement.format(**words),
                    tuple(judged),
                    definition.note,
                )
            )
    return claims


def with_training_scatter(part: Part, margins: Float[np.ndarray, " T"]) -> Part:
    """The part with its margin averaged over trainings and their scatter added to its error."""
    number = len(margins)
    if number < 2:
        return part
    wide = float(student.ppf(0.975, number - 1)) / CERTAIN
    scatter = wide * float(np.std(margins, ddof=1)) / math.sqrt(number)
    margin = part.margin + float(margins.mean() - margins[0])
    return replace(part, margin=margin, error=math.hypot(part.error, scatter))


def conditions(evidence: Evidence) -> Iterator[tuple[float, str, str, str]]:
    """Every SNR and parameter of the claims, with a description and the unit."""
    for snr in evidence.study.snrs:
        for parameter in evidence.study.free:
            yield snr, parameter, f"SNR {snr:g}, {parameter}", evidence.unit(parameter)


def information(quantity: str, words: str) -> Callable[[Evidence], Parts]:
    """GT's estimates hold less information, by some measure, than a fit's and its imitator's."""

    def parts(evidence: Evidence) -> Parts:
        for snr, parameter, where, _ in conditions(evidence):
            for name in evidence.known(methods.MLE_MEAN, evidence.mle_network):
                if evidence.known(methods.GT):
                    truth = evidence.number(snr, methods.GT, parameter, quantity)
                    other = evidence.number(snr, name, parameter, quantity)
                    yield below(f"{where}: {words} of GT below that of {name}", truth, other)

    return parts


def in_between(evidence: Evidence, name: str) -> Parts:
    """An estimator's bias, spread and error lie between GT's and those of MLE labels."""
    for snr, parameter, where, unit in conditions(evidence):
        for quantity, words in QUANTITIES.items():
            here, *ends = (
                evidence.number(snr, each, parameter, quantity)
                for each in (name, methods.GT, evidence.mle_network)
            )
            yield between(f"{where}: {words} of {name} between the two", here, ends, unit)


def distance(curve: Sequence[Number], other: Sequence[Number]) -> Number:
    """The mean |difference| of two curves."""
    gaps = [a - b for a, b in zip(curve, other, strict=True)]
    error = math.sqrt(sum(gap.error**2 for gap in gaps)) / len(gaps)
    return Number(sum(abs(gap.value) for gap in gaps) / len(gaps), error)


def pointwise(evidence: Evidence, quantity: str, parameter: str) -> xr.DataArray:
    """GT minus the network trained on MLE labels, at every grid point of the lowest SNR."""
    values = evidence.grids[evidence.low][quantity].sel(parameter=parameter)
    return values.sel(estimator=methods.GT) - values.sel(estimator=evidence.mle_network)
