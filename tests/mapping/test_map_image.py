"""`map_image` with a network that is made up, and with one that is read from a file."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

import labelwise as lw
from helpers import SHAPE, SIGMA, TRUTH, B, Job, inside
from labelwise.fitting import MaximumLikelihood, check_input
from labelwise.fitting.goodness import goodness
from labelwise.io.nifti import file_hash
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.by_network import ByNetwork, _Fits, model_of
from labelwise.mapping.images import fit_image
from labelwise.mapping.summary import NetworkUse
from labelwise.models import ADC, IVIM
from labelwise.networks.network import OUTSIDE_SIGNAL, blend
from labelwise.noise import Gaussian, Rician
from labelwise.types import Estimate, InputError, Status

SCANS = Path(__file__).parents[3] / "shared" / "data"


def save(path, data):
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def load(folder, name):
    return np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)


def record(folder, name="run"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture
def ask(tmp_path, data):
    """A request to map that series; options replace what it asks for."""

    def request(values=data, **options):
        asked = Job.of(
            ByNetwork(),
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


@dataclass
class LogLinear:
    """Stands in for a network: ADC from two volumes."""

    outside: int = 0
    parameters = ADC.parameters
    conditioned = False
    is_blend = False
    interval_kinds: ClassVar = {}

    def __call__(self, signal, sigma):
        status = check_input(signal, np.asarray(sigma)[:, None], Rician())
        good = status == Status.CONVERGED
        with np.errstate(all="ignore"):
            adc = np.log(signal[:, 0] / signal[:, 7]) / 0.8
        values = np.where(good[:, None], np.stack([signal[:, 0], adc], 1), np.nan)
        status = np.where(good, Status.EXTRAPOLATED if self.outside else Status.PREDICTED, status)
        outside = np.where(good, self.outside, 0).astype(np.uint8)
        errors = np.full_like(values, 0.1)
        return Estimate(values, status, {"standard_error": errors, "outside": outside})

    def save(self, path):
        Path(path).write_text("a network")


USE = NetworkUse(
    origin="trained",
    path=None,
    alpha={"S0": 1.0, "ADC": 1.0},
    trained=(0.01, 0.5),
    image=(0.02, 0.4),
    ranges={"ADC": (0.1, 3.5)},
    seconds={"train": 3.0},
    card={"label": {"kind": "none"}},
)


@dataclass(frozen=True)
class Given(ByNetwork):
    """As if this network had been trained for the series."""

    source: Any = None

    def _trained(self, request, signal, sigma, progress):
        return self.source(signal, sigma, progress)


def source(network=None, **changes):
    """A source of that network which has measured nothing."""
    return lambda signal, sigma, progress: (network or LogLinear(), replace(USE, **changes))


def map_image(job, source, progress=None):
    return Job(job.request, Given(**vars(job.method), source=source)).run(progress)


@pytest.fixture
def mapped(ask):
    seen = []
    request = ask(command="labelwise map ...")
    report = map_image(request, source(), lambda *progress: seen.append(progress))
    return request, report, seen


def test_every_map_is_there_with_a_sidecar_and_the_network_too(mapped):
    names = [
        *("S0", "S0_standard_error", "ADC", "ADC_standard_error"),
        *("status", "outside", "nll", "residual"),
    ]
    maps = {f"{name}.{ending}" for name in names for ending in ("nii.gz", "json")}
    written = {path.name for path in mapped[0].folder.iterdir()}
    assert written == maps | {"run.json", "maps.png", "report.html", "net.safetensors"}
    assert matplotlib.image.imread(mapped[0].folder / "maps.png").shape[2] == 4


def test_maps_hold_what_the_network_says_and_how_good_it_is(mapped, data):
    folder = mapped[0].folder
    signal = data[inside()]
    sigma = np.full(len(signal), SIGMA)
    estimate = LogLinear()(signal, sigma)
    nll, residual = goodness(ADC(b=B), Rician(), signal, sigma, estimate.values)
    expected = {
        "S0": estimate.values[:, 0],
        "ADC": estimate.values[:, 1],
        "ADC_standard_error": estimate.stats["standard_error"][:, 1],
        "nll": nll,
        "residual": residual,
        "status": estimate.status,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(load(folder, name)[inside()], values, rtol=1e-5)
    assert np.isnan(load(folder, "ADC")[~inside()]).all()
    assert np.all(load(folder, "status")[~inside()] == Status.NOT_FITTED)


def test_the_record_says_which_network_and_keeps_its_card(mapped):
    request, report, _ = mapped
    run = record(request.folder)
    assert run["voxels"] == {"inside": 40, "status": {"estimated by a network": 40}}
    assert run["network"]["origin"] == "trained"
    assert run["network"]["card"] == {"label": {"kind": "none"}}
    assert run["network"]["trained_for_snr"] == [2.0, 100.0]
    assert run["network"]["alpha"] == {"S0": 1.0, "ADC": 1.0}
    assert run["parameters"][1]["share_above_range"] == 0
    assert run["parameters"][0]["share_above_range"] is None  # relative to b = 0
    assert set(run["seconds"]) == {"prepare", "train", "start", "map", "write"}
    assert report.voxels_per_second == pytest.approx(40 / report.seconds["map"])
    said = record(request.folder, "ADC")
    assert said["unit"] == "µm²/ms"
    assert said["network"]["origin"] == "trained"
    assert "card" not in said["network"]
    assert said["command"] == "labelwise map ..."
    assert record(request.folder, "outside")["codes"]["2"] == "an estimate is outside"


def test_progress_begins_at_none_and_ends_at_all(mapped):
    assert mapped[2] == [("mapping", 0, 40, ""), ("mapping", 40, 40, "")]


def test_the_same_goodness_of_fit_as_the_fit(ask, tmp_path):
    """The fitter in the place of the network: the same nll and residual."""
    fitter = MaximumLikelihood(ADC(b=B), Rician())

    class Fitter(LogLinear):
        def __call__(self, signal, sigma):
            made = fitter(signal, sigma)
            outside = np.zeros(len(signal), np.uint8)
            return Estimate(made.values, made.status, {**made.stats, "outside": outside})

    asked = ask()
    by_network = map_image(asked, source(Fitter()))
    by_fit = Job(replace(asked.request, folder=tmp_path / "fit"), ByFit()).run()
    assert by_network.residual == pytest.approx(by_fit.residual, rel=1e-4)
    for name in ("S0", "ADC", "ADC_standard_error", "nll", "residual"):
        fitted, mapped = load(tmp_path / "fit", name), load(asked.folder, name)
        np.testing.assert_allclose(mapped, fitted, rtol=1e-3, atol=1e-3)


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
    map_image(ask(), source())
    bad = data.copy()
    bad[4, 4, 1] = value
    report = map_image(ask(bad, folder=tmp_path / "again"), source())
    assert report.voxels[status] == 1
    others = np.ones(SHAPE, bool)
    others[4, 4, 1] = False
    for name in ("S0", "ADC", "nll", "residual", "status"):
        now, was = load(tmp_path / "again", name), load(tmp_path / "maps", name)
        np.testing.assert_array_equal(now[others], was[others])
    for name in ("ADC", "nll", "residual"):
        assert np.isnan(load(tmp_path / "again", name)[4, 4, 1])
    assert load(tmp_path / "again", "status")[4, 4, 1] == status


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(ask, tmp_path, monkeypatch, threads):
    from labelwise.io.nifti import Series

    map_image(ask(), source())
    blocks = Series.blocks
    monkeypatch.setattr(
        Series,
        "blocks",
        lambda self, mask, size=7, volumes=None: (
            blocks(self, mask, min(size, 7), volumes)
            if size == 7
            else blocks(self, mask, size, volumes)
        ),
    )
    map_image(ask(folder=tmp_path / "again", threads=threads), source())
    for name in ("S0", "ADC", "status", "nll"):
        np.testing.assert_array_equal(load(tmp_path / "again", name), load(tmp_path / "maps", name))


def test_a_map_of_sigma_reaches_the_network_voxel_by_voxel(ask, tmp_path):
    sigma = np.full(SHAPE, SIGMA, np.float32)
    sigma[4, 4, 0] = 0.0
    report = map_image(ask(sigma=save(tmp_path / "sigma.nii.gz", sigma)), source())
    assert report.voxels == {Status.PREDICTED: 39, Status.BAD_SIGMA: 1}
    np.testing.assert_array_equal(load(tmp_path / "maps", "sigma")[inside()], sigma[inside()])


def test_the_source_sees_voxels_without_fault_only(ask, data):
    bad = data.copy()
    bad[4, 4, 1], bad[3, 3, 0] = np.nan, 0
    seen = []

    def look(signal, sigma, tell):
        seen.append((signal, sigma))
        return source()(signal, sigma, tell)

    map_image(ask(bad), look)
    ((signal, sigma),) = seen
    assert signal.shape == (38, len(B))
    assert np.isfinite(signal).all()
    np.testing.assert_array_equal(sigma, np.full(38, SIGMA))


def test_noise_outside_the_training_is_noted_with_numbers(ask):
    with pytest.warns(UserWarning, match="40 voxels .100 %. have a noise level") as caught:
        report = map_image(ask(), source(LogLinear(outside=1)))
    assert "trained for SNR 2 to 100, the image has 2.5 to 50" in str(caught[0].message)
    assert report.voxels == {Status.EXTRAPOLATED: 40}


def test_estimates_outside_the_training_are_noted_by_parameter(ask):
    narrow = source(LogLinear(outside=2), ranges={"ADC": (2.0, 3.0)})
    with pytest.warns(UserWarning, match=r"40 voxels .100 %. have an estimate .*\(ADC 100 %\)"):
        report = map_image(ask(), narrow)
    assert report.parameters[1].at_limits == (1.0, 0.0)


def test_measurements_that_the_estimate_does_not_explain_are_marked_and_noted(ask, data):
    odd = data.copy()
    odd[3:5, 3:5, :, 4] *= 3  # no exponential decay goes up on its way
    request = ask(odd)
    with pytest.warns(UserWarning, match="does not explain"):
        map_image(request, source())
    outside, residual = (load(request.folder, name) for name in ("outside", "residual"))
    np.testing.assert_array_equal((outside & 4) > 0, residual > 3)
    assert np.all(outside[3:5, 3:5] & 4)


def test_nothing_is_noted_when_all_is_well(mapped):
    assert mapped[1].notes == ()


def test_a_warning_points_to_the_line_of_the_call(ask, tmp_path):
    request = ask().request
    with pytest.warns(UserWarning, match="sigma") as caught:
        fit_image(request.image, request.model, sigma=2.0, out=tmp_path / "fit")
    assert {warning.filename for warning in caught} == {__file__}


def test_a_sigma_that_others_contradict_is_noted(ask):
    with pytest.warns(UserWarning, match="sigma"):
        report = map_image(ask(sigma=2.0), source())
    assert "repeats gives 1" in report.notes[0]


def test_repeats_that_scatter_enter_the_errors_of_a_network(ask, data):
    """As in a fit: the noise floor goes to the network, the scatter to errors and residuals."""
    moved = data.copy()
    moved[inside(), :4] *= np.linspace(1, 0.8, 4, dtype=np.float32)
    with pytest.warns(UserWarning, match="sigma"):
        report = map_image(ask(moved, sigma="repeats"), source())
    assert any("multiplies the standard errors" in note for note in report.notes)
    floor, scatter = report.sigma.sigma, report.sigma.scatter
    assert (report.sigma.method, scatter > 2 * floor) == ("background", True)
    folder = report.folder
    np.testing.assert_allclose(
        load(folder, "ADC_standard_error")[inside()], 0.1 * scatter / floor, rtol=1e-5
    )
    values = np.stack([load(folder, name)[inside()] for name in ("S0", "ADC")], axis=1)
    _, residual = goodness(ADC(b=B), Rician(), moved[inside()], floor, values)
    expected = residual * floor / scatter
    np.testing.assert_allclose(load(folder, "residual")[inside()], expected, rtol=1e-4)
    missed = (load(folder, "outside")[inside()] & OUTSIDE_SIGNAL) > 0
    np.testing.assert_array_equal(missed, expected > 3)
    assert np.any(residual > 3)


def refuse(request, match, error=ValueError):
    with pytest.raises(error, match=match):
        request.run()
    assert not request.folder.exists()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_alpha_is_from_0_to_1(ask, alpha):
    refuse(ask(alpha=alpha), r"alpha: expected a number from 0 \(least variance\)")


def test_alpha_of_no_parameter(ask):
    refuse(ask(alpha={"D_fast": 0.5}), "alpha: no parameter 'D_fast'; there are S0, ADC")


def test_a_prior_of_no_parameter(ask):
    refuse(ask(ranges={"D_fast": (1, 2)}), "no parameter 'D_fast'")


def test_nothing_to_train_for(ask, data):
    refuse(ask(np.zeros_like(data)), "no voxel inside the mask can be used")


def test_an_input_is_never_replaced_by_a_result(ask, tmp_path, net):
    path = net.rename(tmp_path / "ADC.nii.gz")
    before = path.read_bytes()
    request = ask(net=path, folder=tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"ADC\.nii\.gz: is an input of this run"):
        request.run()
    assert path.read_bytes() == before


def test_a_failed_training_leaves_nothing(ask):
    def fail(signal, sigma, tell):
        raise ValueError("labels: not one")

    with pytest.raises(ValueError, match="not one"):
        map_image(ask(), fail)
    assert not ask().folder.exists()


FIVE = ((0, 1, 2, 3), (4,), (5,), (6,), (7,))


@pytest.fixture
def made(random_network):
    """Makes networks with random weights for the ADC acquisition above."""

    def make(seed=0, model=None, conditioned=False, **card):
        groups = ((0, 1, 2, 3), (4,), (5, 6), (7,)) if conditioned else FIVE
        return random_network(model or ADC(b=B), groups, seed, conditioned, **card)

    return make


@pytest.fixture
def net(tmp_path, made):
    """The file of a blend."""
    path = tmp_path / "blend.safetensors"
    blend(made(0), made(1)).save(path)
    return path


BAD_FIT = pytest.mark.filterwarnings("ignore:residuals are", "ignore:.*does not explain")


@BAD_FIT
def test_a_network_from_a_file(ask, net, data, made):
    request = ask(net=net, alpha={"ADC": 0.25})
    report = request.run()
    assert not (request.folder / "net.safetensors").exists()
    use = record(request.folder)["network"]
    assert (use["origin"], use["path"]) == ("file", str(net))
    assert use["alpha"] == {"S0": 1.0, "ADC": 0.25}
    assert use["trained_for_snr"] == pytest.approx([2, 1000])
    assert use["snr_of_the_image"] == pytest.approx([50, 50], rel=0.1)
    assert use["trained_for_ranges"] == {"ADC": [0.0, 100.0]}
    assert record(request.folder)["inputs"][str(net)] == file_hash(net)
    assert report.network is not None
    expected = blend(made(0), made(1), alpha={"ADC": 0.25})(data[inside()], SIGMA)
    np.testing.assert_array_equal(load(request.folder, "ADC")[inside()], expected.values[:, 1])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_network_that_the_measurements_contradict_gives_way_to_fits(ask, tmp_path, made, alpha):
    """Once such estimates were kept, with standard errors that were far too small."""
    path = tmp_path / "blend.safetensors"
    blend(made(0, conditioned=True), made(1, conditioned=True)).save(path)
    request = ask(net=path, alpha=alpha)
    report = request.run()
    Job(replace(request.request, folder=tmp_path / "fit"), ByFit()).run()
    for name in ("S0", "ADC", "ADC_standard_error", "status"):
        np.testing.assert_array_equal(load(request.folder, name), load(tmp_path / "fit", name))
    assert report.voxels == {Status.CONVERGED: 40}
    assert load(request.folder, "outside").max() == 0


@pytest.mark.parametrize(("alpha", "advised"), [(None, True), (1.0, False), (0.0, False)])
def test_alpha_is_recommended_to_who_chose_none(ask, tmp_path, made, alpha, advised):
    """Once the default was kept in silence where it tripled the error of single voxels."""
    path, size = tmp_path / "blend.safetensors", {"S0": 0.1, "ADC": 0.9}
    entry = {"noise": [0.001, 0.5], "passed": True, "rmse": size, "slope": {"ADC": 0.3}}
    ends = [made(0, conditioned=True, verification=[entry])]
    ends += [made(1, conditioned=True, verification=[entry | {"rmse": {"S0": 0.1, "ADC": 0.3}}])]
    blend(*ends).save(path)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        report = ask(net=path, alpha=alpha).run()
    assert any("--alpha 0 is recommended" in note for note in report.notes) == advised


class NearTheFit:
    """Stands in for a network of a blend: some standard errors of the ADC off the fit."""

    parameters = ADC.parameters

    def __init__(self, card, off=0.5):
        self.card, self.off = card, off

    def without_errors(self):
        return self

    def __call__(self, signal, sigma):
        found = MaximumLikelihood(ADC(b=B), Rician())(signal, sigma)
        found.values[:, 1] += self.off * found.stats["standard_error"][:, 1]
        outside = np.zeros(len(signal), np.uint8)
        return replace(found, stats={**found.stats, "outside": outside})


def test_half_of_a_blend_gives_way_to_fits(ask, made, data):
    """Where the fit takes the place of one of its networks, alpha mixes it with the other."""
    signal, sigma = data[inside()], np.full(40, SIGMA)
    verification = [{"noise": [0.001, 0.5], "passed": True}]
    ends = (made(seed, conditioned=True, verification=verification) for seed in (0, 1))
    fits = _Fits(ask().request, blend(*ends, alpha=0.25))
    (bad, share), other = fits.used
    fits.used = [(NearTheFit(bad.card), share), other]
    found, fit = fits(signal, sigma), MaximumLikelihood(ADC(b=B), Rician())(signal, sigma)
    error = fit.stats["standard_error"]
    np.testing.assert_allclose(found.values[:, 0], fit.values[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.values[:, 1], fit.values[:, 1] + 0.125 * error[:, 1], 1e-5)
    np.testing.assert_allclose(found.stats["standard_error"], error, rtol=1e-5)
    assert set(found.status) == {Status.PREDICTED}


def test_measurements_that_scatter_contradict_a_network_less(ask, made, data):
    """An estimate 5 standard errors from the fit may be noise if that is 2 times sigma."""
    signal, sigma = data[inside()], np.full(40, SIGMA)
    network = made(conditioned=True, verification=[])
    near, fits = NearTheFit(network.card, off=5.0), _Fits(ask().request, network)
    fits.network, fits.used = near, [(near, fits.used[0][1])]
    fit = MaximumLikelihood(ADC(b=B), Rician())(signal, sigma).values
    np.testing.assert_allclose(fits(signal, sigma).values, fit, rtol=1e-5)
    for excess in (np.full((1, 1), 2.0), np.where(np.arange(40) % 2, 2.0, 1.2)[:, None]):
        expected = np.where(excess == 2, near(signal, sigma).values, fit)
        np.testing.assert_allclose(fits(signal, sigma, excess).values, expected, rtol=1e-5)


def test_a_single_network_has_no_alpha(ask, tmp_path, made):
    path = tmp_path / "single.safetensors"
    made().save(path)
    refuse(ask(net=path, alpha=0.5), r"alpha: single\.safetensors holds a single network")


def test_a_network_of_another_acquisition(ask, net):
    b = B.copy()
    b[7] = 0.7
    refuse(ask(net=net, model=ADC(b=b)), "b of volume 8 is 700, not 800 s/mm²")


def test_a_network_of_another_model(ask, net, data):
    refuse(ask(net=net, model=IVIM(b=B)), "was trained for the model ADC, not for IVIM")


def test_a_network_of_another_noise(ask, net):
    refuse(ask(net=net, noise=Gaussian()), "for Rician noise, not for Gaussian; choose that")


def test_a_network_for_signals_of_another_unit(ask, tmp_path, made):
    path = tmp_path / "absolute.safetensors"
    made(normalised=False, noise_range=[0.05, 0.1]).save(path)
    request = ask(net=path)
    with pytest.raises(ValueError, match=r"trained with --absolute, for sigma 0.05 to 0.1"):
        request.run()
    assert not request.folder.exists()


def test_a_prior_for_a_network_that_is_trained_already(ask, net):
    refuse(ask(net=net, ranges={"ADC": (0, 1)}), "was trained already, so --prior cannot change it")


def test_a_file_that_is_no_network(ask, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("hello")
    refuse(ask(net=path), "not a network of labelwise, or damaged")
    refuse(ask(net=tmp_path / "none"), "there is no such network file", FileNotFoundError)


def test_the_model_of_a_network_file_is_found(net, tmp_path):
    assert model_of(net) == "adc"
    with pytest.raises(ValueError, match="--model is required"):
        model_of(None)


@pytest.mark.slow
def test_a_network_is_trained_once_and_found_again(ask, tmp_path):
    """The whole job, network included: the truth comes back, and the second run is quick."""
    request = ask(sigma="repeats")
    stages = []

    def tell(what, done, total, words):
        stages.append(what)

    report = request.replaced(cache=tmp_path / "cache").run(tell)
    assert report.network.origin == "trained"
    assert {"simulating", "labelling", "training", "mapping"} <= set(stages)
    for summary, truth in zip(report.parameters, TRUTH, strict=True):
        assert summary.quartiles[1] == pytest.approx(truth, rel=0.03)
    errors = load(request.folder, "ADC_standard_error")[inside()]
    z = (load(request.folder, "ADC")[inside()] - TRUTH[1]) / errors
    assert 0.6 < z.std() < 1.6
    again = ask(sigma="repeats", folder=tmp_path / "again")
    cached = again.replaced(cache=tmp_path / "cache").run()
    assert cached.network.origin == "cache"
    kept = ask(sigma="repeats", folder=tmp_path / "kept", net=request.folder / "net.safetensors")
    kept.run()
    for folder in (again.folder, kept.folder):
        np.testing.assert_array_equal(load(folder, "ADC"), load(request.folder, "ADC"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_in_memory_maps_as_its_file_does(ask, random_network, tmp_path):
    job, net = ask(), random_network(ADC(b=B), ((0, 1, 2, 3), (4,), (5, 6), (7,)))
    net.save(tmp_path / "net.safetensors")
    options = {"sigma": SIGMA, "mask": job.mask}
    lw.map_image(job.image, ADC(b=B), net=net, out=tmp_path / "a", **options)
    file = tmp_path / "net.safetensors"
    lw.map_image(job.image, ADC(b=B), net=file, out=tmp_path / "b", **options)
    np.testing.assert_array_equal(load(tmp_path / "a", "ADC"), load(tmp_path / "b", "ADC"))
    assert not (tmp_path / "a" / "net.safetensors").exists()


@BAD_FIT
def test_b_values_within_the_tolerance_are_mapped_and_noted(ask, net):
    b = B + np.array([0, 0, 0, 0, 5, -5, 5, 5]) / 1000
    refuse(ask(net=net, model=ADC(b=b)), "b of volume 5 is 105, not 100 s/mm²")
    job = ask(net=net, model=ADC(b=b), b_tolerance=0.005)
    with pytest.warns(UserWarning, match=r"differ by up to 5 s/mm².*\(--b-tolerance\)"):
        report = job.run()
    assert any("--b-tolerance" in note for note in record(job.folder)["notes"])
    assert any("--b-tolerance" in note for note in report.notes)


def test_a_network_is_trained_with_the_tolerance(ask, monkeypatch):
    plans = []

    def train(plan, **options):
        plans.append(plan)
        raise InputError("no training here")

    monkeypatch.setattr("labelwise.networks.blend.train_networks", train)
    b = B + np.array([0, 5, 5, 0, 0, 0, 0, 0]) / 1000
    with pytest.raises(InputError, match="no training here"):
        ask(model=ADC(b=b), b_tolerance=0.01).run()
    assert plans[0].b_tolerance == 0.01
