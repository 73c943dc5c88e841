"""The paper's in vivo pipeline: a gold standard from all repeats, estimators on each of them.

All R repeats of one acquisition together give a maximum-likelihood estimate that serves as the
truth. Every estimator is then applied to each single repeat.

The reference has an error of its own, from the same noise, as in the source. The RMSE of an
unbiased estimator appears too small by a share of up to about 1 / (2 R); and a voxel may lie in an
outer bin because of the error of its reference, which looks like bias towards the middle.
`matching` data, whose truth is known, have neither flaw.

N voxels, R acquisitions of M measurements each, P parameters, V = R M volumes (or some more).

Source: Epstein et al. 2024, sections 3.5, 3.6 and 4.2, doi:10.59275/j.melba.2024-geb5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from labelwise.fitting import MaximumLikelihood
from labelwise.fitting.batching import blocks
from labelwise.io.noise_level import NoiseLevel, from_repeats, repeated_volumes
from labelwise.models import SignalModel
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel, Rician
from labelwise.types import (
    Estimate,
    Estimator,
    InputError,
    Parameter,
    Status,
    has_values,
    sigma_of_voxels,
)

_MEASURES = ("bias", "std", "rmse")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class RepeatNoise:
    """The noise of a series, from volumes that were measured again.

    Args:
        level: sigma, how it was found and what is to be said of it.
        signal: (N,) the mean over these volumes: S0, where they are at b = 0.
        volumes: which of the series they are.
    """

    level: NoiseLevel
    signal: Float[np.ndarray, " N"]
    volumes: Int[np.ndarray, " n"]

    @property
    def snr(self) -> Float[np.ndarray, " N"]:
        """Signal over sigma in each voxel; NaN where there is no signal."""
        return np.where(self.signal > 0, self.signal / self.level.sigma, np.nan)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The 25th, 50th and 75th percentile of the SNR over the voxels that have one."""
        low, median, high = np.nanpercentile(self.snr, (25, 50, 75))
        return float(low), float(median), float(high)


