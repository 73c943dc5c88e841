"""The command `labelwise`: options in, one call of the main job, a table out.

Words become objects here. The main job is imported inside the commands that do it: matplotlib,
nibabel and the list of models take longer to import than `labelwise --help` to answer.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from labelwise.terminal import (
    notes,
    progress_bar,
    sentence,
    show_comparison,
    show_models,
    show_report,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from labelwise.models import SignalModel

_COMMAND = "labelwise.command"
_OPTIONS = {"b": "--bvals", "te": "--te", "ti": "--ti"}
_SIGMA = (
    "--sigma is required: the noise of one channel in the image's unit, as a number (12), a map of "
    "it (sigma.nii.gz), 'repeats' (from repeated volumes at b = 0) or 'background' (from outside "
    "the mask)"
)


class NoiseName(StrEnum):
    """The noise models."""

    RICIAN = "rician"
    GAUSSIAN = "gaussian"


class AverageName(StrEnum):
    """How measurements with equal settings are averaged."""

    GEOMETRIC = "geometric"
    ARITHMETIC = "arithmetic"


class _Commands(TyperGroup):
    """Commands that know how they were called, and end with a sentence when something is wrong."""

    def make_context(self, info_name, args, parent=None, **extra):
        command = shlex.join(["labelwise", *args])
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_COMMAND] = command
        return context

    def invoke(self, ctx):
        try:
            with notes():
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output left; typer ends quietly
            raise
        except (ValueError, TypeError, OSError) as error:
            if os.environ.get("LABELWISE_DEBUG") == "1":
                raise
            stderr().print(f"labelwise: {sentence(error)}")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Quantitative MRI maps from a series of images, by bounded maximum likelihood.",
    epilog="Example: `labelwise demo OUT` writes a phantom, fits it, and compares with the truth.",
)


def main() -> None:
    """The entry point of the command `labelwise`."""
    app(prog_name="labelwise")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"labelwise {version('labelwise')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example: `labelwise fit dwi.nii.gz --bvals dwi.bval --mask mask.nii.gz --model ivim "
    "--sigma repeats --out maps`"
)
def fit(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="4D NIfTI series, one volume per measurement.")],
    out: Annotated[Path, typer.Option(help="Folder for the maps; made if missing.")],
    model: Annotated[
        str,
        typer.Option(help="A name from `labelwise models`, or your own: FILE.py:Class."),
    ],
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise of one channel, in the image's unit: a number, a map.nii.gz, or a method "
            "to estimate it: 'repeats' (repeated volumes at b = 0) or 'background' (outside the "
            "mask). Required: it is never guessed."
        ),
    ] = None,
    bvals: Annotated[
        Path | None, typer.Option(help="FSL .bval file: b-values in s/mm², in any order.")
    ] = None,
    te: Annotated[
        str | None, typer.Option(help="Echo times in ms: '10,20,30', or a text file of them.")
    ] = None,
    ti: Annotated[
        str | None, typer.Option(help="Inversion times in ms: a list, or a text file of them.")
    ] = None,
    acquisition: Annotated[
        Path | None,
        typer.Option(help="All settings in one .json or .tsv table; b in s/mm², times in ms."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="NIfTI mask of the voxels to fit; all of them if left out.")
    ] = None,
    noise: Annotated[
        NoiseName, typer.Option(help="Rician for magnitude images.")
    ] = NoiseName.RICIAN,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Other bounds for a parameter, such as D_fast=2:100; may be repeated.",
        ),
    ] = None,
    average: Annotated[
        AverageName | None,
        typer.Option(help="Fit the average of volumes with equal settings, such as directions."),
    ] = None,
    b_tolerance: Annotated[
        float,
        typer.Option(min=0, help="s/mm²: b-values this close are equal, b up to this is b = 0."),
    ] = 1.0,
    max_iterations: Annotated[
        int, typer.Option(min=1, help="Give a voxel up after so many iterations.")
    ] = 200,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Cores to use; all of them if left out.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace maps that are in OUT already.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bar and no table; notes and errors stay.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run (run.json) and no table.")
    ] = False,
) -> None:
    """Fit a signal model to every voxel of a series and write parameter maps.

    Each parameter gets a map and a map of its standard error. `status.nii.gz` says what became of
    each voxel; voxels without a value are NaN. `maps.png` shows it all, `run.json` records it.
    """
    if sigma is None:
        raise ValueError(_SIGMA)
    source = _sigma(sigma)
    limits = _bounds(bounds or [])

    from labelwise.discovery import find_model
    from labelwise.noise import Gaussian, Rician
    from labelwise.pipeline import fit_image
    from labelwise.request import FitRequest

    _keep_compiled_programs()
    settings, sources = _settings(bvals, te, ti, acquisition)
    if ".py" in model:
        sources["model"] = Path(model.rpartition(":")[0])
    chosen = [name for name, given in (("b", bvals), ("te", te), ("ti", ti)) if given is not None]
    request = FitRequest(
        image=image,
        model=_model(model, find_model(model), settings, chosen),
        noise={NoiseName.RICIAN: Rician, NoiseName.GAUSSIAN: Gaussian}[noise](),
        sigma=source,
        folder=out,
        mask=mask,
        bounds=limits,
        average=average.value if average else None,
        b_tolerance=b_tolerance / 1000,
        max_iterations=max_iterations,
        threads=threads,
        overwrite=overwrite,
        sources=sources,
        command=context.meta[_COMMAND],
    )
    with nullcontext() if quiet or as_json else progress_bar() as bar:
        report = fit_image(request, bar)
    if as_json:
        typer.echo((out / "run.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        show_report(report)


@app.command(epilog="Example: `labelwise models`")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the signal models: what they need, what they estimate, in which unit and bounds."""
    from labelwise.discovery import available_models
    from labelwise.models.base import acquisition_names
    from labelwise.request import equation

    listed = {
        name: {
            "equation": equation(model),
            "acquisition": list(acquisition_names(model)),
            "needs": [
                _OPTIONS.get(setting, f"{setting} in --acquisition")
                for setting in acquisition_names(model)
            ],
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
        }
        for name, model in available_models().items()
    }
    if as_json:
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    show_models(listed)


