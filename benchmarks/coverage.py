"""Whether intervals mean what they claim: coverage and interval scores on simulated voxels.

    python benchmarks/coverage.py confidence            # 4 minutes on 2 cores
    python benchmarks/coverage.py cells                 # the same for 600 cells, 5 minutes
    python benchmarks/coverage.py credible              # 5 minutes
    python benchmarks/coverage.py credible --model t2   # or adc, kurtosis, ...
    python benchmarks/coverage.py speed                 # 1 minute

confidence: the share of noisy repeats whose 95 % interval holds the truth, with Rician noise: nine
cells of IVIM, by fits and by the network of `labelwise map`, whose bar is 93 % for each parameter,
and by estimates ± 1.96 standard errors of the same fits, for comparison (one without a standard
error, on a bound, does not hold the truth); then fits of other models and of a black box, whose bar
is 92 % in the worst cell of a small grid.

cells: the same for 600 cells of IVIM, with tissue outside the typical ranges; the bars are none
below 90 % and at most 3 % of the cells below 93 %.

credible: the network of `labelwise map` for SNR 6.3 to 54, on voxels of the prior it was trained
for. "score" is its mean interval score over that of the exact posterior, in the same voxels, whose
quantiles make it smallest: width, plus 40 times the distance to a truth outside. Strata are fifths
of the voxels by SNR, the reference over sigma. After ± are standard errors. "!" marks what misses
its bar: a score of 1.02 overall and 1.04 in a stratum; coverage of 95 ± 1.2 and 68 ± 1.5 %.

speed: voxels in a second with intervals, without standard errors, for ten measurements; and the
CPU time of fits with and without intervals.
"""

import argparse
import itertools
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import labelwise as lw
from labelwise.evaluation.posterior import posterior_quantiles
from labelwise.evaluation.scores import interval_score
from labelwise.networks.blend import blend_plan
from labelwise.networks.labels import GroundTruth
from labelwise.networks.network import blend
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import joined, train_networks
from labelwise.simulation import simulate

MODELS = {
    "adc": lw.ADC(np.array([0, 100, 200, 400, 600, 800]) / 1000),
    "ivim": lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000),
    "kurtosis": lw.Kurtosis(np.array([0, 500, 1000, 1500, 2000, 2500]) / 1000),
    "t1_ir": lw.T1InversionRecovery([35, 75, 100, 125, 150, 250, 1000, 1500, 2000, 3000]),
    "t2": lw.T2(np.arange(10.0, 170, 10)),
    "t2_biexponential": lw.T2Biexponential(np.arange(10.0, 330, 10)),
}
LEVELS = (1 / 54, 1 / 6.3)
TISSUES = ((0.25, 1.1, 70.0), (0.2, 1.9, 30.0), (0.06, 0.8, 12.0))
GRID = ((0.02, 0.1, 0.2, 0.3, 0.45), (0.3, 0.8, 1.2, 1.8, 2.6), (5, 12, 25, 50, 100, 200))
SNR = (10, 20, 40, 60)
STRATA = 5
SCORE, COVERAGE = {"all": 1.02, "stratum": 1.04}, {95: 1.2, 68: 1.5}


class Stretched(lw.SignalModel):
    """S(t) = A exp(-(t / T)^k), in NumPy: a model that JAX cannot differentiate."""

    t: Float[Array | np.ndarray, " M"] = lw.per_measurement()
    differentiable = False
    vectorized = True
    parameters = (
        lw.Parameter("A", "a.u.", (0.0, np.inf)),
        lw.Parameter("T", "ms", (5.0, 500.0)),
        lw.Parameter("k", "1", (0.3, 1.5)),
    )

    def signal(self, a, t, k):
        return a * np.exp(-((self.t / t) ** k))


OTHERS = [
    (lw.Kurtosis([0, 0.5, 1, 1.5, 2, 2.5]), [(1,), (0.7, 1.1, 1.8), (0.4, 0.8, 1.2)]),
    (lw.T2(np.arange(10, 170, 10.0)), [(1,), (20, 60, 150)]),
    (lw.T2Biexponential(np.arange(8, 328, 8.0)), [(1,), (0.1, 0.25), (12, 25), (70, 120)]),
    (
        lw.T1InversionRecovery([25, 75, 150, 300, 600, 1200, 2400, 4000]),
        [(1,), (300, 850, 1500), (1.7, 1.95)],
    ),
    (Stretched(np.arange(5, 165, 16.0)), [(1,), (30, 80), (0.7, 1.0)]),
]


def repeats(model, truth, snr, voxels, seed):
    clean = np.tile(np.asarray(model.signal(*truth), np.float32), (voxels, 1))
    return np.asarray(lw.Rician().sample(jax.random.key(seed), clean, np.float32(1 / snr)))


