"""The commands `labelwise study paper`, `study run` and `study invivo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_study
from labelwise.errors import InputError

if TYPE_CHECKING:
    from labelwise.study.config import Study
    from labelwise.study.scan import Scan

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the report; made if missing.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="A first look in under a minute, with small training sets.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the report of another study in OUT.")
]
Trainings = Annotated[
    int | None,
    typer.Option(min=1, help="Repeat every training, to include its variability."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed.")]

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Reproduce the paper, or do the same for another model, acquisition or scan.",
)


@study.command(epilog="Example: `labelwise study paper OUT`")
def paper(
    context: typer.Context,
    out: Out,
    quick: Quick = False,
    s0_fixed: Annotated[
        bool,
        typer.Option("--s0-fixed", help="Test at S0 = 1 only, as the published code does."),
    ] = False,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="Also train networks of width 150 (section 3.2)."),
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also train networks of depth 10 (section 3.2).")
    ] = False,
    trainings: Trainings = None,
    seed: Seed = None,
    toml: Annotated[
        bool,
        typer.Option("--toml", help="Only write the settings to OUT, a TOML file to edit."),
    ] = False,
    overwrite: Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Regenerate the paper: its table, figures and claims, on one page, `OUT/report.html`.

    Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5. Its in vivo scan is not public; a simulated
    pelvis replaces it. The same command continues an interrupted study.
    """
    options.start_jax()

    from labelwise.study.config import paper as published

    changes: dict[str, Any] = {"wide": 150 if wide else 0, "deep": 10 if deep else 0}
    if s0_fixed:
        changes["fixed"] = {"S0": 1.0}
    _run(
        _changed(published(**changes), quick, trainings, seed), out, context, toml, overwrite, quiet
    )


@study.command(epilog="Example: `labelwise study run my.toml OUT`")
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The settings of the study.")],
    out: Out,
    quick: Quick = False,
    trainings: Trainings = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Run your own study: another model, acquisition, noise level or recipe.

    Start from the settings of the paper: `labelwise study paper my.toml --toml`.
    """
    options.start_jax()

    from labelwise.study.config import read_study

    _run(_changed(read_study(file), quick, trainings, seed), out, context, False, overwrite, quiet)


@study.command(
    epilog="Example: `labelwise study invivo dwi.nii.gz OUT --bvals dwi.bval --mask mask.nii.gz "
    "--model ivim`"
)
def invivo(
    context: typer.Context,
    image: options.Image,
    out: Out,
    model: options.ModelName,
    bvals: options.Bvals = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    acquisition: options.Table = None,
    mask: options.Mask = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Noise of one channel. Default: from the repeats at b = 0."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=2, help="Repeats of the acquisition in the series. Default: from its settings."
        ),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH", help="Training range of a parameter. May be repeated."
        ),
    ] = None,
    noise: options.Noise = None,
    b_tolerance: options.Tolerance = 1.0,
    quick: Quick = False,
    trainings: Trainings = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Repeat the paper's in vivo study on your own scan with repeated acquisitions.

    The estimate from all repeats is the gold standard. Every method is compared with it on each
    single acquisition, and evaluated on simulated signals of this acquisition.
    """
    spans = options.ranges(prior or [], "--prior")
    if sigma is not None and not 0 < sigma < float("inf"):
        raise InputError(f"--sigma {sigma:g}: expected a positive number, in the image's unit")

    options.start_jax()

    from labelwise.models.base import acquisition_names
    from labelwise.study.scan import in_vivo_study, read_scan

    settings = options.Acquisition.read(bvals, acquisition, te=te, ti=ti)
    made = settings.model(model)
    scan = read_scan(
        image,
        {name: settings.settings[name] for name in acquisition_names(type(made))},
        mask=mask,
        sigma=sigma,
        repeats=repeats,
        tolerance=b_tolerance / 1000,
        noise=options.noise_model(noise),
    )
    described = in_vivo_study(scan, made, model, options.noise_model(noise), spans)
    read = [*image, *settings.sources.values(), *([mask] if mask else [])]
    described = _changed(replace(described, sources=tuple(read)), quick, trainings, seed)
    _run(described, out, context, False, overwrite, quiet, scan)


def _changed(study: Study, quick: bool, trainings: int | None, seed: int | None) -> Study:
    study = study.quick() if quick else study
    changes: dict[str, Any] = {"trainings": trainings, "seed": seed}
    return replace(study, **{name: value for name, value in changes.items() if value is not None})


def _run(
    study: Study,
    out: Path,
    context: typer.Context,
    toml: bool,
    overwrite: bool,
    quiet: bool,
    scan: Scan | None = None,
) -> None:
    from labelwise.io.files import refuse_existing
    from labelwise.study.config import to_toml

    if toml:
        from labelwise.io.files import write_whole

        refuse_existing(out, overwrite)
        write_whole(out, to_toml(study).encode())
        return
    from labelwise.study.run import run_study

    with progress_bar(quiet) as progress:
        result = run_study(
            study,
            out,
            scan=scan,
            command=context.meta["labelwise.command"],
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        show_study(result)
