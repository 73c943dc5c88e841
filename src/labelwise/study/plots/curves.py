"""The paper's figures, as curves: bias, spread and error against what is true.

Results in, matplotlib Axes out, in a figure of their own (`axes.flat[0].figure`) that is saved as
PDF or PNG by its `savefig`. Nothing is estimated, loaded or saved; all that is computed are
averages over the dimensions that a figure does not show.

The first argument is an evaluation from `labelwise.evaluation.grid.evaluate`, unless another one is
named; `names` are the estimators to show, in the order of the legend; `parameters` has one column
each; `title` is one or more lines above all panels. An estimator or a parameter that the evaluation
lacks is an `InputError`.

Source: figures 2, 3, 5, 6, 8 and 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labelwise.evaluation.grid import marginal
from labelwise.plots.curves import QUANTITIES, legend_below, panel, sheet, tidy
from labelwise.plots.maps import in_unit, symbol
from labelwise.plots.styles import PURPLE, styles
from labelwise.types import InputError, Parameter

Panels = Shaped[np.ndarray, "rows columns"]
"""Axes as they are laid out."""

DPI = 150
FEW = 10
"""A bin with fewer voxels has no point: its average is too uncertain."""

_PAGE = 10.0  # inches across, at most
_WIDEST, _HEIGHT = 2.9, 1.9  # of a panel
_ERRORS = tuple(f"{quantity}_error" for quantity in QUANTITIES)


def performance(
    ds: xr.Dataset, names: Sequence[str], parameters: Sequence[Parameter], title: str = ""
) -> Panels:
    """Bias, standard deviation and RMSE of each parameter against its own true value.

    Each point is an average over all other parameters of the grid
    (`labelwise.evaluation.grid.marginal`); shaded: two standard errors on either side. The three
    panels of a parameter have the same scale, the bias with 0 in the middle.

    Returns:
        (3, P) Axes.

    Source: figures 2, 3 and 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import jax, labelwise as lw
        >>> from labelwise.evaluation.grid import evaluate
        >>> from labelwise.study.methods import MLE_MEAN
        >>> model, noise = lw.ADC([0.0, 0.5, 1.0]), lw.Gaussian()
        >>> grid = lw.Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
        >>> fits = {MLE_MEAN: lw.MaximumLikelihood(model, noise)}
        >>> result = evaluate(fits, model, noise, 0.05, grid, 20, jax.random.key(0))
        >>> axes = performance(result, [MLE_MEAN], model.parameters[1:])
        >>> axes.shape, axes[2, 0].get_xlabel()
        ((3, 1), 'true $ADC$ (µm²/ms)')
    """
    check(ds, names, parameters)
    shown = [list(names)] * len(parameters)
    return _against_truth(ds, shown, parameters, title)


def own_weights(
    ds: xr.Dataset,
    reference: str,
    own: Mapping[str, str],
    parameters: Sequence[Parameter],
    title: str = "",
) -> Panels:
    """Each parameter by the network that weighs it above all others, beside a reference.

    Every column compares the reference with another network. Averages, shades and scales are those
    of `performance`.

    Args:
        reference: the estimator in all columns.
        own: by parameter name, the estimator that is compared in its column.

    Returns:
        (3, P) Axes.

    Source: figure 8 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """
    shown = [[reference, own[parameter.name]] for parameter in parameters]
    check(ds, [name for pair in shown for name in pair], parameters)
    return _against_truth(ds, shown, parameters, title)


def binned(
    ds: xr.Dataset, names: Sequence[str], parameters: Sequence[Parameter], title: str = ""
) -> Panels:
    """Bias, standard deviation and RMSE of real voxels, in bins of their reference values.

    Like `performance`; beneath, how many voxels each bin has. Bins with fewer than 10 voxels
    (`FEW`) have no point in the curves, and a paler bar.

    Args:
        ds: `bias`, `std`, `rmse` and their `..._error` (estimator, parameter, bin); `centre` and
            `count` (parameter, bin): the middle of each bin and the voxels in it; `width`
            (parameter).

    Returns:
        (4, P) Axes.

    Source: figures 5 and 6 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """
    check(ds, names, parameters)
    looks = styles(ds)
    figure, grid = sheet(4, len(parameters), title, names, size=_size(parameters), dpi=DPI)
    for column, parameter in zip(grid.T, parameters, strict=True):
        here = ds.sel(parameter=parameter.name)
        centre, count, width = (here[name].values for name in ("centre", "count", "width"))
        enough = here.where(here["count"] >= FEW)
        for axes, quantity in zip(column[:3], QUANTITIES, strict=True):
            panel(axes, centre, enough, quantity, {name: looks[name] for name in names})
        share_scale(column[:3])
        for few, colour in ((False, "0.55"), (True, "0.8")):
            column[3].bar(
                centre, np.where((count < FEW) == few, count, 0), 0.9 * width, color=colour
            )
        column[3].set_xlim(np.nanmin(centre) - width / 2, np.nanmax(centre) + width / 2)
        column[3].set_ylim(bottom=0)
        tidy(column[3])
        _name_column(column, parameter, "reference")
    _name_rows(grid, (*QUANTITIES.values(), "voxels"))
    _legend_of(figure, grid, names)
    return grid


def blend_curves(
    ds: xr.Dataset,
    names_by_alpha: Mapping[float, str],
    parameters: Sequence[Parameter],
    title: str = "",
    trained: Mapping[float, str] | None = None,
) -> Panels:
    """Blends of two networks: means of |bias|, std and RMSE over the grid against alpha.

    |bias| is taken at each grid point before it is averaged, so that its sign cannot cancel;
    noise alone makes that of an unbiased estimator about 0.8 standard errors of one point's bias.
    Shaded: two standard errors on either side.

    Args:
        names_by_alpha: the blend for each alpha: 1 is the network trained on MLE labels, 0
            the one trained on the truth.
        trained: by alpha, networks that were trained on mixed labels, as separate markers.

    Returns:
        (3, P) Axes.
    """
    trained = trained or {}
    check(ds, [*names_by_alpha.values(), *trained.values()], parameters)
    alphas, others = sorted(names_by_alpha), sorted(trained)
    looks, means = styles(ds), _over_grid(ds)
    legend = ("outputs blended", "trained on mixed labels")[: 2 if trained else 1]
    figure, grid = sheet(3, len(parameters), title, legend, size=_size(parameters), dpi=DPI)
    for column, parameter in zip(grid.T, parameters, strict=True):
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            here = means.sel(parameter=parameter.name)
            blends = here.sel(estimator=[names_by_alpha[alpha] for alpha in alphas])
            mean, error = blends[quantity].values, 2 * blends[f"{quantity}_error"].values
            line = {"color": PURPLE, "marker": "o", "markersize": 4, "linewidth": 1.3}
            axes.plot(alphas, mean, **line, label=legend[0])
            axes.fill_between(alphas, mean - error, mean + error, color=PURPLE, alpha=0.2, lw=0)
            colours = [looks[names_by_alpha[alpha]]["color"] for alpha in alphas]
            axes.scatter(alphas, mean, s=20, c=colours, zorder=3)
            if trained:
                hybrids = here[quantity].sel(estimator=[trained[alpha] for alpha in others])
                marks = {"color": PURPLE, "marker": "h", "markersize": 7}
                axes.plot(others, hybrids.values, **marks, ls="", mfc="none", label=legend[1])
            top = axes.dataLim.y1
            axes.set_ylim(0, 1.1 * top if np.isfinite(top) and top > 0 else 1.0)
            axes.locator_params(axis="y", nbins=5)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
            tidy(axes)
        column[0].set_title(symbol(parameter) + in_unit(parameter), fontsize=10)
        column[-1].set_xlabel("alpha (0: truth, 1: MLE)", fontsize=9)
    _name_rows(grid, ("mean |bias|", *list(QUANTITIES.values())[1:]))
    _legend_of(figure, grid, legend)
    return grid


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


def _against_truth(
    ds: xr.Dataset,
    shown: Sequence[Sequence[str]],
    parameters: Sequence[Parameter],
    title: str,
) -> Panels:
    """Marginal curves, with the estimators of each column."""
    known, names = styles(ds), list(dict.fromkeys(name for column in shown for name in column))
    figure, grid = sheet(3, len(parameters), title, names, size=_size(parameters), dpi=DPI)
    for column, parameter, here in zip(grid.T, parameters, shown, strict=True):
        curve = marginal_curve(ds, here, parameter)
        looks = {name: known[name] for name in here}
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            panel(axes, curve[parameter.name].values, curve, quantity, looks)
        share_scale(column)
        _name_column(column, parameter, "true")
    _name_rows(grid, QUANTITIES.values())
    _legend_of(figure, grid, names)
    return grid


def _over_grid(ds: xr.Dataset) -> xr.Dataset:
    """Means of |bias|, std and RMSE over all grid points, with standard errors."""
    means = {}
    for quantity in QUANTITIES:
        values, error = abs(ds[quantity]), ds[f"{quantity}_error"]
        dims = [dim for dim in values.dims if dim not in ("estimator", "parameter")]
        means[quantity] = values.mean(dims)
        means[f"{quantity}_error"] = (error**2).sum(dims) ** 0.5 / values.count(dims)
    return xr.Dataset(means)


def _size(parameters: Sequence[Parameter]) -> tuple[float, float]:
    """Of a panel, so that all columns fit on a page."""
    return min(_WIDEST, _PAGE / len(parameters)), _HEIGHT


def _name_column(column: Panels, parameter: Parameter, what: str) -> None:
    label = symbol(parameter) + in_unit(parameter)
    column[0].set_title(label, fontsize=10)
    column[-1].set_xlabel(f"{what} {label}", fontsize=9)


def _name_rows(grid: Panels, rows: Iterable[str]) -> None:
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=9)
    grid[0, 0].figure.align_ylabels(list(grid[:, 0]))


def _legend_of(figure: Figure, grid: Panels, names: Sequence[str]) -> None:
    """Each of the names once, wherever it was drawn."""
    lines = {line.get_label(): line for axes in grid.flat for line in axes.lines}
    legend_below(figure, [lines[name] for name in names], names)
