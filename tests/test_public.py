"""The public interface: what is there, what importing it costs, how it is printed."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

import labelwise as lw
from helpers import MODELS

MODEL, NOISE = lw.IVIM(np.linspace(0, 1, 200)), lw.Rician()
PRIOR = lw.Uniform.paper()
FITTED = lw.MLE(MODEL, NOISE)
TISSUE = lw.Tissue({"f": (0.1, 0.2)})
ROWS = np.random.default_rng(0).uniform(size=(1000, 4))
INSTANCES = [
    *(*MODELS, NOISE, lw.Gaussian(), lw.NoncentralChi(4)),
    *(PRIOR, lw.Empirical(ROWS, PRIOR.names), lw.Grid.over(PRIOR), lw.Normal(1, 2), TISSUE),
    *(lw.Recipe.fast(), FITTED, lw.GroundTruth(), lw.Mix(0.5, FITTED, lw.GroundTruth())),
    *(lw.SelfSupervised(NOISE), lw.MaximumLikelihood(MODEL, NOISE)),
    lw.FromEstimator(lw.MaximumLikelihood(MODEL, NOISE), {"kind": "fit"}),
    lw.TrainingPlan(MODEL, NOISE, PRIOR, (1 / 40, 1 / 10), (FITTED, lw.GroundTruth())),
    lw.Voxels(np.ones((1000, 200)), np.ones(1000), ROWS),
    lw.Estimate(ROWS, np.ones(1000, int), {}, MODEL.parameters),
    *(lw.Rmse(("f",), TISSUE), lw.Detection(TISSUE, TISSUE), MODEL.parameters[0]),
    lw.Status.CONVERGED,
    lw.Design((), ("f",), ("D_slow",), "Gaussian optimum", "gt", 0.1, 9, ()),
]
# A network comes from a fixture, and of the others there are no instances of their own.
NO_INSTANCES = {
    *("Network", "Estimator", "LabelSource", "InputError"),
    *("NoiseModel", "SignalModel", "SelfStarting"),
}


def test_what_is_public_is_listed():
    assert dir(lw) == sorted([*lw.__all__, "__version__"])
    assert len(set(lw.__all__)) == len(lw.__all__)
    assert isinstance(lw.__version__, str)


@pytest.mark.parametrize("name", lw.__all__)
def test_a_public_name_is_there_and_documented(name):
    thing = getattr(lw, name)
    assert thing is getattr(importlib.import_module(thing.__module__), name)
    assert (thing.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'labelwise' has no attribute 'Lesson'"):
        _ = lw.Lesson
    assert not hasattr(lw, "teach")


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_importing_it_imports_nothing_else_of_size():
    code = "import json, sys, labelwise; print(json.dumps([*sys.modules]))"
    packages = {name.split(".")[0] for name in run(code)}
    assert "labelwise" in packages
    assert not packages & {"jax", "matplotlib", "numpy", "scipy", "equinox", "xarray"}


def test_a_name_is_imported_when_it_is_used():
    code = "import json, sys\nfrom labelwise import {}\nprint(json.dumps([*sys.modules]))"
    modules = run(code.format("IVIM"))
    assert "labelwise.models.ivim" in modules
    assert not {"labelwise.networks.network", "labelwise.mapping.run", "matplotlib"} & {*modules}
    assert "labelwise.networks.network" in run(code.format("load"))


def test_every_public_class_is_printed_below():
    classes = {name for name in lw.__all__ if isinstance(getattr(lw, name), type)}
    assert {type(each).__name__ for each in INSTANCES} == classes - NO_INSTANCES


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda each: type(each).__name__)
def test_what_is_printed_is_short_and_has_no_address(instance):
    text = repr(instance)
    assert type(instance).__name__ in text
    assert len(text) < 500
    assert " object at 0x" not in text