def covered(estimator, model, truth, snr, voxels, seed):
    """The share of intervals that hold the truth, by parameter; and of estimates inside theirs."""
    estimate = estimator(repeats(model, truth, snr, voxels, seed), 1 / snr)
    low, high = estimate.stats["low"], estimate.stats["high"]
    slack = 1e-5 * np.abs(truth)  # a truth on a bound, in float32
    inside = np.mean((low <= estimate.values) & (estimate.values <= high), axis=0)
    return np.mean((low - slack <= truth) & (np.array(truth) <= high + slack), axis=0), inside


def symmetric(fit):
    """The same estimates ± 1.96 standard errors."""

    def estimator(signal, sigma):
        found = fit(signal, sigma)
        half = 1.96 * found.stats["standard_error"]
        return replace(found, stats={"low": found.values - half, "high": found.values + half})

    return estimator


def network_of(model):
    """The network of `labelwise map` at alpha = 1, for SNR 5 to 80."""
    begin, cpu = time.perf_counter(), time.process_time()
    network = joined(train_networks(blend_plan(model, lw.Rician(), (1 / 80, 1 / 5))))
    print(
        f"network trained in {time.perf_counter() - begin:.0f} s (CPU "
        f"{time.process_time() - cpu:.0f} s)"
    )
    return network


def confidence(voxels):
    model = MODELS["ivim"]
    estimators = {
        "fit ± 1.96 standard errors": symmetric(lw.MaximumLikelihood(model, lw.Rician())),
        "fit": lw.MaximumLikelihood(model, lw.Rician(), intervals=0.95),
        "network": network_of(model),
    }
    for name, estimator in estimators.items():
        print(f"\n{name}, IVIM: coverage in %:", "  ".join(p.name for p in model.parameters))
        worst, least = [], []
        for cell, (tissue, snr) in enumerate(itertools.product(TISSUES, (10, 20, 40))):
            shares, inside = covered(estimator, model, (1.0, *tissue), snr, voxels, cell)
            show(f"{tissue}, SNR {snr}", shares, voxels)
            worst.append(shares.min())
            least.append(inside.min())
        print(f"worst of nine cells: {100 * min(worst):.1f} %")
        print(f"the estimate is inside its interval in at least {100 * min(least):.1f} %")
    for model, axes in OTHERS:
        print(f"\nfit, {type(model).__name__}:", "  ".join(p.name for p in model.parameters))
        fit, worst = lw.MaximumLikelihood(model, lw.Rician(), intervals=0.95), []
        for cell, (snr, *truth) in enumerate(itertools.product((20, 50), *axes)):
            shares, _ = covered(fit, model, truth, snr, voxels, 100 + cell)
            show(f"{tuple(truth)}, SNR {snr}", shares, voxels)
            worst.append(shares.min())
        print(f"worst of {len(worst)} cells: {100 * min(worst):.1f} %")


def show(name, shares, voxels):
    cells = (f"{100 * s:5.1f} ± {100 * np.sqrt(s * (1 - s) / voxels):.1f}" for s in shares)
    print(f"{name:<44}", "  ".join(cells), flush=True)


def cells(voxels):
    model = MODELS["ivim"]
    estimators = {
        "network": network_of(model),
        "fit": lw.MaximumLikelihood(model, lw.Rician(), intervals=0.95),
    }
    every = list(itertools.product(SNR, *GRID))
    for name, estimator in estimators.items():
        shares = np.array(
            [
                covered(estimator, model, (1.0, *tissue), snr, voxels, seed)[0]
                for seed, (snr, *tissue) in enumerate(every)
            ]
        )
        print(f"\n{name}: {len(every)} cells of {voxels} voxels, coverage in %")
        for column, parameter in enumerate(model.parameters):
            mine = shares[:, column]
            at = every[int(mine.argmin())]
            print(
                f"{parameter.name:8} mean {100 * mine.mean():5.1f}, least {100 * mine.min():5.1f} "
                f"(SNR {at[0]}, {at[1:]}), below 93: {100 * (mine < 0.93).mean():4.1f} % of cells, "
                f"below 90: {100 * (mine < 0.9).mean():4.1f} %",
                flush=True,
            )


def quantiles(network, voxels):
    """The quantiles of a credible network, (N, P, 5)."""
    scaling, interval = network.members[0].scaling, network.members[0].interval

    @jax.jit
    def found(signal, sigma):
        ends = interval.heads.quantiles(interval.weights, scaling.inputs(signal.T, sigma))
        units = scaling.params(jnp.ones_like(ends[:, 0]), scaling.reference_of(signal.T))
        return jnp.moveaxis(ends * units[:, None], -1, 0)

    return np.asarray(found(voxels.signal, voxels.sigma))


