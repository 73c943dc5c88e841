"""The series of a BIDS dataset: their images, settings, masks and regions.

Settings come from sidecar files by the inheritance principle: a file applies to the images below
its folder whose name has its suffix and all its entities. What is missing or contradicts another
file is refused; nothing is guessed. BIDS has times in seconds; here they are in ms.

Sources: Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44; for relaxometry Karakuzu et al. 2022,
doi:10.1038/s41597-022-01571-4.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelwise.formatting import sentence
from labelwise.io.acquisition import checked, read_bvals
from labelwise.io.files import from_json, read_text
from labelwise.types import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

Artifact = Any
"""A file of a dataset, from ancpbids, whose types are too loose for a type checker."""

DESCRIPTION = "dataset_description.json"
_IMAGES = (".nii.gz", ".nii")
_NOT_MAGNITUDE = ("phase", "real", "imag")
_CONSTANT = ("EchoTime", "InversionTime", "RepetitionTime", "FlipAngle")  # within one series
_OF_MASKS = {"desc", "label", "res", "den"}  # entities that masks have in addition to the series


@dataclass(frozen=True)
class Kind:
    """A kind of series, by its suffix.

    Args:
        model: the model it is mapped with unless another is chosen.
        numbered: the entity that numbers its files; empty if one file holds all volumes.
        sidecar: the entry in seconds of the sidecar of each file, by setting.
    """

    model: str
    numbered: str = ""
    sidecar: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "dwi": Kind("ivim"),
    "IRT1": Kind("t1_ir", "inv", {"ti": "InversionTime"}),
    "MESE": Kind("t2", "echo", {"te": "EchoTime"}),
    "MEGRE": Kind("t2", "echo", {"te": "EchoTime"}),
}


@dataclass(frozen=True)
class Scan:
    """One series of a dataset.

    Args:
        folder: of its images, below the dataset: `sub-01/ses-a/dwi`.
        stem: the entities of its name: `sub-01_ses-a_run-1`.
        suffix: a key of `KINDS`.
        images: one file, or one for each measurement.
        settings: by name, (M,) each, in the units of the models.
        sources: the files that the settings came from.
        mask: of the voxels to map; all if None.
        regions: an image of labels of regions on its grid.
        region_names: by label.
        notes: on settings of an unusual magnitude.
    """

    folder: Path
    stem: str
    suffix: str
    images: tuple[Path, ...]
    settings: Mapping[str, Float[np.ndarray, " M"]]
    sources: tuple[Path, ...]
    mask: Path | None = None
    regions: Path | None = None
    region_names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For messages: `sub-01_ses-a_run-1_dwi`."""
        return f"{self.stem}_{self.suffix}"


