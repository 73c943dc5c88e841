"""Training plans: all settings that determine the trained networks."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from labelwise.errors import warn_outdated
from labelwise.fitting.many import UNROLLED
from labelwise.formatting import plain
from labelwise.io.files import digest
from labelwise.limits import check_sigma, check_whole
from labelwise.models.base import SignalModel, measurements
from labelwise.models.find import describe_model
from labelwise.networks.cache import code_of
from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.mlp import Weights, named
from labelwise.networks.recipe import Recipe
from labelwise.networks.reference import B_TOLERANCE
from labelwise.noise import NoiseModel, describe_noise, noise_named
from labelwise.priors import Prior
from labelwise.simulation import Sigma
from labelwise.types import InputError, LabelSource


@dataclass(frozen=True)
class SelfSupervised:
    """No label: the loss compares the measured signal with that of the estimate (eq. 8).

    Args:
        noise: None for the sum of squares of eq. 8; a noise model for its negative
            log-likelihood, which suits Rician data.

    Source: Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """

    noise: NoiseModel | None = None

    def describe(self) -> dict[str, Any]:
        """The description as JSON data."""
        loss = describe_noise(self.noise) if self.noise else "sum of squares"
        return {"kind": "self-supervised", "loss": loss}


LABELS = "mle-rician, mle-gaussian, gt, selfsup, selfsup-rician, mix:ALPHA or blend"


def labels_named(
    name: str, model: SignalModel, noise: NoiseModel, start: Literal["truth", "search"] = "truth"
) -> tuple[LabelSource | SelfSupervised, ...]:
    """The label with a given name, or the two labels of a blend.

    Args:
        name: `mle-NOISE` (maximum likelihood under that noise model: `mle-rician`), `mle` (under
            the simulated one), `gt` (ground truth), `selfsup` (no label: the loss compares
            signals), `selfsup-NOISE` (by the likelihood), `mix:ALPHA` (ALPHA `mle` + (1 - ALPHA)
            `gt`) or `blend` (`mle` and `gt`, blended in use).
        model: the fitted signal model.
        noise: the simulated noise.
        start: of the fits.

    Raises:
        InputError: if there is no such label.
    """
    kind, _, of = name.partition("-")
    if of and kind == "mle":
        return (MLE(model, noise_named(of), start),)
    if of and kind == "selfsup":
        return (SelfSupervised(noise_named(of)),)
    if name == "selfsup":
        return (SelfSupervised(),)
    if name == "gt":
        return (GroundTruth(),)
    if name == "mle":
        return (MLE(model, noise, start),)
    if name == "dial":
        warn_outdated("label dial", name := "blend")
    if name == "blend":
        return MLE(model, noise, start), GroundTruth()
    kind, _, text = name.partition(":")
    if kind != "mix":
        raise InputError(f"label {name}: expected {LABELS}")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise InputError(f"label {name}: expected mix:ALPHA, ALPHA from 0 to 1")
    return (Mix(alpha, MLE(model, noise, start), GroundTruth()),)


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All that determines trained networks: simulation, labels, recipe and seed.

    Args:
        model: the signal model with its acquisition.
        noise: the simulated noise.
        prior: of the simulated parameters.
        sigma: noise of one channel where the amplitude is about 1 (1 / SNR); or the lowest and
            highest of a range, for a network with the noise level of each voxel as an input.
        labels: one network is trained on each.
        recipe: of the training; `recipe.signals` voxels are simulated.
        seed: of all random numbers.
        normalise: divide each voxel by its own reference (the mean at b = 0), as in vivo; without
            it the network expects the amplitudes that were simulated.
        on_bound: treatment of labels on a bound: `"drop"` (section 3.3) or `"keep"`.
        weights: W of eqs. 7 and 9, one for each parameter in 1 / its unit; or such a row for each
            label; None for 1 / the parameter's mean.
        start: initial weights of every network, instead of restarts.
        b_tolerance: in ms/µm²; b-values this close are equal: their mean is one input of the
            network, and that at the lowest b is the reference.
        intervals: whether to train networks of intervals, too: credible ones beside a network of
            the ground truth, confidence beside one of fits of the model under its noise.

    Raises:
        InputError: if there is no label, a weight is not positive, the prior exceeds the bounds of
            a parameter, the model of a self-supervised training is not differentiable, or
            confidence intervals are wanted of more than 8 parameters.

    Warns:
        UserWarning: if mixed labels are combined with a loss other than the squared one, for which
            a mix of labels is not a mix of losses.
    """

    model: SignalModel
    noise: NoiseModel
    prior: Prior
    sigma: Sigma
    labels: tuple[LabelSource | SelfSupervised, ...]
    recipe: Recipe = field(default_factory=Recipe.fast)
    seed: int = 0
    normalise: bool = True
    on_bound: Literal["drop", "keep"] = "drop"
    weights: Sequence[float] | Sequence[Sequence[float] | None] | None = None
    start: Weights | None = None
    b_tolerance: float = B_TOLERANCE
    intervals: bool = False

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.model.parameters]
        if not self.labels:
            raise InputError("labels: expected at least one, got none")
        if len(self.rows) != len(self.labels):
            raise InputError(
                f"weights: expected one row for each of {len(self.labels)} labels, "
                f"got {len(self.rows)}"
            )
        for row in self.rows:
            if row is not None and (len(row) != len(names) or not all(0 < w < np.inf for w in row)):
                raise InputError(
                    f"weights: expected a positive number for each of {', '.join(names)}, "
                    f"got {', '.join(f'{float(w):g}' for w in row)}"
                )
        for parameter, (low, high) in zip(
            self.model.parameters, self.prior.ranges.tolist(), strict=False
        ):
            if low < parameter.bounds[0] or high > parameter.bounds[1]:
                raise InputError(
                    f"prior: {parameter.name} from {low:g} to {high:g} exceeds its bounds "
                    f"{parameter.bounds[0]:g} to {parameter.bounds[1]:g}; narrow the prior"
                )
        if self.intervals and len(names) > UNROLLED:
            raise InputError(
                f"intervals: they are for up to {UNROLLED} parameters, and "
                f"{type(self.model).__name__} has {len(names)}; train without intervals"
            )
        check_whole("seed", self.seed)
        if not np.ndim(self.sigma) or np.shape(self.sigma) == (2,):
            check_sigma(self.sigma)
        self.recipe.check_memory(measurements(self.model), len(names), len(self.labels))
        if self.recipe.loss != "squared" and any(isinstance(each, Mix) for each in self.labels):
            warnings.warn(
                f"loss {self.recipe.loss}: a mix of labels is a mix of losses, as in the paper, "
                "for squared errors only",
                stacklevel=3,
            )
        if not self.model.differentiable and any(
            isinstance(label, SelfSupervised) for label in self.labels
        ):
            raise InputError(
                f"self-supervision: {type(self.model).__name__} cannot be differentiated, as the "
                "loss of the signal requires; train on maximum-likelihood labels instead "
                "(mle-rician)"
            )

    @property
    def conditioned(self) -> bool:
        """Whether the noise level is an input of the network."""
        return np.ndim(self.sigma) > 0

    @property
    def rows(self) -> tuple[tuple[float, ...] | None, ...]:
        """The weights W for each label; None for 1 / mean."""
        if self.weights is None or np.isscalar(self.weights[0]):
            return (_row(self.weights),) * len(self.labels)
        return tuple(_row(row) for row in self.weights)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the estimated parameters."""
        return tuple(parameter.name for parameter in self.model.parameters)

    def describe(self) -> dict[str, Any]:
        """All that determines the networks, as JSON data."""
        return {
            "model": describe_model(self.model),
            "noise": describe_noise(self.noise),
            "prior": self.prior.describe(),
            "sigma": np.asarray(self.sigma, float).tolist(),
            "labels": [label.describe() for label in self.labels],
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "normalise": self.normalise,
            "on_bound": self.on_bound,
            "weights": None if set(self.rows) == {None} else plain(self.rows),
            "start": None if self.start is None else digest(named(self.start)),
            "b_tolerance": self.b_tolerance,
            "intervals": self.intervals,
        }

    @property
    def fingerprint(self) -> str:
        """A hash of the plan and of the training code, for caches and checkpoints."""
        record = [self.describe(), code_of("labelwise.networks.train", "labelwise.models")]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        labels = ", ".join(label.describe()["kind"] for label in self.labels)
        return (
            f"TrainingPlan({self.model}, {self.noise}, {self.prior}, sigma {self.sigma}, "
            f"labels {labels}, recipe {self.recipe.name}, seed {self.seed})"
        )


def _row(weights: Any) -> tuple[float, ...] | None:
    return None if weights is None else tuple(float(weight) for weight in weights)
