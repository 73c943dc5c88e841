import json
from pathlib import Path

import dipy.data
import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from helpers import SHAPE, SIGMA, TRUTH, B, Job, inside
from labelwise.io.acquisition import read_bvals, read_times
from labelwise.io.nifti import file_hash
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.request import Request
from labelwise.models import ADC, IVIM, T1InversionRecovery
from labelwise.noise import Gaussian, Rician
from labelwise.types import ENDINGS, Status

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 3.0, -70], [0, 0, 0, 1]])
DIPY = Path(dipy.data.__file__).parent / "files"
SCANS = Path(__file__).parents[3] / "shared" / "data"


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def ask(tmp_path, data):
    """A request to fit that series; options replace what it asks for."""

    def request(values=data, **options):
        asked = Job.of(
            ByFit(),
            image=save(tmp_path / "dwi.nii.gz", values),
            model=ADC(b=B),
            noise=Rician(),
            sigma=SIGMA,
            folder=tmp_path / "maps",
            mask=save(tmp_path / "mask.nii.gz", inside().astype(np.uint8)),
            uncertainty="standard_error",
        )
        return asked.replaced(**options)

    return request


def load(folder, name):
    return np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)


def sidecar(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, data):
    """One plain run, for the tests that only look at what it wrote."""
    folder = tmp_path_factory.mktemp("fitted")
    bvals = folder / "dwi.bval"
    bvals.write_text(" ".join(f"{1000 * b:g}" for b in B))
    seen = []
    request = Job.of(
        ByFit({"ADC": (0.1, 3.0)}),
        image=save(folder / "dwi.nii.gz", data),
        model=ADC(b=read_bvals(bvals)),
        noise=Rician(),
        sigma="repeats",
        folder=folder / "maps",
        mask=save(folder / "mask.nii.gz", inside().astype(np.uint8)),
        sources={"b": bvals},
        command="labelwise fit ...",
        uncertainty="both",
    )
    report = request.run(lambda *progress: seen.append(progress))
    return request, report, seen


def test_every_map_is_there_with_a_sidecar(fitted):
    folder = fitted[0].folder
    names = [
        *(f"{name}{end}" for name in ("S0", "ADC") for end in ("", *ENDINGS) if end != "_sd"),
        *("status", "on_bound", "nll", "residual", "runner_up", "iterations"),
    ]
    written = {path.name for path in folder.iterdir()}
    maps = {f"{name}.{ending}" for name in names for ending in ("nii.gz", "json")}
    assert written == maps | {"run.json", "maps.png", "report.html"}


def test_the_truth_comes_back(fitted):
    request, report, _ = fitted
    for summary, truth in zip(report.parameters, TRUTH, strict=True):
        assert summary.quartiles[1] == pytest.approx(truth, rel=0.02)
    assert report.residual == pytest.approx(1, abs=0.2)
    values, errors = load(request.folder, "ADC"), load(request.folder, "ADC_standard_error")
    z = (values - TRUTH[1])[inside()] / errors[inside()]
    assert 0.6 < z.std() < 1.5


def test_the_ends_of_intervals_are_written(fitted):
    folder = fitted[0].folder
    low, high, values, width = (
        load(folder, f"ADC{end}")[inside()] for end in ("_low", "_high", "", "_uncertainty")
    )
    assert np.all((low < values) & (values < high))
    np.testing.assert_allclose(width, (high - low) / 2, rtol=1e-5)
    assert np.mean((low <= TRUTH[1]) & (TRUTH[1] <= high)) > 0.8
    entries = sidecar(folder, "ADC_low")
    assert (entries["interval"], entries["level"]) == ("confidence", 0.95)


def test_mended_geometry_of_every_image_is_noted(ask, tmp_path):
    def disagreeing(name, values):
        image = nib.Nifti1Image(values, AFFINE)
        image.header.set_sform(AFFINE, code=1)
        image.header.set_qform(AFFINE + 50 * np.eye(4)[:, [1, 2, 3, 0]] * (np.eye(4)[3]), code=1)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    job = ask(
        mask=disagreeing("mask2.nii", inside().astype(np.uint8)),
        sigma=disagreeing("sigma.nii", np.full(SHAPE, SIGMA)),
        exclude_map=disagreeing("bad.nii", np.zeros((*SHAPE, len(B)), np.uint8)),
    )
    with pytest.warns(UserWarning, match="its qform and its sform disagree"):
        report = job.run()
    noted = [note.partition(": its qform")[0] for note in report.notes if "its qform" in note]
    assert sorted(noted) == sorted(str(tmp_path / n) for n in ("mask2.nii", "sigma.nii", "bad.nii"))


