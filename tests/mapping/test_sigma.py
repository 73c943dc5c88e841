"""The noise level of a series: which method is taken, and what the others give."""

import json
import sys

import jax
import nibabel as nib
import numpy as np
import pytest

from labelwise import fit_image
from labelwise.fitting import MaximumLikelihood
from labelwise.io.nifti import open_series
from labelwise.mapping.method import with_scatter
from labelwise.mapping.request import Request
from labelwise.mapping.sigma import noise_level
from labelwise.models import ADC, IVIM, T1InversionRecovery
from labelwise.noise import Gaussian, NoncentralChi, Rician
from labelwise.types import InputError, Status, has_values

SIGMA = 15.0
SHAPE = (24, 24, 3)
B = np.array([0, 0, 0, 0, 0.1, 0.3, 0.5, 0.8, 1.0])
LONG = np.repeat([0, 0.1, 0.3, 0.5, 0.8], 6)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def magnitude(rng, clean, noise=None):
    noise = noise or Rician()
    if not noise.magnitude:
        return clean + rng.normal(0, SIGMA, clean.shape)
    coils = getattr(noise, "coils", 1)
    squares = [rng.normal(0, SIGMA, clean.shape) ** 2 for _ in range(2 * coils - 1)]
    return np.sqrt((clean + rng.normal(0, SIGMA, clean.shape)) ** 2 + sum(squares))


def where(kind="object"):
    """The voxels of an object, and of a small region inside it."""
    mask = np.zeros(SHAPE, bool)
    low, high = {"object": (4, 20), "roi": (8, 16)}[kind]
    mask[low:high, low:high] = True
    return mask


