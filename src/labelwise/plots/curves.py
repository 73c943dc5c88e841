"""Figures of evaluations: bias, standard deviation and RMSE against the true value.

Results in, matplotlib Axes out, in a figure with an Agg canvas of its own. The other functions are
for the further figures of evaluations: of tunings and studies.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
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
from labelwise.plots.styles import styles
from labelwise.types import InputError, Parameter

QUANTITIES = {"bias": "bias", "std": "standard deviation", "rmse": "RMSE"}
"""The rows of a figure: variables of an evaluation and their labels."""

Panels = Shaped[np.ndarray, "rows columns"]
"""Axes as they are laid out."""

_DPI = 150
_WIDTH, _HEIGHT = 2.9, 1.9  # inches, of one panel
_PAGE = 10.0  # inches across, at most
_ERRORS = tuple(f"{quantity}_error" for quantity in QUANTITIES)
_NARROWEST = 3.4
_LEGEND_LINE = 0.19
_LETTER, _LETTER_ABOVE = 0.062, 0.074  # of the legend, and of the title


def performance(
    ds: xr.Dataset,
    names: Sequence[str] | Mapping[str, Sequence[str]],
    parameters: Sequence[Parameter],
    title: str = "",
) -> Panels:
    """Bias, standard deviation and RMSE of each parameter against its own true value.

    Each point is an average over all other parameters of the grid
    (`labelwise.evaluation.grid.marginal`); shaded: two standard errors on either side. The three
    panels of a parameter have the same scale, the bias with 0 in the middle. Colours follow the
    methods (`labelwise.plots.styles`).

    Args:
        ds: from `labelwise.evaluation.grid.evaluate`.
        names: the estimators to show, in the order of the legend; or those of each column, by the
            name of its parameter.
        parameters: which to show, one column each.
        title: one or more lines above all panels.

    Returns:
        (3, P) Axes; save their figure with `axes[0, 0].figure.savefig(path)`.

    Raises:
        InputError: if the evaluation lacks an estimator or a parameter, or none is requested.

    Source: figures 2, 3, 8 and 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import jax, labelwise as lw
        >>> model, noise = lw.ADC([0.0, 0.5, 1.0]), lw.Gaussian()
        >>> grid = lw.Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
        >>> fits = {"MLE": lw.MaximumLikelihood(model, noise)}
        >>> result = lw.evaluate(fits, model, noise, 0.05, grid, 20, jax.random.key(0))
        >>> axes = performance(result, ["MLE"], model.parameters[1:])
        >>> axes.shape, axes[2, 0].get_xlabel()
        ((3, 1), 'true $ADC$ (µm²/ms)')
    """
    if isinstance(names, Mapping):
        shown, columns = names, list(names.values())
    else:
        shown, columns = {parameter.name: names for parameter in parameters}, [names]
    every = list(dict.fromkeys(name for column in columns for name in column))
    check(ds, every, parameters)
    known = styles(ds)
    figure, grid = sheet(3, len(parameters), title, every, size=panel_size(parameters))
    for column, parameter in zip(grid.T, parameters, strict=True):
        here = shown[parameter.name]
        curve = marginal_curve(ds, here, parameter)
        looks = {name: known[name] for name in here}
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            panel(axes, curve[parameter.name].values, curve, quantity, looks)
        share_scale(column)
        name_column(column, parameter, "true")
    name_rows(grid, QUANTITIES.values())
    legend_of(figure, grid, every)
    return grid


def sheet(
    rows: int,
    columns: int,
    title: str = "",
    legend: Sequence[str] = (),
    *,
    size: tuple[float, float] = (_WIDTH, _HEIGHT),
    sharex: Literal["col", "none"] = "col",
) -> tuple[Figure, Panels]:
    """An empty figure: rows of panels, room for a title above and for a legend below.

    Args:
        rows: how many.
        columns: how many.
        title: one or more lines above all panels; lines wider than the figure are wrapped.
        legend: the labels that `legend_below` will show.
        size: width and height of a panel with its labels, in inches.
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
    figure = Figure((across, rows * size[1] + head + foot), dpi=_DPI, layout="constrained")
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


def check(
    ds: xr.Dataset,
    names: Sequence[str],
    parameters: Sequence[Parameter],
    of: str = "estimator",
) -> None:
    """Raise an error for estimators and parameters that an evaluation lacks.

    Raises:
        InputError: if one is missing, or none is requested.
    """
    wanted = {
        "names": (of, names),
        "parameters": ("parameter", [parameter.name for parameter in parameters]),
    }
    for argument, (dim, requested) in wanted.items():
        known = [str(value) for value in ds[dim].values]
        missing = [name for name in requested if name not in known]
        if missing or not requested:
            raise InputError(
                f"{argument}: expected each {dim} to be one of {', '.join(known)}; "
                f"got {', '.join(map(repr, missing)) or 'none'}"
            )


def marginal_curve(ds: xr.Dataset, names: Sequence[str], parameter: Parameter) -> xr.Dataset:
    """Bias, std and RMSE of a parameter, averaged over all others, with standard errors."""
    chosen = ds[[*QUANTITIES, *_ERRORS]].sel(estimator=list(dict.fromkeys(names)))
    return marginal(chosen, parameter.name).sel(parameter=parameter.name)


def share_scale(column: Sequence[Axes] | Panels) -> None:
    """Set one scale for bias, std and RMSE: bias around 0, the others from 0 upwards."""
    reach = [np.abs(axes.dataLim.intervaly).max() for axes in column]
    span = 1.05 * max(2 * reach[0], *reach[1:])
    if not (np.isfinite(span) and span > 0):
        span = 1.0
    for axes in column:
        axes.set_ylim(0, span)
        axes.locator_params(axis="y", nbins=5)
    column[0].set_ylim(-span / 2, span / 2)


def panel_size(parameters: Sequence[Parameter]) -> tuple[float, float]:
    """Of a panel, so that all columns fit on a page."""
    return min(_WIDTH, _PAGE / len(parameters)), _HEIGHT


def name_column(column: Panels, parameter: Parameter, what: str) -> None:
    """The parameter above a column, and beneath it what its values are."""
    label = symbol(parameter) + in_unit(parameter)
    column[0].set_title(label, fontsize=10)
    column[-1].set_xlabel(f"{what} {label}", fontsize=9)


def name_rows(grid: Panels, rows: Iterable[str]) -> None:
    """What is shown in each row, at its left."""
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=9)
    grid[0, 0].figure.align_ylabels(list(grid[:, 0]))


def legend_of(figure: Figure, grid: Panels, names: Sequence[str]) -> None:
    """Each of the names once, wherever it was drawn."""
    lines = {line.get_label(): line for axes in grid.flat for line in axes.lines}
    legend_below(figure, [lines[verbatim(name)] for name in names], names)


def _entry(names: Sequence[str]) -> float:
    """The width of a column of the legend."""
    return 0.7 + _LETTER * max((len(name) for name in names), default=0)


def _per_line(across: float, names: Sequence[str]) -> int:
    return max(1, min(len(names), int(across // _entry(names))))
