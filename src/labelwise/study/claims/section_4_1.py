"""The claims of section 4.1: bias against variance, and what is lost.

Source: Epstein et al. 2024, section 4.1, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

from collections.abc import Callable

from labelwise.study import methods
from labelwise.study.claims.judging import (
    QUANTITIES,
    ClaimDefinition,
    Parts,
    conditions,
    information,
)
from labelwise.study.evidence import Evidence, Number, below


def _order(quantity: str, sign: int, others: str = "imitators") -> Callable[[Evidence], Parts]:
    """GT's figure above (sign 1) or below (-1) that of the networks that imitate a fit."""

    def parts(evidence: Evidence) -> Parts:
        if not evidence.known(methods.GT):
            return
        for snr, parameter, where, unit in conditions(evidence):
            truth = evidence.number(snr, methods.GT, parameter, quantity)
            for name in evidence.imitators:
                other = evidence.number(snr, name, parameter, quantity)
                low, high = (other, truth) if sign > 0 else (truth, other)
                first, second = (name, methods.GT) if sign > 0 else (methods.GT, name)
                what = f"{where}: {QUANTITIES[quantity]} of {first} below {second}'s"
                yield below(what, low, high, unit)

    return parts


def _gradient(evidence: Evidence) -> Parts:
    if not evidence.known(methods.GT):
        return
    others = [*evidence.known(methods.MLE_MEAN), *evidence.imitators]
    for snr, parameter, where, _ in conditions(evidence):
        truth = evidence.number(snr, methods.GT, parameter, "slope")
        yield below(f"{where}: GT's bias slope negative", truth, Number(0.0))
        for name in others:
            other = evidence.number(snr, name, parameter, "slope")
            yield below(f"{where}: GT's bias slope below that of {name}", truth, other)


CLAIMS = (
    ClaimDefinition(
        "bias",
        "4.1",
        "Self-supervised and MLE-labelled networks have a lower bias than one trained "
        "on groundtruth labels.",
        _order("abs_bias", 1),
        "|bias|: the mean of the marginal bias curve's absolute values.",
    ),
    ClaimDefinition(
        "spread",
        "4.1",
        "Groundtruth labels give the lower standard deviation.",
        _order("std", -1),
    ),
    ClaimDefinition("rmse", "4.1", "Groundtruth labels give the lower RMSE.", _order("rmse", -1)),
    ClaimDefinition(
        "gradient",
        "4.1",
        "The bias of Supervised GT falls with the true value, and more steeply than any other "
        "method's: estimates are drawn towards the middle of the range.",
        _gradient,
    ),
    ClaimDefinition(
        "information",
        "4.1",
        "This is a loss of information: estimates of Supervised GT distinguish true values less "
        "well.",
        information("mutual_information", "bits"),
        "The paper infers information from the slope of the bias. Here it is the mutual "
        "information "
        "of true value and estimate, which shrinkage alone does not change.",
    ),
)
"""In the order of the paper."""
