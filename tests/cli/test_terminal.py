"""Text from outside in the terminal, in figures and in records: as it is, escaped, or in ASCII."""

import io
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from commands import run, trained
from labelwise.cli.tables import notes, pasted, progress_bar, stderr, stdout
from labelwise.formatting import ASCII

OWN = """
import jax.numpy as jnp, numpy as np
from labelwise import Parameter, SignalModel, per_measurement
class M(SignalModel):
    '''S(b) in [red] \\x1b[31m.'''
    b: object = per_measurement()
    parameters = (Parameter("S0", {unit!r}, (0.0, np.inf)), Parameter("D", "[/ms]", (0.01, 4.0)))
    def signal(self, s0, d):
        return s0 * jnp.exp(-self.b * d)
"""
BYTES = os.fsdecode(b"d\xff$i$[red]\x1b[31m")  # no UTF-8, mathtext, markup and an escape sequence
ESCAPED = r"d\xff$i$[red]\x1b[31m"
FIT = ("fit", "dwi.nii.gz", "--bvals", "dwi.bval", "--sigma", "5", "--model")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small series, in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    b = np.array([0, 200, 500, 800])
    signal = 500 * np.exp(-b / 1000) * np.ones((3, 3, 1, 1))
    noisy = signal + np.random.default_rng(0).normal(0, 5, signal.shape)
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), np.eye(4)), "dwi.nii.gz")
    (tmp_path / "dwi.bval").write_text(" ".join(map(str, b)))
    return tmp_path


@pytest.mark.parametrize("unit", ["[a.u.]", "[/ms]", "[bold]", ":smile:", "\\[x]"])
def test_a_unit_in_brackets_is_no_markup(folder, unit):
    (folder / "own.py").write_text(OWN.format(unit=unit))
    result = run(*FIT, "own.py:M", "--out", "maps")
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("S0")]
    assert unit in line.split()


def test_a_unit_with_an_escape_sequence_is_escaped(folder):
    (folder / "own.py").write_text(OWN.format(unit="\x1b[31mred"))
    result = run(*FIT, "own.py:M", "--out", "maps")
    assert "\x1b" not in result.stdout
    assert r"\x1b[31mred" in result.stdout


@pytest.mark.parametrize("console", [stdout, stderr])
@pytest.mark.parametrize("bad", ["\x1b[31m", "\x9b31m", "\x07", "\r", "\u202e", "\udcff"])
def test_no_console_prints_control_characters(console, bad, capsys):
    console().print(f"a{bad}[b]c")
    printed = "".join(capsys.readouterr())
    assert bad not in printed
    assert printed.startswith("a\\")
    assert printed.endswith("[b]c\n")


def test_a_note_is_one_line_without_control_characters(capsys):
    import warnings

    with notes():
        warnings.warn("one\ntwo \x1b[31m[three]", stacklevel=1)
    assert capsys.readouterr().err == "note: one two \\x1b[31m[three]\n"


def test_progress_shows_names_as_they_are(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=120)
    monkeypatch.setattr("labelwise.cli.tables.stderr", lambda: screen)
    with progress_bar() as progress:
        progress("[/ms] \x07", 1, 2, "[red]")
    shown = screen.file.getvalue()
    assert "[/ms] \\x07" in shown
    assert "[red]" in shown


def test_files_whose_names_are_not_utf8_are_fitted(folder):
    os.rename("dwi.nii.gz", f"{BYTES}.nii.gz")
    (folder / f"{BYTES}.py").write_text(OWN.format(unit="a$u$"))
    model, out = f"{BYTES}.py:M", f"out {BYTES}"
    result = run("fit", f"{BYTES}.nii.gz", *FIT[2:], model, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"out {ESCAPED}" in result.stdout
    record = json.loads((folder / out / "run.json").read_text(encoding="utf-8"))
    assert {os.fsencode(name) for name in record["inputs"]} == {
        *(os.fsencode(f"{BYTES}{end}") for end in (".nii.gz", ".py")),
        b"dwi.bval",
    }
    assert BYTES in record["command"]
    assert "\x1b" not in (folder / out / "run.json").read_text(encoding="utf-8")
    assert (folder / out / "maps.png").exists()
    again = run("fit", f"{BYTES}.nii.gz", *FIT[2:], model, "--out", out, "--overwrite", "--json")
    assert json.loads(again.stdout)["command"].startswith("labelwise fit")


def test_a_network_whose_name_is_not_utf8_is_evaluated_and_tuned(folder):
    trained("--snr", "100", name=BYTES)
    net = f"{BYTES}.safetensors"
    result = run("map", *FIT[1:-1], "--net", net, "--out", "maps", "--quiet")
    assert result.exit_code == 0, result.stderr
    result = run("evaluate", net, "--points", "2", "--repeats", "2", "--out", "evaluation")
    assert result.exit_code == 0, result.stderr
    assert (
        f"{ESCAPED}, alpha 1"
        in json.loads((folder / "evaluation/evaluation.json").read_text())["summary"]
    )
    result = run("tune", net, "--rmse", "all", "--voxels", "100", "--points", "2", "--out", "tuned")
    assert result.exit_code == 0, result.stderr
    assert f"--net $'{ESCAPED}.safetensors' --alpha" in result.stdout


def test_options_to_be_pasted_keep_their_brackets(folder):
    trained("--snr", "100", name="net[1] [b]")
    net = "net[1] [b].safetensors"
    result = run("tune", net, "--rmse", "all", "--voxels", "100", "--points", "2", "--out", "tuned")
    assert f"--net '{net}' --alpha" in result.stdout


@pytest.mark.parametrize("word", ["a b", "[1]", "it's", "\x1b[1m", "a\\\udcff'b\u202e", "µ"])
def test_a_shell_reads_a_pasted_word(word):
    line = ["bash", "-c", f"printf %s {pasted(word)}"]
    output = subprocess.run(line, capture_output=True, check=True, env={**os.environ, "LC_ALL": ""})
    if word.isprintable() or "\u202e" not in word:
        assert output.stdout == os.fsencode(word)
    assert pasted(word).isprintable()


@pytest.mark.parametrize("command", [("models",), ("models", "--json"), ("fit", "--help")])
@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_any_encoding_of_the_terminal_will_do(encoding, command):
    result = labelwise(*command, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding)
    if "--json" in command:
        assert {each["unit"] for each in json.loads(text)["adc"]["parameters"]} == {
            *("a.u.", "µm²/ms")
        }
    else:
        assert "um^2/ms" in text or "s/mm^2" in text


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "um^2/ms +/-"), ("cp1251", "µm^2/ms ±"), ("latin-1", "µm²/ms ±")],
)
def test_only_characters_that_an_encoding_lacks_are_replaced(encoding, shown):
    assert "µm²/ms ±".encode(encoding, ASCII).decode(encoding) == shown


def test_a_locale_without_an_encoding_will_do():
    posix = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = labelwise("models", **posix)
    assert result.returncode == 0, result.stderr
    assert b"um^2/ms" in result.stdout


def labelwise(*arguments, **environment):
    """The command in a process of its own; bytes of its output."""
    return subprocess.run(
        [sys.executable, "-m", "labelwise", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environment},
    )
