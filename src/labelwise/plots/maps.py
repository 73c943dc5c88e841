"""Figures of parameter maps.

Figures have their own Agg canvas: they need no display and leave the state of pyplot unchanged.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import Patch

from labelwise.formatting import printable
from labelwise.types import Parameter, Status

_NO_VALUE = "#d9d9d9"
STATUS_COLOURS: dict[int, str] = {  # Okabe & Ito, distinguishable for colour-blind readers
    Status.NOT_FITTED: _NO_VALUE,
    Status.CONVERGED: "#0072b2",
    Status.ON_BOUND: "#e69f00",
    Status.NOT_CONVERGED: "#d55e00",
    Status.NOT_FINITE: "#cc79a7",
    Status.NEGATIVE: "#56b4e9",
    Status.ALL_ZERO: "#000000",
    Status.BAD_SIGMA: "#f0e442",
    Status.NO_REFERENCE: "#7f7f7f",
    Status.PREDICTED: "#009e73",
    Status.EXTRAPOLATED: "#e69f00",
    Status.NO_SIGNAL: "#5e4b8b",
    Status.TOO_FEW: "#8c510a",
}
_CODES = 1 + max(Status)
_RELIABLE = (Status.CONVERGED, Status.PREDICTED)
# All lengths in inches. Laid out by hand: the size of every image is known beforehand, and a
# layout engine would leave wide gaps around images of other shapes.
_IMAGE = 2.0  # the longer side of an image
_BAR, _TICKS, _TITLE, _MARGIN = 0.1, 0.55, 0.28, 0.12
_NARROWEST = 1.9  # room for the title of an image
_NARROWEST_FIGURE = 5.2  # room for the title
_ENTRY = 0.17  # height of one line of the legend of statuses
_CHARACTERS = 30  # characters in a line of it
_LINE = 0.17  # of the title
_WIDEST = 5  # panels side by side before a new band begins
_DPI = 120
_ENOUGH = 20  # voxels to take percentiles of


def parameter_maps(
    values: Mapping[str, Float[np.ndarray, "X Y Z"]],
    parameters: Sequence[Parameter],
    status: Int[np.ndarray, "X Y Z"],
    *,
    index: int,
    standard_errors: Mapping[str, Float[np.ndarray, "X Y Z"]],
    zooms: tuple[float, float] = (1.0, 1.0),
    title: str = "",
) -> Figure:
    """One slice of every parameter map, its standard error beneath, and the status of each voxel.

    The first array axis points right and the second up. Colours run from the 2nd percentile of
    the voxels off all bounds, or within what a network was trained for (from 0 for amplitudes), to
    the 98th; for standard errors, which have a long tail, to the 90th. A voxel without a value is
    light grey. The slice is cropped to the voxels inside the mask.

    Args:
        values: by parameter name, (X, Y, Z) maps in the parameter's unit.
        parameters: which to show, in which order, with unit and symbol.
        status: (X, Y, Z) codes of `Status`.
        index: the slice to show, along the third axis.
        standard_errors: by parameter name, (X, Y, Z) maps, shown beneath the values.
        zooms: width and height of a voxel, in any unit.
        title: one or more lines above all panels.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Example:
        >>> adc = Parameter("D", "µm²/ms", (0.01, 4.0))
        >>> ones = {"D": np.ones((8, 6, 1))}
        >>> status = np.ones((8, 6, 1), dtype=int)
        >>> figure = parameter_maps(ones, [adc], status, index=0, standard_errors=ones)
        >>> [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]
        ['$D$ (µm²/ms)', 'standard error (µm²/ms)', 'status']
    """
    window = window_around(status[:, :, index] != Status.NOT_FITTED)
    extent = np.array(
        [(side.stop - side.start) * zoom for side, zoom in zip(window, zooms, strict=True)]
    )
    width, height = (float(side) for side in _IMAGE * extent / extent.max())
    codes = status[:, :, index][window]
    legend = _ENTRY * sum(1 + _reason(code).count("\n") for code in np.unique(codes))
    cell = max(width + _BAR + _TICKS, _NARROWEST), max(height, legend) + _TITLE

    bands = math.ceil((len(parameters) + 1) / _WIDEST)
    columns = math.ceil((len(parameters) + 1) / bands)
    head = _LINE * (1 + title.count("\n")) if title else 0.0
    size = (
        max(columns * cell[0] + 2 * _MARGIN, _NARROWEST_FIGURE),
        2 * bands * cell[1] + 2 * _MARGIN + head,
    )
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    place: dict[str, Any] = {"x": _MARGIN / size[0], "y": 1 - _MARGIN / size[1], "ha": "left"}
    figure.suptitle(verbatim(title), fontsize=9, **place)

    def add_axes(column: int, row: int, right: float = 0.0, across: float = width) -> Axes:
        left = _MARGIN + column * cell[0] + right
        bottom = size[1] - _MARGIN - head - row * cell[1] - _TITLE - height
        box = (left / size[0], bottom / size[1], across / size[0], height / size[1])
        return figure.add_axes(box)

    for position, parameter in enumerate(parameters):
        band, column = divmod(position, columns)
        image, error = (
            maps[parameter.name][:, :, index][window] for maps in (values, standard_errors)
        )
        low, high = colour_range(image, np.isin(codes, _RELIABLE), top=98)
        amplitude = parameter.unit == "a.u."
        panels = (
            (image, f"{symbol(parameter)}{in_unit(parameter)}", "gray" if amplitude else "viridis"),
            (error, f"standard error{in_unit(parameter)}", "magma"),
        )
        ranges = (0.0 if amplitude else low, high), colour_range(error, codes > 0, top=90)
        for row, (panel, limits) in enumerate(zip(panels, ranges, strict=True), start=2 * band):
            picture = map_image(add_axes(column, row), *panel, limits)
            bar = figure.colorbar(picture, cax=add_axes(column, row, width + 0.05, _BAR))
            bar.ax.tick_params(labelsize=8, length=2, pad=2)
            bar.outline.set_linewidth(0.5)  # pyright: ignore
    band, column = divmod(len(parameters), columns)
    _status(add_axes(column, 2 * band), add_axes(column, 2 * band + 1), codes)
    return figure


def map_image(
    axes: Axes,
    image: Float[np.ndarray, "X Y"],
    title: str,
    colours: str,
    limits: tuple[float, float],
) -> AxesImage:
    """One map: the first array axis points right, the second up; NaN is light grey."""
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, pad=3, loc="left", y=1.0)  # laid out by hand
    return axes.imshow(
        image.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=mpl.colormaps[colours].with_extremes(bad=_NO_VALUE),
        vmin=limits[0],
        vmax=limits[1],
    )


def _status(axes: Axes, beneath: Axes, codes: Int[np.ndarray, "X Y"]) -> None:
    """The status of each voxel, and beneath it a legend of those that occur."""
    axes.imshow(
        codes.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([STATUS_COLOURS.get(code, _NO_VALUE) for code in range(_CODES)]),
        vmin=-0.5,
        vmax=_CODES - 0.5,
    )
    axes.set_axis_off()
    axes.set_title("status", fontsize=9, pad=3, loc="left", y=1.0)
    beneath.set_axis_off()
    beneath.legend(
        handles=[
            Patch(facecolor=STATUS_COLOURS[code], edgecolor="0.3", label=_reason(code))
            for code in Status
            if np.any(codes == code)
        ],
        loc="upper left",
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=8,
        handlelength=1.0,
    )


def _reason(code: int) -> str:
    """The reason of a status, in short lines."""
    return textwrap.fill(Status(code).reason, _CHARACTERS)


def symbol(parameter: Parameter) -> str:
    """The parameter's symbol in mathtext; its name where that cannot be typeset."""
    if parameter.symbol == parameter.name and "_" in parameter.name:
        return parameter.name
    text = f"${parameter.symbol}$"
    try:
        MathTextParser("path").parse(text)
    except (ValueError, RecursionError):
        return parameter.name
    return text


