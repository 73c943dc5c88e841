"""From an acquisition and a noise level to trained networks: simulate, label, train, describe.

A `Lesson` says everything that decides what the networks become; `teach` makes them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.acquisition import group_equal
from labelwise.bounds import signals
from labelwise.labels import (
    FITTER,
    MLE,
    GroundTruth,
    Mix,
    cached,
    describe_model,
    label_report,
    usable,
)
from labelwise.models.base import SignalModel, acquisition_names, scale_parameter
from labelwise.networks import Architecture, Scaling, Weights, fit_scaling
from labelwise.noise import NoiseModel
from labelwise.priors import Prior, Uniform
from labelwise.simulate import Sigma, simulate
from labelwise.trained import Blend, TrainedNetwork, load
from labelwise.training import (
    Examples,
    Objective,
    Progress,
    Recipe,
    Trained,
    supervised,
    train,
)
from labelwise.types import LabelSource, Voxels

Tell = Callable[[str, int, int, str], None]
"""(stage, done, total, words): how far a lesson is."""

_TOLERANCE = 0.001  # ms/µm²: b-values this close are one measurement, repeated
_SCALING_VOXELS = 20_000
_TAUGHT = (0.05, 99.95)  # percentiles of the labels: the range that a network was taught
_LEVEL_STEP = 1.25  # noise levels are rounded outwards, so that like scans share a network
_LEVEL_LIMITS = (1 / 400, 1 / 1.5)  # of sigma / reference: beyond, there is nothing to learn


@dataclass(frozen=True)
class SelfSupervised:
    """No label: the network is judged by the signal that its estimate predicts (eq. 8).

    Args:
        noise: None for the sum of squares of eq. 8; a noise model for its likelihood instead,
            which is what eq. 8 lacks for Rician data.

    Source: Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
    """

    noise: NoiseModel | None = None

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON data."""
        loss = type(self.noise).__name__ if self.noise else "sum of squares"
        return {"kind": "self-supervised", "loss": loss}


