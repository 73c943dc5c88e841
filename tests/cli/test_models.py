"""Constants, flip angles, directions and presets on the command line."""

import json

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from commands import complaint, run
from helpers import DIRECTIONS, valid
from labelwise.mapping import maps
from labelwise.models.evaluate import signals
from labelwise.networks.blend import blend_plan

MODELS = {
    "vfa": lw.T1VariableFlipAngle([2, 5, 10, 20], tr=12),
    "dwi": lw.IVIM(np.array([0, 0, 20, 50, 100, 200, 400, 800]) / 1000),
}
TRUTH = {"vfa": [5000.0, 900.0], "dwi": [500.0, 0.2, 1.0, 50.0]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a series of each model, in which we work."""
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, model in MODELS.items():
        signal = signals(model, np.broadcast_to(TRUTH[name], (24, len(TRUTH[name]))))
        data = np.abs(signal + rng.normal(0, 1.0, signal.shape)).reshape(4, 3, 2, -1)
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), f"{name}.nii.gz")
    (tmp_path / "dwi.bval").write_text("0 0 20 50 100 200 400 800")
    return tmp_path


def fit(image, *options):
    result = run("fit", f"{image}.nii.gz", "--sigma", "1", "--out", "maps", *options)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def median(name):
    return np.nanmedian(nib.load(f"maps/{name}.nii.gz").get_fdata())


VFA = ("--model", "t1_vfa", "--flip-angles", "2,5,10,20")


def test_a_constant_is_given_and_recorded(folder):
    fit("vfa", *VFA, "--constant", "tr=12")
    assert median("T1") == pytest.approx(900, rel=0.02)
    record = json.loads((folder / "maps" / "run.json").read_text())
    assert record["model"]["constants"] == {"tr": 12.0, "b1": 1.0}
    assert record["acquisition"]["settings"]["flip_angle"]["unit"] == "degrees"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "model t1_vfa: needs its constant tr; give --constant tr=VALUE"),
        (("--constant", "tr"), "--constant tr: expected NAME=VALUE, such as tr=15"),
        (("--constant", "te=3"), "--constant te=3: the constants of model t1_vfa are: tr, b1"),
        (("--constant", "tr=-3"), "T1VariableFlipAngle.tr: expected a positive time in ms"),
        (("--constant", "tr=12", "--bvals", "dwi.bval"), "does not use --bvals"),
    ],
)
def test_mistakes_of_constants_are_one_sentence(options, message):
    sentence = complaint("fit", "vfa.nii.gz", *VFA, *options, "--sigma", "1", "--out", "maps")
    assert message in sentence


def test_a_missing_setting_names_its_option():
    sentence = complaint("fit", "vfa.nii.gz", "--model", "t1_vfa", "--out", "maps")
    assert "needs flip_angle for each volume; give --flip-angles or an --acquisition" in sentence


def test_what_a_model_does_not_describe_is_left_out_with_a_note(folder):
    notes = fit("dwi", "--bvals", "dwi.bval", "--model", "ivim_simplified")
    assert "note: IVIMSimplified does not describe volumes 2, 3, 4 (numbered from 0)" in notes
    assert median("f") == pytest.approx(0.2, abs=0.01)
    record = json.loads((folder / "maps" / "run.json").read_text())
    assert record["acquisition"]["excluded_volumes"]["volumes"] == [2, 3, 4]


def test_a_preset_sets_bounds_and_options_win(folder):
    (folder / "own.toml").write_text(
        '[[gel]]\nmodels = ["ivim"]\nparameter = "f"\nbounds = [0.0, 0.9]\n'
        '[[gel]]\nmodels = ["ivim"]\nparameter = "D_slow"\nbounds = [0.1, 2.0]\n'
    )
    command = ("--bvals", "dwi.bval", "--model", "ivim", "--preset", "own.toml")
    fit("dwi", *command, "--bounds", "D_slow=0.2:3")
    bounds = {
        name: json.loads((folder / "maps" / f"{name}.json").read_text())["bounds"]
        for name in ("f", "D_slow", "D_fast")
    }
    assert bounds == {"f": [0.0, 0.9], "D_slow": [0.2, 3.0], "D_fast": [2.0, 300.0]}
    record = json.loads((folder / "maps" / "run.json").read_text())
    assert "own.toml" in record["inputs"]


def test_an_unsuitable_preset_is_refused_before_any_work(folder):
    command = ("fit", "dwi.nii.gz", "--bvals", "dwi.bval", "--model", "ivim", "--out", "maps")
    assert "preset 'livr': did you mean 'liver'" in complaint(*command, "--preset", "livr")
    other = (*command, "--model", "adc", "--preset", "muscle")
    assert "preset muscle: has no range for model adc" in complaint(*other)
    assert not (folder / "maps").exists()


def test_a_preset_is_the_prior_of_a_training(folder):
    small = ("--signals", "2000", "--epochs", "1", "--restarts", "1", "--label", "gt")
    command = (
        "train",
        "--model",
        "ivim",
        "--bvals",
        "dwi.bval",
        "--snr",
        "20",
        "--preset",
        "muscle",
    )
    result = run(*command, "--prior", "D_fast=10:60", *small, "--out", "n.safetensors")
    assert result.exit_code == 0, result.stderr
    prior = lw.load("n.safetensors").card.to_json()["prior"]
    ranges = prior["ranges"]
    assert ranges["f"] == [0.01, 0.245]
    assert ranges["D_fast"] == [10.0, 60.0]


def test_presets_are_listed():
    listed = valid("presets", run("presets", "--json").stdout)
    assert listed["liver"][0]["bounds"] == [0.0, 1.0]
    shown = run("presets").stdout
    assert "f  typically 0.125 to 0.5, bounds 0 to 1" in shown
    assert "doi:10.1007/s00330-010-2017-y" in shown


def directions(folder, count):
    rows = np.eye(3)[:, np.arange(count) % 3]
    text = "\n".join(" ".join(f"{value:g}" for value in row) for row in rows)
    (folder / "dwi.bvec").write_text(text)


def test_directions_must_fit_the_b_values_and_the_model(folder):
    command = ("fit", "dwi.nii.gz", "--bvals", "dwi.bval", "--out", "maps", "--sigma", "1")
    assert "give --bvecs or an --acquisition" in complaint(*command, "--model", "dti")
    directions(folder, 8)
    bvecs = ("--bvecs", "dwi.bvec")
    assert "model ivim: does not use --bvecs" in complaint(*command, "--model", "ivim", *bvecs)
    sentence = complaint(*command, "--model", "dti", *bvecs)
    assert "cannot be distinguished" in sentence or "has no effect" in sentence
    assert "DTI needs b = 0 and six directions that are not on one cone" in sentence
    directions(folder, 7)
    assert "expected 8 directions, one for each b-value, got 7" in complaint(
        *command, "--model", "dti", *bvecs
    )


def gradients(folder, *shells, of=DIRECTIONS):
    g = np.concatenate([np.zeros((3, 5)), *[of] * len(shells)], axis=1)
    b = [0] * 5 + [b for b in shells for _ in range(of.shape[1])]
    (folder / "tensor.bval").write_text(" ".join(map(str, b)))
    np.savetxt(folder / "tensor.bvec", g)
    settings = dict(zip(("gx", "gy", "gz"), g, strict=True))
    return lw.DKI(np.array(b) / 1000, **settings)


KURTOSIS = ("--model", "dki", "--bvals", "tensor.bval", "--bvecs", "tensor.bvec")


@pytest.mark.parametrize(
    ("shells", "count", "reason"),
    [
        ((1000,), 30, "cannot be distinguished"),
        ((1000, 2000), 10, "cannot be distinguished"),
        ((1000, 2000), 8, "21 measurements cannot determine 22 parameters"),
    ],
)
def test_a_kurtosis_tensor_of_a_poor_acquisition_is_refused(folder, shells, count, reason):
    model = gradients(folder, *shells, of=DIRECTIONS[:, :count])
    nib.save(nib.Nifti1Image(np.ones((4, 3, 2, len(model.b)), np.float32), np.eye(4)), "k.nii.gz")
    command = ("fit", "k.nii.gz", *KURTOSIS, "--sigma", "1", "--out", "maps")
    sentence = complaint(*command)
    assert reason in sentence
    assert "DKI needs 22 volumes or more: b = 0, and 15 directions or more at two b-" in sentence
    assert not (folder / "maps").exists()


def test_a_kurtosis_tensor_has_standard_errors_and_no_intervals(folder, monkeypatch):
    pictured, draw = [], maps.parameter_maps

    def seen(values, *rest, **options):
        pictured.extend(values)
        return draw(values, *rest, **options)

    monkeypatch.setattr(maps, "parameter_maps", seen)
    model = gradients(folder, 1000, 2000)
    tissue = [500.0, *[1.0] * 3, *[0.0] * 3, *[0.9] * 3, *[0.0] * 6, *[0.3] * 3, *[0.0] * 3]
    clean = np.broadcast_to(signals(model, np.array([tissue])), (24, len(model.b)))
    noisy = np.abs(clean + np.random.default_rng(0).normal(0, 5, clean.shape))
    image = noisy.reshape(4, 3, 2, -1).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), "k.nii.gz")
    notes = fit("k", *KURTOSIS, "--uncertainty", "interval")
    assert "up to 8 parameters, and DKI has 22, so there are standard errors only" in notes
    for name, truth in (("MD", 1.0), ("MK", 0.9), ("MKT", 0.9), ("S0", 500)):
        assert median(name) == pytest.approx(truth, rel=0.08)
        assert 0 < median(f"{name}_standard_error") < 0.2 * truth
    assert not list((folder / "maps").glob("*_low*"))
    assert pictured == ["MD", "FA", "AD", "RD", "MK", "MKT"]
    record = valid("run", (folder / "maps" / "run.json").read_text())
    assert record["model"]["class"] == "labelwise.models.dki:DKI"


def test_confidence_intervals_of_a_kurtosis_tensor_are_not_learned(folder):
    model = gradients(folder, 1000, 2000)
    small = ("--signals", "2000", "--epochs", "1", "--restarts", "1", "--snr", "20")
    command = ("train", *KURTOSIS, *small, "--label", "blend", "--out", "n.safetensors")
    assert "has 22; train without intervals" in complaint(*command, "--intervals")
    assert not blend_plan(model, lw.Rician(), (0.02, 0.1)).intervals


def test_a_map_of_a_constant(folder):
    b1 = np.full((4, 3, 2), 1.0, np.float32)
    b1[0] = 0.9
    nib.save(nib.Nifti1Image(b1, np.eye(4)), "b1.nii.gz")
    options = (*VFA, "--constant", "tr=12", "--constant", "b1=b1.nii.gz")
    fit("vfa", *options)
    found = nib.load("maps/T1.nii.gz").get_fdata()
    assert np.median(found[1:]) == pytest.approx(900, rel=0.02)
    assert np.median(found[0]) == pytest.approx(900 / 0.81, rel=0.03)
    record = json.loads((folder / "maps" / "run.json").read_text())
    assert record["model"]["constants"] == {"tr": 12.0, "b1": "b1.nii.gz"}
    words = complaint("map", "vfa.nii.gz", *options, "--sigma", "1", "--out", "other")
    assert "a map of a constant is for `labelwise fit`; a network is trained for one value" in words
