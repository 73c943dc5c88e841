"""Presets: ranges of the parameters of a tissue, each with its source, for fits and trainings.

Those of labelwise are in `presets.toml` beside this file. A person's own preset is one TOML file of
the same form, with entries for one tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from labelwise.io.toml import checked, expected, named, read_toml, shipped
from labelwise.types import InputError

_FILE = "presets.toml"
_Range = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]] | None,
    Field(min_length=2, max_length=2),
    expected("two numbers, [low, high]"),
]


class Entry(BaseModel, strict=True, extra="forbid", frozen=True):
    """The ranges of one parameter in some models.

    Args:
        models: their names, as on the command line.
        parameter: its name.
        typical: its range in simulated voxels, in its unit.
        bounds: its bounds in fits.
        source: DOIs.
        reported: what they report.
    """

    models: Annotated[list[str], expected('a list of names, ["ivim"]')]
    parameter: str
    typical: _Range = None
    bounds: _Range = None
    source: Annotated[list[str], expected('a list of DOIs, ["10.1002/..."]')] = []
    reported: str = ""


@dataclass(frozen=True)
class Preset:
    """The ranges of a tissue.

    Args:
        name: of the tissue.
        entries: its ranges.
    """

    name: str
    entries: tuple[Entry, ...]

    def typical(self, model: str) -> dict[str, tuple[float, float]]:
        """The ranges of simulated parameters of a model, by name.

        Raises:
            InputError: if there is none.
        """
        return self._ranges(model, "typical")

    def bounds(self, model: str) -> dict[str, tuple[float, float]]:
        """The bounds of fits of a model, by name; empty if the model's own remain.

        Raises:
            InputError: if there is no range for the model.
        """
        return self._ranges(model, "bounds")

    def _ranges(self, model: str, which: str) -> dict[str, tuple[float, float]]:
        mine = [entry for entry in self.entries if model in entry.models]
        if not mine:
            known = sorted({name for entry in self.entries for name in entry.models})
            raise InputError(
                f"preset {self.name}: has no range for model {model}; it has some for "
                f"{', '.join(known)}"
            )
        pairs = {entry.parameter: getattr(entry, which) for entry in mine}
        return {name: (pair[0], pair[1]) for name, pair in pairs.items() if pair is not None}


def presets() -> dict[str, Preset]:
    """The presets of labelwise by name of the tissue.

    Example:
        >>> presets()["muscle"].typical("ivim")["f"]
        (0.01, 0.245)
    """
    return _checked(shipped(_FILE), _FILE)


def find_preset(text: str) -> Preset:
    """A preset by its name, or from a person's own file.

    Args:
        text: `"liver"`, or `"FILE.toml"`, a file with the entries of one tissue.

    Raises:
        OSError: if the file cannot be read.
        InputError: if there is no preset of that name, or the file is not as expected.
    """
    if text.endswith(".toml"):
        found = _checked(read_toml(Path(text)), text)
        if len(found) != 1:
            raise InputError(
                f"{text}: expected entries of one tissue, [[NAME]], got {len(found)} "
                f"({', '.join(found) or 'none'})"
            )
        return next(iter(found.values()))
    return named(presets(), text, "preset", "your own is FILE.toml")


def _checked(content: Mapping[str, Any], where: str) -> dict[str, Preset]:
    found = {}
    for tissue, entries in content.items():
        tables = entries if isinstance(entries, list) else [entries]
        made = []
        for number, table in enumerate(tables, start=1):
            place = f"{where}, [[{tissue}]] number {number}"
            if not isinstance(table, Mapping):
                raise InputError(f"{place}: expected a table with a parameter and its ranges")
            entry = checked(Entry, table, place)
            for which in ("typical", "bounds"):
                pair = getattr(entry, which)
                if pair is not None and not pair[0] < pair[1]:
                    raise InputError(
                        f"{place}: {which} of {entry.parameter} is {pair}; expected [low, high]"
                    )
            made.append(entry)
        found[tissue] = Preset(tissue, tuple(made))
    return found