def test_maps_keep_the_geometry_and_leave_out_what_is_outside_the_mask(fitted):
    folder = fitted[0].folder
    image = nib.load(folder / "ADC.nii.gz")
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.isfinite(load(folder, "ADC")), inside())
    status = load(folder, "status")
    assert np.all(status[~inside()] == Status.NOT_FITTED)
    assert np.all(status[inside()] == Status.CONVERGED)
    assert load(folder, "on_bound").shape == (*SHAPE, 2)


def test_sidecars_say_what_one_must_know(fitted):
    request, report, _ = fitted
    said = sidecar(request.folder, "ADC")
    assert (said["unit"], said["bounds"]) == ("µm²/ms", [0.1, 3.0])
    assert said["model"]["equation"] == "S(b) = S0 exp(-b ADC)."
    assert said["noise"] == "Rician"
    assert said["sigma"]["method"] == "repeats"
    assert said["sigma"]["sigma"] == report.sigma.sigma
    assert said["acquisition"]["settings"]["b"] == {
        "unit": "s/mm²",
        "values": (1000 * B).tolist(),
    }
    assert said["command"] == "labelwise fit ..."
    assert {"labelwise", "jax", "numpy", "nibabel", "python"} <= said["versions"].keys()
    paths = [request.image, request.mask, request.request.sources["b"]]
    assert said["inputs"] == {str(path): file_hash(path) for path in paths}
    assert sidecar(request.folder, "status")["codes"]["3"] == "not converged"


def test_the_record_of_the_run(fitted):
    request, report, _ = fitted
    run = sidecar(request.folder, "run")
    assert run["voxels"] == {"inside": 40, "status": {"converged": 40}}
    assert [p["name"] for p in run["parameters"]] == ["S0", "ADC"]
    assert run["parameters"][1]["median"] == report.parameters[1].quartiles[1]
    assert set(run["seconds"]) == {"prepare", "fit", "write"}
    assert run["notes"] == []


def test_the_picture_is_one(fitted):
    assert matplotlib.image.imread(fitted[0].folder / "maps.png").shape[2] == 4


def test_progress_begins_at_none_and_ends_at_all(fitted):
    assert fitted[2] == [("fitting", 0, 40, ""), ("fitting", 40, 40, "")]


def test_both_estimates_of_sigma_are_recorded(fitted):
    _, report, _ = fitted
    assert report.sigma.sigma == pytest.approx(SIGMA, rel=0.2)
    (other,) = report.other_sigma
    assert other.method == "background"
    assert other.sigma == pytest.approx(SIGMA, rel=0.1)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (np.nan, Status.NOT_FINITE),
        (np.inf, Status.NOT_FINITE),
        (-1.0, Status.NEGATIVE),
        (0.0, Status.ALL_ZERO),
    ],
)
def test_a_bad_voxel_changes_no_other(ask, data, tmp_path, value, status):
    ask().run()
    clean = {name: load(tmp_path / "maps", name) for name in ("S0", "ADC", "nll", "status")}
    bad = data.copy()
    bad[4, 4, 1] = value
    report = ask(bad, folder=tmp_path / "again").run()
    assert report.voxels[status] == 1
    others = np.ones(SHAPE, bool)
    others[4, 4, 1] = False
    for name, values in clean.items():
        np.testing.assert_array_equal(load(tmp_path / "again", name)[others], values[others])
    assert np.isnan(load(tmp_path / "again", "ADC")[4, 4, 1])
    assert load(tmp_path / "again", "status")[4, 4, 1] == status


