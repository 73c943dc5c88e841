"""Read NIfTI images: a series in blocks, masks and maps on its grid; hashes of files.

Voxels are flat in Fortran order (x fastest, as in the file), so that
`volume = values.reshape(series.shape, order="F")`. V = X Y Z voxels, M volumes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.io.geometry import TOLERANCE, distance, mend_geometry
from labelwise.types import InputError

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LAST_CODE = 100  # of header extensions; 44 are in use
_UNHEARD = logging.getLogger(__name__)  # nibabel's log does not name the file
_UNHEARD.disabled = True


@dataclass(frozen=True, eq=False)
class Series:
    """An open NIfTI series, from `open_series`; only its geometry is usable after closing.

    Args:
        paths: the files it was opened from: one of all volumes, or one for each volume.
        header: the NIfTI header of the first.
        shape: (X, Y, Z).
        notes: on geometry that was mended.
    """

    paths: tuple[Path, ...]
    header: nib.Nifti1Header
    shape: tuple[int, int, int]
    notes: tuple[str, ...]
    _stored: tuple[_Volume, ...] = field(repr=False)
    _marks: Series | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """The name of the first file, and how many more there are."""
        more = len(self.paths) - 1
        return self.path.name + (f" and {more} more" if more else "")

    @property
    def volumes(self) -> int:
        """M."""
        return len(self._stored)

    def only(self, volumes: Sequence[int]) -> Series:
        """The series of some of its volumes, in that order."""
        marks = None if self._marks is None else self._marks.only(volumes)
        return replace(self, _stored=tuple(self._stored[v] for v in volumes), _marks=marks)

    def without(self, marks: Series) -> Series:
        """The series with NaN where another one, of as many volumes, is above 0.5."""
        return replace(self, _marks=marks)

    @property
    def scalings(self) -> set[tuple[float, float]]:
        """The slopes and intercepts of its volumes."""
        return {stored.scaling for stored in self._stored}

    @property
    def voxels(self) -> int:
        """V = X Y Z."""
        return math.prod(self.shape)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """From voxel indices to mm: the sform if it has a code, else the qform."""
        return np.asarray(self.header.get_best_affine(), dtype=float)

    def blocks(
        self,
        mask: Bool[np.ndarray, " V"] | None = None,
        size: int = 100_000,
        volumes: Sequence[int] | Int[np.ndarray, " K"] | None = None,
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n K"]]]:
        """The voxels inside a mask, at most `size` at a time, in flat order.

        Memory grows with `size` times the number of volumes read, not with the file.

        Args:
            mask: which of the V voxels to read; all if None.
            size: maximum number of voxels in a block.
            volumes: which volumes to read, in that order; all if None.

        Yields:
            The flat indices of the block's voxels and their signal, float32, in the image's own
            unit (`scl_slope` and `scl_inter` applied); beyond float32's range it is infinite.

        Raises:
            InputError: if the mask has another size, or a volume does not exist.
        """
        inside = np.ones(self.voxels, bool) if mask is None else np.asarray(mask, bool)
        selected = np.arange(self.volumes) if volumes is None else np.asarray(volumes, dtype=int)
        if inside.shape != (self.voxels,):
            raise InputError(
                f"mask: expected one flag for each of the {self.voxels} voxels of {self.path}, "
                f"got shape {inside.shape}"
            )
        if np.any((selected < 0) | (selected >= self.volumes)):
            raise InputError(
                f"volumes: {self.path} has volumes 0 to {self.volumes - 1}, got {selected.tolist()}"
            )
        if size < 1:
            raise InputError(f"size of a block: expected at least 1 voxel, got {size}")
        return self._blocks(np.flatnonzero(inside), size, selected)

    def _blocks(self, index, size, volumes):
        for first in range(0, len(index), size):
            block = index[first : first + size]
            yield block, self._read(block, volumes, np.float32)

    def volume(self, index: int) -> Float[np.ndarray, "X Y Z"]:
        """One volume, float32, in the image's own unit."""
        values = self._read(np.arange(self.voxels), [index], np.float32)
        return values.reshape(self.shape, order="F")

    def _read(self, index, volumes, dtype) -> np.ndarray:
        out = np.empty((len(index), len(volumes)), dtype)
        with np.errstate(over="ignore"):
            for column, volume in enumerate(volumes):
                stored = self._stored[volume]
                values = stored.values(self.voxels)[index]
                if stored.scaling != (1.0, 0.0):
                    values = values.astype(np.float64) * stored.scaling[0] + stored.scaling[1]
                out[:, column] = values
        if self._marks is not None:
            out[self._marks._read(index, volumes, np.float32) > 0.5] = np.nan
        return out


