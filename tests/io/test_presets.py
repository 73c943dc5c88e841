"""Presets: every figure fits its model and has a source; a person's own file; mistakes."""

import numpy as np
import pytest

from helpers import MODELS
from labelwise.io.presets import find_preset, presets
from labelwise.models.find import available_models
from labelwise.priors import Uniform
from labelwise.types import InputError

EVERY = [(tissue, entry) for tissue, preset in presets().items() for entry in preset.entries]
OWN = """
[[spleen]]
models = ["ivim"]
parameter = "f"
typical = [0.05, 0.3]
bounds = [0, 0.9]
"""


def test_the_tissues():
    assert set(presets()) == {
        *("liver", "kidney", "pancreas", "prostate", "breast", "brain", "muscle")
    }


@pytest.mark.parametrize(("tissue", "entry"), EVERY, ids=lambda x: getattr(x, "parameter", x))
def test_every_range_is_possible_and_has_a_source(tissue, entry):
    assert entry.typical or entry.bounds
    assert entry.reported
    assert entry.source
    assert all(doi.startswith("10.") and "/" in doi for doi in entry.source)
    for name in entry.models:
        (parameter,) = (p for p in available_models()[name].parameters if p.name == entry.parameter)
        low, high = entry.bounds or parameter.bounds
        if entry.typical:
            assert low <= entry.typical[0] < entry.typical[1] <= high
            assert entry.typical[1] <= parameter.bounds[1], "labels of trainings have these bounds"


@pytest.mark.parametrize("tissue", presets())
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_parameter_of_a_model_has_one_entry(tissue, model):
    names = {kind: name for name, kind in available_models().items()}
    name = names[type(model)]
    mine = [e.parameter for e in presets()[tissue].entries if name in e.models]
    assert len(mine) == len(set(mine))
    if mine:
        Uniform.typical(model, **presets()[tissue].typical(name))


def test_ranges_of_a_model():
    liver = find_preset("liver")
    assert liver.bounds("ivim") == {"f": (0.0, 1.0)}
    assert liver.typical("ivim")["D_slow"] == (0.65, 2.6)
    assert "D_fast" not in liver.typical("ivim_simplified")


def test_a_persons_own(tmp_path):
    path = tmp_path / "spleen.toml"
    path.write_text(OWN)
    spleen = find_preset(str(path))
    assert spleen.name == "spleen"
    assert spleen.typical("ivim") == {"f": (0.05, 0.3)}
    assert spleen.bounds("ivim") == {"f": (0.0, 0.9)}


def test_relaxation_times_of_the_source_are_inside():
    """de Bazelaire et al. 2004, 3 T."""
    times = {"liver": 809, "kidney": 1142, "pancreas": 725, "prostate": 1597, "muscle": 898}
    for tissue, t1 in times.items():
        low, high = presets()[tissue].typical("t1_vfa")["T1"]
        assert low < t1 < high
        assert np.log(high / low) < 1.2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Liver", "did you mean 'liver'"),
        ("spleen", "Known are liver, kidney, .*; your own is FILE.toml"),
    ],
)
def test_an_unknown_tissue_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        find_preset(name)


def test_a_model_without_a_range_is_refused():
    with pytest.raises(InputError, match=r"preset muscle: has no range for model adc; .* ivim"):
        find_preset("muscle").typical("adc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected entries of one tissue, \[\[NAME\]\], got 0"),
        (OWN + OWN.replace("spleen", "liver"), "got 2 .spleen, liver"),
        (OWN.replace("[0.05, 0.3]", "[0.3, 0.05]"), r"typical of f is .* expected \[low, high\]"),
        (OWN.replace("[0.05, 0.3]", "0.05"), "typical must be two numbers"),
        (OWN.replace("typical", "usual"), "there is no 'usual'; known are models, parameter"),
        ('spleen = "f"', "expected a table with a parameter"),
        (OWN.replace('["ivim"]', '"ivim"'), "models must be a list of names"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_preset(str(path))
