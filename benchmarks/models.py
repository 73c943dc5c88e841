"""Every built-in model: check, recovery, Cramér-Rao, search, coverage, networks; one table.

    python benchmarks/models.py [VOXELS] [NAME ...]    # 20 minutes of CPU time with 200

One line for each model, in Markdown, with these columns; "!" marks what misses its bar:
- check: whether `check_signal_model` finds nothing wrong.
- noise-free: the largest error of an estimate in float64, over the width of the typical range, of
  voxels in the middle 80 % of the typical ranges; the bar is 1e-3.
- std / CRLB: the lowest and highest over the parameters, at the middle of the typical ranges and
  SNR 100, from 20 VOXELS repeats; the bar is 1 ± 0.05 and two standard errors.
- bound: the share of those repeats with a parameter on a bound, which lowers their std.
- found: voxels over the typical ranges at SNR 30 whose search ends within 1e-3 of the best known
  nll: that of 32 random starts and the truth in float64, or of the search; the bar is 99.5 %.
- coverage: of 95 % intervals by profile likelihood at SNR 30, of the worst parameter in the worst
  cell, from 5 VOXELS repeats; the bar is 92 %. Cells are all combinations of 20 and 80 % of the
  typical ranges, with the middle; for more than three parameters beside the amplitude, one at a
  time. Where the equation of a model does not hold, such a voxel is moved towards the mean over the
  typical ranges until it does. More than eight parameters have no intervals.
- gt / fit, mle / fit: the lowest and highest over the parameters of the RMSE of a network taught
  the ground truth, and fits, over that of fits, in 8 VOXELS fresh voxels of the prior at SNR 10 to
  60. The networks are small: 80 VOXELS simulated voxels, 20 epochs. The bars are 1.02 and 1.25.
- credible, confidence: the lowest and highest coverage over the parameters of the 95 % intervals of
  these networks, in the same voxels; the bar is 95 ± 2 %, for confidence from 93 %.

The SNR is that of the largest measurement at the middle of the typical ranges; of networks, that of
the reference.
"""

import itertools
import sys
import time
from dataclasses import replace

import jax
import numpy as np
from search import random_starts

import labelwise as lw
from labelwise.fitting.many import UNROLLED
from labelwise.models.base import scale_parameter
from labelwise.models.check import check_signal_model
from labelwise.models.evaluate import signals
from labelwise.models.find import available_models
from labelwise.networks.blend import blend_plan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import joined, train_networks
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
    "dki": shells([1.0, 2.0]),
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
    """The inner part of the typical ranges."""
    prior = lw.Uniform.typical(model)
    centre, half = prior.ranges.mean(axis=1), share * np.diff(prior.ranges)[:, 0] / 2
    spans = {n: (m - h, m + h) for n, m, h in zip(prior.names, centre, half, strict=True)}
    return lw.Uniform(spans, model=model)


def held(model, voxel):
    """A voxel, moved towards the mean over the typical ranges until the equation holds."""
    if not model.holds(*voxel):
        mean = lw.Uniform.typical(model).sample(jax.random.key(0), 10_000).mean(axis=0)
        while not model.holds(*voxel):
            voxel = voxel + 0.05 * (mean - voxel)
    return voxel


def middle(model):
    """The middle of the typical ranges."""
    return held(model, lw.Uniform.typical(model).ranges.mean(axis=1))


def level(model, snr):
    """Sigma of an SNR."""
    return float(np.abs(signals(model, middle(model)[None])).max()) / snr


def noise_of(model):
    return (
        lw.Gaussian() if type(model).__name__.startswith(("T1Signed", "ADCFloor")) else lw.Rician()
    )


def check(model, voxels):
    try:
        check_signal_model(model)
    except lw.InputError as error:
        return {"check": f"{str(error).count(chr(10))} wrong !"}
    return {"check": "ok"}


def noise_free(model, voxels):
    params = np.asarray(inner(model).sample(jax.random.key(1), voxels), float)
    fitter = lw.MaximumLikelihood(model, lw.Gaussian(), dtype=np.float64)
    found = fitter(signals(model, params), level(model, 1e4))
    width = np.diff(lw.Uniform.typical(model).ranges)[:, 0]
    errors = np.abs(found.values - params) / width
    failed, largest = np.isnan(errors).any(axis=1).sum(), np.nanmax(errors)
    text = f"{largest:.1e}" + f" ({failed} failed)" * bool(failed)
    return {"noise-free": text + mark(failed or largest > 1e-3)}


def cramer_rao(model, voxels):
    noise, sigma, repeats = noise_of(model), level(model, 100), 20 * voxels
    centre = middle(model)
    grid = lw.Grid({p.name: [x] for p, x in zip(model.parameters, centre, strict=True)})
    data = simulate(model, noise, grid, sigma, repeats, jax.random.key(2))
    found = lw.MaximumLikelihood(model, noise)(data.signal, sigma)
    bound = lw.cramer_rao(model, noise, centre[None], sigma)[0]
    ratios = np.nanstd(found.values, axis=0) / bound
    on_bound = np.mean(found.stats["on_bound"].any(axis=1))
    missed = np.abs(ratios - 1).max() > 0.05 + 2 / np.sqrt(2 * repeats)
    spread = f"{ratios.min():.3f} to {ratios.max():.3f}" + mark(missed)
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
    share = np.mean(nll <= np.fmin(best, nll) + 1e-3)
    return {"found": f"{share:.1%}" + mark(share < 0.995)}


