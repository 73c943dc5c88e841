"""The command `labelwise`: parses options, calls one function of the package, prints a table.

Only options are imported here. Each command imports what it calls, since NumPy, JAX and matplotlib
are slow to import, and `labelwise --help` does not need them.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup

from labelwise import interrupts
from labelwise.cli import bids as bids_command
from labelwise.cli import design as design_command
from labelwise.cli import evaluation as evaluation_command
from labelwise.cli import log, options
from labelwise.cli import networks as network_commands
from labelwise.cli import study as study_commands
from labelwise.cli import tuning as tune_command
from labelwise.cli.tables import (
    notes,
    pasted,
    print_json,
    progress_bar,
    show_comparison,
    show_models,
    show_presets,
    show_protocols,
    show_report,
    stderr,
    stdout,
    use_ascii_where_needed,
)
from labelwise.errors import InputError
from labelwise.formatting import json_text, sentence

if TYPE_CHECKING:
    from labelwise.mapping.summary import Report

_CLOSED = 141  # as of processes that SIGPIPE ended
_COMMAND, _NOTES = "labelwise.command", "labelwise.notes"
_LOG_FILE = "--log-file"


class _Commands(TyperGroup):
    """Commands that record their command line and turn errors into one sentence."""

    def make_context(self, info_name, args, parent=None, **extra):
        command = shlex.join(["labelwise", *args])
        with _errors_in_words(), _whole_output():  # of --help
            args = _log_file_first(args)
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_COMMAND] = command
        return context

    def invoke(self, ctx):
        with notes() as shown, _errors_in_words(), _whole_output():
            ctx.meta[_NOTES] = shown
            return super().invoke(ctx)

    def main(
        self,
        args=None,
        prog_name=None,
        complete_var=None,
        standalone_mode=True,
        windows_expand_args=True,
        **extra,
    ):
        """Run the command line; typer handles usage errors itself."""
        use_ascii_where_needed()

        def run():
            rest = (complete_var, standalone_mode, windows_expand_args)
            return super(_Commands, self).main(args, prog_name, *rest, **extra)

        if not standalone_mode:
            return run()
        try:
            return run()
        except SystemExit as error:
            log.write("exit status", str(error.code or 0))
            raise
        except _Interrupted:
            if interrupts.received():
                interrupts.leave_at_once()  # a second one must not interrupt the sentence
            _end(interrupts.sentence(), interrupts.status())
        except _StdoutError as error:
            _end(f"stdout {error} before all was printed", _CLOSED if error.closed else 2)
        except Exception as error:
            if os.environ.get("LABELWISE_DEBUG") == "1":
                raise
            if isinstance(error, InputError | OSError):
                _end(sentence(error), 2)
            command = shlex.join(["labelwise", *(sys.argv[1:] if args is None else args)])
            _end(_bug(error, command), 1)
        finally:
            log.end()


def _log_file_first(args: list[str]) -> list[str]:
    """The arguments with `--log-file` before the command, where it may follow the command, too.

    Example:
        >>> _log_file_first(["fit", "dwi.nii", "--log-file", "a.log", "--quiet"])
        ['--log-file', 'a.log', 'fit', 'dwi.nii', '--quiet']
    """
    for at, each in enumerate(args):
        if each.partition("=")[0] == _LOG_FILE:
            if args[at:] == [_LOG_FILE]:  # without its value, which is not the command
                return [each]
            end = at + 1 + (each == _LOG_FILE)
            return [*args[at:end], *args[:at], *args[end:]]
    return args


def _end(message: str, status: int) -> NoReturn:
    stderr().print(f"labelwise: {message}")
    log.write("error", message)
    log.write("exit status", str(status))
    sys.exit(status)


class _Interrupted(BaseException):
    """An interrupt; typer has its own treatment of KeyboardInterrupt."""


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Turn an interrupt, an error of a person's own model, and a lack of memory into their class.

    Raises:
        InputError: if the code of a model raised an error or ended the process, or memory was not
            sufficient.
    """
    try:
        yield
    except _Interrupted:
        raise
    except BaseException as error:
        if interrupts.received() or isinstance(error, KeyboardInterrupt):
            raise _Interrupted from error
        if isinstance(error, InputError):
            raise
        find = sys.modules.get("labelwise.models.find")  # imported if a model's file was run
        if find and (words := find.error_of_model(error)):
            raise InputError(words) from error
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise InputError(f"not enough memory ({error})") from error
        raise
    if interrupts.received():  # a library dropped it
        raise _Interrupted


class _StdoutError(Exception):
    """Results cannot be printed; files are not affected. `closed`: nobody reads them any more."""

    def __init__(self, reason: str, closed: bool) -> None:
        super().__init__(reason)
        self.closed = closed


