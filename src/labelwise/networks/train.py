"""Training from a plan: simulate voxels, label them, train networks and write their cards."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.fitting import MaximumLikelihood
from labelwise.formatting import plain
from labelwise.io.files import canonical, digest
from labelwise.models.base import SignalModel, detached, scale_parameter
from labelwise.networks.cache import cached
from labelwise.networks.card import Card
from labelwise.networks.intervals import (
    LEVEL,
    Heads,
    IntervalNetwork,
    Kind,
    confidence,
    credible,
    pinball,
)
from labelwise.networks.labels import MLE, GroundTruth, label_report, usable
from labelwise.networks.mlp import (
    Architecture,
    Scaling,
    Weights,
    fit_scaling,
    inputs_and_references,
)
from labelwise.networks.network import Member, Network, blend, with_interval
from labelwise.networks.plan import SelfSupervised, TrainingPlan, labels_named
from labelwise.networks.recipe import Recipe
from labelwise.networks.reference import measurement_groups, reference_measurements
from labelwise.networks.training import (
    Examples,
    Layers,
    Objective,
    TrainingResult,
    optimise,
    supervised,
)
from labelwise.networks.verification import verify, with_verification
from labelwise.noise import NoiseModel, Rician
from labelwise.priors import Prior, Uniform
from labelwise.simulation import simulate
from labelwise.types import (
    Estimate,
    Estimator,
    InputError,
    LabelSource,
    Progress,
    Voxels,
    no_progress,
)

_SCALING_VOXELS = 20_000
_PART = 16_384  # voxels whose ends are fitted between two looks at whether to stop
_VERIFIED_VOXELS = 10_000  # fitted to verify networks whose labels are no fits
_LABEL_RANGE = (0.05, 99.95)  # percentiles of the labels
_TRUTH_RANGE = (1, 99)  # percentiles of the truth, in the units of the outputs
_MARGIN = 2.0  # widths of that range by which labels may exceed it
_LEVELS, _FEWEST = 24, 400  # noise levels at most, and voxels in one at least
_LEAST_ERROR = 1e-3  # of labels, relative to the mean of the parameter: no precision is infinite
_NOISE_RANGE = (1, 99)  # percentiles of sigma / reference


def train_networks(
    plan: TrainingPlan,
    *,
    ends: Estimator | None = None,
    cache: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[Network]:
    """Train one network for each label of a plan, in their order.

    Args:
        plan: the simulation, labels, recipe and seed.
        ends: makes the confidence intervals of simulated voxels, as `stats["low"]` and `"high"` of
            its estimates, (N, P) in the parameters' units; by profile likelihood if None.
        cache: folder of cached labels; nothing is cached if None.
        checkpoint: prefix of the paths of checkpoints; None for no checkpoints.
        resume: continue from the checkpoints; the networks are the same to the byte.
        progress: called during the training.

    Raises:
        InputError: if a label has no usable voxel, every restart of a network diverged, or a
            checkpoint belongs to another plan.
    """
    training_set = _TrainingSet(plan, cache, progress or no_progress)
    checkpoints = []

    def path_of(name: str) -> Path | None:
        if checkpoint is None:
            return None
        checkpoints.append(at := checkpoint.with_name(f"{checkpoint.name}.{name}"))
        return at

    kinds: list[Kind | None] = [
        _interval_kind(label, plan) if plan.intervals else None for label in plan.labels
    ]
    beside = {
        kind: partial(training_set.intervals, kind, ends, path_of, resume)
        for kind in dict.fromkeys(kinds)
        if kind is not None
    }
    with ThreadPoolExecutor(max(1, len(beside))) as pool:
        try:
            made = {kind: pool.submit(train) for kind, train in beside.items()}
            networks = training_set.networks(path_of, resume)
            training_set.first = False
            networks = [
                each if kind is None else with_interval(each, made[kind].result())
                for each, kind in zip(networks, kinds, strict=True)
            ]
        except BaseException:
            training_set.stopped = True
            raise
    for path in checkpoints:
        path.unlink(missing_ok=True)
    return networks


@dataclass(frozen=True, eq=False)
class _Targets:
    """The training targets (N, T) of one network, its usable voxels, and records for its card."""

    label: LabelSource | SelfSupervised
    kind: str  # networks of one kind share an objective
    objective: Objective
    targets: Float[np.ndarray, "N T"]
    usable: Bool[np.ndarray, " N"]
    report: dict[str, Any] | None
    weights: tuple[float, ...] | None
    span: Float[np.ndarray, "P 2"]
    held: Estimate | None = None  # the labels of the held-out voxels


class _TrainingSet:
    """The simulated voxels of a plan and their scaling, shared by its networks."""

    stopped = False
    """Whether the trainings of intervals, which are in other threads, shall end."""
    first = True
    """Whether the networks of labels are not ready; only their training reports its progress."""

    def __init__(self, plan: TrainingPlan, cache: Path | None, progress: Progress) -> None:
        self.plan, self.cache, self.progress = plan, cache, progress
        self.reporting = threading.Lock()
        recipe = plan.recipe
        progress("simulating", 0, recipe.signals, "")
        self.voxels = simulate(
            plan.model,
            plan.noise,
            plan.prior,
            plan.sigma,
            recipe.signals,
            jax.random.key(plan.seed),
        )
        self.scaling = _scaling(plan, self.voxels)
        self.inputs, self.reference = inputs_and_references(self.scaling, self.voxels)
        self.valid = np.isfinite(self.inputs).all(axis=1) & (self.reference > 0)
        assert self.voxels.params is not None  # for the type checker: they are simulated
        self.truth = self._relative(self.voxels.params)
        low, high = np.percentile(self.truth[self.valid], _TRUTH_RANGE, axis=0)
        margin = _MARGIN * (high - low)
        self.limits = low - margin, high + margin
        self.precision: Float[np.ndarray, "N P"] | None = None
        self.architecture = Architecture(
            inputs=self.inputs.shape[1],
            outputs=len(plan.parameters),
            width=recipe.width or len(self.scaling.groups),
            depth=recipe.depth,
            activation=recipe.activation,
            signed=any(parameter.bounds[0] < 0 for parameter in plan.model.parameters),
        )

    def networks(self, path_of: Callable[[str], Path | None], resume: bool) -> list[Network]:
        """The network of each label, without intervals."""
        plan = self.plan
        targets = [self.targets(*each) for each in zip(plan.labels, plan.rows, strict=True)]
        if plan.conditioned:
            self.weigh(targets)
        results: dict[int, TrainingResult] = {}
        start = plan.start
        if plan.recipe.shared_start and start is None:
            truth = self.targets(GroundTruth())
            at = path_of("first")
            (first,) = self.train([truth], None, "choosing first weights", at, resume)
            start = _weights_of(first, truth)
            # this training also gave the network for the ground truth
            results = {
                i: first
                for i, each in enumerate(targets)
                if (each.label, each.weights) == (truth.label, truth.weights)
            }
        for kind in dict.fromkeys(each.kind for each in targets):
            alike = [i for i, each in enumerate(targets) if each.kind == kind and i not in results]
            if alike:
                together = [targets[i] for i in alike]
                found = self.train(together, start, "training", path_of(kind), resume)
                results |= dict(zip(alike, found, strict=True))
        networks = [self.network(each, results[i]) for i, each in enumerate(targets)]
        return self.verified(networks, targets) if plan.conditioned else networks

    def intervals(
        self,
        kind: Kind,
        ends: Estimator | None,
        path_of: Callable[[str], Path | None],
        resume: bool,
    ) -> IntervalNetwork:
        """The network of intervals of one kind; see `train_networks`."""
        plan = self.plan
        stage, at = f"training {kind} intervals", path_of(kind)

        def report(*args: Any) -> None:
            if self.stopped:
                raise KeyboardInterrupt  # which saves the checkpoint
            if not self.first:
                with self.reporting:
                    self.progress(*args)

        def train(examples: Examples, heads: Heads, recipe: Recipe) -> TrainingResult:
            fixed = pinball(kind), recipe, stage, at, resume
            return self.optimise(examples, heads, *fixed, progress=report)[0]

        given = plan, self.scaling, self.voxels, train
        if kind == "credible":
            return credible(*given)
        fits = ends or MaximumLikelihood(plan.model, plan.noise, intervals=LEVEL)

        def in_parts(signal: np.ndarray, sigma: np.ndarray) -> Estimate:
            found = []
            for first in range(0, len(signal), _PART):
                if self.stopped:
                    raise KeyboardInterrupt
                found.append(fits(signal[first : first + _PART], sigma[first : first + _PART]))
            names = ("low", "high")
            return Estimate(
                np.concatenate([each.values for each in found]),
                np.concatenate([each.status for each in found]),
                {name: np.concatenate([each.stats[name] for each in found]) for name in names},
            )

        return confidence(*given, in_parts)

    def targets(
        self, label: LabelSource | SelfSupervised, weights: tuple[float, ...] | None = None
    ) -> _Targets:
        """The labels of all voxels, in the units of the network outputs."""
        if isinstance(label, SelfSupervised):
            return self._self_supervised(label)
        kind = label.describe()["kind"]
        self.progress("labelling", 0, len(self.voxels), kind)
        keep = None if isinstance(label, GroundTruth) else self.cache
        key = {"for": "training"}
        estimate = cached(label, self.voxels, keep, key, self.plan.model.parameters)
        mask = usable(estimate, self.plan.on_bound) & self.valid
        held = self.plan.recipe.validation_voxels
        if not mask[-held:].any() or not mask[:-held].any():
            raise InputError(
                f"labels: no usable {kind} label for training or for validation among "
                f"{len(mask)} simulated voxels; lower the noise, narrow the prior, widen the "
                "bounds, or keep labels on a bound"
            )
        labels = self._relative(estimate.values)
        targets = np.clip(labels, *self.limits)
        far = np.mean((labels != targets)[mask], axis=0)
        if far.max() > 0.5:
            name = self.plan.parameters[int(far.argmax())]
            raise InputError(
                f"labels: {100 * far.max():.0f} % of the {kind} labels of {name} are far outside "
                "the simulated range, so that a network cannot be trained on them; check the label"
            )
        return _Targets(
            label=label,
            kind="labels",
            objective=supervised(self.plan.recipe.loss),
            targets=targets,
            usable=mask,
            report=label_report(estimate, self.plan.model.parameters),
            weights=weights,
            span=np.percentile(self._absolute(targets)[mask], _LABEL_RANGE, axis=0).T,
            held=Estimate(estimate.values[-held:], estimate.status[-held:]),
        )

    def _relative(self, params: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
        """Parameters in the units of the network outputs."""
        targets = self.scaling.targets(jnp.asarray(params.T), jnp.asarray(self.reference))
        return np.asarray(targets, np.float32).T

    def _absolute(self, targets: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
        """The inverse of `_relative`."""
        params = self.scaling.params(jnp.asarray(targets.T), jnp.asarray(self.reference))
        return np.asarray(params, np.float32).T

    def weigh(self, targets: Sequence[_Targets]) -> None:
        """Weigh squared errors by 1 / the error of fits at the noise level of each voxel.

        The optimal network is the same, since the weights depend on one of its inputs only. Without
        weights, noisy voxels and labels on a bound rule the loss, and the network is imprecise at
        high SNR. With 1 / error², in standard errors, it is imprecise at low SNR: for T2, medians
        of |network - truth| up to 1.4 times those of fits at SNR 2, against 1.04 here.
        """
        fits = [each for each in targets if _fits_of(each.label, self.plan)]
        if not fits:
            return
        level = np.log(self.voxels.sigma / np.where(self.valid, self.reference, 1))
        rows = np.flatnonzero(fits[0].usable)
        rows = rows[np.argsort(level[rows], kind="stable")]
        parts = np.array_split(rows, max(1, min(_LEVELS, len(rows) // _FEWEST)))
        middle = [level[part].mean() for part in parts]
        error = fits[0].targets - self.truth
        size = np.stack([np.sqrt(np.mean(error[part] ** 2, axis=0)) for part in parts], axis=1)
        size = np.maximum(size, _LEAST_ERROR)
        spread = np.stack([np.interp(level, middle, each) for each in size], axis=1)
        self.precision = (1 / np.sqrt(spread)).astype(np.float32)

    def _self_supervised(self, label: SelfSupervised) -> _Targets:
        """Targets of self-supervision: the signal and its noise, relative to the reference."""
        targets = np.concatenate([self.voxels.signal, self.voxels.sigma[:, None]], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            targets /= self.reference[:, None]
        unit = np.array(self.scaling.unit, np.float32)[:, None]
        return _Targets(
            label=label,
            kind=f"self-{digest({}, canonical(label.describe(), 'label'))[:8]}",
            objective=_signal_loss(self.plan.model, label.noise, unit),
            targets=np.where(self.valid[:, None], targets, 1).astype(np.float32),
            usable=self.valid,
            report=None,
            weights=None,
            span=self.plan.prior.ranges,
        )

    def train(
        self,
        targets: Sequence[_Targets],
        start: Weights | None,
        stage: str,
        checkpoint: Path | None,
        resume: bool,
    ) -> list[TrainingResult]:
        """Train networks with one objective in parallel."""
        plan = self.plan
        unit = np.array(self.scaling.unit)
        ones = np.ones_like(unit)
        rows, objective = np.stack([each.targets for each in targets]), targets[0].objective
        if self.precision is not None and targets[0].kind == "labels":
            precision = np.broadcast_to(self.precision, rows.shape)
            rows = np.concatenate([rows, precision], axis=-1)
            objective = supervised(plan.recipe.loss, weighted=True)
        examples = Examples(
            inputs=self.inputs,
            targets=rows,
            usable=np.stack([each.usable for each in targets]),
            weights=np.stack(
                [ones if each.weights is None else unit * each.weights for each in targets]
            ),
        )
        results = self.optimise(
            examples,
            self.architecture,
            objective,
            plan.recipe,
            stage,
            checkpoint,
            resume,
            start=start,
            centre=self.truth[self.valid].mean(axis=0) if self.architecture.signed else None,
        )
        if targets[0].kind == "labels":
            for index, (each, result) in enumerate(zip(targets, results, strict=True)):
                self._refuse_useless(each, result, examples, index, objective)
        return results

    def optimise(
        self,
        examples: Examples,
        architecture: Layers,
        objective: Objective,
        recipe: Recipe,
        stage: str,
        checkpoint: Path | None,
        resume: bool,
        start: Weights | None = None,
        centre: Float[np.ndarray, " P"] | None = None,
        progress: Progress | None = None,
    ) -> list[TrainingResult]:
        """The training loop with the seed, fingerprint and progress of the plan."""
        progress = progress or self.progress
        progress(stage, 0, recipe.epochs, "compiling")
        return optimise(
            examples,
            architecture,
            objective,
            recipe,
            self.plan.seed,
            start=start,
            centre=centre,
            checkpoint=checkpoint,
            resume=resume,
            fingerprint=self.plan.fingerprint,
            progress=lambda epoch, loss: progress(
                stage, epoch, recipe.epochs, f"validation loss {loss:.5f}"
            ),
        )

    def _refuse_useless(
        self,
        targets: _Targets,
        result: TrainingResult,
        examples: Examples,
        index: int,
        objective: Objective,
    ) -> None:
        """Refuse a network whose validation loss is larger than that of outputs of 0."""
        held = slice(-self.plan.recipe.validation_voxels, None)
        rows = examples.targets[index, held][examples.usable[index, held]].T
        nothing = np.zeros((self.architecture.outputs, rows.shape[1]), np.float32)
        limit = float(jnp.mean(objective(nothing, rows, examples.weights[index])))  # type: ignore[arg-type]
        if result.weights is None or result.loss <= limit:
            return
        report = targets.report or {}
        stuck = {name: share for name, share in report.get("on_bound_of", {}).items() if share}
        where = ", ".join(f"{name} {100 * share:.0f} %" for name, share in stuck.items())
        raise InputError(
            f"training on {targets.label.describe()['kind']} labels: the validation loss is "
            f"{result.loss:.3g}, that of a network that always gives 0 is {limit:.3g}, so it "
            f"learned nothing (labels on a bound: {where or 'none'}); narrow the prior to what the "
            "acquisition can measure, lower the rate of the recipe, or use labelwise fit"
        )

    def verified(self, networks: list[Network], targets: Sequence[_Targets]) -> list[Network]:
        """The networks with their errors beside those of fits in the held-out voxels."""
        plan, held = self.plan, self.plan.recipe.validation_voxels
        fits = [each.held for each in targets if _fits_of(each.label, plan)]
        if not fits:
            held = min(held, _VERIFIED_VOXELS)
            self.progress("verifying", 0, held, "")
            label = MLE(plan.model, plan.noise, start="search")
            fits = [label(Voxels(self.voxels.signal[-held:], self.voxels.sigma[-held:]))]
        voxels = Voxels(*(rows[-held:] for rows in vars(self.voxels).values()))
        assert fits[0] is not None
        return [with_verification(each, verify(each, voxels, fits[0])) for each in networks]

    def network(self, targets: _Targets, result: TrainingResult) -> Network:
        """The trained network with its card."""
        plan = self.plan
        ratio = self.voxels.sigma[self.valid] / self.reference[self.valid]
        card = Card(
            **_settings(plan, targets.label, targets.weights),
            label_report=targets.report,
            label_range=targets.span.tolist(),
            ranges=plan.prior.ranges.tolist(),
            noise_range=np.percentile(ratio, _NOISE_RANGE).tolist(),
            normalised=bool(self.scaling.reference),
            validation={
                "loss": result.loss,
                "epoch": result.epoch,
                "restarts": [float(x) if np.isfinite(x) else None for x in result.losses],
                "ended": list(result.reasons),
            },
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("labelwise", "jax", "numpy")},
            },
        )
        weights = _weights_of(result, targets)
        parameters = plan.model.parameters
        return Network(
            (Member(self.architecture, self.scaling, weights, card),),
            parameters,
            plan.noise,
            (1.0,) * len(parameters),
        )


def _settings(
    plan: TrainingPlan,
    label: LabelSource | SelfSupervised,
    weights: tuple[float, ...] | None,
) -> dict[str, Any]:
    """The settings of a plan in the card of the network for one label."""
    record = plan.describe()
    shared = ("model", "noise", "prior", "sigma", "on_bound", "recipe", "seed")
    settings = {name: record[name] for name in shared}
    return settings | {"label": label.describe(), "weights": plain(weights)}


def is_trained_by(network: Network, plan: TrainingPlan) -> bool:
    """Whether the cards of a network have the settings of a plan, one card for each label."""
    cards = [member.card.to_json() for member in network.members]
    settings = [_settings(plan, *each) for each in zip(plan.labels, plan.rows, strict=True)]
    return canonical([{name: card[name] for name in settings[0]} for card in cards], "cards") == (
        canonical(settings, "plan")
    )


def _weights_of(result: TrainingResult, targets: _Targets) -> Weights:
    if result.weights is None:
        raise InputError(
            f"training on {targets.label.describe()['kind']} labels: every restart ended without a "
            f"finite validation loss ({result.reasons[0]}); lower the rate of the recipe"
        )
    return result.weights


def _fits_of(label: LabelSource | SelfSupervised, plan: TrainingPlan) -> bool:
    """Whether a label is the fit of the plan's own model under its own noise model."""
    if not isinstance(label, MLE) or label.start not in ("truth", "search"):
        return False
    own = MLE(plan.model, plan.noise).describe()
    return label.describe() | {"start": None} == own | {"start": None}


