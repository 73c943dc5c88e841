"""A tiny study, run once for all tests of what comes out of it."""

import pytest

import labelwise as lw
from labelwise.study.config import Study
from labelwise.study.run import run_study

IVIM_B = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]


def tiny(**changes):
    """A study of IVIM that takes seconds."""
    known = {
        "title": "Tiny",
        "model_name": "ivim",
        "model": lw.IVIM(IVIM_B),
        "noise": lw.Rician(),
        "prior": lw.Uniform.paper(),
        "snrs": (15.0, 30.0),
        "recipe": lw.Recipe.fast(
            signals=3000, epochs=4, restarts=2, batch=50, shared_start=True, rate=5e-3
        ),
        "points": 4,
        "repeats": 24,
        "training_repeats": 12,
        "trainings": 2,
        "blend": (0.5,),
        "intervals": False,
        "noise_floor": "D_slow",
        "ill_determined": "D_fast",
    }
    return Study(**(known | changes))


def whole():
    """A tiny study with everything in it."""
    return tiny(wide=12, deep=2, intervals=True)


@pytest.fixture(scope="session")
def outcome(tmp_path_factory):
    """The folder and the outcome of a tiny study with everything in it."""
    folder = tmp_path_factory.mktemp("tiny") / "out"
    return run_study(whole(), folder, command="labelwise study run tiny.toml out")
