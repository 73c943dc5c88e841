"""The in vivo part: a scan that repeats its acquisition, real or simulated."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from labelwise.phantoms.pelvis import pelvis, write
from labelwise.study import methods
from labelwise.study.claims import CLAIMS
from labelwise.study.claims.judging import judge
from labelwise.study.evaluation import evaluate_fits, evaluate_networks, side_by_side
from labelwise.study.evidence import Evidence
from labelwise.study.networks import train_all
from labelwise.study.plots.selection import figures
from labelwise.study.records import Verdict
from labelwise.study.run import run_study
from labelwise.study.scan import GOLD, assess_scan, in_vivo_study, phantom, read_scan
from labelwise.study.stages import opened
from study.conftest import tiny

SMALL = {"shape": (28, 20, 1), "repeats": 6}


def quiet(what, done, total, words):
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pelvis")
    made = pelvis(**SMALL)
    write(made, folder)
    return folder, made


@pytest.fixture(scope="module")
def scan(files):
    folder, made = files
    return read_scan(folder / "dwi.nii.gz", {"b": made.b / 1000}, mask=folder / "mask.nii.gz")


def test_a_scan_is_read_voxel_by_voxel(files, scan):
    _, made = files
    assert np.allclose(scan.signal, made.series[made.mask], rtol=1e-5)
    assert np.array_equal(scan.inside, made.mask)
    assert scan.repeats.number == 6
    assert scan.sigma == pytest.approx(made.sigma, rel=0.05)
    assert scan.snr[1] == pytest.approx(15, rel=0.1)
    assert not scan.simulated


def test_sigma_may_be_given(files):
    folder, made = files
    scan = read_scan(folder / "dwi.nii.gz", {"b": made.b / 1000}, sigma=50.0)
    assert scan.sigma == 50
    assert scan.level is None
    assert len(scan.signal) == made.mask.size


def test_settings_must_fit_the_series(files):
    folder, _ = files
    with pytest.raises(ValueError, match=r"b: 3 values, but dwi\.nii\.gz has 60 volumes"):
        read_scan(folder / "dwi.nii.gz", {"b": np.zeros(3)})


def test_a_series_without_repeats_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 2, 3), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="the series has none"):
        read_scan(tmp_path / "a.nii.gz", {"b": np.array([0, 0.5, 1.0])})


@pytest.fixture(scope="module")
def assessed(files, scan, tmp_path_factory):
    _, made = files
    study = tiny(model=lw.IVIM(made.b[:10] / 1000), snrs=(15.0,), trainings=1, absolute_loss=False)
    with opened(tmp_path_factory.mktemp("stages"), quiet) as stages:
        networks = train_all(study, stages, 0)[15.0]
        grid = side_by_side(
            [
                evaluate_fits(study, stages, 15.0),
                evaluate_networks(study, stages, 15.0, networks, 0, whole=True),
            ]
        )
        found = assess_scan(study, stages, scan, networks)
    return study, grid, found


def test_the_gold_standard_is_near_the_truth(files, scan, assessed):
    _, made = files
    _, _, found = assessed
    truth = made.truth["D_slow"][made.mask]
    gold = found.in_vivo.reference[:, 2]
    good = np.isfinite(gold)
    assert good.mean() > 0.7
    assert np.median(abs(gold[good] - truth[good])) < 0.15
    assert found.factor == pytest.approx(np.median(made.truth["S0"][made.mask]), rel=0.05)
    assert sum(found.reference.left_out.values()) == (~good).sum()


def test_every_method_is_asked_about_the_scan_and_its_like(assessed):
    _, _, found = assessed
    wanted = {methods.MLE_MEAN, methods.GT, methods.SELF, methods.MLE_RICIAN, methods.MLE_GAUSSIAN}
    for data in (found.in_vivo.binned, found.in_vivo.matched):
        assert wanted <= set(data.estimator.values.tolist())
    count = found.in_vivo.binned["count"].sum("bin").values
    assert np.all(count[1:] == found.in_vivo.binned.attrs["used"])


def test_maps_have_the_gold_standard_first(assessed, scan):
    _, _, found = assessed
    assert found.maps.method.values[0] == GOLD
    gold = found.maps["value"].values[0, 1]
    inside = scan.inside[:, :, found.maps.attrs["slice"]]
    assert np.isnan(gold[~inside]).all()
    first = found.maps["value"].values[1, 1]
    assert np.isfinite(first[inside]).all()


def test_claims_and_figures_of_the_scan(assessed, scan):
    study, grid, found = assessed
    evidence = Evidence(study, {15.0: grid}, found.in_vivo)
    claims = {claim.key: claim for claim in judge(CLAIMS, evidence)}
    assert {"vivo", "smooth"} <= set(claims)
    spread = [part for part in claims["smooth"].parts if "D_fast" in part.what]
    assert all(part.verdict is Verdict.HOLDS for part in spread)
    keys = [drawn.key for drawn in figures(evidence, scan, found)]
    assert keys[:5] == [f"figure_0{n}" for n in (2, 4, 5, 6, 7)]


def test_a_in_vivo_study_a_scan_is_told_the_levels_it_holds(scan):
    model = lw.IVIM(scan.settings["b"])
    study = in_vivo_study(scan, model, "ivim", lw.Rician(), {"D_fast": (10.0, 120.0)})
    assert len(study.model.b) == 10
    assert study.normalise
    assert study.snrs == (15.0,)
    low, high = study.levels
    assert low < 1 / 15 < high
    assert study.prior.describe()["ranges"]["D_fast"] == [10.0, 120.0]


def test_the_phantom_is_called_simulated_and_left_as_files(tmp_path):
    made = phantom(tiny(), tmp_path)
    assert made.simulated
    assert "simulated" in made.name
    assert (tmp_path / "dwi.nii.gz").exists()


def test_the_phantom_has_the_studys_b_values(tmp_path):
    study = tiny(model=lw.IVIM([0, 0.1, 0.5, 1.5]))
    made = phantom(study, tmp_path)
    assert np.allclose(made.repeats.settings["b"], [0, 0.1, 0.5, 1.5])
    descending = tiny(model=lw.IVIM([0.5, 0.1, 0]), phantom=True)
    with pytest.raises(ValueError, match="ascending order"):
        run_study(descending, tmp_path / "out")


def test_a_scan_without_a_gold_standard_is_refused(files, scan, tmp_path):
    _, made = files
    dark = dataclasses.replace(scan, signal=np.full_like(scan.signal, 5.0), sigma=50.0)
    study = tiny(model=lw.IVIM(made.b[:10] / 1000), snrs=(15.0,))
    with (
        opened(tmp_path, quiet) as stages,
        pytest.raises(ValueError, match="have a gold standard to compare with"),
    ):
        assess_scan(study, stages, dark, {})


def test_the_phantom_is_of_ivim(tmp_path):
    study = tiny(
        model=lw.T2([10, 20, 40, 80]),
        model_name="t2",
        prior=lw.Uniform.typical(lw.T2([10, 20, 40, 80])),
        noise_floor=None,
        ill_determined=None,
        phantom=True,
    )
    with pytest.raises(ValueError, match="phantom: needs the model IVIM"):
        run_study(study, tmp_path / "out")
