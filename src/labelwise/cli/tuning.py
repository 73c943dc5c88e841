"""The command `tune`: a dial and a task in, the alpha that serves the task best out."""

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
    "expected one task: --detect FILE.toml, or --from and --to, to tell two tissues apart; or "
    "--rmse NAME to estimate a parameter with the least error"
)
_DISTRIBUTION = "NAME=VALUE, NAME=LOW:HIGH or NAME=MEAN±STD"
_NORMAL = re.compile(r"(.+?)(?:±|\+/?-)(.+)")


@dataclass(frozen=True)
class Asked:
    """A task as it was asked for.

    Args:
        task: what to tune for.
        snr: that its file gives, if any.
    """

    task: Detection | Rmse
    snr: float | None = None


def tune(
    context: typer.Context,
    net: Annotated[Path, typer.Argument(help="A dial, as `labelwise train` makes it.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    detect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Tell the tissues in its tables [from] and [to] apart."
        ),
    ] = None,
    before: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NAME=VALUE,...",
            help="The one tissue, such as f=0.1:0.2,D_slow=1.1,D_fast=60±10; what is not named is "
            "as in training.",
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="NAME=VALUE,...", help="The other; what is not named is as in --from."
        ),
    ] = None,
    rmse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | all",
            help="Estimate this parameter with the least RMSE; may be repeated.",
        ),
    ] = None,
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,... | FILE.toml",
            help="Over this tissue, or that of the table [tissue]; as in training if left out.",
        ),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            help="Signal over noise; what the file says, or the dial was trained for, if left out."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own model, FILE.py:Class, if the dial is for one.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Alphas from 0 to 1.")] = 21,
    voxels: Annotated[
        int, typer.Option(min=100, help="Simulated voxels of each tissue in each half.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the voxels; same seed, same bytes.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a tuning that is in OUT already.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the alpha of each parameter with which a dial serves a task best, without training.

    Voxels are simulated and both networks asked once. Alpha is chosen on one half of the voxels,
    everything reported is of the other. Writes `tune.json`, `tune.png` and `tune.pdf`.
    """
    asked = _asked(detect, before, after, rmse, tissue)
    if snr is None:
        snr = asked.snr
    if snr is not None and not 0 < snr < float("inf"):
        raise InputError(f"--snr {snr:g}: expected a positive number")

    from labelwise.io.files import refuse_existing
    from labelwise.models.find import find_model

    for name in _FILES:
        refuse_existing(out / name, overwrite, made=True)
    options.keep_compiled_programs()
    network = _blend(net)
    with progress_bar(quiet) as progress:
        found = _tuned(
            network,
            net,
            asked.task,
            find_model(model) if model else None,
            snr,
            (points, voxels, seed),
            progress,
        )
    record = {"command": context.meta["labelwise.command"], "network": str(net), "seed": seed}
    _write(out, found, network, record)
    if not quiet:
        show_tuning(found, net, out)


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


def _write(out: Path, found: Tuning, network: Network, record: Mapping[str, Any]) -> None:
    from labelwise.io.results import as_json
    from labelwise.io.staging import staged
    from labelwise.plots.tuning import tune_figure

    said = {**record, "model": network.card.model, "noise": in_words(network.card.noise)}
    figure = tune_figure(found, _title(found, short_name(network.card.model)))
    with staged(out, _FILES[-1]) as folder:
        figure.savefig(folder / "tune.png")
        # without the time of day: the same command gives the same bytes
        figure.savefig(folder / "tune.pdf", metadata={"CreationDate": None})
        (folder / "tune.json").write_text(as_json(said | found.describe()), encoding="utf-8")


def _title(found: Tuning, model: str) -> str:
    tissues = " against ".join(tissue.name for tissue in found.task.tissues)
    over = "of" if found.measure == "AUC" else "over"
    return f"{model}, SNR {1 / found.sigma:.3g}, {found.measure} {over} {tissues}"


def _blend(net: Path) -> Network:
    from labelwise.networks.network import load

    network = load(net)
    if not network.is_blend:
        raise InputError(
            f"{net}: holds a single network ({network.card.label['kind']}), so there is no "
            "alpha to choose; train a dial, which `labelwise train` does unless told otherwise"
        )
    return network


def _asked(
    detect: Path | None,
    before: Sequence[str] | None,
    after: Sequence[str] | None,
    rmse: Sequence[str] | None,
    tissue: Sequence[str] | None,
) -> Asked:
    """The one task that the options ask for."""
    from labelwise.evaluation.tuning import Detection, Rmse

    inline = bool(before or after)
    asked = [
        option
        for option, is_given in (("--detect", detect), ("--from/--to", inline), ("--rmse", rmse))
        if is_given
    ]
    if len(asked) != 1:
        got = f"got {' and '.join(asked)}" if asked else "got none"
        raise InputError(f"task: {_EXPECTED}; {got}")
    if tissue and not rmse:
        raise InputError("--tissue: is for --rmse; tissues to tell apart are --from and --to")
    if detect is not None:
        tissues, snr = _read(detect, ("from", "to"))
        return Asked(Detection(tissues["from"], tissues["to"]), snr)
    if rmse:
        names = [name.strip() for text in rmse for name in text.split(",")]
        chosen = () if names == ["all"] else tuple(dict.fromkeys(names))
        if len(tissue or []) == 1 and tissue is not None and tissue[0].endswith(".toml"):
            tissues, snr = _read(Path(tissue[0]), ("tissue",))
            return Asked(Rmse(chosen, tissues["tissue"]), snr)
        return Asked(Rmse(chosen, _inline(tissue or [], "--tissue")))
    if not before or not after:
        missing = "--to" if before else "--from"
        raise InputError(f"{missing}: is missing; two tissues to tell apart are --from and --to")
    return Asked(Detection(_inline(before, "--from"), _inline(after, "--to")))


def _inline(texts: Sequence[str], option: str) -> Tissue:
    from labelwise.priors import Tissue

    found = distributions(texts, option)
    with _placed(option):
        return Tissue(found)


def distributions(texts: Sequence[str], option: str) -> dict[str, Distribution]:
    """NAME=VALUE, NAME=LOW:HIGH or NAME=MEAN±STD, by commas, several times.

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
    """The tissues in a TOML file by table, and the SNR if it gives one."""
    from labelwise.priors import Tissue

    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no text
        raise InputError(f"{path}: is no TOML file: {error}") from error
    wanted = " and ".join(f"[{table}]" for table in tables)
    for key, value in said.items():
        if key == "snr" and _is_number(value):
            continue
        if key not in tables or not isinstance(value, dict):
            raise InputError(
                f"{path}: {key} = {value!r} is not expected; there may be {wanted} and snr = NUMBER"
            )
    missing = [table for table in tables if table not in said]
    if missing:
        raise InputError(f"{path}: the table [{missing[0]}] is missing; expected {wanted}")
    tissues = {}
    for table in tables:
        parts = dict(said[table])
        name = parts.pop("name", table)
        if not isinstance(name, str):
            raise InputError(f"{path}: [{table}] name: expected a text, got {name!r}")
        found = {key: _from_toml(each, f"{path}: [{table}] {key}") for key, each in parts.items()}
        with _placed(f"{path}: [{table}]"):
            tissues[table] = Tissue(found, name)
    return tissues, said.get("snr")


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
    """Let an error say where the wrong value stands."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
