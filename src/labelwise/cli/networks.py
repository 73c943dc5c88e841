"""The commands `train` and `export`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_training, stderr, stdout
from labelwise.errors import InputError

if TYPE_CHECKING:
    from labelwise.models import SignalModel
    from labelwise.networks.network import Network
    from labelwise.networks.plan import TrainingPlan
    from labelwise.noise import NoiseModel
    from labelwise.priors import Prior
    from labelwise.types import Progress


class RecipeName(StrEnum):
    """The training recipe."""

    FAST = "fast"
    PAPER = "paper"


class OnBound(StrEnum):
    """How labels on a bound are treated."""

    DROP = "drop"
    KEEP = "keep"


class Start(StrEnum):
    """Where the fits that make labels start."""

    TRUTH = "truth"
    SEARCH = "search"


class Loss(StrEnum):
    """The loss function."""

    SQUARED = "squared"
    ABSOLUTE = "absolute"
    HUBER = "huber"


class Format(StrEnum):
    """The format of an exported network."""

    ONNX = "onnx"


_OF_FILES = (
    *("label", "recipe", "signals", "epochs", "restarts", "width", "depth", "activation", "loss"),
    *("weight", "on_bound", "start", "absolute", "intervals", "seed", "resume", "overwrite"),
)
"""Options of `train` that a network for `map` does not have."""


def train(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The network's .safetensors file. Default: the cache, where `labelwise map` finds "
            "it for series of this acquisition, in any order."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from `labelwise models`, or FILE.py:Class for your own. Default: that of "
            "--protocol."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The acquisition of a published study, from `labelwise protocols`.",
        ),
    ] = None,
    bvals: options.Bvals = None,
    te: options.EchoTimes = None,
    ti: options.InversionTimes = None,
    flip_angles: options.FlipAngles = None,
    bvecs: options.Bvecs = None,
    constant: options.Constants = None,
    acquisition: options.Table = None,
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="SNR | LOW:HIGH",
            help="Signal at b = 0 over the noise of one channel. A range trains one network for "
            "all SNRs in it. Default for a network in the cache: 1.5:100.",
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="SIGMA | LOW:HIGH", help="Instead of --snr: 1 / SNR, or a range of it."
        ),
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            "--label",  # typer 0.27 would call it --LABEL
            metavar="LABEL",
            help="Training labels: mle-rician, mle-gaussian, gt (ground truth), selfsup, "
            "selfsup-rician, mix:0.5 (half mle, half gt), or blend: two networks, trained on mle "
            "and on gt, whose outputs --alpha weights when they are used.",
        ),
    ] = "blend",
    noise: options.Noise = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH | paper",
            help="Range of a parameter, may be repeated; or the ranges of the paper.",
        ),
    ] = None,
    preset: options.PresetName = None,
    recipe: Annotated[
        RecipeName, typer.Option(help="fast, or paper: section 3.4, for one SNR.")
    ] = RecipeName.FAST,
    signals: Annotated[int | None, typer.Option(min=1, help="Voxels to simulate.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Maximum number of epochs.")] = None,
    restarts: Annotated[
        int | None, typer.Option(min=1, help="Trainings, of which the best is kept.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Nodes in a hidden layer.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Hidden layers.")] = None,
    activation: Annotated[str | None, typer.Option(help="elu, relu, tanh or softplus.")] = None,
    loss: Annotated[Loss, typer.Option(help="Loss function.")] = Loss.SQUARED,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FACTOR",
            help="Factor on the weight of a parameter in the loss, 1 / its mean. May be repeated.",
        ),
    ] = None,
    on_bound: Annotated[
        OnBound, typer.Option(help="Leave out labels on a bound, or train on them too.")
    ] = OnBound.DROP,
    start: Annotated[
        Start, typer.Option(help="Start fits for labels from the truth, or from a search.")
    ] = Start.TRUTH,
    absolute: Annotated[
        bool,
        typer.Option(
            "--absolute",
            help="Do not divide signals by their mean at b = 0; expect S0 of about 1.",
        ),
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Train networks of 95 % intervals, too.")
    ] = False,
    b_tolerance: options.Tolerance = 1.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed; the same seed gives the same file.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a network for an acquisition and a noise level, on labels of your choice.

    The training set is simulated. The network is one file, for `labelwise map --net` and
    `labelwise evaluate`. Ctrl-C leaves a checkpoint for `--resume`. Without --out it is kept in the
    cache: it is the blend that `labelwise map` trains, for a range of noise levels.
    """
    if out is None:
        for name in _OF_FILES:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise InputError(
                    f"--{name.replace('_', '-')}: is for a network in a file; give --out FILE, or "
                    "leave it out for a network that `labelwise map` finds"
                )
    level = None if out is None and snr is None and sigma is None else _level(snr, sigma)
    if recipe is RecipeName.PAPER and isinstance(level, tuple):
        raise InputError("--recipe paper: is for one SNR, not a range; leave --recipe out")
    prior = prior or []

    options.start_jax()

    from labelwise.io.files import cache_folder
    from labelwise.io.presets import find_preset
    from labelwise.io.protocols import find_protocol
    from labelwise.networks.plan import TrainingPlan, labels_named
    from labelwise.networks.recipe import Recipe
    from labelwise.priors import Uniform

    settings = options.Acquisition.read(
        bvals, acquisition, bvecs, te=te, ti=ti, flip_angle=flip_angles
    )
    if protocol is not None:
        known = find_protocol(protocol)
        if settings.settings:
            raise InputError(
                f"--protocol {protocol}: gives {', '.join(known.settings)} of each volume; leave "
                f"out that of {', '.join(settings.settings)}, or --protocol"
            )
        settings = options.Acquisition(known.acquisition, {}, [])
        model = model or known.model
    if model is None:
        raise InputError("--model is required without --protocol: a name from `labelwise models`")
    made = settings.model(model, constant)
    simulated = options.noise_model(noise)
    if "paper" in prior:
        if len(prior) > 1 or preset is not None:
            raise InputError("--prior paper: is for all parameters; give it alone")
        ranges = Uniform.paper()
    else:
        spans = find_preset(preset).typical(model) if preset is not None else {}
        ranges = Uniform.typical(made, **spans | options.ranges(prior, "--prior"))
    if out is None:
        _train_for_map(made, simulated, ranges, level, b_tolerance / 1000, quiet)
        return
    assert level is not None
    make_recipe = Recipe.paper if recipe is RecipeName.PAPER else Recipe.fast
    if recipe is RecipeName.FAST and isinstance(level, tuple):
        make_recipe = Recipe.every_level
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
        recipe=make_recipe(**{k: v for k, v in changes.items() if v is not None}, loss=loss.value),
        seed=seed,
        normalise=not absolute,
        on_bound=on_bound.value,
        weights=_weights(weight or [], [p.name for p in made.parameters], ranges.ranges),
        b_tolerance=b_tolerance / 1000,
        intervals=intervals,
    )
    with progress_bar(quiet) as progress:
        try:
            network, seconds = _train_to_file(
                plan,
                out,
                inputs=[*settings.sources.values(), *options.preset_file(preset).values()],
                cache=cache_folder("labels"),
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            )
        except KeyboardInterrupt:
            stderr().print(f"note: {out} is unfinished; the same command with --resume continues")
            raise
    if not quiet:
        show_training(network, out, seconds)


