"""Files that are read are never replaced or removed; several files as a series; a fill value."""

import json

import nibabel as nib
import numpy as np
import pytest

from commands import complaint, run
from labelwise.models import ADC
from labelwise.networks.network import blend
from labelwise.types import Status

SHAPE = (6, 5, 2)
B = (0, 0, 0, 0, 100, 400, 800)
OWN = '''
import jax.numpy as jnp
import labelwise as lw

class Own(lw.SignalModel):
    """S0 exp(-b ADC)."""

    b: object = lw.per_measurement()
    parameters = (
        lw.Parameter("S0", "a.u.", (0.0, jnp.inf), typical=(0.8, 1.2)),
        lw.Parameter("ADC", "µm²/ms", (0.0, 10.0), typical=(0.2, 3.0)),
    )

    def signal(self, s0, adc):
        return s0 * jnp.exp(-self.b * adc)
'''
STUDY = """
title = "T2"
model = "t2"
snr = [40]
[acquisition]
te = "te.txt"
[networks]
blend = []
absolute_loss = false
intervals = false
[training]
recipe = "fast"
signals = 1000
epochs = 1
restarts = 1
trainings = 1
[grid]
points = 2
repeats = 5
"""
TASK = "[from]\nS0 = 1.0\nADC = 1.0\n[to]\nADC = 1.4\n"


def save(name, values, affine=None):
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nib.save(image, name)