def tissue(b=B, everywhere=False):
    """The noise-free signal of an object of varying S0 and ADC, in air unless it is everywhere."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, 24)] * 2, indexing="ij")
    s0 = np.repeat((600 + 300 * np.sin(3 * x) * np.cos(4 * y))[..., None], 3, axis=2)
    adc = np.repeat((1.2 + 0.5 * np.cos(3 * x + 2 * y))[..., None], 3, axis=2)
    signal = s0[..., None] * np.exp(-b * adc[..., None])
    return signal if everywhere else signal * where()[..., None]


@pytest.fixture
def found(tmp_path):
    """The noise of a series by some method."""

    def find(values, sigma="auto", mask="object", b=B, noise=None, model=None):
        image = tmp_path / "dwi.nii"
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), image)
        inside = where(mask) if mask else np.ones(SHAPE, bool)
        request = Request(
            *(image, model or ADC(b=b), noise or Rician(), sigma, tmp_path / "maps"),
            mask=tmp_path / "mask.nii" if mask else None,
        )
        with open_series(image) as series:
            return noise_level(request, series, inside.ravel(order="F"))

    return find


def by_method(noise):
    return {level.method: level for level in (noise.level, *noise.others)}


@pytest.mark.parametrize("noise", [Rician(), Gaussian(), NoncentralChi(4)], ids=repr)
def test_every_method_finds_the_noise_of_a_good_scan(found, rng, noise):
    result = found(magnitude(rng, tissue(LONG), noise), b=LONG, noise=noise)
    levels = by_method(result)
    assert set(levels) == {"repeats", "mppca", "background", "residuals"}
    for level in levels.values():
        assert level.sigma == pytest.approx(SIGMA, rel=0.07)
    assert result.level.method == "repeats"
    assert (result.level.scatter, result.notes, result.refused) == (None, [], {})


@pytest.mark.parametrize("mask", ["object", "roi", None])
@pytest.mark.parametrize("method", ["repeats", "background", "residuals", "mppca"])
def test_a_method_with_any_mask(found, rng, method, mask):
    result = found(magnitude(rng, tissue(LONG)), method, mask, LONG)
    assert result.level.method == method
    assert result.level.sigma == pytest.approx(SIGMA, rel=0.1)  # 192 voxels in the region


def test_tissue_outside_a_mask_is_no_background(found, rng):
    data = magnitude(rng, tissue(everywhere=True))
    with pytest.raises(InputError, match="there is no air"):
        found(data, "background", "roi")
    data[:6] = data[-6:] = 0  # blanked
    with pytest.raises(InputError, match="there is no air"):
        found(data, "background", "roi")


def test_a_background_that_failed_its_test_is_never_quoted(found, rng):
    data = magnitude(rng, tissue(everywhere=True))
    given = found(data, SIGMA, "roi")
    assert [level.method for level in given.others] == ["repeats"]
    auto = found(data, "auto", "roi")
    assert "background" not in by_method(auto)
    assert "there is no air" in auto.refused["background"]


def test_little_air_among_tissue_is_found(found, rng):
    clean = tissue(everywhere=True)
    clean[:3] = 0
    assert found(magnitude(rng, clean), "background", "roi").level.sigma == pytest.approx(
        SIGMA, rel=0.03
    )


@pytest.mark.parametrize(
    ("b", "spoil", "taken"),
    [
        (LONG, None, "repeats"),
        (LONG, "drift", "mppca"),
        (B, "drift", "background"),
        (B[3:], None, "background"),
        (B[3:], "no air", "residuals"),
    ],
    ids=["repeats", "many volumes", "few volumes", "no repeats", "nothing else"],
)
def test_auto_takes_the_first_that_passes(found, rng, b, spoil, taken):
    clean = tissue(b, everywhere=spoil == "no air")
    if spoil == "drift":
        clean[..., b == 0] *= 1 - 0.05 * np.arange((b == 0).sum())
    result = found(magnitude(rng, clean), b=b)
    assert result.level.method == taken
    assert result.level.sigma == pytest.approx(SIGMA, rel=0.1)
    for level in result.others:
        assert level.doubt if level.method == "repeats" else not level.doubt
    for reason in result.refused.values():
        assert reason
        assert ";" not in reason


def test_auto_without_dipy(found, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "dipy.denoise.localpca", None)
    data = magnitude(rng, tissue(LONG))
    result = found(data, b=LONG)
    assert result.refused == {
        "mppca": "needs dipy, which pip install 'labelwise[mppca]' adds",
    }
    with pytest.raises(InputError, match=r"needs dipy, which pip install 'labelwise\[mppca\]'"):
        found(data, "mppca", b=LONG)


def test_auto_where_nothing_gives_sigma(found):
    with pytest.raises(InputError, match="no method can estimate it: repeats: expected at least"):
        found(tissue(B[[0, 8]]), b=B[[0, 8]])


@pytest.mark.parametrize("method", ["auto", "repeats"])
@pytest.mark.parametrize("volumes", [B, LONG], ids=["background", "mppca"])
def test_b_values_that_are_not_0_are_scatter_and_not_the_floor(found, rng, method, volumes):
    """dcm2niix#394: 10 to 50 s/mm² written as 0."""
    clean, zero = tissue(volumes), volumes == 0
    clean[..., zero] *= np.linspace(1, 0.8, zero.sum())
    result = found(magnitude(rng, clean), method, b=volumes)
    assert result.level.sigma == pytest.approx(SIGMA, rel=0.1)
    assert result.level.scatter > 2 * SIGMA
    (note,) = result.notes
    assert "the median of a repeat differs" in note
    assert f"{result.level.sigma:.3g} ({result.level.method}) was used as the noise floor" in note
    assert "multiplies the standard errors by" in note


def test_uniform_scatter_is_told_from_the_floor_by_the_background(found, rng):
    """In tissue of one S0, repeats that scatter at random look like noise by themselves."""
    clean = np.where(where()[..., None], 600 * np.exp(-B), 0)
    clean[..., :4] *= 1 + 0.06 * rng.standard_normal((*SHAPE, 4))
    result = found(magnitude(rng, clean), "repeats")
    assert (result.level.method, result.level.scatter > 2 * SIGMA) == ("background", True)
    assert "times the noise floor (background)" in result.notes[0]


def test_repeats_without_a_floor_say_what_follows(found, rng):
    clean = tissue(everywhere=True)
    clean[..., :4] *= np.linspace(1, 0.8, 4)
    result = found(magnitude(rng, clean), "repeats")
    assert (result.level.method, result.level.scatter) == ("repeats", None)
    assert "no other method gave the noise floor" in result.notes[0]
    assert "give the noise floor as a number" in result.notes[0]