@dataclass(frozen=True, eq=False)
class Lesson:
    """What networks are to learn.

    Args:
        model: the signal model with its acquisition.
        noise: how the simulated measurements scatter.
        prior: where the simulated parameters come from.
        sigma: noise of one channel where the amplitude is about 1 (1 / SNR); or the lowest and
            highest of a range, for one network that is told the noise level of each voxel.
        labels: what each network is taught.
        recipe: how; `recipe.signals` voxels are simulated.
        seed: of everything random.
        normalise: divide each voxel by its own reference (the mean at b = 0), as in vivo; without
            it the network expects the amplitudes that were simulated.
        on_bound: what becomes of labels that ended on a bound: `"drop"` (section 3.3) or `"keep"`.
        weights: W of eqs. 7 and 9, one for each parameter in 1 / its unit; None for 1 / its mean.
        start: first weights of every network, in place of restarts.

    Raises:
        ValueError: if there is no label, a weight is not positive, the prior leaves the bounds of a
            parameter, or self-supervision is asked of a model that cannot be differentiated.

    Warns:
        UserWarning: if mixed labels are learnt under another loss than the squared one, for which
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
    weights: Sequence[float] | None = None
    start: Weights | None = None

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.model.parameters]
        if not self.labels:
            raise ValueError("labels: expected at least one, got none")
        if self.weights is not None and (
            len(self.weights) != len(names) or not all(0 < w < np.inf for w in self.weights)
        ):
            raise ValueError(
                f"weights: expected a positive number for each of {', '.join(names)}, "
                f"got {', '.join(f'{float(w):g}' for w in self.weights)}"
            )
        for parameter, (low, high) in zip(
            self.model.parameters, self.prior.ranges.tolist(), strict=False
        ):
            if low < parameter.bounds[0] or high > parameter.bounds[1]:
                raise ValueError(
                    f"prior: {parameter.name} from {low:g} to {high:g} leaves its bounds "
                    f"{parameter.bounds[0]:g} to {parameter.bounds[1]:g}, which estimates never do"
                )
        if self.recipe.loss != "squared" and any(isinstance(each, Mix) for each in self.labels):
            warnings.warn(
                f"loss {self.recipe.loss}: a mix of labels is a mix of losses, as in the paper, "
                "for squared errors only",
                stacklevel=3,
            )
        if not self.model.differentiable and any(
            isinstance(label, SelfSupervised) for label in self.labels
        ):
            raise ValueError(
                f"self-supervision: {type(self.model).__name__} cannot be differentiated, and the "
                "loss of the signal is trained through its derivative; teach maximum-likelihood "
                "labels instead (mle-rician), which need none"
            )

    @property
    def conditioned(self) -> bool:
        """Whether the network is told the noise level."""
        return np.ndim(self.sigma) > 0

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what is estimated."""
        return tuple(parameter.name for parameter in self.model.parameters)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the networks become, as JSON data."""
        return {
            "model": describe_model(self.model),
            "noise": type(self.noise).__name__,
            "prior": self.prior.describe(),
            "sigma": np.asarray(self.sigma, float).tolist(),
            "labels": [label.describe() for label in self.labels],
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "normalise": self.normalise,
            "on_bound": self.on_bound,
            "weights": None if self.weights is None else [float(w) for w in self.weights],
            "start": None if self.start is None else _digest(self.start),
        }


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
        checkpoint: where an interrupted training leaves what it needs to go on.
        resume: go on from there; the networks are the same to the byte.
        tell: called as the work goes on.

    Raises:
        ValueError: if a label has no usable voxel, every restart of a network diverged, or the
            checkpoint is of another lesson.
    """
    tell = tell or (lambda stage, done, total, words: None)
    lessons = _Classroom(lesson, cache, tell)
    start, chosen = lesson.start, None
    fingerprint = _fingerprint({"lesson": lesson.describe(), "labels": FITTER})
    if lesson.recipe.shared_start and start is None:
        chosen = lessons.train(
            [GroundTruth()],
            None,
            _suffixed(checkpoint, "first"),
            resume,
            fingerprint,
            "choosing first weights",
        )[0]
        start = _weights_of(chosen, "ground truth")
    results: dict[int, Trained] = {}
    if chosen is not None:  # what is taught the truth has been trained by that
        truths = [i for i, label in enumerate(lesson.labels) if isinstance(label, GroundTruth)]
        results = dict.fromkeys(truths, chosen)
    left = [i for i in range(len(lesson.labels)) if i not in results]
    for kind in dict.fromkeys(_objective_kind(lesson.labels[i]) for i in left):
        alike = [i for i in left if _objective_kind(lesson.labels[i]) == kind]
        ended = lessons.train(
            [lesson.labels[i] for i in alike],
            start,
            _suffixed(checkpoint, kind),
            resume,
            fingerprint,
            "training",
        )
        results |= dict(zip(alike, ended, strict=True))
    networks = [lessons.network(i, results[i]) for i in range(len(lesson.labels))]
    for kind in ("first", *(_objective_kind(label) for label in lesson.labels)):
        stale = _suffixed(checkpoint, kind)
        if stale is not None:
            stale.unlink(missing_ok=True)
    return networks


