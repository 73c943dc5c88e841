"""The settings of the M measurements: read from files, checked, grouped and averaged.

In files and options b is in s/mm²; here it is in ms/µm² (1 ms/µm² = 1000 s/mm²). Times are in ms.
"""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from labelwise.io.files import from_json, read_text
from labelwise.types import SETTINGS, InputError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)
_COMMENT = re.compile(r"[#%].*")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_LONGEST = 60  # characters of an entry in a message
_UNIT_LENGTH = 0.02  # of directions, which files round
_B_WITHOUT_DIRECTION = 0.05  # ms/µm²: up to this b, a missing direction changes nothing
_GE = 1e9  # added to b-values by GE scanners


def read_bvals(path: str | Path) -> Float[np.ndarray, " M"]:
    """Read b-values in s/mm² from an FSL `.bval` file: one line, or one column.

    Numbers are separated by blanks, tabs, commas or semicolons, also within one pair of brackets.
    Comments (`#`, `%`), a byte-order mark, UTF-16, and a Ctrl-Z at the end are allowed. Commas
    that could be decimal commas (`0,0 0,5`) are refused.

    Returns:
        (M,) b in ms/µm², in the file's order.

    Raises:
        OSError: if the file cannot be read.
        InputError: if it holds anything but non-negative numbers in one row or one column, or
            numbers in another unit.

    Warns:
        UserWarning: if the largest is below 20 or above 30000 s/mm²: the unit may be another.
    """
    return checked("b", _numbers(read_text(Path(path)), path), str(path))


def read_times(text: str, name: str) -> Float[np.ndarray, " M"]:
    """Read echo or inversion times in ms, or flip angles, given as a list or a text file of them.

    Args:
        text: `"10,20,30"`, also in brackets, or the path of a file with such numbers; see
            `read_bvals` for what is allowed.
        name: `"te"`, `"ti"` or `"flip_angle"`, for messages and for what is plausible.

    Raises:
        InputError: if `text` is neither, or a value is negative or not finite.

    Warns:
        UserWarning: if the magnitude suggests another unit.

    Example:
        >>> read_times("[10, 20, 30]", "te")
        array([10., 20., 30.])
    """
    path = times_file(text)
    if path is not None:
        return checked(name, _numbers(read_text(path), path), path)
    try:
        values = _numbers(text, "")
    except InputError as error:
        cause = str(error).removeprefix(", line 1: ")
        raise InputError(
            f"{name}: expected {_listed(name)} such as '10,20,30', or an existing text file of "
            f"them, got {_shown(text)} ({cause})"
        ) from None
    return checked(name, values, f"the list {_shown(text)}")


def _listed(name: str) -> str:
    unit = SETTINGS[name].unit if name in SETTINGS else ""
    return f"times in {unit}" if unit == "ms" else f"numbers in {unit}" if unit else "numbers"


def read_bvecs(
    path: str | Path, b: Float[np.ndarray, " M"] | None = None
) -> dict[str, Float[np.ndarray, " M"]]:
    """Read gradient directions from an FSL `.bvec` file: three lines, or a line per measurement.

    Directions are relative to the image axes, as the file has them. A file of three lines of three
    numbers is read as three lines.

    Args:
        path: the file.
        b: (M,) the b-values in ms/µm²; where b is 0, the direction means nothing and becomes 0.

    Returns:
        The components `gx`, `gy` and `gz`, (M,) each, of unit length or 0.

    Raises:
        OSError: if the file cannot be read.
        InputError: if it is no such table, its length is not that of b, or a direction is not of
            length 1, or is 0 where b is not.
    """
    path = Path(path)
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    rows = [
        [_number(entry, f"{path}, line {number}") for entry in _row(line.strip(), str(path))]
        for number, line in enumerate(lines, start=1)
    ]
    sizes = {len(row) for row in rows}
    if len(sizes) != 1 or 3 not in (len(rows), *sizes):
        raise InputError(
            f"{path}: expected three lines of numbers of equal length, or lines of three numbers, "
            f"got {len(rows)} lines of {', '.join(map(str, sorted(sizes))) or 'no'} numbers"
        )
    table = np.array(rows) if len(rows) == 3 else np.array(rows).T
    if b is not None and table.shape[1] != len(b):
        raise InputError(
            f"{path}: expected {len(b)} directions, one for each b-value, got {table.shape[1]}"
        )
    if b is not None:
        table = np.where(np.asarray(b) == 0, 0.0, table)
    length = np.linalg.norm(table, axis=0)
    wrong = ~np.isclose(length, 1, atol=_UNIT_LENGTH) & (length != 0)
    if b is not None:
        wrong |= (length == 0) & (np.asarray(b) > _B_WITHOUT_DIRECTION)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}: direction {first + 1} has length {length[first]:.3g}, expected 1; directions "
            "that are scaled by b have to be normalised"
        )
    table = table / np.where(length > 0, length, 1)
    return dict(zip(("gx", "gy", "gz"), table + 0.0, strict=True))


