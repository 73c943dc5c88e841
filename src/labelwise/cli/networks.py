"""The commands `train` and `export`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_training, stderr, stdout
from labelwise.types import InputError

if TYPE_CHECKING:
    from labelwise.networks.network import Network
    from labelwise.networks.plan import TrainingPlan
    from labelwise.types import Progress


class RecipeName(StrEnum):
    """How to train."""

    FAST = "fast"
    PAPER = "paper"


class OnBound(StrEnum):
    """What becomes of labels on a bound."""

    DROP = "drop"
    KEEP = "keep"


class Start(StrEnum):
    """Where the fits that make labels start."""

    TRUTH = "truth"
    SEARCH = "search"


class Loss(StrEnum):
    """What an error costs."""

    SQUARED = "squared"
    ABSOLUTE = "absolute"
    HUBER = "huber"


class Format(StrEnum):
    """What networks are exported to."""

    ONNX = "onnx"


def train(
    out: Annotated[Path, typer.Option(help="The network's .safetensors file.")],
    model: options.ModelName,
    bvals: options.Bvals = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    acquisition: options.Table = None,
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="SNR | LOW:HIGH",
            help="Signal at b = 0 over the noise of one channel; a range makes one network for all "
            "of it.",
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="SIGMA | LOW:HIGH", help="The same the other way round: 1 / SNR, or a range."
        ),
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            help="What it is taught: mle-rician, mle-gaussian, gt, selfsup, selfsup-rician, "
            "mix:0.5 (half mle, half gt), or dial: mle and gt, to be blended when used."
        ),
    ] = "dial",
    noise: options.Noise = "rician",
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH | paper",
            help="Another range of a parameter, may be repeated; or the ranges of the paper.",
        ),
    ] = None,
    recipe: Annotated[
        RecipeName, typer.Option(help="How: fast, or section 3.4 of the paper (fixed SNR).")
    ] = RecipeName.FAST,
    signals: Annotated[int | None, typer.Option(min=1, help="Voxels to simulate.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over them, at most.")] = None,
    restarts: Annotated[int | None, typer.Option(min=1, help="Networks to choose from.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Nodes in a hidden layer.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Hidden layers.")] = None,
    activation: Annotated[str | None, typer.Option(help="elu, relu, tanh or softplus.")] = None,
    loss: Annotated[Loss, typer.Option(help="What an error costs.")] = Loss.SQUARED,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FACTOR",
            help="Weigh the errors of a parameter so much more than 1 / its mean; may be repeated.",
        ),
    ] = None,
    on_bound: Annotated[
        OnBound, typer.Option(help="Labels on a bound: leave them out, or learn them too.")
    ] = OnBound.DROP,
    start: Annotated[
        Start, typer.Option(help="Fits for labels start from the truth, or from a search.")
    ] = Start.TRUTH,
    absolute: Annotated[
        bool,
        typer.Option(
            "--absolute",
            help="Expect signals as simulated (S0 about 1) instead of dividing by b = 0.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a network of this name.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a network for an acquisition and a noise level, taught the label of your choice.

    Signals are simulated, labelled and learnt; what comes out is one file that `labelwise map
    --net` and `labelwise evaluate` read. Ctrl-C leaves a checkpoint for `--resume`.
    """
    level = _level(snr, sigma)
    if recipe is RecipeName.PAPER and isinstance(level, tuple):
        raise InputError("--recipe paper: is for one SNR, not a range; leave --recipe out")
    prior = prior or []

    from labelwise.networks.plan import TrainingPlan, labels_named
    from labelwise.networks.recipe import Recipe
    from labelwise.priors import Uniform

    options.keep_compiled_programs()
    made = options.Acquisition.read(bvals, te, ti, acquisition).model(model)
    simulated = options.noise_model(noise)
    if "paper" in prior:
        if len(prior) > 1:
            raise InputError("--prior paper: is for all parameters; give it alone")
        ranges = Uniform.paper()
    else:
        ranges = Uniform.typical(made, **options.ranges(prior, "--prior"))
    known = Recipe.paper if recipe is RecipeName.PAPER else Recipe.fast
    if recipe is RecipeName.FAST and isinstance(level, tuple):
        known = Recipe.every_level
    changes: dict[str, Any] = {
        "signals": signals,
        "epochs": epochs,
        "restarts": restarts,
        "width": width,
        "depth": depth,
        "activation": activation,
    }
    plan = TrainingPlan(
        model=made,
        noise=simulated,
        prior=ranges,
        sigma=level,
        labels=labels_named(label, made, simulated, start.value),
        recipe=known(**{k: v for k, v in changes.items() if v is not None}, loss=loss.value),
        seed=seed,
        normalise=not absolute,
        on_bound=on_bound.value,
        weights=_weights(weight or [], [p.name for p in made.parameters], ranges.ranges),
    )
    with progress_bar(quiet) as progress:
        try:
            network, seconds = _train_to_file(
                plan,
                out,
                cache=options.cache_folder("labels"),
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            )
        except KeyboardInterrupt:
            stderr().print(f"labelwise: stopped; the same command with --resume goes on ({out})")
            raise typer.Exit(130) from None
    if not quiet:
        show_training(network, out, seconds)


