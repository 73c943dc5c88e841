"""The evaluations of a study on simulated signals: every estimator on one grid of true values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import xarray as xr

from labelwise.evaluation.grid import evaluate
from labelwise.formatting import plain
from labelwise.io.files import digest
from labelwise.networks.labels import MLE
from labelwise.networks.mlp import named
from labelwise.simulation import simulate
from labelwise.study import methods
from labelwise.study.config import Study
from labelwise.study.networks import Network, mle_of_the_noise, points
from labelwise.study.stages import Stages
from labelwise.types import Estimate, Voxels

_TIMED = 50_000  # voxels
_TIMED_BLACK_BOX = 500
_OF_THE_PRIOR = 50_000  # voxels


def fits(study: Study) -> dict[str, MLE]:
    """The conventional fits that networks are compared with, by name.

    A fit of real data does not know the truth: it starts from the means of the prior. Started from
    the truth, as labels are, it is the best result of a local search.
    """
    middle = study.prior.ranges.mean(axis=1)
    return {
        methods.MLE_MEAN: MLE(study.model, study.noise, middle.tolist()),
        methods.MLE_TRUTH: MLE(study.model, study.noise, "truth"),
    }


def evaluate_fits(study: Study, stages: Stages, snr: float) -> xr.Dataset:
    """The fits on the whole grid; see `labelwise.evaluation.grid.evaluate`."""
    found = [
        _evaluated(
            *(study, stages, f"{name}, SNR {snr:g}", snr, study.repeats, source.describe()),
            labels={name: source},
        )
        for name, source in fits(study).items()
    ]
    return side_by_side(found)


def side_by_side(evaluations: Sequence[xr.Dataset]) -> xr.Dataset:
    """Evaluations of several estimators on the same signals, combined."""
    together = xr.concat(evaluations, "estimator")
    assert isinstance(together, xr.Dataset)
    return together


def evaluate_networks(
    study: Study,
    stages: Stages,
    snr: float,
    networks: Mapping[str, Network],
    training: int,
    *,
    whole: bool = False,
) -> xr.Dataset:
    """The networks of one training on the whole grid.

    Args:
        study: its description.
        stages: where it is kept.
        snr: of the test signals.
        networks: by name.
        training: which they are of, from 0.
        whole: with all repeats, not only those by which trainings are compared.
    """
    suffix = study.suffix(training)
    return _evaluated(
        study,
        stages,
        f"evaluation, SNR {snr:g}" + ("" if whole else f", few repeats{suffix}"),
        snr,
        study.repeats if whole else study.training_repeats,
        {name: contents(network) for name, network in networks.items()},
        estimators=points(networks),
    )


def contents(network: Network) -> Any:
    """JSON data that identify a network: equal data mean equal estimates."""
    members = [
        [digest(named(member.weights)), plain(vars(member.scaling))] for member in network.members
    ]
    return [network.alphas, members, repr(network.parameters)]


def evaluate_intervals(
    study: Study, stages: Stages, snr: float, networks: Mapping[str, Network]
) -> xr.Dataset | None:
    """Coverage and interval score of the networks with intervals; None if there is none.

    Args:
        study: its description.
        stages: where it is kept.
        snr: of the test signals.
        networks: by name.

    Returns:
        What `labelwise.evaluation.grid.evaluate` returns, on the whole grid; and `prior_coverage`
        with `prior_coverage_error` (estimator, parameter): the share of voxels of the prior whose
        interval holds the truth. The grid has as many values at the ends of the prior as inside,
        so that an average over it is another one.
    """
    chosen = {
        name: replace(network, standard_errors=False)
        for name, network in networks.items()
        if network.interval_kinds
        and name in (methods.GT, mle_of_the_noise(study), *map(methods.blend, study.blend))
    }
    if not chosen:
        return None
    who = {
        name: [
            contents(network),
            [digest(named(m.interval.weights)) for m in network.members if m.interval],
        ]
        for name, network in chosen.items()
    }
    repeats = study.training_repeats
    stage = f"intervals, SNR {snr:g}"
    found = _evaluated(study, stages, stage, snr, repeats, who, estimators=chosen)
    content = {"study": study.describe(), "snr": snr, "who": who, "voxels": _OF_THE_PRIOR}

    def make() -> xr.Dataset:
        key = jax.random.key(study.seed + 2)
        voxels = simulate(study.model, study.noise, study.prior, 1 / snr, _OF_THE_PRIOR, key)
        held = []
        for network in chosen.values():
            stats = network(voxels.signal, voxels.sigma).stats
            inside = (stats["low"] <= voxels.params) & (voxels.params <= stats["high"])
            held.append(np.where(np.isfinite(stats["low"]), inside, np.nan))
        shares = np.nanmean(held, axis=1)
        errors = np.sqrt(shares * (1 - shares) / np.isfinite(held).sum(axis=1))
        dims = "estimator", "parameter"
        return xr.Dataset(
            {"prior_coverage": (dims, shares), "prior_coverage_error": (dims, errors)},
            {"estimator": list(chosen), "parameter": list(study.names)},
        )

    return found.merge(stages.dataset(f"intervals of the prior, SNR {snr:g}", content, make))


def measure_speed(
    study: Study, stages: Stages, networks: Mapping[str, Network]
) -> dict[str, float]:
    """Voxels per second of the MLE-labelled network and of the fit, on the same signals."""
    name, snr = mle_of_the_noise(study), min(study.snrs)
    chosen = {name: networks[name]} if name in networks else {}
    content = {"study": study.describe(), "of": {n: contents(net) for n, net in chosen.items()}}

    def make() -> xr.Dataset:
        number = _TIMED if study.model.differentiable else _TIMED_BLACK_BOX
        key = jax.random.key(study.seed)
        voxels = simulate(study.model, study.noise, study.prior, 1 / snr, number, key)
        sources: dict[str, Callable[[Voxels], Estimate]] = {
            methods.MLE_MEAN: fits(study)[methods.MLE_MEAN]
        }
        for each, estimator in points(chosen).items():
            sources[each] = lambda voxels, of=estimator: of(voxels.signal, voxels.sigma)
        speeds = {each: number / _fastest(source, voxels) for each, source in sources.items()}
        return xr.Dataset(
            {"speed": ("estimator", list(speeds.values()))}, {"estimator": list(speeds)}
        )

    found = stages.dataset("speed", content, make)
    return {
        str(n): float(v) for n, v in zip(found.estimator.values, found.speed.values, strict=True)
    }


def _fastest(source: Callable[[Voxels], Estimate], voxels: Voxels) -> float:
    source(voxels)  # compiles
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        source(voxels)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _evaluated(
    study: Study,
    stages: Stages,
    stage: str,
    snr: float,
    repeats: int,
    who: Any,
    **sources: Any,
) -> xr.Dataset:
    description = study.describe()
    content = {
        **{name: description[name] for name in ("model", "noise", "seed")},
        "grid": {name: plain(values) for name, values in study.grid.axes.items()},
        "snr": snr,
        "repeats": repeats,
        "who": plain(who),
    }

    def make() -> xr.Dataset:
        found = evaluate(
            sources.get("estimators", {}),
            study.model,
            study.noise,
            1 / snr,
            study.grid,
            repeats,
            jax.random.key(study.seed + 1),
            labels=sources.get("labels"),
            progress=lambda done, total: stages.progress(stage, done, total, ""),
        )
        return found.drop_vars(["covariance", "other"])

    return stages.dataset(stage, content, make)
