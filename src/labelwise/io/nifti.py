"""Read NIfTI images: a 4D series in blocks, masks and maps on its grid; hashes of files.

Voxels are flat in Fortran order (x fastest, as in the file), so that
`volume = values.reshape(series.shape, order="F")`. V = X Y Z voxels, M volumes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
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

from labelwise.types import InputError

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, eq=False)
class Series:
    """An open NIfTI series, from `open_series`; only its geometry is usable after closing.

    Args:
        path: the file it was opened from.
        header: its NIfTI header.
        shape: (X, Y, Z).
        volumes: M.
    """

    path: Path
    header: nib.Nifti1Header
    shape: tuple[int, int, int]
    volumes: int
    _file: BinaryIO = field(repr=False)
    _selected: tuple[int, ...] | None = None

    def only(self, volumes: Sequence[int]) -> Series:
        """The series of some of its volumes, in that order."""
        return replace(self, volumes=len(volumes), _selected=tuple(volumes))

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

    def _read(self, index, volumes, dtype) -> np.ndarray:
        slope, inter = _scaling(self.header)
        out = np.empty((len(index), len(volumes)), dtype)
        with np.errstate(over="ignore"):
            for column, volume in enumerate(volumes):
                values = self._map(volume)[index]
                if (slope, inter) != (1.0, 0.0):
                    values = values.astype(np.float64) * slope + inter
                out[:, column] = values
        return out

    def _map(self, volume) -> np.ndarray:
        """One volume as stored, flat; mapped each time, so that its memory is released."""
        dtype = self.header.get_data_dtype()
        volume = volume if self._selected is None else self._selected[volume]
        offset = self.header.get_data_offset() + int(volume) * self.voxels * dtype.itemsize
        return np.asarray(np.memmap(self._file, dtype, "r", offset, self.voxels))


@contextmanager
def open_series(path: str | Path) -> Iterator[Series]:
    """Open a 4D NIfTI series (.nii or .nii.gz) without loading it.

    An uncompressed file is memory-mapped. A compressed one is first written out, once and
    in chunks, to a temporary file in `TMPDIR`, which is deleted when the series is closed.

    Args:
        path: the image; M volumes along its fourth axis.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is no NIfTI file, damaged, truncated, not 4D, or not of real numbers.

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
    with _open_nifti(Path(path)) as series:
        dims = series.header.get_data_shape()
        if len(dims) < 4:
            raise InputError(
                f"{path}: expected a 4D series with one volume per measurement, got a {len(dims)}D "
                f"image of shape {dims}; join the volumes along a fourth axis first"
            )
        yield series


def read_mask(path: str | Path, like: Series) -> Bool[np.ndarray, " V"]:
    """Read a mask on the grid of a series: voxels inside are finite and not zero.

    Args:
        path: a 3D NIfTI image, or a 4D one with a single volume.
        like: the series it belongs to.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if its shape or affine is not that of the series, or no voxel is inside.
    """
    values = _read_volume(Path(path), like)
    inside = np.isfinite(values) & (values != 0)
    if not inside.any():
        raise InputError(f"{path}: the mask is empty: none of its {inside.size} voxels is non-zero")
    return inside


def read_map(path: str | Path, like: Series) -> Float[np.ndarray, " V"]:
    """Read a map of a positive quantity (sigma, say) on the grid of a series.

    Voxels that are not positive are left for the fitter to flag, unless all are.

    Args:
        path: a 3D NIfTI image, or a 4D one with a single volume.
        like: the series it belongs to.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if its shape or affine is not that of the series, or no voxel is positive.
    """
    values = _read_volume(Path(path), like)
    if not np.any((values > 0) & np.isfinite(values)):
        raise InputError(
            f"{path}: expected positive values, none of its {values.size} voxels is "
            "positive and finite"
        )
    return values


def file_hash(path: str | Path) -> str:
    """The SHA-256 hash of a file, as `"sha256:..."`."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _read_volume(path: Path, like: Series) -> Float[np.ndarray, " V"]:
    """The values of a one-volume image, after checking that it lies on the grid of a series."""
    with _open_nifti(path) as image:
        if image.volumes != 1:
            raise InputError(f"{path}: expected one volume, got {image.volumes}")
        refuse_other_grid(image, like)
        return image._read(np.arange(image.voxels), [0], np.float64)[:, 0]


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
    if not np.allclose(image.affine, like.affine, atol=1e-3):
        gap = np.abs(image.affine - like.affine).max()
        raise InputError(
            f"{image.path}: its affine differs from that of {like.path} by up to {gap:.3g}; "
            "resample it onto the series, or copy the geometry if only the header is wrong"
        )


@contextmanager
def _open_nifti(path: Path) -> Iterator[Series]:
    """Any NIfTI image of real numbers, as a series of at least one volume."""
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
        if any(length != 1 for length in dims[4:]):
            raise InputError(
                f"{path}: expected at most 4 dimensions, got a {len(dims)}D image of shape {dims}"
            )
        x, y, z, volumes = (*dims, 1, 1, 1)[:4]
        series = Series(path, header, (x, y, z), volumes, file)
        expected = series.voxels * volumes * header.get_data_dtype().itemsize
        present = file.seek(0, 2) - header.get_data_offset()
        if present < expected:
            raise InputError(
                f"{path}: truncated: its header needs {expected} bytes of data, "
                f"{max(present, 0)} are there; copy or convert it again"
            )
        yield series


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
    file.seek(0)
    try:
        header = kinds[0].from_fileobj(file)
        dtype = header.get_data_dtype()
        _scaling(header)
    except Exception as error:  # nibabel raises many kinds for damaged headers
        raise InputError(f"{path}: its NIfTI header is damaged ({error})") from error
    if bytes(header["magic"]).startswith(b"ni"):
        raise InputError(f"{path}: half of an .hdr/.img pair; convert it to a single .nii file")
    if dtype.kind not in "iuf":
        label = header.get_value_label("datatype")
        raise InputError(
            f"{path}: expected real numbers, its data type is {label}; give the magnitude, or "
            "the real part after phase correction as signed images (--signed)"
        )
    return header


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the slope is 0 or NaN (no scaling in the standard)."""
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None or inter is None else (slope, inter)