@contextmanager
def _whole_output() -> Iterator[None]:
    """Notice that stdout cannot be written before Python does when it ends.

    Raises:
        _StdoutError: if it is closed, as by `| head`, or its disk is full. As `OSError` or
            `SystemExit`, click and rich would end the process without a word.
    """
    try:
        yield
    except (SystemExit, BrokenPipeError) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _discard_stdout()
        raise _StdoutError("was closed", closed=True) from None
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as error:
                _discard_stdout()
                closed = isinstance(error, BrokenPipeError)
                reason = "was closed" if closed else f"failed ({error.strerror})"
                raise _StdoutError(reason, closed) from None


def _discard_stdout() -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _bug(error: Exception, command: str) -> str:
    """The message for an unexpected error, whose traceback is saved to a file."""
    message = f"a bug in labelwise ({type(error).__name__}: {sentence(error)}); please report it"
    text = f"{command}\nlabelwise {version('labelwise')}\n\n{traceback.format_exc()}"
    try:
        handle, path = tempfile.mkstemp(prefix="labelwise-traceback-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{message}; its traceback could not be saved, LABELWISE_DEBUG=1 shows it"
    return f"{message}; the traceback is in {path}, and LABELWISE_DEBUG=1 prints it"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Quantitative MRI maps from a series of images, by maximum likelihood or by a network.",
    epilog="To start: `labelwise demo OUT` maps a phantom and compares with the true maps. "
    "Exit status: 0 if all is done; 2 if the input cannot be used; 1 for a bug in labelwise, or if "
    "a participant of `bids` failed; "
    f"130 if interrupted; {_CLOSED} if stdout was closed early (`| head`), when files are written "
    "nonetheless.",
)


def main() -> None:
    """Run the command line of this process."""
    interrupts.raise_them()
    try:
        app(prog_name="labelwise")
    finally:
        interrupts.leave_at_once()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"labelwise {version('labelwise')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            _LOG_FILE,
            metavar="FILE",
            envvar="LABELWISE_LOG_FILE",
            help="Append the notes, stages and errors of the command to FILE, with times in UTC. "
            "May follow the command, too.",
        ),
    ] = None,
) -> None:
    if log_file is not None:
        log.begin(log_file, context.meta[_COMMAND])


