"""Evaluations as pictures: bias, spread and error against the truth, one line per estimator.

Like `labelwise.figures`: results in, a `Figure` with its own Agg canvas out; nothing is estimated,
loaded or saved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labelwise.evaluate import marginal
from labelwise.figures import _symbol
from labelwise.types import Parameter

_ROWS = {"bias": "bias", "std": "standard deviation", "rmse": "RMSE"}
_WIDTH, _HEIGHT = 2.9, 1.9  # inches, of one panel
_LEGEND_LINE = 0.19
_LETTER = 0.062  # of the legend
_DPI = 120
# Families as in the source's figures: maximum likelihood black, what imitates it red, what was
# taught the truth blue, what lies between purple. Shades differ in lightness and every line has
# its own dashes and marker, so that colour is never the only difference.
_FAMILIES = {
    "fit": ("#000000", "#5a5a5a", "#8c8c8c"),
    "likelihood": ("#d55e00", "#8f2d04", "#e69f00", "#f2a28a"),
    "truth": ("#0072b2", "#56b4e9", "#003a5c", "#7fa8c9"),
    "between": ("#aa4499", "#cc79a7", "#6b2c72", "#dda0d8"),
    "posterior": ("#009e73", "#44bb99", "#00573f"),
    "other": ("#7a6a00", "#999933", "#4d4d4d", "#a67c52"),
}
_WORDS = (  # the first that a name matches decides
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

    Averaged over the grid's other dimensions (`labelwise.evaluate.marginal`). Shaded: two standard
    errors on either side. A parameter whose grid has a single value is left out. Colours follow the
    names: maximum likelihood black; networks that imitate it (self-supervised, MLE labels, a dial
    at alpha 1) red; taught the truth (GT, alpha 0) blue; mixes and blends purple.

    Args:
        dataset: what `evaluate` returned.
        parameters: which to show, in which order, with unit and symbol.
        title: one or more lines above all panels.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Raises:
        ValueError: if no parameter has more than one value.

    Source: the layout of figures 2 and 3 of Epstein et al. 2024,
    doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import jax, labelwise as lw
        >>> from labelwise.evaluate import evaluate
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
        raise ValueError("parameters: none has more than one value to draw a curve through")
    names = [str(name) for name in dataset.estimator.values]
    styles = styles_of(names)

    entry = 0.7 + _LETTER * max(len(name) for name in names)
    across = max(len(shown) * _WIDTH, entry, 3.4)
    per_line = max(1, min(len(names), int(across // entry)))
    foot = _LEGEND_LINE * (-(-len(names) // per_line)) + 0.12
    head = 0.2 * (1 + title.count("\n")) + 0.08 if title else 0.0
    size = across, len(_ROWS) * _HEIGHT + head + foot
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(len(_ROWS), len(shown), squeeze=False, sharex="col")
    for column, parameter in enumerate(shown):
        here = marginal(dataset, parameter.name).sel(parameter=parameter.name)
        for row, quantity in enumerate(_ROWS):
            axes = grid[row, column]
            _panel(axes, here, quantity, parameter.name, styles)
            if column == 0:
                axes.set_ylabel(_ROWS[quantity], fontsize=9)
        unit = "" if parameter.unit == "1" else f" ({parameter.unit})"
        label = f"{_symbol(parameter)}{unit}"
        grid[0, column].set_title(label, fontsize=10)
        grid[-1, column].set_xlabel(f"true {label}", fontsize=9)
    handles, _ = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=per_line,
        fontsize=8,
        frameon=False,
        handlelength=3.2,
        columnspacing=1.4,
    )
    return figure


def styles_of(names: Sequence[str]) -> dict[str, dict[str, object]]:
    """Colour, dashes and marker of each estimator, by what its name says it is.

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
    for family, words in _WORDS:
        if re.search(words, name, re.IGNORECASE):
            return family
    return "other"


def _panel(
    axes: Axes,
    here: xr.Dataset,
    quantity: str,
    parameter: str,
    styles: Mapping[str, dict[str, object]],
) -> None:
    """One quantity of one parameter, a line per estimator."""
    truth = here[parameter].values
    if quantity == "bias":
        axes.axhline(0, color="0.35", linewidth=0.8)
    for name, style in styles.items():
        mean = here[quantity].sel(estimator=name).values
        error = 2 * here[f"{quantity}_error"].sel(estimator=name).values
        axes.plot(truth, mean, label=name, linewidth=1.3, markersize=3, **style)  # pyright: ignore
        axes.fill_between(
            truth, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0
        )
    if quantity != "bias":
        axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8, length=3)
    axes.margins(x=0.03)
    axes.grid(visible=True, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
