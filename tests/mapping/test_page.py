"""The page of a run: what is stored in it, and what a browser makes of it."""

import base64
import html
import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from helpers import MODELS, SHAPE, SIGMA, B, Job, inside, valid
from labelwise.mapping import by_network, page
from labelwise.mapping.again import write_page
from labelwise.mapping.by_fit import ByFit
from labelwise.mapping.by_network import ByNetwork
from labelwise.mapping.maps import Map
from labelwise.models import ADC
from labelwise.models.base import settings_of, within
from labelwise.models.evaluate import signals
from labelwise.networks import network as networks
from labelwise.networks.network import blend
from labelwise.noise import NoncentralChi, Rician
from labelwise.types import InputError, Status

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
    " --disable-quic --no-first-run --disable-sync --disable-background-networking"
    " --disable-component-update --disable-dev-shm-usage --allow-file-access-from-files"
    " --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
)
AFFINE = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, -7], [0, 0, 4.0, 1], [0, 0, 0, 1]])  # a turned head
ALPHAS = [0.0, 0.35, 1.0, {"ADC": 0.7}]
LABELS = np.where(np.arange(SHAPE[0]) < 4, 2, 7)[:, None, None] * inside()

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("residuals are", ".*not explain", ".*the mask has")
]


@pytest.fixture
def job(tmp_path, data):
    """Makes jobs for the small series, with a mask of two labels."""

    def save(name, values):
        image = nib.Nifti1Image(values, AFFINE)
        image.header["pixdim"][1:4] = (3, 2, 4)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    def make(method, folder="maps", values=data, **options):
        asked = {
            "image": save("dwi.nii.gz", values),
            "model": ADC(b=B),
            "noise": Rician(),
            "sigma": SIGMA,
            "folder": tmp_path / folder,
            "mask": save("mask.nii.gz", LABELS.astype(np.uint8)),
            "overwrite": True,
        }
        return Job.of(method, **asked | options)

    return make


@pytest.fixture(params=["alone", "clipped", "with fits"])
def dial(request, random_network, monkeypatch, tmp_path):
    """The kind and the file of a blend: of networks that are not contradicted, whose estimates are
    beyond their bounds in some voxels, or that give way to fits in some voxels."""
    kind, path = request.param, tmp_path / "blend.safetensors"
    groups = ((0, 1, 2, 3), (4,), (5, 6), (7,))
    if kind != "with fits":
        groups = ((0, 1, 2, 3), *((volume,) for volume in (4, 5, 6, 7)))
    monkeypatch.setattr(by_network, "chi2_quantile", lambda share, count: 20_000.0)
    size = {"S0": 0.1, "ADC": 0.9}
    known = [{"noise": [0.001, 0.5], "passed": True, "rmse": size, "slope": {"ADC": 0.3}}]
    ends = [
        random_network(ADC(b=B), groups, seed, kind == "with fits", verification=known)
        for seed in (0, 1)
    ]
    network = blend(*ends)
    if kind == "clipped":
        scale, adc = network.parameters
        adc = replace(adc, bounds=(0.337, 4.0), typical=None)
        network = replace(network, parameters=(scale, adc))
    network.save(path)
    return kind, path


def unpacked(each):
    """The numbers of a page, as its script unpacks them."""
    if isinstance(each, list):
        return [unpacked(one) for one in each]
    if not isinstance(each, dict):
        return each
    if "data" not in each:
        return {name: unpacked(entry) for name, entry in each.items()}
    planes = np.frombuffer(zlib.decompress(base64.b64decode(each["data"])), np.uint8)
    planes = planes.reshape(each["size"], each["count"]).astype(np.int64)
    whole = (planes << (8 * np.arange(each["size"]))[:, None]).sum(axis=0)
    values = np.where(whole > 0, each["low"] + (whole - 1) * each["step"], np.nan)
    return np.exp(values) if each["log"] else values


def stored(folder):
    """The data of a page."""
    text = (folder / page.PAGE).read_text()
    return unpacked(json.loads(re.search(r'(?s)<script [^>]*id="data">(.*?)</script>', text)[1]))