def verbatim(text: str) -> str:
    r"""A text from outside, such as a file name, for a figure.

    Dollars start no mathtext, and a leading underscore does not hide it from legends.

    Example:
        >>> print(verbatim("cost_$5_$6.nii"))
        cost_\$5_\$6.nii
    """
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def in_unit(parameter: Parameter) -> str:
    """The parameter's unit for the end of labels: `" (ms)"`, empty for a fraction."""
    return "" if parameter.unit == "1" else f" ({verbatim(parameter.unit)})"


def colour_range(
    image: Float[np.ndarray, "X Y"], inner: Bool[np.ndarray, "X Y"], top: int
) -> tuple[float, float]:
    """The 2nd and the top percentile, of the inner voxels if there are enough; never equal."""
    finite = np.isfinite(image)
    both = finite & inner
    values = image[both if both.sum() >= _ENOUGH else finite]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, [2, top]))
    gap = 1e-6 * max(abs(low), abs(high), 1e-6)
    return low - gap, high + gap


def window_around(inside: np.ndarray) -> tuple[slice, slice]:
    """The box around the voxels inside, with a margin of two; the whole slice if there is none."""
    if not inside.any():
        inside = np.ones_like(inside)
    box = []
    for axis in (1, 0):
        where = np.flatnonzero(inside.any(axis=axis))
        box.append(slice(max(int(where[0]) - 2, 0), int(where[-1]) + 3))
    rows, columns = box
    return slice(rows.start, min(rows.stop, inside.shape[0])), slice(
        columns.start, min(columns.stop, inside.shape[1])
    )
