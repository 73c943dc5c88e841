"""Whether intervals mean what they claim: coverage and interval scores on simulated voxels.

    python benchmarks/coverage.py credible              # 5 minutes on 2 cores
    python benchmarks/coverage.py credible --model t2   # or adc, kurtosis, ...
    python benchmarks/coverage.py speed                 # 1 minute

credible: the network of `labelwise map` for SNR 6.3 to 54, on voxels of the prior it was trained
for. "score" is its mean interval score over that of the exact posterior, in the same voxels, whose
quantiles make it smallest: width, plus 40 times the distance to a truth outside. Strata are fifths
of the voxels by SNR, the reference over sigma. After ± are standard errors. "!" marks what misses
its bar: a score of 1.02 overall and 1.04 in a stratum; coverage of 95 ± 1.2 and 68 ± 1.5 %.

speed: voxels in a second with intervals, without standard errors, for ten measurements.
"""

import argparse
import itertools
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import labelwise as lw
from labelwise.evaluation.posterior import posterior_quantiles
from labelwise.evaluation.scores import interval_score
from labelwise.networks.blend import blend_plan
from labelwise.networks.intervals import IntervalNetwork
from labelwise.networks.labels import GroundTruth
from labelwise.networks.network import blend, with_interval
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
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
STRATA = 5
SCORE, COVERAGE = {"all": 1.02, "stratum": 1.04}, {95: 1.2, 68: 1.5}


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
    plan = replace(
        blend_plan(model, lw.Rician(), LEVELS, seed=seed), labels=(GroundTruth(),), intervals=True
    )
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
    recipe = Recipe.every_level(signals=20_000, epochs=1)
    plan = replace(blend_plan(model, lw.Rician(), LEVELS), recipe=recipe, intervals=True)
    mle, gt = train_networks(plan)
    if mle.members[0].interval is None:  # the time does not depend on the weights
        heads = replace(gt.members[0].interval.heads, kind="confidence")
        layers = replace(heads.architecture, outputs=3 * len(model.parameters))
        heads = replace(heads, architecture=layers, snapped=(True,) * len(model.parameters))
        random = heads.initial(np.random.default_rng(0))
        mle = with_interval(mle, IntervalNetwork(heads, random, {}))
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
    options.add_argument("what", choices=["credible", "speed"])
    options.add_argument("--model", choices=list(MODELS), default="ivim")
    options.add_argument("--voxels", type=int, default=100_000)
    options.add_argument("--exact", type=int, default=10_000, help="of them, those with a score")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    if given.what == "credible":
        credible(MODELS[given.model], given.voxels, given.exact, given.seed)
    else:
        speed(MODELS[given.model], 1_000_000)


if __name__ == "__main__":
    main()
