"""Maximum likelihood side by side: labelwise, the usual way in scipy, osipy, and dipy's two fits.

    python benchmarks/peers.py                      # about 6 minutes on 2 cores; needs dipy, cvxpy
    python benchmarks/peers.py --quick              # a quarter of the voxels
    python benchmarks/peers.py --before REVISION    # also an older labelwise, in the same rounds

One run, the same noisy signals for everybody: IVIM, b = 0 10 20 30 50 80 100 200 400 800 s/mm²,
parameters uniform in the ranges of Epstein et al. (doi:10.59275/j.melba.2024-geb5), Rician noise.
The usual way is what that paper did: `scipy.optimize.minimize`, L-BFGS-B, bounds, numerical
gradient, one voxel at a time in one process, started from the truth. osipy 0.1.4 is a
Levenberg-Marquardt in NumPy over all voxels, for Gaussian noise; it runs in an environment of its
own (Python 3.12), which is made if `--osipy PYTHON` is not given. Speeds are of warm programs, per
second of CPU time where so stated; rounds of all of them alternate, and a ratio is the median over
rounds (its range in brackets).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import ive

import labelwise as lw

B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000  # ms/µm²
RANGES = np.array([[0.8, 0.1, 0.4, 10.0], [1.2, 0.5, 3.0, 150.0]])
BOUNDS = {"S0": (0.0, 1e4), "f": (0.01, 0.5), "D_slow": (0.01, 4.0), "D_fast": (2.0, 300.0)}
NOISES = {"Rician": lw.Rician(), "Gaussian": lw.Gaussian()}
CLOSE = 1e-3


def ivim(params):
    """The signals (N, 10) of parameters (N, 4), in NumPy: nothing of labelwise."""
    s0, f, d_slow, d_fast = np.asarray(params, float).T[..., None]
    return s0 * (f * np.exp(-B * (d_slow + d_fast)) + (1 - f) * np.exp(-B * d_slow))


def nll(noise, params, data, sigma):
    """Negative log-likelihood of each voxel in float64, the referee of all fitters."""
    signal = ivim(params)
    squares = 0.5 * ((data - signal) / sigma) ** 2
    if noise == "Rician":
        squares -= np.log(ive(0, data * signal / sigma**2))
    return squares.sum(axis=-1)


def simulate(voxels, sigma, rng):
    """Parameters (N, 4) and Rician signals (N, 10)."""
    params = rng.uniform(*RANGES, (voxels, 4))
    real, imaginary = rng.normal(0, sigma, (2, voxels, len(B)))
    return params, np.hypot(ivim(params) + real, imaginary)


def fit_with_scipy(noise, data, sigma, start):
    """The usual way; as lean as Python allows (one voxel's own function, no batch shapes)."""

    def gaussian(p, voxel):
        signal = p[0] * (p[1] * np.exp(-B * (p[2] + p[3])) + (1 - p[1]) * np.exp(-B * p[2]))
        return np.sum((voxel - signal) ** 2) / (2 * sigma**2)

    def rician(p, voxel):
        signal = p[0] * (p[1] * np.exp(-B * (p[2] + p[3])) + (1 - p[1]) * np.exp(-B * p[2]))
        log_bessel = np.log(ive(0, voxel * signal / sigma**2))
        return np.sum((voxel - signal) ** 2 / (2 * sigma**2) - log_bessel)

    objective = rician if noise == "Rician" else gaussian
    options = {"method": "L-BFGS-B", "bounds": list(BOUNDS.values())}
    return np.array(
        [
            minimize(objective, p, args=(voxel,), **options).x
            for p, voxel in zip(start, data, strict=True)
        ]
    )


def fit_with_dipy(method, data):
    """dipy's IVIM by least squares ("TRR" or "VarPro"), as parameters of our equation.

    dipy scales its steps for signals of about 1000, so it gets such signals.
    """
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel

    directions = np.tile([1.0, 0.0, 0.0], (len(B), 1))
    table = gradient_table(1000 * B, bvecs=directions, b0_threshold=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = IvimModel(table, fit_method="trr" if method == "TRR" else "VarPro").fit(1000 * data)
    s0, f, d_star, d = np.moveaxis(fit.model_params, -1, 0)
    return np.stack([s0 / 1000, f, 1000 * d, 1000 * (d_star - d)], axis=-1)


OSIPY = """
import logging, sys, time, warnings
import numpy as np
warnings.filterwarnings("ignore"), logging.disable(logging.WARNING)
from osipy.ivim import fit_ivim
from osipy.ivim.fitting.estimators import FittingMethod, IVIMFitParams
for line in sys.stdin:
    data, b, out = (part for part in line.split())
    data, b = np.load(data), np.load(b)
    start = time.process_time()
    found = fit_ivim(data.reshape(-1, 1, 1, len(b)), 1000 * b,
                     params=IVIMFitParams(method=FittingMethod.FULL))
    seconds = time.process_time() - start
    s0, f, d, fast = (np.ravel(getattr(found, f"{name}_map").values)
                      for name in ("s0", "f", "d", "d_star"))
    np.save(out, np.stack([s0, f, 1000 * d, 1000 * (fast - d)], axis=-1))
    print(seconds, flush=True)
"""
LABELWISE = """
import sys, time
import numpy as np
import labelwise as lw
lw.use_fused_kernels()
fitters = {}
for line in sys.stdin:
    data, b, out, noise, sigma = line.split()
    data, b = np.load(data), np.load(b)
    if noise not in fitters:
        fitters[noise] = lw.MaximumLikelihood(lw.IVIM(b), getattr(lw, noise)())
        fitters[noise](data[:4096], float(sigma))
    start = time.process_time()
    found = fitters[noise](data, float(sigma))
    seconds = time.process_time() - start
    np.save(out, found.values)
    print(seconds, flush=True)
"""


class Contestant:
    """Another program, in a process that is kept between rounds; timed by its own CPU time."""

    def __init__(self, python, code, folder, path=""):
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [python, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, data, *more):
        names = [str(self.folder / f"{name}.npy") for name in ("data", "b", "found")]
        np.save(names[0], data)
        np.save(names[1], B)
        self.process.stdin.write(" ".join([*names, *map(str, more)]) + "\n")
        self.process.stdin.flush()
        seconds = float(self.process.stdout.readline())
        return np.load(names[2]), seconds

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def python_with_osipy(folder):
    """An environment of Python 3.12 with osipy."""
    base = shutil.which("python3.12")
    if base is None:
        raise SystemExit("osipy needs Python 3.12: give --osipy PYTHON, where it is installed")
    subprocess.run([base, "-m", "venv", folder / "osipy"], check=True)
    python = folder / "osipy" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "osipy==0.1.4"], check=True)
    return python


