import gzip
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from helpers import valid
from labelwise.cli.main import app
from labelwise.models import ADC
from labelwise.networks.network import blend

SHAPE = (6, 5, 2)
B = [0, 0, 0, 0, 100, 400, 800]
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No compilation cache (it would outlive the test), and a terminal of ordinary width."""
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("LABELWISE_DEBUG", raising=False)


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(data), affine), path)
    return path


@pytest.fixture
def scan(tmp_path, monkeypatch):
    """A folder with a series of ADC 1 µm²/ms, its b-values and a mask; we work inside it."""
    monkeypatch.chdir(tmp_path)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 1:4] = 1
    save("mask.nii.gz", mask)
    signal = 500 * np.exp(-np.array(B) / 1000) * mask[..., None]
    real, imaginary = np.random.default_rng(0).normal(0, 5, (2, *SHAPE, len(B)))
    save("dwi.nii.gz", np.hypot(signal + real, imaginary).astype(np.float32))
    (tmp_path / "dwi.bval").write_text(" ".join(map(str, B)))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


FIT = ("fit", "dwi.nii.gz", "--model", "adc", "--out", "maps")
USUAL = (*FIT, "--bvals", "dwi.bval", "--sigma", "5", "--mask", "mask.nii.gz")


def test_b_values_beside_the_image_are_found(scan):
    assert run(*USUAL).exit_code == 0
    given = (scan / "maps" / "ADC.nii.gz").read_bytes()
    options = ("--sigma", "5", "--mask", "mask.nii.gz", "--overwrite")
    assert run(*FIT, *options).exit_code == 0
    assert (scan / "maps" / "ADC.nii.gz").read_bytes() == given
    record = json.loads((scan / "maps" / "run.json").read_text())
    assert any(name.endswith("dwi.bval") for name in record["inputs"])
    (scan / "dwi.bval").rename(scan / "other.bval")
    assert "model adc: needs b for each volume" in complaint(run(*FIT, *options))


def complaint(result):
    """The one sentence that a refused run prints."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("labelwise: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_fit_ends_with_a_table(scan):
    result = run(*USUAL)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("parameter", "median", "quartiles", "unit", "95", "%", "±", "on", "low,", "high"),
        "bound",
    ]
    (adc,) = [line.split() for line in lines if line.startswith("ADC")]
    assert float(adc[1]) == pytest.approx(1.0, abs=0.02)
    assert "µm²/ms" in adc
    assert any(line.split() == ["converged", "24", "voxels", "100.0", "%"] for line in lines)
    assert "voxels/s" in result.stdout
    assert (scan / "maps" / "maps.png").exists()
    assert max(len(line) for line in lines) <= 100


def test_without_sigma_every_method_is_shown(scan):
    result = run(*FIT, "--bvals", "dwi.bval", "--mask", "mask.nii.gz")
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    record = json.loads((scan / "maps" / "run.json").read_text())
    levels = [record["sigma"], *record["other_sigma"]]
    assert {level["method"] for level in levels} | set(record["refused_sigma"]) == {
        *("repeats", "mppca", "background", "residuals"),
    }
    assert all(f"({level['method']}): " in shown for level in levels)
    assert "none (mppca): expected at least 15 volumes, got 7" in shown
    assert "none (background): expected at least 500 samples that are not blanked, got 252" in shown


def test_the_command_is_written_down(scan):
    run(*USUAL)
    record = valid("run", (scan / "maps" / "run.json").read_text())
    assert record["command"] == f"labelwise {' '.join(USUAL)}"
    sidecars = [path for path in (scan / "maps").glob("*.json") if path.name != "run.json"]
    assert all(valid("map", path.read_text()) for path in sidecars)
    assert len(sidecars) == len([*(scan / "maps").glob("*.nii.gz")])


