"""The results of a study as records: claims with verdicts, tables, pictures, times.

`report` makes a page of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from labelwise.types import InputError

CERTAIN = 2.0
"""How many standard errors a figure must be away from 0 to count as more than noise."""


class Verdict(StrEnum):
    """Whether a claim is confirmed."""

    HOLDS = "holds"
    NOT = "does not hold"
    NOISE = "within noise"
    PART = "holds in part"


@dataclass(frozen=True)
class Part:
    """One comparison that a claim makes: it holds if the margin is above 0.

    Args:
        what: what is compared, in words: `"D_slow, SNR 15: |bias| of GT above MLE's"`.
        figures: the figures compared, in words: `"0.176 against 0.049 µm²/ms"`.
        margin: by how much the claim holds, negative where it does not; the mean over trainings.
        error: of the margin; twice it is half of a 95 % interval.

    Example:
        >>> Part("GT's std below MLE's", "0.2 against 0.5", margin=0.3, error=0.01).verdict
        <Verdict.HOLDS: 'holds'>
    """

    what: str
    figures: str
    margin: float
    error: float

    @property
    def verdict(self) -> Verdict:
        """Whether the margin is above, below or within noise of 0; NaN counts as noise."""
        if not (math.isfinite(self.margin) and abs(self.margin) > CERTAIN * self.error):
            return Verdict.NOISE
        return Verdict.HOLDS if self.margin > 0 else Verdict.NOT


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or an additional one, with its evaluation.

    Args:
        key: a short name for links: `"bias-variance"`.
        section: where it is made: `"4.1"`; `""` for what the paper does not claim.
        statement: the claim in one sentence.
        parts: the comparisons that it consists of.
        note: a remark for the reader.

    Raises:
        InputError: if there is no part.
    """

    key: str
    section: str
    statement: str
    parts: tuple[Part, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError(f"claim {self.key}: expected at least one part to judge, got none")

    @property
    def verdict(self) -> Verdict:
        """Of all parts together."""
        verdicts = {part.verdict for part in self.parts}
        if len(verdicts) == 1:
            return verdicts.pop()
        if Verdict.HOLDS in verdicts:
            return Verdict.PART
        return Verdict.NOT if Verdict.NOT in verdicts else Verdict.NOISE

    @property
    def count(self) -> Mapping[Verdict, int]:
        """How many parts have each verdict."""
        return {v: n for v in Verdict if (n := sum(part.verdict is v for part in self.parts))}


@dataclass(frozen=True)
class Table:
    """Rows of text under column titles.

    Args:
        key: a short name for links.
        title: what it is.
        caption: how to read it.
        columns: their titles.
        rows: a cell for each column.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        key: its file's name without the ending: `"figure_02"`.
        title: `"Figure 2: performance at SNR 15"`.
        caption: what it shows, and what differs from the paper.
        png: the picture.
        size: its width and height in pixels.
    """

    key: str
    title: str
    caption: str
    png: bytes = field(repr=False)
    size: tuple[int, int]


@dataclass(frozen=True)
class StageTime:
    """The wall time of a stage, and whether its result was kept from an earlier run.

    Args:
        stage: its name.
        seconds: wall time, in the run that computed it.
        kept: whether the result of an earlier run was used.
    """

    stage: str
    seconds: float
    kept: bool


@dataclass(frozen=True)
class StudyReport:
    """Everything on the page.

    Args:
        title: of the page.
        lead: one or two sentences beneath it; `simulated` data must be named here.
        settings: what was run: name and value.
        claims: the claims and their verdicts.
        tables: Table 1 and other tables that come before the figures.
        pictures: the figures in order.
        stage_times: the stages in order.
        versions: of what it was made with.
        command: what to type to make it again.
        description: the TOML of the study.
        notes: departures from the paper, excluded voxels, warnings.
        appendix: reference tables after the figures.
    """

    title: str
    lead: str
    settings: Sequence[tuple[str, str]]
    claims: Sequence[Claim]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    stage_times: Sequence[StageTime]
    versions: Mapping[str, str]
    command: str
    description: str
    notes: Sequence[str] = ()
    appendix: Sequence[Table] = ()