@dataclass(frozen=True, eq=False)
class _Volume:
    """Where one volume is stored."""

    file: BinaryIO
    dtype: np.dtype
    offset: int
    scaling: tuple[float, float]

    def values(self, voxels: int) -> np.ndarray:
        """The volume as stored, flat; mapped each time, so that its memory is released."""
        return np.asarray(np.memmap(self.file, self.dtype, "r", self.offset, voxels))


def paths_of(image: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """The files of a series: one, or one for each measurement."""
    return (Path(image),) if isinstance(image, str | Path) else tuple(map(Path, image))


@contextmanager
def open_series(image: str | Path | Sequence[str | Path]) -> Iterator[Series]:
    """Open a NIfTI series (.nii or .nii.gz) without loading it.

    An uncompressed file is memory-mapped. A compressed one is first written out, once and
    in chunks, to a temporary file in `TMPDIR`, which is deleted when the series is closed.

    Args:
        image: a 4D image, M volumes along its fourth axis (or along the fifth, if the fourth has
            length 1); or M images of one volume on one grid, in the order of the measurements.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if a file is no NIfTI file, damaged, truncated, of another rank, not of real
            numbers or without a valid geometry, or if several do not have one grid.

    Example:
        >>> import tempfile
        >>> image = nib.Nifti1Image(np.ones((4, 3, 2, 5), np.int16), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(image, f"{folder}/dwi.nii.gz")
        ...     with open_series(f"{folder}/dwi.nii.gz") as series:
        ...         print(series.shape, series.volumes)
        ...         print([signal.shape for _, signal in series.blocks(size=10)])
        (4, 3, 2) 5
        [(10, 5), (10, 5), (4, 5)]
    """
    paths = paths_of(image)
    if not paths:
        raise InputError("image: expected a file, or one for each measurement, got none")
    with ExitStack() as stack:
        first, *others = (stack.enter_context(open_image(path)) for path in paths)
        dims = first.header.get_data_shape()
        if not others and len(dims) < 4:
            raise InputError(
                f"{first.path}: expected a 4D series with one volume per measurement, got a "
                f"{len(dims)}D image of shape {dims}; give one such file for each measurement, or "
                "join the volumes along a fourth axis"
            )
        for index, part in enumerate((first, *others) if others else ()):
            if part.volumes != 1:
                raise InputError(
                    f"{part.path}: has {part.volumes} volumes, but of several files each must hold "
                    "one measurement; join all into one 4D series, or split this one"
                )
            if any(part.path.samefile(path) for path in paths[:index]):
                raise InputError(f"{part.path}: is given twice; give each measurement once")
            refuse_other_grid(part, first)
        yield replace(
            first,
            paths=paths,
            notes=tuple(note for part in (first, *others) for note in part.notes),
            _stored=tuple(volume for part in (first, *others) for volume in part._stored),
        )


def read_mask(path: str | Path, like: Series) -> tuple[Bool[np.ndarray, " V"], list[str]]:
    """Read a mask on the grid of a series: voxels above 0.5 are inside.

    Args:
        path: a NIfTI image of one volume.
        like: the series it belongs to.

    Returns:
        Which voxels are inside; and notes, on geometry that was mended, and if the mask has values
        besides 0 and one other.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if its shape or affine is not that of the series, or no voxel is inside.
    """
    values, mended = _read_on_grid(Path(path), like, (1,))
    inside, notes = inside_of(values[:, 0], path)
    return inside, [*mended, *notes]


def inside_of(values: Float[np.ndarray, "*shape"], path: str | Path):
    """The voxels of a mask that are inside, and a note on values besides 0 and one other.

    Example:
        >>> inside, notes = inside_of(np.array([0, -0.1, 0.4, 1, 1.1]), "mask.nii")
        >>> inside.tolist(), len(notes)
        ([False, False, False, True, True], 1)
    """
    inside = np.isfinite(values) & (values > 0.5)
    kinds, counts = np.unique(values, return_counts=True)
    finite = kinds[np.isfinite(kinds)]
    span = f"{finite[0]:.4g} to {finite[-1]:.4g}" if finite.size else "not finite"
    if not inside.any():
        raise InputError(
            f"{path}: the mask is empty: none of its {inside.size} voxels is above 0.5 (its values "
            f"are {span}); scale it so that 1 is inside"
        )
    if len(kinds[kinds != 0]) == 1:
        return inside, []
    usual = kinds[np.argmax(np.where(np.isfinite(kinds) & (kinds > 0.5), counts, 0))]
    decided = int(np.count_nonzero((values != 0) & (values != usual)))
    return inside, [
        f"{path}: the mask has {len(kinds)} different values ({span}); those above 0.5 are inside, "
        f"{int(inside.sum())} of {inside.size} voxels; this decided {decided} voxels that are "
        f"neither 0 nor {usual:.4g}"
    ]


def read_map(
    path: str | Path, like: Series, volumes: int | None = None
) -> tuple[Float[np.ndarray, "V *M"], Sequence[str]]:
    """Read a map of a positive quantity (sigma, say) on the grid of a series.

    Voxels that are not positive are left for the fitter to flag, unless all are.

    Args:
        path: a NIfTI image of one volume, or of one for each of the M measurements.
        like: the series it belongs to.
        volumes: another possible number of volumes.

    Returns:
        (V,) in float64 of one volume, (V, M) in float32 of several; and notes on geometry that was
        mended.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if its shape or affine is not that of the series, or no voxel is positive.
    """
    values, notes = _read_on_grid(Path(path), like, (1, like.volumes, volumes or like.volumes))
    if not np.any((values > 0) & np.isfinite(values)):
        raise InputError(
            f"{path}: expected positive values, none of its {values.size} values is "
            "positive and finite"
        )
    return values[:, 0] if values.shape[1] == 1 else values, notes


def file_hash(path: str | Path) -> str:
    """The SHA-256 hash of a file, as `"sha256:..."`."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _read_on_grid(
    path: Path, like: Series, volumes: tuple[int, ...]
) -> tuple[Float[np.ndarray, "V K"], Sequence[str]]:
    """The values of an image, checked to lie on the grid of a series; notes on its geometry."""
    with open_image(path) as image:
        if image.volumes not in volumes:
            expected = "one volume" if volumes == (1,) else f"1 or {volumes[-1]} volumes"
            raise InputError(f"{path}: expected {expected}, got {image.volumes}")
        refuse_other_grid(image, like)
        dtype = np.float64 if image.volumes == 1 else np.float32
        return image._read(np.arange(image.voxels), range(image.volumes), dtype), image.notes


def refuse_other_grid(image: Series, like: Series) -> None:
    """Check that an image lies on the grid of a series.

    Raises:
        InputError: if its shape or affine is not that of the series.
    """
    if image.shape != like.shape:
        raise InputError(
            f"{image.path}: its shape {image.shape} is not that of {like.path}, {like.shape}; "
            "resample it onto the series"
        )
    apart = distance(like.affine, image.affine, like.shape)
    if apart > TOLERANCE:
        raise InputError(
            f"{image.path}: its affine differs from that of {like.path}, by up to {apart:.3g} "
            "voxels; resample it onto the series, or copy the geometry if only the header is wrong"
        )


@contextmanager
def open_image(path: Path) -> Iterator[Series]:
    """Open any NIfTI image of real numbers, as a series of at least one volume.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: see `open_series`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.is_file():
        raise InputError(f"{path}: expected a NIfTI file (.nii or .nii.gz), not a folder")
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.read(2) == b"\x1f\x8b":
            file = stack.enter_context(tempfile.TemporaryFile(prefix="labelwise-"))
            _decompress(path, file)
        header = _read_header(path, file)
        dims = header.get_data_shape()
        if not dims or min(dims) < 1:
            raise InputError(f"{path}: it has no voxels, its shape is {dims}")
        if sum(length != 1 for length in dims[3:]) > 1:
            raise InputError(
                f"{path}: expected one axis of measurements after x, y, z, got a {len(dims)}D "
                f"image of shape {dims}; reshape it to 4D, volumes in the order of the settings"
            )
        x, y, z = (*dims, 1, 1)[:3]
        volumes, dtype = math.prod(dims[3:]), header.get_data_dtype()
        offset, size = header.get_data_offset(), x * y * z * dtype.itemsize
        present = file.seek(0, 2) - offset
        if present < volumes * size:
            raise InputError(
                f"{path}: truncated: its header needs {volumes * size} bytes of data, "
                f"{max(present, 0)} are there; copy or convert it again"
            )
        notes = mend_geometry(header, (x, y, z), path)
        scaling = _scaling(header)
        stored = (_Volume(file, dtype, offset + i * size, scaling) for i in range(volumes))
        yield Series((path,), header, (x, y, z), tuple(notes), tuple(stored))


def _decompress(path: Path, target: BinaryIO) -> None:
    try:
        with gzip.open(path, "rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
    except EOFError as error:
        raise InputError(
            f"{path}: truncated: the compressed file ends early; copy it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path}: corrupt: it does not decompress ({error}); copy it again"
        ) from error
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        raise OSError(
            f"{path}: no room to decompress it in {tempfile.gettempdir()} ({error.strerror}); "
            "point TMPDIR to a folder with more space"
        ) from error


def _read_header(path: Path, file: BinaryIO) -> nib.Nifti1Header:
    file.seek(0)
    block = file.read(nib.Nifti2Header.sizeof_hdr)
    kinds = [k for k in (nib.Nifti1Header, nib.Nifti2Header) if k.may_contain_header(block)]
    if not kinds:
        raise InputError(f"{path}: not a NIfTI file (.nii or .nii.gz)")
    try:
        header = kinds[0](block[: kinds[0].sizeof_hdr], check=False)
        if bytes(header["magic"]).startswith(b"ni"):
            raise InputError(f"{path}: half of an .hdr/.img pair; convert it to a single .nii file")
        _check_offset(path, header, file)
        given = header["pixdim"].copy(), header["qform_code"].copy(), header["sform_code"].copy()
        header.check_fix(logger=_UNHEARD)
        # `mend_geometry` names the file
        header["pixdim"][1:4] = given[0][1:4]
        header["qform_code"], header["sform_code"] = given[1:]
        dtype = header.get_data_dtype()
        _scaling(header)
    except InputError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged headers
        raise InputError(f"{path}: its NIfTI header is damaged ({error})") from error
    if dtype.kind not in "iuf":
        label = header.get_value_label("datatype")
        raise InputError(
            f"{path}: expected real numbers, its data type is {label}; give the magnitude, or "
            "the real part after phase correction as signed images (--signed)"
        )
    return header


def _check_offset(path: Path, header: nib.Nifti1Header, file: BinaryIO) -> None:
    """Refuse data that would start inside the header or its extensions."""
    offset, end = float(header["vox_offset"]), header.single_vox_offset
    if not offset >= end or offset % 1:
        raise InputError(
            f"{path}: its data would start at byte {offset:g} (vox_offset), but the header of a "
            f"single file ends at byte {end}; set vox_offset to where the data start (mostly "
            f"{end}), or convert it again"
        )
    file.seek(end - 4)
    if file.read(1) in (b"", b"\0"):  # no extensions
        return
    place, kind = end, np.dtype(np.int32).newbyteorder(header.endianness)
    while place < offset or place == end:
        file.seek(place)
        size, code = (*np.frombuffer(file.read(8), kind), 0, 0)[:2]
        if size < 16 or size % 16 or code % 2 or not 0 <= code <= _LAST_CODE:
            return  # the flag is wrong
        place += int(size)
    if place > offset:
        raise InputError(
            f"{path}: its data would start at byte {offset:g} (vox_offset), but an extension of "
            f"its header ends at byte {place}; set vox_offset to where the data start, or convert "
            "it again"
        )


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the slope is 0 or NaN (no scaling in the standard)."""
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None or inter is None else (slope, inter)
