"""The figure of a design: its acquisitions, their errors, and the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labelwise.evaluation.design import GAUSSIAN, PRESENT, THIS, Design
from labelwise.plots.curves import legend_below, sheet, tidy
from labelwise.plots.maps import symbol
from labelwise.plots.styles import BLACK, BLUE, BROWN
from labelwise.types import SETTINGS, Parameter

_SIZE = 3.6, 2.6  # inches, of one panel
_DIGIT = 0.016  # of the axis, of a count; counts that would touch are in different lines
_LOOKS: dict[str, dict[str, Any]] = {
    THIS: {"color": BLUE, "marker": "o"},
    PRESENT: {"color": BLACK, "marker": "s"},
    GAUSSIAN: {"color": BROWN, "marker": "D"},
}


def design_figure(found: Design, setting: str) -> Figure:
    """Volumes at each setting, RMSE relative to the reference, and efficiency along the search.

    For a task, the AUC of the parameters, too.

    Args:
        found: from `labelwise.design`.
        setting: the one that was designed.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Example:
        >>> import labelwise as lw
        >>> prior = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.5, 2.0)})
        >>> model, options = lw.ADC([0.0, 0.5, 1.0]), {"estimator": "fit", "voxels": 200}
        >>> found = lw.design(model, lw.Gaussian(), prior, 0.1, 6, **options)
        >>> [axes.get_xlabel() for axes in design_figure(found, "b").axes]
        ['b-values (s/mm²)', 'RMSE / RMSE of Gaussian optimum', 'volumes exchanged']
    """
    names = [row.name for row in found.rows]
    model = type(found.model).__name__
    title = f"{model}, SNR {1 / found.sigma:.3g}, estimator {found.estimator}"
    columns = 3 if found.task is None else 4
    figure, grid = sheet(1, columns, title, names, size=_SIZE, sharex="none")
    settings, *areas, errors, search = grid[0]
    _settings(settings, found, setting)
    _errors(errors, found)
    for axes in areas:
        _areas(axes, found)
    for index, path in enumerate(found.search):
        first = {"color": BROWN, "linewidth": 1.6} if index == 0 else {"color": "0.7"}
        search.plot(path, zorder=3 - (index > 0), **first)
    search.set_ylim(0, 1.05)
    search.set_xlabel("volumes exchanged", fontsize=8)
    search.set_ylabel("efficiency, by the bound", fontsize=8)
    search.set_title("from the Gaussian optimum, and at random (grey)", fontsize=8)
    for axes in grid[0]:
        tidy(axes)
    legend_below(figure, [Line2D([], [], linestyle="", **_LOOKS[name]) for name in names], names)
    return figure


def _settings(axes: Axes, found: Design, setting: str) -> None:
    known = SETTINGS.get(setting)
    factor = known.factor if known else 1.0
    largest = factor * max(float(np.max(getattr(row.model, setting))) for row in found.rows)
    for height, row in enumerate(reversed(found.rows)):
        values, counts = np.unique(getattr(row.model, setting), return_counts=True)
        size = 160 * counts / max(len(getattr(row.model, setting)) / 2, 1) + 6
        look = {"s": size, "clip_on": False, "zorder": 5, **_LOOKS[row.name]}
        axes.scatter(values * factor, np.full(len(values), height), **look)
        ends: list[float] = []  # of each line of counts
        for value, count in zip(values * factor, counts, strict=True):
            place, half = float(np.sqrt(value / largest)), _DIGIT * (1 + len(str(count))) / 2
            free = [line for line, end in enumerate(ends) if place - half > end]
            line = free[0] if free else len(ends)
            ends[line : line + 1] = [place + half]
            axes.annotate(
                str(count),
                (value, height),
                xytext=(0, 9 + 8 * line),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xlim(0, 1.05 * largest)
    ticks = largest * np.array([0, 1, 4, 9, 16]) / 16  # evenly spaced on this axis
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_ylim(-0.5, len(found.rows) - 0.4)
    axes.set_yticks([])
    label = f"{known.words} ({known.unit})" if known else setting
    axes.set_xlabel(label, fontsize=8)
    axes.set_title("volumes at each setting", fontsize=8)


def _errors(axes: Axes, found: Design) -> None:
    points = [(row.ratio, row.ratio_error) for row in found.rows]
    _points(axes, found, found.parameters, points)
    axes.axvline(1, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel(f"RMSE / RMSE of {found.reference}", fontsize=8)


def _areas(axes: Axes, found: Design) -> None:
    shown = [each for each in found.parameters if each.name in found.rows[0].auc]
    areas = [[row.auc[each.name] for each in shown] for row in found.rows]
    points = [np.array([(each.value, each.error) for each in row]).T for row in areas]
    _points(axes, found, shown, points)
    axes.set_xlabel("AUC of the two tissues", fontsize=8)


def _points(
    axes: Axes, found: Design, parameters: Sequence[Parameter], points: Sequence[Any]
) -> None:
    """Values of each acquisition with two standard errors, a line for each parameter."""
    places = np.arange(len(parameters))[::-1]
    for index, (row, (value, error)) in enumerate(zip(found.rows, points, strict=True)):
        shift = 0.22 * ((len(found.rows) - 1) / 2 - index)
        axes.errorbar(
            value,
            places + shift,
            xerr=2 * error,
            linestyle="",
            markersize=5,
            **_LOOKS[row.name],
        )
    axes.set_yticks(places, [symbol(parameter) for parameter in parameters])
    axes.set_ylim(-0.6, len(parameters) - 0.4)
    axes.set_title(f"{found.voxels:,} fresh voxels, ± 2 standard errors", fontsize=8)