def times_file(text: str) -> Path | None:
    """The file that `read_times` reads; None if its text is a list of numbers, or neither."""
    try:
        _numbers(text, "")
    except InputError:
        try:
            return Path(text) if Path(text).is_file() else None
        except (OSError, ValueError):  # no possible file name: too long, or with a null character
            return None
    return None


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
        name: checked(
            name,
            [
                _number(entry, f"{path}, column {name}, entry {place}")
                for place, entry in enumerate(entries, start=1)
            ],
            path,
        )
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
        InputError: if there is none, one is not finite or negative, or they are in another unit.

    Warns:
        UserWarning: if the magnitude suggests another unit; see `doubts`.
    """
    array = np.array(values, dtype=float) + 0.0  # -0 becomes 0
    if not array.size:
        raise InputError(f"{name}: {source} is empty; expected one value per measurement")
    if not np.all(np.isfinite(array)):
        first = int(np.flatnonzero(~np.isfinite(array))[0]) + 1
        raise InputError(f"{name}: {source} has NaN or infinite values (number {first})")
    if name not in SETTINGS:
        return array
    setting, largest = SETTINGS[name], float(array.max())
    unit, (lowest, highest) = setting.unit, setting.plausible
    if array.min() < 0:
        raise InputError(f"{name}: expected values >= 0 {unit}, got {array.min():g} in {source}")
    if 0 < largest < setting.possible[0] or largest > setting.possible[1]:
        raise InputError(
            f"{name}: the largest value in {source} is {largest:.12g}, expected {lowest:g} to "
            f"{highest:g} {unit}{_cause(name, array)}; convert them to {unit}"
        )
    settings = array / setting.factor
    for doubt in doubts({name: settings}):
        warnings.warn(doubt, stacklevel=3)
    return settings


def doubts(settings: Mapping[str, Float[np.ndarray, " M"]]) -> list[str]:
    """Notes on settings whose magnitude suggests another unit.

    Args:
        settings: by name, (M,) each, in the units of the models.

    Example:
        >>> doubts({"b": np.array([0.0, 0.8])}), len(doubts({"te": np.array([0.6, 0.9])}))
        ([], 1)
    """
    notes = []
    for name, values in settings.items():
        if name not in SETTINGS:
            continue
        setting, array = SETTINGS[name], np.asarray(values) * SETTINGS[name].factor
        unit, (lowest, highest), largest = setting.unit, setting.plausible, float(array.max())
        if not lowest <= float(f"{largest:.9g}") <= highest:
            notes.append(
                f"{name}: the largest value is {largest:.9g}, expected {lowest:g} to {highest:g} "
                f"{unit}{_cause(name, array)}; check that its unit is {unit}"
            )
    return notes


def _cause(name: str, values: Float[np.ndarray, " M"]) -> str:
    """What settings of an implausible magnitude probably are, in parentheses; empty if unknown."""
    setting = SETTINGS[name]
    largest, large = float(values.max()), values[values > _GE / 2]
    if name == "b" and large.size and np.all((large >= _GE) & (large < _GE + setting.possible[1])):
        cause = "GE scanners add 1e9 to b-values: subtract 1e9 from those above it"
        return f" ({cause})" if largest > _GE else f" ({cause}; or they are in s/m²)"
    lowest, highest = setting.plausible
    for unit, factor in setting.others.items():
        if lowest <= largest / factor <= highest:
            how = f"divide by {factor:g}" if factor > 1 else f"multiply by {1 / factor:g}"
            return f" (in {unit}? {how})"
    return ""


def _numbers(text: str, source: str | Path) -> list[float]:
    """The numbers of a text that holds one row or one column of them.

    Raises:
        InputError: with the line and what is wrong there, if it can be read in two ways or in none.
    """
    lines = [
        (number, stripped)
        for number, line in enumerate(text.splitlines(), start=1)
        if (stripped := _COMMENT.sub("", line).strip())
    ]
    if lines and _BRACKETS.get(lines[0][1][0]) == lines[-1][1][-1]:  # one row, however wrapped
        joined = " ".join(line for _, line in lines)
        lines = [(lines[0][0], joined[1:-1].strip())]
    rows = []
    for number, line in lines:
        where = f"{source}, line {number}"
        rows.append((where, [_number(entry, where) for entry in _row(line, where)]))
    rows = [(where, row) for where, row in rows if row]
    for where, row in rows:
        if len(row) > 1 and len(rows) > 1:
            raise InputError(
                f"{where}: has {len(row)} numbers, but there are {len(rows)} lines; expected one "
                "row or one column of numbers (a .bvec file, a table, or decimal commas?)"
            )
    return [value for _, row in rows for value in row]


def _row(line: str, where: str) -> list[str]:
    """The entries of a line; commas separate them, unless they could be decimal commas."""
    parts = re.split(r"\s*[,;]\s*|\s+", line)
    if parts[-1] == "":  # a separator at the end
        parts.pop()
    if parts == [""]:
        return []
    if "" in parts:
        raise InputError(f"{where}: an entry is missing between two separators")
    pieces = re.split(r"\s*;\s*|\s*,\s+|\s+,\s*|\s+", line.rstrip(",; \t"))
    if len(pieces) < len(parts):  # some commas have no blank beside them
        commas = {piece.count(",") for piece in pieces}
        loose = re.sub(r"\s*,\s*", "", line)
        mixed = re.search(r"\s|;", loose.rstrip(";")) is not None
        padded = any(re.fullmatch(r"0\d+", part) for part in parts)
        if mixed or padded or (len(pieces) > 1 and commas == {1}):
            raise InputError(
                f"{where}: the commas in {_shown(line)} could be decimal commas or separators; "
                "write decimals with points, and separate numbers by blanks"
            )
    return parts


def _number(entry: object, where: object) -> float:
    if isinstance(entry, str) and _NUMBER.fullmatch(entry.strip()):
        return float(entry)
    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
        try:
            return float(entry)
        except OverflowError:
            pass
    raise InputError(f"{where}: expected numbers, got {_shown(entry)}")


def _shown(entry: object) -> str:
    """An entry in quotes, shortened."""
    text = repr(entry)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]}...{text[0]}"


def _is_word(entry: object) -> bool:
    return isinstance(entry, str) and not _NUMBER.fullmatch(entry.strip())


def _json_columns(path: Path) -> dict[str, list]:
    table = from_json(read_text(path), path)
    if not isinstance(table, dict) or not all(isinstance(v, list) for v in table.values()):
        raise InputError(f"{path}: expected an object of lists, such as {{'te': [10, 20, 30]}}")
    return table


def _tsv_columns(path: Path) -> dict[str, list]:
    header, *rows = list(_tsv_rows(path)) or [(0, [])]
    names = header[1]
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"{path}: expected distinct column names in its first line, got {names}")
    for number, row in rows:
        if len(row) != len(names):
            raise InputError(
                f"{path}: line {number} has {len(row)} entries, the header names {len(names)}"
            )
    return {name: [row[column] for _, row in rows] for column, name in enumerate(names)}


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    reader = csv.reader(read_text(path).splitlines(), delimiter="\t")
    try:
        for row in reader:
            entries = [entry.strip() for entry in row]
            if any(entries):
                yield reader.line_num, entries
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no table ({error})") from error
