"""The claims of section 4.2: trends of the simulation in a scan.

Source: Epstein et al. 2024, section 4.2, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from labelwise.study import methods
from labelwise.study.claims.judging import ClaimDefinition, Parts, distance
from labelwise.study.evidence import WELL_FILLED, Evidence, Number, below
from labelwise.study.records import CERTAIN, Part

_RESAMPLES = 200  # of a bootstrap
_SIMULATED = "On the phantom the scan is itself simulated: this tests the pipeline only."


def _as_simulated(evidence: Evidence) -> Parts:
    """In the bins that are well filled, GT and the imitators are ordered as in simulation."""
    if evidence.in_vivo is None or len(evidence.known(methods.GT, evidence.mle_network)) < 2:
        return
    for parameter in evidence.study.free:
        filled = _filled(evidence.in_vivo.binned, parameter)
        unit = evidence.unit(parameter)
        if filled.sum() < 2:
            continue
        for quantity, words in {"bias": "|bias|", "std": "std", "rmse": "RMSE"}.items():
            in_vivo, simulated = (
                _difference(evidence, data, parameter, quantity, filled)
                for data in (evidence.in_vivo.binned, None)
            )
            known = abs(simulated.value) > CERTAIN * simulated.error
            sign = math.copysign(1.0, simulated.value) if known else math.nan
            values = f"{in_vivo} in vivo, {simulated}{unit} in simulation"
            figures = f"GT minus {evidence.mle_network}: {values}"
            margin = sign * in_vivo.value
            yield Part(f"{parameter}: {words} ordered alike", figures, margin, in_vivo.error)
        steep, flat = (
            _bin_slope(evidence.in_vivo.binned, name, parameter, filled)
            for name in (methods.GT, evidence.mle_network)
        )
        what = f"{parameter}: bias slope of GT below that of {evidence.mle_network}"
        yield below(what, steep, flat)


def _filled(binned: xr.Dataset, parameter: str) -> np.ndarray:
    count = binned["count"].sel(parameter=parameter).values
    return count >= max(WELL_FILLED * count.sum(), 2)


def _difference(
    evidence: Evidence, data: xr.Dataset | None, parameter: str, quantity: str, filled: np.ndarray
) -> Number:
    """GT minus the network trained on MLE labels, the mean over the filled bins."""
    assert evidence.in_vivo is not None
    total, square = 0.0, 0.0
    for name, sign in ((methods.GT, 1), (evidence.mle_network, -1)):
        if data is None:
            values, errors = _at_centres(evidence, name, parameter, quantity)
        else:
            here = data.sel(estimator=name, parameter=parameter)
            values, errors = here[quantity].values, here[f"{quantity}_error"].values
        if quantity == "bias":
            values = abs(values)
        total += sign * float(values[filled].mean())
        square += float((errors[filled] ** 2).sum()) / filled.sum() ** 2
    return Number(total, math.sqrt(square))


def _at_centres(
    evidence: Evidence, name: str, parameter: str, quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """The simulated curve at the bins' centres."""
    assert evidence.in_vivo is not None
    truth = np.asarray(evidence.grids[evidence.low][parameter].values, float)
    curve = evidence.curve(evidence.low, name, parameter, quantity)
    centres = evidence.in_vivo.binned["centre"].sel(parameter=parameter).values
    values, errors = ([getattr(n, what) for n in curve] for what in ("value", "error"))
    return np.interp(centres, truth, values), np.interp(centres, truth, errors)


def _bin_slope(binned: xr.Dataset, name: str, parameter: str, filled: np.ndarray) -> Number:
    """Of a straight line through the bias of the filled bins."""
    here = binned.sel(estimator=name, parameter=parameter)
    centre = here["centre"].values[filled]
    offset = centre - centre.mean()
    share = offset / (offset**2).sum()
    value = float((share * here["bias"].values[filled]).sum())
    error = float(np.sqrt(((share * here["bias_error"].values[filled]) ** 2).sum()))
    return Number(value, error)


