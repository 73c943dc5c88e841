"""The command `tune`: choose the bias-variance trade-off (alpha) of a blend for a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_tuning
from labelwise.errors import InputError
from labelwise.formatting import in_words, short_name
from labelwise.limits import check_whole

if TYPE_CHECKING:
    from labelwise.evaluation.tuning import Detection, Rmse, Tuning
    from labelwise.io.presets import Preset
    from labelwise.networks.network import Network
    from labelwise.priors import Distribution, Tissue

_FILES = ("tune.png", "tune.pdf", "tune.json")
_EXPECTED = (
    "expected one task: --detect FILE.toml, or --from and --to, to distinguish two tissues; or "
    "--rmse NAME to estimate a parameter with the lowest RMSE"
)
_DISTRIBUTION = "NAME=VALUE, NAME=LOW:HIGH or NAME=MEAN±STD"
_NORMAL = re.compile(r"(.+?)(?:±|\+/?-)(.+)")


def tune(
    context: typer.Context,
    net: Annotated[Path, typer.Argument(help="A blend of two networks, from `labelwise train`.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    detect: options.Detect = None,
    before: options.FirstTissue = None,
    after: options.SecondTissue = None,
    rmse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | all",
            help="Minimise the RMSE of this parameter. May be repeated.",
        ),
    ] = None,
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,... | FILE.toml",
            help="Tissue for --rmse, or a file with a table [tissue]. Default: as in training.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="TISSUE | FILE.toml",
            help="Tissue for --rmse from `labelwise presets` or a file of your own; parameters of "
            "--tissue win.",
        ),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(help="Signal over noise. Default: that of the file, else of the training."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="FILE.py:Class of your own model, if the blend is for one.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Number of alphas from 0 to 1.")] = 21,
    voxels: Annotated[
        int, typer.Option(min=100, help="Simulated voxels per tissue and half.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier tuning in OUT.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the alpha of a blend for a task, for each parameter; nothing is trained.

    Both networks are evaluated on simulated voxels. Alpha is chosen on one half of the voxels and
    evaluated on the other. Writes `tune.json`, `tune.png` and `tune.pdf`.
    """
    options.start_jax()
    task, snr_of_file = _task_and_snr(detect, before, after, rmse, tissue)
    snr = snr_of_file if snr is None else snr
    if snr is not None and not 0 < snr < float("inf"):
        raise InputError(f"--snr {snr:g}: expected a positive number")
    check_whole("seed", seed)

    import jax

    from labelwise.evaluation.tuning import tune as tuned
    from labelwise.io.presets import find_preset
    from labelwise.io.staging import staged
    from labelwise.models.find import find_model, name_of, rebuild

    record = {"command": context.meta["labelwise.command"], "network": str(net), "seed": seed}
    files = [Path(text) for text in tissue or () if text.endswith(".toml")]
    files += options.preset_file(preset).values()
    inputs = [net, *options.model_file(model), *([detect] if detect else files)]
    with staged(out, _FILES[-1], names=_FILES, inputs=inputs, overwrite=overwrite) as folder:
        network = _blend(net)
        card, kind = network.card, find_model(model) if model else None
        if preset is not None:
            task = _in_tissue(task, find_preset(preset), model or name_of(card.model, net))
        with progress_bar(quiet) as progress:
            tuning = tuned(
                network,
                task,
                rebuild(card.model, kind, net),
                network.noise,
                options.sigma_for(card.sigma, snr, net),
                points=points,
                voxels=voxels,
                key=jax.random.key(seed),
                progress=lambda done, total: progress("tuning", done, total, ""),
            )
        _write(folder, tuning, network, record)
    if not quiet:
        show_tuning(tuning, net, out)


def _write(folder: Path, tuning: Tuning, network: Network, record: Mapping[str, Any]) -> None:
    from labelwise.io.results import as_json
    from labelwise.plots.tuning import tune_figure

    head = {**record, "model": network.card.model, "noise": in_words(network.card.noise)}
    figure = tune_figure(tuning, _title(tuning, short_name(network.card.model)))
    figure.savefig(folder / "tune.png")
    # without the time of day: the same command gives the same bytes
    figure.savefig(folder / "tune.pdf", metadata={"CreationDate": None})
    text = as_json(head | tuning.describe(), "tuning 1")
    (folder / "tune.json").write_text(text, encoding="utf-8")


def _title(tuning: Tuning, model: str) -> str:
    tissues = " against ".join(tissue.name for tissue in tuning.task.tissues)
    over = "of" if tuning.measure == "AUC" else "over"
    return f"{model}, SNR {1 / tuning.sigma:.3g}, {tuning.measure} {over} {tissues}"


