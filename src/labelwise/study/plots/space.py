"""The paper's figures of whole parameter spaces, and of images.

In a PDF, images and densities are pixels and everything else is vectors. Arguments that are not
listed are those of `labelwise.plots.curves.performance`.

Source: figures 4, 7, 9, 11 and 12 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labelwise.plots.curves import (
    QUANTITIES,
    Panels,
    check,
    legend_below,
    marginal_curve,
    panel,
    share_scale,
    sheet,
    tidy,
)
from labelwise.plots.maps import colour_range, in_unit, map_image, symbol, window_around
from labelwise.plots.styles import styles
from labelwise.types import Parameter

_PAGE = 10.0  # inches across, at most
_BAR = 0.8  # inches of it that colour bars and what is written around images take
_MARGIN = 0.25  # around the parameter space, as a share of its sides


def arrows(
    ds: xr.Dataset,
    names: Sequence[str],
    pairs: Sequence[tuple[Parameter, Parameter]],
    title: str = "",
) -> Panels:
    """Arrows from true values to mean estimates over parameter space.

    Arrows go from the true values of two parameters (a dot) to the mean estimate, averaged over
    all other parameters of the grid. Rectangle: the parameter space. All panels of a pair have the
    same limits, a quarter wider than the space on each side; further out if an arrow leads there.

    Args:
        names: which estimators to show, one row each; side by side if there is a single pair.
        pairs: the parameters along x and y, one column for each pair.

    Returns:
        (estimators, pairs) Axes; (1, estimators) if there is a single pair.

    Source: figures 4 and 9 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """
    check(ds, names, [parameter for pair in pairs for parameter in pair])
    looks = styles(ds)
    across = len(names) if len(pairs) == 1 else len(pairs)
    size = float(np.clip(_PAGE / across, 2.2, 3.2)), 2.3
    _, laid = sheet(len(names) * len(pairs) // across, across, title, size=size)
    grid = laid.reshape(len(names), len(pairs))
    for column, pair in zip(grid.T, pairs, strict=True):
        x, y = (parameter.name for parameter in pair)
        bias = _plane(ds.bias, x, y)
        truth = np.meshgrid(ds[x].values, ds[y].values)
        box = [(float(values.min()), float(np.ptp(values))) for values in truth]
        ends = [
            values + bias.sel(estimator=list(names), parameter=name).values
            for values, name in zip(truth, (x, y), strict=True)
        ]
        limits = []
        for (low, side), tips in zip(box, ends, strict=True):
            gap = _MARGIN * (side or abs(low) or 1.0)
            # fmin and fmax pass over what has no estimate.
            lowest = np.fmin.reduce(tips.ravel(), initial=low - gap)
            limits.append((lowest, np.fmax.reduce(tips.ravel(), initial=low + side + gap)))
        for row, (axes, name) in enumerate(zip(column, names, strict=True)):
            axes.add_patch(
                Rectangle(
                    (box[0][0], box[1][0]), box[0][1], box[1][1], fill=False, ec="0.5", lw=0.8
                )
            )
            axes.scatter(*truth, s=3, c="0.6", linewidth=0)
            axes.quiver(
                *truth,
                *(tips[row] - start for tips, start in zip(ends, truth, strict=True)),
                angles="xy",
                scale_units="xy",
                scale=1,
                color=looks[name]["color"],
                width=0.9 / 72,
                units="inches",
                headwidth=4,
                headlength=5,
                headaxislength=4.5,
                minlength=0.5,
            )
            axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_ylabel(symbol(pair[1]) + in_unit(pair[1]), fontsize=9)
            tidy(axes)
        for axes in column if len(pairs) == 1 else column[-1:]:
            axes.set_xlabel(symbol(pair[0]) + in_unit(pair[0]), fontsize=9)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_title(name, fontsize=9, loc="left", color=looks[name]["color"])
    return laid


def densities(
    ds: xr.Dataset, a: str, b: str, parameters: Sequence[Parameter], title: str = ""
) -> Panels:
    """One estimator's performance against another's at all grid points, without averaging.

    Colour: how many grid points have that bias (standard deviation, RMSE) by the one and by the
    other; dashed: where they are equal. The scale of colours is logarithmic and the same in all
    panels.

    Args:
        a: the estimator along x.
        b: the estimator along y.

    Returns:
        (3, P) Axes.

    Source: figure 11 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """
    check(ds, [a, b], parameters)
    side = min(2.6, (_PAGE - _BAR) / len(parameters))
    size = side + _BAR / len(parameters), side
    figure, grid = sheet(3, len(parameters), title, size=size, sharex="none")
    norm, meshes = LogNorm(1, 10), []
    for column, parameter in zip(grid.T, parameters, strict=True):
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            here = ds[quantity].sel(parameter=parameter.name)
            pair = np.stack([here.sel(estimator=name).values.ravel() for name in (a, b)])
            pair = pair[:, np.isfinite(pair).all(axis=0)]
            meshes.append(_density(axes, pair, norm))
            if quantity != "bias":
                axes.set(xlim=(0, axes.get_xlim()[1]), ylim=(0, axes.get_ylim()[1]))
        column[0].set_title(symbol(parameter) + in_unit(parameter), fontsize=10)
        words = textwrap.fill(f"{a}{in_unit(parameter)}", int(14 * side))
        column[-1].set_xlabel(words, fontsize=8)
    for axes, row in zip(grid[:, 0], QUANTITIES.values(), strict=True):
        axes.set_ylabel(f"{row}\n{b}", fontsize=8)
    norm.vmax = max(10.0, *(np.ma.filled(mesh.get_array(), 0).max() for mesh in meshes))
    bar = figure.colorbar(meshes[0], ax=list(grid.flat), aspect=40, pad=0.02, format="%g")
    bar.set_label("grid points", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.align_ylabels(list(grid[:, 0]))
    _settle(figure)
    return grid


def _density(axes: Axes, pair: Float[np.ndarray, "2 G"], norm: LogNorm) -> QuadMesh:
    """A histogram of points in a square, with its diagonal."""
    bins = int(np.clip(np.sqrt(pair.shape[1]) / 2, 10, 60))
    low, high = (pair.min(), pair.max()) if pair.size else (0.0, 1.0)
    gap = 0.03 * (high - low) or 0.5
    span = low - gap, high + gap
    counts, *edges = np.histogram2d(*pair, bins=bins, range=[span, span])
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_equal(counts.T, 0), norm=norm, cmap="viridis_r", rasterized=True
    )
    axes.axline((low, low), slope=1, color="0.2", linewidth=0.8, linestyle=(0, (4, 2)))
    axes.set(xlim=span, ylim=span, aspect="equal")
    axes.locator_params(nbins=4)
    tidy(axes)
    return mesh


def fixed_points(
    ds: xr.Dataset,
    a: str,
    b: str,
    parameter: Parameter,
    x: Parameter,
    y: Parameter,
    title: str = "",
    indices: tuple[int, int] = (1, -2),
) -> Panels:
    """Two estimators of one parameter, over two others: what averages over the grid hide.

    Left and right: bias, standard deviation and RMSE of a less those of b at two fixed values of
    the parameter, over x and y; averaged over whatever parameters remain, such as S0. Both planes
    of a row have one range of colours, 0 in its middle. Centre: the marginal curves of both
    estimators as in `labelwise.plots.curves.performance`, the two values marked.

    Args:
        a: the first estimator.
        b: the one that is subtracted.
        parameter: whose estimates are compared, and which is held at two values.
        x: the parameter along x of the planes.
        y: the parameter along y of the planes.
        indices: which of the grid's values of `parameter` are fixed, on the left and on the right.

    Returns:
        (3, 3) Axes.

    Source: figure 12 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """
    check(ds, [a, b], [parameter, x, y])
    values = ds[parameter.name].values
    known = styles(ds)
    looks = {name: known[name] for name in (a, b)}
    note = f"left and right: {a} minus {b}"
    title = f"{title}\n{note}" if title else note
    figure, grid = sheet(3, 3, title, (a, b), size=(3.1, 2.1))
    curve = marginal_curve(ds, (a, b), parameter)
    for row, (quantity, words) in zip(grid, QUANTITIES.items(), strict=True):
        here = ds[quantity].sel(parameter=parameter.name)
        less = here.sel(estimator=a, drop=True) - here.sel(estimator=b, drop=True)
        planes = [_plane(less.isel({parameter.name: i}), x.name, y.name).values for i in indices]
        reach = np.max(np.abs(planes), initial=0.0, where=np.isfinite(planes)) or 1.0
        for axes, plane in zip(row[[0, 2]], planes, strict=True):
            axes.pcolormesh(
                *(ds[x.name].values, ds[y.name].values, plane),
                shading="nearest",
                cmap="BrBG",
                vmin=-reach,
                vmax=reach,
                rasterized=True,
            )
            axes.tick_params(labelsize=8, length=3)
            axes.set_ylabel(symbol(y) + in_unit(y), fontsize=9)
        panel(row[1], values, curve, quantity, looks)
        for index in indices:
            row[1].axvline(values[index], color="0.5", linewidth=0.9, linestyle=(0, (4, 2)))
        row[1].set_ylabel(f"{words}{in_unit(parameter)}", fontsize=8)
        bar = figure.colorbar(row[2].collections[0], ax=list(row), aspect=14, pad=0.02)
        bar.set_label(f"difference of\n{words}{in_unit(parameter)}", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    share_scale(grid[:, 1])
    for column, index in ((0, indices[0]), (2, indices[1])):
        at = f"{symbol(parameter)} = {values[index]:.3g} {parameter.unit}".removesuffix(" 1")
        grid[0, column].set_title(f"at {at}", fontsize=9)
        grid[2, column].set_xlabel(symbol(x) + in_unit(x), fontsize=9)
    grid[0, 1].set_title("averages", fontsize=9)
    grid[2, 1].set_xlabel(f"true {symbol(parameter)}{in_unit(parameter)}", fontsize=9)
    legend_below(figure, grid[0, 1].get_legend_handles_labels()[0], (a, b))
    return grid


def maps(ds: xr.Dataset, parameters: Sequence[Parameter], title: str = "") -> Panels:
    """One slice by every method, beside the gold standard.

    The first array axis points right and the second up. All maps of a parameter share the range of
    colours, from the 2nd to the 98th percentile of the gold standard; grey: no value. Cropped to
    the voxels that have a value by some method.

    Args:
        ds: `value` (method, parameter, x, y), NaN where there is none; the first method is the gold
            standard.
        parameters: which to show, one row each.

    Returns:
        (P, methods) Axes.

    Source: figure 7 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> adc = Parameter("D", "µm²/ms", (0.01, 4.0))
        >>> dims = "method", "parameter", "x", "y"
        >>> coords = {"method": ["Gold standard", "GT"], "parameter": ["D"]}
        >>> ds = xr.Dataset({"value": (dims, np.ones((2, 1, 8, 6)))}, coords)
        >>> [axes.get_title() for axes in maps(ds, [adc])[0]]
        ['Gold standard', 'GT']
    """
    methods = [str(name) for name in ds.method.values]
    check(ds, methods, parameters, "method")
    values = ds.value.transpose("method", "parameter", "x", "y")
    window = window_around(np.isfinite(values.values).any(axis=(0, 1)))
    wide, high = (side.stop - side.start for side in window)
    width = min(1.7, (_PAGE - _BAR) / len(methods))
    height = width * high / wide + 0.05 + 0.35 / len(parameters)
    size = width + _BAR / len(methods), height
    figure, grid = sheet(len(parameters), len(methods), title, size=size)
    for row, parameter in zip(grid, parameters, strict=True):
        images = values.sel(parameter=parameter.name).values[:, window[0], window[1]]
        limits = colour_range(images[0], np.isfinite(images[0]), top=98)
        colours = "gray" if parameter.unit == "a.u." else "viridis"
        for axes, image in zip(row, images, strict=True):
            map_image(axes, image, colours, limits)
            axes.set_aspect("equal")
        row[0].text(
            *(-0.06, 0.5, symbol(parameter)),
            transform=row[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=10,
        )
        bar = figure.colorbar(row[0].images[0], ax=list(row), aspect=14, pad=0.01, extend="both")
        bar.set_label(symbol(parameter) + in_unit(parameter), fontsize=8)
        bar.ax.tick_params(labelsize=8)
    for axes, name in zip(grid[0], methods, strict=True):
        axes.set_title(textwrap.fill(name, 16), fontsize=8)
    _settle(figure)
    return grid


def _plane(values: xr.DataArray, x: str, y: str) -> xr.DataArray:
    """Averaged over all of the grid but two parameters, which come last: y, x."""
    kept = ("estimator", "parameter", x, y)
    return values.mean([dim for dim in values.dims if dim not in kept]).transpose(..., y, x)


def _settle(figure: Figure) -> None:
    """Finds room for panels of fixed proportions, which the layout engine does step by step."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        engine.execute(figure)
