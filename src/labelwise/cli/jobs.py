"""The jobs behind `labelwise train` and `labelwise evaluate`: networks into files, results out.

They print nothing. Everything they write is whole or not there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from labelwise.evaluation.grid import evaluate, summary
from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import distinct_names
from labelwise.io.files import refuse_existing
from labelwise.io.results import as_json
from labelwise.io.staging import staged
from labelwise.models import SignalModel
from labelwise.models.find import rebuild
from labelwise.networks.network import Network, load
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.train import joined, train_networks
from labelwise.plots.curves import curves
from labelwise.priors import Grid
from labelwise.types import Estimator, InputError, Progress

MLE_NAME = "maximum likelihood"
_POINTS = 10_000  # of a grid, unless told otherwise


def train_file(
    plan: TrainingPlan,
    path: Path,
    *,
    cache: Path | None,
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> tuple[Network, float]:
    """Train the networks of a plan and save them; two labels make a blend.

    Args:
        plan: of one label, or the two of a blend.
        path: the `.safetensors` file.
        cache: folder of labels; None to keep none.
        resume: go on where an interrupted run of the same plan stopped.
        overwrite: replace a file that is there already.
        progress: called as the work goes on.

    Returns:
        The network, and the seconds it took.

    Raises:
        FileExistsError: if the file is there and `overwrite` is not set.
        FileNotFoundError: if its folder is not there.
        InputError: see `train_networks`.
    """
    refuse_existing(path, overwrite)
    if len(plan.labels) > 1 and plan.recipe.loss != "squared":
        warnings.warn(
            f"loss {plan.recipe.loss}: the blend is the network of the mixed label for squared "
            "errors only",
            stacklevel=2,
        )
    begin = time.perf_counter()
    checkpoint = path.with_name(f"{path.name}.checkpoint")
    network = joined(
        train_networks(plan, cache=cache, checkpoint=checkpoint, resume=resume, progress=progress)
    )
    network.save(path)
    return network, time.perf_counter() - begin


@dataclass(frozen=True)
class Evaluation:
    """What `labelwise evaluate` found.

    Args:
        folder: where it was written.
        snr: signal (1) over noise.
        grid: values of each parameter.
        repeats: noisy signals at each point.
        summary: what `evaluate.summary` says.
        units: of each parameter.
        seconds: wall time.
    """

    folder: Path
    snr: float
    grid: Mapping[str, Any]
    repeats: int
    summary: xr.Dataset
    units: Mapping[str, str]
    seconds: float


def evaluate_files(
    paths: Sequence[Path],
    folder: Path,
    *,
    model: type[SignalModel] | None,
    snr: float | None,
    points: int | None,
    repeats: int,
    reference: bool,
    seed: int,
    overwrite: bool,
    command: str,
    progress: Progress,
) -> Evaluation:
    """Evaluate networks over a grid of true parameters, beside maximum likelihood.

    Written are `evaluation.nc` (NetCDF: bias, std, rmse, their standard errors, covariance, share
    of failures and information over the grid), `curves.png` and `evaluation.json` (the summary).

    Args:
        paths: network files for one acquisition; of a blend both ends and the middle are shown.
        folder: made if missing.
        model: the class of a user's own model; None finds it by the card.
        snr: signal (amplitude 1) over noise; what the first network was trained for, or the
            geometric middle of its range, if None.
        points: values of each parameter; as many as make 10,000 points, at most 10, if None.
        repeats: noisy signals at each point.
        reference: whether maximum likelihood is evaluated too.
        seed: of the noise.
        overwrite: replace an earlier evaluation.
        command: what was typed, for the record.
        progress: called as the work goes on.

    Raises:
        FileExistsError: if the folder holds an evaluation and `overwrite` is not set.
        FileNotFoundError: if there is no such network file.
        InputError: if the networks are for different acquisitions, or their model is not known.
    """
    names = ("evaluation.nc", "curves.png", "evaluation.json")
    for name in names:
        refuse_existing(folder / name, overwrite, made=True)
    begin = time.perf_counter()
    estimators, first = _networks(paths)
    card = first.card
    made = rebuild(card.model, model, paths[0])
    noise = first.noise
    if reference:
        estimators[MLE_NAME] = MaximumLikelihood(made, noise)
    sigma = sigma_for(card.sigma, snr, paths[0])
    names_of = [parameter.name for parameter in first.parameters]
    scaled = first.members[0].scaling.scale
    fixed = {} if scaled is None else {names_of[scaled]: 1.0}
    free = len(names_of) - len(fixed)
    count = points or min(10, max(2, int(_POINTS ** (1 / max(1, free)) + 1e-9)))
    spans = {name: (low, high) for name, (low, high) in zip(names_of, card.ranges, strict=True)}
    grid = Grid.over(spans, points=count, fixed=fixed)
    dataset = evaluate(
        estimators,
        made,
        noise,
        sigma,
        grid,
        repeats,
        jax.random.key(seed),
        progress=lambda done, total: progress("evaluating", done, total, ""),
    )
    found = summary(dataset)
    record = {
        "command": command,
        "networks": [str(path) for path in paths],
        "snr": 1 / sigma,
        "repeats": repeats,
        "seed": seed,
        "grid": {name: values.tolist() for name, values in grid.axes.items()},
        "summary": _plain(found),
    }
    figure = curves(dataset, made.parameters, f"{type(made).__name__}, SNR {1 / sigma:.3g}")
    with staged(folder, names[-1]) as staging:
        dataset.to_netcdf(staging / names[0], engine="scipy")
        figure.savefig(staging / names[1])
        (staging / names[2]).write_text(as_json(record), encoding="utf-8")
    units = {parameter.name: parameter.unit for parameter in made.parameters}
    seconds = time.perf_counter() - begin
    return Evaluation(folder, 1 / sigma, grid.axes, repeats, found, units, seconds)


def _networks(
    paths: Sequence[Path],
) -> tuple[dict[str, Estimator], Network]:
    """The estimators in some files by name, a blend's both ends and its middle; and the first."""
    networks = [load(path) for path in paths]
    first, estimators = networks[0], {}
    for path, stem, network in zip(paths, _stems(paths), networks, strict=True):
        network.check_acquisition(first.card.acquisition)
        for what, ours, theirs in (
            ("model", _equation(first), _equation(network)),
            ("noise", first.card.noise, network.card.noise),
        ):
            if ours != theirs:
                trained, other = distinct_names(theirs, ours)
                code = " of other code" * (trained == other)
                raise InputError(
                    f"{path}: was trained for the {what} {trained}, {paths[0].name} for "
                    f"{other}{code}; "
                    "evaluate them one by one"
                )
        if network.card.prior != first.card.prior:
            warnings.warn(
                f"{path.name} was trained for another prior than {paths[0].name}, whose ranges are "
                "used for both",
                stacklevel=3,
            )
        if network.is_blend:
            for alpha in (1.0, 0.5, 0.0):
                estimators[f"{stem}, alpha {alpha:g}"] = network.with_alpha(alpha)
        else:
            estimators[stem] = network
    return estimators, first


