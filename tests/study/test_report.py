import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from labelwise.study.records import Claim, Part, Picture, StageTime, StudyReport, Table
from labelwise.study.report.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
VOID = {"br", "col", "hr", "img", "input", "link", "meta", "wbr"}
HOSTILE = "<script>alert('\"&amp;')</script>"


def png(width, height):
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.zeros((height, width, 3)), format="png")
    return buffer.getvalue()


def part(what="GT above MLE", figures="0.2 against 0.1 µm²/ms", margin=0.1, error=0.01):
    return Part(what, figures, margin, error)


def claim(key, section="4.1", parts=None, note=""):
    return Claim(key, section, f"What {key} says.", (part(),) if parts is None else parts, note)


@pytest.fixture(scope="module")
def report():
    claims = [
        claim("bias", parts=tuple(part(f"bias of D_slow, {n}", margin=n) for n in (-1, 0, 1))),
        claim("flat", "4.3.2", parts=(part("slope", margin=-1), part("range", margin=-2))),
        claim("hybrid", "4.3.4", note="At α = 0.5."),
        claim("blend", ""),
    ]
    tables = [
        Table("networks", "Table 1: networks", "As in the paper.", ["name", "Y"], [["GT", "yes"]]),
        Table("all", "All", "", ["b", *"cdefgh"], [["MLE", "0.1", "2 %", "−3", "1", "2", "1,000"]]),
    ]
    return StudyReport(
        title="A study of labels",
        lead="Simulated data.",
        settings=[("noise", "Rician"), ("SNR", "15")],
        claims=claims,
        tables=tables,
        pictures=[
            Picture(f"figure_{n:02}", f"Figure {n}: bias", f"Caption {n}.", png(n, 2), (n, 2))
            for n in (2, 3)
        ],
        stage_times=[
            StageTime("simulate", 0.26, True),
            StageTime("train", 192, False),
            StageTime("evaluate", 3903, False),
        ],
        versions={"jax": "0.8.1"},
        command="labelwise study paper.toml --out OUT",
        description='[study]\nseed = 3  # "seed"\n',
        notes=["3 % of labels were on a bound."],
    )


@pytest.fixture(scope="module")
def empty():
    return StudyReport("Empty", "Simulated.", [], [], [], [], [], {}, "labelwise study", "")


