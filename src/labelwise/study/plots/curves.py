"""The paper's figures, as curves: bias, spread and error against what is true.

Results in, matplotlib Axes out, in a figure of their own (`axes.flat[0].figure`) that is saved as
PDF or PNG by its `savefig`. Nothing is estimated, loaded or saved; all that is computed are
averages over the dimensions that a figure does not show.

Arguments that are not listed are those of `labelwise.plots.curves.performance`.

Source: figures 5 and 6 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from labelwise.evaluation.grid import marginal
from labelwise.networks.intervals import LEVEL
from labelwise.plots.curves import (
    QUANTITIES,
    Panels,
    check,
    legend_of,
    name_column,
    name_rows,
    panel,
    panel_size,
    share_scale,
    sheet,
    tidy,
)
from labelwise.plots.maps import in_unit, symbol
from labelwise.plots.styles import PURPLE, styles
from labelwise.types import Parameter

FEW = 10
"""A bin with fewer voxels has no point: its average is too uncertain."""


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
    figure, grid = sheet(4, len(parameters), title, names, size=panel_size(parameters))
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
        name_column(column, parameter, "reference")
    name_rows(grid, (*QUANTITIES.values(), "voxels"))
    legend_of(figure, grid, names)
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
    figure, grid = sheet(3, len(parameters), title, legend, size=panel_size(parameters))
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
    name_rows(grid, ("mean |bias|", *list(QUANTITIES.values())[1:]))
    legend_of(figure, grid, legend)
    return grid


def coverage_curves(ds: xr.Dataset, parameters: Sequence[Parameter], title: str = "") -> Panels:
    """Coverage and interval score of 95 % intervals against the true value, as in `performance`.

    Args:
        ds: `coverage`, `interval_score` and their `..._error`, from `evaluate`.

    Returns:
        (2, P) Axes.
    """
    looks, rows = styles(ds), {"coverage": "coverage (%)", "interval_score": "interval score"}
    names = list(looks)
    check(ds, names, parameters)
    figure, grid = sheet(2, len(parameters), title, names, size=panel_size(parameters))
    chosen = ds[[f"{row}{end}" for row in rows for end in ("", "_error")]]
    chosen = chosen.assign({key: 100 * chosen[key] for key in ("coverage", "coverage_error")})
    for column, parameter in zip(grid.T, parameters, strict=True):
        curve = marginal(chosen, parameter.name).sel(parameter=parameter.name)
        for axes, row in zip(column, rows, strict=True):
            panel(axes, curve[parameter.name].values, curve, row, looks)
        name_column(column, parameter, "true")
    lowest = min(axes.dataLim.y0 for axes in grid[0])
    for axes in grid[0]:
        axes.axhline(100 * LEVEL, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set_ylim(np.floor(min(lowest, 90) / 5 - 0.2) * 5, 102)
    name_rows(grid, rows.values())
    legend_of(figure, grid, names)
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
