"""What the paper leaves open: larger networks, the absolute loss, blends, information."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from labelwise.evaluation.grid import marginal
from labelwise.networks.intervals import LEVEL
from labelwise.study import methods
from labelwise.study.claims.judging import (
    QUANTITIES,
    ClaimDefinition,
    Parts,
    conditions,
    in_between,
    information,
)
from labelwise.study.evidence import Evidence, Number, below
from labelwise.study.records import Part

_ONCE = (
    "Networks of intervals are trained once; the errors do not include the variation between "
    "trainings."
)


def _variants(evidence: Evidence) -> Parts:
    study = evidence.study
    for snr, parameter, where, _ in conditions(evidence):
        for name in (methods.GT, evidence.mle_network):
            for variant in evidence.known(*methods.larger(name, study.wide, study.deep)):
                ours, theirs = (
                    evidence.number(snr, each, parameter, "rmse") for each in (name, variant)
                )
                ratio = theirs.value / ours.value
                error = ratio * math.hypot(ours.error / ours.value, theirs.error / theirs.value)
                what = f"{where}: RMSE of {variant} within 5 % of {name}'s"
                yield Part(what, f"{ratio - 1:+.1%}", 0.05 - abs(ratio - 1), error)


def _absolute(evidence: Evidence) -> Parts:
    """Each kind of label under the absolute loss beside the squared one."""
    for snr, parameter, where, unit in conditions(evidence):
        for name, other in (
            (methods.GT, methods.GT_ABSOLUTE),
            (evidence.mle_network, methods.MLE_ABSOLUTE),
        ):
            if len(evidence.known(name, other)) < 2:
                continue
            for quantity, words in QUANTITIES.items():
                squared, absolute = (
                    evidence.number(snr, each, parameter, quantity) for each in (name, other)
                )
                what = f"{where}: {words} of {other} below that of {name}"
                yield below(what, absolute, squared, unit)
            fewer, more = (
                evidence.number(snr, each, parameter, "mutual_information")
                for each in (name, other)
            )
            yield below(f"{where}: bits of {name} below those of {other}", fewer, more)


def _absolute_order(evidence: Evidence) -> Parts:
    if len(evidence.known(methods.GT_ABSOLUTE, methods.MLE_ABSOLUTE)) < 2:
        return
    for snr, parameter, where, unit in conditions(evidence):
        truth, mle = (
            {q: evidence.number(snr, name, parameter, q) for q in (*QUANTITIES, "slope")}
            for name in (methods.GT_ABSOLUTE, methods.MLE_ABSOLUTE)
        )
        yield below(
            f"{where}: |bias| of MLE-labelled below GT's",
            mle["abs_bias"],
            truth["abs_bias"],
            unit,
        )
        for quantity in ("std", "rmse"):
            words = QUANTITIES[quantity]
            what = f"{where}: {words} of GT below MLE-labelled's"
            yield below(what, truth[quantity], mle[quantity], unit)
        what = f"{where}: bias slope of GT below MLE-labelled's"
        yield below(what, truth["slope"], mle["slope"])


def _blends(evidence: Evidence) -> Parts:
    ends = (methods.GT, evidence.mle_network)
    for alpha in evidence.study.blend:
        if len(evidence.known(methods.blend(alpha), *ends)) == 3 and 0 < alpha < 1:
            yield from in_between(evidence, methods.blend(alpha))


def _blend_as_hybrid(evidence: Evidence) -> Parts:
    alpha = evidence.study.hybrid
    blend = methods.blend(alpha)
    if len(evidence.known(blend, methods.HYBRID, methods.GT, evidence.mle_network)) < 4:
        return
    for snr, parameter, where, unit in conditions(evidence):
        for quantity, words in QUANTITIES.items():
            blended, hybrid, truth, mle = (
                evidence.number(snr, name, parameter, quantity)
                for name in (blend, methods.HYBRID, methods.GT, evidence.mle_network)
            )
            near, far = abs(blended - hybrid), abs(mle - truth)
            tenth = Number(0.1 * far.value, 0.1 * far.error)
            what = f"{where}: {words} within a tenth of the way from GT to MLE-labelled"
            margin = tenth - near
            figures = f"{blend} {blended}, {methods.HYBRID} {hybrid}{unit}"
            yield Part(what, figures, margin.value, margin.error)


def _least(intervals: xr.Dataset, name: str, parameter: str) -> Number:
    """The smallest coverage at any value of a parameter, averaged over the others."""
    here = intervals[["coverage", "coverage_error"]].sel(estimator=name, parameter=parameter)
    curve = marginal(here, parameter)
    at = int(np.argmin(curve.coverage.values))
    return Number(float(curve.coverage[at]), float(curve.coverage_error[at]))


def _confidence(evidence: Evidence) -> Parts:
    name, intervals = evidence.mle_network, evidence.intervals
    if intervals is None or name not in intervals.estimator:
        return
    for parameter in evidence.study.free:
        least = _least(intervals, name, parameter)
        what = f"SNR {evidence.low:g}, {parameter}: coverage at every true value above 93 %"
        yield Part(what, f"at least {least.value:.1%}", least.value - 0.93, least.error)


def _credible(evidence: Evidence) -> Parts:
    intervals = evidence.intervals
    if intervals is None or methods.GT not in intervals.estimator:
        return
    for parameter in evidence.study.free:
        where = f"SNR {evidence.low:g}, {parameter}"
        here = intervals.sel(estimator=methods.GT, parameter=parameter)
        mean, error = float(here.prior_coverage), float(here.prior_coverage_error)
        what = f"{where}: coverage over the prior within 1.2 % of 95 %"
        yield Part(what, f"{mean:.1%}", 0.012 - abs(mean - LEVEL), error)
        least = _least(intervals, methods.GT, parameter)
        what = f"{where}: coverage at some true value below 93 %"
        yield Part(what, f"at least {least.value:.1%}", 0.93 - least.value, least.error)


CLAIMS = (
    ClaimDefinition(
        "variants",
        "3.2",
        "Wider and deeper networks perform like the standard ones.",
        _variants,
        "They are trained once, from their own initial weights; the errors do not include the "
        "variation between trainings.",
    ),
    ClaimDefinition(
        "absolute-order",
        "",
        "Under the absolute loss the labels rank as under the squared loss (4.1).",
        _absolute_order,
        "The paper leaves this loss to future work (section 4.4).",
    ),
    ClaimDefinition(
        "absolute",
        "",
        "The absolute loss is better than the squared loss: lower bias, standard deviation and "
        "RMSE, more bits.",
        _absolute,
        "Not a claim of the paper: the parts list what the loss changes.",
    ),
    ClaimDefinition(
        "blend",
        "",
        "A blend of the outputs of two networks lies between the two networks.",
        _blends,
        "The weight of the MLE-labelled network, alpha, can be changed after training.",
    ),
    ClaimDefinition(
        "blend-hybrid",
        "",
        "A blend matches the hybrid without being trained.",
        _blend_as_hybrid,
    ),
    ClaimDefinition(
        "confidence",
        "",
        "95 % confidence intervals, of the network of MLE labels, hold the truth in at least 93 % "
        "of repeats, whatever the truth.",
        _confidence,
        f"At each value of a parameter, averaged over the others. {_ONCE}",
    ),
    ClaimDefinition(
        "credible",
        "",
        "95 % credible intervals, of the network of groundtruth labels, hold the truth with a "
        "probability of 95 % on average over the prior, but not for every truth.",
        _credible,
        "The true values include the limits of the prior, which credible intervals cannot exceed; "
        f"there they miss the truth most often. {_ONCE}",
    ),
    ClaimDefinition(
        "fisher",
        "",
        "Information on small differences: Supervised GT retains a smaller share of the "
        "information "
        "in the signal.",
        information("retained", "Fisher share"),
        "The share of the signal's linear Fisher information, with the other parameters unknown.",
    ),
)
"""In the order of the paper."""