def test_gaussian_scatter_is_the_noise(found, rng):
    clean = tissue()
    clean[..., :4] *= np.linspace(1, 0.8, 4)
    result = found(magnitude(rng, clean, Gaussian()), "repeats", noise=Gaussian())
    assert (result.level.method, result.level.scatter) == ("repeats", None)
    assert "the standard errors contain their scatter" in result.notes[0]


def test_residuals_have_the_degrees_of_freedom_of_the_fit(found, rng):
    """Inversion recovery: 3 of 6 measurements are used up, and half the voxels lie on a bound."""
    ti = np.array([50.0, 200, 500, 1000, 2000, 4000])
    model = T1InversionRecovery(ti)
    k = np.where(np.arange(SHAPE[0]) % 2, 1.9, 2.2)[:, None, None, None]
    params = (np.full((*SHAPE, 1), 900.0), np.full((*SHAPE, 1), 700.0), k * np.ones((*SHAPE, 1)))
    clean = np.abs(np.asarray(model.signal(*params)))
    result = found(magnitude(rng, clean), "residuals", None, model=model)
    assert result.level.sigma == pytest.approx(SIGMA, rel=0.07)


def test_residuals_need_more_measurements_than_parameters(found, rng):
    with pytest.raises(InputError, match="2 measurements leave no residuals"):
        found(magnitude(rng, tissue(B[[0, 8]])), "residuals", b=B[[0, 8]])


def test_a_map_of_the_noise_by_mppca(found, rng):
    """Noise that doubles across the image, as with parallel imaging."""
    clean = tissue(LONG, everywhere=True)
    slope = np.linspace(0.7, 1.4, 24)[:, None, None, None]
    real, imaginary = slope * rng.normal(0, SIGMA, (2, *clean.shape))
    data = np.hypot(clean + real, imaginary)
    sigma = found(data, "mppca", None, LONG).sigma.reshape(SHAPE, order="F")
    assert np.median(sigma[:4]) == pytest.approx(0.76 * SIGMA, rel=0.12)
    assert np.median(sigma[-4:]) == pytest.approx(1.34 * SIGMA, rel=0.12)


def test_mppca_needs_enough_voxels(found, rng):
    b = np.linspace(0, 1, 200)
    with pytest.raises(InputError, match="expected at least 401 voxels with signal inside the"):
        found(magnitude(rng, tissue(b)), "mppca", "roi", b)


def test_scatter_enters_errors_and_not_estimates(rng):
    """Motion-like scatter of 2 to 4 times the floor: no bias of D, and honest errors."""
    b = np.tile([0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.8], 6)
    model, truth = IVIM(b), (600.0, 0.25, 1.1, 60.0)
    fitter = MaximumLikelihood(model, Rician())
    floor, ratio = 35.0, 4.0
    clean = np.tile(np.asarray(model.signal(*truth)), (400, 1))
    moved = clean * (1 + floor * np.sqrt(ratio**2 - 1) / truth[0] * rng.normal(size=clean.shape))
    real, imaginary = rng.normal(0, floor, (2, *clean.shape))
    data = np.hypot(moved + real, imaginary)
    scatter = np.sqrt(np.median(data[:, b == 0].var(axis=1, ddof=1)))
    estimate = fitter(data, floor)
    stats = with_scatter(estimate, np.full((1, 1), scatter / floor))
    good = estimate.status == Status.CONVERGED
    error = estimate.values[good, 2] - truth[2]
    covered = np.abs(error) < 1.96 * stats["standard_error"][good, 2]
    assert abs(np.median(error)) < 0.15
    assert covered.mean() > 0.95
    assert 0.5 < np.median(stats["residual"]) < 1.3
    before = fitter(data, scatter)  # one sigma as both
    good = before.status == Status.CONVERGED
    assert np.median(before.values[good, 2] - truth[2]) > 0.3


