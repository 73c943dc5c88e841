import json
import shlex

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from labelwise.cli.main import app
from labelwise.phantoms.abdomen import B_VALUES, SIGMA, TISSUES, Phantom, compare, write_phantom


def load(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"))


def test_the_files_are_those_named(phantom):
    assert all(path.exists() for path in phantom.files)
    found = {path for path in phantom.folder.rglob("*") if path.is_file()}
    assert found == set(phantom.files)


def test_every_tissue_is_there_in_every_slice(phantom):
    tissue = load(phantom.truth("tissue"))
    for z in range(tissue.shape[2]):
        assert set(np.unique(tissue[:, :, z])) == set(range(len(TISSUES) + 1))
    np.testing.assert_array_equal(load(phantom.mask), tissue > 0)


def test_the_air_is_rician_noise(phantom):
    air = load(phantom.image)[load(phantom.mask) == 0]
    assert air.shape[1] == len(B_VALUES)
    assert np.sqrt((air**2).mean() / 2) == pytest.approx(SIGMA, rel=0.02)


def test_the_signal_to_noise_ratio_is_about_30(phantom):
    s0 = load(phantom.truth("S0"))
    assert np.nanmedian(s0) / SIGMA == pytest.approx(30, abs=5)


def test_the_same_seed_gives_the_same_bytes(phantom, tmp_path):
    again = write_phantom(tmp_path)
    np.testing.assert_array_equal(load(again.image), load(phantom.image))
    other = write_phantom(tmp_path / "other", seed=1)
    assert not np.array_equal(load(other.image), load(phantom.image))


def test_a_phantom_is_not_overwritten_unasked(phantom):
    with pytest.raises(FileExistsError, match=r"already holds dwi\.bval"):
        write_phantom(phantom.folder)
    write_phantom(phantom.folder, overwrite=True)


@pytest.mark.slow
def test_the_demo_finds_the_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "a folder"
    result = CliRunner().invoke(app, ["demo", str(out)])
    assert result.exit_code == 0, result.stderr
    phantom = Phantom(out)
    for folder, arguments in zip((phantom.fitted, phantom.mapped), phantom.arguments, strict=True):
        command = shlex.join(["labelwise", *arguments])
        assert command in result.stdout.splitlines()
        assert json.loads((folder / "run.json").read_text())["command"] == command
    assert "trained in" in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines() if str(out) not in line)
    rows = {(row.tissue, row.parameter.name): row for row in compare(phantom)}
    assert len(rows) == 4 * len(TISSUES)
    for tissue in ("liver", "kidney", "spleen", "pancreas"):
        tolerances = {"S0": (0.02, 0.02), "f": (0.1, 0.2), "D_slow": (0.1, 0.15)}
        for name, tolerance in tolerances.items() | {("D_fast", (0.15, 0.3))}:
            row = rows[tissue, name]
            for estimate, allowed in zip(row.estimates, tolerance, strict=True):
                assert estimate == pytest.approx(row.truth, rel=allowed), (tissue, name)
        assert tissue in result.stdout