@app.command(
    epilog="Example: `labelwise fit dwi.nii.gz --bvals dwi.bval --mask mask.nii.gz --model ivim "
    "--sigma repeats --out maps`"
)
def fit(
    context: typer.Context,
    image: options.Image,
    out: options.Out,
    model: options.ModelName,
    sigma: options.Sigma = None,
    bvals: options.Bvals = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    flip_angles: options.FlipAngles = None,
    bvecs: options.Bvecs = None,
    constant: options.Constants = None,
    acquisition: options.Table = None,
    mask: options.Mask = None,
    noise: options.Noise = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Change the bounds of a parameter: D_fast=2:100. May be repeated.",
        ),
    ] = None,
    preset: options.PresetName = None,
    average: Annotated[
        options.AverageName | None,
        typer.Option(help="Average volumes with equal settings (directions, repeats) first."),
    ] = None,
    exclude: options.Exclude = None,
    b_scale: options.BScale = None,
    uncertainty: options.UncertaintyName = options.UncertaintyKind.both,
    signed: options.Signed = False,
    b_tolerance: options.Tolerance = 1.0,
    max_iterations: Annotated[
        int, typer.Option(min=1, help="Iterations after which a voxel fails.")
    ] = 200,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    fill: options.Fill = math.nan,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit a signal model to every voxel by maximum likelihood and write parameter maps.

    Each parameter gets a map and maps of the ends of its 95 % confidence interval. `status.nii.gz`
    holds the outcome of the fit in each voxel; failed voxels are NaN. Measurements far below what
    the others of their voxel predict, and clipped ones, are left out (`left_out.nii.gz`).
    `report.html` is a page to look at, `maps.png` an overview, `run.json` the record of the run.
    The exit status is 2 if no voxel has a value.
    """
    source, limits = options.sigma_source(sigma), options.ranges(bounds or [], "--bounds")

    options.start_jax()

    from labelwise.io.presets import find_preset
    from labelwise.mapping.images import fit_image

    settings = options.Acquisition.read(
        bvals, acquisition, bvecs, image, te=te, ti=ti, flip_angle=flip_angles
    )
    excluded, marked = options.exclusions(exclude or [], settings.settings)
    name = options.signed_model(model, signed)
    if preset is not None:
        limits = find_preset(preset).bounds(name) | limits
    made = settings.model(name, constant, maps=True)
    with progress_bar(quiet or as_json) as progress:
        report = fit_image(
            image,
            made,
            sigma=source,
            out=out,
            mask=mask,
            noise=options.noise_model(noise, signed),
            exclude=excluded,
            exclude_map=marked,
            b_scale=b_scale,
            constants=settings.maps,
            uncertainty=uncertainty.value,
            bounds=limits,
            average=average.value if average else None,
            b_tolerance=b_tolerance / 1000,
            max_iterations=max_iterations,
            threads=threads,
            overwrite=overwrite,
            fill=fill,
            sources=settings.sources | options.preset_file(preset),
            command=context.meta[_COMMAND],
            notes=context.meta[_NOTES],
            progress=progress,
        )
    _show(report, quiet, as_json)


@app.command(
    "map",
    epilog="Example: `labelwise map dwi.nii.gz --bvals dwi.bval --mask mask.nii.gz --model ivim "
    "--sigma repeats --out maps`",
)
def map_(
    context: typer.Context,
    image: options.Image,
    out: options.Out,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from `labelwise models`, or FILE.py:Class for your own. Default: that of "
            "the network given by --net.",
        ),
    ] = None,
    sigma: options.Sigma = None,
    bvals: options.Bvals = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    flip_angles: options.FlipAngles = None,
    bvecs: options.Bvecs = None,
    constant: options.Constants = None,
    acquisition: options.Table = None,
    mask: options.Mask = None,
    net: Annotated[
        Path | None,
        typer.Option(
            help="A trained network. Default: one of the cache for this acquisition and noise "
            "levels, or a new one."
        ),
    ] = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALPHA | NAME=ALPHA",
            help="Bias-variance trade-off, from 0 (least variance, biased towards the middle of "
            "the prior) to 1 (least bias, the default). For one parameter: D_fast=0.3; may be "
            "repeated.",
        ),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Training range of a parameter: D_fast=5:100. May be repeated.",
        ),
    ] = None,
    preset: options.PresetName = None,
    noise: options.Noise = None,
    exclude: options.Exclude = None,
    b_scale: options.BScale = None,
    uncertainty: options.UncertaintyName = options.UncertaintyKind.both,
    signed: options.Signed = False,
    b_tolerance: options.Tolerance = 1.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Cores for reading and writing; the network uses all."),
    ] = None,
    overwrite: options.Overwrite = False,
    fill: options.Fill = math.nan,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Write parameter maps by a neural network; without --net, one is trained for these images.

    The network is trained on simulated signals of this acquisition, at the noise levels of the
    series, and cached. One of the cache is used that was trained for the same measurements, in any
    order, and at least these noise levels (`labelwise train --protocol` makes some). The maps are
    those of `labelwise fit`, without on_bound and iterations; `outside.nii.gz` marks voxels outside
    the training range.
    """
    source, spans = options.sigma_source(sigma), options.ranges(prior or [], "--prior")
    alphas = options.alphas(alpha or [])

    options.start_jax()

    from labelwise.io.presets import find_preset
    from labelwise.mapping.by_network import model_of
    from labelwise.mapping.images import map_image

    settings = options.Acquisition.read(
        bvals, acquisition, bvecs, image, te=te, ti=ti, flip_angle=flip_angles
    )
    excluded, marked = options.exclusions(exclude or [], settings.settings)
    name = options.signed_model(model or model_of(net), signed)
    if preset is not None:
        spans = find_preset(preset).typical(name) | spans
    made = settings.model(name, constant)
    with progress_bar(quiet or as_json) as progress:
        report = map_image(
            image,
            made,
            sigma=source,
            out=out,
            mask=mask,
            noise=options.noise_model(noise, signed),
            exclude=excluded,
            exclude_map=marked,
            b_scale=b_scale,
            uncertainty=uncertainty.value,
            net=net,
            alpha=alphas,
            ranges=spans,
            b_tolerance=b_tolerance / 1000,
            threads=threads,
            overwrite=overwrite,
            fill=fill,
            sources=settings.sources | options.preset_file(preset),
            command=context.meta[_COMMAND],
            notes=context.meta[_NOTES],
            progress=progress,
        )
    _show(report, quiet, as_json)


@app.command(epilog="Example: `labelwise report maps dwi.nii.gz --mask mask.nii.gz`")
def report(
    maps: Annotated[Path, typer.Argument(metavar="MAPS", help="The folder of the maps.")],
    image: options.Image,
    mask: options.Mask = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:Class", help="The model of the maps, if it is your own."),
    ] = None,
    net: Annotated[
        Path | None,
        typer.Option(help="The network of the maps, if it is not in MAPS."),
    ] = None,
) -> None:
    """Write the page `report.html` of maps that were made earlier; nothing is estimated.

    IMAGE and `--mask` are those of that run, which is checked.
    """
    options.start_jax()

    from labelwise.mapping.again import write_page
    from labelwise.models.find import find_model

    path = write_page(maps, image, mask, model=find_model(model) if model else None, net=net)
    typer.echo(path)