def test_blocks_change_nothing(ask, tmp_path, monkeypatch):
    from labelwise.io.nifti import Series

    ask().run()
    blocks = Series.blocks
    monkeypatch.setattr(
        Series, "blocks", lambda self, mask, size=7, volumes=None: blocks(self, mask, 7, volumes)
    )
    ask(folder=tmp_path / "again").run()
    for name in ("S0", "ADC", "status"):
        np.testing.assert_array_equal(load(tmp_path / "again", name), load(tmp_path / "maps", name))


def test_a_map_of_sigma_is_used_voxel_by_voxel_and_written_down(ask, tmp_path):
    sigma = np.full(SHAPE, SIGMA, np.float32)
    sigma[4, 4, 0] = 0.0
    report = ask(sigma=save(tmp_path / "sigma.nii.gz", sigma)).run()
    assert report.voxels == {Status.CONVERGED: 39, Status.BAD_SIGMA: 1}
    assert (report.sigma.method, report.sigma.sigma) == ("map", SIGMA)
    np.testing.assert_array_equal(load(tmp_path / "maps", "sigma")[inside()], sigma[inside()])
    values = load(tmp_path / "maps", "ADC")
    ask(folder=tmp_path / "again").run()
    fitted = np.isfinite(values)
    np.testing.assert_array_equal(values[fitted], load(tmp_path / "again", "ADC")[fitted])


def test_averaging_is_a_fit_of_the_averages(ask, data, tmp_path):
    report = ask(average="arithmetic", noise=Gaussian()).run()
    groups = [[0, 1, 2, 3], [4], [5, 6], [7]]
    means = np.stack([data[..., group].mean(-1) for group in groups], -1)
    assert report.residual == pytest.approx(1, abs=0.4)
    said = sidecar(tmp_path / "maps", "ADC")["acquisition"]
    assert said["averaged_volumes"] == [4, 1, 2, 1]
    assert said["sigma_factor"] == pytest.approx([0.5, 1, 2**-0.5, 1])
    assert said["fitted_settings"]["b"]["values"] == [0, 100, 400, 800]
    s0, adc = (load(tmp_path / "maps", name)[inside()] for name in ("S0", "ADC"))
    weights = np.array([4, 1, 2, 1])

    def misfit(s0, adc):
        model = s0[:, None] * np.exp(-np.outer(adc, [0, 0.1, 0.4, 0.8]))
        return (weights * (means[inside()] - model) ** 2).sum(1)

    best = misfit(s0, adc)
    for s0_step, adc_step in [(1, 0), (-1, 0), (0, 0.01), (0, -0.01)]:
        assert np.all(misfit(s0 + s0_step, adc + adc_step) > best)


def test_the_order_of_the_volumes_does_not_matter(ask, data, tmp_path):
    ask(sigma="repeats").run()
    order = np.random.default_rng(0).permutation(len(B))
    shuffled = ask(
        data[..., order], model=ADC(b=B[order]), sigma="repeats", folder=tmp_path / "again"
    )
    shuffled.run()
    np.testing.assert_allclose(
        load(tmp_path / "again", "ADC"), load(tmp_path / "maps", "ADC"), rtol=1e-4
    )


def test_b_up_to_the_tolerance_is_a_repeat_of_0(ask):
    b = np.where(B == 0, [0, 0.005, 0.005, 0.005, 1, 1, 1, 1], B)
    with pytest.raises(ValueError, match=r"at least 2 volumes at b = 0 \(up to 1 s/mm²\), got 1"):
        ask(model=ADC(b=b), sigma="repeats").run()
    report = ask(model=ADC(b=b), sigma="repeats", b_tolerance=0.005).run()
    assert "4 repeats" in report.sigma.note


def refuse(request, match):
    with pytest.raises(ValueError, match=match):
        request.run()
    assert not request.folder.exists()


def test_counts_must_agree(ask, tmp_path):
    request = ask(model=ADC(b=[*B, 1.0]), sources={"b": tmp_path / "dwi.bval"})
    refuse(request, r"^b-values: 9 in dwi\.bval, but dwi\.nii\.gz has 8 volumes$")


def test_fewer_measurements_than_parameters(ask, data):
    model = IVIM(b=[0, 0.1, 0.8])
    refuse(ask(data[..., :3], model=model), "3 measurements cannot determine 4 parameters")


def test_a_single_distinct_b(ask):
    refuse(ask(model=ADC(b=np.full(8, 0.8))), "b-values: all 8 are the same")