def _train_to_file(
    plan: TrainingPlan,
    path: Path,
    *,
    cache: Path | None,
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> tuple[Network, float]:
    """Train the networks of a plan and save them; return them and the seconds it took."""
    from labelwise.io.files import refuse_existing
    from labelwise.networks.train import joined, train_networks

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


def export(
    kind: Annotated[Format, typer.Argument(metavar="onnx", help="The format.")],
    net: Annotated[Path, typer.Argument(help="A trained network.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    alpha: Annotated[
        list[str] | None,
        typer.Option(metavar="ALPHA | NAME=ALPHA", help="Where a dial is to stand."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of this name.")
    ] = False,
) -> None:
    """Write a network for other software: inputs `signal` and `sigma`, output `params`."""
    from labelwise.io.files import refuse_existing
    from labelwise.networks.network import load
    from labelwise.networks.onnx import export_onnx

    network, dial = load(net), options.alphas(alpha or [])
    refuse_existing(out, overwrite)
    if dial is not None:
        if not network.is_blend:
            raise InputError(f"alpha: {net.name} holds a single network; leave --alpha out")
        network = network.with_alpha(dial)
    export_onnx(network, out)
    stdout().print(f"{out}: signal (N, M), sigma (N, 1) to params (N, P)", markup=False)


def _level(snr: str | None, sigma: str | None) -> float | tuple[float, float]:
    """Sigma where the signal is 1, or the lowest and highest of a range."""
    if (snr is None) == (sigma is None):
        raise InputError(
            "--snr or --sigma: expected one of them: --snr 15, or --snr 5:60 for a network of all "
            "noise levels in that range"
        )
    text, option = (snr, "--snr") if snr is not None else (sigma, "--sigma")
    try:
        numbers = [float(part) for part in str(text).split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < float("inf") for number in numbers):
        raise InputError(f"{option} {text}: expected a positive number, or LOW:HIGH")
    levels = sorted(1 / number if option == "--snr" else number for number in numbers)
    if len(levels) == 1:
        return levels[0]
    if levels[0] == levels[1]:
        raise InputError(f"{option} {text}: the two ends of a range must differ")
    return levels[0], levels[1]


def _weights(texts: Sequence[str], names: list[str], ranges: Any) -> list[float] | None:
    """W: 1 / the middle of each range, times what was asked for."""
    if not texts:
        return None
    factors = dict.fromkeys(names, 1.0)
    for text in texts:
        name, _, number = text.partition("=")
        if name not in factors:
            raise InputError(
                f"--weight {text}: no parameter {name!r}; there are {', '.join(names)}"
            )
        try:
            factors[name] = float(number)
        except ValueError:
            raise InputError(f"--weight {text}: expected NAME=FACTOR, such as D_fast=10") from None
    middles = [abs(low + high) / 2 for low, high in ranges]
    return [factors[name] / middle for name, middle in zip(names, middles, strict=True)]