def ordered(volume):
    """The voxels inside the mask, in the order of the page."""
    return volume.reshape(-1, *volume.shape[3:], order="F")[inside().ravel(order="F")]


def load(folder, name):
    return ordered(np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj))


def shares(alpha):
    alpha = alpha if isinstance(alpha, dict) else {"S0": alpha, "ADC": alpha}
    return {"S0": 1.0, "ADC": 1.0} | alpha


NUMBERS = [[1.0, -2.5, 1e4], [0.1], [np.nan], [], [3.0, np.nan, np.inf, 1e9], [0.3, 0.1, 250.0]]


@pytest.mark.parametrize("values", NUMBERS, ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_numbers_are_stored_to_half_a_step(values, log):
    packed = page._packed(np.array(values), 0.05, log)
    found, wanted = unpacked(packed), np.array(values, float)
    wanted[~np.isfinite(wanted) | (log & ~(wanted > 0))] = np.nan
    if log:
        found, wanted = np.log(found), np.log(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=packed["step"] / 2 * (1 + 1e-9))


@pytest.mark.parametrize("alpha", ALPHAS, ids=str)
def test_both_ends_blend_to_the_maps_of_any_alpha(job, dial, alpha):
    """As the page's script blends them: alpha of one end, 1 - alpha of the other, clipped."""
    kind, path = dial
    job(ByNetwork(path)).run()
    other = job(ByNetwork(path, alpha=alpha), "other")
    report, folder = other.run(), other.request.folder
    for entry in stored(folder.parent / "maps")["maps"][:2]:
        share, (one, zero) = shares(alpha)[entry["name"]], entry["values"]
        blended = np.clip(share * one + (1 - share) * zero, *map(float, entry["bounds"]))
        atol = entry["step"] / 2
        np.testing.assert_allclose(blended, load(folder, entry["name"]), rtol=1e-5, atol=atol)
    clipped = np.count_nonzero(load(folder, "ADC") == np.float32(0.337))
    if alpha == 1:  # what distinguishes the kinds occurs
        mixed = {Status.CONVERGED, Status.PREDICTED}
        assert (set(report.voxels) == mixed) == (kind == "with fits")
        assert (0 < clipped < 40) == (kind == "clipped")


def test_a_page_of_a_fit_has_no_dial_and_all_that_was_measured(job, data):
    fit = job(ByFit(), uncertainty="standard_error")
    fit.run()
    held = stored(fit.request.folder)
    assert held["alpha"] is None
    assert [entry["name"] for entry in held["maps"]] == ["S0", "ADC", "status", "residual"]
    adc = held["maps"][1]
    np.testing.assert_allclose(
        adc["values"][0], load(fit.request.folder, "ADC"), atol=adc["step"] / 2
    )
    np.testing.assert_allclose(
        adc["uncertainty"]["values"][0],
        load(fit.request.folder, "ADC_standard_error"),
        rtol=page._RELATIVE,
    )
    sample = held["sample"]
    measured = ordered(data)[sample["rows"].astype(int)]
    np.testing.assert_allclose(sample["measured"].reshape(-1, 8), measured, atol=SIGMA / 10)
    np.testing.assert_allclose(sample["measured_at"], 1000 * B)
    np.testing.assert_array_equal(held["regions"]["labels"], [2, 7])
    np.testing.assert_array_equal(held["regions"]["values"], ordered(LABELS) == 7)


def test_a_curve_is_what_its_estimate_predicts(job):
    fit = job(ByFit())
    fit.run()
    sample = stored(fit.request.folder)["sample"]
    curves = sample["curves"]["fit"].reshape(len(sample["rows"]), -1)
    adc, s0 = (load(fit.request.folder, name)[:, None] for name in ("ADC", "S0"))
    b = np.array(sample["curve_at"]) / 1000
    expected = s0 * np.exp(-b * adc)  # at an SNR of 20 and more, the noise adds sigma²/2S
    np.testing.assert_allclose(curves, expected + SIGMA**2 / (2 * expected), atol=SIGMA / 10)


def test_an_interval_goes_before_a_standard_error():
    low, high = np.linspace(0.1, 0.5, 9), np.linspace(0.3, 0.9, 9)
    rows = {"D_low": low, "D_high": high, "D_standard_error": low, "K_standard_error": high}
    named = {name: Map(name, lambda estimate: estimate, f"{name}.", "1") for name in rows}
    entry, width = page._uncertainty("D", named, rows.__getitem__)
    assert entry["kind"] == "interval"
    np.testing.assert_allclose(width, (high - low) / 2)
    for found, wanted in zip(unpacked(entry["values"]), (low, high), strict=True):
        np.testing.assert_allclose(found, wanted, atol=width.max() / page._FINE)
    entry, width = page._uncertainty("K", named, rows.__getitem__)
    assert entry["kind"] == "standard error"
    np.testing.assert_allclose(unpacked(entry["values"])[0], high, rtol=page._RELATIVE)


def test_a_page_asks_for_nothing_and_has_every_note(job):
    fit = job(ByFit(), notes=["<b>a note</b> & more"])
    fit.run()
    text = (fit.request.folder / page.PAGE).read_text()
    assert "default-src 'none'; img-src data: blob:; style-src" in text
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*", text) == []
    assert "<li>&lt;b&gt;a note&lt;/b&gt; &amp; more</li>" in text


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_curve_is_drawn_where_the_model_describes_all_of_it(model):
    varying = [name for name, values in settings_of(model).items() if np.ptp(values) > 0]
    finer = page._along(model, varying)
    dashes = {"T2EPG", "T2MultiEcho", "T2MultiEchoB1", "IVIMSimplified", "DKI", "DTI", "Verdict"}
    assert (finer is None) == (type(model).__name__ in dashes)
    if finer is not None:
        params = np.array([[within(each.bounds, 0.3) for each in model.parameters]])
        assert np.isfinite(signals(finer, params)).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sigma_of_zero_in_most_voxels_is_no_bug(job, tmp_path):
    sigma = SIGMA * np.eye(9, 8)[:, :, None] * np.ones(2)
    nib.save(nib.Nifti1Image(sigma, AFFINE), tmp_path / "s.nii")
    fit = job(ByFit(), sigma=tmp_path / "s.nii")
    assert Status.BAD_SIGMA in fit.run().voxels
    assert stored(fit.request.folder)["sample"]["rows"].size == 40


def test_a_series_of_too_many_voxels_is_thinned_and_says_so(job, monkeypatch):
    fit = job(ByFit())
    fit.run()
    assert stored(fit.request.folder)["thinned"] == 1
    size = (fit.request.folder / page.PAGE).stat().st_size
    monkeypatch.setattr(page, "_LARGEST", size - 500)
    fit.run()
    assert (fit.request.folder / page.PAGE).stat().st_size <= size - 500
    held = stored(fit.request.folder)
    assert held["thinned"] == 2
    assert (held["first"], held["shape"]) == ([2, 2, 0], [4, 3, 1])
    np.testing.assert_allclose(np.array(held["affine"])[:3, 3], (AFFINE @ [2, 2, 0, 1])[:3])
    lattice = np.zeros(SHAPE, bool)
    lattice[2::2, 2::2, ::2] = True
    kept = ordered(lattice)
    adc = held["maps"][1]
    np.testing.assert_allclose(
        adc["values"][0], load(fit.request.folder, "ADC")[kept], atol=adc["step"] / 2
    )


def test_measurements_are_those_of_whole_slices_from_the_fullest_one(job, monkeypatch):
    monkeypatch.setattr(page, "_MEASURED", 30 * (8 + page._POINTS))
    fit = job(ByFit())
    fit.run()
    sample = stored(fit.request.folder)["sample"]
    assert sample["slices"] == "1"
    np.testing.assert_array_equal(sample["rows"], np.arange(20))


def test_without_a_mask_measurements_are_those_of_the_middle(monkeypatch):
    monkeypatch.setattr(page, "_MEASURED", 12)
    series = SimpleNamespace(shape=(2, 2, 7))
    rows = page._sample(series, np.arange(28), 1)
    assert rows.tolist() == list(range(8, 20))  # slices 2, 3 and 4


def test_a_voxel_without_a_value_stays_without_one(job, data, dial):
    values = data.copy()
    values[3, 3, 0] = np.nan
    values[4, 4, 1] = 0
    network = job(ByNetwork(dial[1]), values=values)
    network.run()
    held = stored(network.request.folder)
    missing = np.isnan(load(network.request.folder, "ADC"))
    assert missing.sum() == 2
    for end in held["maps"][1]["values"]:
        np.testing.assert_array_equal(np.isnan(end), missing)


SCRIPT = """<script>
const complaints = [];
addEventListener("securitypolicyviolation", (event) => complaints.push(event.violatedDirective));
ready.then(() => {
  const maps = ALPHAS.map((alpha) => estimates().map((map) => Array.from(blended(map, alpha))));
  state.region = 1;
  setAlpha({ S0: 1, ADC: 0.7 });
  draw();
  const { gl } = viewer, size = [gl.drawingBufferWidth, gl.drawingBufferHeight];
  const pixels = new Uint8Array(4 * size[0] * size[1]);
  gl.readPixels(0, 0, ...size, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let coloured = 0;
  for (let k = 0; k < pixels.length; k += 4) coloured += Math.abs(pixels[k] - pixels[k + 1]) > 20;
  moveTo([5, 3, 1]);
  selectVoxel(position());
  const mm = viewer.frac2mm(viewer.scene.crosshairPos, 0, true);
  $("rating").rating.value = "fail";
  $("rating").comment.value = "<b>ghosting</b>";
  const found = {
    maps, complaints, coloured: coloured / (size[0] * size[1]),
    voxel: state.voxel, drawn: layer.getValue(...layer.mm2vox(mm), 0),
    limits: chosen().limits,
    bars: $("histogram").querySelectorAll("rect").length,
    points: $("plot").querySelectorAll("circle").length,
    curves: $("plot").querySelectorAll("polyline").length,
    same: $("same").innerText, statistics: $("statistics").innerText, state: $("state").innerText,
    rating: saveRating(new Event("submit")),
    wide: document.documentElement.scrollWidth, width: innerWidth,
  };
  parent.document.documentElement.dataset.found = JSON.stringify(found);
});
</script></body>"""
FRAME = """<!doctype html><html><body>
<iframe style="width: WIDTHpx; height: 900px; border: 0" src="page.html"></iframe>
</body></html>"""  # no window is so narrow


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("dial", ["with fits"], indirect=True)
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_a_browser_shows_it_without_a_complaint(job, dial, tmp_path, width):
    job(ByNetwork(dial[1])).run()
    text = (tmp_path / "maps" / page.PAGE).read_text()
    script = SCRIPT.replace("ALPHAS", json.dumps([shares(alpha) for alpha in ALPHAS]))
    (tmp_path / "page.html").write_text(text.replace("</body>", script))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    flags = [*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags, (tmp_path / "frame.html").as_uri()]
    run = subprocess.run(command, capture_output=True, timeout=120, encoding="utf-8", check=False)
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(re.search(r'<html data-found="(.*?)"', run.stdout)[1]))
    assert found["complaints"] == []
    assert found["width"] == width
    assert found["wide"] <= width
    assert found["coloured"] > 0.02

    entries = stored(tmp_path / "maps")["maps"]
    for alpha, maps in zip(ALPHAS, found["maps"], strict=True):
        job(ByNetwork(dial[1], alpha=alpha), "other").run()
        for entry, shown in zip(entries[:2], maps, strict=True):
            wanted, atol = load(tmp_path / "other", entry["name"]), entry["step"] / 2
            np.testing.assert_allclose(shown, wanted, rtol=1e-5, atol=atol)

    s0, adc = (load(tmp_path / "other", name) for name in ("S0", "ADC"))  # alpha of ADC is 0.7
    voxel = np.zeros(SHAPE, bool)
    voxel[5, 3, 1] = True
    assert found["voxel"] == [5, 3, 1]
    low, high = found["limits"]
    shade = 1 + 254 * np.clip((adc[ordered(voxel)][0] - low) / (high - low), 0, 1)
    assert found["drawn"] == pytest.approx(shade, abs=254 * entries[1]["step"] / (high - low))
    region = ordered(LABELS) == 2
    lines = [line.split("\t") for line in found["statistics"].splitlines()]
    assert [float(line[1]) for line in lines] == pytest.approx(
        [np.median(s0[region]), np.median(adc[region])], rel=0.01
    )
    assert [line[4] for line in lines] == [str(region.sum())] * 2
    assert found["same"] == "labelwise map --alpha S0=1 --alpha ADC=0.7"
    assert (found["points"], found["curves"], found["bars"]) == (8, 2, 48)
    assert "residual" in found["state"]
    rating = valid("rating", json.dumps(found["rating"]))
    assert (rating["rating"], rating["comment"]) == ("fail", "<b>ghosting</b>")
    assert rating["alpha"] == {"S0": 1, "ADC": 0.7}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", ["nothing", "noise", "sigma", "mask", "left out"])
