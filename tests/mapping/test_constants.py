"""Maps of constants: T1 by flip angles and T2 of echo trains with the B1 of each voxel."""

import json

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from labelwise.mapping.constants import STEP
from labelwise.models.evaluate import signals

pytestmark = pytest.mark.filterwarnings("ignore:residuals are", "ignore:.* share the largest")
B1 = np.repeat([0.8, 0.95, 1.1], 4).reshape(3, 2, 2)
VFA = lw.T1VariableFlipAngle([2, 5, 10, 20], tr=12)
TRAIN = lw.T2MultiEchoB1(10.0 * np.arange(1, 7), b1=0.9)


def save(path, data):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.eye(4)), path)
    return path


def values(folder, name):
    return nib.load(folder / f"{name}.nii.gz").get_fdata()


@pytest.fixture
def b1(tmp_path):
    return save(tmp_path / "b1.nii.gz", B1)


def vfa(tmp_path, b1=B1):
    """Noise-free images of T1 900 ms with the flip angles of B1, by the closed form."""
    angle, e = np.deg2rad(VFA.flip_angle * b1[..., None]), np.exp(-12 / 900)
    signal = 5000 * np.sin(angle) * (1 - e) / (1 - e * np.cos(angle))
    return save(tmp_path / "vfa.nii.gz", signal)


def test_b1_of_each_voxel_gives_the_true_t1(tmp_path, b1):
    image, out = vfa(tmp_path), tmp_path / "out"
    report = lw.fit_image(image, VFA, out=out, constants={"b1": b1}, sigma=0.01)
    np.testing.assert_allclose(values(out, "T1"), 900, rtol=2.1 * STEP)
    assert (values(out, "T1_low") < values(out, "T1_high")).all()
    lw.fit_image(image, VFA, out=tmp_path / "plain", sigma=0.01)
    wrong = values(tmp_path / "plain", "T1") / 900
    np.testing.assert_allclose(wrong, B1**2, rtol=0.1)
    assert any("b1 is 0.800 to 1.100 inside the mask" in note for note in report.notes)
    record = json.loads((out / "run.json").read_text())
    assert record["model"]["constants"] == {"tr": 12.0, "b1": str(b1)}
    assert str(b1) in record["inputs"]


def test_b1_of_each_voxel_gives_the_true_t2(tmp_path, b1):
    """The signals are of the model that has B1 as a parameter."""
    params = np.stack([np.full(12, 800.0), np.full(12, 60.0), B1.ravel()], axis=1)
    signal = signals(lw.T2MultiEcho(TRAIN.te), params).reshape(*B1.shape, -1)
    image = save(tmp_path / "train.nii.gz", signal)
    out = tmp_path / "out"
    given = {"sigma": 0.1, "uncertainty": "standard_error"}  # which compiles less
    lw.fit_image(image, TRAIN, out=out, constants={"b1": b1}, **given)
    np.testing.assert_allclose(values(out, "T2"), 60, rtol=STEP)


def test_a_map_of_one_value_is_the_number(tmp_path):
    image = vfa(tmp_path, 1 + 0 * B1)
    same = save(tmp_path / "one.nii.gz", np.ones(B1.shape))
    lw.fit_image(image, VFA, out=tmp_path / "a", sigma=0.01)
    lw.fit_image(image, VFA, out=tmp_path / "b", sigma=0.01, constants={"b1": same})
    for name in ("S0", "T1", "T1_low", "status"):
        a, b = (values(tmp_path / each, name) for each in "ab")
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_a_map_of_constants_must_be(tmp_path, b1):
    given = {"sigma": 0.01, "out": tmp_path / "out"}
    image = vfa(tmp_path)
    holes = save(tmp_path / "holes.nii.gz", np.where(B1 > 1, 0, B1))
    with pytest.raises(lw.InputError, match=r"4 of 12 have none; leave them out by --mask"):
        lw.fit_image(image, VFA, constants={"b1": holes}, **given)
    mask = save(tmp_path / "mask.nii.gz", B1 <= 1)
    lw.fit_image(image, VFA, constants={"b1": holes}, mask=mask, **given)
    assert np.isnan(values(tmp_path / "out", "T1")).sum() == 4
    given["out"] = tmp_path / "other"
    percent = save(tmp_path / "percent.nii.gz", 100 * B1)
    with pytest.raises(lw.InputError, match=r"percent.nii.gz: T1VariableFlipAngle.b1: .* got 80"):
        lw.fit_image(image, VFA, constants={"b1": percent}, **given)
    with pytest.raises(lw.InputError, match="has no b2; its constants are tr, b1"):
        lw.fit_image(image, VFA, constants={"b2": b1}, **given)
    assert not given["out"].exists()
