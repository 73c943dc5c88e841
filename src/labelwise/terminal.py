"""How results look in a terminal: tables on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from labelwise.noise_level import NoiseLevel
    from labelwise.summary import Comparison, FitReport

_PLAIN: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False, emoji=False)


def stderr() -> Console:
    """Where everything else goes; sentences are not broken into lines, so that tools find them."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def notes() -> Iterator[None]:
    """Show each warning as one line, once."""
    shown = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            stderr().print(f"note: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
        warnings.showwarning = show
        yield


def sentence(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'system'}: {error.strerror}"
    return " ".join(str(error).split())


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar on stderr that goes away; yields the callback (done, total) that moves it."""
    console = stderr()
    columns = (
        *(TextColumn("fitting"), BarColumn(), TaskProgressColumn()),
        *(TextColumn("{task.completed:.0f} of {task.total:.0f} voxels"), TimeRemainingColumn()),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("fitting", total=1)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_report(report: FitReport) -> None:
    """The closing table of a fit."""
    console = stdout()
    table = Table("parameter", **_PLAIN)
    for title in ("median", "quartiles", "unit", "std. error", "on low, high bound"):
        table.add_column(title, justify="left" if title == "unit" else "right", no_wrap=True)
    for row in report.parameters:
        low, median, high = (number(value) for value in row.quartiles)
        table.add_row(
            *(row.parameter.name, median, f"{low} to {high}", _unit(row.parameter.unit)),
            number(row.standard_error),
            ", ".join(f"{100 * share:.1f}" for share in row.on_bound) + " %",
        )
    console.print(table)
    total = sum(report.voxels.values())
    table = Table(**_PLAIN, show_header=False)
    for status, count in report.voxels.items():
        table.add_row(status.reason, f"{count:,} voxels", f"{100 * count / total:.1f} %")
    table.columns[1].justify = table.columns[2].justify = "right"
    console.print("", table, "", sep="\n")

    levels = [_level(report.sigma), *(f"{_level(o)} (not used)" for o in report.other_sigma)]
    speed, seconds = number(report.voxels_per_second), report.seconds["fit"]
    table = Table(**_PLAIN, show_header=False)
    table.add_row("sigma", Text("\n".join(levels)))
    if math.isfinite(report.residual):
        words = f"{number(report.residual)} in the median; 1 if model and sigma are right"
        table.add_row("residual", words)
    table.add_row("speed", f"{speed} voxels/s ({seconds:.1f} s, compiling included)")
    table.add_row("maps", Text(f"{report.folder} (look at maps.png first)", overflow="fold"))
    console.print(table)


def show_models(models: Mapping[str, Mapping[str, Any]]) -> None:
    """A list of signal models, as `labelwise models --json` gives them."""
    console = stdout()
    for name, model in models.items():
        console.print(f"[bold]{name}[/bold]  needs {', '.join(model['needs'])}")
        console.print(f"  {model['equation']}", markup=False)
        table = Table(**_PLAIN, show_header=False)
        for parameter in model["parameters"]:
            low, high = parameter["bounds"]
            span = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
            table.add_row(f"    {parameter['name']}", span, _unit(parameter["unit"]))
        console.print(table, "", sep="\n")
    console.print("Your own model is one file: --model FILE.py:Class", markup=False)


def show_comparison(rows: Sequence[Comparison]) -> None:
    """Estimate (and truth), one line for each tissue."""
    table = Table("tissue", **_PLAIN)
    table.add_column("voxels", justify="right")
    for parameter in dict.fromkeys(row.parameter for row in rows):
        title = f"{parameter.name}\n{_unit(parameter.unit)}"
        table.add_column(title, justify="right", no_wrap=True)
    for tissue in dict.fromkeys(row.tissue for row in rows):
        cells = [row for row in rows if row.tissue == tissue]
        pairs = [f"{number(cell.estimate)} ({_short(cell.truth)})" for cell in cells]
        table.add_row(tissue, str(cells[0].voxels), *pairs)
    console = stdout()
    console.print("\nMedian estimate (and truth) in each tissue\n", style="bold")
    console.print(table)


def number(value: float) -> str:
    """Three significant digits, without an exponent where a person would write none.

    Example:
        >>> [number(value) for value in (0.0499999, 1234.5, 2.5e-7)]
        ['0.0500', '1,230', '2.5e-07']
    """
    if not math.isfinite(value):
        return "none"
    value = float(f"{value:.3g}")
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _short(value: float) -> str:
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _level(level: NoiseLevel) -> str:
    return f"{number(level.sigma)} ({level.method}): {level.note}"


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit
