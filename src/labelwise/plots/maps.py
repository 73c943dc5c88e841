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
from matplotlib.patheffects import withStroke

from labelwise.formatting import printable
from labelwise.types import Parameter, Status

_OUTSIDE, _NO_VALUE = "#d9d9d9", "#8c8c8c"
STATUS_COLOURS: dict[int, str] = {  # Okabe & Ito, distinguishable for colour-blind readers
    Status.NOT_FITTED: _OUTSIDE,
    Status.CONVERGED: "#0072b2",
    Status.ON_BOUND: "#e69f00",
    Status.NOT_CONVERGED: "#d55e00",
    Status.NOT_FINITE: "#cc79a7",
    Status.NEGATIVE: "#56b4e9",
    Status.ALL_ZERO: "#000000",
    Status.BAD_SIGMA: "#f0e442",
    Status.NO_REFERENCE: "#7f7f7f",
    Status.PREDICTED: "#009e73",
    Status.EXTRAPOLATED: "#882255",
    Status.NO_SIGNAL: "#5e4b8b",
    Status.TOO_FEW: "#8c510a",
}
_CODES = 1 + max(Status)
_RELIABLE = (Status.CONVERGED, Status.PREDICTED)
# All lengths in inches. Laid out by hand: the size of every image is known beforehand, and a
# layout engine would leave wide gaps around images of other shapes.
_IMAGE, _SMALL = 2.0, 1.4  # the longer side of an image: of one slice, of several
_BAR, _TICKS, _TITLE, _MARGIN, _GAP = 0.1, 0.55, 0.28, 0.12, 0.05
_NARROWEST = 1.9  # room for the title of an image
_NARROWEST_FIGURE = 5.2  # room for the title
_ENTRY = 0.17  # height of one line of the legend of statuses
_CHARACTERS = 30  # characters in a line of it
_LINE = 0.17  # of the title
_WIDEST = 6  # panels side by side before a new band begins
_DPI = 120
_ENOUGH = 20  # voxels to take percentiles of
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}


def parameter_maps(
    values: Mapping[str, Float[np.ndarray, "X Y Z"]],
    parameters: Sequence[Parameter],
    status: Int[np.ndarray, "X Y Z"],
    *,
    slices: Sequence[int],
    uncertainty: Mapping[str, Float[np.ndarray, "X Y Z"]],
    residual: Float[np.ndarray, "X Y Z"],
    zooms: tuple[float, float] = (1.0, 1.0),
    orientation: Sequence[str] = "",
    title: str = "",
    measure: str = "standard error",
) -> Figure:
    """Slices of every parameter map, its uncertainty beneath; then residual and status.

    The first array axis points right and the second up. Colours run from the 2nd percentile of
    the voxels off all bounds, or within what a network was trained for (from 0 for amplitudes), to
    the 98th; for uncertainties, which have a long tail, to the 90th. A voxel inside the mask
    without a value is dark grey, one outside light grey. Slices are cropped to the mask.

    Args:
        values: by parameter name, (X, Y, Z) maps in the parameter's unit.
        parameters: which to show, in which order, with unit and symbol.
        status: (X, Y, Z) codes of `Status`.
        slices: which to show, along the third axis, the first on top.
        uncertainty: by parameter name, (X, Y, Z) maps, shown beneath the values.
        measure: what they are, for their titles.
        residual: (X, Y, Z) map of the residual.
        zooms: width and height of a voxel, in any unit.
        orientation: what the first and the second array axis point to, of L, R, A, P, S and I;
            empty if that is not known.
        title: one or more lines above all panels.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Example:
        >>> adc = Parameter("D", "µm²/ms", (0.01, 4.0))
        >>> ones = np.ones((8, 6, 1))
        >>> figure = parameter_maps(
        ...     {"D": ones},
        ...     [adc],
        ...     ones.astype(int),
        ...     slices=[0],
        ...     uncertainty={"D": ones},
        ...     residual=ones,
        ... )
        >>> [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]
        ['$D$ (µm²/ms)', 'standard error (µm²/ms)', 'residual', 'status']
    """
    slices = list(slices)
    window = window_around((status[:, :, slices] != Status.NOT_FITTED).any(axis=2))
    extent = np.array(
        [(side.stop - side.start) * zoom for side, zoom in zip(window, zooms, strict=True)]
    )
    longest = _IMAGE if len(slices) == 1 else _SMALL
    width, height = (float(side) for side in longest * extent / extent.max())
    whole = len(slices) * (height + _GAP) - _GAP
    codes = status[window][:, :, slices]
    outside = codes == Status.NOT_FITTED
    both = (values, uncertainty)
    shown = [maps[p.name][window][:, :, slices] for p in parameters for maps in both]
    missing = ~outside & np.isnan(shown).any(axis=0)
    entries = [(STATUS_COLOURS[code], _reason(code)) for code in Status if np.any(codes == code)]
    entries += [(_NO_VALUE, "no value")] * bool(missing.any())
    legend = _ENTRY * sum(1 + text.count("\n") for _, text in entries)
    cell = max(width + _BAR + _TICKS, _NARROWEST), max(whole, legend) + _TITLE

    panels = len(parameters) + 2  # residual over status, and the legend
    bands = math.ceil(panels / _WIDEST)
    columns = math.ceil(panels / bands)
    head = _LINE * (1 + title.count("\n")) if title else 0.0
    size = (
        max(columns * cell[0] + 2 * _MARGIN, _NARROWEST_FIGURE),
        2 * bands * cell[1] + 2 * _MARGIN + head,
    )
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    place: dict[str, Any] = {"x": _MARGIN / size[0], "y": 1 - _MARGIN / size[1], "ha": "left"}
    figure.suptitle(verbatim(title), fontsize=9, **place)

    def add_axes(panel: int, row: int, right: float, down: float, *sides: float) -> Axes:
        band, column = divmod(panel, columns)
        left = _MARGIN + column * cell[0] + right
        top = size[1] - _MARGIN - head - (2 * band + row) * cell[1] - _TITLE - down
        box = (left / size[0], (top - sides[1]) / size[1], sides[0] / size[0], sides[1] / size[1])
        return figure.add_axes(box)

    def stack(panel: int, row: int, title: str) -> list[Axes]:
        """The axes of the slices, one beneath the other."""
        downs = [k * (height + _GAP) for k in range(len(slices))]
        stacked = [add_axes(panel, row, 0.0, down, width, height) for down in downs]
        for axes in stacked:
            axes.set_axis_off()
        stacked[0].set_title(title, fontsize=9, pad=3, loc="left", y=1.0)  # laid out by hand
        return stacked

    def draw(panel: int, row: int, title: str, image, colours: str, limits) -> None:
        stacked = stack(panel, row, title)
        for k, axes in enumerate(stacked):
            map_image(axes, image[:, :, k], colours, limits, outside[:, :, k])
            if panel == row == 0:
                _mark(axes, orientation, f"{slices[k] + 1}" if len(slices) > 1 else "")
        bar = figure.colorbar(
            stacked[0].images[0], cax=add_axes(panel, row, width + 0.05, 0.0, _BAR, whole)
        )
        bar.ax.tick_params(labelsize=8, length=2, pad=2)
        bar.outline.set_linewidth(0.5)  # pyright: ignore

    for panel, parameter in enumerate(parameters):
        image, error = (maps[parameter.name][window][:, :, slices] for maps in both)
        low, high = colour_range(image, np.isin(codes, _RELIABLE), top=98)
        amplitude = parameter.unit == "a.u."
        colours, low = ("gray", 0.0) if amplitude else ("viridis", low)
        unit = in_unit(parameter)
        draw(panel, 0, f"{symbol(parameter)}{unit}", image, colours, (low, high))
        limits = colour_range(error, codes > 0, top=90)
        draw(panel, 1, f"{measure}{unit}", error, "magma", limits)
    image = residual[window][:, :, slices]
    limits = 0.0, max(2.0, colour_range(image, codes > 0, top=98)[1])
    draw(panels - 2, 0, "residual", image, "inferno", limits)
    for k, axes in enumerate(stack(panels - 2, 1, "status")):
        _status(axes, codes[:, :, k])
    _legend(add_axes(panels - 1, 0, 0.0, 0.0, width, whole), entries)
    return figure


