"""What an estimator is, as data: evaluations hold it, names and figures follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from labelwise.evaluation.posterior import PosteriorMean
from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import short_name
from labelwise.networks.labels import MLE
from labelwise.networks.network import Network
from labelwise.types import Estimator, LabelSource

_NAMES = {
    "fit": "MLE",
    "ground truth": "Supervised GT",
    "maximum likelihood": "Supervised MLE",
    "self-supervised": "Self-supervised",
    "mix": "Hybrid",
    "blend": "Blend",
}


@dataclass(frozen=True)
class Method:
    """The kind of an estimator; what does not apply is left at its default.

    Args:
        kind: `"fit"`; of networks that of the label, such as `"ground truth"`, or `"blend"`;
            `"posterior mean"`; empty if not known.
        start: of a fit: `"mean"` (of the prior) or `"truth"`.
        noise: the noise model of maximum-likelihood labels.
        alpha: of a blend or mix; the mean over the parameters.
        loss: of a network's training.
        weighed: the parameter whose errors the loss weighs above all others.
        wide: nodes in a hidden layer, if more than in the networks it is evaluated with.
        deep: hidden layers, likewise.
    """

    kind: str = ""
    start: str = ""
    noise: str = ""
    alpha: float | None = None
    loss: str = "squared"
    weighed: str = ""
    wide: int = 0
    deep: int = 0

    @property
    def name(self) -> str:
        """As in the source's figures.

        Example:
            >>> Method("maximum likelihood", noise="Rician", wide=150).name
            'Supervised MLE, Rician, 150 wide'
            >>> Method("blend", alpha=0.50).name
            'Blend 0.5'
        """
        name = _NAMES.get(self.kind, self.kind)
        details = (
            (self.start, f"from the {self.start}"),
            (self.loss != "squared", f"{self.loss} loss"),
            (self.weighed, f"weight on {self.weighed}"),
            (self.noise and self.loss == "squared" and not self.weighed, self.noise),
            (self.wide, f"{self.wide} wide"),
            (self.deep, f"{self.deep} deep"),
        )
        if self.kind == "blend":
            name += f" {self.alpha:g}"
        return ", ".join([name, *(words for applies, words in details if applies)])

    def to_json(self) -> str:
        """What is not at its default, as text."""
        usual = asdict(Method())
        known = {name: each for name, each in asdict(self).items() if each != usual[name]}
        return json.dumps(known)

    @classmethod
    def from_json(cls, text: str) -> Method:
        """The method that `to_json` wrote."""
        return cls(**json.loads(text))


def methods_of(estimators: Mapping[str, Estimator | LabelSource]) -> tuple[str, list[str]]:
    """The methods of estimators, as the coordinate `method` of an evaluation of them."""
    networks = [each for each in estimators.values() if isinstance(each, Network)]
    shapes = [member.architecture for each in networks for member in each.members]
    width = min((shape.width for shape in shapes), default=0)
    depth = min((shape.depth for shape in shapes), default=0)
    return "estimator", [_method(each, width, depth).to_json() for each in estimators.values()]


def _method(estimator: Estimator | LabelSource, width: int, depth: int) -> Method:
    if isinstance(estimator, MaximumLikelihood):
        return Method("fit")
    if isinstance(estimator, MLE):
        start = estimator.start if isinstance(estimator.start, str) else "mean"
        return Method("fit", start="" if start == "search" else start)
    if isinstance(estimator, PosteriorMean):
        return Method("posterior mean")
    if not isinstance(estimator, Network):
        return Method()
    if estimator.is_blend:
        return Method("blend", alpha=float(np.mean(estimator.alpha)))
    card, shape = estimator.card, estimator.members[0].architecture
    label, kind = card.label, card.label["kind"]
    return Method(
        kind,
        noise=_noise(label["noise"]) if kind == "maximum likelihood" else "",
        alpha=float(np.mean(label["alpha"])) if kind == "mix" else None,
        loss=card.recipe["loss"],
        weighed=_weighed(estimator),
        wide=shape.width if shape.width > width else 0,
        deep=shape.depth if shape.depth > depth else 0,
    )


def _noise(described: Any) -> str:
    return short_name(described) if isinstance(described, Mapping) else str(described)


def _weighed(network: Network) -> str:
    """The parameter whose relative errors the loss weighs more than twice as much as any other."""
    if network.card.weights is None:
        return ""
    weights = network.card.weights * np.abs(network.card.ranges).mean(axis=1)
    *others, largest = np.argsort(weights)
    heavy = all(weights[largest] > 2 * weights[other] for other in others)
    return network.parameters[largest].name if heavy and others else ""