def _blend(net: Path) -> Network:
    from labelwise.networks.network import load

    network = load(net)
    if not network.is_blend:
        raise InputError(
            f"{net}: holds a single network ({network.card.label['kind']}), so there is no "
            "alpha to choose; train a blend, the default of `labelwise train`"
        )
    return network


def _task_and_snr(
    detect: Path | None,
    before: Sequence[str] | None,
    after: Sequence[str] | None,
    rmse: Sequence[str] | None,
    tissue: Sequence[str] | None,
) -> tuple[Detection | Rmse, float | None]:
    """The one task given by the options, and the SNR if its file has one."""
    from labelwise.evaluation.tuning import Rmse
    from labelwise.io.tissues import read_tissues

    inline = bool(before or after)
    tasks = [
        option
        for option, is_given in (("--detect", detect), ("--from/--to", inline), ("--rmse", rmse))
        if is_given
    ]
    if len(tasks) != 1:
        got = f"got {' and '.join(tasks)}" if tasks else "got none"
        raise InputError(f"task: {_EXPECTED}; {got}")
    if tissue and not rmse:
        raise InputError("--tissue: is for --rmse; for detection, give tissues by --from and --to")
    if rmse:
        names = [name.strip() for text in rmse for name in text.split(",")]
        parameters = () if names == ["all"] else tuple(dict.fromkeys(names))
        if len(tissue or []) == 1 and tissue is not None and tissue[0].endswith(".toml"):
            tissues, snr = read_tissues(Path(tissue[0]), "tissue")
            return Rmse(parameters, *tissues), snr
        return Rmse(parameters, _tissue(tissue or [], "--tissue")), None
    return detection(detect, before, after)


def detection(
    detect: Path | None, before: Sequence[str] | None, after: Sequence[str] | None
) -> tuple[Detection, float | None]:
    """The two tissues of a file, or of --from and --to; the SNR, if the file has one."""
    from labelwise.evaluation.tuning import Detection
    from labelwise.io.tissues import read_tissues

    if detect is not None and (before or after):
        raise InputError("task: give the tissues by --detect, or by --from and --to, not by both")
    if detect is not None:
        tissues, snr = read_tissues(detect, "from", "to")
        return Detection(*tissues), snr
    if not before or not after:
        missing = "--to" if before else "--from"
        raise InputError(f"{missing}: is missing; detection needs two tissues, --from and --to")
    return Detection(_tissue(before, "--from"), _tissue(after, "--to")), None


def _in_tissue(task: Detection | Rmse, preset: Preset, model: str) -> Rmse:
    """The task over the ranges of a preset, apart from those that the task has itself."""
    from labelwise.evaluation.tuning import Rmse
    from labelwise.priors import Tissue

    if not isinstance(task, Rmse):
        raise InputError("--preset: is for --rmse; for detection, give tissues by --from and --to")
    own = task.tissue.parts
    tissue = Tissue({**preset.typical(model), **own}, preset.name * (not own))
    return replace(task, tissue=tissue)


def _tissue(texts: Sequence[str], option: str) -> Tissue:
    from labelwise.priors import Tissue

    parts = distributions(texts, option)
    with _placed(option):
        return Tissue(parts)


def distributions(texts: Sequence[str], option: str) -> dict[str, Distribution]:
    """Parse NAME=VALUE, NAME=LOW:HIGH or NAME=MEAN±STD, separated by commas.

    Example:
        >>> distributions(["f=0.1:0.2,D_slow=1.1", "D_fast=60±10"], "--from")
        {'f': (0.1, 0.2), 'D_slow': 1.1, 'D_fast': Normal(mean=60.0, std=10.0)}
    """
    found: dict[str, Distribution] = {}
    for text in [part for each in texts for part in each.split(",")]:
        name, _, value = (part.strip() for part in text.partition("="))
        if name in found:
            raise InputError(f"{option}: {name} is given twice")
        found[name] = _distribution(value, f"{option} {text}")
    return found


def _distribution(value: str, where: str) -> Distribution:
    from labelwise.priors import Normal

    normal = _NORMAL.fullmatch(value)
    parts = normal.groups() if normal else value.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{where}: expected {_DISTRIBUTION}, such as f=0.1:0.2")
    if normal:
        with _placed(where):
            return Normal(*numbers)
    return (numbers[0], numbers[1]) if len(numbers) > 1 else numbers[0]


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Prefix the messages of errors with the place of the wrong value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
