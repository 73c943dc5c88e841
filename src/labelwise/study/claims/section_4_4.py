"""The claims of sections 4.4 and 4.5: what RMSE and averages over parameter space hide.

Source: Epstein et al. 2024, sections 4.4 and 4.5, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import math

import xarray as xr

from labelwise.study import methods
from labelwise.study.claims.judging import ClaimDefinition, Parts, pointwise
from labelwise.study.evidence import Evidence, Number, below
from labelwise.study.records import Part

_EVERYWHERE = 0.95
"""The share of the grid points that counts as "across all test data"."""


def _misleading(evidence: Evidence) -> Parts:
    hard = evidence.study.ill_determined
    fits = evidence.known(methods.MLE_MEAN)
    if not hard or not fits or not evidence.known(methods.GT):
        return
    for snr in evidence.study.snrs:
        where, unit = f"SNR {snr:g}, {hard}", evidence.unit(hard)
        truth = evidence.number(snr, methods.GT, hard, "rmse")
        for name in (*fits, *evidence.imitators):
            other = evidence.number(snr, name, hard, "rmse")
            yield below(f"{where}: RMSE of GT below that of {name}", truth, other, unit)
        slope = evidence.number(snr, methods.GT, hard, "slope")
        yield below(f"{where}: more than half of a difference lost", slope, Number(-0.5))
        for quantity, words in {"mutual_information": "bits", "retained": "Fisher share"}.items():
            low = evidence.number(snr, methods.GT, hard, quantity)
            other = evidence.number(snr, fits[0], hard, quantity)
            yield below(f"{where}: {words} of GT below MLE's", low, other)


def _share(where: xr.DataArray) -> Number:
    """A share of grid points; its error comes from the variation between trainings only."""
    return Number(float(where.mean()))


def _everywhere(evidence: Evidence) -> Parts:
    if len(evidence.known(methods.GT, evidence.mle_network)) < 2:
        return
    for parameter in evidence.study.free:
        share = _share(pointwise(evidence, "std", parameter) < 0)
        margin = share - Number(_EVERYWHERE)
        what = f"SNR {evidence.low:g}: std of {parameter} lower by GT at 95 % of the grid points"
        yield Part(what, f"at {share.value:.1%}", margin.value, margin.error)


def _at_two_values(evidence: Evidence) -> Parts:
    parameter = evidence.study.noise_floor
    if len(evidence.known(methods.GT, evidence.mle_network)) < 2 or not _two_values_of(evidence):
        return
    assert parameter is not None  # one that the grid has values of
    difference = pointwise(evidence, "bias", parameter)
    for index, sign, words in ((1, 1, "higher"), (-2, -1, "lower")):
        here = difference.isel({parameter: index})
        share = _share(sign * here > 0)
        margin = share - Number(_EVERYWHERE)
        value = float(here[parameter])
        what = f"{parameter} = {value:.2f}: bias of GT {words} at 95 % of the grid points"
        yield Part(what, f"at {share.value:.1%}", margin.value, margin.error)


def _two_values_of(evidence: Evidence) -> bool:
    """Whether the grid has a low and a high value of the parameter, as in figure 12."""
    parameter = evidence.study.noise_floor
    return parameter in evidence.study.free and len(evidence.study.grid.axes[parameter]) >= 4


def _two_regions(evidence: Evidence) -> Parts:
    parameter = evidence.study.noise_floor
    others = [name for name in evidence.study.free if name != parameter]
    if parameter != "D_slow" or others != ["f", "D_fast"] or not _two_values_of(evidence):
        return
    if len(evidence.known(methods.GT, evidence.mle_network)) < 2:
        return
    here = pointwise(evidence, "rmse", parameter).isel({parameter: 1})
    better = here > 0  # the network trained on MLE labels has the lower RMSE
    share = _share(better)
    for what, margin in (
        ("MLE-labelled better at some points", share - Number(0.02)),
        ("GT better at some points", Number(0.98) - share),
    ):
        where = f"D_slow = {float(here[parameter]):.2f}: {what}"
        figures = f"MLE-labelled better at {share.value:.1%}"
        yield Part(where, figures, margin.value, share.error)
    for name, sign, words in (("f", 1, "higher"), ("D_fast", -1, "lower")):
        inside, outside = (_mean_where(here[name], chosen) for chosen in (better, ~better))
        low, high = (outside, inside) if sign > 0 else (inside, outside)
        yield below(f"{words} {name} where MLE-labelled is better", low, high, evidence.unit(name))


def _mean_where(values: xr.DataArray, chosen: xr.DataArray) -> Number:
    found = values.where(chosen)
    number = int(found.count())
    if number < 2:
        return Number(math.nan, math.nan)
    return Number(float(found.mean()))


CLAIMS = (
    ClaimDefinition(
        "misleading",
        "4.4",
        "RMSE misleads: for {hard} it is lowest for estimates near the mean, which carry "
        "little information.",
        _misleading,
    ),
    ClaimDefinition(
        "everywhere",
        "4.5",
        "The lower standard deviation of Supervised GT is found across all test data.",
        _everywhere,
        "The paper states this for f.",
    ),
    ClaimDefinition(
        "two-values",
        "4.5",
        "Throughout the rest of parameter space, Supervised GT has the higher bias at a low value "
        "and the lower bias at {floor}.",
        _at_two_values,
        "Bias with its sign, as in figure 12.",
    ),
    ClaimDefinition(
        "two-regions",
        "4.5",
        "At low D_slow the MLE-labelled network has the lower RMSE at high f and low D_fast, and "
        "the higher one elsewhere.",
        _two_regions,
    ),
)
"""In the order of the paper."""