def credible(model, voxels, exact, seed):
    begin, cpu = time.perf_counter(), time.process_time()
    plan = replace(blend_plan(model, lw.Rician(), LEVELS, seed=seed), labels=(GroundTruth(),))
    (network,) = train_networks(plan)
    taught = network.members[0].interval.record["recipe"]
    print(
        f"{network.names}, trained in {time.perf_counter() - begin:.1f} s (CPU "
        f"{time.process_time() - cpu:.1f} s); intervals: {taught['signals']} voxels, "
        f"{taught['epochs']} epochs, width {taught['width']}"
    )
    drawn = simulate(model, plan.noise, plan.prior, plan.sigma, voxels, jax.random.key(99))
    ours = quantiles(network, drawn)
    begin = time.perf_counter()
    best, size = posterior_quantiles(
        model,
        plan.noise,
        plan.prior,
        drawn.signal[:exact],
        drawn.sigma[:exact],
        (0.025, 0.16, 0.84, 0.975),
        sigma_range=plan.sigma,
    )
    print(
        f"exact posterior of {exact} voxels in {time.perf_counter() - begin:.0f} s, effective "
        f"sample size at least {size.min():.0f}"
    )
    estimate = network(drawn.signal, drawn.sigma)
    inside = (estimate.stats["low"] <= estimate.values) & (
        estimate.values <= estimate.stats["high"]
    )
    reference = drawn.signal[:, list(network.members[0].scaling.reference)].mean(axis=1)
    snr = reference / drawn.sigma
    edges = np.quantile(snr, np.linspace(0, 1, STRATA + 1))
    print(f"{'':10}{'SNR':>14}{'score':>17}{'exact covers':>14}{'95 %':>15}{'68 %':>15}")
    for column, name in enumerate(network.names):
        truth = drawn.params[:, column]
        low, central_low, _, central_high, high = ours[:, column].T
        scores = interval_score(low, high, truth)[:exact]
        exact_low, _, _, exact_high = best[:, column].T
        least = interval_score(exact_low, exact_high, truth[:exact])
        covers = (exact_low <= truth[:exact]) & (truth[:exact] <= exact_high)
        for kind, first, last in (
            ("all", edges[0], edges[-1]),
            *(("stratum", *pair) for pair in itertools.pairwise(edges)),
        ):
            rows = (first <= snr) & (snr <= last)
            few = rows[:exact]
            ratio = scores[few].mean() / least[few].mean()
            error = np.std(scores[few] - ratio * least[few]) / least[few].mean() / few.sum() ** 0.5
            line = f"{name:10}{first:6.1f} to{last:5.1f}   {ratio:6.3f} ± {error:.3f}"
            line += f" {'!' if ratio > SCORE[kind] else ' '}{100 * covers[few].mean():14.1f}"
            for level, (a, b) in {95: (low, high), 68: (central_low, central_high)}.items():
                share = ((a <= truth) & (truth <= b))[rows]
                error = 100 * share.std() / len(share) ** 0.5
                missed = abs(100 * share.mean() - level) > COVERAGE[level]
                line += f"{100 * share.mean():8.1f} ± {error:.1f} {'!' if missed else ' '}"
            print(line, flush=True)
    print("the estimate is inside its interval in", 100 * inside.mean(axis=0).round(4), "%")


def speed(model, voxels):
    drawn = simulate(
        model, lw.Rician(), lw.Uniform.typical(model), LEVELS, 20_000, jax.random.key(9)
    )
    for level in (None, 0.95):
        fit = lw.MaximumLikelihood(model, lw.Rician(), intervals=level)
        fit(drawn.signal, drawn.sigma)
        used = []
        for _ in range(3):
            begin = time.process_time()
            fit(drawn.signal, drawn.sigma)
            used.append(time.process_time() - begin)
        text = "with" if level else "without"
        print(
            f"fit {text:7} intervals: {len(drawn) / min(used):12,.0f} voxels per CPU s", flush=True
        )
    recipe = Recipe.every_level(signals=20_000, epochs=1)
    plan = replace(blend_plan(model, lw.Rician(), LEVELS), recipe=recipe)
    mle, gt = train_networks(plan)
    drawn = simulate(model, plan.noise, plan.prior, plan.sigma, voxels, jax.random.key(99))
    for alpha in (0.0, 0.5, 1.0):
        for intervals in (False, True):
            network = replace(blend(mle, gt, alpha), standard_errors=False, intervals=intervals)
            network(drawn.signal, drawn.sigma)
            seconds, cpu = [], []
            for _ in range(5):
                begin, used = time.perf_counter(), time.process_time()
                network(drawn.signal, drawn.sigma)
                seconds.append(time.perf_counter() - begin)
                cpu.append(time.process_time() - used)
            print(
                f"alpha {alpha:3.1f}, {'with' if intervals else 'without':7} intervals: "
                f"{voxels / min(seconds):12,.0f} voxels/s, {voxels / min(cpu):12,.0f} per CPU s",
                flush=True,
            )


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=["confidence", "cells", "credible", "speed"])
    options.add_argument("--model", choices=list(MODELS), default="ivim")
    options.add_argument("--voxels", type=int, default=100_000)
    options.add_argument("--exact", type=int, default=10_000, help="of them, those with a score")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    if given.what == "confidence":
        confidence(min(given.voxels, 2000))
    elif given.what == "cells":
        cells(min(given.voxels, 1000))
    elif given.what == "credible":
        credible(MODELS[given.model], given.voxels, given.exact, given.seed)
    else:
        speed(MODELS[given.model], 1_000_000)


if __name__ == "__main__":
    main()
