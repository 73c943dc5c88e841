"""The command `evaluate`: bias, variance, RMSE and information of networks over a grid."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_evaluation
from labelwise.types import InputError

if TYPE_CHECKING:
    import xarray as xr

    from labelwise.models import SignalModel
    from labelwise.networks.network import Network
    from labelwise.types import Estimator, Progress

MLE_NAME = "maximum likelihood"
_FILES = ("evaluation.nc", "curves.png", "evaluation.json")
_POINTS = 10_000  # of the default grid, at most


@dataclass(frozen=True)
class Evaluation:
    """The results of `labelwise evaluate`.

    Args:
        folder: where the files are.
        snr: signal (1) over noise.
        grid: values of each parameter.
        repeats: noisy signals at each point.
        summary: as `evaluation.grid.summary` returns it.
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


def evaluate(
    context: typer.Context,
    nets: Annotated[
        list[Path], typer.Argument(metavar="NET...", help="Networks for one acquisition.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    model: Annotated[
        str | None,
        typer.Option(help="FILE.py:Class of your own model, if the networks are for one."),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(help="Signal over noise. Default: the SNR of the first network's training."),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(min=2, help="Values of each parameter. Default: up to 10, 10,000 in all."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Noisy signals at each point.")] = 100,
    mle: Annotated[
        bool, typer.Option("--mle/--no-mle", help="Compare with the maximum-likelihood fit.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier evaluation in OUT.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate networks: bias, standard deviation, RMSE and information over a parameter grid.

    Errors are against the true parameters, whatever labels the networks were trained on. Writes
    `evaluation.nc` (NetCDF), `curves.png` and `evaluation.json`.
    """
    if snr is not None and not 0 < snr < float("inf"):
        raise InputError(f"--snr {snr:g}: expected a positive number")

    from labelwise.models.find import find_model

    options.keep_compiled_programs()
    with progress_bar(quiet) as progress:
        evaluation = _evaluate_files(
            nets,
            out,
            model=find_model(model) if model else None,
            inputs=[*nets, *options.model_file(model)],
            snr=snr,
            points=points,
            repeats=repeats,
            reference=mle,
            seed=seed,
            overwrite=overwrite,
            command=context.meta["labelwise.command"],
            progress=progress,
        )
    if not quiet:
        show_evaluation(evaluation)


def _evaluate_files(
    paths: Sequence[Path],
    folder: Path,
    *,
    model: type[SignalModel] | None,
    inputs: Sequence[Path],
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
    A blend is evaluated at alpha 1, 0.5 and 0.

    Raises:
        FileExistsError: if the folder holds an evaluation and `overwrite` is not set.
        FileNotFoundError: if there is no such network file.
        InputError: if the networks are for different acquisitions, or their model is not known.
    """
    import jax

    from labelwise.evaluation.grid import evaluate, summary
    from labelwise.fitting import MaximumLikelihood
    from labelwise.io.results import as_json
    from labelwise.io.staging import staged
    from labelwise.models.find import rebuild
    from labelwise.plots.curves import curves
    from labelwise.priors import Grid

    begin = time.perf_counter()
    with staged(folder, _FILES[-1], names=_FILES, inputs=inputs, overwrite=overwrite) as staging:
        estimators, first = _estimators(paths)
        card = first.card
        made = rebuild(card.model, model, paths[0])
        noise = first.noise
        if reference:
            estimators[MLE_NAME] = MaximumLikelihood(made, noise)
        sigma = options.sigma_for(card.sigma, snr, paths[0])
        names = [parameter.name for parameter in first.parameters]
        scaled = first.members[0].scaling.scale
        fixed = {} if scaled is None else {names[scaled]: 1.0}
        free = len(names) - len(fixed)
        count = points or min(10, max(2, int(_POINTS ** (1 / max(1, free)) + 1e-9)))
        spans = {name: (low, high) for name, (low, high) in zip(names, card.ranges, strict=True)}
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
        means = summary(dataset)
        record = {
            "command": command,
            "networks": [str(path) for path in paths],
            "snr": 1 / sigma,
            "repeats": repeats,
            "seed": seed,
            "grid": {name: values.tolist() for name, values in grid.axes.items()},
            "summary": _nested(means),
        }
        figure = curves(dataset, made.parameters, f"{type(made).__name__}, SNR {1 / sigma:.3g}")
        dataset.to_netcdf(staging / _FILES[0], engine="scipy")
        figure.savefig(staging / _FILES[1])
        (staging / _FILES[2]).write_text(as_json(record), encoding="utf-8")
    units = {parameter.name: parameter.unit for parameter in made.parameters}
    seconds = time.perf_counter() - begin
    return Evaluation(folder, 1 / sigma, grid.axes, repeats, means, units, seconds)


def _estimators(paths: Sequence[Path]) -> tuple[dict[str, Estimator], Network]:
    """The estimators in some files by name, a blend at three alphas; and the first network."""
    from labelwise.formatting import distinct_names
    from labelwise.networks.network import load

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
                f"{path.name} was trained for another prior than {paths[0].name}; the grid covers "
                f"the ranges of {paths[0].name}",
                stacklevel=3,
            )
        if network.is_blend:
            for alpha in (1.0, 0.5, 0.0):
                estimators[f"{stem}, alpha {alpha:g}"] = network.with_alpha(alpha)
        else:
            estimators[stem] = network
    return estimators, first


def _equation(network: Network) -> dict[str, Any]:
    """The identity of a network's model, without its acquisition."""
    return {name: network.card.model.get(name) for name in ("class", "constants", "signals")}


def _stems(paths: Sequence[Path]) -> list[str]:
    """Short names, whole paths where short ones are not distinct."""
    if len(set(paths)) < len(paths):
        raise InputError("networks: the same file is given twice")
    stems = [path.name.removesuffix(".safetensors") for path in paths]
    plain = len(set(stems)) == len(stems) and MLE_NAME not in stems
    return stems if plain else [str(path) for path in paths]


def _nested(summary: xr.Dataset) -> dict[str, Any]:
    """The summary as nested names: estimator, parameter, quantity."""
    return {
        str(estimator): {
            str(parameter): {
                str(name): float(values.sel(estimator=estimator, parameter=parameter))
                for name, values in summary.data_vars.items()
                if "parameter" in values.dims
            }
            for parameter in summary["parameter"].values
        }
        for estimator in summary["estimator"].values
    }