class _Classroom:
    """The simulated voxels of a lesson, scaled, and what has been found out about their labels."""

    def __init__(self, lesson: Lesson, cache: Path | None, tell: Tell) -> None:
        self.lesson, self.cache, self.tell = lesson, cache, tell
        self.seconds = {"simulate": 0.0, "label": 0.0, "train": 0.0}
        self.reports: dict[str, dict[str, Any]] = {}
        self.taught: dict[str, np.ndarray] = {}
        begin = time.perf_counter()
        tell("simulating", 0, lesson.recipe.signals, "")
        self.voxels = simulate(
            lesson.model,
            lesson.noise,
            lesson.prior,
            lesson.sigma,
            lesson.recipe.signals,
            jax.random.key(lesson.seed),
        )
        self.scaling = _scaling(lesson, self.voxels)
        self.inputs, self.reference = _seen(self.scaling, self.voxels)
        self.valid = np.isfinite(self.inputs).all(axis=1) & (self.reference > 0)
        self.inputs[~self.valid] = 0
        self.seconds["simulate"] = time.perf_counter() - begin
        recipe = lesson.recipe
        self.architecture = Architecture(
            inputs=self.inputs.shape[1],
            outputs=len(lesson.parameters),
            width=recipe.width or len(self.scaling.groups),
            depth=recipe.depth,
            activation=recipe.activation,
        )
        unit = np.array(self.scaling.unit)
        self.weights = np.ones_like(unit)
        if lesson.weights is not None:
            self.weights = unit * np.asarray(lesson.weights)

    def train(
        self,
        labels: Sequence[LabelSource | SelfSupervised],
        start: Weights | None,
        checkpoint: Path | None,
        resume: bool,
        fingerprint: str,
        stage: str,
    ) -> list[Trained]:
        """Networks with one objective, side by side."""
        lesson = self.lesson
        taught = [self._taught(label) for label in labels]
        examples = Examples(
            inputs=self.inputs,
            targets=np.stack([targets for targets, _ in taught]),
            usable=np.stack([mask for _, mask in taught]),
            weights=np.repeat(self.weights[None], len(labels), axis=0),
        )
        begin = time.perf_counter()

        def progress(at: Progress) -> None:
            words = f"validation loss {at.validation:.5f}"
            self.tell(stage, at.epoch, at.epochs, words)

        self.tell(stage, 0, lesson.recipe.epochs, "compiling")
        ended = train(
            examples,
            self.architecture,
            self._objective(labels[0]),
            lesson.recipe,
            lesson.seed,
            start=start,
            checkpoint=checkpoint,
            resume=resume,
            fingerprint=fingerprint,
            progress=progress,
        )
        self.seconds["train"] += time.perf_counter() - begin
        return ended

    def _taught(self, label: LabelSource | SelfSupervised) -> tuple[np.ndarray, np.ndarray]:
        """What the outputs are compared with (N, T), and which voxels take part."""
        if isinstance(label, SelfSupervised):
            relative = (
                np.concatenate([self.voxels.signal, self.voxels.sigma[:, None]], axis=1)
                / np.where(self.valid, self.reference, 1)[:, None]
            )
            return np.where(self.valid[:, None], relative, 1).astype(np.float32), self.valid
        begin = time.perf_counter()
        self.tell("labelling", 0, len(self.voxels), label.describe()["kind"])
        keep = None if isinstance(label, GroundTruth) or self.cache is None else self.cache
        estimate = cached(label, self.voxels, keep, {"for": "training"})
        mask = usable(estimate, self.lesson.on_bound) & self.valid
        self.reports[_name(label)] = label_report(estimate, self.lesson.model.parameters)
        if mask.any():
            self.taught[_name(label)] = np.percentile(estimate.values[mask], _TAUGHT, axis=0).T
        if not mask[-self.lesson.recipe.validation_voxels :].any() or not mask.any():
            raise ValueError(
                f"labels: not one of {len(mask)} simulated voxels has a usable "
                f"{label.describe()['kind']} label; lower the noise, narrow the prior, widen the "
                "bounds, or keep labels on a bound"
            )
        targets = np.asarray(
            self.scaling.targets(jnp.asarray(estimate.values.T), jnp.asarray(self.reference))
        ).T
        self.seconds["label"] += time.perf_counter() - begin
        return targets.astype(np.float32), mask

    def _objective(self, label: LabelSource | SelfSupervised) -> Objective:
        if not isinstance(label, SelfSupervised):
            return supervised(self.lesson.recipe.loss)
        unit = np.array(self.scaling.unit, np.float32)[:, None]
        return _signal_loss(self.lesson.model, label.noise, unit)

    def network(self, index: int, result: Trained) -> TrainedNetwork:
        """The network of one label with its card."""
        lesson = self.lesson
        label = lesson.labels[index]
        weights = _weights_of(result, label.describe()["kind"])
        ratio = (self.voxels.sigma / np.where(self.valid, self.reference, np.nan))[self.valid]
        described = lesson.describe()
        card = {
            **{name: described[name] for name in ("model", "noise", "prior", "sigma")},
            "label": label.describe(),
            "label_report": self.reports.get(_name(label)),
            "on_bound": lesson.on_bound,
            "normalised": bool(self.scaling.reference),
            "noise_range": [float(x) for x in np.percentile(ratio, [1, 99])],
            "ranges": lesson.prior.ranges.tolist(),
            "taught": self.taught.get(_name(label), lesson.prior.ranges).tolist(),
            "weights": described["weights"],
            "recipe": described["recipe"],
            "seed": lesson.seed,
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
        return TrainedNetwork(
            self.architecture, self.scaling, weights, lesson.model.parameters, card
        )


def reference_measurements(model: SignalModel) -> tuple[int, ...]:
    """The measurements by whose mean a voxel is divided.

    Those at the lowest b, by value; without b, those that have the largest signal whatever the
    tissue (the first echo); where there are none, as in an inversion recovery, whose every
    measurement vanishes for some T1, all of them. Empty if no parameter scales the whole signal.

    Example:
        >>> import labelwise as lw
        >>> reference_measurements(lw.IVIM([0.8, 0, 0.1, 0, 0.4]))
        (1, 3)
        >>> reference_measurements(lw.T1InversionRecovery([50, 400, 3000]))
        (0, 1, 2)
    """
    if scale_parameter(model) is None:
        return ()
    groups = _groups(model)
    if "b" in acquisition_names(type(model)):
        return groups[0]  # they are sorted by b
    clean = _typical_signals(model, Uniform.typical(model))
    means = np.stack([clean[:, list(group)].mean(axis=1) for group in groups])
    first = int(np.argmax(means.mean(axis=1)))
    if np.all(means[first] >= means.max(axis=0)):
        return groups[first]
    return tuple(range(clean.shape[1]))


def _typical_signals(model: SignalModel, prior: Prior, count: int = 256) -> np.ndarray:
    """Noise-free signals of some draws of a prior, (count, M)."""
    return signals(model, np.asarray(prior.sample(jax.random.key(0), count), float))


def noise_levels(
    model: SignalModel,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "#N"] | float,
) -> tuple[float, float]:
    """The range of noise levels that an image holds, for `Lesson.sigma`.

    The 2nd and 98th percentile of sigma over the reference (the mean at b = 0) of its voxels, kept
    between 1/400 and 1/1.5, and then rounded outwards to steps of a quarter, at least one.

    Args:
        model: with the image's acquisition.
        signal: (N, M) some voxels of the image.
        sigma: noise of one channel in its unit: a number or (N,).

    Raises:
        ValueError: if no voxel has a signal, or no parameter of the model scales it.
    """
    reference = reference_measurements(model)
    if not reference:
        raise ValueError(
            f"{type(model).__name__}: no parameter scales the whole signal, so there is no level "
            "of noise relative to it; train a network with `labelwise train --sigma`"
        )
    mean = np.asarray(signal, float)[:, list(reference)].mean(axis=1)
    ratio = np.broadcast_to(np.asarray(sigma, float), len(mean))
    good = np.isfinite(mean) & (mean > 0) & np.isfinite(ratio) & (ratio > 0)
    if not good.any():
        raise ValueError("noise levels: no voxel has a finite signal and a positive sigma")
    low, high = np.clip(np.percentile(ratio[good] / mean[good], [2, 98]), *_LEVEL_LIMITS)
    steps = np.log([low, high]) / np.log(_LEVEL_STEP)
    first = np.floor(steps[0])
    low, high = _LEVEL_STEP ** np.array([first, max(first + 1, np.ceil(steps[1]))])
    return float(low), float(high)