def _interval_kind(label: LabelSource | SelfSupervised, plan: TrainingPlan) -> Kind | None:
    """The kind of interval beside the network for a label; None if there is none."""
    if isinstance(label, GroundTruth):
        return "credible"
    return "confidence" if _fits_of(label, plan) else None


def _scaling(plan: TrainingPlan, voxels: Voxels) -> Scaling:
    assert voxels.params is not None
    few = slice(0, _SCALING_VOXELS)
    reference = reference_measurements(plan.model, plan.b_tolerance) if plan.normalise else ()
    signal, sigma, params = voxels.signal[few], voxels.sigma[few], voxels.params[few]
    if reference:
        some = signal[:, list(reference)].mean(axis=1) > 0
        signal, sigma, params = signal[some], sigma[some], params[some]
    return fit_scaling(
        signal,
        sigma,
        params,
        groups=measurement_groups(plan.model, plan.b_tolerance),
        reference=reference,
        scale=scale_parameter(plan.model),
        conditioned=plan.conditioned,
    )


def _signal_loss(
    model: SignalModel, noise: NoiseModel | None, unit: Float[np.ndarray, "P 1"]
) -> Objective:
    """The self-supervised loss: eq. 8, or the likelihood of a noise model."""
    model = detached(model)  # the objective is a closure over it

    def objective(outputs: Array, targets: Array, weights: Array) -> Array:
        data, sigma = targets[:-1], targets[-1]
        clean = jax.vmap(model.signal, in_axes=-1, out_axes=-1)(*(outputs * unit))
        if noise is None:
            return jnp.sum((clean - data) ** 2, axis=0)
        return jnp.sum(noise.nll(clean, data, sigma), axis=0)

    return objective