def older_sources(revision, folder):
    """The sources of an older revision."""
    packed = subprocess.run(["git", "archive", revision, "src"], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return str(folder / "src")


def search_side_by_side(options, rng, folder):
    """Searches without a known start, by CPU time: osipy, labelwise, and an older labelwise."""
    osipy = Contestant(options.osipy or python_with_osipy(folder), OSIPY, folder)
    ours = Contestant(sys.executable, LABELWISE, folder, os.pathsep.join(sys.path))
    before = None
    if options.before:
        source = older_sources(options.before, folder)
        before = Contestant(sys.executable, LABELWISE, folder, source)
    for snr in (15, 30):
        truth = rng.uniform(*RANGES, (options.voxels, 4))
        noisy = ivim(truth) + rng.normal(0, 1 / snr, (options.voxels, len(B)))
        data = {"Gaussian": np.abs(noisy), "Rician": simulate(options.voxels, 1 / snr, rng)[1]}
        data = {noise: rows.astype(np.float32) for noise, rows in data.items()}
        speeds, found = {}, {}
        for turn in range(options.rounds):
            jobs = [("osipy, Gaussian", osipy, data["Gaussian"], ())]
            for noise in NOISES:
                jobs += 3 * [(f"labelwise, {noise}", ours, data[noise], (noise, 1 / snr))]
                if before and turn < 2:
                    job = f"labelwise {options.before}, {noise}", before, data[noise]
                    jobs.append((*job, (noise, 1 / snr)))
            for name, contestant, rows, more in jobs:
                found[name], seconds = contestant(rows, *more)
                speeds.setdefault(name, []).append(len(rows) / seconds)
        print(f"\nwithout a known start, SNR {snr}, {options.voxels} voxels, by CPU time (best)")
        for name, speed in speeds.items():
            ratio = max(speed) / max(speeds["osipy, Gaussian"])
            text = f"  {name:<34} {max(speed):>9,.0f} voxels per CPU second, {ratio:5.1f} x osipy"
            older = f"labelwise {options.before}, {name.rpartition(' ')[2]}"
            if name.startswith("labelwise,") and older in speeds:
                text += f", {max(speed) / max(speeds[older]):5.1f} x {options.before}"
            print(text, flush=True)
        for noise in NOISES:
            mine = {name: values for name, values in found.items() if name.endswith(noise)}
            scores = {
                name: np.where(
                    within_bounds(values), nll(noise, values, data[noise], 1 / snr), np.inf
                )
                for name, values in mine.items()
            }
            best = np.min(list(scores.values()), axis=0)
            for name, value in scores.items():
                share(f"{name}: within {CLOSE} of the best of these", value <= best + CLOSE)
    for contestant in (osipy, ours, before):
        if contestant:
            contestant.close()


def within_bounds(params):
    """Whether parameters (N, 4) are in labelwise's bounds: osipy has wider ones of its own."""
    lower, upper = np.array(list(BOUNDS.values())).T
    return np.all((lower * 0.999 <= params) & (params <= upper * 1.001), axis=1)


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def compare(noise, snr, options, rng):
    """One table: speeds, ratios and likelihoods of every fitter under one noise at one SNR."""
    sigma = 1 / snr
    truth, data = simulate(options.voxels, sigma, rng)
    few, alone = options.scipy_voxels // options.rounds, options.voxels // 4
    fitter = lw.MaximumLikelihood(lw.IVIM(B), NOISES[noise], bounds=BOUNDS)
    one_core = lw.MaximumLikelihood(lw.IVIM(B), NOISES[noise], bounds=BOUNDS, threads=1)
    _, compiling = timed(fitter, data[:4096], sigma)

    speeds, scipy_params = {name: [] for name in ("scipy", "truth", "search", "one")}, []
    for turn in range(options.rounds):
        part = slice(turn * few, (turn + 1) * few)
        found, seconds = timed(fit_with_scipy, noise, data[part], sigma, truth[part])
        scipy_params.append(found)
        speeds["scipy"].append(few / seconds)
        from_truth, seconds = timed(lambda: fitter(data, sigma, start=truth))
        speeds["truth"].append(len(data) / seconds)
        searched, seconds = timed(lambda: fitter(data, sigma))
        speeds["search"].append(len(data) / seconds)
        _, seconds = timed(lambda: one_core(data[:alone], sigma, start=truth[:alone]))
        speeds["one"].append(alone / seconds)

    print(f"\n{noise} likelihood, SNR {snr} (compiled in {compiling:.1f} s)")
    usual = np.array(speeds["scipy"])
    line("scipy, from the truth", usual)
    line("labelwise, from the truth", np.array(speeds["truth"]), usual, bar=1000)
    line("labelwise, truth not known", np.array(speeds["search"]), usual, bar=300)
    line("  from the truth, one thread", np.array(speeds["one"]), usual)

    checked = slice(0, few * options.rounds)
    data, truth = data[checked], truth[checked]
    score = {
        "scipy, from the truth": nll(noise, np.concatenate(scipy_params), data, sigma),
        "labelwise, from the truth": nll(noise, from_truth.values[checked], data, sigma),
        "labelwise, truth not known": nll(noise, searched.values[checked], data, sigma),
    }
    random = rng.uniform([0.5, 0.01, 0.01, 2], [1.5, 0.5, 4, 300], (len(data), 32, 4))
    many = nll(noise, fitter(data, sigma, start=random).values, data, sigma)
    best = np.fmin.reduce([many, *score.values()])
    print(f"  likelihood of {len(data)} voxels")
    no_worse = score["labelwise, from the truth"] <= score["scipy, from the truth"] + CLOSE
    share("labelwise no worse than scipy, both from the truth", no_worse, bar=0.995)
    for name, value in score.items():
        bar = 0.995 if "not known" in name else None
        share(f"{name}: within {CLOSE} of the best known", value <= best + CLOSE, bar)
    if noise == "Gaussian":
        for method, voxels in (("TRR", options.dipy_voxels), ("VarPro", options.dipy_voxels // 8)):
            params, seconds = timed(fit_with_dipy, method, data[:voxels])
            line(f"dipy {method}", np.array([voxels / seconds]), np.array([np.median(usual)]))
            close = nll(noise, params, data[:voxels], sigma) <= best[:voxels] + CLOSE
            share(f"dipy {method}: within {CLOSE} of the best known", close)


def line(name, speed, usual=None, bar=None):
    text = f"  {name:<32} {np.median(speed):>11,.0f} voxels/s"
    if usual is not None:
        ratio = speed / usual
        text += f"   {np.median(ratio):>7,.1f} x scipy [{ratio.min():,.1f} to {ratio.max():,.1f}]"
        if bar:
            text += f"   at least {bar}: {'yes' if np.median(ratio) >= bar else 'NO'}"
    print(text, flush=True)


def share(name, yes, bar=None):
    """A share of voxels, with its binomial standard error."""
    value = np.mean(yes)
    error = np.sqrt(value * (1 - value) / len(yes))
    verdict = "" if bar is None else f"   at least {bar:.1%}: {'yes' if value >= bar else 'NO'}"
    print(f"    {name:<62} {value:7.2%} ± {error:.2%}{verdict}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=100_000)
    parser.add_argument("--scipy-voxels", type=int, default=3000)
    parser.add_argument("--dipy-voxels", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--osipy", help="a Python in which osipy is installed")
    parser.add_argument("--before", help="an older revision of labelwise")
    parser.add_argument("--quick", action="store_true", help="a quarter of everything")
    options = parser.parse_args()
    if options.quick:
        for name in ("voxels", "scipy_voxels", "dipy_voxels"):
            setattr(options, name, getattr(options, name) // 4)
    lw.use_fused_kernels()  # as on the command line
    rng = np.random.default_rng(2024)
    with tempfile.TemporaryDirectory() as folder:
        search_side_by_side(options, rng, Path(folder))
    for snr in (15, 30):
        for noise in NOISES:
            compare(noise, snr, options, rng)


if __name__ == "__main__":
    main()
