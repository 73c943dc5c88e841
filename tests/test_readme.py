"""The Python of the README runs as it stands, on a small scan and with a short training."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw

README = Path(__file__).parents[1] / "README.md"
B = [0, 0, 10, 30, 80, 200, 400, 800]


@pytest.fixture
def scan(tmp_path, monkeypatch):
    """A small IVIM scan with its b-values and mask; trainings are cut short."""
    monkeypatch.chdir(tmp_path)
    Path("dwi.bval").write_text(" ".join(map(str, B)))
    clean = np.asarray(lw.IVIM(np.array(B) / 1000).signal(500.0, 0.2, 1.1, 60.0))
    noise = np.random.default_rng(0).normal(0, 12, (2, 6, 5, 2, len(B)))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    mask = np.zeros(signal.shape[:-1], bool)
    mask[1:-1, 1:-1] = True
    nib.save(nib.Nifti1Image(signal, np.eye(4)), "dwi.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), "mask.nii.gz")
    short = {"signals": 3000, "batch": 100, "epochs": 3, "restarts": 1, "width": 8}
    every_level = lw.Recipe.every_level
    monkeypatch.setattr(
        lw.Recipe, "every_level", staticmethod(lambda **changes: every_level(**changes | short))
    )
    return signal, mask


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_three_snippets_run_in_15_lines(scan):
    signal, mask = scan
    text = README.read_text(encoding="utf-8").partition("<!-- python -->")[2].partition("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 3
    assert sum(snippet.count("\n") for snippet in snippets) <= 15
    names = {"signal": signal, "mask": mask}
    for snippet in snippets:
        exec(snippet, names)
    assert Path("maps", "D_slow.nii.gz").exists()
    assert names["report"].voxels
    assert names["estimate"]["D_slow"].shape == mask.shape
    assert Path("net.safetensors").exists()