def train(
    model: SignalModel,
    *,
    snr: float | tuple[float, float],
    noise: NoiseModel | None = None,
    label: str = "blend",
    prior: Prior | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    intervals: bool = False,
    progress: Progress | None = None,
) -> Network:
    """Train a network for an acquisition, or a blend of two networks.

    Args:
        model: the signal model with its acquisition.
        snr: S0 over the noise of one channel; (lowest, highest) for a network with the noise
            level of each voxel as an input.
        noise: of the simulated signals; `Rician()` if None.
        label: see `labels_named`; `"blend"` for a network with adjustable alpha.
        prior: of the simulated parameters; the typical range of each if None.
        recipe: hyperparameters; if None, `Recipe.fast()`, or `Recipe.every_level()` for a range
            of SNR.
        seed: of all random numbers.
        intervals: whether to train networks of intervals, too; see `TrainingPlan`.
        progress: called during the training.

    Raises:
        InputError: if an argument is invalid; see also `train_networks`.

    Example:
        >>> import labelwise as lw
        >>> recipe = lw.Recipe.fast(signals=500, batch=50, epochs=1, restarts=1, warmup=1)
        >>> network = train(lw.ADC([0, 0.5, 1.0]), snr=30, recipe=recipe)
        >>> network([1.0, 0.7, 0.5], sigma=1 / 30, alpha=0.5).names
        ('S0', 'ADC')
    """
    ratios = np.unique(np.asarray(snr, float))  # ascending, without duplicates
    possible = len(ratios) == np.size(snr) in (1, 2) and np.all((ratios > 0) & (ratios < np.inf))
    if not possible:
        raise InputError(f"snr: expected a positive number, or (lowest, highest), got {snr!r}")
    levels = (1 / ratios[::-1]).tolist()
    several = len(levels) == 2
    noise = noise or Rician()
    plan = TrainingPlan(
        model=model,
        noise=noise,
        prior=prior or Uniform.typical(model),
        sigma=(levels[0], levels[1]) if several else levels[0],
        labels=labels_named(label, model, noise),
        recipe=recipe or (Recipe.every_level() if several else Recipe.fast()),
        seed=seed,
        intervals=intervals,
    )
    return joined(train_networks(plan, progress=progress))


def joined(networks: Sequence[Network]) -> Network:
    """A single network as it is, or the blend of two."""
    return networks[0] if len(networks) == 1 else blend(networks[0], networks[1])
