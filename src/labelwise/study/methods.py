"""Names and line styles of a study's estimators.

All names are defined here, so that data, tables and figures agree. The colour shows what an
estimator was trained on, as in the paper: fits black, networks that imitate a fit red
(self-supervised ones too), networks trained on the truth blue, mixtures purple. Dashes and markers
distinguish lines of one colour, also in black and white.

Source: figures 2 to 10 of Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

MLE_MEAN = "MLE, from the mean"
MLE_TRUTH = "MLE, from the truth"
GT = "Supervised GT"
SELF = "Self-supervised"
MLE_RICIAN = "Supervised MLE, Rician"
MLE_GAUSSIAN = "Supervised MLE, Gaussian"
HYBRID = "Hybrid"
GT_ABSOLUTE = "Supervised GT, absolute loss"
MLE_ABSOLUTE = "Supervised MLE, absolute loss"

BLACK, RED, BLUE, PURPLE, BROWN = "#000000", "#d7191c", "#0072b2", "#8e3b9e", "#7a6a00"

_OWN_WEIGHT = "Supervised MLE, weight on "
_BLEND = "Blend "
_WIDE, _DEEP = " wide", " deep"
_DASHED, _DOTTED, _DASH_DOTTED = (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))
_LONG = (0, (9, 2.5))
_STYLES: dict[str, tuple[str, Any, str]] = {
    MLE_MEAN: (BLACK, "-", "o"),
    MLE_TRUTH: (BLACK, _DASH_DOTTED, "X"),
    GT: (BLUE, "-", "s"),
    GT_ABSOLUTE: (BLUE, _DASHED, "p"),
    SELF: (RED, _DASHED, "D"),
    MLE_RICIAN: (RED, "-", "^"),
    MLE_GAUSSIAN: (RED, _DOTTED, "v"),
    MLE_ABSOLUTE: (RED, _DASH_DOTTED, "P"),
    HYBRID: (PURPLE, _DASHED, "h"),
}
_MARKERS = ("<", ">", "d", "*", "8", "H", "X")


def own_weight(parameter: str) -> str:
    """The network whose loss weighs one parameter far above all others.

    Example:
        >>> own_weight("f")
        'Supervised MLE, weight on f'
    """
    return f"{_OWN_WEIGHT}{parameter}"


def blend(alpha: float) -> str:
    """A blend of two networks: 1 is the one trained on MLE labels, 0 the one trained on truth.

    Example:
        >>> blend(0.50)
        'Blend 0.5'
    """
    return f"{_BLEND}{alpha:g}"


def wide(name: str, nodes: int) -> str:
    """A network with more nodes in each layer than the one it is named after.

    Example:
        >>> wide(GT, 150)
        'Supervised GT, 150 wide'
    """
    return f"{name}, {nodes}{_WIDE}"


def deep(name: str, layers: int) -> str:
    """A network with more layers than the one it is named after.

    Example:
        >>> deep(GT, 10)
        'Supervised GT, 10 deep'
    """
    return f"{name}, {layers}{_DEEP}"


def style_of(name: str) -> dict[str, Any]:
    """Colour, dashes and marker of an estimator, as keywords of matplotlib's `plot`.

    A wider network is a lighter shade of the one it is named after, a deeper one darker. A blend
    goes from the blue of the truth to the red of MLE labels, its dashes growing with alpha. Other
    names are brown; the same name always has the same style.

    Args:
        name: of an estimator.

    Returns:
        `color`, `linestyle` and `marker`.

    Example:
        >>> style_of(GT) == {"color": BLUE, "linestyle": "-", "marker": "s"}
        True
        >>> style_of(blend(0))["color"] == BLUE, style_of(blend(1))["color"] == RED
        (True, True)
    """
    colour, dashes, marker = _style(name)
    return {"color": colour, "linestyle": dashes, "marker": marker}


def _style(name: str) -> tuple[str, Any, str]:
    if name in _STYLES:
        return _STYLES[name]
    if name.startswith(_OWN_WEIGHT):
        share, marker = _of_its_own(name)
        dashes = (0, (3 + 6 * share, 1.5, 1.2, 1.5, 1.2, 1.5))
        return _mixed(RED, "#5a1000", share), dashes, marker
    alpha = _number(name.removeprefix(_BLEND)) if name.startswith(_BLEND) else None
    if alpha is not None:
        alpha = min(max(alpha, 0.0), 1.0)
        return _between(alpha), (0, (1 + 7 * alpha, 1.5)), "o"
    base, _, variant = name.rpartition(", ")
    for ending, shade, usual, marker in ((_WIDE, "#ffffff", 150, "8"), (_DEEP, "#000000", 10, "*")):
        size = _number(variant.removesuffix(ending)) if variant.endswith(ending) else None
        if base and size is not None and size > 0:
            # Half way to white or black at the paper's own size of a variant.
            return _mixed(_style(base)[0], shade, size / (size + usual)), _LONG, marker
    share, marker = _of_its_own(name)
    return _mixed(BROWN, "#d9c95b", share), _DASH_DOTTED, marker


def _between(alpha: float) -> str:
    """Blue, purple, red."""
    if alpha < 0.5:
        return _mixed(BLUE, PURPLE, 2 * alpha)
    return _mixed(PURPLE, RED, 2 * alpha - 1)


def _mixed(colour: str, other: str, share: float) -> str:
    """A share of another colour mixed into one, both as #rrggbb."""
    a, b = (bytes.fromhex(each[1:]) for each in (colour, other))
    return "#" + bytes(round(x + share * (y - x)) for x, y in zip(a, b, strict=True)).hex()


def _of_its_own(name: str) -> tuple[float, str]:
    """A shade from 0 to 1 and a marker that depend on nothing but the name."""
    code = hashlib.sha256(name.encode()).digest()
    # Any bytes would do; with these the parameters of the models that are built in look different.
    return code[18] / 255, _MARKERS[code[19] % len(_MARKERS)]


def _number(text: str) -> float | None:
    """None if it is no finite number."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