def _explained(evidence: Evidence) -> Parts:
    """Where bins are not well filled, the matched set is nearer to in vivo than the uniform one."""
    in_vivo = evidence.in_vivo
    if in_vivo is None:
        return
    chosen = evidence.known(methods.MLE_MEAN, *evidence.imitators, methods.GT)
    for parameter in evidence.study.free:
        some = in_vivo.binned["count"].sel(parameter=parameter).values >= 2
        some &= ~_filled(in_vivo.binned, parameter)
        some &= in_vivo.matched["count"].sel(parameter=parameter).values >= 2
        unit = evidence.unit(parameter)
        if not some.any():
            continue
        for quantity, words in {"bias": "bias", "std": "std", "rmse": "RMSE"}.items():
            gaps = {"matched": [], "uniform": []}
            for name in chosen:
                here, there = (
                    data.sel(estimator=name, parameter=parameter)
                    for data in (in_vivo.binned, in_vivo.matched)
                )
                real = _numbers(here, quantity, some)
                values, errors = _at_centres(evidence, name, parameter, quantity)
                uniform = [Number(*pair) for pair in zip(values[some], errors[some], strict=True)]
                gaps["matched"].append(distance(_numbers(there, quantity, some), real))
                gaps["uniform"].append(distance(uniform, real))
            near, far = (_mean(gaps[kind]) for kind in ("matched", "uniform"))
            what = f"{parameter}: {words} curves of the matched set nearer than those of figure 2"
            yield below(what, near, far, unit)


def _numbers(here: xr.Dataset, quantity: str, chosen: np.ndarray) -> list[Number]:
    values, errors = here[quantity].values[chosen], here[f"{quantity}_error"].values[chosen]
    return [Number(float(v), float(e)) for v, e in zip(values, errors, strict=True)]


def _mean(numbers: Sequence[Number]) -> Number:
    error = math.sqrt(sum(number.error**2 for number in numbers)) / len(numbers)
    return Number(sum(number.value for number in numbers) / len(numbers), error)


def _smooth(evidence: Evidence) -> Parts:
    in_vivo = evidence.in_vivo
    if in_vivo is None or not evidence.known(methods.GT):
        return
    for index, parameter in enumerate(evidence.study.names):
        if parameter not in evidence.study.free:
            continue
        there = in_vivo.voxels["first"].sel(parameter=parameter)
        truth = there.sel(estimator=methods.GT).values
        others = {"the gold standard": in_vivo.reference[:, index]}
        for name in evidence.known(evidence.mle_network):
            others[name] = there.sel(estimator=name).values
        for name, values in others.items():
            low, high, margin = _spreads(truth, values)
            figures = f"{low:.3g} against {high:.3g}{evidence.unit(parameter)}"
            what = f"{parameter}: spread over the map of GT below that of {name}"
            yield Part(what, figures, margin.value, margin.error)


def _spreads(one: np.ndarray, other: np.ndarray) -> tuple[float, float, Number]:
    """Standard deviations over the voxels that both have, and by how much the second is larger."""
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    if len(one) < 2:
        return math.nan, math.nan, Number(math.nan, math.nan)
    rng = np.random.default_rng(0)
    resamples = (rng.integers(0, len(one), len(one)) for _ in range(_RESAMPLES))
    margins = [float(other[voxels].std() - one[voxels].std()) for voxels in resamples]
    low, high = float(one.std()), float(other.std())
    return low, high, Number(high - low, float(np.std(margins)))


CLAIMS = (
    ClaimDefinition(
        "vivo",
        "4.2",
        "The trends of the simulation are also found in vivo where parameters are well "
        "represented.",
        _as_simulated,
        f"Well represented: bins that hold at least {WELL_FILLED:.0%} of the voxels. {_SIMULATED}",
    ),
    ClaimDefinition(
        "explained",
        "4.2",
        "Where they are not, a synthetic set with the parameters of the scan shows the same "
        "trends.",
        _explained,
        _SIMULATED,
    ),
    ClaimDefinition(
        "smooth",
        "4.2",
        "Maps of Supervised GT are artificially smooth.",
        _smooth,
        "Spread: the standard deviation over the voxels that both maps have; first acquisition.",
    ),
)
"""In the order of the paper."""
