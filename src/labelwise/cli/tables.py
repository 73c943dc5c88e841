"""Output in the terminal: tables on stdout; progress, notes and errors on stderr.

Names, units and messages may come from files of others. The consoles print all text as it is:
nothing in it is markup, and control characters are escaped. A character that the encoding of the
output lacks is replaced by ASCII (`use_ascii_where_needed`).
"""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from labelwise import interrupts
from labelwise.cli import log
from labelwise.formatting import ASCII, number, one_line, printable, short_name, with_error

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from labelwise import types
    from labelwise.bids.cohort import Outcome
    from labelwise.evaluation.design import Design
    from labelwise.evaluation.tuning import Curve, Tuning
    from labelwise.io.noise_level import NoiseLevel
    from labelwise.mapping.summary import NetworkUse, Report
    from labelwise.networks.network import Network
    from labelwise.phantoms.abdomen import Comparison
    from labelwise.study.run import StudyResult

_STANDARD_ERRORS = ("strict", "backslashreplace", "surrogateescape")
_PLAIN: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


class _Console(Console):
    """A console that prints text as it is, with what cannot be printed escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        shown = printable(text).encode(self.encoding, ASCII).decode(self.encoding)
        return super().render_str(shown, **options)


def stdout() -> Console:
    """The console for results."""
    return _Console(markup=False, emoji=False, highlight=False)


def stderr() -> Console:
    """The console for notes and errors; each stays on one line, so that tools can search them."""
    return _Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def use_ascii_where_needed() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, such as µ in GBK."""
    for stream in (sys.stdout, sys.stderr):
        chosen = getattr(stream, "errors", None)  # others were asked for: PYTHONIOENCODING
        if isinstance(stream, io.TextIOWrapper) and chosen in _STANDARD_ERRORS:
            stream.reconfigure(errors=ASCII)