def dial_lesson(
    model: SignalModel,
    noise: NoiseModel,
    levels: tuple[float, float],
    prior: Prior | None = None,
    *,
    seed: int = 0,
) -> Lesson:
    """What `labelwise map` trains: two networks for all noise levels, the two ends of the dial.

    Args:
        model: the signal model with the acquisition of the scan.
        noise: the noise model, of the simulation and of the likelihood.
        levels: lowest and highest noise level, as `noise_levels` gives them.
        prior: what to simulate; each parameter's typical range if None.
        seed: of everything random.
    """
    prior = prior or Uniform.typical(model)
    clean = _typical_signals(model, prior)[:, list(reference_measurements(model))].mean(axis=1)
    weak, strong = np.percentile(clean, [5, 95])
    return Lesson(
        model=model,
        noise=noise,
        prior=prior,
        sigma=(float(levels[0] * weak), float(levels[1] * strong)),  # sigma / reference to sigma
        labels=(MLE(model, noise, start="search"), GroundTruth()),
        recipe=Recipe.every_level(signals=200_000, epochs=50),  # labels take as long as training
        seed=seed,
        on_bound="keep",  # docs/decisions/0007: at low SNR most labels are, and nothing else tells
    )


def dial(
    model: SignalModel,
    noise: NoiseModel,
    levels: tuple[float, float],
    prior: Prior | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
    tell: Tell | None = None,
) -> tuple[Blend, dict[str, Any]]:
    """Train the dial of `dial_lesson`, or read it from the cache if it was trained before.

    Args:
        model: see `dial_lesson`.
        noise: see `dial_lesson`.
        levels: see `dial_lesson`.
        prior: see `dial_lesson`.
        seed: see `dial_lesson`.
        cache: folder of networks and labels; None keeps none.
        tell: called as the work goes on.

    Returns:
        The dial at alpha = 1, and what was done: `cached`, `path`, `seconds` by stage.
    """
    lesson = dial_lesson(model, noise, levels, prior, seed=seed)
    name = _fingerprint({"lesson": lesson.describe(), "labels": FITTER, "code": _CODE})
    path = None if cache is None else cache / f"dial-{name}.safetensors"
    begin = time.perf_counter()
    if path is not None and path.exists():
        try:
            found = load(path)
        except ValueError:
            found = None  # damaged: train it anew
        if isinstance(found, Blend):
            seconds = {"load": time.perf_counter() - begin}
            return found, {"cached": True, "path": str(path), "seconds": seconds}
    mle, gt = teach(lesson, cache=cache, tell=tell)
    blend = Blend(1.0, mle, gt)
    kept = path
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            blend.save(path)
        except OSError:  # read-only or full: nothing depends on the cache
            kept = None
    seconds = {"train": time.perf_counter() - begin}
    return blend, {"cached": False, "path": None if kept is None else str(kept), "seconds": seconds}