def _train_for_map(
    model: SignalModel,
    noise: NoiseModel,
    prior: Prior,
    level: float | tuple[float, float] | None,
    b_tolerance: float,
    quiet: bool,
) -> None:
    """Train the blend of `labelwise map` for a range of noise levels, into its cache.

    Raises:
        InputError: if there is no cache, or the noise level is no range.
    """
    from labelwise.io.files import cache_folder
    from labelwise.networks.blend import LEVEL_LIMITS, rounded, trained_blend

    folder = cache_folder("networks")
    if folder is None:
        raise InputError(
            "--out: there is no cache to keep the network in (LABELWISE_CACHE); give --out FILE"
        )
    if level is not None and not isinstance(level, tuple):
        raise InputError(
            "--snr: a network for `labelwise map` is for a range, such as 5:60; give one, leave "
            "--snr out for 1.5:100, or give --out FILE"
        )
    with progress_bar(quiet) as progress:
        network, done = trained_blend(
            model,
            noise,
            rounded(*(level or LEVEL_LIMITS)),
            prior,
            b_tolerance=b_tolerance,
            cache=folder,
            progress=progress,
        )
    if done["path"] is None:
        raise OSError(f"{folder}: the network could not be written; give --out FILE")
    if not quiet:
        show_training(network, Path(done["path"]), sum(done["seconds"].values()))


def _train_to_file(
    plan: TrainingPlan,
    path: Path,
    *,
    inputs: Iterable[Path],
    cache: Path | None,
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> tuple[Network, float]:
    """Train the networks of a plan and save them; return them and the seconds it took."""
    from labelwise.io.files import check_outputs, refuse_existing
    from labelwise.networks.train import joined, train_networks

    refuse_existing(path, overwrite, inputs)
    checkpoint = path.with_name(f"{path.name}.checkpoint")
    made = [each.name for each in path.parent.iterdir() if each.name.startswith(checkpoint.name)]
    check_outputs(path.parent, made, overwrite=True, inputs=inputs)
    if len(plan.labels) > 1 and plan.recipe.loss != "squared":
        warnings.warn(
            f"loss {plan.recipe.loss}: the blend is the network of the mixed label for squared "
            "errors only",
            stacklevel=2,
        )
    begin = time.perf_counter()
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
        typer.Option(
            metavar="ALPHA | NAME=ALPHA", help="Alpha of a blend. Default: that of the file."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Write a network for other software: inputs `signal` and `sigma`, output `params`."""
    options.start_jax()

    from labelwise.io.files import refuse_existing
    from labelwise.networks.network import load
    from labelwise.networks.onnx import export_onnx

    network, alphas = load(net), options.alphas(alpha or [])
    refuse_existing(out, overwrite, [net])
    if alphas is not None:
        if not network.is_blend:
            raise InputError(f"alpha: {net.name} holds a single network; leave --alpha out")
        network = network.with_alpha(alphas)
    export_onnx(network, out)
    stdout().print(f"{out}: signal (N, M), sigma (N, 1) to params (N, P)")


def _level(snr: str | None, sigma: str | None) -> float | tuple[float, float]:
    """Sigma for a signal of 1, or the lowest and highest of a range."""
    if (snr is None) == (sigma is None):
        raise InputError(
            "--snr or --sigma: expected one of them: --snr 15, or --snr 5:60 for one network "
            "for all noise levels in that range"
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
    """Weights in the loss: 1 / the middle of each range, times the given factors."""
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
