"""The documentation lists what there is; CI builds it."""

import re
from pathlib import Path

import labelwise as lw

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_has_every_public_name_once():
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: labelwise\.(\w+)$", text, flags=re.MULTILINE)) == lw.__all__


def test_every_decision_is_listed():
    text = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\d{4}-[^)]*)\)", text)
    assert listed == sorted(path.name for path in (DOCS / "decisions").glob("0*.md"))
