"""The command `design`: which settings to acquire, and how often, for a model and an estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_design
from labelwise.cli.tuning import detection
from labelwise.errors import InputError
from labelwise.limits import check_sigma, check_whole

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from labelwise.evaluation.design import Design
    from labelwise.models import SignalModel

_AIM = "expected rmse, rmse:NAME (several with commas), auc, auc:NAME or crlb"
_STEPS = ((10, 1), (20, 2), (50, 5), (100, 10), (200, 20), (1000, 50), (30_000, 250))


class Estimator(StrEnum):
    """What will estimate the parameters."""

    GT = "gt"
    MLE = "mle"
    FIT = "fit"


def design(
    context: typer.Context,
    model: options.ModelName,
    snr: Annotated[float, typer.Option(help="Signal at b = 0 over the noise of one channel.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    volumes: Annotated[
        int | None,
        typer.Option(min=1, help="Volumes to acquire. Default: as many as in the present ones."),
    ] = None,
    preset: options.PresetName = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Range of a parameter in the tissue. May be repeated. Default: the typical range "
            "of the model.",
        ),
    ] = None,
    minimise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="rmse | rmse:NAME | auc:NAME | crlb",
            help="RMSE of all parameters but the amplitude (default), or of some; the overlap of "
            "a parameter in two tissues (1 - AUC), given by --detect, or --from and --to; or RMSE "
            "by the bound alone. May be repeated.",
        ),
    ] = None,
    detect: options.Detect = None,
    before: options.FirstTissue = None,
    after: options.SecondTissue = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | none",
            help="Parameters whose RMSE may be 2 % above that of the present acquisition, or else "
            "of the Gaussian optimum, at most. May be repeated. Default: those not minimised.",
        ),
    ] = None,
    estimator: Annotated[
        Estimator,
        typer.Option(
            help="gt (network taught the ground truth), mle (taught fits) or fit (no network)."
        ),
    ] = Estimator.GT,
    b_max: Annotated[
        float | None, typer.Option(help="Largest b-value in s/mm². Default: 800.")
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="LIST | FILE",
            help="The settings to choose from: '0,10,50,200,800' (s/mm², ms or degrees), or a text "
            "file of them. Default: b-values up to --b-max.",
        ),
    ] = None,
    bvals: Annotated[
        Path | None, typer.Option(help="The present acquisition: an FSL .bval file, in s/mm².")
    ] = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    flip_angles: options.FlipAngles = None,
    acquisition: options.Table = None,
    constant: options.Constants = None,
    noise: options.Noise = None,
    voxels: Annotated[int, typer.Option(min=100, help="Simulated voxels.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier design in OUT.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose which settings to acquire, and how often each, for an estimator and a tissue or task.

    First by the Fisher information averaged over the tissue, then by simulation with the estimator,
    for which networks are trained. Compares with the present acquisition, if it is given, and with
    the optimum of a Gaussian Cramér-Rao bound. Writes `design.bval` (`design.tsv` for other
    settings), `design.json`, `design.png` and `design.pdf`.
    """
    kind, names = _minimised(minimise or [])
    if not 0 < snr < float("inf"):
        raise InputError(f"--snr {snr:g}: expected a positive number")
    check_sigma(1 / snr)
    check_whole("seed", seed)
    check_whole("voxels", voxels)
    if (kind == "auc") != bool(detect or before or after):
        raise InputError(
            "--minimise auc: needs two tissues, --detect FILE.toml, or --from and --to"
            if kind == "auc"
            else "--detect, --from and --to are for --minimise auc or auc:NAME; add one of these"
        )
    options.start_jax()

    from labelwise.evaluation.design import design as designed
    from labelwise.io.presets import find_preset
    from labelwise.io.staging import staged
    from labelwise.models.base import measurements
    from labelwise.priors import Uniform

    simulated = options.noise_model(noise)
    given = options.Acquisition.read(bvals, acquisition, te=te, ti=ti, flip_angle=flip_angles)
    setting = _setting(model)
    present = given.model(model, constant) if given.settings else None
    values = _candidates(setting, candidates, b_max)
    among = options.Acquisition({setting: values}, {}, []).model(model, constant)
    among = _described(among, setting, values)
    if volumes is None and present is None:
        raise InputError("--volumes: is missing; give it, or the present acquisition (--bvals)")
    spans = find_preset(preset).typical(model) if preset is not None else {}
    ranges = Uniform.typical(among, **spans | options.ranges(prior or [], "--prior"))
    file = "design.bval" if setting == "b" else "design.tsv"
    files = (file, "design.png", "design.pdf", "design.json")
    task = detection(detect, before, after)[0] if kind == "auc" else None
    inputs = [*given.sources.values(), *options.preset_file(preset).values()]
    inputs += [detect] if detect is not None else []
    inputs += options.model_file(model)
    record = {
        "command": context.meta["labelwise.command"],
        "model": model,
        "noise": noise or "rician",
        "prior": ranges.describe(),
        "seed": seed,
    }
    with (
        staged(out, files[-1], names=files, inputs=inputs, overwrite=overwrite) as folder,
        progress_bar(quiet) as progress,
    ):
        found = designed(
            among,
            simulated,
            ranges,
            1 / snr,
            measurements(present) if volumes is None and present is not None else volumes or 0,
            minimise=names,
            keep=None if keep is None else [name for name in _parts(keep) if name != "none"],
            task=task,
            estimator=estimator.value,
            present=present,
            simulated=kind != "crlb",
            voxels=voxels,
            seed=seed,
            progress=lambda done, total: progress("simulating designs", done, total, ""),
        )
        _write(folder, found, setting, file, record)
    if not quiet:
        show_design(found, setting, out / file)


