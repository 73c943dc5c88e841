"""An interrupt ends every command with one sentence and 128 + its number, and leaves nothing."""

import re
import signal
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from labelwise.cli.main import app

INTERRUPT = """
import os, signal, sys

module, number = sys.argv[1:3]
del sys.argv[1:3]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Finder())
from labelwise.__main__ import main
CODE
main()
"""
MODEL = """
import os, signal, sys
import numpy as np
from labelwise import Parameter, SignalModel, per_measurement
from jaxtyping import Array, Float

calls = 0


class Mine(SignalModel):
    b: Float[Array, " M"] = per_measurement()
    parameters = (Parameter("S0", "1", (0.0, float("inf"))), Parameter("ADC", "1", (0.0, 5.0)))
    differentiable = False

    def signal(self, S0, ADC):
        global calls
        calls += 1
        if calls > LIMIT:
            END
        return np.asarray(S0 * np.exp(-np.asarray(self.b) * ADC))
"""
FIT = ("fit", "dwi.nii.gz", "--bvals", "dwi.bval", "--model", "mine.py:Mine", "--sigma", "10")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    b = np.array([0.0, 0.0, 0.5, 1.0])
    signal = 1000 * np.exp(-b * np.linspace(0.5, 2, 6).reshape(3, 2, 1, 1))
    nibabel.save(nibabel.Nifti1Image(signal.astype("f4"), np.eye(4)), "dwi.nii.gz")
    (tmp_path / "dwi.bval").write_text("0 0 500 1000")
    return tmp_path


def own_model(folder, limit, end):
    text = MODEL.replace("LIMIT", str(limit)).replace("END", end)
    if limit == 0:
        text += f"\n{end}\n"
    (folder / "mine.py").write_text(text)


def ended(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("module", ["labelwise.cli.main", "typer", "numpy", "jax"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_imports_is_a_sentence(module, number):
    done = ended(INTERRUPT.replace("CODE", ""), module, int(number), "models")
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert done.returncode == 128 + number
    assert done.stderr == f"labelwise: stopped by {name}\n"


@pytest.mark.parametrize("module", ["labelwise.mapping.images", "nibabel", "scipy.special"])
def test_an_interrupt_of_the_imports_of_a_command_is_a_sentence(module, folder):
    own_model(folder, 10**9, "pass")
    done = ended(INTERRUPT.replace("CODE", ""), module, int(signal.SIGINT), *FIT, "--out", "o")
    assert (done.returncode, done.stderr) == (130, "labelwise: stopped by Ctrl-C\n")
    assert not (folder / "o").exists()


def test_an_interrupt_that_a_library_drops_is_none_the_less_one(folder):
    drop = """
import contextlib, labelwise.cli.main
def show(listed):
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
labelwise.cli.main.show_models = show
"""
    done = ended(INTERRUPT.replace("CODE", drop), "none", 2, "models")
    assert (done.returncode, done.stderr) == (130, "labelwise: stopped by Ctrl-C\n")


def test_an_interrupt_of_a_garbage_collection_is_sent_again(folder):
    drop = """
import gc, time, labelwise.cli.main
sent = []
def collected(phase, info):
    if not sent:
        sent.append(True)
        os.kill(os.getpid(), signal.SIGINT)
def show(listed):
    gc.callbacks.append(collected)
    gc.collect()
    time.sleep(60)
labelwise.cli.main.show_models = show
"""
    done = ended(INTERRUPT.replace("CODE", drop), "none", 2, "models")
    assert (done.returncode, done.stderr) == (130, "labelwise: stopped by Ctrl-C\n")


@pytest.mark.parametrize("ignored", ["SIGHUP", "SIGINT"])
def test_a_signal_that_is_ignored_stays_ignored(ignored):
    code = f"import signal; signal.signal(signal.{ignored}, signal.SIG_IGN)" + INTERRUPT
    number = getattr(signal, ignored)
    done = ended(code.replace("CODE", ""), "typer", int(number), "--version")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_of_a_fit_leaves_nothing(number, folder):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests were started with this signal ignored, as by nohup")
    own_model(folder, 900, f"os.kill(os.getpid(), {int(number)})")
    done = ended(INTERRUPT.replace("CODE", ""), "none", 2, *FIT, "--out", "o", "--threads", 2)
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1].startswith("labelwise: stopped by ")
    assert "Traceback" not in done.stderr
    assert not (folder / "o").exists()


@pytest.mark.parametrize("limit", [0, 1, 900])
@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("sys.exit(0)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("raise ValueError('no table for that\\\\nsee there')", "ValueError: no table for that"),
        ("raise OSError(2, 'gone')", "FileNotFoundError: .*gone"),
        ("raise EOFError", "EOFError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise MemoryError", "MemoryError"),
        ("[][1]", "IndexError"),
    ],
)
def test_a_model_that_ends_or_raises_is_a_sentence_with_its_line(limit, end, words, folder):
    own_model(folder, limit, end)
    result = CliRunner().invoke(app, [*FIT, "--out", "o", "--quiet"])
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("\n") == 1
    line = 22 if limit == 0 else 19
    assert re.search(rf"(mine\.py, line {line}: |Mine: 1 wrong .*){words}", result.stderr)
    assert not (folder / "o").exists()


def test_a_model_that_raises_an_interrupt_is_one(folder):
    own_model(folder, 900, "raise KeyboardInterrupt")
    result = CliRunner().invoke(app, [*FIT, "--out", "o", "--quiet"])
    assert (result.exit_code, result.stderr) == (130, "labelwise: stopped by Ctrl-C\n")
    assert not (folder / "o").exists()


def test_a_lack_of_memory_is_the_persons(monkeypatch):
    def full():
        raise MemoryError("Unable to allocate 8 PiB")

    monkeypatch.setattr("labelwise.models.find.available_models", full)
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 2
    assert result.stderr == "labelwise: not enough memory (Unable to allocate 8 PiB)\n"