def test_a_single_distinct_b_within_the_tolerance(ask):
    refuse(ask(model=ADC(b=0.8 + 1e-4 * np.arange(8))), "b-values: all 8 are the same")


ON_BOUND = pytest.mark.filterwarnings(
    "ignore:.*of the fitted voxels lie on", "ignore:.* are ambiguous"
)


def test_settings_that_determine_only_a_combination_are_refused(ask, data):
    kept = B != 0.1
    message = "cannot be distinguished.*; IVIM needs b = 0, a b below 100"
    refuse(ask(data[..., kept], model=IVIM(b=B[kept])), message)


@ON_BOUND
@pytest.mark.filterwarnings("ignore:sigma", "ignore:residuals are")
def test_few_distinct_settings_are_noted(ask):
    b = np.where(B == 0.1, 0.0009, B)  # equal to 0 by the tolerance
    with pytest.warns(UserWarning, match="only 3 distinct ones for 4 parameters"):
        report = ask(model=IVIM(b=b)).run()
    assert "only 3 distinct" in report.notes[0]


@pytest.mark.filterwarnings("ignore:residuals are")
def test_most_voxels_on_a_bound_are_noted(ask):
    with (
        pytest.warns(UserWarning, match="100 % of the fitted voxels lie on a bound"),
        pytest.warns(UserWarning, match="lower bound of ADC, 2.9; in 100 % .* reject it, which sh"),
    ):
        report = ask(bounds={"ADC": (2.9, 3.0)}).run()
    assert any("shifts S0 and takes the standard error away" in note for note in report.notes)
    assert any("--bounds ADC=1.45:3 widens it" in note for note in report.notes)


def test_an_input_is_never_replaced_by_a_result(ask, tmp_path):
    request = ask(overwrite=True)
    series = request.image.rename(tmp_path / "ADC.nii.gz")
    before = series.read_bytes()
    with pytest.raises(ValueError, match=r"ADC\.nii\.gz: is an input of this run"):
        request.replaced(image=series, folder=tmp_path).run()
    assert series.read_bytes() == before


@pytest.mark.parametrize("how", ["geometric", "arithmetic"])
def test_an_average_hides_no_negative_measurement(ask, data, tmp_path, how):
    spoilt = data.copy()
    spoilt[4, 4, 1, 3] = -1
    with pytest.warns(UserWarning, match="averaged magnitudes"):
        ask(spoilt, average=how).run()
    assert load(tmp_path / "maps", "status")[4, 4, 1] == Status.NEGATIVE
    assert np.isnan(load(tmp_path / "maps", "ADC")[4, 4, 1])


def test_bounds_beyond_the_models_own_are_noted(ask):
    with pytest.warns(UserWarning, match="bounds: ADC from -1 to 3 goes beyond the model's own"):
        ask(bounds={"ADC": (-1, 3)}).run()


def test_averaged_magnitudes_are_noted(ask):
    with pytest.warns(UserWarning, match="averaged magnitudes are no longer Rician"):
        ask(average="arithmetic").run()


def test_bounds_of_no_parameter(ask):
    refuse(ask(bounds={"D_fast": (1, 2)}), "no parameter 'D_fast'")


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_sigma_must_be_positive(ask, sigma):
    refuse(ask(sigma=sigma), "sigma: expected a positive number")


def test_a_sigma_that_others_contradict_is_noted(ask):
    with pytest.warns(UserWarning, match="sigma") as caught:
        report = ask(sigma=2.0).run()
    assert [str(warning.message) for warning in caught] == list(report.notes)
    assert "repeats gives 1" in report.notes[0]
    assert "background gives" in report.notes[1]
    assert "residuals are" in report.notes[2]


def test_as_many_measurements_as_parameters_say_nothing_of_the_fit(ask, data):
    report = ask(data[..., [0, 7]], model=ADC(b=[0, 0.8])).run()
    assert np.isnan(report.residual)
    assert report.notes == ()


def test_clipped_images_are_noted(ask, data):
    with pytest.warns(UserWarning, match="voxels .* share the largest value of the series, 512"):
        ask(np.minimum(data, 512)).run()


