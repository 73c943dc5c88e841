"""One series as a BIDS derivative: names, sidecars, statistics of regions, and a record.

Names follow one rule. The map of T1 is a `T1map`, that of T2 a `T2map` (a `T2starmap` of gradient
echoes); any other estimate is `_model-MODEL_param-NAME_SUFFIXmap`, where the suffix is that of the
series. What belongs to an estimate, and what belongs to none, is told by `desc`. BIDS has settled
`T1map` and its like only; `UNSETTLED` lists the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float

from labelwise.bids.layout import KINDS, Scan
from labelwise.formatting import plain
from labelwise.io.files import canonical, from_json, read_text
from labelwise.io.nifti import file_hash, open_image, read_map
from labelwise.io.results import RUN, as_json, compressed
from labelwise.io.staging import staged
from labelwise.mapping.method import Method
from labelwise.mapping.request import Request
from labelwise.mapping.run import run
from labelwise.models import SignalModel
from labelwise.models.find import describe_model
from labelwise.networks.cache import code_of
from labelwise.noise import describe_noise
from labelwise.types import InputError, Parameter, Status

UNSETTLED = ("*_dwimap.*", "*_IRT1map.*", "*_MESEmap.*", "*_MEGREmap.*", "figures", "logs/")
"""What BIDS has no names for yet, for `.bidsignore`: maps of models, figures and records."""
LOGS, FIGURES = "logs", "figures"

_QUANTITIES = {"T1": "T1map", "T2": "T2map"}
_GRADIENT_ECHOES = {"T2": "T2starmap"}
_UNITS = {"ms": "s", "a.u.": "arbitrary", "that of the series": "arbitrary"}
_KEYS = {"unit": "Units", "noise": "NoiseModel"}
_NOT_OF_A_MAP = ("schema", "command", "inputs", "parameters", "network")
_DOI = re.compile(r"doi:(10\.\S+?)[.,;]?(?=\s|$|\))")


@dataclass(frozen=True)
class Job:
    """A series and the model that it is mapped with.

    Args:
        scan: the series.
        name: of the model, as in `labelwise models`.
        model: with the settings of the series.
    """

    scan: Scan
    name: str
    model: SignalModel

    @property
    def label(self) -> str:
        """The name of the model with letters and digits only."""
        return _label(self.name.rpartition(":")[2])

    @property
    def title(self) -> str:
        """For messages and records: `sub-01_model-ivim_dwi`."""
        return f"{self.scan.stem}_model-{self.label}_{self.scan.suffix}"

    @property
    def record(self) -> str:
        """The record of the finished job, below the folder of its subject."""
        return f"{LOGS}/{self.title}.json"

    @property
    def subject(self) -> str:
        """`sub-01`."""
        return self.scan.folder.parts[0]

    def file_of(self, name: str) -> str:
        """The BIDS name, without its ending, of a map that `labelwise fit` calls `name`.

        Example:
            >>> from labelwise.models import IVIM, T1InversionRecovery
            >>> scan = Scan(Path("sub-01/dwi"), "sub-01", "dwi", (), {}, ())
            >>> job = Job(scan, "ivim", IVIM([0, 0.1, 0.2, 0.8]))
            >>> job.file_of("D_fast"), job.file_of("status")
            ('sub-01_model-ivim_param-Dfast_dwimap', 'sub-01_model-ivim_desc-status_dwimap')
            >>> scan = Scan(Path("sub-01/anat"), "sub-01", "IRT1", (), {}, ())
            >>> job = Job(scan, "t1_ir", T1InversionRecovery([50, 400, 1100, 2500]))
            >>> job.file_of("T1"), job.file_of("T1_standard_error")
            ('sub-01_T1map', 'sub-01_desc-standardError_T1map')
        """
        parameter, role = self._split(name)
        quantities = _QUANTITIES | (_GRADIENT_ECHOES if self.scan.suffix == "MEGRE" else {})
        usual = self.name == KINDS[self.scan.suffix].model
        if parameter in quantities:
            desc = role if usual else _camel(f"{self.label}_{role}" if role else self.label)
            parts, suffix = [], quantities[parameter]
        else:
            parts, desc = [f"model-{self.label}"], role
            parts += [f"param-{_label(parameter)}"] if parameter else []
            suffix = f"{self.scan.suffix}map"
        parts += [f"desc-{desc}"] if desc else []
        return "_".join([self.scan.stem, *parts, suffix])

    def parameter_of(self, name: str) -> Parameter | None:
        """The parameter whose estimates the map of some name holds; None for other maps."""
        parameter, role = self._split(name)
        every = {each.name: each for each in self.model.parameters}
        return every[parameter] if parameter and not role else None

    def _split(self, name: str) -> tuple[str, str]:
        """The parameter that a map belongs to, if any, and what else it is."""
        names = [each.name for each in self.model.parameters]
        for parameter in sorted(names, key=len, reverse=True):
            if name == parameter:
                return parameter, ""
            if name.startswith(f"{parameter}_"):
                return parameter, _camel(name[len(parameter) + 1 :])
        return "", _camel(name)


@dataclass(frozen=True)
class Roots:
    """The folders of a derivative, and what all its sidecars have.

    Args:
        dataset: the source.
        out: the derivative.
        masks: the derivatives that the masks are from.
        date: of all sidecars, in UTC.
    """

    dataset: Path
    out: Path
    masks: Path | None
    date: str

    @property
    def links(self) -> dict[str, str]:
        """The `DatasetLinks` of BIDS URIs: relative to the derivative."""
        roots = {"source": self.dataset, "masks": self.masks}
        return {
            name: Path(os.path.relpath(root.resolve(), self.out.resolve())).as_posix()
            for name, root in roots.items()
            if root is not None
        }

    def uri(self, path: Path) -> str:
        """The BIDS URI of a file of the source, of the masks or of the derivative."""
        for name, root in (("masks", self.masks), ("source", self.dataset), ("", self.out)):
            if root is not None and path.is_relative_to(root):
                return f"bids:{name}:{path.relative_to(root).as_posix()}"
        return path.name


def finished(job: Job, roots: Roots, key: str) -> dict[str, Any] | None:
    """The record of a job that was finished with the same content; None if it has to be run.

    Args:
        job: the series and its model.
        roots: the folders.
        key: from `key_of`.
    """
    folder = roots.out / job.subject
    try:
        record = from_json(read_text(folder / job.record), job.record)
        files = record["files"]
        same = record["key"] == key and all(
            file_hash(folder / name) == digest for name, digest in files.items()
        )
    except (OSError, InputError, LookupError, TypeError, AttributeError):
        return None
    return record if same else None


def key_of(job: Job, roots: Roots, request: Request, method: Mapping[str, Any]) -> str:
    """The digest of all that decides the maps: content of the inputs, settings, code, versions.

    Args:
        job: the series and its model.
        roots: the folders.
        request: how it is mapped.
        method: the settings of the method, as JSON data.
    """
    scan = job.scan
    files = [*scan.images, *scan.sources, scan.mask, scan.regions]
    content = {
        "inputs": {roots.uri(path): file_hash(path) for path in files if path is not None},
        "links": roots.links,
        "model": describe_model(job.model),
        "regions": {str(label): name for label, name in scan.region_names.items()},
        "noise": describe_noise(request.noise),
        "sigma": request.sigma,
        "b_tolerance": request.b_tolerance,
        "method": method,
        "date": roots.date,
        "code": code_of("labelwise.bids.derivatives", "labelwise.mapping", "labelwise.models"),
    }
    return hashlib.sha256(canonical(plain(content), job.title).encode()).hexdigest()


def write(
    job: Job,
    roots: Roots,
    request: Request,
    method: Method,
    key: str,
    network: Path | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Map a series and write its derivative; all files appear together, the record last.

    Args:
        job: the series and its model.
        roots: the folders.
        request: the request, whose folder is replaced.
        method: a fit or a network.
        key: of the record.
        network: the file of the network, if it is one.
        extra: further entries of the record.

    Returns:
        The record.

    Raises:
        InputError: see `labelwise.mapping.run.run`.
        OSError: if a file cannot be read or written.
    """
    folder = roots.out / job.subject
    before = _files_of(folder / job.record)
    inputs = [*job.scan.images, *job.scan.sources]
    with staged(folder, job.record, stale=before, inputs=inputs, overwrite=True) as staging:
        work = staging / "work"
        run(replace(request, folder=work), method)
        record = {
            "key": key,
            "series": job.scan.name,
            "model": job.name,
            "references": references(type(job.model)),
            "statistics": _statistics(job, work),
            "run": from_json(read_text(work / RUN), RUN),
            **extra,
        }
        files = sorted(_translated(job, roots, work, staging, network))
        record["files"] = {name: file_hash(staging / name) for name in files}
        shutil.rmtree(work)
        (staging / job.record).parent.mkdir(exist_ok=True)
        (staging / job.record).write_text(as_json(record, "bids-series 1"), encoding="utf-8")
    return record