def pasted(text: str) -> str:
    r"""A word for a shell; what cannot be printed is escaped in the way of bash and zsh.

    Example:
        >>> print(pasted("a b.nii"), pasted("it's\udcff.nii"))
        'a b.nii' $'it\'s\xff.nii'
    """
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def print_json(text: str) -> None:
    """Print a JSON text on stdout; in ASCII if the encoding lacks a character."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    typer.echo(text)


@contextmanager
def notes() -> Iterator[list[str]]:
    """Show each warning as one line, once; yields the list of those that were shown."""
    shown: list[str] = []

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = one_line(str(message))
        if text not in shown:
            shown.append(text)
            stderr().print(f"note: {text}")
            log.write("note", text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of a name in a figure
        warnings.showwarning = show
        yield shown


@contextmanager
def progress_bar(silent: bool = False) -> Iterator[types.Progress]:
    """A bar on stderr, removed at the end; yields the callback that advances it.

    The callback adds the stages that end to the log file, if there is one. It raises
    KeyboardInterrupt after an interrupt that a library dropped.
    """
    logged = log.stages()

    def advance_silently(what: str, done: int, total: int, words: str = "") -> None:
        interrupts.check()
        logged(what, done, total, words)

    if silent:
        yield advance_silently
        return
    console = stderr()
    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn()),
        *(TextColumn("{task.completed:,.0f} of {task.total:,.0f}"), TimeRemainingColumn()),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks = {}

        def advance(what: str, done: int, total: int, words: str = "") -> None:
            advance_silently(what, done, total, words)
            if what not in tasks:
                for earlier in tasks.values():
                    progress.update(earlier, visible=False)
                tasks[what] = progress.add_task(printable(what), total=total, words="")
            progress.update(tasks[what], completed=done, total=total, words=printable(words))

        yield advance


def show_report(report: Report) -> None:
    """The closing table of a fit, or of mapping by a network."""
    console = stdout()
    network = report.network
    limits = "below, above range" if network else "on low, high bound"
    table = Table("parameter", **_PLAIN)
    intervals = any(math.isfinite(row.half_width) for row in report.parameters)
    for title in ("median", "quartiles", "unit", "95 % ±" if intervals else "std. error", limits):
        table.add_column(title, justify="left" if title == "unit" else "right", no_wrap=True)
    for row in report.parameters:
        low, median, high = (number(value) for value in row.quartiles)
        shares = ", ".join(f"{100 * share:.1f}" for share in row.at_limits) + " %"
        table.add_row(
            *(row.parameter.name, median, f"{low} to {high}", _unit(row.parameter.unit)),
            number(row.half_width if intervals else row.standard_error),
            "" if math.isnan(row.at_limits[0]) else shares,
        )
    console.print(table)
    total = sum(report.voxels.values())
    table = Table(**_PLAIN, show_header=False)
    for status, count in report.voxels.items():
        table.add_row(status.reason, f"{count:,} voxels", f"{100 * count / total:.1f} %")
    table.columns[1].justify = table.columns[2].justify = "right"
    console.print("", table, "", sep="\n")

    levels = [_level(report.sigma), *(f"{_level(o)} (not used)" for o in report.other_sigma)]
    levels += [f"none ({name}): {reason}" for name, reason in report.refused_sigma.items()]
    table = Table(**_PLAIN, show_header=False)
    table.add_row("sigma", "\n".join(levels))
    if math.isfinite(report.residual):
        table.add_row(
            "residual", f"median {number(report.residual)}; 1 if model and sigma are right"
        )
    if network:
        table.add_row("network", console.render_str(_network(network), overflow="fold"))
    table.add_row("speed", _speed(report))
    place = f"{report.folder} (look at report.html first)"
    table.add_row("maps", console.render_str(place, overflow="fold"))
    console.print(table)


def _network(network: NetworkUse) -> str:
    """The network, its training SNR and its file."""
    low, high = (_short(ratio) for ratio in network.trained_snr)
    snr = f"for SNR {low} to {high}"
    if network.origin == "trained":
        text = f"trained in {sum(network.seconds.values()):.0f} s {snr}"
    elif network.origin == "cache":
        text = f"from the cache, trained {snr}"
    else:
        text = f"{network.path}, trained {snr}"
    if network.alpha is not None:
        text += f", {_alpha(network.alpha)}"
    return text if network.origin == "file" else f"{text}; saved as net.safetensors"


def _alpha(alpha: float | Mapping[str, float]) -> str:
    """Alpha with its meaning where all parameters have the same."""
    values = list(alpha.values()) if isinstance(alpha, Mapping) else [alpha]
    if len(set(values)) > 1 and isinstance(alpha, Mapping):
        return "alpha " + ", ".join(f"{name} {value:g}" for name, value in alpha.items())
    words = {0.0: " (least variance)", 1.0: " (least bias)"}
    return f"alpha {values[0]:g}{words.get(values[0], '')}"


def _speed(report: Report) -> str:
    speed, seconds = number(report.voxels_per_second), report.seconds
    if not report.network:
        return f"{speed} voxels/s ({seconds['fit']:.1f} s, compiling included)"
    parts = f"training {seconds['train']:.1f} s, compiling {seconds['start']:.1f} s"
    return f"{speed} voxels/s ({seconds['map']:.2g} s; {parts}, writing {seconds['write']:.1f} s)"


def show_models(models: Mapping[str, Mapping[str, Any]]) -> None:
    """The signal models by what they measure, in the form of `labelwise models --json`."""
    console = stdout()
    for measured in dict.fromkeys(model["measures"] for model in models.values()):
        console.print(f"{measured}:\n", style="bold")
        for name, model in models.items():
            if model["measures"] == measured:
                _show_model(console, name, model)
    console.print("For your own model: --model FILE.py:Class")


def _show_model(console: Console, name: str, model: Mapping[str, Any]) -> None:
    title = console.render_str(name, style="bold")
    console.print(title, f" needs {', '.join(model['needs'])}")
    if model["minimum"]:
        console.print(f"  {model['minimum']}")
    console.print(f"  {model['equation']}")
    table = Table(**_PLAIN, show_header=False)
    for parameter in model["parameters"]:
        low, high = parameter["bounds"]
        span = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
        table.add_row(f"    {parameter['name']}", span, _unit(parameter["unit"]))
    for each in model["derived"]:
        table.add_row(f"    {each['name']}", "derived", _unit(each["unit"]))
    console.print(table, "", sep="\n")


def show_presets(presets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The presets, in the form of `labelwise presets --json`."""
    console = stdout()
    for tissue, entries in presets.items():
        console.print(f"{tissue}:\n", style="bold")
        for entry in entries:
            ranges = [
                f"{word} {entry[key][0]:g} to {entry[key][1]:g}"
                for key, word in (("typical", "typically"), ("bounds", "bounds"))
                if entry[key]
            ]
            console.print(f"  {entry['parameter']}  {', '.join(ranges)}  ({entry['reported']})")
            sources = " ".join(f"doi:{each}" for each in entry["source"])
            console.print(f"    {', '.join(entry['models'])}  {sources}")
        console.print()
    console.print("For your own preset: --preset FILE.toml")


