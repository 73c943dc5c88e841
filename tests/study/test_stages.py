"""What a study keeps: whole stages, once made, and none of what was interrupted."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import labelwise as lw
from helpers import Fixed
from labelwise.io.staging import MARK, PARTIAL
from labelwise.networks.labels import GroundTruth
from labelwise.study.stages import opened

RECIPE = lw.Recipe.fast(signals=400, epochs=3, restarts=1, batch=50)


def quiet(what, done, total, words):
    pass


def numbers():
    values = {"value": ("x", np.arange(3.0)), "count": ("x", np.arange(3))}
    coords = {"x": ("x", [0.1, 0.2, 0.3], {"unit": "ms"}), "name": ("x", ["a", "b", "c"])}
    return xr.Dataset(values, coords, {"sigma": 0.5, "why": "a test"})


def lesson(seed=0):
    model = lw.ADC([0.0, 0.5, 1.0])
    prior = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.5, 2.5)})
    return lw.TrainingPlan(model, lw.Rician(), prior, 0.05, (GroundTruth(),), RECIPE, seed=seed)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_stage_is_made_once(tmp_path):
    with opened(tmp_path, quiet) as stages:
        first = stages.dataset("numbers", {"of": 1}, numbers)
    with opened(tmp_path, quiet) as stages:
        again = stages.dataset("numbers", {"of": 1}, lambda: pytest.fail("made again"))
        (stage,) = stages.stage_times
    assert stage.kept
    assert first.identical(again)
    assert first.identical(numbers().assign(value=numbers()["value"].astype(np.float32)))
    assert first["x"].attrs == {"unit": "ms"}


def test_another_content_is_another_stage(tmp_path):
    with opened(tmp_path, quiet) as stages:
        stages.dataset("numbers", {"of": 1}, numbers)
        other = stages.dataset("numbers", {"of": 2}, lambda: numbers()[["value"]] + 1)
    assert other["value"].values.tolist() == [1, 2, 3]


def test_a_damaged_stage_is_made_again(tmp_path):
    with opened(tmp_path, quiet) as stages:
        first = stages.dataset("numbers", {}, numbers)
    (result,) = tmp_path.glob("numbers-*/result.safetensors")
    result.write_bytes(result.read_bytes()[:-1])
    with opened(tmp_path, quiet) as stages:
        again = stages.dataset("numbers", {}, numbers)
        assert not stages.stage_times[0].kept
    assert first.identical(again)


def test_the_result_of_another_stage_under_its_name_is_made_again(tmp_path):
    with opened(tmp_path, quiet) as stages:
        first = stages.dataset("numbers", {"of": 1}, numbers)
        stages.dataset("numbers", {"of": 2}, lambda: numbers() * 2)
    one, two = sorted(tmp_path.glob("numbers-*"), key=lambda path: path.stat().st_mtime_ns)
    for name in ("stage.json", "result.safetensors"):
        (one / name).write_bytes((two / name).read_bytes())
    with opened(tmp_path, quiet) as stages:
        again = stages.dataset("numbers", {"of": 1}, numbers)
        assert not stages.stage_times[0].kept
    assert first.identical(again)


def test_the_networks_of_another_stage_are_trained_again(tmp_path):
    with opened(tmp_path, quiet) as stages:
        first = stages.networks("a", [(lesson(0), ["a"])])["a"]
        (place,) = tmp_path.glob("plan-*")
        other = stages.networks("b", [(lesson(1), ["b"])])["b"]
        other.save(place / "00.safetensors")
        again = stages.networks("a", [(lesson(0), ["a"])])["a"]
    signal = np.array([[1.0, 0.7, 0.5]])
    assert again(signal, 0.05).values.tobytes() == first(signal, 0.05).values.tobytes()
    assert again(signal, 0.05).values.tobytes() != other(signal, 0.05).values.tobytes()


def test_what_fails_leaves_no_stage(tmp_path):
    def fail():
        raise RuntimeError("power cut")

    with opened(tmp_path, quiet) as stages, pytest.raises(RuntimeError):
        stages.dataset("numbers", {}, fail)
    assert not list(tmp_path.glob("numbers-*"))


def test_leftovers_of_a_killed_run_go(tmp_path):
    leftover = tmp_path / f"{PARTIAL}abc"
    leftover.mkdir()
    (leftover / MARK).touch()
    (leftover / "half").write_text("x")
    with opened(tmp_path, quiet):
        assert not leftover.exists()


def test_one_run_at_a_time(tmp_path):
    with (
        opened(tmp_path / "stages", quiet),
        pytest.raises(FileExistsError, match="another study is running"),
        opened(tmp_path / "stages", quiet),
    ):
        pass


def test_lessons_side_by_side_are_those_one_by_one(tmp_path):
    both = [(lesson(0), ["a"]), (lesson(1), ["b"])]
    with opened(tmp_path / "one", quiet) as stages:
        together = stages.networks("both", both)
        assert len(stages.stage_times) == 1
    with opened(tmp_path / "two", quiet) as stages:
        apart = stages.networks("a", both[:1]) | stages.networks("b", both[1:])
    assert list(together) == ["a", "b"]
    for name, network in together.items():
        for one, other in zip(
            network.members[0].weights, apart[name].members[0].weights, strict=True
        ):
            assert np.array_equal(one[0], other[0])


def test_a_lesson_that_fails_ends_its_neighbours(tmp_path):
    """The first would run for very long; the second cannot be taught at all."""
    long = dataclasses.replace(lesson(0), recipe=dataclasses.replace(RECIPE, epochs=100_000))
    model = lw.ADC([0.0, 0.5, 1.0])
    bad = dataclasses.replace(lesson(1), labels=(Fixed(np.full((400, 2), np.nan), name="none"),))
    assert bad.model.parameters == model.parameters
    with opened(tmp_path, quiet) as stages, pytest.raises(ValueError, match="usable none label"):
        stages.networks("both", [(long, ["a"]), (bad, ["b"])])
    assert not list(tmp_path.glob("lesson-*"))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from study.test_stages import lesson
from labelwise.study.stages import opened

def tell(what, done, total, words):
    if "training" in what and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(Path({folder!r}), tell) as stages:
    stages.networks("nets", [(lesson(), ["net"])])
"""


def test_a_training_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    folder, tests = tmp_path / "killed", Path(__file__).parents[1]
    script = textwrap.dedent(KILLED).format(folder=str(folder), tests=str(tests))
    ended = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False
    )
    assert ended.returncode == -9
    assert list(folder.glob(".training-*"))
    seen = []

    def tell(what, done, total, words):
        if "training" in what and "intervals" not in what:
            seen.append(done)

    with opened(folder, tell) as stages:
        resumed = stages.networks("nets", [(lesson(), ["net"])])["net"]
    assert seen == [0, 3]  # compiling, then the last of three epochs
    with opened(tmp_path / "whole", quiet) as stages:
        whole = stages.networks("nets", [(lesson(), ["net"])])["net"]
    resumed.save(tmp_path / "a")
    whole.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not list(folder.glob(".training-*"))