def _groups(model: SignalModel) -> tuple[tuple[int, ...], ...]:
    settings = {name: np.asarray(getattr(model, name)) for name in acquisition_names(type(model))}
    return tuple(tuple(int(i) for i in group) for group in group_equal(settings, _TOLERANCE))


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
        groups=_groups(lesson.model),
        reference=reference,
        scale=scale_parameter(lesson.model),
        conditioned=lesson.conditioned,
    )


def _seen(scaling: Scaling, voxels: Voxels) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, I) and references (N,), writeable."""

    @jax.jit
    def both(signal: Array, sigma: Array) -> tuple[Array, Array]:
        return scaling.inputs(signal.T, sigma).T, scaling.reference_of(signal.T)

    inputs, reference = both(voxels.signal, voxels.sigma)
    return np.array(inputs), np.array(reference)


@dataclass(frozen=True, eq=False)
class _signal_loss:  # a function with its surroundings
    """The loss in signal space of one voxel: eq. 8, or the likelihood of a noise model."""

    model: SignalModel
    noise: NoiseModel | None
    unit: Float[np.ndarray, "P 1"]

    def __call__(self, outputs: Array, targets: Array, weights: Array) -> Array:
        data, sigma = targets[:-1], targets[-1]
        clean = jax.vmap(self.model.signal, in_axes=-1, out_axes=-1)(*(outputs * self.unit))
        if self.noise is None:
            return jnp.sum((clean - data) ** 2, axis=0)
        return jnp.sum(self.noise.nll(clean, data, sigma), axis=0)


def _objective_kind(label: LabelSource | SelfSupervised) -> str:
    if isinstance(label, SelfSupervised):
        return "self" if label.noise is None else f"self-{type(label.noise).__name__.lower()}"
    return "labels"


def _name(label: LabelSource | SelfSupervised) -> str:
    return json.dumps(label.describe(), sort_keys=True, default=str)


def _weights_of(result: Trained, label: str) -> Weights:
    if result.weights is None:
        raise ValueError(
            f"training on {label} labels: every restart ended without a finite validation loss "
            f"({result.reasons[0]}); lower the rate of the recipe"
        )
    return result.weights


def _suffixed(checkpoint: Path | None, kind: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{kind}")


def _digest(weights: Weights) -> str:
    total = hashlib.sha256()
    for pair in weights:
        for array in pair:
            total.update(np.ascontiguousarray(array, "<f4").tobytes())
    return total.hexdigest()


def _fingerprint(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {_CODE}".encode()).hexdigest()[:32]


def _code() -> str:
    """SHA-256 of the sources and libraries that decide what a network becomes."""
    package = resources.files("labelwise")
    total = hashlib.sha256(f"{version('jax')} {version('jaxlib')} {version('numpy')}".encode())
    for name in (
        *("acquisition.py", "bounds.py", "networks.py", "priors.py", "simulate.py"),
        *("teach.py", "training.py"),
    ):
        total.update((package / name).read_bytes())
    return total.hexdigest()


_CODE = _code()