def _equation(network: Network) -> dict[str, Any]:
    """What makes the model of a network another, besides its acquisition."""
    return {name: network.card.model.get(name) for name in ("class", "constants", "signals")}


def sigma_for(trained: float | list[float], snr: float | None, path: Path) -> float:
    """The noise level asked for, or that of the training, or the middle of its range."""
    known = np.atleast_1d(trained)
    if snr is None:
        return float(np.sqrt(known.min() * known.max()))
    if not known.min() / 1.05 <= 1 / snr <= 1.05 * known.max():
        warnings.warn(
            f"SNR {snr:g} is not what {path.name} was trained for "
            f"({' to '.join(f'{1 / each:.3g}' for each in known[::-1])})",
            stacklevel=3,
        )
    return 1 / snr


def _stems(paths: Sequence[Path]) -> list[str]:
    """Short names, whole paths where short ones are not distinct."""
    if len(set(paths)) < len(paths):
        raise InputError("networks: the same file is given twice")
    stems = [path.name.removesuffix(".safetensors") for path in paths]
    plain = len(set(stems)) == len(stems) and MLE_NAME not in stems
    return stems if plain else [str(path) for path in paths]


def _plain(found: xr.Dataset) -> dict[str, Any]:
    """The summary as nested names: estimator, parameter, quantity."""
    return {
        str(estimator): {
            str(parameter): {
                str(name): float(values.sel(estimator=estimator, parameter=parameter))
                for name, values in found.data_vars.items()
                if "parameter" in values.dims
            }
            for parameter in found["parameter"].values
        }
        for estimator in found["estimator"].values
    }
