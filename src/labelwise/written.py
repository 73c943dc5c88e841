"""Numbers as people write them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three significant digits, without an exponent where a person would write none.

    Example:
        >>> [number(value) for value in (0.0499999, 1234.5, 2.5e-7)]
        ['0.0500', '1,230', '2.5e-07']
    """
    if not math.isfinite(value):
        return "none"
    value = float(f"{value:.3g}")
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def with_error(value: float, error: float) -> str:
    """A value as exact as its standard error, which gets one digit.

    Example:
        >>> with_error(0.91234, 0.00143), with_error(31.6724, 0.9), with_error(1, 0)
        ('0.912±0.001', '31.7±0.9', '1.00±0')
    """
    if not (math.isfinite(error) and error > 0):
        return f"{number(value)}±{number(error)}"
    places = max(0, -math.floor(math.log10(error)))
    return f"{value:,.{places}f}±{error:,.{places}f}"
