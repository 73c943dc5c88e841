"""Settings in TOML files, checked by pydantic; a mistake is reported in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from labelwise.io.files import from_toml, read_text
from labelwise.types import InputError

Content = TypeVar("Content", bound=BaseModel)
Entry = TypeVar("Entry")

STRICT = ConfigDict(strict=True, extra="forbid")
"""Of a table: no other keys, and no text in place of a number."""

_WORDS = {  # by the type of pydantic's error
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt:.15g}",
    "greater_than_equal": "at least {ge:.15g}",
    "int_type": "a whole number",
    "less_than_equal": "at most {le:.15g}",
    "less_than": "below {lt:.15g}",
    "literal_error": "{expected}",
    "string_type": "text",
    "words": "{words}",
}


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        OSError: if it cannot be read.
        InputError: if it is not TOML.
    """
    return from_toml(read_text(path), path)


def shipped(name: str) -> dict[str, Any]:
    """The content of a TOML file of labelwise, beside this module."""
    text = (resources.files("labelwise.io") / name).read_text(encoding="utf-8")
    return from_toml(text, name)


def named(known: Mapping[str, Entry], name: str, what: str, otherwise: str) -> Entry:
    """One of several entries of a file by its name.

    Args:
        known: all of them.
        name: of the one.
        what: they are, for the error.
        otherwise: what else can be done, for the error.

    Raises:
        InputError: if there is none of that name.

    Example:
        >>> named({"liver": 1}, "livr", "preset", "or a file")
        Traceback (most recent call last):
            ...
        labelwise.errors.InputError: preset 'livr': did you mean 'liver'? Known are liver; or a file
    """
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{what} {name!r}: {suggestion}Known are {', '.join(known)}; {otherwise}")
    return known[name]


def expected(words: str) -> WrapValidator:
    """For a kind of value: what an error says instead of pydantic's own words."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise PydanticCustomError("words", "{words}", {"words": words}) from None

    return WrapValidator(check)


def checked(kind: type[Content], content: Mapping[str, Any], where: str) -> Content:
    """The content of a file as a pydantic model; its fields that are models are tables.

    Args:
        kind: the model.
        content: from `read_toml`.
        where: the name of the file, for errors.

    Raises:
        InputError: if a key is unknown or missing, or a value is not as expected. An unknown key is
            reported before one that is missing because of it.

    Example:
        >>> class Task(BaseModel, strict=True, extra="forbid"):
        ...     snr: float
        >>> checked(Task, {"snr": "high"}, "my.toml")
        Traceback (most recent call last):
            ...
        labelwise.errors.InputError: my.toml: snr must be a number, got 'high'
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise InputError(_sentence(found, kind, where)) from error


def _sentence(error: ErrorDetails, kind: type[BaseModel], where: str) -> str:
    *sections, key = (str(name) for name in error["loc"])
    place = ", ".join([where, *(f"[{name}]" for name in sections)])
    if error["type"] in ("missing", "extra_forbidden"):
        for name in sections:
            kind = kind.model_fields[name].annotation  # type: ignore[assignment]
        wrong = f"{key} is missing" if error["type"] == "missing" else f"there is no {key!r}"
        return f"{place}: {wrong}; known are {', '.join(kind.model_fields)}"
    words = _WORDS.get(error["type"], f"a table, [{key}]").format(**error.get("ctx", {}))
    return f"{place}: {key} must be {words}, got {error['input']!r}"
