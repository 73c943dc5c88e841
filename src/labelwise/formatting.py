"""Number formats, JSON data, names of classes and text from outside, for output."""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ASCII = "labelwise"
"""The error handler of encodings that replaces what they lack: µ by u, ² by ^2."""
_ASCII = {"µ": "u", "²": "^2", "³": "^3", "±": "+/-", "°": " degrees", "–": "-", "√": "sqrt"}


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
        >>> import numpy as np
        >>> plain({"bounds": (0.0, np.inf), "median": np.float32("nan"), "sigma": np.float64(2)})
        {'bounds': [0.0, 'inf'], 'median': None, 'sigma': 2.0}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, _array_types()):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _array_types() -> tuple[type, ...]:
    """Arrays and scalars of NumPy and JAX, whose imports are slow, if these are imported."""
    numpy, jax = (sys.modules.get(name) for name in ("numpy", "jax"))
    numpy_types = (numpy.ndarray, numpy.generic) if numpy else ()
    return (*numpy_types, jax.Array) if jax else numpy_types


def json_text(data: Any, **options: Any) -> str:
    r"""JSON data as text; what a terminal cannot print is escaped.

    That includes bytes of file names that are no UTF-8, which Python has as lone surrogates:
    `os.fsencode` gives the bytes back.

    Example:
        >>> print(json_text({"unit": "µm²/ms", "file": "a\udcff.nii"}))
        {"unit": "µm²/ms", "file": "a\udcff.nii"}
    """
    text = json.dumps(data, ensure_ascii=False, **options)
    return "\n".join(
        line if line.isprintable() else "".join(_json_character(c) for c in line)
        for line in text.split("\n")
    )


def _json_character(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def printable(text: str) -> str:
    r"""A text from outside for terminals and figures: what cannot be printed is escaped.

    Escape sequences and other control characters, invisible characters, and bytes of file names
    that are no UTF-8. Newlines stay.

    Example:
        >>> print(printable("a\x1b[31m\udcff.nii"))
        a\x1b[31m\xff.nii
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def sentence(error: Exception) -> str:
    """The message of an error, on one line.

    Example:
        >>> sentence(FileNotFoundError(2, "No such file", "dwi.nii"))
        'dwi.nii: No such file'
    """
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{os.fsdecode(error.filename or 'system')}: {error.strerror}")
    return one_line(str(error))


def one_line(text: str) -> str:
    """A text with single blanks in place of line breaks and runs of blanks."""
    return " ".join(text.split())


def _replace_by_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_ascii(character) for character in wrong), error.end


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _ASCII.get(character) or plain or _escaped(character)


codecs.register_error(ASCII, _replace_by_ascii)


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