def test_json_is_the_only_thing_on_stdout(scan):
    result = run(*USUAL, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((scan / "maps" / "run.json").read_text())


def test_quiet_says_nothing(scan):
    result = run(*USUAL, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_notes_are_one_line_each_on_stderr(scan):
    result = run(*USUAL, "--sigma", "1", "--quiet")
    assert result.exit_code == 0
    assert result.stdout == ""
    notes = result.stderr.splitlines()
    assert len(notes) == 2  # repeats and residuals; the background has too few samples
    assert all(line.startswith("note: ") for line in notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sigma", "much"), "--sigma much: the noise of one channel"),
        (("--sigma", "0"), "sigma: expected a positive number, got 0"),
        (("--sigma", "none.nii.gz"), "none.nii.gz"),
        (("--sigma", "mppca"), "expected at least 15 volumes, got 7"),
    ],
)
def test_a_sigma_that_is_none_is_refused(scan, options, words):
    assert words in complaint(run(*FIT, "--bvals", "dwi.bval", *options))
    assert not (scan / "maps").exists()


def counts(scan):
    (scan / "dwi.bval").write_text("0 0 0 0 100 400 800 1000")


def three_dimensions(scan):
    save("dwi.nii.gz", np.ones(SHAPE, np.float32))


def one_b(scan):
    (scan / "dwi.bval").write_text("800 800 800 800 800 800 800")


def fewer_than_parameters(scan):
    save("dwi.nii.gz", np.ones((*SHAPE, 2), np.float32))
    (scan / "dwi.bval").write_text("0 800")


def empty_mask(scan):
    save("mask.nii.gz", np.zeros(SHAPE, np.uint8))


def other_shape(scan):
    save("mask.nii.gz", np.ones((6, 5, 3), np.uint8))


def other_affine(scan):
    save("mask.nii.gz", np.ones(SHAPE, np.uint8), np.diag([2.0, 2.0, 4.0, 1.0]))


def truncated(scan):
    whole = (scan / "dwi.nii.gz").read_bytes()
    (scan / "dwi.nii.gz").write_bytes(whole[: len(whole) // 2])


def corrupt(scan):
    whole = bytearray((scan / "dwi.nii.gz").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (scan / "dwi.nii.gz").write_bytes(whole)


def half_a_file(scan):
    raw = gzip.decompress((scan / "dwi.nii.gz").read_bytes())
    (scan / "dwi.nii.gz").write_bytes(gzip.compress(raw[: len(raw) // 2]))


def no_image(scan):
    (scan / "dwi.nii.gz").write_text("hello")


def missing_image(scan):
    (scan / "dwi.nii.gz").unlink()


def missing_bvals(scan):
    (scan / "dwi.bval").unlink()


def missing_mask(scan):
    (scan / "mask.nii.gz").unlink()


def words_for_b(scan):
    (scan / "dwi.bval").write_text("zero one two three")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (counts, "b-values: 8 in dwi.bval, but dwi.nii.gz has 7 volumes"),
        (three_dimensions, "expected a 4D series"),
        (one_b, "b-values: all 7 are the same"),
        (fewer_than_parameters, "2 measurements cannot determine 3 parameters (S0, D, K)"),
        (empty_mask, "the mask is empty"),
        (other_shape, "its shape (6, 5, 3) is not that of dwi.nii.gz, (6, 5, 2)"),
        (other_affine, "its affine differs"),
        (truncated, "dwi.nii.gz: truncated"),
        (corrupt, "dwi.nii.gz: corrupt"),
        (half_a_file, "dwi.nii.gz: truncated"),
        (no_image, "dwi.nii.gz: not a NIfTI file"),
        (missing_image, "dwi.nii.gz: there is no such file"),
        (missing_bvals, "dwi.bval: No such file or directory"),
        (missing_mask, "mask.nii.gz: there is no such file"),
        (words_for_b, "expected numbers, got 'zero'"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(scan, damage, words):
    damage(scan)
    before = sorted(path.name for path in scan.iterdir())
    model = ("--model", "kurtosis") if damage is fewer_than_parameters else ()
    assert words in complaint(run(*USUAL, *model))
    assert sorted(path.name for path in scan.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bounds", "ADC=low:high"), "--bounds ADC=low:high: expected NAME=LOW:HIGH"),
        (("--bounds", "D_fast=1:2"), "no parameter 'D_fast'"),
        (("--bounds", "ADC=3:1"), "parameter ADC: bounds"),
        (("--model", "acd"), "did you mean 'adc'?"),
        (("--model", "mine.py:Mine"), "mine.py: no such file"),
        (("--model", "t2"), "model t2: needs te for each volume; give --te or an --acquisition"),
        (("--te", "10,20"), "model adc: does not use --te; it needs b only"),
        (("--te", "ten,twenty"), "te: expected times in ms"),
        (("--acquisition", "table.txt"), "expected a .json or .tsv table"),
        (("--out", "dwi.bval"), "the output must be a folder"),
        (("--out", "dwi.bval/maps"), "Not a directory"),
    ],
)
def test_bad_options_are_a_sentence(scan, options, words):
    assert words in complaint(run(*USUAL, *options))
    assert not (scan / "maps").exists()


@pytest.mark.parametrize(
    "options",
    [("--noise", "poisson"), ("--average", "median"), ("--max-iterations", "0"), ("--what",)],
)
def test_what_typer_refuses_exits_with_2_as_well(scan, options):
    assert run(*USUAL, *options).exit_code == 2
    assert not (scan / "maps").exists()


def test_maps_are_not_overwritten_unasked(scan):
    assert run(*USUAL).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (scan / "maps").iterdir()}
    assert "it already holds" in complaint(run(*USUAL, "--sigma", "6"))
    assert {path: path.stat().st_mtime_ns for path in (scan / "maps").iterdir()} == before
    assert run(*USUAL, "--sigma", "6", "--overwrite").exit_code == 0
    assert json.loads((scan / "maps" / "run.json").read_text())["sigma"]["sigma"] == 6


def test_a_full_disk_is_a_sentence(scan, monkeypatch):
    from labelwise.io.results import Output

    def full(*_):
        raise OSError(28, "No space left on device", "maps/run.json")

    monkeypatch.setattr(Output, "write_run", full)
    assert "No space left on device" in complaint(run(*USUAL))
    assert not (scan / "maps").exists()


def test_debugging_shows_the_traceback(scan, monkeypatch):
    monkeypatch.setenv("LABELWISE_DEBUG", "1")
    counts(scan)
    assert isinstance(run(*USUAL).exception, ValueError)


MAP = ("map", "dwi.nii.gz", "--out", "maps", "--bvals", "dwi.bval", "--sigma", "5")


@pytest.fixture
def net(scan, random_network):
    """A blend of two networks with random weights for that acquisition."""
    model, groups = ADC(b=np.array(B) / 1000), ((0, 1, 2, 3), (4,), (5,), (6,))
    pair = [random_network(model, groups, seed) for seed in (0, 1)]
    blend(*pair, alpha=1.0).save(scan / "blend.safetensors")
    pair[0].save(scan / "single.safetensors")
    return scan


def test_map_ends_with_a_table_that_names_the_network(net):
    result = run(*MAP, "--net", "blend.safetensors", "--alpha", "ADC=0.5", "--mask", "mask.nii.gz")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[-3:] == ["below,", "above", "range"]
    (network,) = [line for line in lines if line.startswith("network")]
    assert network.split(maxsplit=1)[1].strip() == (
        "blend.safetensors, trained for SNR 2 to 1,000, alpha S0 1, ADC 0.5"
    )
    assert "voxels/s" in result.stdout
    assert "compiling" in result.stdout
    assert max(len(line) for line in lines) <= 100
    assert (net / "maps" / "ADC.nii.gz").exists()


def test_map_can_be_quiet_or_say_json_only(net):
    quiet = run(*MAP, "--net", "single.safetensors", "--model", "adc", "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    result = run(*MAP, "--net", "single.safetensors", "--json", "--overwrite")
    assert json.loads(result.stdout) == json.loads((net / "maps" / "run.json").read_text())
    assert valid("run", result.stdout)["network"]["alpha"] is None
    assert valid("map", (net / "maps" / "ADC.json").read_text())["network"]["origin"] == "file"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--model is required: a name from `labelwise models`"),
        (("--model", "acd"), "did you mean 'adc'?"),
        (("--net", "none.safetensors"), "none.safetensors: there is no such network file"),
        (("--net", "mask.nii.gz"), "mask.nii.gz: not a network of labelwise, or damaged"),
        (("--net", "blend.safetensors", "--model", "kurtosis"), "for the model ADC"),
        (
            ("--net", "blend.safetensors", "--noise", "gaussian"),
            "for Rician noise, not for Gaussian",
        ),
        (("--net", "blend.safetensors", "--alpha", "2"), "alpha: expected a number from 0"),
        (("--net", "blend.safetensors", "--alpha", "f=1"), "no parameter 'f'"),
        (("--net", "blend.safetensors", "--prior", "ADC=0:1"), "--prior cannot change it"),
        (("--net", "single.safetensors", "--alpha", "1"), "single.safetensors holds a single"),
        (("--model", "adc", "--alpha", "much"), "--alpha much: expected a number from 0 to 1"),
        (("--model", "adc", "--alpha", "1", "--alpha", "ADC=0"), "--alpha 1: is for all param"),
        (("--model", "adc", "--prior", "ADC=1"), "--prior ADC=1: expected NAME=LOW:HIGH"),
        (("--model", "adc", "--prior", "D=0:1"), "no parameter 'D'"),
        (("--model", "adc", "--prior", "ADC=3:1"), "ADC"),
        (("--model", "adc", "--sigma", "much"), "--sigma much: the noise of one channel"),
        (("--model", "adc", "--mask", "none.nii.gz"), "none.nii.gz: there is no such file"),
    ],
)
def test_map_refuses_with_a_sentence(net, options, words):
    assert words in complaint(run(*MAP, *options))
    assert not (net / "maps").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda scan: (scan / "dwi.bval").write_text("0 0 0 0 100 400 900"), "of volume 7 is 900"),
        (lambda scan: (scan / "dwi.bval").write_text("0 0 0 0 100 400"), "6 values of b where"),
        (lambda scan: (scan / "dwi.nii.gz").write_text("hello"), "dwi.nii.gz: not a NIfTI file"),
        (lambda scan: save("mask.nii.gz", np.zeros(SHAPE, np.uint8)), "the mask is empty"),
    ],
)
def test_map_refuses_bad_files_and_leaves_nothing(net, damage, words):
    damage(net)
    before = sorted(path.name for path in net.iterdir())
    result = run(*MAP, "--net", "blend.safetensors", "--mask", "mask.nii.gz")
    assert words in complaint(result)
    assert sorted(path.name for path in net.iterdir()) == before


@pytest.mark.parametrize("source", ["list", "file", "json", "tsv"])
def test_echo_times_from_anywhere(scan, source):
    times = [10, 20, 40, 80]
    signal = 500 * np.exp(-np.array(times) / 60) * np.ones((*SHAPE, 1))
    save("t2.nii.gz", signal.astype(np.float32))
    (scan / "te.txt").write_text("10\n20\n40\n80\n")
    (scan / "te.json").write_text(json.dumps({"te": times}))
    (scan / "te.tsv").write_text("te\tname\n10\ta\n20\tb\n40\tc\n80\td\n")
    options = {
        "list": ("--te", "10,20,40,80"),
        "file": ("--te", "te.txt"),
        "json": ("--acquisition", "te.json"),
        "tsv": ("--acquisition", "te.tsv"),
    }[source]
    fit = ("fit", "t2.nii.gz", "--model", "t2", "--sigma", "5", "--out", "maps", "--quiet")
    result = run(*fit, *options)
    assert result.exit_code == 0, result.stderr
    t2 = np.asarray(nib.load("maps/T2.nii.gz").dataobj)
    np.testing.assert_allclose(t2, 60, rtol=0.01)


def test_a_model_of_ones_own(scan):
    (scan / "mine.py").write_text(
        "import jax.numpy as jnp\n"
        "import labelwise as lw\n"
        "from jaxtyping import Array, Float\n"
        "class Mine(lw.SignalModel):\n"
        '    """S = A exp(-b R)."""\n'
        '    b: Float[Array, "M"]\n'
        '    parameters = (lw.Parameter("A", "a.u.", (0, jnp.inf)),'
        ' lw.Parameter("R", "µm²/ms", (0, 9)))\n'
        "    def signal(self, a, r):\n"
        "        return a * jnp.exp(-self.b * r)\n"
    )
    result = run(*USUAL, "--model", "mine.py:Mine", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["model"]["equation"] == "S = A exp(-b R)."
    assert record["parameters"][1]["median"] == pytest.approx(1.0, abs=0.02)


def test_models_are_listed_with_what_they_need():
    listed = valid("models", run("models", "--json").stdout)
    assert {"adc", "ivim", "kurtosis", "t1_ir", "t2", "t2_biexponential", "t2_epg"} <= set(listed)
    assert listed["ivim"]["acquisition"] == ["b"]
    assert listed["ivim"]["parameters"][1] == {"name": "f", "unit": "1", "bounds": [0.01, 0.5]}
    shown = run("models").stdout
    assert "ivim  needs --bvals" in shown
    assert "S(b) = S0 exp(-b ADC)." in shown


def test_version_and_help():
    assert run("--version").stdout.startswith("labelwise 0.")
    assert "Example:" in run("fit", "--help").stdout
    assert run("fit").exit_code == 2


def commands(command, words=()):
    """The words of a command and of all commands below it."""
    yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*words, name))


@pytest.mark.parametrize(
    "arguments",
    [
        *((*words, "--help") for words in commands(get_command(app))),
        ("--version",),
        ("fit", "--no"),
    ],
    ids=" ".join,
)
def test_help_and_mistyped_options_import_nothing_slow(arguments):
    code = (
        "import atexit, sys; from labelwise.__main__ import main\n"
        "slow = {'jax', 'matplotlib', 'numpy', 'scipy', 'nibabel', 'pandas', 'xarray'}\n"
        "atexit.register(lambda: print('slow:', *(slow & {*sys.modules})))\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 * ("--no" in arguments)
    assert done.stdout.splitlines()[-1] == "slow:"


def test_options_have_the_same_names_in_every_typer():
    """Typer 0.27.3 renames an option whose metavar is its name in capitals."""

    def options(command):
        yield from (name for each in command.params for name in each.opts if name[:1] == "-")
        for each in getattr(command, "commands", {}).values():
            yield from options(each)

    found = list(options(get_command(app)))
    assert "--label" in found
    assert [name for name in found if name != name.lower()] == []


@pytest.mark.parametrize("cache", ["programs", "dwi.bval/cannot/be/made"])
def test_a_fresh_process_keeps_its_compiled_programs_where_it_can(scan, cache):
    """As a person runs it; a cache that cannot be written stops nothing."""
    environment = {**os.environ, "LABELWISE_CACHE": cache}
    command = [sys.executable, "-m", "labelwise", *USUAL, "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (scan / "programs").exists() == (cache == "programs")


def test_a_doubt_about_units_is_in_the_record_once(scan):
    (scan / "dwi.bval").write_text("0 0 0 0 1 4 8")
    result = run(*USUAL, "--json")
    doubt = "(in ms/µm²? multiply by 1000); check that its unit is s/mm²"
    assert sum(doubt in line for line in result.stderr.splitlines()) == 1
    assert sum(doubt in note for note in json.loads(result.stdout)["notes"]) == 1
    assert sum(doubt in n for n in json.loads((scan / "maps/run.json").read_text())["notes"]) == 1


def test_a_warning_of_a_model_file_is_in_the_record(scan):
    (scan / "own.py").write_text(
        "import warnings\nfrom labelwise import ADC\n"
        "warnings.warn('fitted [x]\\nby hand')\nclass Own(ADC):\n    pass\n"
    )
    result = run(*USUAL, "--model", "own.py:Own", "--json")
    assert "note: fitted [x] by hand\n" in result.stderr
    assert "fitted [x] by hand" in json.loads(result.stdout)["notes"]


@pytest.mark.parametrize("command", [("models",), ("models", "--json"), ("--help",)])
def test_stdout_that_is_closed_early_is_a_sentence_and_a_status(command):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "labelwise", *command],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(writing)
    assert result.stderr == "labelwise: stdout was closed before all was printed\n"
    assert result.returncode == 141
