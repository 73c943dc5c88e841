"""Number formats, JSON data and names of classes for output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def number(value: float) -> str:
    """A number with three significant digits, without an exponent from 0.001 to 10⁶.

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
    """A value with its standard error, rounded to one digit of the error.

    Example:
        >>> with_error(0.91234, 0.00143), with_error(31.6724, 0.9), with_error(1, 0)
        ('0.912±0.001', '31.7±0.9', '1.00±0')
    """
    if not (math.isfinite(error) and error > 0):
        return f"{number(value)}±{number(error)}"
    places = max(0, -math.floor(math.log10(error)))
    return f"{value:,.{places}f}±{error:,.{places}f}"


def plain(value: Any) -> Any:
    """A value as JSON data: arrays as lists, paths and infinities as text, NaN as None.

    Other values are not changed.

    Example:
        >>> plain({"bounds": (0.0, np.inf), "median": np.float32("nan"), "sigma": np.float64(2)})
        {'bounds': [0.0, 'inf'], 'median': None, 'sigma': 2.0}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def short_name(record: Mapping[str, Any]) -> str:
    """The name of a class in an identity, without its module or file.

    Example:
        >>> short_name({"class": "labelwise.noise:Rician"})
        'Rician'
    """
    return record["class"].rpartition(":")[2]


def in_words(record: Mapping[str, Any], *, full: bool = False) -> str:
    """An identity as text: the class name and its fields; with module or file if `full`.

    Example:
        >>> in_words({"class": "labelwise.noise:Rician", "fields": {}})
        'Rician'
    """
    fields = {**(record.get("fields") or {}), **(record.get("constants") or {})}
    name = record["class"] if full else short_name(record)
    return " ".join([name, *(f"{field}={value}" for field, value in fields.items())])


def distinct_names(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """Two different identities as text, by short names where these differ.

    Example:
        >>> distinct_names({"class": "my.py:ADC"}, {"class": "labelwise.models.adc:ADC"})
        ('my.py:ADC', 'labelwise.models.adc:ADC')
    """
    full = short_name(one) == short_name(other)
    return in_words(one, full=full), in_words(other, full=full)