@pytest.fixture
def scan(tmp_path, monkeypatch, random_network):
    """A folder with a series, all that belongs to it, and two networks; we work inside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 1:4] = 1
    save("mask.nii.gz", mask)
    signal = 500 * np.exp(-np.array(B) / 1000) * mask[..., None]
    real, imaginary = np.random.default_rng(0).normal(0, 5, (2, *SHAPE, len(B)))
    save("dwi.nii.gz", np.hypot(signal + real, imaginary).astype(np.float32))
    (tmp_path / "dwi.bval").write_text(" ".join(map(str, B)))
    (tmp_path / "te.txt").write_text("10 20 40 80")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "out").mkdir()
    model, groups = ADC(b=np.array(B) / 1000), ((0, 1, 2, 3), (4,), (5,), (6,))
    pair = [random_network(model, groups, seed) for seed in (0, 1)]
    blend(*pair, alpha=1.0).save(tmp_path / "net.safetensors")
    return tmp_path


DWI = ("--bvals", "dwi.bval", "--sigma", "5", "--out", "out", "--overwrite")
SERIES = ("dwi.nii.gz", *DWI)
TUNE = ("tune", "net.safetensors", "--out", "out", "--overwrite")
TRAIN = ("train", "--snr", "20", "--overwrite", "--signals", "1000", "--epochs", "1")
RUN = '{"labelwise_files": ["run.json", "net.safetensors", "old.nii.gz", "own.py", "dwi.bval"]}'
# What is moved into the output folder (or to another name), and the command that reads it there.
FIT = {
    "series": ("dwi.nii.gz", "out/ADC.nii.gz", ("fit", "out/ADC.nii.gz", "--model", "adc", *DWI)),
    "mask": ("mask.nii.gz", "out/S0.nii.gz", ("fit", *SERIES, "--model", "adc", "--mask")),
    "earlier map": ("mask.nii.gz", "out/old.nii.gz", ("map", *SERIES, "--model", "adc", "--mask")),
    "network": ("net.safetensors", "out/net.safetensors", ("map", *SERIES, "--net")),
    "sigma": ("mask.nii.gz", "out/sigma.nii.gz", ("fit", *SERIES, "--model", "adc", "--sigma")),
}


@pytest.mark.parametrize(("file", "place", "command"), FIT.values(), ids=FIT)
@pytest.mark.parametrize("through", ["itself", "symbolic link", "hard link"])
def test_maps_never_replace_what_they_are_made_from(scan, file, place, command, through):
    (scan / "out" / "run.json").write_text(RUN)
    (scan / file).rename(scan / place)
    name = place
    if through != "itself":
        name = "other_name" + place[place.index(".") :]
        make = (scan / name).symlink_to if through == "symbolic link" else (scan / name).hardlink_to
        make(scan / place)
    command = [name if word == place else word for word in command]
    command += [] if name in command else [name]
    before = content(scan)
    assert f"{name}: is an input of this run" in complaint(*command)
    assert content(scan) == before


def test_tables_and_models_in_the_output_folder_stay(scan):
    out = scan / "out"
    (out / "run.json").write_text(json.dumps({"b": B}))
    table = ("fit", "dwi.nii.gz", "--model", "adc", "--sigma", "5", "--out", "out", "--overwrite")
    before = content(scan)
    assert "run.json: is an input" in complaint(*table, "--acquisition", "out/run.json")
    assert content(scan) == before
    (out / "run.json").write_text(RUN)
    (out / "dwi.bval").write_text(" ".join(map(str, B)))
    assert "out/dwi.bval: is an input" in complaint(*table, "--bvals", "out/dwi.bval")
    (out / "own.py").write_text(OWN)
    own = ("fit", *SERIES, "--model", "out/own.py:Own")
    assert "out/own.py: is an input" in complaint(*own)


COMMANDS = {
    "train, model": (*TRAIN, "--bvals", "dwi.bval", "--model", "own.py:Own", "--out", "own.py"),
    "train, b": (*TRAIN, "--bvals", "dwi.bval", "--model", "adc", "--out", "dwi.bval"),
    "train, checkpoint": (
        *(*TRAIN, "--bvals", "a.checkpoint.first", "--model", "adc", "--out", "a"),
    ),
    "export": ("export", "onnx", "net.safetensors", "net.safetensors", "--overwrite"),
    "export, dots": ("export", "onnx", "net.safetensors", "out/../net.safetensors", "--overwrite"),
    "evaluate": ("evaluate", "out/evaluation.nc", "--out", "out", "--overwrite"),
    "tune, net": ("tune", "out/tune.png", *TUNE[2:], "--rmse", "all"),
    "tune, task": (*TUNE, "--detect", "out/tune.json"),
    "tune, tissue": (*TUNE, "--rmse", "all", "--tissue", "out/tissue.toml"),
    "study, file": ("study", "run", "out/study.toml", "out", "--overwrite"),
    "study, te": ("study", "run", "study.toml", "out", "--overwrite"),
    "in vivo": (
        *("study", "invivo", "out/figures/dwi.nii.gz", "out", "--bvals", "dwi.bval"),
        *("--model", "adc", "--sigma", "5", "--repeats", "2", "--overwrite"),
    ),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_command_replaces_what_it_reads(scan, command):
    """Nothing is computed before, and no file changes."""
    out = scan / "out"
    (out / "figures").mkdir()
    (out / "stages").mkdir()
    for name, copy in (
        *(("net.safetensors", "evaluation.nc"), ("net.safetensors", "tune.png")),
        *(("task.toml", "tune.json"), ("dwi.bval", "../a.checkpoint.first")),
        *(("study.toml", "study.toml"), ("te.txt", "stages/te.txt")),
    ):
        (out / copy).write_bytes((scan / name).read_bytes())
    (out / "tissue.toml").write_text("[tissue]\nS0 = 1.0\nADC = 1.0\n")
    (out / "tune.pdf").hardlink_to(out / "tissue.toml")
    if "figures" in " ".join(command):
        signal = 500 * np.exp(-np.array([0, 0, 400, 400, 800, 800]) / 1000) * np.ones((*SHAPE, 1))
        save("out/figures/dwi.nii.gz", signal.astype(np.float32))
        (scan / "dwi.bval").write_text("0 0 400 400 800 800")
        (out / "study.toml").unlink()
        (out / "figures").rename(scan / "kept")
        (out / "study.toml").write_text(ours())
        (scan / "kept").rename(out / "figures")
    if command[:2] == ("study", "run"):
        (scan / "study.toml").write_text(STUDY.replace("te.txt", "out/stages/te.txt"))
        edited = ours() + STUDY.replace('"te.txt"', "[10, 20, 40, 80]")
        (out / "study.toml").write_text(edited)
    before = content(scan)
    assert "is an input of this run" in complaint(*command, *QUIET.get(command[0], ()))
    assert content(scan) == before


QUIET = {"train": ("--quiet",), "evaluate": ("--quiet",), "tune": ("--quiet",)}


def ours():
    from labelwise.study.run import MARK

    return MARK


def content(folder):
    """All files and their bytes, and where links lead."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_study_may_be_continued_from_its_own_file(scan):
    """The file is read and not written, for its content would be the same."""
    small = STUDY.replace('"te.txt"', "[10, 20, 40, 80]")
    (scan / "study.toml").write_text(small)
    assert run("study", "run", "study.toml", "done", "--quiet").exit_code == 0
    made = (scan / "done" / "study.toml").stat()
    assert run("study", "run", "done/study.toml", "done", "--quiet").exit_code == 0
    assert (scan / "done" / "study.toml").stat().st_mtime_ns == made.st_mtime_ns
    assert "is an input" in complaint(
        "study", "run", "done/study.toml", "done", "--seed", "3", "--overwrite", "--quiet"
    )


