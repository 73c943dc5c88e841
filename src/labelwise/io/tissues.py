"""Tissues in TOML files, for `labelwise tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from labelwise.io.toml import STRICT, checked, expected, read_toml
from labelwise.priors import Normal, Tissue
from labelwise.types import InputError


class _Normal(BaseModel, strict=True, extra="forbid"):
    mean: Annotated[float, Field(allow_inf_nan=False)]
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]


_Range = Annotated[list[float], Field(min_length=2, max_length=2)]
_Distribution = Annotated[
    float | _Range | _Normal, expected("1.1, [0.1, 0.2] or {mean = 60, std = 10}")
]


class _Parts(BaseModel, strict=True, extra="allow"):
    __pydantic_extra__: dict[str, _Distribution]  # type: ignore[assignment]
    name: str | None = None


def read_tissues(path: Path, *tables: str) -> tuple[list[Tissue], float | None]:
    """The tissues in the tables of a TOML file, and its SNR, if any.

    A table has a distribution for each parameter: `1.1`, `[0.1, 0.2]` or `{mean = 60, std = 10}`;
    and may have a `name`.

    Args:
        path: the file.
        tables: their names.

    Raises:
        OSError: if it cannot be read.
        InputError: if a table is missing, or a value is not as expected.
    """
    kinds: dict[str, Any] = dict.fromkeys(tables, (_Parts, ...))
    kind = create_model("Task", __config__=STRICT, **kinds, snr=(float, None))
    content = checked(kind, read_toml(path), str(path))
    tissues = []
    for table in tables:
        entries = dict(getattr(content, table))
        name = entries.pop("name")
        try:
            parts = {
                key: Normal(each.mean, each.std) if isinstance(each, _Normal) else each
                for key, each in entries.items()
            }
            tissues.append(Tissue(parts, table if name is None else name))
        except InputError as error:
            raise InputError(f"{path}, [{table}]: {error}") from error
    return tissues, content.snr  # type: ignore[attr-defined]
