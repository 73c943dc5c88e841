"""Numbers as people write them, and records as JSON data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


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


def plain(value: Any) -> Any:
    """The same as JSON data: arrays as lists, paths as text, NaN as None, infinities as text.

    What JSON has no form for stays as it is.

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
    """The name of a class in an identity, without the place where it is defined.

    Example:
        >>> short_name({"class": "labelwise.noise:Rician"})
        'Rician'
    """
    return record["class"].rpartition(":")[2]


def in_words(record: Mapping[str, Any], *, full: bool = False) -> str:
    """An identity in words: its name and what it is set to; `full` says where it is defined, too.

    Example:
        >>> in_words({"class": "labelwise.noise:Rician", "fields": {}})
        'Rician'
    """
    fields = {**(record.get("fields") or {}), **(record.get("constants") or {})}
    name = record["class"] if full else short_name(record)
    return " ".join([name, *(f"{field}={value}" for field, value in fields.items())])


def distinct_names(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """Two different identities in words: by their short names where these tell them apart.

    Example:
        >>> distinct_names({"class": "my.py:ADC"}, {"class": "labelwise.models.adc:ADC"})
        ('my.py:ADC', 'labelwise.models.adc:ADC')
    """
    full = short_name(one) == short_name(other)
    return in_words(one, full=full), in_words(other, full=full)