@pytest.mark.parametrize("name", ["stages", "figures", "networks", "stages/labels"])
def test_a_study_writes_nothing_through_a_link(scan, name):
    (scan / "mine").mkdir()
    (scan / "mine" / "file").write_text("precious")
    (scan / "out" / name).parent.mkdir(exist_ok=True)
    (scan / "out" / name).symlink_to(scan / "mine")
    before = content(scan)
    if name == "figures":  # as in the folder of an earlier study
        (scan / "out" / "study.toml").write_text(ours())
        before = content(scan)
    words = complaint("study", "run", "study.toml", "out", "--overwrite", "--quiet")
    assert "leads out of the output folder" in words or "is not of a study" in words
    assert content(scan) == before


@pytest.mark.parametrize("name", ["truth", "maps_fit", "maps_network"])
def test_the_demo_writes_nothing_through_a_link(scan, name):
    (scan / "mine").mkdir()
    (scan / "mine" / "run.json").write_text(RUN)
    (scan / "out" / name).symlink_to(scan / "mine")
    before = content(scan)
    assert f"out/{name}: leads out of the output folder" in complaint("demo", "out", "--overwrite")
    assert content(scan) == before


# --- one file for each measurement


def split(scan):
    image = nib.load("dwi.nii.gz")
    names = [f"dwi_{index}.nii.gz" for index in range(len(B))]
    for index, name in enumerate(names):
        save(name, np.asarray(image.dataobj)[..., index])
    return names


@pytest.mark.parametrize("command", ["fit", "map"])
def test_one_file_for_each_measurement_is_the_same_series(scan, command):
    own = ("--net", "net.safetensors") if command == "map" else ("--model", "adc")
    rest = (*own, "--bvals", "dwi.bval", "--sigma", "5", "--mask", "mask.nii.gz", "--quiet")
    assert run(command, "dwi.nii.gz", *rest, "--out", "one").exit_code == 0
    names = split(scan)
    result = run(command, *names, *rest, "--out", "several")
    assert result.exit_code == 0, result.stderr
    for name in ("ADC", "S0", "status"):
        one, several = ((scan / folder / f"{name}.nii.gz") for folder in ("one", "several"))
        assert one.read_bytes() == several.read_bytes()
    inputs = json.loads((scan / "several" / "run.json").read_text())["inputs"]
    assert list(inputs)[: len(B)] == names


def test_files_that_are_no_series_are_named(scan):
    names = split(scan)
    rest = ("--model", "adc", "--bvals", "dwi.bval", "--sigma", "5", "--out", "maps")
    assert "7 in dwi.bval, but dwi_0.nii.gz and 5 more has 6" in complaint("fit", *names[:6], *rest)
    assert "dwi_1.nii.gz: is given twice" in complaint("fit", *names[:6], names[1], *rest)
    save("dwi_3.nii.gz", np.ones(SHAPE, np.float32), np.eye(4))
    assert "dwi_3.nii.gz: its affine differs" in complaint("fit", *names, *rest)
    words = complaint("fit", "dwi.nii.gz", *names, *rest)
    assert "dwi.nii.gz: has 7 volumes, but of several" in words


# --- sigma of each measurement


def sigma_map(scan, level=5.0, last=5.0):
    values = np.full((*SHAPE, len(B)), level, np.float32)
    values[..., -1] = last
    save("sigma.nii.gz", values)


FITTED = ("fit", "dwi.nii.gz", "--model", "adc", "--bvals", "dwi.bval", "--mask", "mask.nii.gz")


