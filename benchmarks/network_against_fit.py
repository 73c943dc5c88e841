"""`labelwise map` beside `labelwise fit` by SNR, for every model, and for tissues of the abdomen.

    python benchmarks/network_against_fit.py                  # about 10 minutes on 2 cores
    python benchmarks/network_against_fit.py --models adc t2  # 1 minute
    python benchmarks/network_against_fit.py --tissues        # 2 minutes

1. One series per model holds voxels of SNR 3 to 500, as a wide mask does. Parameters are uniform in
   the typical ranges, Rician noise; SNR is that of the reference (the mean at the lowest b, the
   first echo, the mean of an inversion recovery). For each SNR: median and 90th percentile of
   |map - truth| and |fit - truth|, and median (map - truth) in units of the fit's standard error.
   The last column is the share of voxels that `map` flags.
2. Tissues like those of the digital phantom of OSIPI's IVIM task force (their f, D and D*): RMSE at
   SNR 10, 30 and 100. D* is labelwise's D_fast + D_slow. A constant, the middle of the range of the
   prior, is the floor for D*: an RMSE above it means that D* was not measured.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

import labelwise as lw
from labelwise.models.evaluate import signals
from labelwise.networks.reference import reference_measurements
from labelwise.priors import Uniform
from labelwise.types import has_values

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000
MODELS = {
    "adc": lw.ADC(np.array([0, 100, 200, 400, 600, 800]) / 1000),
    "ivim": lw.IVIM(B),
    "kurtosis": lw.Kurtosis(np.array([0, 500, 1000, 1500, 2000, 2500]) / 1000),
    "t1_ir": lw.T1InversionRecovery([35, 75, 100, 125, 150, 250, 1000, 1500, 2000, 3000]),
    "t2": lw.T2(np.arange(10.0, 170, 10)),
    "t2 from 80 ms": lw.T2([80.0, 100, 120, 160, 200]),
    "t2_biexponential": lw.T2Biexponential(np.arange(10.0, 330, 10)),
    "t2_epg": lw.T2EPG(np.arange(10.0, 170, 10)),
}
LEVELS = (3, 5, 10, 20, 50, 100, 200, 500)
TISSUES = {  # f, D, D* in µm²/ms
    "liver": (0.11, 1.1, 63.0),
    "pancreas": (0.15, 1.3, 27.0),
    "spleen": (0.20, 0.9, 25.0),
    "kidney": (0.20, 2.0, 35.0),
    "muscle": (0.10, 1.5, 20.0),
}


def maps(folder, model, signal, **options):
    """The estimates by `map` and by `fit`, as dictionaries of maps (N,)."""
    image = folder / "series.nii"
    nib.save(nib.Nifti1Image(signal.astype(np.float32)[:, None, None], np.eye(4)), image)
    found = []
    for verb, out, more in ((lw.map_image, "map", options), (lw.fit_image, "fit", {})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verb(image, model, sigma=1.0, out=folder / out, overwrite=True, **more)
        files = (folder / out).glob("*.nii.gz")
        found.append({f.name[:-7]: np.asarray(nib.load(f).dataobj)[:, 0, 0] for f in files})
    return found


def by_snr(name, model, voxels, **options):
    rng = np.random.default_rng(0)
    prior = Uniform.typical(model, S0=(1.0, 1.0 + 1e-6))
    low, high = prior.ranges.T
    truth = low + rng.uniform(size=(voxels * len(LEVELS), len(low))) * (high - low)
    clean = signals(model, truth)
    level = np.repeat(LEVELS, voxels)
    factor = level / clean[:, list(reference_measurements(model))].mean(axis=1)
    truth[:, 0] *= factor
    clean = clean * factor[:, None]
    signal = np.hypot(clean + rng.normal(size=clean.shape), rng.normal(size=clean.shape))
    with tempfile.TemporaryDirectory() as folder:
        network, fit = maps(Path(folder), model, signal, **options)
    print(f"\n{name}: median and 90th percentile of the error, in % of the truth's mean")
    print(f"{'':9}{'SNR':>5}   {'map':>13}   {'fit':>13}   ratio   bias / s.e.   flagged")
    for column, parameter in enumerate(model.parameters):
        for snr in LEVELS:
            rows = (level == snr) & has_values(fit["status"]) & has_values(network["status"])
            true = truth[rows, column]
            size = 100 / (true if column == 0 else np.mean(np.abs(true)))
            errors = [estimate[parameter.name][rows] - true for estimate in (network, fit)]
            ours, theirs = (np.percentile(np.abs(e) * size, [50, 90]) for e in errors)
            error = fit[f"{parameter.name}_standard_error"][rows]
            with np.errstate(invalid="ignore"):
                bias = np.nanmedian(errors[0] / error)
            flagged = np.mean(network["outside"][rows] > 0)
            print(
                f"{parameter.name:9}{snr:5}   {ours[0]:6.2f} {ours[1]:6.2f}   "
                f"{theirs[0]:6.2f} {theirs[1]:6.2f}   {ours[0] / theirs[0]:5.2f}"
                f"   {bias:+11.2f}   {flagged:7.1%}",
                flush=True,
            )


def by_tissue(voxels):
    model = MODELS["ivim"]
    rng = np.random.default_rng(0)
    middle = Uniform.typical(model).ranges.mean(axis=1)
    print("\nRMSE of f, D and D* (µm²/ms): median over tissues")
    print(f"{'SNR':>5} {'':16}{'f':>8}{'D':>8}{'D*':>8}   flagged")
    for snr in (10, 30, 100):
        rows = np.repeat(np.array(list(TISSUES.values())), voxels, axis=0)
        f, d, star = rows.T
        truth = np.stack([np.full(len(rows), snr), f, d, star - d], axis=1)
        clean = signals(model, truth)
        signal = np.hypot(clean + rng.normal(size=clean.shape), rng.normal(size=clean.shape))
        estimates = {
            "constant": ({p.name: m for p, m in zip(model.parameters, middle, strict=True)}, 0.0)
        }
        with tempfile.TemporaryDirectory() as folder:
            for alpha in (0.0, 0.5, 1.0):
                network, fit = maps(Path(folder), model, signal, alpha=alpha)
                estimates[f"map, alpha {alpha:g}"] = network, np.mean(network["outside"] > 0)
        estimates["fit"] = fit, 0.0
        for how, (estimate, flagged) in estimates.items():
            errors = (
                estimate["f"] - f,
                estimate["D_slow"] - d,
                estimate["D_fast"] + estimate["D_slow"] - star,
            )
            size = [np.sqrt(np.nanmean(e.reshape(-1, voxels) ** 2, axis=1)) for e in errors]
            f_, d_, star_ = (np.median(each) for each in size)
            print(f"{snr:5} {how:16}{f_:8.3f}{d_:8.3f}{star_:8.1f}   {flagged:7.1%}", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", nargs="*", default=list(MODELS))
    options.add_argument("--tissues", action="store_true", help="the tissues only")
    options.add_argument("--voxels", type=int, default=2000, help="at each SNR")
    options.add_argument("--alpha", type=float, default=1.0)
    given = options.parse_args()
    if not given.tissues:
        for name in given.models:
            by_snr(name, MODELS[name], given.voxels, alpha=given.alpha)
    by_tissue(given.voxels)


if __name__ == "__main__":
    main()
