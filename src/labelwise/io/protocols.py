"""Protocols: acquisitions of published studies, each with its source, for trainings.

They are in `protocols.toml` beside this file.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, Field

from labelwise.io.acquisition import checked as in_model_units
from labelwise.io.toml import checked, expected, named, shipped

_FILE = "protocols.toml"
_Settings = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]] | None,
    expected("a list of numbers, one for each volume"),
]


class Protocol(BaseModel, strict=True, extra="forbid", frozen=True):
    """An acquisition.

    Args:
        title: what it is from.
        model: the name of the signal model, as on the command line.
        source: DOIs.
        checked: what of it was compared with the source.
        b: of each volume, in s/mm².
        te: in ms.
        ti: in ms.
    """

    title: str
    model: str
    source: Annotated[list[str], expected('a list of DOIs, ["10.1002/..."]')]
    checked: str
    b: _Settings = None
    te: _Settings = None
    ti: _Settings = None

    @property
    def settings(self) -> dict[str, list[float]]:
        """The settings of the M volumes by name, in the units of files."""
        return {n: values for n in ("b", "te", "ti") if (values := getattr(self, n)) is not None}

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The same in the units of the models: b in ms/µm²."""
        return {n: in_model_units(n, values, _FILE) for n, values in self.settings.items()}


def protocols() -> dict[str, Protocol]:
    """The protocols of labelwise by name.

    Example:
        >>> protocols()["breast_adc"].acquisition
        {'b': array([0. , 0.1, 0.6, 0.8])}
    """
    content = shipped(_FILE)
    return {name: checked(Protocol, table, f"{_FILE}, [{name}]") for name, table in content.items()}


def find_protocol(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        InputError: if there is none of that name.
    """
    return named(protocols(), name, "protocol", "for others, give --bvals, --te or --ti")