@pytest.mark.parametrize("average", [(), ("--average", "arithmetic")])
def test_equal_sigma_of_each_measurement_is_one_sigma(scan, average):
    sigma_map(scan)
    assert run(*FITTED, *average, "--sigma", "5", "--out", "one", "--quiet").exit_code == 0
    result = run(*FITTED, *average, "--sigma", "sigma.nii.gz", "--out", "each", "--quiet")
    assert result.exit_code == 0, result.stderr
    for name in ("ADC", "ADC_low", "ADC_high"):
        one, each = (np.asarray(nib.load(f"{f}/{name}.nii.gz").dataobj) for f in ("one", "each"))
        np.testing.assert_allclose(one, each, rtol=1e-4)
    assert nib.load("each/sigma.nii.gz").shape == (*SHAPE, len(B))
    record = json.loads((scan / "each" / "run.json").read_text())
    assert (record["sigma"]["sigma"], record["sigma"]["method"]) == (5.0, "map")
    assert "sigma.nii.gz" in record["inputs"]


def test_a_noisy_measurement_counts_for_less(scan):
    """The last b-value, with a signal that is wrong and a sigma that says so."""
    image = nib.load("dwi.nii.gz")
    values = np.asarray(image.dataobj)
    save("dwi.nii.gz", values + np.where(np.arange(len(B)) == 6, np.float32(200), np.float32(0)))
    sigma_map(scan, last=5e3)
    assert run(*FITTED, "--sigma", "sigma.nii.gz", "--out", "each", "--quiet").exit_code == 0
    status = np.asarray(nib.load("each/status.nii.gz").dataobj)
    adc = np.asarray(nib.load("each/ADC.nii.gz").dataobj)
    assert np.median(adc[status == Status.CONVERGED]) == pytest.approx(1.0, abs=0.05)


def test_an_impossible_sigma_of_one_measurement_is_a_status(scan):
    values = np.full((*SHAPE, len(B)), 5, np.float32)
    values[3:, ..., 2] = np.nan
    save("sigma.nii.gz", values)
    assert run(*FITTED, "--sigma", "sigma.nii.gz", "--out", "each", "--quiet").exit_code == 0
    status = np.asarray(nib.load("each/status.nii.gz").dataobj)
    assert set(status[1, 1:4].ravel()) == {Status.CONVERGED}
    assert set(status[3, 1:4].ravel()) == {Status.BAD_SIGMA}


def test_a_network_takes_no_sigma_of_each_measurement(scan):
    sigma_map(scan)
    given = ("--sigma", "sigma.nii.gz", "--out", "maps")
    words = complaint("map", *SERIES[:3], "--net", "net.safetensors", *given)
    assert "sigma.nii.gz: sigma of each measurement cannot be used by a network" in words
    assert "one volume, or use `labelwise fit`" in words
    assert not (scan / "maps").exists()


# --- a value in place of NaN


@pytest.mark.parametrize("command", ["fit", "map"])
@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_maps_may_have_a_number_in_place_of_nan(scan, command, fill):
    own = ("--net", "net.safetensors") if command == "map" else ("--model", "adc")
    rest = (*own, "--bvals", "dwi.bval", "--sigma", "5", "--mask", "mask.nii.gz", "--quiet")
    assert run(command, "dwi.nii.gz", *rest, "--out", "plain").exit_code == 0
    result = run(command, "dwi.nii.gz", *rest, "--out", "filled", "--fill", fill)
    assert result.exit_code == 0, result.stderr
    for path in sorted((scan / "plain").glob("*.nii.gz")):
        plain = np.asarray(nib.load(path).dataobj)
        filled = np.asarray(nib.load(scan / "filled" / path.name).dataobj)
        np.testing.assert_array_equal(filled, np.where(np.isnan(plain), fill, plain))
        sidecar = json.loads((scan / "filled" / path.name.replace("nii.gz", "json")).read_text())
        said = sidecar["fill"]["value"] if "fill" in sidecar else None
        assert said == (fill if plain.dtype == np.float32 else None)
    assert json.loads((scan / "filled" / "run.json").read_text())["fill"]["value"] == fill
    assert "fill" not in json.loads((scan / "plain" / "run.json").read_text())


@pytest.mark.parametrize("fill", ["inf", "1e39"])
def test_a_fill_value_is_a_number_of_float32(scan, fill):
    words = complaint(*FITTED, "--sigma", "5", "--out", "maps", "--fill", fill)
    assert "fill: expected a number" in words
