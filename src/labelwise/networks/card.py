"""The card of a network: a record of its training, stored in the header of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.noise import Gaussian, Rician, describe_noise

VERSION = 4
"""Version of network files that have signed outputs; others are of version 3. Files of versions 1
and 2, without intervals, can be read, too."""


@dataclass(frozen=True)
class Card:
    """The acquisition, simulation, labels and recipe of a training, as JSON data.

    Args:
        model: the signal model, by `describe_model`.
        noise: the noise model, by `describe_noise`.
        prior: the prior of the simulated parameters.
        sigma: noise of one channel in the simulation, in units of S0: a number, or lowest and
            highest.
        label: the training label.
        label_report: shares of usable and failed labels; None for self-supervision.
        label_range: (P, 2) lowest and highest label of each parameter, without the extreme 0.1 %.
        ranges: (P, 2) lowest and highest value of each parameter in the prior.
        noise_range: lowest and highest sigma over the reference signal.
        normalised: whether voxels are divided by their reference signal.
        on_bound: the treatment of labels on a bound, `"drop"` or `"keep"`.
        weights: of the parameters' errors in the loss; None for 1 / mean.
        recipe: of the training.
        seed: of the training.
        validation: validation loss, best epoch and reason why each restart ended.
        versions: of the software.
        verification: the errors of the network beside those of fits, by noise level, from
            `verification`; None for one noise level, and in files of older versions.
    """

    model: Mapping[str, Any]
    noise: Mapping[str, Any]
    prior: Mapping[str, Any]
    sigma: float | list[float]
    label: Mapping[str, Any]
    label_report: Mapping[str, Any] | None
    label_range: list[list[float]]
    ranges: list[list[float]]
    noise_range: list[float]
    normalised: bool
    on_bound: str
    weights: list[float] | None
    recipe: Mapping[str, Any]
    seed: int
    validation: Mapping[str, Any]
    versions: Mapping[str, str]
    verification: list[dict[str, Any]] | None = None

    @property
    def acquisition(self) -> dict[str, Float[np.ndarray, " M"]]:
        """The settings of its acquisition by name, in the units of the model."""
        return {name: np.array(rows) for name, rows in self.model["acquisition"].items()}

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any], version: int) -> Card:
        """The card in the header of a file.

        Args:
            record: its fields by name.
            version: of the file.

        Raises:
            LookupError: if a field is missing.
        """
        known = _from_version_1(record) if version == 1 else record
        known = {"verification": None, **known}  # older files have none
        return cls(**{field.name: known[field.name] for field in fields(cls)})


# Hashes of the files of built-in models in version 1, which identified a model by class name.
_MODELS_OF_VERSION_1 = {
    "6d05de4f9779dceb19bb06ea80c3944c2e1a1bfb92a7b0338d4610f328fff13e": "adc:ADC",
    "6e850ebb296280eb69fd68c9805af2dd85036a7bd28219acc8aee490ed0f7244": "ivim:IVIM",
    "e9095740441f349b38cbc0449a70eb1db8e1d627f7d8c425dbb1c6aca77c2c5f": "kurtosis:Kurtosis",
    "714efe3a268dad0ced5dc73e1812c46ae0957966d181bfb8f1cb045e63eb0871": "t1_ir:T1InversionRecovery",
    "8fe1d321f7a3351957836594c2505702a6fc6617b9d97136f753bff772d7507e": "t2:T2",
    "cf5c0f2bf65a235edec378273f2463f487546aabcc6e05c2cb33121ed067730e": (
        "t2_biexponential:T2Biexponential"
    ),
    "619b50494c21a78cc1d9f7463a20278c97f11581c4a9034cd930ac9501ec2319": "t2_epg:T2EPG",
}


def _from_version_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """A card of version 1 with the identities of model and noise model of version 2."""
    model, known = record["model"], _MODELS_OF_VERSION_1.get(record["model"]["source"])
    if known is not None:
        model = {**model, "class": f"labelwise.models.{known}", "source": None}
    kinds = {kind.__name__: describe_noise(kind()) for kind in (Rician, Gaussian)}
    unknown = {"class": record["noise"], "fields": {}, "source": None}
    return {
        **record,
        "model": model,
        "noise": kinds.get(record["noise"], unknown),
        "label_range": record["taught"],
    }