@app.command(epilog="Example: `labelwise demo demo_out`")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the phantom and its maps.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier demo in OUT.")
    ] = False,
) -> None:
    """Write a digital phantom, fit it as a person would, and compare with the truth."""
    from labelwise.demo import SIGMA, compare, write_phantom

    phantom = write_phantom(out, overwrite=overwrite)
    console = stdout()
    console.print(f"Wrote a phantom abdomen, Rician noise of sigma {SIGMA:g}, to {out}. Now:\n")
    arguments = [*phantom.arguments, *(["--overwrite"] if overwrite else [])]
    console.print(f"{shlex.join(['labelwise', *arguments])}\n", style="bold", soft_wrap=True)
    code = app(arguments, prog_name="labelwise", standalone_mode=False)
    if code:
        raise typer.Exit(code)
    show_comparison(compare(phantom))


def _settings(
    bvals: Path | None, te: str | None, ti: str | None, table: Path | None
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The settings by name, and the files they came from."""
    from labelwise.acquisition import read_bvals, read_table, read_times

    settings, sources = {}, {}
    if table is not None:
        settings |= read_table(table)
        sources |= dict.fromkeys(settings, table)
    if bvals is not None:
        settings["b"], sources["b"] = read_bvals(bvals), bvals
    for name, text in (("te", te), ("ti", ti)):
        if text is not None:
            settings[name] = read_times(text, name)
            sources.pop(name, None)
            if len(text) < 256 and Path(text).is_file():  # a longer one is a list
                sources[name] = Path(text)
    return settings, sources


def _model(
    name: str, kind: type[SignalModel], settings: dict[str, Any], chosen: list[str]
) -> SignalModel:
    """The model with the settings that it needs; a table may hold more, `chosen` options not."""
    from labelwise.models.base import acquisition_names

    needed = acquisition_names(kind)
    missing = [setting for setting in needed if setting not in settings]
    unused = [setting for setting in chosen if setting not in needed]
    if unused and not missing:
        raise ValueError(
            f"model {name}: has no use for {_OPTIONS[unused[0]]}; it needs {', '.join(needed)} only"
        )
    if missing:
        option = _OPTIONS.get(missing[0])
        remedy = f"{option} or " if option else ""
        raise ValueError(
            f"model {name}: needs {missing[0]} for each volume; give {remedy}an --acquisition "
            f"table with a column {missing[0]!r}"
        )
    made = kind(**{setting: settings[setting] for setting in needed})
    if not kind.__module__.startswith("labelwise."):  # a user's own: find its mistakes now
        from labelwise.testing import check_signal_model

        check_signal_model(made)
    return made


def _sigma(text: str) -> Any:
    """A number, the name of a method, or the path of a map."""
    try:
        return float(text)
    except ValueError:
        pass
    if text in ("repeats", "background"):
        return text
    if text.endswith((".nii", ".nii.gz")) or Path(text).exists():
        return Path(text)
    raise ValueError(f"--sigma {text}: {_SIGMA.partition(': ')[2]} is expected")


def _bounds(texts: list[str]) -> dict[str, tuple[float, float]]:
    bounds = {}
    for text in texts:
        name, _, limits = text.partition("=")
        low, _, high = limits.partition(":")
        try:
            bounds[name] = (float(low), float(high))
        except ValueError:
            raise ValueError(
                f"--bounds {text}: expected NAME=LOW:HIGH, such as D_fast=2:100"
            ) from None
    return bounds


def _keep_compiled_programs() -> None:
    """Let JAX keep compiled programs between runs, which saves seconds of a short run.

    LABELWISE_CACHE names the folder, or is 'off'. Nothing depends on it: where it cannot be
    written, programs are compiled anew.
    """
    choice = os.environ.get("LABELWISE_CACHE", "")
    if choice == "off":
        return
    import jax

    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(choice) if choice else Path(home, "labelwise")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, full, or no home at all
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
