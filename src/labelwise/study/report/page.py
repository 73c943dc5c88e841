"""The page of a study: one self-contained HTML file.

Pictures are embedded as data: URIs, style and script are inline, and its content security policy
forbids loading anything else. It is complete without its script, which adds enlarged
figures, buttons to copy text, and a button to show all parts of the claims.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from labelwise.io.pages import template
from labelwise.study.records import CERTAIN, Claim, Part, Picture, StageTime, StudyReport, Verdict

_WORDS = {  # of one, of several
    Verdict.HOLDS: ("holds", "hold"),
    Verdict.PART: ("holds in part", "hold in part"),
    Verdict.NOT: ("does not hold", "do not hold"),
    Verdict.NOISE: ("is within noise", "are within noise"),
}
_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NUMERIC = re.compile(
    r"[-+−±<≤≈~]?\s?\d[\d,.]*(e[-+]?\d+)?(\s?(±|to|-|–)\s?\d[\d,.]*)?(\s?\S{1,6})?"
)
_EMPTY = {"", "-", "–", "none", "nan", "N/A"}


def render(report: StudyReport) -> str:
    """The page as HTML; the same report gives the same characters.

    Args:
        report: everything on the page; markup in it is escaped.

    Returns:
        The text of one file, to be written as UTF-8.

    Example:
        >>> report = StudyReport("Study", "Simulated.", [], [], [], [], [], {}, "labelwise", "")
        >>> page = render(report)
        >>> page.startswith("<!doctype html>") and "<h1>Study</h1>" in page
        True
    """
    claims = list(
        zip(_anchors("claim", (c.key for c in report.claims)), report.claims, strict=True)
    )
    every = [*report.tables, *report.appendix]
    tables = list(zip(_anchors("table", (t.key for t in every)), every, strict=True))
    pictures = zip(
        _anchors("figure", (p.key for p in report.pictures)), report.pictures, strict=True
    )
    filters = (_count, _duration, _margin, _numeric, _share, _source, _tally)
    return template(__name__, *filters).render(
        report=report,
        certain=CERTAIN,
        paper=[(anchor, claim) for anchor, claim in claims if claim.section],
        own=[(anchor, claim) for anchor, claim in claims if not claim.section],
        tables=tables[: len(report.tables)],
        appendix=tables[len(report.tables) :],
        pictures=list(pictures),
        done=_duration(sum(stage.seconds for stage in report.stage_times if not stage.kept)),
        earlier=_duration(sum(stage.seconds for stage in report.stage_times if stage.kept)),
    )


def _anchors(kind: str, keys: Iterable[str]) -> list[str]:
    """Names for links, without spaces, none twice."""
    anchors: list[str] = []
    for key in keys:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", key.removeprefix(f"{kind}_"))
        ends = ("" if n == 1 else f"-{n}" for n in itertools.count(1))
        anchors.append(next(a for end in ends if (a := f"{kind}-{name}{end}") not in anchors))
    return anchors


def _count(claims: Iterable[tuple[str, Claim]]) -> Mapping[Verdict, int]:
    """How many claims have each verdict."""
    return Counter(claim.verdict for _, claim in claims)


def _tally(count: Mapping[Verdict, int]) -> str:
    """Counts in words: `"9 hold, 3 hold in part, 1 does not hold"`."""
    if len(count) == 1 and sum(count.values()) > 1:
        (verdict,) = count
        return "none holds" if verdict is Verdict.NOT else f"all {_WORDS[verdict][1]}"
    return ", ".join(f"{n} {words[n > 1]}" for v, words in _WORDS.items() if (n := count.get(v, 0)))


def _margin(part: Part) -> str:
    """Margin and standard error, with the decimals that the error leaves of three digits."""
    if not math.isfinite(part.margin):
        return "not a number"
    known = math.isfinite(part.error)
    error = part.error if known else 0.0
    power = _exponent(max(abs(part.margin), error))
    power = 0 if -4 <= power < 6 else power
    margin, error = part.margin / 10.0**power, error / 10.0**power
    places = min(_places(margin, 3), _places(error, 2)) if error else _places(margin, 3)
    shown = f"{abs(margin):,.{places}f}"
    sign = "" if not re.search("[1-9]", shown) else "−" if margin < 0 else "+"
    spread = f"{error:,.{max(places, _places(error, 1))}f}" if error else "0"
    words = f"{sign}{shown} ± {spread if known else 'unknown'}"
    return f"({words}) × 10{str(power).translate(_POWERS)}" if power else words


def _exponent(value: float) -> int:
    """The power of ten of the first digit, once rounded to three."""
    return int(f"{value:.2e}".partition("e")[2])


def _places(value: float, digits: int) -> int:
    """Decimals that show so many digits."""
    return max(0, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]))


def _duration(seconds: float) -> str:
    """Wall time in words: `"0.4 s"`, `"3 min 12 s"`, `"1 h 05 min"`."""
    if seconds < 0.05:
        return "< 0.1 s"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds) < 3600:
        return "{} min {:02d} s".format(*divmod(round(seconds), 60))
    return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))


def _share(stage: StageTime, stages: Sequence[StageTime]) -> str:
    """The length of a stage's bar, in per cent of the longest."""
    longest = max(other.seconds for other in stages)
    return f"{100 * stage.seconds / longest if longest else 0:.1f}%"


def _source(picture: Picture) -> str:
    """The picture itself as an address."""
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds numbers, which are set to the right."""
    cells = [row[column].strip() for row in rows]
    filled = [cell for cell in cells if cell not in _EMPTY]
    return bool(filled) and all(_NUMERIC.fullmatch(cell) for cell in filled)