def _show(report: Report, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json((report.folder / "run.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        show_report(report)
    if not any(status.has_values for status in report.voxels):
        raise typer.Exit(2)  # the maps hold the reasons


app.command(
    epilog="Example: `labelwise train --model ivim --bvals dwi.bval --snr 5:60 --out n.safetensors`"
)(network_commands.train)
app.command(epilog="Example: `labelwise evaluate net.safetensors --snr 15 --out evaluation`")(
    evaluation_command.evaluate
)
app.command(
    epilog="Example: `labelwise tune n.safetensors --snr 15 --from f=0.1:0.2 --to f=0.25:0.4 --out "
    "tuned`"
)(tune_command.tune)
app.command(
    epilog="Example: `labelwise design --model ivim --preset liver --volumes 24 --snr 20 "
    "--minimise rmse:D_fast --bvals dwi.bval --out design`"
)(design_command.design)
app.command(epilog="Example: `labelwise export onnx net.safetensors net.onnx`")(
    network_commands.export
)


app.add_typer(study_commands.study, name="study")
app.command(
    cls=bids_command.BidsApp,
    epilog="Example: `labelwise bids DATASET OUT participant --masks DATASET/derivatives/masks "
    "--jobs 2`",
)(bids_command.bids)


@app.command(epilog="Example: `labelwise models`")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the signal models by what they measure: settings, parameters, units and bounds."""
    options.start_jax()

    from labelwise.mapping.request import equation
    from labelwise.models.base import acquisition_names, constant_names
    from labelwise.models.find import available_models

    listed = {}
    for name, model in available_models().items():
        settings = [
            options.SETTING_OPTIONS.get(setting, f"{setting} in --acquisition")
            for setting in acquisition_names(model)
        ]
        required, optional = constant_names(model)
        listed[name] = {
            "measures": model.measures,
            "equation": equation(model),
            "acquisition": list(acquisition_names(model)),
            "needs": [
                *dict.fromkeys(settings),
                *(f"--constant {each}=VALUE" for each in required),
            ],
            "minimum": model.minimum,
            "constants": [*required, *optional],
            "parameters": [
                {
                    "name": parameter.name,
                    "unit": parameter.unit,
                    "bounds": [
                        bound if math.isfinite(bound) else None for bound in parameter.bounds
                    ],
                }
                for parameter in model.parameters
            ],
            "derived": [{"name": each.name, "unit": each.unit} for each in model.derived],
        }
    if as_json:
        print_json(json_text(listed, indent=2))
        return
    show_models(listed)


@app.command(epilog="Example: `labelwise presets`")
def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the presets: ranges of parameters by tissue, with what their sources report."""
    from labelwise.io.presets import presets as known

    listed = {
        name: [entry.model_dump() for entry in preset.entries] for name, preset in known().items()
    }
    if as_json:
        print_json(json_text(listed, indent=2))
        return
    show_presets(listed)


@app.command(epilog="Example: `labelwise protocols`")
def protocols(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the protocols: acquisitions of published studies, for `labelwise train --protocol`."""
    from labelwise.io.protocols import protocols as known

    listed = {name: each.model_dump(exclude_none=True) for name, each in known().items()}
    if as_json:
        print_json(json_text(listed, indent=2))
        return
    show_protocols(listed)


@app.command(epilog="Example: `labelwise demo demo_out`")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the phantom and its maps.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier demo in OUT.")
    ] = False,
) -> None:
    """Write a digital phantom, map it by fit and network, and compare with the true maps."""
    options.start_jax()

    from labelwise.phantoms.abdomen import SIGMA, compare, write_phantom

    phantom = write_phantom(out, overwrite=overwrite)
    console = stdout()
    console.print(f"Wrote a phantom abdomen, Rician noise of sigma {SIGMA:g}, to {out}.")
    for title, arguments in zip(("By a fit", "By a network"), phantom.arguments, strict=True):
        arguments = [*arguments, *(["--overwrite"] if overwrite else [])]
        console.print(f"\n{title}:\n")
        words = " ".join(map(pasted, ["labelwise", *arguments]))
        console.print(f"{words}\n", style="bold", soft_wrap=True)
        code = app(arguments, prog_name="labelwise", standalone_mode=False)
        if code:
            raise typer.Exit(code)
    show_comparison(compare(phantom))