def references(model: type[SignalModel]) -> list[str]:
    """The sources that the docstring of a model names, as links.

    Example:
        >>> from labelwise.models import Kurtosis
        >>> references(Kurtosis)
        ['https://doi.org/10.1002/mrm.22655', 'https://doi.org/10.1002/mrm.20508']
    """
    return [f"https://doi.org/{doi}" for doi in _DOI.findall(model.__doc__ or "")]


def _translated(
    job: Job, roots: Roots, work: Path, staging: Path, network: Path | None
) -> Iterator[str]:
    """Move the results of a run to their BIDS names; yields these."""
    place = Path(*job.scan.folder.parts[1:])
    (staging / place).mkdir(parents=True, exist_ok=True)
    (staging / FIGURES).mkdir(exist_ok=True)
    for path in sorted(work.iterdir()):
        name = path.name.partition(".")[0]
        if path.name.endswith(".nii.gz"):
            target = place / job.file_of(name)
            sidecar = from_json(read_text(work / f"{name}.json"), name)
            if sidecar["unit"] == "ms":
                _divide(path, staging / f"{target}.nii.gz", 1000)
            else:
                path.replace(staging / f"{target}.nii.gz")
            text = as_json(_sidecar(job, roots, sidecar, network))
            (staging / f"{target}.json").write_text(text, encoding="utf-8")
            yield from (f"{target.as_posix()}{ending}" for ending in (".nii.gz", ".json"))
        elif path.suffix != ".json":
            target = Path(FIGURES, f"{job.title}_desc-{_camel(name)}{path.suffix}")
            path.replace(staging / target)
            yield target.as_posix()


