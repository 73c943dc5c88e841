"""Absurd numbers: a sentence before work starts, from Python, as options and in a study's file."""

import dataclasses

import jax
import numpy as np
import pytest

import labelwise as lw
from commands import complaint
from labelwise import limits
from labelwise.limits import check_memory, check_sigma, check_whole
from labelwise.networks.plan import labels_named
from labelwise.priors import Uniform
from labelwise.study.config import paper, read_study
from labelwise.types import InputError

MODEL = lw.ADC([0.0, 0.5, 1.0])
DIGITS = "9" * 50


@pytest.mark.parametrize("value", [0, -1, 10**18, 2**64, 1.0, True, None, "3", float("nan")])
def test_what_is_no_whole_number_within_its_limits_is_refused(value):
    with pytest.raises(InputError, match=r"^recipe: depth: expected a whole number from 1 to 64"):
        check_whole("depth", value, "recipe")


@pytest.mark.parametrize("value", [1, 64, np.int32(3)])
def test_limits_are_included(value):
    check_whole("depth", value)


def test_a_number_of_many_digits_is_a_short_message():
    with pytest.raises(InputError) as error:
        check_whole("seed", 10**5000)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize("sigma", [1e-50, 0.0, 1e4, float("nan"), float("inf"), (1e-3, 1e9)])
def test_noise_beyond_every_use_is_refused(sigma):
    with pytest.raises(InputError, match=r"sigma: expected noise for an SNR from 0\.001 to"):
        check_sigma(sigma)


def test_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 8e9)
    check_memory(7.9e9, "it", "less")
    with pytest.raises(InputError, match=r"it: needs about 12 GB of memory, .* 8 GB; less"):
        check_memory(12.3e9, "it", "less")
    monkeypatch.setattr(limits, "_memory", lambda: None)
    check_memory(1e30, "it", "less")


RECIPES = [
    *({"signals": 10**12}, {"signals": 10**9}, {"batch": 10**12}, {"epochs": 10**18}),
    *({"restarts": 10**9}, {"width": 10**7}, {"depth": 10**5}, {"patience": 10**18}),
    *({"warmup": 10**30}, {"width": 0}, {"width": 4096, "depth": 64, "restarts": 1000}),
]


@pytest.mark.parametrize("change", RECIPES, ids=str)
def test_an_absurd_recipe_is_refused_before_work_starts(change, monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 32e9)
    monkeypatch.setattr("labelwise.networks.train.simulate", lambda *a: pytest.fail("started"))
    with pytest.raises(InputError, match=r"recipe: |signals: needs about"):
        lw.train(MODEL, snr=20, recipe=lw.Recipe.fast(**change))
    options = [word for name, value in change.items() for word in (f"--{name}", str(value))]
    if not {"batch", "patience", "warmup"} & set(change) and change != {"width": 0}:
        monkeypatch.setattr("labelwise.cli.options.Acquisition.model", lambda self, *_: MODEL)
        words = complaint("train", "--model", "adc", "--snr", "20", "--out", "n", *options)
        assert "expected a whole number from" in words or "of memory" in words


ABSURD = {
    "max_iterations": lambda: lw.MaximumLikelihood(MODEL, lw.Rician(), max_iterations=10**18),
    "threads": lambda: lw.MaximumLikelihood(MODEL, lw.Rician(), threads=10**9),
    "coils": lambda: lw.NoncentralChi(10**9),
    "points": lambda: lw.Grid.over(Uniform.typical(MODEL), points=10**9),
    "seed": lambda: lw.train(MODEL, snr=20, seed=2**64),
    "repeats": lambda: lw.evaluate(
        {"MLE": lw.MaximumLikelihood(MODEL, lw.Rician())},
        *(MODEL, lw.Rician(), 0.1, lw.Grid({"S0": [1.0], "ADC": [0.5, 1.0]}), 10**12),
        jax.random.key(0),
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_number_from_python_is_refused(name):
    with pytest.raises(InputError, match=rf"{name}: expected a whole number from"):
        ABSURD[name]()


def test_a_grid_of_more_points_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 32e9)
    grid = lw.Grid.over(Uniform.typical(MODEL), points=10_000)
    fit = lw.MaximumLikelihood(MODEL, lw.Rician())
    with pytest.raises(InputError, match=r"evaluating 100,000,000 grid points .* choose fewer"):
        lw.evaluate({"MLE": fit}, MODEL, lw.Rician(), 0.1, grid, 10, jax.random.key(0))


def test_more_voxels_than_memory_are_not_simulated(monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 32e9)
    with pytest.raises(InputError, match="simulating 1,000,000,000,000 voxels: needs about"):
        lw.simulate(MODEL, lw.Rician(), Uniform.typical(MODEL), 0.1, 10**12, jax.random.key(0))


@pytest.mark.parametrize("snr", [1e50, 1e-50, (1e-300, 20)])
def test_an_absurd_snr_is_refused(snr):
    with pytest.raises(InputError, match="sigma: expected noise for an SNR"):
        lw.train(MODEL, snr=snr)


def test_coils_beyond_the_limit_are_named_in_an_option():
    with pytest.raises(InputError, match=r"noise .*: coils: expected .* from 1 to 256, got 10+$"):
        labels_named("mle-noncentral-chi:1000000000", MODEL, lw.Rician())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed = 18446744073709551616", "seed must be below"),
        (f"seed = {'9' * 5000}", r"not valid TOML \(.*digits"),
        (f"snr = [{DIGITS}.0]", "sigma: expected noise for an SNR"),
        ("levels = [1e-40, 0.1]", "sigma: expected noise for an SNR"),
        ("[networks]\nwide = 10000000", "wide: expected"),
        ("[networks]\ndeep = 100000", "deep: expected"),
        ("[networks]\nown_weight = inf", "own_weight must be"),
        ("[training]\nsignals = 1000000000000", "signals: expected"),
        ("[training]\nsignals = 1000000000", "needs about .* GB of memory"),
        ("[training]\ntrainings = 1000000000", "trainings: expected"),
        ("[training]\nwidth = 10000000", "width: expected"),
        ("[training]\ndepth = 100000", "depth: expected"),
        ("[training]\nepochs = 1000000000000000000", "epochs: expected"),
        ("[grid]\npoints = 1000000000", "points: expected"),
        ("[grid]\npoints = 9999", "grid points with .* GB of memory"),
        ("[grid]\npoints = { ADC = 1000000000 }", "points: expected"),
        ("[grid]\nrepeats = 1000000000000", "repeats: expected"),
        ("[grid]\ntraining_repeats = 1000000000000", "training_repeats: expected"),
        ('noise = "noncentral-chi:1000000000"', "coils: expected"),
    ],
)
def test_an_absurd_number_in_a_study_is_refused(line, words, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 1e9)
    top = "" if line.startswith("snr") else "snr = 15.0"
    section = line if line.startswith("[") else ""
    head = "" if section else line
    text = f'model = "adc"\n{top}\n{head}\n[acquisition]\nb = [0, 500, 1000]\n{section}\n'
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(InputError, match=rf"my\.toml.*{words}"):
        read_study(tmp_path / "my.toml")


def test_the_seed_of_a_study_may_be_the_largest():
    assert paper(seed=2**31 - 1).seed == 2**31 - 1
    with pytest.raises(InputError, match="seed must be below"):
        dataclasses.replace(paper(), seed=2**31)