def show_protocols(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """The protocols, in the form of `labelwise protocols --json`."""
    from labelwise.types import SETTINGS

    console = stdout()
    for name, entry in protocols.items():
        console.print(f"{name}  ({entry['model']}, {entry['title']})", style="bold")
        for setting in SETTINGS.keys() & entry.keys():
            known, values = SETTINGS[setting], ", ".join(f"{value:g}" for value in entry[setting])
            console.print(f"  {known.words} in {known.unit}: {values}")
        sources = " ".join(f"doi:{each}" for each in entry["source"])
        console.print(f"  {sources or 'no DOI'}  (checked: {entry['checked']})\n")
    console.print("To train for one: labelwise train --protocol NAME")


def show_comparison(rows: Sequence[Comparison]) -> None:
    """Estimates and errors of the fit and the network, one line for each tissue."""
    console = stdout()
    console.print("\nMedian in each tissue: truth, fit, network\n", style="bold")
    console.print(_by_tissue(rows, lambda row: (_short(row.truth), *map(number, row.estimates))))
    console.print("\nMedian absolute error in each tissue: fit, network\n", style="bold")
    console.print(_by_tissue(rows, lambda row: tuple(map(number, row.errors))))


def _by_tissue(
    rows: Sequence[Comparison], numbers: Callable[[Comparison], tuple[str, ...]]
) -> Table:
    """A few numbers for each tissue and parameter, aligned, in no more than 80 columns."""
    table = Table(**_PLAIN)
    table.add_column("tissue", no_wrap=True)
    parameters = list(dict.fromkeys(row.parameter for row in rows))
    widths = {}
    for parameter in parameters:
        title = f"{parameter.name}\n{_unit(parameter.unit)}"
        table.add_column(title, justify="right", no_wrap=True)
        columns = zip(*(numbers(row) for row in rows if row.parameter == parameter), strict=True)
        widths[parameter] = [max(map(len, column)) for column in columns]
    for tissue in dict.fromkeys(row.tissue for row in rows):
        cells = [row for row in rows if row.tissue == tissue]
        table.add_row(
            tissue,
            *(
                " ".join(
                    text.rjust(width)
                    for text, width in zip(numbers(cell), widths[cell.parameter], strict=True)
                )
                for cell in cells
            ),
        )
    return table


def _short(value: float) -> str:
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _level(level: NoiseLevel) -> str:
    return f"{number(level.sigma)} ({level.method}): {level.note}"


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit


def show_training(network: Network, path: Path, seconds: float) -> None:
    """The results of a training, one line for each label."""
    console = stdout()
    members = network.members
    table = Table("label", **_PLAIN)
    for title in ("usable", "on a bound", "validation loss", "best epoch", "networks"):
        table.add_column(title, justify="right", no_wrap=True)
    for member in members:
        report = member.card.label_report
        shares = ["", ""]
        if report:
            shares = [f"{100 * report[name]:.1f} %" for name in ("usable", "on_bound")]
        validation = member.card.validation
        table.add_row(
            _label(member.card.label),
            *shares,
            f"{validation['loss']:.5f}",
            str(validation["epoch"]),
            str(len(validation["restarts"])),
        )
    console.print(table)
    level = members[0].card.sigma
    levels = level if isinstance(level, list) else [level]
    snr = " to ".join(number(1 / each) for each in reversed(levels))
    console.print(
        f"\nSNR {snr}; {seconds:.1f} s, compiling included; saved as {path}",
        soft_wrap=True,
    )
    for member in members:
        for reason in member.card.validation["ended"]:
            if "not finite" in reason:
                stderr().print(f"note: {_label(member.card.label)}: a network {reason}")


def _label(label: Mapping[str, Any]) -> str:
    """A short name of a label."""
    if label["kind"] == "maximum likelihood":
        return f"maximum likelihood, {short_name(label['noise'])}, from {label['start']}"
    if label["kind"] == "mix":
        return f"mix of {label['alpha']} ({label['a']['kind']}) with {label['b']['kind']}"
    if label["kind"] == "self-supervised":
        loss = label["loss"]
        return f"self-supervised, {loss if isinstance(loss, str) else short_name(loss)}"
    return label["kind"]


def show_study(result: StudyResult) -> None:
    """The claims and their verdicts, one line each."""
    console = stdout()
    colours = {"holds": "green", "does not hold": "red", "holds in part": "yellow"}
    table = Table("section", "claim", "verdict", "parts", **_PLAIN)
    table.columns[2].no_wrap = table.columns[3].no_wrap = True
    for claim in result.claims:
        held = sum(part.verdict.value == "holds" for part in claim.parts)
        verdict = Text(claim.verdict.value, style=colours.get(claim.verdict.value, ""))
        parts = f"{held} of {len(claim.parts)}"
        table.add_row(claim.section or "ours", claim.statement, verdict, parts)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", style="dim")
    reused = sum(stage.kept for stage in result.stage_times)
    total = len(result.stage_times)
    note = f", {reused} of {total} stages reused from an earlier run" if reused else ""
    console.print(f"\n{result.seconds:.0f} s{note}")
    console.print(f"{result.folder / 'report.html'}", soft_wrap=True)


def show_cohort(outcomes: Sequence[Outcome], folder: Path) -> None:
    """How many participants are done, and why others are not."""
    console = stdout()
    failed = [(what, why) for each in outcomes for what, why in each.failed.items()]
    for what, why in failed:
        console.print(f"{what}: {why}", soft_wrap=True)
    mapped = sum(len(each.mapped) for each in outcomes)
    kept = sum(len(each.kept) for each in outcomes)
    wrong = sum(bool(each.failed) for each in outcomes)
    console.print(
        f"{len(outcomes) - wrong} of {len(outcomes)} participants done: {mapped} series mapped, "
        f"{kept} kept from an earlier run, {len(failed)} failed"
    )
    console.print(str(folder), soft_wrap=True)


def show_evaluation(
    evaluation: xr.Dataset, summary: xr.Dataset, folder: Path, seconds: float
) -> None:
    """One table per parameter, one line per estimator."""
    console = stdout()
    parameters = [str(name) for name in summary["parameter"].values]
    several = [name for name in parameters if evaluation.sizes[name] > 1]
    points = " x ".join(str(evaluation.sizes[name]) for name in several)
    console.print(
        f"SNR {number(1 / evaluation.sigma)}, {points} points x {evaluation.repeats} noisy "
        f"signals, {seconds:.1f} s"
    )
    columns = {
        "abs_bias": "mean |bias|",
        "std": "std",
        "rmse": "RMSE",
        "slope": "bias slope",
        "retained": "information",
        "mutual_information": "bits",
    }
    intervals = "coverage" in summary
    if intervals:
        columns |= {"coverage": "95 % covers", "coverage_least": "at least"}
    for parameter in several:
        unit = _unit(evaluation[parameter].unit)
        table = Table(f"{parameter} {unit}".strip(), **_PLAIN)
        for title in columns.values():
            table.add_column(title, justify="right", no_wrap=True)
        for estimator in summary["estimator"].values:
            row = summary.sel(estimator=estimator, parameter=parameter)
            cells = (_cell(float(row[name]), name) for name in columns)
            table.add_row(str(estimator), *cells)
        console.print("", table)
    console.print(
        "\nbias slope: 0 preserves differences, -1 removes them; information: share of the Fisher "
        "information\nin the signal (linear); bits: mutual information of truth and estimate. All "
        "are means over\nthe grid; their standard errors are in evaluation.json.",
    )
    if intervals:
        console.print(
            "95 % covers: the share of 95 % intervals that hold the truth; at least: at the point "
            "of the\ngrid where it is smallest."
        )
    console.print(f"{folder} (look at curves.png first)", soft_wrap=True)


def _cell(value: float, name: str) -> str:
    """A share of intervals in per cent, another number as it is; empty if it is not known."""
    if not name.startswith("coverage"):
        return number(value)
    return "" if math.isnan(value) else f"{100 * value:.1f} %"


def show_design(found: Design, setting: str, file: Path) -> None:
    """The designed acquisition, and the RMSE of each parameter with it and with others."""
    from labelwise.types import SETTINGS

    console, known = stdout(), SETTINGS.get(setting)
    factor = known.factor if known else 1.0
    table = Table(f"{known.words} ({known.unit})" if known else setting, **_PLAIN)
    for row in found.rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    counts = [Counter(getattr(row.model, setting).tolist()) for row in found.rows]
    for value in sorted(set().union(*counts)):
        table.add_row(f"{value * factor:.6g}", *(str(each[value] or "") for each in counts))
    console.print(table, "")
    if found.task is not None:
        before, after = (tissue.name for tissue in found.task.tissues)
        console.print(f"Detection: {before} | {after}\n", soft_wrap=True)
        table = Table("AUC", **_PLAIN)
        for row in found.rows:
            table.add_column(row.name, justify="right", no_wrap=True)
        for name in found.rows[0].auc:
            areas = [row.auc[name] for row in found.rows]
            table.add_row(name, *(with_error(area.value, area.error) for area in areas))
        console.print(table, "")
    table = Table("RMSE", **_PLAIN)
    for row in found.rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    for index, parameter in enumerate(found.parameters):
        title = f"{parameter.name} {_unit(parameter.unit)}".strip()
        table.add_row(title, *(with_error(r.rmse[index], r.error[index]) for r in found.rows))
    console.print(table, "")
    first = found.rows[0]
    for name in found.minimised if found.task is not None else ():
        gain = with_error(first.auc[name].gain, first.auc[name].gain_error)
        console.print(f"AUC of {name} (maximised): {gain} against the {found.reference}.")
    aims = found.kept if found.task is not None else (*found.minimised, *found.kept)
    for index, parameter in enumerate(found.parameters):
        if parameter.name in aims:
            change = with_error(100 * (first.ratio[index] - 1), 100 * first.ratio_error[index])
            aim = "minimised" if parameter.name in found.minimised else "kept"
            console.print(f"{parameter.name} ({aim}): {change} % against the {found.reference}.")
    snr = _short(1 / found.sigma)
    console.print(f"\n±: one standard error, over {found.voxels:,} fresh voxels; SNR {snr}")
    console.print(f"{file} (look at design.png first)", soft_wrap=True)


def show_tuning(tuning: Tuning, net: Path, folder: Path) -> None:
    """The best alpha of each parameter, its AUC or RMSE, and the options for `labelwise map`."""
    console = stdout()
    measure, names = tuning.measure, [tissue.name for tissue in tuning.task.tissues]
    apart = len(names) > 1
    what = f"Detection: {' | '.join(names)}" if apart else f"RMSE over {names[0]}"
    console.print(
        f"{what}\nSNR {_short(1 / tuning.sigma)}; {tuning.voxels:,} voxels"
        f"{' per tissue' if apart else ''} to choose alpha, as many others to evaluate it\n",
        soft_wrap=True,
    )
    table = Table(**_PLAIN)
    table.add_column("parameter", no_wrap=True)
    for title in ("alpha", "as good", f"{measure} there", "at alpha 0", "at alpha 1"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, curve in tuning.curves.items():
        unit = _unit(curve.parameter.unit) if measure == "RMSE" else ""
        table.add_row(
            f"{name} {unit}".strip(),
            f"{curve.alpha[curve.best]:g}",
            _alphas(curve),
            *(with_error(curve.value[i], curve.error[i]) for i in (curve.best, 0, -1)),
        )
    if (both := tuning.discriminant) is not None:
        values = map(with_error, both.value, both.error)
        table.add_row("all", "these", "", *values)
    console.print(table, "", sep="\n")
    for line in _tuning_notes(tuning):
        console.print(line, soft_wrap=True)
    alphas = " ".join(f"--alpha {name}={value:g}" for name, value in tuning.alphas.items())
    console.print(f"\nlabelwise map ... --net {pasted(str(net))} {alphas}", soft_wrap=True)
    console.print(f"{folder} (look at tune.png first)", soft_wrap=True)


def _tuning_notes(tuning: Tuning) -> Iterator[str]:
    """Explanations of the table of a tuning, one sentence each."""
    flat = [name for name, curve in tuning.curves.items() if curve.differs and curve.flat]
    if flat:
        yield f"{', '.join(flat)}: alpha makes no significant difference."
    same = [name for name, curve in tuning.curves.items() if not curve.differs]
    if same:
        yield (
            f"{', '.join(same)}: the same in both tissues, so alpha stays at 1; an AUC other than "
            "0.5 comes from changes of other parameters."
        )
    if (both := tuning.discriminant) is not None:
        yield "all: a linear discriminant of all parameters, fitted where alpha was chosen."
        for place, alpha in ((1, "0"), (2, "1")):
            if both.worse[place] < -2 * both.worse_error[place]:
                gain = with_error(-both.worse[place], both.worse_error[place])
                yield f"all: alpha {alpha} for all parameters is better than these, by {gain}."
    if tuning.intervals:
        checks = "; ".join(
            f"{name} {100 * check.coverage:.1f} % and {_short(check.score)} ({check.kind})"
            for name, check in tuning.intervals.items()
        )
        yield f"95 % intervals at these alphas, coverage and interval score: {checks}."
    error = "DeLong's standard error" if tuning.measure == "AUC" else "one standard error"
    yield f"±: {error}; as good: not worse by two standard errors of the paired difference."


def _alphas(curve: Curve) -> str:
    """The alphas that are as good as the best."""
    if not curve.differs:
        return ""
    if curve.flat:
        return "any"
    low, high = curve.span
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
