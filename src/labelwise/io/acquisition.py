"""The settings of the M measurements: read from files, checked, grouped and averaged.

In files and options b is in s/mm²; here it is in ms/µm² (1 ms/µm² = 1000 s/mm²). Times are in ms.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.types import SETTINGS, InputError


def read_bvals(path: str | Path) -> Float[np.ndarray, " M"]:
    """Read b-values in s/mm² from an FSL `.bval` file: one line, or one column.

    Returns:
        (M,) b in ms/µm², in the file's order.

    Raises:
        OSError: if the file cannot be read.
        InputError: if it holds anything but non-negative numbers in one row or one column.

    Warns:
        UserWarning: if the largest is below 20 or above 30000 s/mm²: the unit may be another.
    """
    return checked("b", _read_numbers(Path(path)), str(path))


def read_times(text: str, name: str) -> Float[np.ndarray, " M"]:
    """Read echo or inversion times in ms, given as a list or as a text file of them.

    Args:
        text: `"10,20,30"`, or the path of a file with such numbers.
        name: `"te"` or `"ti"`, for messages and for what is plausible.

    Raises:
        InputError: if `text` is neither, or a time is negative or not finite.

    Warns:
        UserWarning: if the magnitude suggests another unit.

    Example:
        >>> read_times("10, 20,30", "te")
        array([10., 20., 30.])
    """
    try:
        values = [float(token) for token in text.replace(",", " ").split()]
    except ValueError:
        if Path(text).is_file():
            return checked(name, _read_numbers(Path(text)), text)
        raise InputError(
            f"{name}: expected times in ms such as '10,20,30', or an existing text file of them, "
            f"got {text!r}"
        ) from None
    return checked(name, values, f"the list {text!r}")


def read_table(path: str | Path) -> dict[str, Float[np.ndarray, " M"]]:
    """Read an acquisition with several settings per measurement.

    Columns whose entries are all words (labels) are left out.

    Args:
        path: a `.json` object of lists, or a `.tsv` with a header line and a line per measurement.
            The column `b` is in s/mm², times are in ms.

    Returns:
        The settings by name, (M,) each, in the file's order; `b` in ms/µm².

    Raises:
        OSError: if the file cannot be read.
        InputError: if it is neither, or a column is not one finite number per measurement.

    Warns:
        UserWarning: if the magnitude of `b`, `te` or `ti` suggests another unit.
    """
    path = Path(path)
    readers = {".json": _json_columns, ".tsv": _tsv_columns}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected a .json or .tsv table of the acquisition")
    columns = readers[path.suffix.lower()](path)
    lengths = {name: len(entries) for name, entries in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path}: its columns differ in length: {lengths}")
    table = {
        name: checked(name, [_number(entry, f"{path}, column {name}") for entry in entries], path)
        for name, entries in columns.items()
        if name in SETTINGS or not all(_is_word(entry) for entry in entries)
    }
    if not table:
        raise InputError(f"{path}: it has no column of numbers")
    return table


def zero_b(b: Float[np.ndarray, " M"], tolerance: float) -> Bool[np.ndarray, " M"]:
    """Which measurements count as b = 0.

    Args:
        b: (M,) in ms/µm².
        tolerance: the largest b, in ms/µm², that still counts as 0.

    Example:
        >>> zero_b(np.array([0.8, 0.0, 0.005]), tolerance=0.001)
        array([False,  True, False])
    """
    return np.asarray(b) <= tolerance


def group_equal(
    acquisition: Mapping[str, Float[np.ndarray, " M"]], tolerance: float = 0.0
) -> list[Int[np.ndarray, " n"]]:
    """Which measurements have the same settings, and so may be averaged.

    Those of a group lie within `tolerance` of its smallest b; chains of near neighbours do not
    grow a group beyond it. All other settings are equal.

    Args:
        acquisition: the settings by name, (M,) each; `b` in ms/µm².
        tolerance: the widest spread of b within one group, in ms/µm².

    Returns:
        G arrays of indices, each ascending, sorted by b and then by the other settings.

    Example:
        >>> group_equal({"b": np.array([1.0, 0.0, 0.995, 0.0])}, tolerance=0.01)
        [array([1, 3]), array([0, 2])]
    """
    names = sorted(acquisition, key=lambda name: (name != "b", name))
    settings = np.stack([np.asarray(acquisition[name], dtype=float) for name in names], axis=1)
    spread = tolerance * (1 + 1e-9) + 1e-12 if names[0] == "b" else 0.0
    groups: dict[tuple[float, ...], list[list[int]]] = {}
    for index in np.lexsort(settings.T[::-1]):
        first, *others = settings[index]
        equal = groups.setdefault(tuple(others), [])
        if equal and first - settings[equal[-1][0], 0] <= spread:
            equal[-1].append(int(index))
        else:
            equal.append([int(index)])
    ordered = sorted(
        (group for equal in groups.values() for group in equal),
        key=lambda group: tuple(settings[group[0]]),
    )
    return [np.array(sorted(group)) for group in ordered]


def average(
    signal: Float[np.ndarray, "N M"],
    groups: Sequence[Int[np.ndarray, " n"]],
    how: Literal["geometric", "arithmetic"],
    left: Bool[np.ndarray, "N M"] | None = None,
) -> Float[np.ndarray, "N G"]:
    """Average the measurements of each group, such as the directions of one b-value.

    The geometric mean of exponentials of direction is the exponential of the mean diffusivity
    (trace weighting). It is 0 if any measurement is 0, NaN if any is negative or NaN. A group of
    one is passed on as it is.

    Averaged magnitudes are no longer exactly Rician; their noise is smaller by `sigma_factor`.

    Args:
        signal: (N, M).
        groups: G arrays of indices, from `group_equal`.
        how: `"geometric"` or `"arithmetic"`.
        left: the measurements that are left out; a group without others is 0.

    Raises:
        InputError: if `how` is neither.

    Example:
        >>> average(np.array([[1.0, 4.0, 9.0]]), [np.array([0, 1]), np.array([2])], "geometric")
        array([[2., 9.]])
    """
    if how not in ("geometric", "arithmetic"):
        raise InputError(f"average: expected 'geometric' or 'arithmetic', got {how!r}")
    out = np.empty((len(signal), len(groups)), signal.dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for column, group in enumerate(groups):
            values = signal[:, group].astype(np.float64)
            if left is not None:
                used = ~left[:, group]
                count = np.maximum(used.sum(axis=1), 1)
                logs = np.log(values) if how == "geometric" and len(group) > 1 else values
                mean = np.where(used, logs, 0).sum(axis=1) / count
                out[:, column] = np.exp(mean) if logs is not values else mean
            elif len(group) == 1:
                out[:, column] = values[:, 0]
            elif how == "geometric":
                out[:, column] = np.exp(np.log(values).mean(axis=1))
            else:
                out[:, column] = values.mean(axis=1)
    return out


def sigma_factor(groups: Sequence[Int[np.ndarray, " n"]]) -> Float[np.ndarray, " G"]:
    """The factor of sigma after averaging: 1/√n for each group.

    Exact for the arithmetic mean of Gaussian noise; for the geometric mean, and for magnitudes, an
    approximation that is good where the signal-to-noise ratio is high (above about 5) and the
    averaged signals are alike.

    Example:
        >>> sigma_factor([np.array([0]), np.array([1, 2, 3, 4])])
        array([1. , 0.5])
    """
    return np.array([1 / math.sqrt(len(group)) for group in groups])


def average_settings(
    acquisition: Mapping[str, Float[np.ndarray, " M"]], groups: Sequence[Int[np.ndarray, " n"]]
) -> dict[str, Float[np.ndarray, " G"]]:
    """The settings of averaged measurements: the mean of each group.

    Example:
        >>> average_settings({"b": np.array([0.0, 0.9, 1.0])}, [np.array([0]), np.array([1, 2])])
        {'b': array([0.  , 0.95])}
    """
    return {
        name: np.array([np.asarray(values)[group].mean() for group in groups])
        for name, values in acquisition.items()
    }


def checked(name: str, values: Sequence[float], source: str | Path) -> np.ndarray:
    """Check settings and convert them to the units of the models.

    Args:
        name: of the setting.
        values: (M,) b in s/mm², times in ms.
        source: their file, for messages.

    Raises:
        InputError: if there is none, or one is not finite or negative.

    Warns:
        UserWarning: if the magnitude suggests another unit.
    """
    array = np.array(values, dtype=float)
    if not array.size:
        raise InputError(f"{name}: {source} is empty; expected one value per measurement")
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name}: {source} has NaN or infinite values")
    if name not in SETTINGS:
        return array
    setting, largest = SETTINGS[name], float(array.max())
    unit, (lowest, highest) = setting.unit, setting.plausible
    if array.min() < 0:
        raise InputError(f"{name}: expected values >= 0 {unit}, got {array.min():g} in {source}")
    if 0 < largest < setting.possible[0] or largest > setting.possible[1]:
        raise InputError(
            f"{name}: the largest value in {source} is {largest:g}, expected {lowest:g} to "
            f"{highest:g} {unit}; convert them to {unit}"
        )
    if not lowest <= largest <= highest:
        warnings.warn(
            f"{name}: the largest value in {source} is {largest:g}, expected {lowest:g} to "
            f"{highest:g} {unit}; check that its unit is {unit}",
            stacklevel=3,
        )
    return array / SETTINGS[name].factor


def _read_numbers(path: Path) -> list[float]:
    """The numbers of a text file that holds one row or one column of them."""
    lines = [line.replace(",", " ").split() for line in _text(path).splitlines() if line.strip()]
    if len(lines) > 1 and max(len(line) for line in lines) > 1:
        raise InputError(
            f"{path}: expected one row or one column of numbers, got {len(lines)} rows of "
            f"{len(lines[0])} (a .bvec file?)"
        )
    return [_number(token, path) for line in lines for token in line]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a text file, got binary data") from error


def _number(entry: object, where: object) -> float:
    if isinstance(entry, (str, int, float)) and not isinstance(entry, bool):
        try:
            return float(entry)
        except (ValueError, OverflowError):
            pass
    raise InputError(f"{where}: expected numbers, got {entry!r}")


def _is_word(entry: object) -> bool:
    try:
        _number(entry, "")
    except ValueError:
        return isinstance(entry, str)
    return False


def _json_columns(path: Path) -> dict[str, list]:
    try:
        table = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(table, dict) or not all(isinstance(v, list) for v in table.values()):
        raise InputError(f"{path}: expected an object of lists, such as {{'te': [10, 20, 30]}}")
    return table


def _tsv_columns(path: Path) -> dict[str, list]:
    header, *rows = [
        [entry.strip() for entry in row]
        for row in csv.reader(_text(path).splitlines(), delimiter="\t")
        if any(entry.strip() for entry in row)
    ] or [[]]
    if len(set(header)) < len(header) or not all(header):
        raise InputError(f"{path}: expected distinct column names in its first line, got {header}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {number} has {len(row)} entries, the header names {len(header)}"
            )
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}
