"""`labelwise protocols`, and networks of `train` that `map` finds, as a person types them."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from commands import complaint, run
from labelwise import ADC
from labelwise.io.protocols import protocols
from labelwise.networks import blend as module
from labelwise.networks.blend import blend_plan
from labelwise.networks.recipe import Recipe

SMALL = Recipe.every_level(signals=5000, batch=250, epochs=3, restarts=1, warmup=10)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An own cache, small trainings, and a series of a protocol in another order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        module,
        "blend_plan",
        lambda *how, **more: dataclasses.replace(blend_plan(*how, **more), recipe=SMALL),
    )
    b = [800, 0, 600, 100]
    model, rng = ADC(np.array(b) / 1000), np.random.default_rng(0)
    params = np.stack([np.full(300, 1000.0), rng.uniform(0.6, 2.4, 300)], axis=1)
    clean = np.stack([np.asarray(model.signal(*each)) for each in params])
    noisy = np.abs(clean + rng.normal(0, 25, clean.shape) + 1j * rng.normal(0, 25, clean.shape))
    nib.save(nib.Nifti1Image(noisy.reshape(10, 10, 3, 4).astype("f4"), np.eye(4)), "dwi.nii.gz")
    (tmp_path / "dwi.bval").write_text(" ".join(map(str, b)))
    return tmp_path


def mapped(out, *options):
    result = run("map", "dwi.nii.gz", "--model", "adc", "--sigma", "25", "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    with open(f"{out}/run.json", encoding="utf-8") as file:
        return json.load(file)["network"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_of_a_protocol_is_found_by_map(folder):
    result = run("train", "--protocol", "breast_adc")
    assert result.exit_code == 0, result.stderr
    (kept,) = (folder / "cache" / "networks").glob("blend-*.safetensors")
    assert str(kept) in result.stdout.replace("\n", "")
    use = mapped("maps")
    assert (use["origin"], use["path"]) == ("cache", str(kept))
    assert use["card"]["model"]["acquisition"] == {"b": [0.8, 0.0, 0.6, 0.1]}
    assert mapped("tissue", "--prior", "ADC=0.5:3")["origin"] == "trained"
    assert mapped("again")["path"] == str(kept)
    assert use["card"] == mapped("file", "--net", "maps/net.safetensors")["card"]


def test_protocols_are_listed():
    listed = json.loads(run("protocols", "--json").stdout)
    assert set(listed) == set(protocols())
    assert listed["breast_adc"]["b"] == [0, 100, 600, 800]
    shown = run("protocols").stdout
    assert "b-values in s/mm²: 0, 100, 600, 800" in shown
    assert "doi:10.1148/radiol.2018180273" in shown


def test_a_protocol_gives_the_acquisition_of_a_file():
    small = ("--signals", "2000", "--epochs", "2", "--restarts", "1", "--label", "gt")
    result = run("train", "--protocol", "prostate_adc", "--snr", "20", "--out", "net", *small)
    assert result.exit_code == 0, result.stderr
    assert module.load("net").card.acquisition["b"].tolist() == [0.0, 0.05, 0.8]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "breast"], "protocol 'breast': did you mean 'breast_adc'?"),
        (["--protocol", "breast_adc", "--te", "10,20"], "gives b of each volume; leave out"),
        (["--protocol", "breast_adc", "--snr", "20"], "is for a range, such as 5:60"),
        (["--protocol", "breast_adc", "--label", "gt"], "--label: is for a network in a file"),
        (["--protocol", "breast_adc", "--on-bound", "keep"], "--on-bound: is for a network in a"),
        (["--protocol", "breast_adc", "--model", "t2"], "model t2: needs te"),
        (["--bvals", "dwi.bval"], "--model is required without --protocol"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(folder, options, words):
    assert words in complaint("train", *options)
    assert not list(folder.glob("cache/networks/blend-*"))


def test_without_a_cache_a_file_is_required(monkeypatch):
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    assert "no cache to keep the network in" in complaint("train", "--protocol", "breast_adc")