def _sidecar(
    job: Job, roots: Roots, given: Mapping[str, Any], network: Path | None
) -> dict[str, Any]:
    """The BIDS sidecar of a map: the same entries without what differs between two runs."""
    scan, unit = job.scan, given["unit"]
    entries: dict[str, Any] = {"Schema": "labelwise bids-map 1"} | {
        _KEYS.get(key, _camel(key, first=str.upper)): value
        for key, value in given.items()
        if key not in _NOT_OF_A_MAP
    }
    entries["Units"] = _UNITS.get(unit, unit)
    if unit == "ms" and "bounds" in given:
        entries["Bounds"] = [bound / 1000 for bound in map(float, given["bounds"])]
    if network is not None:
        used = given.get("network", {})
        kept = {key: used[key] for key in used if key not in ("origin", "path")}
        kept.pop("seconds_of_training", None)
        entries["Network"] = {"file": roots.uri(network), **kept}
    if scan.folder.name == "anat":
        entries["SkullStripped"] = scan.mask is not None  # BIDS requires it, of any organ
    paths = [*scan.images, *scan.sources, *([scan.mask] if scan.mask else [])]
    return entries | {
        "Sources": [roots.uri(path) for path in paths],
        "References": references(type(job.model)),
        "Date": roots.date,
    }


def _statistics(job: Job, work: Path) -> list[dict[str, Any]]:
    """For each estimate, statistics of the whole mask and of each region."""
    with open_image(work / "status.nii.gz") as image:
        ((_, status),) = image.blocks(size=image.voxels)
        inside = status[:, 0] != Status.NOT_FITTED
        regions = {"mask": inside}
        if job.scan.regions is not None:
            labels, _ = read_map(job.scan.regions, image)
            for label in np.unique(labels[labels > 0]).astype(int).tolist():
                name = job.scan.region_names.get(label, str(label))
                regions[name] = (labels == label) & inside
    rows = []
    for path in sorted(work.glob("*.nii.gz")):
        parameter = job.parameter_of(path.name.partition(".")[0])
        if parameter is None:
            continue
        factor = 1000 if parameter.unit == "ms" else 1
        values = np.asarray(nib.Nifti1Image.load(path).dataobj, float).ravel(order="F") / factor
        for region, where in regions.items():
            rows.append(
                {
                    "parameter": parameter.name,
                    "unit": _UNITS.get(parameter.unit, parameter.unit),
                    "region": region,
                    "voxels": int(where.sum()),
                    **_summary(values[where & np.isfinite(values)]),
                }
            )
    return rows


def _summary(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    names = ("mean", "std", "q25", "median", "q75")
    numbers: Sequence[float] = (np.nan,) * len(names)
    if len(values):
        numbers = (values.mean(), values.std(), *np.quantile(values, [0.25, 0.5, 0.75]))
    # seven digits: more depend on the order of summation
    return {"estimated": len(values)} | {
        name: float(f"{number:.7g}") for name, number in zip(names, numbers, strict=True)
    }


def _divide(source: Path, target: Path, by: int) -> None:
    """Write an image with its values divided."""
    image = nib.Nifti1Image.load(source)
    values = np.asarray(image.dataobj)
    data = (values / values.dtype.type(by)).astype(values.dtype)
    target.write_bytes(compressed(type(image)(data, None, image.header).to_bytes()))


def _files_of(record: Path) -> set[str]:
    """The files that an earlier run of a job has left."""
    try:
        names = from_json(read_text(record), record)["files"]
        root = record.parent.parent
        inside = [name for name in names if (root / name).resolve().is_relative_to(root.resolve())]
        return {name for name in inside if (root / name).is_file()}
    except (OSError, InputError, LookupError, TypeError):
        return set()


def _label(name: str) -> str:
    """A BIDS label: letters and digits.

    Example:
        >>> _label("t2_biexponential")
        't2biexponential'
    """
    return re.sub(r"[^0-9A-Za-z]", "", name)


def _camel(name: str, first=str.lower) -> str:
    """A name with underscores as one word.

    Example:
        >>> _camel("standard_error"), _camel("max_iterations", first=str.upper)
        ('standardError', 'MaxIterations')
    """
    words = [word for word in re.split(r"[^0-9A-Za-z]+", name) if word]
    text = "".join(word[0].upper() + word[1:] for word in words)
    return first(text[:1]) + text[1:]
