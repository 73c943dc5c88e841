"""Colour, dashes and marker of estimators in figures: one style for each method.

The colour shows what an estimator was trained on, as in the paper: fits black, networks that
imitate a fit red (self-supervised ones too), networks trained on the truth blue, what lies between
purple. Dashes and markers distinguish lines of one colour, also in black and white.

Source: figures 2 to 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import xarray as xr

from labelwise.evaluation.methods import Method

BLACK, RED, BLUE, PURPLE, BROWN = "#000000", "#d7191c", "#0072b2", "#8e3b9e", "#7a6a00"
_GREEN = "#009e73"
_DASHED, _DOTTED, _DASH_DOTTED = (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))
_LONG = (0, (9, 2.5))
_MARKERS = ("<", ">", "d", "*", "8", "H", "X")
_FITS = {"mean": ("-", "o"), "truth": (_DASH_DOTTED, "X")}
_LABELS = {
    "ground truth": (BLUE, "-", "s"),
    "maximum likelihood": (RED, _DASHED, "v"),
    "self-supervised": (RED, _DASHED, "D"),
    "posterior mean": (_GREEN, "-", "D"),
}
_NOISE = {"Rician": ("-", "^"), "Gaussian": (_DOTTED, "v")}
_ABSOLUTE = {"ground truth": (_DASHED, "p"), "maximum likelihood": (_DASH_DOTTED, "P")}


def styles(evaluation: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each estimator of an evaluation, as keywords of `plot`.

    Of several that are the same method, each is lighter than the one before, with another marker.

    Args:
        evaluation: from `evaluate`, with the coordinate `method`.

    Example:
        >>> method = "estimator", [Method("fit").to_json(), Method("ground truth").to_json()]
        >>> evaluation = xr.Dataset(coords={"estimator": ["MLE", "mine"], "method": method})
        >>> {name: style["color"] for name, style in styles(evaluation).items()}
        {'MLE': '#000000', 'mine': '#0072b2'}
    """
    seen: Counter[str] = Counter()
    found = {}
    for name, text in zip(evaluation["estimator"].values, evaluation["method"].values, strict=True):
        style = style_of(Method.from_json(str(text)))
        look = str(style)
        if again := seen[look]:
            style["color"] = _mixed(style["color"], "#ffffff", again / (again + 4))
            style["marker"] = _MARKERS[(again - 1) % len(_MARKERS)]
        seen[look] += 1
        found[str(name)] = style
    return found


def style_of(method: Method) -> dict[str, Any]:
    """Colour, dashes and marker of a method, as keywords of matplotlib's `plot`.

    A wider network is a lighter shade of the usual one, a deeper one darker. A blend goes from the
    blue of the truth to the red of MLE labels, its dashes growing with alpha. Methods that are not
    known are brown.

    Example:
        >>> style_of(Method("ground truth")) == {"color": BLUE, "linestyle": "-", "marker": "s"}
        True
    """
    colour, dashes, marker = _style(method)
    for size, shade, usual, other in (
        (method.wide, "#ffffff", 150, "8"),
        (method.deep, "#000000", 10, "*"),
    ):
        if size:  # half way to white or black at the paper's own size of a variant
            colour, dashes, marker = _mixed(colour, shade, size / (size + usual)), _LONG, other
    return {"color": colour, "linestyle": dashes, "marker": marker}


def _style(method: Method) -> tuple[str, Any, str]:
    kind, alpha = method.kind, method.alpha
    if kind == "fit":
        return (BLACK, *_FITS.get(method.start, ("-", "o")))
    if kind == "mix" and alpha is not None:
        return _between(alpha), _DASHED, "h"
    if kind == "blend" and alpha is not None:
        return _between(alpha), (0, (1 + 7 * alpha, 1.5)), "o"
    if method.weighed:
        # Any bytes would do; with these, the parameters of the built-in models look different.
        code = hashlib.sha256(method.name.encode()).digest()
        share, marker = code[18] / 255, _MARKERS[code[19] % len(_MARKERS)]
        dashes = (0, (3 + 6 * share, 1.5, 1.2, 1.5, 1.2, 1.5))
        return _mixed(RED, "#5a1000", share), dashes, marker
    colour, dashes, marker = _LABELS.get(kind, (BROWN, _DASH_DOTTED, "H"))
    if method.loss != "squared":
        dashes, marker = _ABSOLUTE.get(kind, (_DASH_DOTTED, marker))
    elif method.noise:
        dashes, marker = _NOISE.get(method.noise, (dashes, marker))
    return colour, dashes, marker


def _between(alpha: float) -> str:
    """Blue, purple, red."""
    if alpha < 0.5:
        return _mixed(BLUE, PURPLE, 2 * alpha)
    return _mixed(PURPLE, RED, 2 * alpha - 1)


def _mixed(colour: str, other: str, share: float) -> str:
    """A share of another colour mixed into one, both as #rrggbb."""
    a, b = (bytes.fromhex(each[1:]) for each in (colour, other))
    return "#" + bytes(round(x + share * (y - x)) for x, y in zip(a, b, strict=True)).hex()