def candidate_b(largest: float) -> Float[ndarray, " C"]:
    """The b-values to choose from, in ms/µm²: 0 to `largest` in s/mm², closer at low b.

    Example:
        >>> (1000 * candidate_b(26)).round(6)
        array([ 0.,  1.,  2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10., 12., 14.,
               16., 18., 20., 25., 26.])
    """
    import numpy as np

    found, last = [0.0], 0
    for end, step in _STEPS:
        found += range(last + step, end + 1, step)
        last = end
    return np.array([*(b for b in found if b < largest), largest]) / 1000


def _minimised(texts: Sequence[str]) -> tuple[str, list[str]]:
    """What to minimise (`"rmse"`, `"auc"` or `"crlb"`), and the names of its parameters."""
    names: list[str] = []
    kinds = {text.partition(":")[0] for text in texts} or {"rmse"}
    for text in texts:
        what, colon, listed = text.partition(":")
        known = what in ("rmse", "auc", "crlb")
        if not known or (colon and (what == "crlb" or not _parts([listed]))):
            raise InputError(f"--minimise {text!r}: {_AIM}")
        names += _parts([listed]) if colon else []
    if len(kinds) > 1 or (len(texts) > 1 and kinds & {*texts}):
        raise InputError(f"--minimise: {' and '.join(texts)} exclude each other; {_AIM}")
    return kinds.pop(), names


def _parts(texts: Sequence[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _setting(model: str) -> str:
    """The one setting of a model that varies between volumes."""
    from labelwise.models.base import acquisition_names
    from labelwise.models.find import find_model

    names = acquisition_names(find_model(model))
    if len(names) != 1:
        raise InputError(
            f"model {model}: has {len(names)} settings for each volume ({', '.join(names)}); only "
            "a single one can be designed"
        )
    return names[0]


def _candidates(setting: str, text: str | None, b_max: float | None) -> Float[ndarray, " C"]:
    import numpy as np

    from labelwise.io.acquisition import read_times

    if b_max is not None and (setting != "b" or text is not None):
        reason = "candidates are given" if setting == "b" else f"{setting} is designed, not b"
        raise InputError(f"--b-max: is for b-values by default, but {reason}; leave it out")
    if text is not None:
        return np.unique(read_times(text, setting))
    if setting != "b":
        raise InputError(
            f"--candidates: are missing; give the values of {setting} to choose from, such as "
            "'10,20,40,80'"
        )
    largest = 800.0 if b_max is None else b_max
    if not 20 <= largest <= 30_000:
        raise InputError(f"--b-max {largest:g}: expected 20 to 30,000 s/mm²")
    return candidate_b(largest)


def _described(model: SignalModel, setting: str, values: Float[ndarray, " C"]) -> SignalModel:
    """The model without the candidates that its equation does not describe."""
    import dataclasses

    return dataclasses.replace(model, **{setting: values[model.described()]})


def _write(folder: Path, found: Design, setting: str, file: str, record: Mapping[str, Any]) -> None:
    from labelwise.io.results import as_json
    from labelwise.plots.design import design_figure
    from labelwise.types import SETTINGS

    factor = SETTINGS[setting].factor if setting in SETTINGS else 1.0
    values = [f"{value * factor:.10g}" for value in getattr(found.model, setting)]
    text = " ".join(values) if setting == "b" else "\n".join([setting, *values])
    (folder / file).write_text(f"{text}\n", encoding="utf-8")
    figure = design_figure(found, setting)
    figure.savefig(folder / "design.png")
    # without the time of day: the same command gives the same bytes
    figure.savefig(folder / "design.pdf", metadata={"CreationDate": None})
    text = as_json({**record, **found.describe()}, "design 1")
    (folder / "design.json").write_text(text, encoding="utf-8")
