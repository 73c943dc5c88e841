"""The figure of a tuning: AUC or RMSE of each parameter against alpha."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from labelwise.evaluation.tuning import Curve, Tuning
from labelwise.plots.curves import legend_below, sheet, tidy
from labelwise.plots.maps import in_unit, symbol
from labelwise.plots.styles import PURPLE

_COLUMNS = 4
_SIZE = 2.9, 2.5  # inches, of one panel
_LETTERS = 14  # of the title in an inch
_LINE: dict[str, Any] = {"color": PURPLE, "linewidth": 1.4}
_BEST: dict[str, Any] = {"color": "k", "marker": "D", "markersize": 4.5, "linestyle": ""}
_BAND: dict[str, Any] = {"color": "#999933", "alpha": 0.25, "linewidth": 0}
_LEAST = {"AUC": 0.02, "RMSE": 0.05}  # least range of the y-axis; for RMSE, a share of it
_LEGEND = (
    "on the held-out voxels, ± 2 standard errors",
    "chosen on the other half",
    "not worse by 2 standard errors",
)


def tune_figure(tuning: Tuning, title: str = "") -> Figure:
    """AUC or RMSE of each parameter against alpha, the chosen alpha, and those as good.

    Args:
        tuning: from `tune`.
        title: above all panels.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Source: eq. 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5, for alpha.

    Example:
        >>> import numpy as np
        >>> from labelwise import ADC
        >>> from labelwise.evaluation.tuning import Rmse
        >>> alpha, value = np.array([0, 0.5, 1]), np.array([0.3, 0.2, 0.4])
        >>> rest = value, value / 20, value - 0.2, value / 30
        >>> curves = {"ADC": Curve(ADC.parameters[1], alpha, 1, value, *rest)}
        >>> figure = tune_figure(Tuning(Rmse(("ADC",)), curves, 1 / 15, 1000))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['RMSE (µm²/ms)']
    """
    count = len(tuning.curves)
    columns = min(count, _COLUMNS)
    title = textwrap.fill(title, max(40, int(_LETTERS * columns * _SIZE[0])))
    figure, grid = sheet(-(-count // columns), columns, title, _LEGEND, size=_SIZE, sharex="none")
    for axes, curve in zip(grid.flat, tuning.curves.values(), strict=False):
        _panel(axes, curve, tuning.measure)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    handles = Line2D([], [], **_LINE), Line2D([], [], **_BEST), Patch(**_BAND)
    legend_below(figure, handles, _LEGEND)
    return figure


def _panel(axes: Axes, curve: Curve, measure: str) -> None:
    parameter, best = curve.parameter, curve.best
    axes.plot(curve.alpha, curve.value, **_LINE)
    low, high = curve.value - 2 * curve.error, curve.value + 2 * curve.error
    axes.fill_between(curve.alpha, low, high, color=_LINE["color"], alpha=0.25, linewidth=0)
    if curve.differs:  # otherwise there is no choice
        axes.plot(curve.alpha[best], curve.value[best], **_BEST, clip_on=False, zorder=4)
        _mark(axes, *curve.span)
    _frame(axes, low.min(), high.max(), measure)
    if measure == "AUC":
        axes.axhline(0.5, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    unit = in_unit(parameter) if measure == "RMSE" else ""
    axes.set_ylabel(f"{measure}{unit}", fontsize=9)
    axes.set_xlabel("alpha (0 least variance, 1 least bias)", fontsize=8)
    same = "" if curve.differs else ", the same in both"
    axes.set_title(f"{symbol(parameter)}{same}", fontsize=10)
    axes.ticklabel_format(axis="y", useOffset=False)
    tidy(axes)


def _mark(axes: Axes, low: float, high: float) -> None:
    """Mark the alphas that are as good as the best by a band."""
    half = max(0.015, (high - low) / 2)
    centre = (low + high) / 2
    axes.axvspan(centre - half, centre + half, **_BAND, zorder=0)


def _frame(axes: Axes, low: float, high: float, measure: str) -> None:
    """Fit the whole band, with a minimum range, so that noise does not fill the axis."""
    least = _LEAST[measure] * (abs(low + high) / 2 if measure == "RMSE" else 1)
    room = max(least, 1.1 * (high - low)) / 2
    middle = (low + high) / 2
    axes.set_ylim(middle - room, middle + room)