def map_image(
    axes: Axes,
    image: Float[np.ndarray, "X Y"],
    colours: str,
    limits: tuple[float, float],
    outside: Bool[np.ndarray, "X Y"] | None = None,
) -> AxesImage:
    """One map: the first array axis points right, the second up.

    NaN is light grey; where it is known what is `outside` the mask, only that is, and NaN inside is
    dark grey.
    """
    axes.set_axis_off()
    missing = _OUTSIDE if outside is None else _NO_VALUE
    place: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    shown = axes.imshow(
        image.T,
        cmap=mpl.colormaps[colours].with_extremes(bad=missing),
        vmin=limits[0],
        vmax=limits[1],
        **place,
    )
    if outside is not None:
        over = np.ma.masked_where(~outside.T, np.zeros(outside.T.shape))
        axes.imshow(over, cmap=ListedColormap([_OUTSIDE]), **place)
    return shown


def _mark(axes: Axes, orientation: Sequence[str], number: str) -> None:
    """What the sides of a slice point to, and its number."""
    edge = [withStroke(linewidth=1.5, foreground="black")]
    style: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 7, "color": "white"}
    if len(orientation) == 2:
        right, top = orientation
        for letter, x, y, across, along in (
            (right, 0.98, 0.5, "right", "center"),
            (_OPPOSITE[right], 0.02, 0.5, "left", "center"),
            (top, 0.5, 0.99, "center", "top"),
            (_OPPOSITE[top], 0.5, 0.01, "center", "bottom"),
        ):
            axes.text(x, y, letter, ha=across, va=along, path_effects=edge, **style)
    axes.text(0.02, 0.98, number, ha="left", va="top", path_effects=edge, **style)


def _status(axes: Axes, codes: Int[np.ndarray, "X Y"]) -> None:
    """The status of each voxel."""
    axes.imshow(
        codes.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([STATUS_COLOURS.get(code, _OUTSIDE) for code in range(_CODES)]),
        vmin=-0.5,
        vmax=_CODES - 0.5,
    )


def _legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """The colours of statuses and their reasons."""
    axes.set_axis_off()
    axes.legend(
        handles=[Patch(facecolor=colour, edgecolor="0.3", label=text) for colour, text in entries],
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
    image: Float[np.ndarray, "..."], inner: Bool[np.ndarray, "..."], top: int
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
