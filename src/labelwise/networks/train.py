"""From a lesson to trained networks: simulate, label, train, write the card."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.formatting import plain
from labelwise.io.files import canonical, digest
from labelwise.models.base import SignalModel, detached, scale_parameter
from labelwise.networks.cache import cached
from labelwise.networks.labels import GroundTruth, label_report, usable
from labelwise.networks.mlp import Architecture, Scaling, Weights, fit_scaling
from labelwise.networks.network import TrainedNetwork
from labelwise.networks.plan import Lesson, SelfSupervised
from labelwise.networks.reference import measurement_groups, reference_measurements
from labelwise.networks.training import Examples, Objective, Trained, supervised, train
from labelwise.noise import NoiseModel
from labelwise.simulation import simulate
from labelwise.types import InputError, LabelSource, Voxels

Tell = Callable[[str, int, int, str], None]
"""(stage, done, total, words): how far a lesson is."""

_SCALING_VOXELS = 20_000
_TAUGHT = (0.05, 99.95)  # percentiles of the labels: the range that a network was taught
_NOISE = (1, 99)  # percentiles of sigma / reference: the noise levels that it has seen


def teach(
    lesson: Lesson,
    *,
    cache: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    tell: Tell | None = None,
) -> list[TrainedNetwork]:
    """Simulate, label and train: one network for each label of the lesson, in their order.

    Args:
        lesson: what to learn.
        cache: folder in which labels made by fitting are kept; None to keep none.
        checkpoint: where an interrupted training leaves what it needs to go on: files whose names
            begin like this.
        resume: go on from there; the networks are the same to the byte.
        tell: called as the work goes on.

    Raises:
        InputError: if a label has no usable voxel, every restart of a network diverged, or the
            checkpoint is of another lesson.
    """
    room = _Classroom(lesson, cache, tell or _silent)
    taught = [room.taught(*each) for each in zip(lesson.labels, lesson.rows, strict=True)]
    results: dict[int, Trained] = {}
    start, left = lesson.start, []

    def train_together(stage: str, name: str, lessons: list[_Taught], start: Weights | None):
        at = None
        if checkpoint is not None:
            left.append(at := checkpoint.with_name(f"{checkpoint.name}.{name}"))
        return room.train(lessons, start, stage, at, resume)

    if lesson.recipe.shared_start and start is None:
        truth = room.taught(GroundTruth())
        (chosen,) = train_together("choosing first weights", "first", [truth], None)
        start = _weights_of(chosen, truth)
        # what is taught the truth has been trained by that
        results = {
            i: chosen
            for i, each in enumerate(taught)
            if (each.label, each.weights) == (truth.label, truth.weights)
        }
    for kind in dict.fromkeys(each.kind for each in taught):
        alike = [i for i, each in enumerate(taught) if each.kind == kind and i not in results]
        if alike:
            ended = train_together("training", kind, [taught[i] for i in alike], start)
            results |= dict(zip(alike, ended, strict=True))
    networks = [room.network(each, results[i]) for i, each in enumerate(taught)]
    for path in left:
        path.unlink(missing_ok=True)
    return networks


def _silent(stage: str, done: int, total: int, words: str) -> None:
    pass


@dataclass(frozen=True, eq=False)
class _Taught:
    """What one network is taught: targets (N, T), the voxels that count, and what to say of it."""

    label: LabelSource | SelfSupervised
    kind: str  # networks of one kind have one objective
    objective: Objective
    targets: Float[np.ndarray, "N T"]
    usable: Bool[np.ndarray, " N"]
    report: dict[str, Any] | None
    weights: tuple[float, ...] | None
    span: Float[np.ndarray, "P 2"]


class _Classroom:
    """The simulated voxels of a lesson and their scaling, which all its networks share."""

    def __init__(self, lesson: Lesson, cache: Path | None, tell: Tell) -> None:
        self.lesson, self.cache, self.tell = lesson, cache, tell
        recipe = lesson.recipe
        tell("simulating", 0, recipe.signals, "")
        self.voxels = simulate(
            lesson.model,
            lesson.noise,
            lesson.prior,
            lesson.sigma,
            recipe.signals,
            jax.random.key(lesson.seed),
        )
        self.scaling = _scaling(lesson, self.voxels)
        self.inputs, self.reference = _seen(self.scaling, self.voxels)
        self.valid = np.isfinite(self.inputs).all(axis=1) & (self.reference > 0)
        self.architecture = Architecture(
            inputs=self.inputs.shape[1],
            outputs=len(lesson.parameters),
            width=recipe.width or len(self.scaling.groups),
            depth=recipe.depth,
            activation=recipe.activation,
        )

    def taught(
        self, label: LabelSource | SelfSupervised, weights: tuple[float, ...] | None = None
    ) -> _Taught:
        """The label of every voxel, as the networks see it."""
        if isinstance(label, SelfSupervised):
            return self._self_taught(label)
        said = label.describe()["kind"]
        self.tell("labelling", 0, len(self.voxels), said)
        keep = None if isinstance(label, GroundTruth) else self.cache
        estimate = cached(label, self.voxels, keep, {"for": "training"})
        mask = usable(estimate, self.lesson.on_bound) & self.valid
        held = self.lesson.recipe.validation_voxels
        if not mask[-held:].any() or not mask[:-held].any():
            raise InputError(
                f"labels: of {len(mask)} simulated voxels, none to train or to validate with has "
                f"a usable {said} label; lower the noise, narrow the prior, widen the bounds, or "
                "keep labels on a bound"
            )
        targets = self.scaling.targets(jnp.asarray(estimate.values.T), jnp.asarray(self.reference))
        return _Taught(
            label=label,
            kind="labels",
            objective=supervised(self.lesson.recipe.loss),
            targets=np.asarray(targets, np.float32).T,
            usable=mask,
            report=label_report(estimate, self.lesson.model.parameters),
            weights=weights,
            span=np.percentile(estimate.values[mask], _TAUGHT, axis=0).T,
        )

    def _self_taught(self, label: SelfSupervised) -> _Taught:
        """The signal and its noise, relative to the reference, are what outputs are judged by."""
        targets = np.concatenate([self.voxels.signal, self.voxels.sigma[:, None]], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            targets /= self.reference[:, None]
        unit = np.array(self.scaling.unit, np.float32)[:, None]
        return _Taught(
            label=label,
            kind=f"self-{digest({}, canonical(label.describe(), 'label'))[:8]}",
            objective=_signal_loss(self.lesson.model, label.noise, unit),
            targets=np.where(self.valid[:, None], targets, 1).astype(np.float32),
            usable=self.valid,
            report=None,
            weights=None,
            span=self.lesson.prior.ranges,
        )

    def train(
        self,
        taught: Sequence[_Taught],
        start: Weights | None,
        stage: str,
        checkpoint: Path | None,
        resume: bool,
    ) -> list[Trained]:
        """Networks with one objective, side by side."""
        lesson = self.lesson
        unit = np.array(self.scaling.unit)
        ones = np.ones_like(unit)
        self.tell(stage, 0, lesson.recipe.epochs, "compiling")
        return train(
            Examples(
                inputs=self.inputs,
                targets=np.stack([each.targets for each in taught]),
                usable=np.stack([each.usable for each in taught]),
                weights=np.stack(
                    [ones if each.weights is None else unit * each.weights for each in taught]
                ),
            ),
            self.architecture,
            taught[0].objective,
            lesson.recipe,
            lesson.seed,
            start=start,
            checkpoint=checkpoint,
            resume=resume,
            fingerprint=lesson.fingerprint,
            progress=lambda epoch, loss: self.tell(
                stage, epoch, lesson.recipe.epochs, f"validation loss {loss:.5f}"
            ),
        )

    def network(self, taught: _Taught, result: Trained) -> TrainedNetwork:
        """A trained network with its card."""
        lesson = self.lesson
        said = lesson.describe()
        ratio = self.voxels.sigma[self.valid] / self.reference[self.valid]
        shared = ("model", "noise", "prior", "sigma", "on_bound", "recipe", "seed")
        card = {
            **{name: said[name] for name in shared},
            "weights": plain(taught.weights),
            "label": taught.label.describe(),
            "label_report": taught.report,
            "normalised": bool(self.scaling.reference),
            "noise_range": np.percentile(ratio, _NOISE).tolist(),
            "ranges": lesson.prior.ranges.tolist(),
            "taught": taught.span.tolist(),
            "validation": {
                "loss": result.loss,
                "epoch": result.epoch,
                "restarts": [float(x) if np.isfinite(x) else None for x in result.losses],
                "ended": list(result.reasons),
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("labelwise", "jax", "numpy")},
            },
        }
        weights = _weights_of(result, taught)
        return TrainedNetwork(
            self.architecture, self.scaling, weights, lesson.model.parameters, lesson.noise, card
        )


def _weights_of(result: Trained, taught: _Taught) -> Weights:
    if result.weights is None:
        raise InputError(
            f"training on {taught.label.describe()['kind']} labels: every restart ended without a "
            f"finite validation loss ({result.reasons[0]}); lower the rate of the recipe"
        )
    return result.weights


def _scaling(lesson: Lesson, voxels: Voxels) -> Scaling:
    assert voxels.params is not None
    few = slice(0, _SCALING_VOXELS)
    reference = reference_measurements(lesson.model) if lesson.normalise else ()
    signal, sigma, params = voxels.signal[few], voxels.sigma[few], voxels.params[few]
    if reference:
        some = signal[:, list(reference)].mean(axis=1) > 0
        signal, sigma, params = signal[some], sigma[some], params[some]
    return fit_scaling(
        signal,
        sigma,
        params,
        groups=measurement_groups(lesson.model),
        reference=reference,
        scale=scale_parameter(lesson.model),
        conditioned=lesson.conditioned,
    )


def _seen(scaling: Scaling, voxels: Voxels) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, I) and references (N,)."""

    @jax.jit
    def both(signal: Array, sigma: Array) -> tuple[Array, Array]:
        return scaling.inputs(signal.T, sigma).T, scaling.reference_of(signal.T)

    inputs, reference = both(voxels.signal, voxels.sigma)
    return np.asarray(inputs), np.asarray(reference)


def _signal_loss(
    model: SignalModel, noise: NoiseModel | None, unit: Float[np.ndarray, "P 1"]
) -> Objective:
    """The loss in signal space of one voxel: eq. 8, or the likelihood of a noise model."""
    model = detached(model)  # the objective closes over it

    def objective(outputs: Array, targets: Array, weights: Array) -> Array:
        data, sigma = targets[:-1], targets[-1]
        clean = jax.vmap(model.signal, in_axes=-1, out_axes=-1)(*(outputs * unit))
        if noise is None:
            return jnp.sum((clean - data) ** 2, axis=0)
        return jnp.sum(noise.nll(clean, data, sigma), axis=0)

    return objective
