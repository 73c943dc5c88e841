"""Figures of evaluations: bias, standard deviation and RMSE against the true value.

Each `Figure` has its own Agg canvas. `sheet`, `panel`, `legend_below` and `tidy` are for other
figures of evaluations, too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float, Shaped
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labelwise.evaluation.grid import marginal
from labelwise.plots.maps import in_unit, symbol, verbatim
from labelwise.types import InputError, Parameter

QUANTITIES = {"bias": "bias", "std": "standard deviation", "rmse": "RMSE"}
"""The rows of a figure: variables of an evaluation and their labels."""

_WIDTH, _HEIGHT = 2.9, 1.9  # inches, of one panel
_NARROWEST = 3.4
_LEGEND_LINE = 0.19
_LETTER, _LETTER_ABOVE = 0.062, 0.074  # of the legend, and of the title
_DPI = 120
# Families as in the source's figures: maximum likelihood black, networks that imitate it red, those
# trained on the truth blue, mixtures purple. Shades differ in lightness, and lines also differ in
# dashes or markers, for readers without colour.
_FAMILIES = {
    "fit": ("#000000", "#5a5a5a", "#8c8c8c"),
    "likelihood": ("#d55e00", "#8f2d04", "#e69f00", "#f2a28a"),
    "truth": ("#0072b2", "#56b4e9", "#003a5c", "#7fa8c9"),
    "between": ("#aa4499", "#cc79a7", "#6b2c72", "#dda0d8"),
    "posterior": ("#009e73", "#44bb99", "#00573f"),
    "other": ("#7a6a00", "#999933", "#4d4d4d", "#a67c52"),
}
_PATTERNS = (  # of names; the first match decides
    ("likelihood", r"alpha 1$"),
    ("truth", r"alpha 0$"),
    ("between", r"mix|blend|hybrid|\bdial\b|alpha|α"),
    ("posterior", r"posterior|bayes"),
    ("truth", r"\bgt|_gt|ground"),
    ("likelihood", r"self|label|\bnet|supervised|(?-i:mle)"),  # "mle" is the name of a file
    ("fit", r"mle|likelihood|\bfit|least squares"),
)
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


def curves(dataset: xr.Dataset, parameters: Sequence[Parameter], title: str = "") -> Figure:
    """Bias, standard deviation and RMSE of each parameter against its own true value.

    Averaged over the grid's other dimensions (`labelwise.evaluation.grid.marginal`). Shaded: two
    standard errors on either side. A parameter whose grid has a single value is left out. Colours
    follow the names: maximum likelihood black; networks that imitate it (self-supervised, MLE
    labels, alpha 1) red; networks trained on the truth (GT, alpha 0) blue; mixes and blends purple.

    Args:
        dataset: from `evaluate`.
        parameters: which to show, in which order, with unit and symbol.
        title: one or more lines above all panels.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Raises:
        InputError: if no parameter has more than one value.

    Source: the layout of figures 2 and 3 of Epstein et al. 2024,
    doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import jax, labelwise as lw
        >>> from labelwise.evaluation.grid import evaluate
        >>> from labelwise.priors import Grid
        >>> model, noise = lw.ADC([0.0, 0.5, 1.0]), lw.Gaussian()
        >>> grid = Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
        >>> fits = {"MLE": lw.MaximumLikelihood(model, noise)}
        >>> result = evaluate(fits, model, noise, 0.05, grid, 50, jax.random.key(0))
        >>> figure = curves(result, model.parameters)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['bias', 'standard deviation', 'RMSE']
    """
    shown = [parameter for parameter in parameters if dataset.sizes.get(parameter.name, 0) > 1]
    if not shown:
        raise InputError("parameters: expected one with more than one value on the grid, got none")
    names = [str(name) for name in dataset.estimator.values]
    styles = styles_of(names)
    figure, grid = sheet(len(QUANTITIES), len(shown), title, names)
    for column, parameter in enumerate(shown):
        here = marginal(dataset, parameter.name).sel(parameter=parameter.name)
        for row, quantity in enumerate(QUANTITIES):
            axes = grid[row, column]
            panel(axes, here[parameter.name].values, here, quantity, styles)
            if column == 0:
                axes.set_ylabel(QUANTITIES[quantity], fontsize=9)
        label = symbol(parameter) + in_unit(parameter)
        grid[0, column].set_title(label, fontsize=10)
        grid[-1, column].set_xlabel(f"true {label}", fontsize=9)
    legend_below(figure, grid[0, 0].get_legend_handles_labels()[0], names)
    return figure


def sheet(
    rows: int,
    columns: int,
    title: str = "",
    legend: Sequence[str] = (),
    *,
    size: tuple[float, float] = (_WIDTH, _HEIGHT),
    dpi: int = _DPI,
    sharex: Literal["col", "none"] = "col",
) -> tuple[Figure, Shaped[np.ndarray, "rows columns"]]:
    """An empty figure: rows of panels, room for a title above and for a legend below.

    Args:
        rows: how many.
        columns: how many.
        title: one or more lines above all panels; lines wider than the figure are wrapped.
        legend: the labels that `legend_below` will show.
        size: width and height of a panel with its labels, in inches.
        dpi: pixels per inch.
        sharex: as of `matplotlib.figure.Figure.subplots`.

    Returns:
        The figure, on a canvas of its own, and its Axes.

    Example:
        >>> figure, grid = sheet(3, 2, legend=["MLE"])
        >>> figure.get_size_inches().round(2), grid.shape
        (array([5.8 , 6.01]), (3, 2))
    """
    across = max(columns * size[0], _entry(legend), _NARROWEST)
    foot = _LEGEND_LINE * -(-len(legend) // _per_line(across, legend)) + 0.12 if legend else 0.0
    wrapped = (textwrap.fill(line, int(across / _LETTER_ABOVE)) for line in title.split("\n"))
    title = "\n".join(wrapped)
    head = 0.2 * (1 + title.count("\n")) + 0.08 if title else 0.0
    figure = Figure((across, rows * size[1] + head + foot), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(verbatim(title), fontsize=9, x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex)


def legend_below(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """The legend below all panels of a `sheet` made with these labels."""
    figure.legend(
        handles,
        [verbatim(name) for name in names],
        loc="outside lower left",
        ncols=_per_line(figure.get_figwidth(), names),
        fontsize=8,
        frameon=False,
        handlelength=3.2,
        columnspacing=1.4,
    )


def panel(
    axes: Axes,
    x: Float[np.ndarray, " K"],
    here: xr.Dataset,
    quantity: str,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """One quantity against x: a line per estimator, two standard errors shaded on either side.

    Args:
        axes: where to draw.
        x: K values, such as the truth.
        here: `quantity` and `quantity_error` on the dimension `estimator` and one of length K.
        quantity: one of `QUANTITIES`.
        styles: color, linestyle and marker of each estimator to show, by name.
    """
    if quantity == "bias":
        axes.axhline(0, color="0.35", linewidth=0.8)
    for name, style in styles.items():
        mean = here[quantity].sel(estimator=name).values
        error = 2 * here[f"{quantity}_error"].sel(estimator=name).values
        axes.plot(x, mean, label=verbatim(name), linewidth=1.3, markersize=3.5, **style)
        axes.fill_between(
            x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0
        )
    if quantity != "bias":
        axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Set small ticks and a pale grid; remove the top and right spines."""
    axes.tick_params(labelsize=8, length=3)
    axes.grid(visible=True, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _entry(names: Sequence[str]) -> float:
    """The width of a column of the legend."""
    return 0.7 + _LETTER * max((len(name) for name in names), default=0)


def _per_line(across: float, names: Sequence[str]) -> int:
    return max(1, min(len(names), int(across // _entry(names))))


def styles_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each estimator, according to its name.

    Example:
        >>> {name: style["color"] for name, style in styles_of(["MLE", "GT network"]).items()}
        {'MLE': '#000000', 'GT network': '#0072b2'}
    """
    seen = dict.fromkeys(_FAMILIES, 0)
    styles = {}
    for index, name in enumerate(names):
        family = _family(name)
        number, colours = seen[family], _FAMILIES[family]
        seen[family] += 1
        styles[name] = {
            "color": colours[number % len(colours)],
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[index % len(_MARKERS)],
        }
    return styles


def _family(name: str) -> str:
    for family, pattern in _PATTERNS:
        if re.search(pattern, name, re.IGNORECASE):
            return family
    return "other"
