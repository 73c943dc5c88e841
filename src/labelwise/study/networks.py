"""Which networks a study trains, and on which labels they are taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.mlp import Weights
from labelwise.networks.network import Network, blend
from labelwise.networks.plan import SelfSupervised, TrainingPlan
from labelwise.noise import Gaussian, Rician
from labelwise.study import methods as names
from labelwise.study.config import Study
from labelwise.study.stages import Stages
from labelwise.types import LabelSource

Label = LabelSource | SelfSupervised

_VARIANT_RESTARTS = 2


@dataclass(frozen=True, eq=False)
class Course:
    """Networks of one architecture and loss: one lesson.

    Args:
        labels: by the networks' names.
        weights: W by the names of those that do not have the usual one.
        wide: nodes in a hidden layer; the recipe's if 0.
        deep: hidden layers; the recipe's if 0.
        loss: what an error costs.
    """

    labels: Mapping[str, Label]
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    wide: int = 0
    deep: int = 0
    loss: str = "squared"


def courses(study: Study) -> list[Course]:
    """What a study trains: the paper's networks, and the variants asked for.

    Args:
        study: its description.

    Example:
        >>> from labelwise.study.config import paper
        >>> [len(course.labels) for course in courses(paper())]
        [7, 1, 2]
    """
    taught = _labels(study)
    fitted, truth = taught.get(likely(study)), taught.get(names.GT)
    labels, weights = dict(taught), {}
    if study.hybrid and isinstance(fitted, MLE):
        labels[names.HYBRID] = Mix(study.hybrid, fitted, GroundTruth())
    if study.own_weight and fitted is not None and len(study.free) > 1:
        middles = abs(study.prior.ranges).mean(axis=1)
        for index, parameter in enumerate(study.names):
            if parameter in study.free:
                row = 1 / middles
                row[index] *= study.own_weight
                labels[names.own_weight(parameter)] = fitted
                weights[names.own_weight(parameter)] = tuple(row.tolist())
    alone = {names.SELF: labels.pop(names.SELF)} if names.SELF in labels else {}
    found = [Course(labels, weights)] if labels else []
    found += [Course(alone)] if alone else []  # another objective, and so another lesson
    pair = {names.GT: truth, likely(study): fitted}
    pair = {name: label for name, label in pair.items() if label is not None}
    if study.absolute_loss and pair:
        absolute = {names.GT: names.GT_ABSOLUTE, likely(study): names.MLE_ABSOLUTE}
        renamed = {absolute[name]: label for name, label in pair.items()}
        found.append(Course(renamed, loss="absolute"))
    if study.wide and pair:
        renamed = {names.wide(name, study.wide): label for name, label in pair.items()}
        found.append(Course(renamed, wide=study.wide))
    if study.deep and pair:
        renamed = {names.deep(name, study.deep): label for name, label in pair.items()}
        found.append(Course(renamed, deep=study.deep))
    return found


def likely(study: Study) -> str:
    """The name of the network taught maximum-likelihood estimates under the simulated noise."""
    return names.MLE_RICIAN if isinstance(study.noise, Rician) else names.MLE_GAUSSIAN


def _labels(study: Study) -> dict[str, Label]:
    start = "truth" if study.levels is None else "search"
    known: dict[str, tuple[str, Label]] = {
        "gt": (names.GT, GroundTruth()),
        # over many levels a plain sum of squares would be that of the noisiest voxels
        "selfsup": (names.SELF, SelfSupervised(Gaussian() if study.levels else None)),
        "mle-rician": (names.MLE_RICIAN, MLE(study.model, Rician(), start)),
        "mle-gaussian": (names.MLE_GAUSSIAN, MLE(study.model, Gaussian(), start)),
    }
    return dict(known[label] for label in study.labels)


def train_all(study: Study, stages: Stages, training: int) -> dict[float, dict[str, Network]]:
    """Every network of one training, by SNR and name; the dial among them.

    As in section 3.4 of the paper, one network taught the truth at the highest SNR is chosen among
    the restarts, and all others begin with its weights; variants of another shape, and networks
    for all noise levels, have restarts of their own. Trainings after the first choose among half as
    many restarts, and leave the variants out.

    Args:
        study: its description.
        stages: where they are kept.
        training: which, from 0: it decides data and first weights.
    """
    seed = study.seed + 1000 * training
    suffix = study.suffix(training)

    def networks(
        level: str,
        sigma: float | tuple[float, float],
        chosen: Network | None,
        start: Weights | None,
    ) -> dict[str, Network]:
        here: dict[str, Network] = {} if chosen is None else {names.GT: chosen}
        lessons = []
        for course in courses(study):
            if training > 0 and (course.wide or course.deep):
                continue
            labels = {name: each for name, each in course.labels.items() if name not in here}
            if labels:
                lesson = _lesson(study, replace(course, labels=labels), sigma, seed, start)
                lessons.append((lesson, list(labels)))
        here |= stages.networks(f"networks, {level}{suffix}", lessons)
        return {**here, **_dial(study, here)}

    if study.levels is not None:
        return dict.fromkeys(study.snrs, networks("all levels", study.levels, None, None))
    first, highest = None, max(study.snrs)
    if study.recipe.shared_start:
        lesson = _lesson(study, Course({names.GT: GroundTruth()}), 1 / highest, seed, None)
        restarts = lesson.recipe.restarts if training == 0 else -(-lesson.recipe.restarts // 2)
        recipe = replace(lesson.recipe, shared_start=False, restarts=restarts)
        stage = f"first weights, SNR {highest:g}{suffix}"
        lessons = [(replace(lesson, recipe=recipe), [names.GT])]
        first = stages.networks(stage, lessons)[names.GT]
    start = None if first is None else first.members[0].weights
    return {  # at the highest SNR the chosen network is the one taught the truth
        snr: networks(
            f"SNR {snr:g}",
            1 / snr,
            first if snr == highest and "gt" in study.labels else None,
            start,
        )
        for snr in study.snrs
    }


def points(networks: Mapping[str, Network]) -> dict[str, Network]:
    """The same networks without standard errors, which simulations do not need."""
    return {name: network.without_errors() for name, network in networks.items()}


def _dial(study: Study, here: Mapping[str, Network]) -> dict[str, Network]:
    fitted, truth = here.get(likely(study)), here.get(names.GT)
    if fitted is None or truth is None:
        return {}
    return {names.dial(alpha): blend(fitted, truth, alpha) for alpha in study.dial}


def _lesson(
    study: Study,
    course: Course,
    sigma: float | tuple[float, float],
    seed: int,
    start: Weights | None,
) -> TrainingPlan:
    recipe = replace(study.recipe, loss=course.loss)
    if course.wide or course.deep:  # the paper's first weights are of another shape
        start = None
        recipe = replace(
            recipe,
            width=course.wide or recipe.width,
            depth=course.deep or recipe.depth,
            restarts=min(recipe.restarts, _VARIANT_RESTARTS),
            shared_start=False,
        )
    return TrainingPlan(
        model=study.model,
        noise=study.noise,
        prior=study.prior,
        sigma=sigma,
        labels=tuple(course.labels.values()),
        recipe=recipe,
        seed=seed,
        normalise=study.normalise,
        on_bound=study.on_bound,
        weights=tuple(course.weights.get(name) for name in course.labels),
        start=start,
    )
