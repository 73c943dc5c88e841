"""Write parameter maps and their sidecars, moved into place when all are written.

`run.json` is moved last: where it is, the run is complete.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from labelwise.formatting import json_text, plain
from labelwise.io.files import from_json
from labelwise.io.nifti import OUT_OF_SPACE, Series
from labelwise.io.staging import LOCK, MARK, staged
from labelwise.types import InputError

RUN = "run.json"
FILES = "labelwise_files"  # unlikely in other software's run.json: only our files are removed
_FILL = "in place of NaN: outside the mask, without an estimate (see status), or without an error"
_GEOMETRY = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


@contextmanager
def output_folder(
    folder: str | Path,
    like: Series,
    overwrite: bool = False,
    names: Collection[str] = (),
    inputs: Collection[Path] = (),
    fill: float = math.nan,
) -> Iterator[Output]:
    """An output folder, to which the files of a run are moved when all are written; see `staged`.

    Args:
        folder: where the files go; made if missing.
        like: the series whose grid the maps have.
        overwrite: replace the files of an earlier run, and remove those of its other files that
            its `run.json` lists.
        names: files that will be written, to refuse existing ones before the work.
        inputs: files that the run reads; none of them is replaced or removed.
        fill: what is written in place of NaN.

    Raises:
        InputError: if an input would be replaced or removed.
        FileExistsError: if the folder holds an earlier run or a file that would be written, and
            `overwrite` is not set; or if another run is writing there.
        OSError: if the folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> from labelwise.io.nifti import open_series
        >>> image = nib.Nifti1Image(np.ones((4, 3, 2, 5), np.int16), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(image, f"{folder}/dwi.nii")
        ...     with open_series(f"{folder}/dwi.nii") as series:
        ...         with output_folder(f"{folder}/maps", like=series) as out:
        ...             out.write_map("D", np.ones(24), {"unit": "µm²/ms"})
        ...             out.write_run({"model": "adc"})
        ...     print(sorted(path.name for path in Path(folder, "maps").iterdir()))
        ['D.json', 'D.nii.gz', 'run.json']
    """
    folder = Path(folder)
    stale = _listed_files(folder / RUN)
    try:
        with staged(
            folder, RUN, names=names, stale=stale, inputs=inputs, overwrite=overwrite
        ) as staging:
            yield Output(folder, like, staging, fill)
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        raise OSError(_failure(folder, "the results", error)) from error


@dataclass(frozen=True, eq=False)
class Output:
    """The files of a run while they are being written; made by `output_folder`.

    Args:
        folder: where they will be.
    """

    folder: Path
    _like: Series
    _staging: Path
    _fill: float

    @property
    def names(self) -> list[str]:
        """The files written so far, without `run.json`."""
        names = {path.name for path in self._staging.iterdir()} - {LOCK, MARK, RUN}
        return sorted(names)

    def write_map(
        self, name: str, values: Shaped[np.ndarray, "V *K"], sidecar: Mapping[str, Any]
    ) -> None:
        """Stage `name.nii.gz`, and `name.json` beside it.

        Floats become float32, 8-bit integers keep their type, other integers become int32. With a
        fill value, NaN becomes that value, and the sidecar has an entry `fill`. The same values
        give the same bytes.

        Args:
            name: the file's name without its ending.
            values: one value, or K, for every voxel of the series in flat order; (V,) makes a 3D
                image, (V, K) a 4D one. Outside the mask the caller puts NaN, or 0 for integers.
            sidecar: the content of `name.json`, such as the unit.

        Raises:
            InputError: if there is not one row for every voxel.
            OSError: if the disk is full.
        """
        values = np.asarray(values)
        if values.ndim not in (1, 2) or len(values) != self._like.voxels:
            raise InputError(
                f"map {name}: expected one value (or row) for each of the {self._like.voxels} "
                f"voxels of {self._like.path}, got shape {values.shape}"
            )
        if self._filling and np.issubdtype(values.dtype, np.floating):
            values = np.where(np.isnan(values), self._fill, values)
            sidecar = {**sidecar, **self._filling}
        image = _image(name, values, self._like)
        try:
            self.path(f"{name}.nii.gz").write_bytes(compressed(image.to_bytes()))
            self.path(f"{name}.json").write_text(as_json(sidecar, "map 1"), encoding="utf-8")
        except OSError as error:
            raise OSError(_failure(self.folder, f"{name}.nii.gz", error)) from error

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Stage `run.json`, the record of the run; to be written last.

        Adds `labelwise_files`, the list of all that is staged, so that a later run that overwrites
        this one can remove what it does not replace.
        """
        record = {**record, **self._filling, FILES: [*self.names, RUN]}
        try:
            self.path(RUN).write_text(as_json(record, "run 1"), encoding="utf-8")
        except OSError as error:
            raise OSError(_failure(self.folder, RUN, error)) from error

    @property
    def _filling(self) -> dict[str, Any]:
        """The entry of sidecars and `run.json` on the fill value."""
        filled = not math.isnan(self._fill)
        return {"fill": {"value": self._fill, "meaning": _FILL}} if filled else {}

    def path(self, name: str) -> Path:
        """Where to write another file of the run (`maps.png`), for it to be moved into place."""
        if not _is_plain(name) or name in (LOCK, MARK):
            raise InputError(f"output file {name!r}: expected a plain file name, without a folder")
        return self._staging / name


def _failure(folder: Path, what: str, error: OSError) -> str:
    return (
        f"{folder}: could not write {what} ({error.strerror or error}); nothing is left "
        "there: make room or choose another output folder"
    )


def compressed(data: bytes) -> bytes:
    """A gzip file without a date, so that the same data give the same bytes.

    Run-length encoding is much faster than full deflate, and noisy maps are hardly larger.
    """
    packer = zlib.compressobj(1, zlib.DEFLATED, 31, 8, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


def as_json(record: Mapping[str, Any], schema: str = "") -> str:
    """A record as standard JSON, in its own order; values are converted by `plain`.

    Args:
        record: its entries.
        schema: the name and version of its schema, which becomes its first entry; see
            `labelwise.io.schemas`. Files of other standards have none.

    Raises:
        TypeError: for a value that JSON cannot represent.

    Example:
        >>> print(as_json({"unit": "µm²/ms", "bounds": (0.0, np.inf), "sigma": np.float32(2)}))
        {
          "unit": "µm²/ms",
          "bounds": [
            0.0,
            "inf"
          ],
          "sigma": 2.0
        }
        <BLANKLINE>
    """
    named = {"schema": f"labelwise {schema}"} if schema else {}
    return json_text(plain(named | dict(record)), indent=2, allow_nan=False) + "\n"


def _image(name: str, values: np.ndarray, like: Series) -> nib.Nifti1Image:
    """The map as an image with the geometry of the series and nothing else of its header.

    Display windows, scalings and descriptions of the series would be wrong here, and its free
    text and extensions may name the patient.
    """
    kind = nib.Nifti2Image if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class()
    for field in _GEOMETRY:
        header[field] = like.header[field]
    header["pixdim"][:4] = like.header["pixdim"][:4]
    header["descrip"] = f"labelwise {name}".encode("ascii", "replace")[:79]
    if np.issubdtype(values.dtype, np.floating):
        dtype = np.dtype(np.float32)
    elif values.dtype in (np.int8, np.uint8, np.bool_):
        dtype = np.dtype(np.int8 if values.dtype == np.int8 else np.uint8)
    elif np.abs(values).max(initial=0) < 2**31:
        dtype = np.dtype(np.int32)
    else:
        raise InputError(f"map {name}: has integers beyond 32 bits; give them as floats")
    header.set_data_dtype(dtype)
    header.set_data_shape((*like.shape, *values.shape[1:]))  # the affine may depend on it
    with np.errstate(over="ignore"):
        data = values.astype(dtype).reshape(header.get_data_shape(), order="F")
    return kind(data, header.get_best_affine(), header)


def _is_plain(name: str) -> bool:
    """Whether this is a file name without a folder."""
    return Path(name).name == name and name not in ("", "..")


def _listed_files(run: Path) -> set[str]:
    """The files of an earlier run from its `run.json`; plain file names only."""
    try:
        names = from_json(run.read_text(encoding="utf-8"), run)[FILES]
        return {name for name in names if _is_plain(name) and (run.parent / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