def test_nothing_fitted_is_noted(ask, data):
    with pytest.warns(UserWarning, match="no voxel could be fitted"):
        report = ask(np.zeros_like(data)).run()
    assert report.voxels == {Status.ALL_ZERO: 40}
    assert report.as_dict()["voxels"]["status"] == {"all measurements zero": 40}


def test_a_full_disk_leaves_nothing(ask, monkeypatch):
    from labelwise.io.results import Output

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Output, "write_run", full)
    with pytest.raises(OSError, match="No space left on device"):
        ask().run()
    assert not ask().folder.exists()


@pytest.mark.filterwarnings(
    "ignore:residuals are", "ignore:volume .* sigma"
)  # not mono-exponential
def test_real_multi_shell_diffusion(tmp_path):
    """A 102-volume scan, b up to about 4000 s/mm², one b = 15: diffusivity of brain tissue."""
    b = read_bvals(DIPY / "small_101D.bval")
    low = b <= 1.5
    series = nib.load(DIPY / "small_101D.nii.gz")
    image = save(tmp_path / "dwi.nii.gz", np.asarray(series.dataobj)[..., low], series.affine)
    request = Job(Request(image, ADC(b=b[low]), Rician(), 20.0, tmp_path / "maps"), ByFit())
    report = request.run()
    fitted = report.voxels[Status.CONVERGED] + report.voxels.get(Status.ON_BOUND, 0)
    assert fitted > 0.9 * 600
    assert 0.4 < report.parameters[1].quartiles[1] < 1.5
    np.testing.assert_array_equal(nib.load(tmp_path / "maps/ADC.nii.gz").affine, series.affine)


@pytest.mark.filterwarnings(
    "ignore:residuals are", "ignore:volume .* sigma"
)  # the model is not all
@pytest.mark.filterwarnings("ignore:measurements that are zero")  # volume 23, of b = 200
@ON_BOUND
@pytest.mark.skipif(not SCANS.exists(), reason="the shared scans are not there")
def test_real_abdomen(tmp_path):
    scan = SCANS / "abdomen_ivim_repeats"
    request = Job.of(
        ByFit(),
        image=scan / "dwi.nii.gz",
        model=IVIM(b=read_bvals(scan / "dwi.bval")),
        noise=Rician(),
        sigma="repeats",
        folder=tmp_path / "maps",
        mask=scan / "mask.nii.gz",
    )
    with pytest.warns(UserWarning, match="the repeats differ by more than noise"):
        report = request.run()
    assert 2.0 < report.sigma.sigma < 3.5
    assert 3.0 < report.sigma.scatter < 6.0
    liver = np.asarray(nib.load(scan / "rois.nii.gz").dataobj).reshape(100, 96) == 2
    d_slow = load(tmp_path / "maps", "D_slow").reshape(100, 96)[liver]
    assert 0.6 < np.nanmedian(d_slow) < 1.6


@pytest.mark.filterwarnings("ignore:residuals are", "ignore:volume .* sigma")  # air
@pytest.mark.filterwarnings("ignore:measurements that are zero")  # at the null, and in air
@ON_BOUND
@pytest.mark.skipif(not SCANS.exists(), reason="the shared scans are not there")
def test_real_t1_phantom(tmp_path):
    scan = SCANS / "t1_phantom"
    times = read_times(str(scan / "inversion_recovery.ti"), "ti")
    request = Job.of(
        ByFit(),
        image=scan / "inversion_recovery.nii.gz",
        model=T1InversionRecovery(ti=times),
        noise=Rician(),
        sigma=5.0,
        folder=tmp_path / "maps",
    )
    with pytest.warns(UserWarning, match="share the largest value of the series, 4095"):
        request.run()
    water = load(tmp_path / "maps", "T1")[120:136, 60:70]
    assert 2000 < np.nanmedian(water) < 4000


@pytest.mark.filterwarnings("ignore:sigma", "ignore:residuals", "ignore:.* bound")
def test_a_doubt_about_units_needs_no_file(ask):
    """The settings came from Python, in another unit."""
    job = ask(model=ADC(b=B / 100))
    with pytest.warns(UserWarning, match="check that its unit is s/mm²"):
        report = job.run()
    assert any("check that its unit is s/mm²" in note for note in report.notes)
