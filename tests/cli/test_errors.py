"""A person's mistake is one sentence and status 2; a bug of ours is called one, status 1."""

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import labelwise.models.find as find
from labelwise.cli.main import app
from labelwise.types import InputError

run = CliRunner().invoke


def broken(error):
    def available_models():
        raise error

    return available_models


@pytest.mark.parametrize(
    "error", [TypeError("unsupported operand"), ValueError("not enough values"), KeyError("x")]
)
def test_a_bug_is_not_dressed_up_as_the_persons_mistake(error, monkeypatch, tmp_path):
    monkeypatch.setattr(find, "available_models", broken(error))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = run(app, ["models"])
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"labelwise: a bug in labelwise ({type(error).__name__}: ")
    saved = Path(re.search(r"traceback is in (\S+\.txt)", line)[1])
    assert saved.parent == tmp_path
    text = saved.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "available_models" in text
    assert "labelwise models" in text  # what was typed


def test_a_bug_shows_its_traceback_at_once_if_asked(monkeypatch):
    monkeypatch.setattr(find, "available_models", broken(TypeError("unsupported operand")))
    monkeypatch.setenv("LABELWISE_DEBUG", "1")
    result = run(app, ["models"])
    assert isinstance(result.exception, TypeError)


def test_a_bug_is_reported_where_no_traceback_can_be_saved(monkeypatch):
    monkeypatch.setattr(find, "available_models", broken(TypeError("unsupported operand")))

    def full(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.mkstemp", full)
    result = run(app, ["models"])
    assert result.exit_code == 1
    assert "LABELWISE_DEBUG=1" in result.stderr


@pytest.mark.parametrize("error", [InputError("sigma: what,\n and what instead"), OSError(28, "x")])
def test_a_persons_mistake_is_one_sentence(error, monkeypatch):
    monkeypatch.setattr(find, "available_models", broken(error))
    result = run(app, ["models"])
    assert result.exit_code == 2
    assert "bug" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
