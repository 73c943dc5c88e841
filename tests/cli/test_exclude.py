"""`--exclude` in words."""

import numpy as np
import pytest

from labelwise.cli.options import exclusions, noise_model, signed_model
from labelwise.noise import Gaussian, NoncentralChi, Rician
from labelwise.types import InputError

B = np.array([0, 0.005, 0.1, 0.4, 0.8, 0.8, 1.2])


@pytest.mark.parametrize(
    ("text", "volumes"),
    [
        ("0", [0]),
        ("5,1-3", [1, 2, 3, 5]),
        ("6 2", [2, 6]),
        ("b=800:800", [4, 5]),
        ("b=400:", [3, 4, 5, 6]),
        ("b=:5", [0, 1]),
        ("te=:20", [0, 1]),
    ],
)
def test_volumes_by_number_or_setting(text, volumes):
    settings = {"b": B, "te": np.array([10.0, 20, 30, 40, 50, 60, 70])}
    assert exclusions([text], settings) == (volumes, None)


def test_several_are_joined(tmp_path):
    path = tmp_path / "outliers.nii.gz"
    assert exclusions(["1", str(path), "b=1000:"], {"b": B}) == ([1, 6], path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["7"], "from 0 to 6 .*, got 7"),
        (["0-99999999999999"], "from 0 to 6 .*, got 0-99999999999999"),
        (["5-2"], "got 5-2"),
        (["b=810:1100"], "no volume has b in this range"),
        (["b=800"], "expected NAME=LOW:HIGH"),
        (["b=5:1"], "expected NAME=LOW:HIGH"),
        (["b=nan:"], "expected NAME=LOW:HIGH"),
        (["ti=1:2"], r"with a setting \(b\)"),
        (["1;2"], "numbers of volumes"),
        (["a.nii", "b.nii"], "expected one 4D map, got 2"),
    ],
)
def test_anything_else_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        exclusions(texts, {"b": B})


def test_signed_images_have_gaussian_noise():
    assert noise_model(None, signed=True) == noise_model("gaussian", signed=True) == Gaussian()
    assert noise_model(None) == noise_model("rician") == Rician()
    assert noise_model("noncentral-chi:4") == NoncentralChi(4)
    for name in ("rician", "Rician", "noncentral-chi:4"):
        with pytest.raises(InputError, match=rf"--noise {name}: is the noise of magnitudes"):
            noise_model(name, signed=True)
    assert signed_model("t1_ir", signed=True) == "t1_ir_signed"
    assert signed_model("adc", signed=True) == "adc"
