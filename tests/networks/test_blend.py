"""The network that `labelwise map` trains: its noise levels, its lesson, its cache."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from helpers import Offset
from labelwise import ADC, Gaussian, Rician
from labelwise.io.files import write_arrays
from labelwise.models.find import describe_model
from labelwise.networks import blend as module
from labelwise.networks.blend import blend_plan, noise_levels, trained_blend
from labelwise.networks.network import load
from labelwise.networks.recipe import Recipe
from labelwise.priors import Uniform

MODEL = ADC([0.0, 0.2, 0.5, 1.0])
NOISE = Rician()
FAST = Recipe.fast(signals=1250, batch=50, epochs=4, restarts=2, warmup=10)


def brightness(reference, n=100):
    return np.tile(reference * np.asarray(MODEL.signal(1.0, 1.0)), (n, 1))


@pytest.mark.parametrize(
    ("sigma", "low", "high"),
    [(50.0, -14, -13), (49.0, -14, -13), (1e-9, -21, -20), (1e9, -2, -1)],
)
def test_noise_levels_are_rounded_outwards_and_limited(sigma, low, high):
    levels = noise_levels(MODEL, brightness(1000.0), sigma)
    assert levels == pytest.approx((1.25**low, 1.25**high))


def test_noise_levels_enclose_those_of_the_image():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(10, 90, 1000)
    low, high = noise_levels(MODEL, brightness(1000.0, 1000), sigma)
    inside = (sigma / 1000 >= low) & (sigma / 1000 <= high)
    assert inside.mean() > 0.95
    assert low > 0.01 / 1.25**2
    assert high < 0.09 * 1.25


def test_a_level_on_a_step_is_a_range_all_the_same():
    """Once lowest and highest were equal, which is no range to simulate."""
    low, high = noise_levels(MODEL, brightness(1.0), 1.25**-10)
    assert low < high
    assert low * 0.9999 <= 1.25**-10 <= high * 1.0001


def test_bad_voxels_have_no_noise_level():
    signal = brightness(1000.0)
    expected = noise_levels(MODEL, signal, 50.0)
    signal[:40, 0] = np.resize([np.nan, 0.0, -5.0, np.inf], 40)
    assert noise_levels(MODEL, signal, np.r_[50.0 * np.ones(90), np.zeros(10)]) == expected
    with pytest.raises(ValueError, match="no voxel has a finite signal"):
        noise_levels(MODEL, np.zeros_like(signal), 50.0)


def test_a_model_without_a_scale_has_no_relative_noise():
    with pytest.raises(ValueError, match=r"Offset: no parameter scales .* --sigma"):
        blend_plan(Offset([0.0, 1.0]), NOISE, (0.01, 0.1))
    with pytest.raises(ValueError, match=r"Offset: no parameter scales .* --sigma"):
        noise_levels(Offset([0.0, 1.0]), np.ones((3, 2)), 0.1)


@pytest.fixture
def quick(monkeypatch):
    """A small recipe for the blend; and the plans that are carried out."""
    monkeypatch.setattr(
        module,
        "blend_plan",
        lambda *how, **more: dataclasses.replace(blend_plan(*how, **more), recipe=FAST),
    )
    plans, train_networks = [], module.train_networks
    monkeypatch.setattr(
        module,
        "train_networks",
        lambda plan, **how: plans.append(plan) or train_networks(plan, **how),
    )
    return plans


def told(network):
    signal = np.asarray(MODEL.signal(1.0, 1.0))[None]
    estimate = network(signal, 0.05)
    return estimate.values.tobytes(), estimate.stats["standard_error"].tobytes()


def test_a_dial_is_trained_once_and_kept(quick, tmp_path):
    levels = (1 / 50, 1 / 10)
    first, done = trained_blend(MODEL, NOISE, levels, cache=tmp_path / "cache")
    assert first.is_blend
    assert (done["cached"], len(quick)) == (False, 1)
    assert set(first.alphas.values()) == {1.0}
    assert first.ends[0].card.label["start"] == "search"
    assert first.ends[1].card.label == {"kind": "ground truth"}
    again, done = trained_blend(MODEL, NOISE, levels, cache=tmp_path / "cache")
    assert (done["cached"], len(quick)) == (True, 1)
    assert told(again) == told(first)
    other, done = trained_blend(MODEL, NOISE, levels, cache=tmp_path / "cache", seed=1)
    assert (done["cached"], len(quick)) == (False, 2)
    assert told(other) != told(first)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another network"])
def test_a_damaged_dial_is_trained_anew(quick, tmp_path, damage):
    first, done = trained_blend(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    (path,) = tmp_path.glob("blend-*.safetensors")
    assert done["path"] == str(path)
    data = path.read_bytes()
    if damage == "another network":
        first.ends[0].save(path)
    else:
        flipped = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
        path.write_bytes({"truncated": data[:-9], "flipped": flipped}[damage])
    again, done = trained_blend(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    assert (done["cached"], len(quick)) == (False, 2)
    assert told(again) == told(first)
    assert path.read_bytes() == data


@pytest.mark.parametrize("other", ["acquisition", "noise", "noise level", "prior", "seed"])
def test_the_network_of_another_plan_under_its_name_is_not_used(quick, tmp_path, other):
    levels, prior = (1 / 50, 1 / 10), Uniform.typical(MODEL)
    first, done = trained_blend(MODEL, NOISE, levels, prior, cache=tmp_path / "cache")
    others = {
        "acquisition": (ADC([0.0, 0.2, 0.5, 1.1]), NOISE, levels, prior),
        "noise": (MODEL, Gaussian(), levels, prior),
        "noise level": (MODEL, NOISE, (1 / 40, 1 / 10), prior),
        "prior": (MODEL, NOISE, levels, Uniform.typical(MODEL, ADC=(0.5, 2.0))),
        "seed": (MODEL, NOISE, levels, prior),
    }
    network, _ = trained_blend(*others[other], seed=int(other == "seed"))
    network.save(path := Path(done["path"]))
    again, done = trained_blend(MODEL, NOISE, levels, prior, cache=tmp_path / "cache")
    assert (done["cached"], done["path"]) == (False, str(path))
    assert told(again) == told(first)


@pytest.mark.parametrize("content", ["a folder", "a text", "nothing", "other arrays", "a socket"])
def test_what_is_no_network_in_the_cache_is_not_used(quick, tmp_path, content):
    first, done = trained_blend(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    path = Path(done["path"])
    path.unlink()
    if content == "a folder":
        (path / "with").mkdir(parents=True)
    elif content == "a socket":
        os.mkfifo(path)
    elif content == "other arrays":
        write_arrays(path, {"x": np.zeros(3)}, {"version": 2, "alpha": None, "networks": []})
    else:
        path.write_text({"a text": "{}" * 99, "nothing": ""}[content])
    again, done = trained_blend(MODEL, NOISE, (1 / 50, 1 / 10), cache=tmp_path)
    assert (done["cached"], len(quick)) == (False, 2)
    assert (done["path"] is None) == (content == "a folder")
    assert told(again) == told(first)


WIDE, NARROW = (1 / 80, 1 / 5), (1 / 50, 1 / 10)


def test_a_similar_network_serves_measurements_in_another_order(quick, tmp_path):
    first, done = trained_blend(MODEL, NOISE, WIDE, cache=tmp_path)
    kept = done["path"]
    order = [2, 0, 3, 1]
    turned = ADC(MODEL.b[order])
    found, done = trained_blend(turned, NOISE, NARROW, cache=tmp_path, similar=True)
    assert (done["cached"], done["path"], len(quick)) == (True, kept, 1)
    found.check_acquisition({"b": turned.b})
    assert found.card.model == describe_model(turned)
    signal = brightness(1.0, 3) * [[1.0], [0.9], [1.1]]
    expected, got = first(signal, 0.03), found(signal[:, order], 0.03)
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-5)
    np.testing.assert_allclose(got.stats["low"], expected.stats["low"], rtol=1e-4)
    found.save(tmp_path / "turned.safetensors")
    again = load(tmp_path / "turned.safetensors")
    np.testing.assert_array_equal(again(signal[:, order], 0.03).values, got.values)


@pytest.mark.parametrize(
    ("model", "noise", "levels", "more"),
    [
        (ADC([0.0, 0.0, 0.2, 0.5, 1.0]), NOISE, NARROW, {}),  # its input is a mean of two
        (ADC([0.0, 0.2, 0.5, 1.002]), NOISE, NARROW, {}),
        (MODEL, Gaussian(), NARROW, {}),
        (MODEL, NOISE, (1 / 90, 1 / 10), {}),
        (MODEL, NOISE, (1 / 50, 1 / 4), {}),
        (MODEL, NOISE, NARROW, {"prior": Uniform.typical(MODEL, ADC=(0.5, 2.0))}),
        (MODEL, NOISE, NARROW, {"seed": 1}),
        (MODEL, NOISE, NARROW, {"b_tolerance": 0.002}),
        (MODEL, NOISE, NARROW, {"intervals": True}),
        (MODEL, NOISE, NARROW, {"similar": False}),
    ],
)
def test_what_is_not_similar_is_trained(quick, tmp_path, model, noise, levels, more):
    trained_blend(MODEL, NOISE, WIDE, cache=tmp_path, intervals=False)
    how = {"cache": tmp_path, "similar": True, "intervals": False} | more
    network, done = trained_blend(model, noise, levels, **how)
    assert (done["cached"], len(quick)) == (False, 2)
    assert network.card.sigma == pytest.approx(list(quick[1].sigma))


def test_of_similar_networks_the_narrowest_is_used(quick, tmp_path):
    how = {"cache": tmp_path, "intervals": False}
    paths = [trained_blend(MODEL, NOISE, level, **how)[1]["path"] for level in (WIDE, NARROW)]
    for levels, path in [((1 / 40, 1 / 12), paths[1]), ((1 / 40, 1 / 6), paths[0])]:
        _, done = trained_blend(MODEL, NOISE, levels, similar=True, **how)
        assert (done["cached"], done["path"]) == (True, path)
    near = ADC(MODEL.b + np.array([0, 0.0008, 0, 0]))
    _, done = trained_blend(near, NOISE, NARROW, similar=True, **how)
    assert (done["cached"], done["path"]) == (True, paths[1])


def test_a_network_with_intervals_serves_without_them(quick, tmp_path):
    trained_blend(MODEL, NOISE, WIDE, cache=tmp_path)
    how = {"cache": tmp_path, "similar": True, "intervals": False}
    network, done = trained_blend(MODEL, NOISE, NARROW, **how)
    assert (done["cached"], network.interval_kinds) == (True, {})


def test_a_dial_needs_no_cache(quick, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for cache in (None, tmp_path / "file" / "cache"):
        network, done = trained_blend(MODEL, NOISE, (1 / 50, 1 / 10), cache=cache)
        assert (done["cached"], done["path"]) == (False, None)
        assert network.is_blend


def test_the_dial_s_lesson_needs_no_truth_and_knows_every_level():
    whole = blend_plan(MODEL, NOISE, (0.02, 0.1), seed=3)
    assert whole.conditioned
    assert whole.seed == 3
    assert [label.describe()["kind"] for label in whole.labels] == [
        "maximum likelihood",
        "ground truth",
    ]
    assert whole.recipe.name == "every-level"
    assert whole.normalise
