import errno
import warnings

import pytest

from labelwise.cli.tables import notes, show_comparison
from labelwise.formatting import number, sentence
from labelwise.models import IVIM
from labelwise.phantoms.abdomen import Comparison


def test_a_note_is_shown_once_and_other_kinds_of_warning_not_at_all(capsys):
    with notes():
        for message in ("b is large [s/mm²]", "b is large [s/mm²]", "sigma differs"):
            warnings.warn(message, stacklevel=1)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "note: b is large [s/mm²]\nnote: sigma differs\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file", "dwi.bval"), "dwi.bval: No such file"),
        (OSError("maps: no room"), "maps: no room"),
    ],
)
def test_an_error_is_one_sentence(error, words):
    assert sentence(error) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0099999998, "0.0100"),
        (-1.5, "-1.50"),
        (99.99, "100"),
        (12345.6, "12,300"),
        (1e7, "1e+07"),
        (float("nan"), "none"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_comparison_fits_80_columns_with_every_tissue_named(capsys, monkeypatch):
    """Once the names were squeezed out by the numbers."""
    monkeypatch.setenv("COLUMNS", "80")
    truths = (1234.5, 0.25, 0.85, 45.5)
    show_comparison(
        [
            Comparison(tissue, parameter, truth, (0.98 * truth, 1.02 * truth), (truth / 9,) * 2)
            for tissue in ("pancreas", "marrow")
            for parameter, truth in zip(IVIM.parameters, truths, strict=True)
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("pancreas") for line in lines) == 2
    assert sum("1,230 1,210 1,260" in line for line in lines) == 2
    assert max(map(len, lines)) <= 80
