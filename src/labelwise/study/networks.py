"""The networks of a study and the labels that they are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from labelwise.fitting.many import UNROLLED
from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.mlp import Weights
from labelwise.networks.network import Network, blend
from labelwise.networks.plan import SelfSupervised, TrainingPlan
from labelwise.noise import Gaussian, Rician
from labelwise.study import methods
from labelwise.study.config import Study
from labelwise.study.stages import Stages
from labelwise.types import LabelSource

Label = LabelSource | SelfSupervised

_VARIANT_RESTARTS = 2


@dataclass(frozen=True, eq=False)
class NetworkSet:
    """Networks of one architecture and loss, which are trained together.

    Args:
        labels: by the networks' names.
        weights: loss weights W, by name, of the networks with other weights than the usual ones.
        wide: nodes in a hidden layer; the recipe's if 0.
        deep: hidden layers; the recipe's if 0.
        loss: see `Recipe.loss`.
        intervals: see `TrainingPlan`.
    """

    labels: Mapping[str, Label]
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    wide: int = 0
    deep: int = 0
    loss: str = "squared"
    intervals: bool = False


def network_sets(study: Study) -> list[NetworkSet]:
    """The networks that a study trains: the paper's, and the variants of the description.

    Args:
        study: its description.

    Example:
        >>> from labelwise.study.config import paper
        >>> [len(network_set.labels) for network_set in network_sets(paper())]
        [7, 1, 2]
    """
    labels = _labels(study)
    mle, truth = labels.get(mle_of_the_noise(study)), labels.get(methods.GT)
    weights = {}
    if study.hybrid and isinstance(mle, MLE):
        labels[methods.HYBRID] = Mix(study.hybrid, mle, GroundTruth())
    if study.own_weight and mle is not None and len(study.free) > 1:
        middles = abs(study.prior.ranges).mean(axis=1)
        for index, parameter in enumerate(study.names):
            if parameter in study.free:
                row = 1 / middles
                row[index] *= study.own_weight
                labels[methods.own_weight(parameter)] = mle
                weights[methods.own_weight(parameter)] = tuple(row.tolist())
    alone = {methods.SELF: labels.pop(methods.SELF)} if methods.SELF in labels else {}
    found = [NetworkSet(labels, weights, intervals=_intervals(study))] if labels else []
    found += [NetworkSet(alone)] if alone else []  # another objective, and so another plan
    pair = {methods.GT: truth, mle_of_the_noise(study): mle}
    pair = {name: label for name, label in pair.items() if label is not None}
    if study.absolute_loss and pair:
        absolute = {methods.GT: methods.GT_ABSOLUTE, mle_of_the_noise(study): methods.MLE_ABSOLUTE}
        renamed = {absolute[name]: label for name, label in pair.items()}
        found.append(NetworkSet(renamed, loss="absolute"))
    for wide, deep in ((study.wide, 0), (0, study.deep)):
        if pair and (wide or deep):
            renamed = {methods.larger(name, wide, deep)[0]: label for name, label in pair.items()}
            found.append(NetworkSet(renamed, wide=wide, deep=deep))
    return found


def mle_of_the_noise(study: Study) -> str:
    """The name of the network trained on ML labels under the simulated noise model."""
    return methods.MLE_RICIAN if isinstance(study.noise, Rician) else methods.MLE_GAUSSIAN


def _intervals(study: Study) -> bool:
    """Whether it has networks of intervals; the fits of a black box are too slow to teach them."""
    few = len(study.model.parameters) <= UNROLLED
    return study.intervals and study.model.differentiable and few


def _labels(study: Study) -> dict[str, Label]:
    start = "truth" if study.levels is None else "search"
    known: dict[str, tuple[str, Label]] = {
        "gt": (methods.GT, GroundTruth()),
        # over many levels, the noisiest voxels would dominate a plain sum of squares
        "selfsup": (methods.SELF, SelfSupervised(Gaussian() if study.levels else None)),
        "mle-rician": (methods.MLE_RICIAN, MLE(study.model, Rician(), start)),
        "mle-gaussian": (methods.MLE_GAUSSIAN, MLE(study.model, Gaussian(), start)),
    }
    return dict(known[label] for label in study.labels)


def train_all(study: Study, stages: Stages, training: int) -> dict[float, dict[str, Network]]:
    """Every network of one training, and the blends, by SNR and name.

    As in section 3.4 of the paper, one network is trained on the truth at the highest SNR, with
    restarts; all others start from its weights. Variants of another shape, and networks for all
    noise levels, have their own restarts. Trainings after the first use half as many restarts and
    omit the variants. Networks of intervals are of the first training, at the lowest SNR.

    Args:
        study: its description.
        stages: where results are kept.
        training: its index, from 0; it determines data and initial weights.
    """
    seed = (study.seed + 1000 * training) % 2**31
    suffix = study.suffix(training)

    def networks(
        level: str,
        sigma: float | tuple[float, float],
        chosen: Network | None,
        start: Weights | None,
        intervals: bool,
    ) -> dict[str, Network]:
        here: dict[str, Network] = {} if chosen is None else {methods.GT: chosen}
        plans = []
        for network_set in network_sets(study):
            if training > 0 and (network_set.wide or network_set.deep):
                continue
            labels = {name: each for name, each in network_set.labels.items() if name not in here}
            if labels:
                network_set = replace(
                    network_set, labels=labels, intervals=intervals and network_set.intervals
                )
                plan = _plan(study, network_set, sigma, seed, start)
                plans.append((plan, list(labels)))
        here |= stages.networks(f"networks, {level}{suffix}", plans)
        return {**here, **_blends(study, here)}

    if study.levels is not None:
        whole = networks("all levels", study.levels, None, None, training == 0)
        return dict.fromkeys(study.snrs, whole)
    first, highest, lowest = None, max(study.snrs), min(study.snrs)
    if study.recipe.shared_start:
        intervals = _intervals(study) and training == 0 and highest == lowest
        network_set = NetworkSet({methods.GT: GroundTruth()}, intervals=intervals)
        plan = _plan(study, network_set, 1 / highest, seed, None)
        restarts = plan.recipe.restarts if training == 0 else -(-plan.recipe.restarts // 2)
        recipe = replace(plan.recipe, shared_start=False, restarts=restarts)
        stage = f"first weights, SNR {highest:g}{suffix}"
        plans = [(replace(plan, recipe=recipe), [methods.GT])]
        first = stages.networks(stage, plans)[methods.GT]
    start = None if first is None else first.members[0].weights
    return {  # at the highest SNR the chosen network is the one trained on the truth
        snr: networks(
            f"SNR {snr:g}",
            1 / snr,
            first if snr == highest and "gt" in study.labels else None,
            start,
            training == 0 and snr == lowest,
        )
        for snr in study.snrs
    }


def points(networks: Mapping[str, Network]) -> dict[str, Network]:
    """The same networks without standard errors, which evaluations do not need."""
    return {name: network.without_errors() for name, network in networks.items()}


def _blends(study: Study, here: Mapping[str, Network]) -> dict[str, Network]:
    mle, truth = here.get(mle_of_the_noise(study)), here.get(methods.GT)
    if mle is None or truth is None:
        return {}
    return {methods.blend(alpha): blend(mle, truth, alpha) for alpha in study.blend}


def _plan(
    study: Study,
    network_set: NetworkSet,
    sigma: float | tuple[float, float],
    seed: int,
    start: Weights | None,
) -> TrainingPlan:
    recipe = replace(study.recipe, loss=network_set.loss)
    if network_set.wide or network_set.deep:  # the paper's first weights are of another shape
        start = None
        recipe = replace(
            recipe,
            width=network_set.wide or recipe.width,
            depth=network_set.deep or recipe.depth,
            restarts=min(recipe.restarts, _VARIANT_RESTARTS),
            shared_start=False,
        )
    return TrainingPlan(
        model=study.model,
        noise=study.noise,
        prior=study.prior,
        sigma=sigma,
        labels=tuple(network_set.labels.values()),
        recipe=recipe,
        seed=seed,
        normalise=study.normalise,
        on_bound=study.on_bound,
        weights=tuple(network_set.weights.get(name) for name in network_set.labels),
        start=start,
        intervals=network_set.intervals,
    )