@dataclass(frozen=True, eq=False)
class Reference:
    """What estimates are compared with.

    Args:
        values: (N, P) in the parameters' units; NaN in a voxel that is none.
        left_out: how many voxels are none, by reason.
    """

    values: Float[np.ndarray, "N P"]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> Bool[np.ndarray, " N"]:
        """Which voxels have one."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def noise_of_repeats(
    signal: Float[np.ndarray, "N V"],
    settings: Mapping[str, Float[np.ndarray, " V"]],
    tolerance: float = 0.0,
    noise: NoiseModel | None = None,
) -> RepeatNoise:
    """Sigma and SNR from the repeated images at b = 0, as the source finds its SNR of about 15.

    See `labelwise.io.noise_level`: `repeated_volumes` for which images these are without b, and
    `from_repeats` for what the figure assumes: motion and drift between the repeats raise it.

    Args:
        signal: (N, V) all volumes.
        settings: by name, (V,) each; b in ms/µm².
        tolerance: the widest spread of b within one group, and the largest b that still counts as
            0, in ms/µm².
        noise: the noise model; `Rician()` if None.

    Raises:
        InputError: if there are fewer than 2 such volumes, or too few voxels with signal.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = 300 * np.exp(-np.array([0.0, 0.8, 0.0, 0.8, 0.0, 0.8]))
        >>> noise = noise_of_repeats(
        ...     clean + rng.normal(0, 20, (20_000, 6)), {"b": np.array([0, 0.8] * 3)}
        ... )
        >>> round(noise.level.sigma), round(noise.quartiles[1])
        (20, 15)
    """
    volumes = repeated_volumes(settings, tolerance)
    repeated = np.asarray(signal)[:, volumes]
    level = from_repeats(repeated, noise or Rician())
    with np.errstate(invalid="ignore", over="ignore"):
        return RepeatNoise(level, repeated.mean(axis=1, dtype=float), volumes)


def gold_standard(
    model: SignalModel,
    noise: NoiseModel,
    signal: Float[np.ndarray, "N V"],
    sigma: Float[np.ndarray, "#N"] | float,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    threads: int | None = None,
    block: int = 16_384,
    progress: Progress | None = None,
) -> Estimate:
    """The maximum-likelihood estimate of every voxel from all its volumes, by search.

    Args:
        model: bound to the settings of the V volumes, in the order of `signal`'s columns.
        noise: the noise of one volume.
        signal: (N, V).
        sigma: noise of one channel in one volume: a number or (N,).
        bounds: replaces the bounds of parameters by name.
        threads: how many cores to use; all of them if None.
        block: voxels at a time; it changes memory, and no estimate.
        progress: called with (voxels done, voxels in all) after each block.

    Returns:
        As `MaximumLikelihood`: values (N, P), statuses, and stats such as `residual` and
        `standard_error`. `usable_reference` says which of them to compare with.

    Raises:
        InputError: if shapes do not fit, a bound is none, or `block` is below 1.
    """
    _check_block(block)
    fitter = MaximumLikelihood(model, noise, bounds=bounds, threads=threads)
    signal = np.asarray(signal)
    level = sigma_of_voxels(np.asarray(sigma, float), len(signal))[:, 0]
    parts = []
    for first in range(0, max(len(signal), 1), block):
        rows = slice(first, first + block)
        parts.append(fitter(signal[rows], level[rows]))
        if progress:
            progress(min(first + block, len(signal)), len(signal))
    return Estimate(
        values=np.concatenate([part.values for part in parts]),
        status=np.concatenate([part.status for part in parts]),
        stats={name: np.concatenate([p.stats[name] for p in parts]) for name in parts[0].stats},
    )


def usable_reference(estimate: Estimate) -> Reference:
    """The estimates to compare with: those that converged inside the bounds.

    An estimate on a bound reflects the bound rather than the voxel.

    Args:
        estimate: of the gold standard.

    Example:
        >>> status = np.array([Status.CONVERGED, Status.ON_BOUND, Status.NOT_CONVERGED])
        >>> reference = usable_reference(Estimate(np.array([[0.7], [4.0], [np.nan]]), status))
        >>> reference.values.ravel(), reference.left_out
        (array([0.7, nan, nan]), {'converged on a bound': 1, 'not converged': 1})
    """
    status = np.asarray(estimate.status)
    finite = np.isfinite(estimate.values).all(axis=1)
    good = has_values(status) & finite & (status != Status.ON_BOUND)
    codes, counts = np.unique(status[~good], return_counts=True)
    values = np.where(good[:, None], estimate.values, np.nan)
    reasons = (Status(code).reason for code in codes.tolist())
    return Reference(values, dict(zip(reasons, counts.tolist(), strict=True)))


def assess(
    estimators: Mapping[str, Estimator],
    acquisitions: Float[np.ndarray, "N R M"],
    sigma: Float[np.ndarray, "#N"] | float,
    reference: Float[np.ndarray, "N P"],
    *,
    block: int = 65_536,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Every estimator on each single acquisition of each voxel, described voxel by voxel.

    A failed estimate (NaN in any parameter) is counted and left out. Estimates are reduced block
    by block and, but for those of the first acquisition, not kept.

    Args:
        estimators: by name; they are called with (n, M) signals, M as in the last dimension.
        acquisitions: (N, R, M) the signals of the single acquisitions.
        sigma: noise of one channel in one volume: a number or (N,).
        reference: (N, P) what to compare with; NaN where there is nothing.
        block: signals at a time; it changes memory, and no result.
        progress: called with (estimates done, estimates in all) after each block and estimator.

    Returns:
        A Dataset on the dimensions `estimator`, `voxel` and `parameter`, in the parameters' units:

        - `mean`, `std`: over the R estimates of a voxel; std is the root of the mean square
          deviation, divided by the number of estimates (for 16 of them 3 % below the unbiased one)
        - `bias`, `rmse`: with respect to the reference; rmse² = bias² + std². NaN without one.
        - `first`: the estimate of the first acquisition, NaN where it failed
        - `failed` (estimator, voxel): the share of estimates that failed

        Use `result["std"]`: `result.std` is a method of every Dataset.

    Raises:
        InputError: if there is no estimator, they are about different parameters, there are fewer
            than 2 acquisitions, or shapes do not fit.

    Source: Epstein et al. 2024, section 3.6, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> truth = np.array([[100.0, 1.0], [80.0, 0.7]])
        >>> data = matching(model, lw.Gaussian(), truth, 1.0, 50, jax.random.key(0))
        >>> fit = lw.MaximumLikelihood(model, lw.Gaussian())
        >>> result = assess({"MLE": fit}, data, 1.0, truth)
        >>> result["std"].sel(estimator="MLE", parameter="ADC").round(2).values
        array([0.03, 0.02])
    """
    names = _parameter_names(estimators)
    acquisitions, reference = np.asarray(acquisitions), np.asarray(reference, float)
    _check_block(block)
    if acquisitions.ndim != 3 or acquisitions.shape[1] < 2:
        raise InputError(
            "acquisitions: expected (N, R, M) with at least 2 acquisitions, to see a spread, got "
            f"{acquisitions.shape}"
        )
    voxels, repeats, measurements = acquisitions.shape
    if reference.shape != (voxels, len(names)):
        raise InputError(
            f"reference: expected ({voxels}, {len(names)}), {', '.join(names)} of each voxel, got "
            f"{reference.shape}"
        )
    level = sigma_of_voxels(np.asarray(sigma, float), voxels)[:, 0]
    shape = (len(estimators), voxels, len(names))
    table = {name: np.full(shape, np.nan) for name in ("mean", *_MEASURES, "first")}
    failed = np.full(shape[:2], np.nan)
    step, done = max(block // repeats, 1), 0
    for first in range(0, voxels, step):
        rows = slice(first, first + step)
        signal = acquisitions[rows].reshape(-1, measurements)
        sigmas = np.repeat(level[rows], repeats)
        for index, (name, estimator) in enumerate(estimators.items()):
            values = np.asarray(estimator(signal, sigmas).values, float)
            if values.shape != (len(signal), len(names)):
                raise InputError(
                    f"estimators: {name!r} returned values of shape {values.shape}, expected "
                    f"{(len(signal), len(names))}"
                )
            values = values.reshape(-1, repeats, len(names))
            for measure, column in _moments(values, reference[rows]).items():
                table[measure][index, rows] = column
            failed[index, rows] = 1 - _good(values).mean(axis=1)
            done += len(signal)
            if progress:
                progress(done, voxels * repeats * len(estimators))
    dims = ("estimator", "voxel", "parameter")
    return xr.Dataset(
        {name: (dims, rows) for name, rows in table.items()} | {"failed": (dims[:2], failed)},
        {"estimator": list(estimators), "parameter": list(names)},
        {"voxels": voxels, "repeats": repeats},
    )


def binned(
    voxelwise: xr.Dataset,
    reference: Float[np.ndarray, "N P"],
    parameters: Sequence[Parameter],
    ranges: Float[np.ndarray, "P 2"],
    *,
    scale: int | None,
    bins: int = 10,
    within: bool = True,
    left_out: Mapping[str, int] | None = None,
) -> xr.Dataset:
    """Means over the voxels whose reference lies in a bin, along each parameter by itself.

    What figures 5 and 6 of the source show. The published code differs from the text in two ways
    that are not imitated: its bias is the mean estimate minus the *centre* of the bin, and its
    outermost bins are centred on the ends of the ranges.

    Args:
        voxelwise: what `assess` returned for N voxels.
        reference: (N, P) what they were compared with, in the parameters' units; NaN where there
            is nothing.
        parameters: of its columns.
        ranges: (P, 2) lowest and highest value of each parameter, such as a prior's.
        scale: the index of the parameter that multiplies the whole signal, which is an arbitrary
            unit: it decides about no other parameter's bins. None if there is no such parameter.
        bins: equally wide ones over each range; both ends belong to it.
        within: only take voxels whose reference lies inside the ranges of *all* parameters but
            the one at `scale`, as the published code does (the text does not say). If not, each
            parameter looks at its own range.
        left_out: how many voxels have no reference, by reason, to be repeated in the attributes.

    Returns:
        On the dimensions `estimator`, `parameter` and `bin`:

        - `bias`, `std`, `rmse`: means of the voxels' own, so that rmse² = bias² + std² no longer
          holds, and a bias that changes sign among them may cancel. The std is √(R / (R - 1)) that
          of `assess`: of few repeats that would be too small beside one of many
        - `bias_error`, `std_error`, `rmse_error`: their standard errors, by the scatter of the
          voxels; NaN for a single one
        - `failed`: the mean share of failed estimates
        - `centre` (parameter, bin), `width` (parameter): of the bins
        - `count` (parameter, bin): voxels in the bin; all else is NaN where there is none

        The attributes say how many voxels there were (`voxels`), are in some bin (`used`), have no
        reference (`without_reference`), or lie outside the ranges (`outside_ranges`), and
        `left_out` says so in words.

    Raises:
        InputError: if shapes do not fit, a range is empty, or `scale` is no parameter.

    Source: Epstein et al. 2024, section 4.2, doi:10.59275/j.melba.2024-geb5.
    """
    reference, limits = np.asarray(reference, float), np.asarray(ranges, float)
    names = [parameter.name for parameter in parameters]
    _check_bins(voxelwise, reference, names, limits, scale, bins)
    low, high = limits.T
    inside = (reference >= low) & (reference <= high)
    known = np.asarray(np.isfinite(reference).all(axis=1))
    others = [index for index in range(len(names)) if index != scale]
    taken = known & inside[:, others].all(axis=1) if within else known
    members = inside & taken[:, None]

    edges = np.linspace(low, high, bins + 1, axis=1)
    shape = (voxelwise.sizes["estimator"], len(names), bins)
    table = {
        name: np.full(shape, np.nan)
        for name in (*_MEASURES, *(f"{name}_error" for name in _MEASURES), "failed")
    }
    count = np.zeros(shape[1:], int)
    failed = voxelwise["failed"].values
    columns = {measure: voxelwise[measure].values for measure in _MEASURES}
    repeats = voxelwise.attrs["repeats"]
    columns["std"] = columns["std"] * np.sqrt(repeats / (repeats - 1))
    for p in range(len(names)):
        places = np.searchsorted(edges[p], reference[:, p], side="right") - 1
        places = np.minimum(places, bins - 1)  # the upper end belongs to the last
        for k in range(bins):
            here = np.flatnonzero(members[:, p] & (places == k))
            count[p, k] = len(here)
            if not len(here):
                continue
            table["failed"][:, p, k] = failed[:, here].mean(axis=1)
            for measure, values in columns.items():
                mean, error = _mean_and_error(values[:, here, p])
                table[measure][:, p, k], table[f"{measure}_error"][:, p, k] = mean, error
    used = int(members.any(axis=1).sum())
    return xr.Dataset(
        {name: (("estimator", "parameter", "bin"), values) for name, values in table.items()}
        | {
            "centre": (("parameter", "bin"), (edges[:, 1:] + edges[:, :-1]) / 2),
            "width": ("parameter", (high - low) / bins),
            "count": (("parameter", "bin"), count),
        },
        {
            "estimator": voxelwise["estimator"].values,
            "parameter": names,
            "unit": ("parameter", [parameter.unit for parameter in parameters]),
        },
        {
            "voxels": len(reference),
            "used": used,
            "without_reference": int((~known).sum()),
            "outside_ranges": int(known.sum()) - used,
            "left_out": _in_words(left_out or {}, int((~known).sum()), int(known.sum()) - used),
            "within": int(within),
        },
    )


def matching(
    model: SignalModel,
    noise: NoiseModel,
    reference: Float[np.ndarray, "n P"],
    sigma: Float[np.ndarray, "#n"] | float,
    repeats: int,
    key: PRNGKeyArray,
    *,
    block: int = 65_536,
) -> Float[np.ndarray, "n R M"]:
    """Simulated acquisitions whose truth is the reference: the same parameters, fresh noise.

    As in figure 6 of the source: results that agree with those in vivo are explained by the
    distribution of the parameters.

    Args:
        model: bound to one acquisition.
        noise: the noise that is added.
        reference: (n, P) the true parameters. A row with a NaN gives NaN signals.
        sigma: noise of one channel: a number or (n,).
        repeats: R, acquisitions of each voxel.
        key: of JAX; the noise of a voxel depends on it and on the voxel's place only.
        block: signals at a time; it changes memory, and no byte.

    Raises:
        InputError: if shapes do not fit, or `repeats` is below 1.

    Source: Epstein et al. 2024, section 3.5, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import labelwise as lw
        >>> truth = np.array([[1.0, 0.2, 1.0, 40.0], [1.1, 0.3, 0.8, 60.0]])
        >>> model, key = lw.IVIM([0, 0.05, 0.8]), jax.random.key(0)
        >>> matching(model, lw.Rician(), truth, 1 / 15, 16, key).shape
        (2, 16, 3)
    """
    reference = np.asarray(reference, float)
    names = [parameter.name for parameter in model.parameters]
    if reference.ndim != 2 or reference.shape[1] != len(names):
        raise InputError(
            f"reference: expected (n, {len(names)}), {', '.join(names)} of each voxel, got "
            f"{reference.shape}"
        )
    if repeats < 1:
        raise InputError(f"repeats: expected at least 1, got {repeats}")
    _check_block(block)
    level = sigma_of_voxels(np.asarray(sigma, np.float32), len(reference))[:, 0]
    known = np.isfinite(reference).all(axis=1)
    made = signals(model, reference[known])
    clean = np.full((len(reference), made.shape[1]), np.nan, np.float32)
    clean[known] = made
    out = np.empty((len(clean), repeats, clean.shape[1]), np.float32)
    places = np.arange(len(clean), dtype=np.uint32)
    step = min(max(block // repeats, 1), max(len(clean), 1))
    with jax.enable_x64(False):  # the same bytes whatever the caller has set
        for mine, rows in blocks(len(clean), step):
            data = _noisy(noise, key, places[rows], clean[rows], level[rows], repeats)
            out[mine] = np.asarray(data)[: len(out[mine])]
    return out


@eqx.filter_jit
def _noisy(
    noise: NoiseModel,
    key: PRNGKeyArray,
    places: Int[np.ndarray, " n"],
    clean: Float[np.ndarray, "n M"],
    sigma: Float[np.ndarray, " n"],
    repeats: int,
) -> Float[Array, "n R M"]:
    def voxel(place, clean, sigma):
        repeated = jnp.broadcast_to(clean, (repeats, len(clean)))
        return jnp.asarray(noise.sample(jax.random.fold_in(key, place), repeated, sigma))

    return jax.vmap(voxel)(places, clean, sigma)


def _good(values: Float[np.ndarray, "n R P"]) -> Bool[np.ndarray, "n R"]:
    return np.asarray(np.isfinite(values).all(axis=-1))


def _moments(
    values: Float[np.ndarray, "n R P"], reference: Float[np.ndarray, "n P"]
) -> dict[str, Float[np.ndarray, "n P"]]:
    """The quantities of `assess` for each voxel, from its good estimates only."""
    good = _good(values)[..., None]
    number = good.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where no estimate is good
        mean = np.where(good, values, 0.0).sum(axis=1) / number
        centred = np.where(good, values - mean[:, None], 0.0)
        errors = np.where(good, values - reference[:, None], 0.0)
        return {
            "mean": mean,
            "bias": mean - reference,
            "std": np.sqrt((centred**2).sum(axis=1) / number),
            "rmse": np.sqrt((errors**2).sum(axis=1) / number),
            "first": np.where(good[:, 0], values[:, 0], np.nan),
        }


def _mean_and_error(
    values: Float[np.ndarray, "E n"],
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Means over voxels, and their standard errors; voxels without an estimate are left out."""
    good = np.isfinite(values)
    number = good.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(good, values, 0.0).sum(axis=1) / number
        square = (np.where(good, values - mean[:, None], 0.0) ** 2).sum(axis=1)
        return mean, np.sqrt(square / (number - 1) / number)


def _in_words(reasons: Mapping[str, int], without: int, outside: int) -> str:
    """`"12 converged on a bound, 3 outside the ranges"`; `"none"`."""
    counts = dict(reasons)
    unexplained = without - sum(counts.values())
    if unexplained > 0:
        counts["without a reference"] = unexplained
    counts["outside the ranges"] = outside
    return ", ".join(f"{number} {why}" for why, number in counts.items() if number) or "none"


def _parameter_names(estimators: Mapping[str, Estimator]) -> tuple[str, ...]:
    if not estimators:
        raise InputError("estimators: expected at least one by name, got none")
    all_names = {
        name: tuple(parameter.name for parameter in estimator.parameters)
        for name, estimator in estimators.items()
    }
    first, names = next(iter(all_names.items()))
    for name, theirs in all_names.items():
        if theirs != names:
            raise InputError(
                f"estimators: {name!r} estimates {', '.join(theirs)}, but {first!r} estimates "
                f"{', '.join(names)}"
            )
    return names


def _check_block(block: int) -> None:
    if block < 1:
        raise InputError(f"block: expected at least 1, got {block}")


def _check_bins(
    voxelwise: xr.Dataset,
    reference: Float[np.ndarray, "N P"],
    names: list[str],
    limits: Float[np.ndarray, "P 2"],
    scale: int | None,
    bins: int,
) -> None:
    theirs = voxelwise["parameter"].values.tolist()
    if theirs != names:
        raise InputError(
            f"parameters: expected {', '.join(theirs)}, which were assessed, got {', '.join(names)}"
        )
    expected = (voxelwise.sizes["voxel"], len(names))
    if reference.shape != expected:
        raise InputError(f"reference: expected {expected}, got {reference.shape}")
    if limits.shape != (len(names), 2):
        raise InputError(f"ranges: expected ({len(names)}, 2), got {limits.shape}")
    for name, (low, high) in zip(names, limits, strict=True):
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(
                f"ranges: {name} is from {low:g} to {high:g}; expected a finite lowest value and "
                "a higher one, to put bins between"
            )
    if scale is not None and not 0 <= scale < len(names):
        raise InputError(
            f"scale: expected an index from 0 to {len(names) - 1}, or None, got {scale}"
        )
    if bins < 1:
        raise InputError(f"bins: expected at least 1, got {bins}")