def subjects_of(dataset: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The labels of the subjects of a dataset, sorted.

    Args:
        dataset: its folder.
        wanted: labels, with or without `sub-`; all if empty.

    Raises:
        InputError: if the folder is no BIDS dataset, or there is no such subject.
    """
    if not (dataset / DESCRIPTION).is_file():
        raise InputError(
            f"{dataset}: expected a BIDS dataset with a {DESCRIPTION}, which is missing; give the "
            "folder that holds it"
        )
    found = sorted(
        each.name.removeprefix("sub-")
        for each in dataset.iterdir()
        if each.name.startswith("sub-") and each.is_dir()
    )
    labels = sorted({label.removeprefix("sub-") for label in wanted})
    missing = [label for label in labels if label not in found]
    if missing:
        raise InputError(
            f"--participant-label {missing[0]}: {dataset} has no folder sub-{missing[0]}; it has "
            f"{_some(found)}"
        )
    if not found:
        raise InputError(f"{dataset}: has no subjects (folders sub-*)")
    return labels or found


def scans_of(
    dataset: Path, subject: str, sessions: Sequence[str] = (), masks: Path | None = None
) -> list[Scan | InputError]:
    """The series of a subject that can be mapped, in the order of their names.

    Args:
        dataset: its folder.
        subject: the label.
        sessions: labels of sessions, with or without `ses-`; all if empty.
        masks: the folder of derivatives with `*_mask.nii.gz`, and perhaps `*_dseg.nii.gz`.

    Returns:
        The series; in place of one whose sidecars are missing or contradictory, the error.

    Raises:
        InputError: if there is no series, or no such session.
    """
    wanted = {label.removeprefix("ses-") for label in sessions}
    images = [
        image
        for image in _artifacts(dataset, subject, KINDS)
        if image.entities.get("part") not in _NOT_MAGNITUDE
        and (not wanted or str(image.entities.get("ses")) in wanted)
    ]
    series: dict[tuple[Path, str, str], list[Artifact]] = {}
    for image in images:
        series.setdefault(_series_of(image, dataset), []).append(image)
    if not series:
        where = f" in {_some(sorted(wanted), 'ses-')}" if wanted else ""
        raise InputError(
            f"sub-{subject}: has no series{where} that can be mapped; expected "
            f"{', '.join(f'*_{suffix}.nii.gz' for suffix in KINDS)}"
        )
    drawn = [] if masks is None else _artifacts(masks, subject, ("mask", "dseg"))
    found: list[Scan | InputError] = []
    for (folder, stem, suffix), files in sorted(series.items(), key=lambda item: item[0]):
        try:
            found.append(_scan(folder, stem, suffix, files, drawn, masks))
        except (InputError, OSError) as error:
            found.append(InputError(f"{stem}_{suffix}: {sentence(error)}"))
    return found


def _scan(
    folder: Path,
    stem: str,
    suffix: str,
    images: list[Artifact],
    drawn: list[Artifact],
    masks: Path | None,
) -> Scan:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader = _by_sidecars if KINDS[suffix].numbered else _by_bvals
        images, settings, sources = reader(images, KINDS[suffix])
    mask = _drawn_on(images[0], drawn, "mask")
    if masks is not None and mask is None:
        raise InputError(
            f"{masks} has no mask for it; expected *_mask.nii.gz in {masks / folder} whose other "
            "entities are those of the series, or leave out --masks"
        )
    regions = _drawn_on(images[0], drawn, "dseg")
    return Scan(
        folder,
        stem,
        suffix,
        tuple(_path(image) for image in images),
        settings,
        tuple(dict.fromkeys(sources)),
        None if mask is None else _path(mask),
        None if regions is None else _path(regions),
        {} if regions is None else _region_names(regions),
        tuple(str(each.message) for each in caught),
    )


def _by_bvals(images: list[Artifact], kind: Kind):
    """A 4D diffusion series, with b-values from a `.bval` file."""
    if len(images) > 1:
        raise InputError(
            f"{images[1].name}: is the same series as {images[0].name}; remove one of them"
        )
    bvals, bvecs = (_inherited(images[0], ending) for ending in (".bval", ".bvec"))
    if not bvals:
        raise InputError(f"no .bval file applies to {images[0].name}; put one beside it")
    b = read_bvals(bvals[-1])
    if bvecs:
        rows = [line.split() for line in read_text(bvecs[-1]).splitlines() if line.strip()]
        if len(rows) != 3 or any(len(row) != len(b) for row in rows):
            raise InputError(
                f"{bvecs[-1]}: expected 3 rows of {len(b)} numbers, as many as b-values in "
                f"{bvals[-1]}, got {len(rows)} of {', '.join(str(len(row)) for row in rows[:3])}"
            )
    return images, {"b": b}, [bvals[-1]]


def _by_sidecars(images: list[Artifact], kind: Kind):
    """A series of one file for each measurement, in the order of their numbers."""
    numbers: dict[int, Artifact] = {}
    for image in images:
        number = image.entities.get(kind.numbered)
        if number is None:
            raise InputError(
                f"{image.name}: its name has no {kind.numbered}-, the number of the file"
            )
        if number in numbers:
            raise InputError(
                f"{image.name}: has the same {kind.numbered} as {numbers[number].name}; remove one "
                "of them"
            )
        numbers[number] = image
    images = [numbers[number] for number in sorted(numbers)]
    records = [_metadata(image) for image in images]
    for name in sorted(set(_CONSTANT) - set(kind.sidecar.values())):
        stated = [
            (record[name], image)
            for image, (record, _) in zip(images, records, strict=True)
            if name in record
        ]
        for value, image in stated:
            if value != stated[0][0]:
                raise InputError(
                    f"{name} is {stated[0][0]} for {stated[0][1].name}, but {value} for "
                    f"{image.name}; one series has the same in all its files"
                )
    settings = {}
    for setting, entry in kind.sidecar.items():
        missing = [
            image.name
            for image, (record, _) in zip(images, records, strict=True)
            if not _is_number(record.get(entry))
        ]
        if missing:
            raise InputError(
                f"{entry}: no sidecar of {missing[0]} has it as a number; BIDS requires it, in "
                "seconds"
            )
        seconds = [record[entry] for record, _ in records]
        settings[setting] = checked(
            setting, [1000 * each for each in seconds], f"1000 x {entry} of {images[0].name}, ..."
        )
    return images, settings, [path for _, paths in records for path in paths]


def _metadata(image: Artifact) -> tuple[dict[str, Any], list[Path]]:
    """The entries of all sidecars that apply to an image, and their files."""
    paths = _inherited(image, ".json")
    entries: dict[str, Any] = {}
    for path in paths:
        record = from_json(read_text(path), path)
        if not isinstance(record, dict):
            raise InputError(f"{path}: expected an object, such as {{'EchoTime': 0.01}}")
        entries |= record
    return entries, paths


def _inherited(image: Artifact, extension: str) -> list[Path]:
    """The files with some extension that apply to an image, the nearest last.

    The library's own `get_metadata` misses files without entities (`dwi.bval`, `IRT1.json`).
    """
    found: list[Path] = []
    for folder in image.iterancestors():
        here = [each for each in folder.files if _applies(each, image, extension)]
        if len(here) > 1:
            raise InputError(
                f"{here[0].name} and {here[1].name} in one folder apply both to {image.name}; BIDS "
                "allows one"
            )
        found += [_path(each) for each in here]
    return found[::-1]


def _applies(file: Artifact, image: Artifact, extension: str) -> bool:
    if file.name == f"{image.suffix}{extension}":
        return True
    entities = getattr(file, "entities", None)
    return (
        bool(entities)
        and (file.suffix, file.extension) == (image.suffix, extension)
        and entities.items() <= image.entities.items()
    )


def _drawn_on(image: Artifact, drawn: list[Artifact], suffix: str) -> Artifact | None:
    """The mask or labels of an image: in a folder of its kind, with the most of its entities."""
    found: dict[int, list[Artifact]] = {}
    for each in drawn:
        own = {key: value for key, value in each.entities.items() if key not in _OF_MASKS}
        same_kind = each.get_parent().name == image.get_parent().name
        if each.suffix == suffix and same_kind and own.items() <= image.entities.items():
            found.setdefault(len(own), []).append(each)
    if not found:
        return None
    first, *others = found[max(found)]
    if others:
        raise InputError(
            f"{_path(first)} and {others[0].name} fit both; keep one of them for this series"
        )
    return first


def _region_names(regions: Artifact) -> dict[int, str]:
    """The names of labels from the nearest `dseg.tsv`, with columns `index` and `name`."""
    tables = _inherited(regions, ".tsv")
    if not tables:
        return {}
    rows = csv.DictReader(read_text(tables[-1]).splitlines(), delimiter="\t")
    try:
        return {int(row["index"]): row["name"] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{tables[-1]}: expected columns 'index' (whole numbers) and 'name' ({error})"
        ) from None


def _series_of(image: Artifact, dataset: Path) -> tuple[Path, str, str]:
    """The folder, the entities that all files of a series share, and the suffix."""
    left_out = ("part-", f"{KINDS[image.suffix].numbered or 'part'}-")
    parts = image.name.split("_")[:-1]
    stem = "_".join(part for part in parts if not part.startswith(left_out))
    return _path(image).parent.relative_to(dataset), stem, image.suffix


def _artifacts(root: Path, subject: str, suffixes: Iterable[str]) -> list[Artifact]:
    """The images of a subject with some suffixes, sorted by name."""
    return _loaded(root, subject).query(
        suffix=list(suffixes), extension=list(_IMAGES), sorter=lambda a: a.name
    )


def _loaded(root: Path, subject: str) -> Any:
    """A dataset with one of its subjects only: a cohort may have many."""
    from ancpbids import DatasetOptions, load_dataset

    paths = [each.name for each in root.iterdir() if each.is_file()]
    for folder, _, names in os.walk(root / f"sub-{subject}"):
        paths += [str((Path(folder) / name).relative_to(root)) for name in names]
    # a pickle in the folder could run code
    options = DatasetOptions(ignore=True, ignore_pickle_file=True)
    return load_dataset(str(root), options, paths=paths)


def _path(file: Artifact) -> Path:
    return Path(file.get_absolute_path())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _some(labels: Sequence[str], prefix: str = "sub-") -> str:
    """A few labels as text."""
    shown = ", ".join(f"{prefix}{label}" for label in labels[:5])
    return (shown or "none") + (" and more" if len(labels) > 5 else "")