class Page(HTMLParser):
    """Checks while it reads that what is opened is closed, and gathers what the page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in <{tag}>"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> is for SVG only"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in {"td", "th", "p", "h2", "h3", "li"}:
            self.text.append(" ")

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(params=["report", "empty"])
def any_page(request):
    return Page(render(request.getfixturevalue(request.param)))


def test_everything_in_the_records_is_on_the_page(report):
    page = Page(render(report))
    words = page.words
    assert words.count(report.title) == 2
    said = [report.lead, report.command, *report.versions, *report.versions.values(), *report.notes]
    said += [text for pair in report.settings for text in pair]
    said += [text for c in report.claims for text in (c.statement, c.section, c.note, c.verdict)]
    said += [text for c in report.claims for p in c.parts for text in (p.what, p.figures)]
    said += [text for table in report.tables for row in table.rows for text in row]
    said += [text for t in report.tables for text in (t.title, t.caption, *t.columns)]
    said += [text for p in report.pictures for text in (p.title, p.caption)]
    said += [stage.stage for stage in report.stage_times]
    assert [text for text in said if text not in words] == []
    assert report.description in "".join(page.text)


def test_pictures_are_in_the_page_with_size_and_words(report):
    images = Page(render(report)).all("img")
    assert [(i["width"], i["height"]) for i in images] == [("2", "2"), ("3", "2")]
    assert [image["alt"] for image in images] == ["Figure 2: bias", "Figure 3: bias"]
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in images)


def test_verdicts_are_counted_in_words(report):
    words = Page(render(report)).words
    assert "3 claims of the paper: 1 holds, 1 holds in part, 1 does not hold." in words
    assert "1 finding beyond the paper: 1 holds." in words
    assert "3 parts: 1 holds, 1 does not hold, 1 is within noise" in words
    assert "2 parts: none holds" in words
    assert "1 part: 1 holds" in words


@pytest.mark.parametrize(
    ("margin", "error", "words"),
    [
        (0.12734, 0.0312, "+0.127 ± 0.031"),
        (-12.34, 5.6, "−12.3 ± 5.6"),
        (0.0012, 0.31, "0.00 ± 0.31"),
        (0.0110, 0.000051, "+0.0110 ± 0.00005"),
        (0.09996, 0.001, "+0.100 ± 0.001"),
        (123456, 312, "+123,456 ± 312"),
        (4.6e-7, 2.2e-8, "(+4.60 ± 0.22) × 10⁻⁷"),
        (-2e9, 1e6, "(−2.00 ± 0.001) × 10⁹"),
        (0.5, 0, "+0.500 ± 0"),
        (0.0, 0.0, "0.00 ± 0"),
        (0.5, float("nan"), "+0.500 ± unknown"),
        (float("nan"), float("nan"), "not a number"),
    ],
)
def test_margins_have_no_more_digits_than_their_errors_allow(empty, margin, error, words):
    claims = [claim("bias", parts=(part(margin=margin, error=error),))]
    page = Page(render(dataclasses.replace(empty, claims=claims)))
    assert f"margin {words} " in page.words + " "


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "< 0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (3903, "1 h 05 min"),
    ],
)
def test_wall_times_are_said_as_people_say_them(empty, seconds, words):
    page = Page(
        render(dataclasses.replace(empty, stage_times=[StageTime("train", seconds, False)]))
    )
    assert f"train {words} this run" in page.words


def test_what_was_kept_does_not_count_as_this_run(report, empty):
    words = Page(render(report)).words
    assert "This run 1 h 08 min" in words
    assert "Kept from earlier runs 0.3 s" in words
    kept = dataclasses.replace(empty, stage_times=[StageTime("simulate", 0, True)])
    assert "This run" not in Page(render(kept)).words


def test_columns_of_numbers_are_set_to_the_right(empty):
    rows = [["GT", "0.176 ± 0.002", "–", "15 h"], ["MLE", "−1,000", "3e-05", "words 15"]]
    table = Table("all", "All", "", ["network", "bias", "std", "other"], rows)
    page = Page(render(dataclasses.replace(empty, tables=[table])))
    assert [cell.get("class") for cell in page.all("td")] == ["number", "number", None] * 2


def test_nothing_in_the_records_is_taken_for_markup(report, empty):
    """Every string of every record is hostile, and the page has the same tags."""

    def hostile(value):
        if dataclasses.is_dataclass(value):
            fields = {f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return type(value)(**fields)
        if isinstance(value, str):
            return value and value + HOSTILE
        if isinstance(value, dict):
            return {hostile(k): hostile(v) for k, v in value.items()}
        return type(value)(map(hostile, value)) if isinstance(value, (list, tuple)) else value

    expected, page = Page(render(report)), Page(render(hostile(report)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in expected.tags]
    assert len(page.all("script")) == 1
    assert page.words.count(HOSTILE) > 50
    assert HOSTILE in page.all("img")[0]["alt"]


def test_ids_are_unique_and_links_lead_somewhere(any_page):
    ids = Counter(attrs["id"] for _, attrs in any_page.tags if "id" in attrs)
    assert not [name for name, times in ids.items() if times > 1 or not re.fullmatch(r"\S+", name)]
    links = [attrs["href"] for tag, attrs in any_page.tags if tag in {"a", "use"}]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    labels = [attrs["aria-labelledby"] for _, attrs in any_page.tags if "aria-labelledby" in attrs]
    assert set(labels) <= set(ids)


def test_the_same_key_twice_makes_two_places(empty):
    keys = ("a b", "a-b", "a b", "a-b-2")
    page = Page(render(dataclasses.replace(empty, claims=[claim(key) for key in keys])))
    assert [body["id"] for body in page.all("tbody") if "id" in body] == [
        "claim-a-b",
        "claim-a-b-2",
        "claim-a-b-3",
        "claim-a-b-2-2",
    ]


def test_nothing_is_loaded_from_elsewhere(any_page, report):
    loads = [
        value
        for tag, attrs in any_page.tags
        for name, value in attrs.items()
        if (name in {"src", "srcset", "data", "poster"} or (name == "href" and tag != "a"))
    ]
    assert all(value.startswith(("data:", "#")) for value in loads)
    assert not re.search(r"@import|url\(", render(report))
    (policy,) = (m["content"] for m in any_page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_structure_is_said_to_those_who_listen(any_page):
    assert any_page.all("html") == [{"lang": "en"}]
    assert len(any_page.all("h1")) == len(any_page.all("main")) == len(any_page.all("nav")) == 1
    assert len(any_page.all("caption")) == len(any_page.all("table"))
    assert len(any_page.all("figcaption")) == len(any_page.all("figure"))
    assert all(cell.get("scope") in {"row", "col"} for cell in any_page.all("th"))


def test_what_is_empty_leaves_no_heading(empty):
    page = Page(render(empty))
    assert not {"table", "figure", "dialog", "details"} & {tag for tag, _ in page.tags}
    assert "Notes" not in page.words
    assert "Figures" not in page.words
    assert "What was run" not in page.words


def test_tables_to_look_things_up_in_come_after_the_figures(report):
    page = render(dataclasses.replace(report, appendix=[report.tables[0]]))
    assert page.index('id="figures"') < page.index('id="numbers"')
    assert page.count(f'<h3 id="title-of-table-{report.tables[0].key}') == 2


def test_the_same_report_gives_the_same_page(report):
    assert render(report) == render(report)
    assert render(report).startswith("<!doctype html>")


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "back"),
    [
        *((ink, back) for ink in ("ink", "soft", "accent") for back in ("page", "card")),
        *((kind, f"{kind}-back") for kind in ("holds", "part", "not", "noise")),
        *((kind, "card") for kind in ("holds", "part", "not", "noise")),
    ],
)
def test_words_stand_out_from_what_is_behind_them(empty, scheme, ink, back):
    """WCAG AA asks for a contrast of 4.5."""
    blocks = re.findall(r":root \{(.*?)\}", render(empty), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", blocks[scheme == "dark"]))
    dim, bright = sorted((luminance(colours[ink]), luminance(colours[back])))
    assert (bright + 0.05) / (dim + 0.05) >= 4.5


PROBE = """<script>addEventListener("load", () => {
  const box = document.getElementById("enlarged");
  const found = {
    images: [...document.images].map((image) => image.naturalWidth),
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    buttons: [...document.querySelectorAll("button.button")].map((one) => one.textContent),
  };
  document.querySelector("button.plate").click();
  found.opened = box.open;
  box.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
  found.shown = box.querySelector("p").textContent;
  box.querySelector("img").click();
  found.closed = !box.open;
  document.querySelector("#claims button").click();
  found.details = [...document.querySelectorAll("#claims details")].map((one) => one.open);
  parent.document.documentElement.dataset.found = JSON.stringify(found);
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_a_complaint(report, tmp_path, width):
    framed = html.escape(render(report).replace("</body>", PROBE))  # no window is so narrow
    path = tmp_path / "report.html"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><iframe style="width: {width}px; border: 0"'
        f' srcdoc="{framed}"></iframe>',
        encoding="utf-8",
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        " --disable-background-networking --disable-component-update --disable-dev-shm-usage"
        f" --enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    )
    command = [CHROMIUM, *flags.split(" "), "--dump-dom", path.as_uri()]
    run = subprocess.run(command, capture_output=True, timeout=120, encoding="utf-8", check=False)
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(re.match(r'(?s).*?<html data-found="(.*?)"', run.stdout)[1]))
    assert found["width"] == width
    assert found["wide"] <= width
    assert found["images"] == [2, 3]
    assert found["opened"]
    assert found["shown"] == "Figure 3: bias (2 of 2)"
    assert found["closed"]
    assert found["buttons"] == ["Show all parts", "Copy", "Copy"]
    assert found["details"] == [True] * 3