def cells(model):
    """The parameters of the cells of a small grid."""
    ranges = lw.Uniform.typical(model).ranges
    low, high = (ranges @ [1 - share, share] for share in (0.2, 0.8))
    centre = middle(model)
    free = [i for i in range(len(ranges)) if i != scale_parameter(model)]
    if len(free) > 3:
        chosen = [(i, values[i]) for i in free for values in (low, high)]
        found = [np.where(np.arange(len(ranges)) == i, value, centre) for i, value in chosen]
    else:
        found = []
        for each in itertools.product((low, high), repeat=len(free)):
            cell = centre.copy()
            cell[free] = [values[i] for i, values in zip(free, each, strict=True)]
            found.append(cell)
    return np.array([centre, *(held(model, cell) for cell in found)])


def coverage(model, voxels):
    if len(model.parameters) > UNROLLED:
        return {}
    noise, sigma, repeats = noise_of(model), level(model, 30), 5 * voxels
    truth = np.repeat(cells(model), repeats, axis=0)
    clean = signals(model, truth).astype(np.float32)
    data = np.asarray(noise.sample(jax.random.key(4), clean, np.float32(sigma)))
    found = lw.MaximumLikelihood(model, noise, intervals=0.95)(data, sigma)
    inside = within(found, truth).reshape(-1, repeats, truth.shape[1]).mean(axis=1)
    worst = inside.min()
    name = model.parameters[int(inside.min(axis=0).argmin())].name
    return {"coverage": f"{worst:.1%} of {name}" + mark(worst < 0.92)}


def network(model, voxels):
    """A network for each label, with both intervals, trained small."""
    noise = noise_of(model)
    try:
        plan = blend_plan(model, noise, (1 / 60, 1 / 10))
        recipe = Recipe.every_level(signals=80 * voxels, epochs=20)
        blend = joined(train_networks(replace(plan, recipe=recipe)))
    except lw.InputError as error:
        return {"gt / fit": f"refused: {str(error).partition(': ')[2].partition(',')[0]}"}
    data = simulate(model, noise, plan.prior, plan.sigma, 8 * voxels, jax.random.key(5))
    fit = lw.MaximumLikelihood(model, noise)(data.signal, data.sigma)
    ends = {kind: blend(data.signal, data.sigma, alpha=a) for kind, a in (("mle", 1), ("gt", 0))}
    good = np.isfinite([fit.values, *(end.values for end in ends.values())]).all(axis=(0, 2))

    def rmse(values):
        return np.sqrt(np.mean((values - data.params)[good] ** 2, axis=0))

    row = {}
    for kind, limit in (("gt", 1.02), ("mle", 1.25)):
        ratios = rmse(ends[kind].values) / rmse(fit.values)
        text = f"{ratios.min():.2f} to {ratios.max():.2f}"
        row[f"{kind} / fit"] = text + mark(ratios.max() > limit)
    kinds = (("gt", "credible", 0.93), ("mle", "confidence", 0.93)) * plan.intervals
    for kind, name, least in kinds:
        inside = within(ends[kind], data.params)[good].mean(axis=0)
        missed = inside.min() < least or (kind == "gt" and inside.max() > 0.97)
        row[name] = f"{inside.min():.1%} to {inside.max():.1%}" + mark(missed)
    return row


def within(estimate, truth):
    """Whether intervals hold the truth."""
    slack = 1e-5 * np.abs(truth)
    return (estimate.stats["low"] - slack <= truth) & (truth <= estimate.stats["high"] + slack)


def mark(missed):
    return " !" if missed else ""


COLUMNS = {
    check: ("check",),
    noise_free: ("noise-free",),
    cramer_rao: ("std / CRLB", "bound"),
    search: ("found",),
    coverage: ("coverage",),
    network: ("gt / fit", "mle / fit", "credible", "confidence"),
}
"""The columns of a model that each function gives, from the model and the number of voxels."""


def main():
    words = sys.argv[1:]
    voxels = int(words.pop(0)) if words and words[0].isdigit() else 500
    names = ["model", *itertools.chain(*COLUMNS.values()), "seconds"]
    print("|", " | ".join(names), "|\n|", " | ".join(["---"] * len(names)), "|", flush=True)
    for name, kind in available_models().items():
        if words and name not in words:
            continue
        begin, model = time.perf_counter(), kind(**ACQUISITIONS[name])
        row = {"model": name}
        for column in COLUMNS:
            row |= column(model, voxels)
        row["seconds"] = f"{time.perf_counter() - begin:.0f}"
        print("|", " | ".join(row.get(each, "") for each in names), "|", flush=True)


if __name__ == "__main__":
    main()
