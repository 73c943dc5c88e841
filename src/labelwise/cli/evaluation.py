"""The command `evaluate`: bias, variance, RMSE and information of networks over a grid."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_evaluation
from labelwise.errors import InputError
from labelwise.formatting import printable
from labelwise.limits import check_whole

if TYPE_CHECKING:
    import xarray as xr

    from labelwise.networks.network import Network
    from labelwise.priors import Grid
    from labelwise.types import Estimator

MLE_NAME = "maximum likelihood"
_FILES = ("evaluation.nc", "curves.png", "evaluation.json")
_POINTS = 10_000  # of the default grid, at most


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
    b_tolerance: options.Tolerance = 1.0,
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
    check_whole("seed", seed)
    options.start_jax()

    import jax

    from labelwise.evaluation import grid as grids
    from labelwise.fitting import MaximumLikelihood
    from labelwise.io.results import as_json
    from labelwise.io.staging import staged
    from labelwise.models.find import find_model, rebuild
    from labelwise.networks.intervals import LEVEL
    from labelwise.plots.curves import performance

    kind = find_model(model) if model else None
    begin = time.perf_counter()
    inputs = [*nets, *options.model_file(model)]
    with (
        staged(out, _FILES[-1], names=_FILES, inputs=inputs, overwrite=overwrite) as staging,
        progress_bar(quiet) as progress,
    ):
        estimators, first = _estimators(nets, b_tolerance / 1000)
        made = rebuild(first.card.model, kind, nets[0])
        if mle:
            estimators[MLE_NAME] = MaximumLikelihood(
                made, first.noise, intervals=LEVEL if first.interval_kinds else None
            )
        sigma = options.sigma_for(first.card.sigma, snr, nets[0])
        grid = _grid(first, points)
        dataset = grids.evaluate(
            estimators,
            made,
            first.noise,
            sigma,
            grid,
            repeats,
            jax.random.key(seed),
            progress=lambda done, total: progress("evaluating", done, total, ""),
        )
        means = grids.summary(dataset)
        record = {
            "command": context.meta["labelwise.command"],
            "networks": [str(path) for path in nets],
            "snr": 1 / sigma,
            "repeats": repeats,
            "seed": seed,
            "grid": {name: values.tolist() for name, values in grid.axes.items()},
            "summary": _nested(means),
        }
        several = [each for each in made.parameters if dataset.sizes[each.name] > 1]
        title = f"{type(made).__name__}, SNR {1 / sigma:.3g}"
        axes = performance(dataset, list(estimators), several, title)
        dataset.to_netcdf(staging / _FILES[0], engine="scipy")
        axes[0, 0].figure.savefig(staging / _FILES[1])
        (staging / _FILES[2]).write_text(as_json(record, "evaluation 1"), encoding="utf-8")
    if not quiet:
        show_evaluation(dataset, means, out, time.perf_counter() - begin)


def _grid(network: Network, points: int | None) -> Grid:
    """The true parameters: the ranges of the prior, at S0 = 1."""
    from labelwise.fitting.many import UNROLLED
    from labelwise.priors import Grid

    names = [parameter.name for parameter in network.parameters]
    scale = network.members[0].scaling.scale
    fixed = {} if scale is None else {names[scale]: 1.0}
    free = len(names) - len(fixed)
    if free > UNROLLED:
        raise InputError(
            f"evaluate: a grid of two values of each of {free} parameters has {2**free:,} points; "
            f"it is for up to {UNROLLED}; from Python, lw.evaluate takes single values of most"
        )
    count = points or min(10, max(2, int(_POINTS ** (1 / max(1, free)) + 1e-9)))
    spans = zip(names, network.card.ranges, strict=True)
    return Grid.over({name: (low, high) for name, (low, high) in spans}, count, fixed)


def _estimators(paths: Sequence[Path], b_tolerance: float) -> tuple[dict[str, Estimator], Network]:
    """The estimators in some files by name, a blend at three alphas; and the first network."""
    from labelwise.formatting import distinct_names
    from labelwise.networks.network import load

    networks = [load(path) for path in paths]
    first, estimators = networks[0], {}
    for path, stem, network in zip(paths, _stems(paths), networks, strict=True):
        network.check_acquisition(first.card.acquisition, b_tolerance)
        alike = network.card.model["acquisition"] == first.card.model["acquisition"]
        for what, ours, theirs in (
            ("model", _equation(first, alike), _equation(network, alike)),
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


def _equation(network: Network, alike: bool) -> dict[str, Any]:
    """The identity of a network's model without its acquisition; its signals if those are alike."""
    names = ("class", "constants", "signals" if alike else "source")
    return {name: network.card.model.get(name) for name in names}


def _stems(paths: Sequence[Path]) -> list[str]:
    """Short names, whole paths where short ones are not distinct."""
    if len(set(paths)) < len(paths):
        raise InputError("networks: the same file is given twice")
    stems = [printable(path.name.removesuffix(".safetensors")) for path in paths]
    plain = len(set(stems)) == len(stems) and MLE_NAME not in stems
    return stems if plain else [printable(str(path)) for path in paths]


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
