"""What a network is taught: the truth, what a fit makes of the signal, or a mix of the two.

A label is an `Estimate` like any other, with a status that says which labels are none. Making them
by fitting is the slow part of training, so they are kept in files named after all that they were
made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import marshal
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Bool, Float, Int, Shaped

from labelwise.fitting import MaximumLikelihood
from labelwise.models.base import SignalModel, acquisition_names
from labelwise.noise import NoiseModel
from labelwise.types import Estimate, Estimator, LabelSource, Parameter, Status, Voxels

_FROM_BEST_TO_WORST = (
    *(Status.CONVERGED, Status.PREDICTED, Status.EXTRAPOLATED, Status.ON_BOUND),
    *(Status.NOT_CONVERGED, Status.NO_REFERENCE, Status.ALL_ZERO, Status.NEGATIVE),
    *(Status.NOT_FINITE, Status.BAD_SIGMA, Status.NOT_FITTED),
)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The parameters that the signals were simulated from (the source's Supervised_GT).

    Source: Epstein et al. 2024, eq. 7, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.7]]))
        >>> GroundTruth()(voxels).values
        array([[1. , 0.7]])
    """

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; a voxel whose truth is not finite is NOT_FINITE.

        Raises:
            ValueError: if the truth is not known.
        """
        truth = _truth(voxels, "GroundTruth()", "label real voxels by MLE(..., start='search')")
        known = np.all(np.isfinite(truth), axis=1)
        return Estimate(
            values=np.where(known[:, None], truth, truth.dtype.type(np.nan)),
            status=np.where(known, np.uint8(Status.CONVERGED), np.uint8(Status.NOT_FINITE)),
        )

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {"kind": "ground truth"}


class MLE:
    """Maximum likelihood within bounds, of the very signal the network sees (Supervised_MLE).

    Started from the truth, as in the source, it finds a local optimum near the truth, which at low
    SNR is not the best one in a few voxels of a hundred; started from a search it needs no truth.

    Args:
        model: the signal model with its acquisition; a black box too.
        noise: `Rician()` or `Gaussian()`: the likelihood, not what was simulated.
        start: `"truth"` or `"search"`.
        bounds: replaces the bounds of parameters by name.
        max_iterations: a voxel that needs more has no label.
        threads: how many cores to use; all of them if None.

    Raises:
        ValueError: if `start` is neither, or the bounds do not fit the model.

    Source: Epstein et al. 2024, eq. 9 and section 3.3, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> import labelwise as lw
        >>> model = lw.ADC([0, 0.5, 1.0])
        >>> truth = np.array([[1.0, 0.7]])
        >>> voxels = Voxels(np.asarray(model.signal(*truth[0]))[None], np.array([0.01]), truth)
        >>> MLE(model, lw.Gaussian())(voxels).values.round(3)
        array([[1. , 0.7]], dtype=float32)
    """

    def __init__(
        self,
        model: SignalModel,
        noise: NoiseModel,
        start: Literal["truth", "search"] = "truth",
        bounds: Mapping[str, tuple[float, float]] | None = None,
        max_iterations: int = 200,
        threads: int | None = None,
    ) -> None:
        if start not in ("truth", "search"):
            raise ValueError(f"start: expected 'truth' or 'search', got {start!r}")
        self.start = start
        self.max_iterations = max_iterations
        self.fitter = MaximumLikelihood(
            model, noise, bounds=bounds, max_iterations=max_iterations, threads=threads
        )

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; statuses and stats are those of `MaximumLikelihood`.

        Raises:
            ValueError: if it starts from a truth that is not known.
        """
        if self.start == "search":
            return self.fitter(voxels.signal, voxels.sigma)
        truth = _truth(voxels, "MLE(start='truth')", "say MLE(..., start='search') for real voxels")
        return self.fitter(voxels.signal, voxels.sigma, start=truth)

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`; the number of threads changes no label."""
        fitter = self.fitter
        return {
            "kind": "maximum likelihood",
            "model": describe_model(fitter.model),
            "noise": _describe_module(fitter.noise, NoiseModel),
            "start": self.start,
            "bounds": {p.name: _plain(p.bounds) for p in fitter.parameters},
            "max_iterations": self.max_iterations,
        }


class Mix:
    """alpha · a + (1 - alpha) · b, the source's hybrid: a is MLE and b the truth there.

    Under *squared* error, and only there, mixing the labels is mixing the losses (eq. 10): the
    gradient of alpha (y - a)² + (1 - alpha) (y - b)² is that of (y - alpha a - (1 - alpha) b)².
    Under an absolute or Huber loss the two differ, and a mixed label is not the hybrid.

    A source that no parameter needs (b where alpha is 1) is not asked, and `Mix(1, a, b)` is a.
    Where a needed one failed the label is NaN; its status is the worse of the two.

    Args:
        alpha: the share of a, from 0 to 1: a number, or one for each parameter (P,).
        a: a label source.
        b: the other one.

    Raises:
        ValueError: if alpha is not between 0 and 1, or has another shape.

    Source: Epstein et al. 2024, eq. 10, doi:10.59275/j.melba.2024-geb5.

    Example:
        >>> class Zero:
        ...     def __call__(self, voxels):
        ...         truth = GroundTruth()(voxels)
        ...         return Estimate(0 * truth.values, truth.status)
        ...
        ...     def describe(self):
        ...         return {"kind": "zero"}
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.8]]))
        >>> Mix((1.0, 0.25), Zero(), GroundTruth())(voxels).values
        array([[0. , 0.6]])
    """

    def __init__(self, alpha: float | Sequence[float], a: LabelSource, b: LabelSource) -> None:
        self.alpha = np.array(alpha, float)
        within = np.all((self.alpha >= 0) & (self.alpha <= 1))
        if self.alpha.ndim > 1 or not self.alpha.size or not within:
            raise ValueError(
                f"alpha: expected a number from 0 to 1, or one for each parameter, got {alpha!r}"
            )
        self.a = a
        self.b = b

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`; of the stats only `on_bound` has a meaning for a mix."""
        if np.all(self.alpha == 1):
            return self._checked(self.a(voxels))
        if np.all(self.alpha == 0):
            return self._checked(self.b(voxels))
        a, b = self._checked(self.a(voxels)), self._checked(self.b(voxels))
        mixed = self.alpha * a.values + (1 - self.alpha) * b.values
        status = _worse(a.status, b.status)
        values = np.where(_has_values(status)[:, None], mixed, np.nan)
        bounds = [e.stats["on_bound"] for e in (a, b) if "on_bound" in e.stats]
        return Estimate(
            values=values.astype(np.result_type(a.values, b.values)),
            status=status,
            stats={"on_bound": np.where(bounds[0], bounds[0], bounds[-1])} if bounds else {},
        )

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {
            "kind": "mix",
            "alpha": self.alpha.tolist(),
            "a": self.a.describe(),
            "b": self.b.describe(),
        }

    def _checked(self, estimate: Estimate) -> Estimate:
        size = estimate.values.shape[1]
        if self.alpha.ndim and len(self.alpha) != size:
            raise ValueError(
                f"alpha: expected a number or one for each of {size} parameters, "
                f"got {len(self.alpha)}"
            )
        return estimate


@dataclasses.dataclass(frozen=True)
class FromEstimator:
    """The labels that any estimator makes of the noisy signal, such as another trained network.

    Args:
        estimator: what makes them.
        description: what it is, as JSON data: all that its estimates depend on.

    Raises:
        TypeError: if the description is not JSON data.
    """

    estimator: Estimator
    description: Mapping[str, Any]

    def __post_init__(self) -> None:
        _canonical(self.description, "description")

    def __call__(self, voxels: Voxels) -> Estimate:
        """See `LabelSource`."""
        return self.estimator(voxels.signal, voxels.sigma)

    def describe(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {"kind": "estimator", "estimator": dict(self.description)}


def usable(
    estimate: Estimate, on_bound: Literal["drop", "keep"] = "drop"
) -> Bool[np.ndarray, " N"]:
    """Which labels to learn from.

    Args:
        estimate: the labels.
        on_bound: a fit that ended on a bound says where the bound is, not what the voxel is: the
            source leaves such labels out (section 3.3), `"keep"` does not.

    Raises:
        ValueError: if `on_bound` is neither.

    Example:
        >>> status = np.array([Status.CONVERGED, Status.ON_BOUND, Status.NOT_CONVERGED])
        >>> usable(Estimate(np.array([[0.7], [4.0], [np.nan]]), status))
        array([ True, False, False])
    """
    if on_bound not in ("drop", "keep"):
        raise ValueError(f"on_bound: expected 'drop' or 'keep', got {on_bound!r}")
    good = _has_values(estimate.status) & np.isfinite(estimate.values).all(axis=1)
    return good if on_bound == "keep" else good & (estimate.status != Status.ON_BOUND)


def label_report(estimate: Estimate, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """What became of the labels, as shares of all voxels, in JSON data.

    Args:
        estimate: the labels.
        parameters: what their columns are.

    Returns:
        `labels` (how many), `usable` (share, those on a bound left out), `on_bound` (share on any
        bound), `on_bound_of` (share by parameter's name; None where the source does not say which),
        `not_converged`, and `failed` (share of all that have no value, those not converged too).

    Example:
        >>> status = np.array([Status.CONVERGED, Status.ON_BOUND])
        >>> labels = Estimate(np.array([[0.7], [4.0]]), status, {"on_bound": np.array([[0], [1]])})
        >>> report = label_report(labels, (Parameter("ADC", "µm²/ms", (0.01, 4.0)),))
        >>> report["usable"], report["on_bound_of"]
        (0.5, {'ADC': 0.5})
    """
    stuck = estimate.status == Status.ON_BOUND
    which = estimate.stats.get("on_bound")
    if which is None:
        shares = [None if stuck.any() else 0.0] * len(parameters)
    else:
        shares = [_share(column != 0) for column in np.asarray(which).T]
    return {
        "labels": len(estimate.status),
        "usable": _share(usable(estimate)),
        "on_bound": _share(stuck),
        "on_bound_of": {p.name: s for p, s in zip(parameters, shares, strict=True)},
        "not_converged": _share(estimate.status == Status.NOT_CONVERGED),
        "failed": _share(~_has_values(estimate.status)),
    }


def describe_model(model: SignalModel) -> dict[str, Any]:
    """A signal model as JSON data: its class, acquisition, constants and parameters.

    `source` is the SHA-256 of the files that define the class (or of its bytecode where there is no
    file, as in a notebook): not of what these import.

    Example:
        >>> import labelwise as lw
        >>> record = describe_model(lw.ADC([0, 0.5, 1]))
        >>> record["class"], record["acquisition"], record["parameters"][1]["unit"]
        ('ADC', {'b': [0.0, 0.5, 1.0]}, 'µm²/ms')
    """
    record = _describe_module(model, SignalModel)
    settings = record.pop("fields")
    names = acquisition_names(type(model))
    return {
        "class": record.pop("class"),
        "acquisition": {name: settings[name] for name in names},
        "constants": {name: value for name, value in settings.items() if name not in names},
        "parameters": [
            {"name": p.name, "unit": p.unit, "bounds": _plain(p.bounds)} for p in model.parameters
        ],
        **record,
    }


def cached(
    source: LabelSource, voxels: Voxels, folder: str | Path | None, key: Mapping[str, Any]
) -> Estimate:
    """`source(voxels)`, read from a file if the same labels were made before.

    The file is named by the SHA-256 of all that the labels depend on: what the source says of
    itself, the voxels, `FITTER` and `key`. It appears whole or not at all; one that is damaged is
    made again, and where the folder cannot be written nothing is kept. Deleting it is always safe.

    Args:
        source: makes the labels.
        voxels: what it labels.
        folder: where the files are; made if missing. None keeps nothing.
        key: what else tells these labels from others, as JSON data.

    Raises:
        TypeError: if `key` or what the source says of itself is not JSON data.

    Example:
        >>> voxels = Voxels(np.ones((1, 2)), np.ones(1), params=np.array([[1.0, 0.7]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = cached(GroundTruth(), voxels, folder, {"seed": 0})
        ...     again = cached(GroundTruth(), voxels, folder, {"seed": 0})
        >>> np.array_equal(first.values, again.values)
        True
    """
    if folder is None:
        return source(voxels)
    content = {
        "source": source.describe(),
        "key": key,
        "fitter": FITTER,
        "voxels": _digest(vars(voxels)),
    }
    name = hashlib.sha256(_canonical(content, "cached labels").encode()).hexdigest()
    path = Path(folder) / f"labels-{name}.safetensors"
    found = _read(path, name, len(voxels))
    if found is not None:
        return found
    estimate = source(voxels)
    with contextlib.suppress(OSError, safetensors.SafetensorError):  # a cache is a convenience
        _write(path, name, estimate)
    return estimate


def _read(path: Path, name: str, voxels: int) -> Estimate | None:
    """The labels in a file, or None if there is none or anything is wrong with it."""
    try:
        data = path.read_bytes()  # not mapped: a file truncated by others would end the process
        size = int.from_bytes(data[:8], "little")
        said = json.loads(data[8 : 8 + size])["__metadata__"]
        arrays = safetensors.numpy.load(data)
        stats = {k.removeprefix("stats."): v for k, v in arrays.items() if k.startswith("stats.")}
        estimate = Estimate(arrays["values"], arrays["status"], stats)
        whole = said == _said(name, arrays)
        fits = estimate.values.ndim == 2 and all(len(rows) == voxels for rows in arrays.values())
    except Exception:  # whatever damage does to a parser, the remedy is the same
        return None
    return estimate if whole and fits else None


def _write(path: Path, name: str, estimate: Estimate) -> None:
    arrays = {"values": estimate.values, "status": estimate.status}
    arrays |= {f"stats.{key}": rows for key, rows in estimate.stats.items()}
    arrays = {key: np.ascontiguousarray(rows) for key, rows in arrays.items()}
    data = safetensors.numpy.save(arrays, _said(name, arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.stem}-*"):  # by a run that was killed
        left.unlink(missing_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _said(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What the file's header says; one entry, because several are written in random order."""
    return {"labels": f"{name} with content {_digest(arrays)}"}


def _digest(arrays: Mapping[str, Shaped[np.ndarray, "..."] | None]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, rows in sorted(arrays.items()):
        if rows is None:
            total.update(f"{name} none\n".encode())
            continue
        rows = np.ascontiguousarray(rows)
        total.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
        total.update(rows.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _truth(voxels: Voxels, who: str, remedy: str) -> Float[np.ndarray, "N P"]:
    if voxels.params is None:
        raise ValueError(f"voxels.params: {who} needs the true parameters, got None; {remedy}")
    return voxels.params


def _worse(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    rank = np.empty(len(Status), np.uint8)
    rank[[int(status) for status in _FROM_BEST_TO_WORST]] = np.arange(len(Status))
    return np.where(rank[a] >= rank[b], a, b)


def _has_values(status: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    return np.isin(status, [code for code in Status if code.has_values])


def _share(chosen: Bool[np.ndarray, " N"]) -> float:
    return float(np.mean(chosen)) if len(chosen) else 0.0


def _describe_module(module: eqx.Module, base: type) -> dict[str, Any]:
    """The class, fields and source of a frozen module; `base` and what it builds on is known."""
    own = [kind for kind in type(module).__mro__ if issubclass(kind, base) and kind is not base]
    fields = dataclasses.fields(module)  # type: ignore[arg-type]  # every eqx.Module is one
    return {
        "class": type(module).__qualname__,
        "fields": {field.name: _plain(getattr(module, field.name)) for field in fields},
        "source": _source_of(own),
    }


def _source_of(kinds: Sequence[type]) -> str | None:
    """SHA-256 of the code that defines some classes; None if it cannot be seen."""
    total = hashlib.sha256()
    for kind in kinds:
        try:
            total.update(Path(inspect.getfile(kind)).read_bytes())
        except (OSError, TypeError):  # typed at a prompt or in a notebook
            functions = [f for f in vars(kind).values() if isinstance(f, FunctionType)]
            if not functions:
                return None
            for function in functions:
                # version 2: the later ones depend on reference counts
                total.update(marshal.dumps(inspect.unwrap(function).__code__, 2))
    return total.hexdigest()


def _plain(value: Any) -> Any:
    """The same as JSON data; infinities are text, and what has no such form is its `repr`."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def _canonical(data: Any, what: str) -> str:
    """The one JSON text of some data."""
    try:
        return json.dumps(data, sort_keys=True, allow_nan=False, default=_mapping)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what}: expected JSON data (finite numbers, text, lists, dicts), but {error}"
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is not")


def _code_of_labels() -> str:
    """SHA-256 over the sources that decide what a label is, so that old files are not trusted."""
    total = hashlib.sha256()
    package = resources.files("labelwise")
    for part in ("fitting", "models", "labels.py", "noise.py", "types.py"):
        for file in _python_files(package / part):
            total.update(f"{part} {file.name}\n".encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def _python_files(place: Traversable) -> Iterator[Traversable]:
    if place.is_file():
        yield place
    else:
        files = sorted(place.iterdir(), key=lambda file: file.name)
        yield from (file for file in files if file.name.endswith(".py"))


FITTER = _code_of_labels()
"""What the labels of this version are made by; another version makes its own."""
