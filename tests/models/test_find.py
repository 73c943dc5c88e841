"""From a name to a model: built in, a user's file, a plug-in; and a sentence for every mistake."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import labelwise.models
from labelwise import ADC, IVIM, SelfStarting, SignalModel
from labelwise.models import find as discovery
from labelwise.models.find import available_models, find_model
from labelwise.types import InputError

GOOD = '''
import jax.numpy as jnp
import labelwise as lw
from labelwise import ADC
from labelwise.types import InputError
from jaxtyping import Array, Float

class Kurtosis(lw.SignalModel):
    """S = S0 exp(-b D + (b D)² K / 6)   (Jensen et al. 2005)"""
    b: Float[Array, "M"]
    parameters = (
        lw.Parameter("S0", "a.u.", (0, jnp.inf), "S_0"),
        lw.Parameter("D", "µm²/ms", (0.01, 4), "D"),
        lw.Parameter("K", "1", (0, 3), "K"),
    )

    def signal(self, s0, d, k):
        bd = self.b * d
        return s0 * jnp.exp(-bd + bd**2 * k / 6)

class Half(lw.SignalModel):
    b: Float[Array, "M"]

class Other:
    pass
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def plug_ins(monkeypatch):
    """Pretend that packages with these entry points are installed."""

    def install(**points):
        installed = [EntryPoint(k, v, discovery.ENTRY_POINT_GROUP) for k, v in points.items()]
        monkeypatch.setattr(discovery, "entry_points", lambda group: installed)

    return install


def test_built_in_models_are_called_after_their_files():
    helpers = {"__init__", "base", "check", "evaluate", "find"}
    files = {path.stem for path in Path(labelwise.models.__file__).parent.glob("*.py")}
    assert list(available_models()) == sorted(files - helpers)
    assert available_models()["ivim"] is IVIM


@pytest.mark.parametrize("name", available_models())
def test_every_available_model_is_found(name):
    assert find_model(name) is available_models()[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("IVIM", "did you mean 'ivim'"),
        ("kurtosys", "did you mean 'kurtosis'"),
        ("zzz", "Known are adc, .*ivim, .*t2_epg.*; your"),
        ("base", "Known are"),
        ("", "Known are"),
    ],
)
def test_an_unknown_name_lists_the_known(name, message):
    with pytest.raises(ValueError, match=message):
        find_model(name)


def test_a_users_file(file):
    model = find_model(f"{file}:Kurtosis")
    assert issubclass(model, SignalModel)
    assert model(np.arange(3.0)).signal(2.0, 1.0, 0.0).shape == (3,)


def test_a_users_file_in_the_working_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert find_model("my_model.py:Kurtosis").__name__ == "Kurtosis"


def test_a_users_file_may_import_a_built_in_model(file):
    assert find_model(f"{file}:ADC") is ADC


@pytest.mark.parametrize(
    ("suffix", "error", "message"),
    [
        (":Kurtosys", ValueError, "no class 'Kurtosys' in .*; it has Kurtosis$"),
        ("", ValueError, "specify the class, .*my_model.py:CLASS; it has Kurtosis$"),
        (":", ValueError, "specify the class"),
        (":Other", InputError, "expected a subclass of labelwise.SignalModel, got the class Other"),
        (":GOOD", ValueError, "no class 'GOOD'"),
        (":jnp", InputError, "expected a subclass of labelwise.SignalModel, got <module"),
        (":Half", InputError, "unfinished signal model, define parameters and signal in it"),
    ],
)
def test_what_a_file_does_not_have(file, suffix, error, message):
    with pytest.raises(error, match=message):
        find_model(f"{file}{suffix}")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.py: no such file"):
        find_model(f"{tmp_path}/nope.py:Kurtosis")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nx = (1,\n", r"line 2: SyntaxError: '\(' was never closed"),
        ("import os\n\nx = 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", "line 2: KeyError: 'k'"),
        (
            "import labelwise as lw\nclass A(lw.SignalModel):\n    parameters = [1]\n",
            r"line 2: InputError: A\.parameters: expected a tuple",
        ),
    ],
)
def test_an_error_inside_the_file_names_its_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.py, {message}"):
        find_model(f"{path}:A")


def test_a_file_without_models_says_so(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="it defines no signal model"):
        find_model(f"{path}:A")


def test_an_installed_plug_in(plug_ins):
    plug_ins(mine="labelwise.models.adc:ADC")
    assert find_model("mine") is ADC
    assert available_models()["mine"] is ADC
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        find_model("mina")


def test_a_plug_in_cannot_take_over_a_built_in_name(plug_ins):
    plug_ins(ivim="labelwise.models.adc:ADC")
    assert find_model("ivim") is IVIM
    assert available_models()["ivim"] is IVIM


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("no_such_package:Model", ValueError, "'mine' .*cannot be imported, ModuleNotFoundError"),
        ("labelwise.models.adc:Nope", ValueError, "'mine' .*cannot be imported, AttributeError"),
        ("labelwise.types:Status", InputError, "'mine' .*expected a subclass"),
        ("labelwise.models:SelfStarting", InputError, "'mine' .*unfinished signal model"),
    ],
)
def test_a_broken_plug_in_is_named(plug_ins, target, error, message):
    plug_ins(mine=target)
    with pytest.raises(error, match=message):
        find_model("mine")
    with pytest.raises(error, match=message):
        available_models()


def test_abstract_models_are_not_offered():
    assert SelfStarting not in available_models().values()
