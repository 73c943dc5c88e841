"""Every built-in model: recovery without noise, Cramér-Rao at SNR 100, the search at SNR 30.

    python benchmarks/models.py [VOXELS] [NAME ...]    # about 15 minutes on 2 cores with 500

One line for each model, with these columns:
- noise-free: the largest error of an estimate in float64, over the width of the typical range, of
  voxels in the middle 80 % of the typical ranges.
- std / CRLB: the lowest and highest over the parameters, at the middle of the typical ranges and
  SNR 100, from 20 VOXELS repeats; 1 is the aim. Its standard error is in parentheses.
- bound: the share of those repeats with a parameter on a bound, which lowers their std.
- found: voxels over the typical ranges at SNR 30 whose search ends within 1e-3 of the best known
  nll: that of 32 random starts and the truth in float64, or of the search.

The SNR is that of the largest measurement at the middle of the typical ranges.
"""

import sys
import time

import jax
import numpy as np
from search import random_starts

import labelwise as lw
from labelwise.models.evaluate import signals
from labelwise.models.find import available_models
from labelwise.simulation import simulate

DIRECTIONS = np.stack(  # a golden-angle spiral over half a sphere
    [
        np.sqrt(1 - (np.arange(30) + 0.5) ** 2 / 900) * np.cos(2.399963 * np.arange(30)),
        np.sqrt(1 - (np.arange(30) + 0.5) ** 2 / 900) * np.sin(2.399963 * np.arange(30)),
        (np.arange(30) + 0.5) / 30,
    ]
)


def shells(b):
    """Thirty directions at each b, after five measurements at b = 0."""
    g = np.concatenate([np.zeros((3, 5)), *[DIRECTIONS] * len(b)], axis=1)
    settings = {"b": np.concatenate([np.zeros(5), np.repeat(b, 30)])}
    return settings | dict(zip(("gx", "gy", "gz"), g, strict=True))


IVIM_B = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000
ECHOES, TI = 10.0 * np.arange(1, 17), np.array([25, 75, 150, 300, 600, 1200, 2400, 4000])
ACQUISITIONS = {
    "adc": {"b": [0, 0.1, 0.4, 0.8]},
    "adc_floor": {"b": [0, 0.3, 0.6, 1.0, 2.0, 3.0, 4.0]},
    "ivim": {"b": IVIM_B},
    "ivim_kurtosis": {"b": [*IVIM_B, 1.2, 1.6, 2.0]},
    "ivim_simplified": {"b": [0, 0, 0.2, 0.4, 0.8]},
    "ivim_triexponential": {"b": [0, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, *IVIM_B[4:]]},
    "dti": shells([1.0]),
    "kurtosis": {"b": [0, 0.5, 1.0, 1.5, 2.0, 2.5]},
    "stretched": {"b": [0, 0.2, 0.5, 1.0, 1.5, 2.0]},
    "t1_ir": {"ti": TI},
    "t1_ir_general": {"ti": TI, "tr": 6000},
    "t1_ir_signed": {"ti": TI},
    "t1_look_locker": {"ti": TI},
    "t1_vfa": {"flip_angle": [2, 4, 6, 10, 15, 20, 30], "tr": 10},
    "t2": {"te": ECHOES},
    "t2_biexponential": {"te": 8.0 * np.arange(1, 41)},
    "t2_epg": {"te": ECHOES},
    "t2_mese": {"te": ECHOES},
    "t2_mese_b1": {"te": ECHOES, "b1": 0.8},
    "verdict": {
        "b": [0, 0.09, 0.5, 1.5, 2.0, 3.0],
        "small_delta": [12, 4, 12, 24, 13, 18],
        "big_delta": [32, 24, 32, 44, 33, 38],
    },
    "t2_star": {"te": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0, 20.0, 30.0, 45.0]},
}


def inner(model, share=0.8):
    """The middle of the typical ranges."""
    prior = lw.Uniform.typical(model)
    middle, half = prior.ranges.mean(axis=1), share * np.diff(prior.ranges)[:, 0] / 2
    return lw.Uniform(
        {n: (m - h, m + h) for n, m, h in zip(prior.names, middle, half, strict=True)}
    )


def level(model, snr):
    """Sigma of an SNR."""
    middle = lw.Uniform.typical(model).ranges.mean(axis=1)
    return float(np.abs(signals(model, middle[None])).max()) / snr


def noise_of(model):
    return (
        lw.Gaussian() if type(model).__name__.startswith(("T1Signed", "ADCFloor")) else lw.Rician()
    )


def noise_free(model, voxels):
    params = np.asarray(inner(model).sample(jax.random.key(1), voxels), float)
    fitter = lw.MaximumLikelihood(model, lw.Gaussian(), dtype=np.float64)
    found = fitter(signals(model, params), level(model, 1e4))
    width = np.diff(lw.Uniform.typical(model).ranges)[:, 0]
    errors = np.abs(found.values - params) / width
    failed = np.isnan(errors).any(axis=1).sum()
    return {"noise-free": f"{np.nanmax(errors):.1e}" + f" ({failed} failed)" * bool(failed)}


def cramer_rao(model, voxels):
    noise, sigma, repeats = noise_of(model), level(model, 100), 20 * voxels
    middle = lw.Uniform.typical(model).ranges.mean(axis=1)
    grid = lw.Grid({p.name: [x] for p, x in zip(model.parameters, middle, strict=True)})
    data = simulate(model, noise, grid, sigma, repeats, jax.random.key(2))
    found = lw.MaximumLikelihood(model, noise)(data.signal, sigma)
    bound = lw.cramer_rao(model, noise, middle[None], sigma)[0]
    ratios = np.nanstd(found.values, axis=0) / bound
    on_bound = np.mean(found.stats["on_bound"].any(axis=1))
    spread = f"{ratios.min():.3f} to {ratios.max():.3f} ({1 / np.sqrt(2 * repeats):.3f})"
    return {"std / CRLB": spread, "bound": f"{on_bound:.1%}"}


def search(model, voxels):
    noise, sigma, rng = noise_of(model), level(model, 30), np.random.default_rng(0)
    data = simulate(model, noise, lw.Uniform.typical(model), sigma, voxels, jax.random.key(3))
    starts = random_starts(model.parameters, voxels, rng, 32)
    starts = np.concatenate([starts, data.params[:, None]], axis=1)
    double = lw.MaximumLikelihood(model, noise, dtype=np.float64)
    best = double(data.signal, sigma, start=starts).stats["nll"]
    found = lw.MaximumLikelihood(model, noise)(data.signal, sigma)
    nll = np.nan_to_num(found.stats["nll"], nan=np.inf)
    return {"found": f"{np.mean(nll <= np.fmin(best, nll) + 1e-3):.1%}"}


COLUMNS = (noise_free, cramer_rao, search)
"""Each gives some columns of a model, from the model and the number of voxels."""


def main():
    words = sys.argv[1:]
    voxels = int(words.pop(0)) if words and words[0].isdigit() else 500
    for name, kind in available_models().items():
        if words and name not in words:
            continue
        begin, model = time.perf_counter(), kind(**ACQUISITIONS[name])
        row = {key: text for column in COLUMNS for key, text in column(model, voxels).items()}
        row["seconds"] = f"{time.perf_counter() - begin:.0f}"
        print(f"{name:<20}", " | ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