def test_the_page_of_older_maps_is_that_of_their_run(change, job, data, tmp_path):
    options, values = {}, data
    if change == "noise":
        options = {"noise": NoncentralChi(4)}
    if change == "sigma":
        sigma = np.full(SHAPE, SIGMA, np.float32)
        sigma[2:] *= 1.5
        nib.save(nib.Nifti1Image(sigma, AFFINE), tmp_path / "sigma.nii.gz")
        options = {"sigma": tmp_path / "sigma.nii.gz"}
    if change == "mask":
        options = {"mask": None}
    if change == "left out":
        values = data.copy()
        values[..., -1] = np.where(np.arange(SHAPE[0])[:, None, None] < 3, 0, values[..., -1])
    job(ByFit(), values=values, **options).run()
    page_of_run = (tmp_path / "maps" / "report.html").read_bytes()
    (tmp_path / "maps" / "report.html").unlink()
    mask = None if change == "mask" else tmp_path / "mask.nii.gz"
    written = write_page(tmp_path / "maps", tmp_path / "dwi.nii.gz", mask)
    assert written.read_bytes() == page_of_run


@pytest.mark.parametrize("alpha", [0.0, 0.35, {"ADC": 0.7}])
def test_the_page_of_older_maps_has_the_slider(alpha, job, dial, tmp_path):
    job(ByNetwork(dial[1], alpha)).run()
    page_of_run = (tmp_path / "maps" / "report.html").read_bytes()
    files = tmp_path / "maps", tmp_path / "dwi.nii.gz", tmp_path / "mask.nii.gz"
    assert write_page(*files).read_bytes() == page_of_run
    dial[1].rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match="made by a network that is not there; give it by --net"):
        write_page(*files)
    assert write_page(*files, net=tmp_path / "moved.safetensors").read_bytes() == page_of_run
    other = networks.load(tmp_path / "moved.safetensors")
    other = blend(*reversed(other.ends))
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: is not the network that"):
        write_page(*files, net=tmp_path / "other.safetensors")


def test_a_page_of_other_files_is_refused(job, tmp_path):
    job(ByFit()).run()
    with pytest.raises(InputError, match=r"holds no run\.json"):
        write_page(tmp_path, tmp_path / "dwi.nii.gz")
    job(ByFit(), folder="filled", fill=0.0).run()
    with pytest.raises(InputError, match="was made with --fill"):
        write_page(tmp_path / "filled", tmp_path / "dwi.nii.gz")
    values = np.ones((*SHAPE, len(B)), np.float32)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "other.nii.gz")
    with pytest.raises(InputError, match=r"other\.nii\.gz: is not a file that .* was made of"):
        write_page(tmp_path / "maps", tmp_path / "other.nii.gz")
