"""`labelwise evaluate`, as a person types it."""

import pytest
import xarray as xr

from commands import complaint, run, trained
from helpers import valid


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with b-values, no cache, and a terminal of ordinary width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "dwi.bval").write_text("0 0 200 500 1000")
    return tmp_path


def test_an_evaluation_holds_every_estimator(folder):
    trained("--snr", "10:40")
    trained("--snr", "20", "--label", "gt", name="gt")
    result = run(
        *("evaluate", "net.safetensors", "gt.safetensors", "--snr", "20", "--out", "found"),
        *("--points", "3", "--repeats", "20"),
    )
    assert result.exit_code == 0, result.stderr
    names = ["net, alpha 1", "net, alpha 0.5", "net, alpha 0", "gt", "maximum likelihood"]
    with xr.open_dataset(folder / "found" / "evaluation.nc", engine="scipy") as dataset:
        assert dataset.estimator.values.tolist() == names
        assert dict(dataset.sizes)["ADC"] == 3
    record = valid("evaluation", (folder / "found" / "evaluation.json").read_text())
    assert (record["snr"], record["repeats"]) == (20.0, 20)
    assert record["summary"]["gt"]["ADC"]["slope"] < 0
    assert (folder / "found" / "curves.png").stat().st_size > 10_000
    assert all(name in result.stdout for name in names)
    assert "found (look at curves.png first)" in result.stdout
    arguments = ("evaluate", "gt.safetensors", "--out", "found")
    assert "found: it already holds curves.png" in complaint(*arguments)


def test_networks_that_cannot_be_compared_are_refused(folder):
    trained("--snr", "20", "--label", "gt", name="a")
    trained("--snr", "20", "--label", "gt", "--noise", "gaussian", name="b")
    evaluation = ("--out", "found", "--points", "3", "--repeats", "20")
    both = complaint("evaluate", "a.safetensors", "b.safetensors", *evaluation)
    assert "was trained for the noise Gaussian" in both
    assert "given twice" in complaint("evaluate", "a.safetensors", "a.safetensors", *evaluation)
    assert "no such network" in complaint("evaluate", "c.safetensors", *evaluation)
    assert "expected a positive number" in complaint(
        "evaluate", "a.safetensors", *evaluation, "--snr", "-1"
    )
    assert not (folder / "found").exists()


def test_another_prior_or_level_is_noted():
    trained("--snr", "20", "--label", "gt", name="a")
    trained("--snr", "20", "--label", "gt", "--prior", "ADC=0.5:1", name="b")
    result = run(
        *("evaluate", "a.safetensors", "b.safetensors", "--snr", "50", "--out", "found"),
        *("--points", "3", "--repeats", "20", "--no-mle"),
    )
    assert result.exit_code == 0, result.stderr
    assert "note: b.safetensors was trained for another prior" in result.stderr
    assert "note: SNR 50 is not what a.safetensors was trained for (20)" in result.stderr


def test_networks_of_b_values_within_the_tolerance_are_compared(folder):
    trained("--snr", "20", "--label", "gt", name="a")
    (folder / "dwi.bval").write_text("0 0 205 500 995")
    trained("--snr", "20", "--label", "gt", name="b")
    both = ("evaluate", "a.safetensors", "b.safetensors", "--points", "2", "--repeats", "2")
    refused = complaint(*both, "--out", "found")
    assert "b of volume 3 is 200, not 205 s/mm²" in refused
    assert "raise --b-tolerance" in refused
    result = run(*both, "--out", "found", "--b-tolerance", "5", "--no-mle")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    "command", [("evaluate", "--points", "2"), ("tune", "--rmse", "all", "--voxels", "100")]
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(folder, monkeypatch, command):
    trained("--snr", "20")

    def fails(*args, **options):
        raise PermissionError(13, "Permission denied")

    def never(*args, **options):
        raise AssertionError("evaluated")

    monkeypatch.setattr("labelwise.io.staging.tempfile.mkdtemp", fails)
    monkeypatch.setattr("labelwise.evaluation.grid.evaluate", never)
    monkeypatch.setattr("labelwise.evaluation.tuning.tune", never)
    words = complaint(command[0], "net.safetensors", *command[1:], "--out", "found")
    assert "found: cannot write there (Permission denied); choose another output folder" in words
    assert not (folder / "found").exists()
