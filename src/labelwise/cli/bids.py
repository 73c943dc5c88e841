"""The command `labelwise bids`: the maps of all subjects of a BIDS dataset, as a BIDS app."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from labelwise.cli import options
from labelwise.cli.tables import print_json, progress_bar, show_cohort
from labelwise.errors import InputError
from labelwise.formatting import json_text

if TYPE_CHECKING:
    from labelwise.bids.cohort import Plan

_LISTS = ("--participant-label", "--participant_label", "--session-label", "--session_label")


class Level(StrEnum):
    """What is done: the maps of each participant, or the table of all."""

    PARTICIPANT = "participant"
    GROUP = "group"


class MethodName(StrEnum):
    """How voxels are estimated, after the commands of that name."""

    FIT = "fit"
    MAP = "map"


class BidsApp(TyperCommand):
    """A command whose options take several values after one name, as those of BIDS apps do."""

    def parse_args(self, ctx, args):
        """Repeat the name of such an option before each of its values."""
        return super().parse_args(ctx, list(_repeated(args)))


def _repeated(args: Sequence[str]) -> Iterator[str]:
    """The arguments with a name before each value.

    Example:
        >>> list(_repeated(["in", "--model", "t2", "adc", "--jobs", "2"]))
        ['in', '--model', 't2', '--model', 'adc', '--jobs', '2']
    """
    name, first = "", False
    for each in args:
        if each.startswith("-"):
            name, first = (each, True) if each in (*_LISTS, "--model") else ("", False)
        elif name and not first:
            yield name
        elif name:
            first = False
        yield each


def bids(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a BIDS dataset.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the derivative; made if missing.")
    ],
    level: Annotated[
        Level, typer.Argument(help="Map each participant, or write the table of all that are done.")
    ],
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            "--participant_label",
            metavar="LABEL...",
            help="Participants, with or without 'sub-'. Default: all.",
        ),
    ] = None,
    session_label: Annotated[
        list[str] | None,
        typer.Option(
            "--session-label",
            "--session_label",
            metavar="LABEL...",
            help="Sessions, with or without 'ses-'. Default: all.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of derivatives with *_mask.nii.gz for each series, and perhaps regions in "
            "*_dseg.nii.gz. Default: all voxels."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="Models; each series is mapped with those whose settings it has. Default: ivim "
            "for dwi, t1_ir for IRT1, t2 for MESE and MEGRE.",
        ),
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help="By a fit of every voxel, or by a network for each protocol, which is trained for "
            "the noise levels of all these participants."
        ),
    ] = MethodName.FIT,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise of one channel as a number, or the method that estimates it, as in "
            "`labelwise fit`. Default: 'auto'."
        ),
    ] = None,
    noise: options.Noise = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Of a fit; see `labelwise fit`."),
    ] = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(metavar="ALPHA | NAME=ALPHA", help="Of a network; see `labelwise map`."),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Of a network; see `labelwise map`."),
    ] = None,
    b_tolerance: options.Tolerance = 1.0,
    jobs: Annotated[
        int, typer.Option(min=1, help="Participants at a time; 2 and more need labelwise[cluster].")
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="slurm | ADDRESS",
            help="Each of the --jobs is a job of SLURM (queue, account and time are read from "
            "Dask's jobqueue.yaml); or the address of a Dask scheduler that runs.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of each participant. Default: all, divided by --jobs."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            metavar="GB",
            help="Memory of each of the --jobs, which is ended and repeated if it needs more. "
            "Default: its share of this machine; 4 in SLURM.",
        ),
    ] = None,
    quiet: options.Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what became of each participant as JSON.")
    ] = False,
) -> None:
    """Map the participants of a BIDS dataset, and write a BIDS derivative.

    Series are dwi with b-values, IRT1, MESE and MEGRE; settings come from their sidecars. The maps
    are those of `labelwise fit` or `labelwise map`, with times in seconds. What was finished with
    the same content is kept. A participant that fails is listed, here and in logs/failed.tsv, and
    does not stop the others; the exit status is 1 then.
    """
    options.start_jax()

    from labelwise.bids.cohort import Plan, begin, group, map_cohort
    from labelwise.bids.derivatives import Roots
    from labelwise.bids.layout import subjects_of
    from labelwise.bids.workers import workers
    from labelwise.fitting import available_cores

    if level is Level.GROUP:
        table = group(out)
        if not quiet:
            typer.echo(table)
        return
    source = options.sigma_source(sigma)
    if isinstance(source, Path):
        raise InputError(f"--sigma {sigma}: a map is of one series; give a number or a method")
    models = list(dict.fromkeys(model or ()))
    if cluster:  # whose workers may be in another folder
        dataset, out, masks = dataset.absolute(), out.absolute(), masks and masks.absolute()
        models = [str(Path(name).absolute()) if ".py:" in name else name for name in models]
    subjects = subjects_of(dataset, participant_label or [])
    cores = threads or max(available_cores() // (1 if cluster else jobs), 1)
    plan = Plan(
        Roots(dataset, out, masks, ""),
        tuple(session_label or ()),
        tuple(models),
        method.value,
        options.noise_model(noise),
        source,
        options.ranges(bounds or [], "--bounds"),
        options.alphas(alpha or []),
        options.ranges(prior or [], "--prior"),
        b_tolerance / 1000,
        cores,
        context.meta["labelwise.command"],
    )
    _check(plan)
    with (
        workers(options.start_jax, jobs, cluster, threads=cores, memory=memory) as each,
        progress_bar(quiet or as_json) as progress,
    ):
        outcomes = map_cohort(begin(plan), subjects, each, progress)
    if as_json:
        schema = {"schema": "labelwise bids-participant 1"}
        print_json(json_text([schema | vars(outcome) for outcome in outcomes], indent=2))
    elif not quiet:
        show_cohort(outcomes, out)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _check(plan: Plan) -> None:
    """Refuse options that no participant can be mapped with."""
    from labelwise.models.find import find_model

    unused = {
        "--bounds": plan.method == "map" and plan.bounds,
        "--alpha": plan.method == "fit" and plan.alpha is not None,
        "--prior": plan.method == "fit" and plan.ranges,
    }
    for option, wrong in unused.items():
        if wrong:
            raise InputError(f"{option}: is not used by --method {plan.method}; leave it out")
    for name in plan.models:
        find_model(name)
    if plan.roots.masks is not None and not os.path.isdir(plan.roots.masks):
        raise InputError(f"--masks {plan.roots.masks}: there is no such folder")