@pytest.fixture
def moving(tmp_path, rng):
    """The files of a scan whose repeats scatter by more than noise."""
    clean = tissue()
    clean[..., :4] *= 1 + 0.08 * rng.standard_normal((*SHAPE, 4))
    for name, values in (("dwi", magnitude(rng, clean)), ("mask", where().astype(np.uint8))):
        image = nib.Nifti1Image(values.astype(np.float32), np.eye(4))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_scatter_is_in_the_maps_and_the_record(moving):
    options = {"mask": moving / "mask.nii.gz", "model": ADC(b=B), "uncertainty": "both"}
    with pytest.warns(UserWarning, match="multiplies the standard errors"):
        report = fit_image(moving / "dwi.nii.gz", sigma="repeats", out=moving / "maps", **options)
    record = json.loads((moving / "maps" / "run.json").read_text())
    assert record["sigma"]["method"] == "background"
    assert record["sigma"]["scatter"] == report.sigma.scatter
    assert any("multiplies the standard errors" in note for note in record["notes"])
    assert record["other_sigma"][0]["doubt"]
    floor = report.sigma.sigma
    with pytest.warns(UserWarning, match="sigma"):
        fit_image(moving / "dwi.nii.gz", sigma=floor, out=moving / "plain", **options)

    def load(folder, name):
        return nib.load(moving / folder / f"{name}.nii.gz").get_fdata()

    excess = report.sigma.scatter / floor
    inside = has_values(load("maps", "status").astype(int))
    assert excess > 1.5
    np.testing.assert_array_equal(load("maps", "ADC"), load("plain", "ADC"))
    for name, power in (("ADC_standard_error", 1), ("residual", -1)):
        ratio = load("maps", name)[inside] / load("plain", name)[inside]
        np.testing.assert_allclose(ratio, excess**power, rtol=1e-5)
    for name in ("ADC_low", "ADC_high"):  # in proportion, within the bounds
        far = (load("plain", name) - load("plain", "ADC"))[inside]
        ends = np.clip(load("plain", "ADC")[inside] + excess * far, *ADC.parameters[1].bounds)
        np.testing.assert_allclose(load("maps", name)[inside], ends, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("noise", [Rician(), Gaussian(), NoncentralChi(8)], ids=repr)
def test_most_voxels_without_signal_are_noted_with_the_remedy(tmp_path, noise):
    signal = np.zeros((12, 12, 1, len(B)), np.float32)
    signal[4:8, 4:8] = 1000 * np.exp(-np.array(B))
    noisy = np.asarray(noise.sample(jax.random.key(0), signal, 15.0))
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), np.eye(4)), tmp_path / "dwi.nii")
    mask = (signal[..., 0] > 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii")
    report = fit_image(tmp_path / "dwi.nii", ADC(b=B), sigma=15, noise=noise, out=tmp_path / "maps")
    noted = [note for note in report.notes if "hold no signal above the noise" in note]
    assert len(noted) == 1
    assert noted[0].startswith("88.9 % of the voxels have no measurement above ")
    assert not any("residuals are" in note for note in report.notes)
    with_mask = fit_image(
        tmp_path / "dwi.nii",
        ADC(b=B),
        sigma=15,
        noise=noise,
        mask=tmp_path / "mask.nii",
        out=tmp_path / "masked",
    )
    assert not any("hold no signal" in note for note in with_mask.notes)


def test_auto_is_the_default(moving):
    with pytest.warns(UserWarning, match="sigma"):
        report = fit_image(
            moving / "dwi.nii.gz", ADC(b=B), out=moving / "maps", mask=moving / "mask.nii.gz"
        )
    assert (report.sigma.method, set(report.refused_sigma)) == ("background", {"mppca"})
    record = json.loads((moving / "maps" / "run.json").read_text())
    assert record["refused_sigma"] == report.refused_sigma
    assert {level["method"] for level in record["other_sigma"]} == {"repeats", "residuals"}


@pytest.mark.filterwarnings("ignore:no voxel could be fitted")  # all are "no signal"
@pytest.mark.parametrize("noise", [Rician(), Gaussian(), NoncentralChi(8)], ids=repr)
@pytest.mark.parametrize("sigma", [1.0, 15.0])
def test_sigma_above_the_signal_is_not_called_too_small(tmp_path, rng, noise, sigma):
    """DESIGNER#55: sigma in another unit than the data, whose own is 0.015."""
    data = magnitude(rng, tissue()[8:16, 8:16] * (1000 / 900), noise) / 1000
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / "dwi.nii.gz")
    with pytest.warns(UserWarning, match="sigma"):
        report = fit_image(
            tmp_path / "dwi.nii.gz", ADC(b=B), sigma=sigma, noise=noise, out=tmp_path / "maps"
        )
    assert any("sigma is as large as the signal" in note for note in report.notes)
    assert not any("too small" in note for note in report.notes)
