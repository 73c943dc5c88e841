"""The command `tune`: choose the bias-variance trade-off (alpha) of a blend for a task."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelwise.cli import options
from labelwise.cli.tables import progress_bar, show_tuning
from labelwise.formatting import in_words, short_name
from labelwise.types import InputError

if TYPE_CHECKING:
    from labelwise.evaluation.tuning import Detection, Rmse, Tuning
    from labelwise.models import SignalModel
    from labelwise.networks.network import Network
    from labelwise.priors import Distribution, Tissue
    from labelwise.types import Progress

_FILES = ("tune.png", "tune.pdf", "tune.json")
_EXPECTED = (
    "expected one task: --detect FILE.toml, or --from and --to, to distinguish two tissues; or "
    "--rmse NAME to estimate a parameter with the lowest RMSE"
)
_DISTRIBUTION = "NAME=VALUE, NAME=LOW:HIGH or NAME=MEAN±STD"
_NORMAL = re.compile(r"(.+?)(?:±|\+/?-)(.+)")


@dataclass(frozen=True)
class TaskRequest:
    """A task and the SNR it is for.

    Args:
        task: detection of a difference, or the error of an estimate.
        snr: from the file of the task, if given there.
        files: the file of the task, if it has one.
    """

    task: Detection | Rmse
    snr: float | None = None
    files: tuple[Path, ...] = ()


def tune(
    context: typer.Context,
    net: Annotated[Path, typer.Argument(help="A blend of two networks, from `labelwise train`.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    detect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Distinguish the tissues in its tables [from] and [to]."
        ),
    ] = None,
    before: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NAME=VALUE,...",
            help="First tissue, such as f=0.1:0.2,D_fast=60±10. Parameters left out are as in "
            "training.",
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="NAME=VALUE,...",
            help="Second tissue. Parameters left out are as in --from.",
        ),
    ] = None,
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
    request = _task_request(detect, before, after, rmse, tissue)
    if snr is None:
        snr = request.snr
    if snr is not None and not 0 < snr < float("inf"):
        raise InputError(f"--snr {snr:g}: expected a positive number")

    from labelwise.io.staging import staged
    from labelwise.models.find import find_model

    options.keep_compiled_programs()
    read = [net, *options.model_file(model), *request.files]
    with staged(out, _FILES[-1], names=_FILES, inputs=read, overwrite=overwrite) as staging:
        network = _blend(net)
        with progress_bar(quiet) as progress:
            tuning = _tuned(
                network,
                net,
                request.task,
                find_model(model) if model else None,
                snr,
                (points, voxels, seed),
                progress,
            )
        record = {"command": context.meta["labelwise.command"], "network": str(net), "seed": seed}
        _write(staging, tuning, network, record)
    if not quiet:
        show_tuning(tuning, net, out)


def _tuned(
    network: Network,
    net: Path,
    task: Detection | Rmse,
    model: type[SignalModel] | None,
    snr: float | None,
    numbers: tuple[int, int, int],
    progress: Progress,
) -> Tuning:
    import jax

    from labelwise.evaluation.tuning import tune
    from labelwise.models.find import rebuild

    card, (points, voxels, seed) = network.card, numbers
    return tune(
        network,
        task,
        rebuild(card.model, model, net),
        network.noise,
        options.sigma_for(card.sigma, snr, net),
        points=points,
        voxels=voxels,
        key=jax.random.key(seed),
        progress=lambda done, total: progress("tuning", done, total, ""),
    )


def _write(folder: Path, tuning: Tuning, network: Network, record: Mapping[str, Any]) -> None:
    from labelwise.io.results import as_json
    from labelwise.plots.tuning import tune_figure

    head = {**record, "model": network.card.model, "noise": in_words(network.card.noise)}
    figure = tune_figure(tuning, _title(tuning, short_name(network.card.model)))
    figure.savefig(folder / "tune.png")
    # without the time of day: the same command gives the same bytes
    figure.savefig(folder / "tune.pdf", metadata={"CreationDate": None})
    (folder / "tune.json").write_text(as_json(head | tuning.describe()), encoding="utf-8")


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


def _task_request(
    detect: Path | None,
    before: Sequence[str] | None,
    after: Sequence[str] | None,
    rmse: Sequence[str] | None,
    tissue: Sequence[str] | None,
) -> TaskRequest:
    """The one task given by the options."""
    from labelwise.evaluation.tuning import Detection, Rmse

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
    if detect is not None:
        tissues, snr = _read(detect, ("from", "to"))
        return TaskRequest(Detection(tissues["from"], tissues["to"]), snr, (detect,))
    if rmse:
        names = [name.strip() for text in rmse for name in text.split(",")]
        parameters = () if names == ["all"] else tuple(dict.fromkeys(names))
        if len(tissue or []) == 1 and tissue is not None and tissue[0].endswith(".toml"):
            file = Path(tissue[0])
            tissues, snr = _read(file, ("tissue",))
            return TaskRequest(Rmse(parameters, tissues["tissue"]), snr, (file,))
        return TaskRequest(Rmse(parameters, _tissue(tissue or [], "--tissue")))
    if not before or not after:
        missing = "--to" if before else "--from"
        raise InputError(f"{missing}: is missing; detection needs two tissues, --from and --to")
    return TaskRequest(Detection(_tissue(before, "--from"), _tissue(after, "--to")))


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


def _read(path: Path, tables: tuple[str, ...]) -> tuple[dict[str, Tissue], float | None]:
    """The tissues in a TOML file by table, and its SNR, if any."""
    from labelwise.priors import Tissue

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no text
        raise InputError(f"{path}: is no TOML file: {error}") from error
    expected = " and ".join(f"[{table}]" for table in tables)
    for key, value in content.items():
        if key == "snr" and _is_number(value):
            continue
        if key not in tables or not isinstance(value, dict):
            raise InputError(
                f"{path}: {key} = {value!r} is not expected; there may be "
                f"{expected} and snr = NUMBER"
            )
    missing = [table for table in tables if table not in content]
    if missing:
        raise InputError(f"{path}: the table [{missing[0]}] is missing; expected {expected}")
    tissues = {}
    for table in tables:
        entries = dict(content[table])
        name = entries.pop("name", table)
        if not isinstance(name, str):
            raise InputError(f"{path}: [{table}] name: expected a text, got {name!r}")
        parts = {key: _from_toml(each, f"{path}: [{table}] {key}") for key, each in entries.items()}
        with _placed(f"{path}: [{table}]"):
            tissues[table] = Tissue(parts, name)
    return tissues, content.get("snr")


def _from_toml(value: Any, where: str) -> Distribution:
    from labelwise.priors import Normal

    if _is_number(value):
        return float(value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return float(value[0]), float(value[1])
    if isinstance(value, dict) and value.keys() == {"mean", "std"}:
        mean, std = value["mean"], value["std"]
        if _is_number(mean) and _is_number(std):
            with _placed(where):
                return Normal(float(mean), float(std))
    raise InputError(f"{where}: expected 1.1, [0.1, 0.2] or {{mean = 60, std = 10}}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Prefix the messages of errors with the place of the wrong value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
