"""What the choice of training label does: networks beside the posterior mean and the MLE.

    python benchmarks/labels.py            # about 10 minutes on 2 cores
    python benchmarks/labels.py --quick    # about 2 minutes

IVIM, b = 0 10 20 30 50 80 100 200 400 800 s/mm², parameters uniform in the ranges of Epstein et al.
(doi:10.59275/j.melba.2024-geb5), Rician noise, signals as simulated (not divided by b = 0).

1. No estimator has a smaller squared error under the prior than the posterior mean. How far above
   it are the paper's network for one SNR, and one network for all of them? W = 1 / mean.
2. On a grid of the true parameters: bias, spread, RMSE and information of networks by their label.
3. Blends of two networks' outputs beside networks trained on mixed labels.
4. How much of it is the luck of one training: the same over several seeds.
"""

import argparse
import time

import jax
import numpy as np

import labelwise as lw
from labelwise.evaluation.grid import evaluate, summary
from labelwise.evaluation.posterior import PosteriorMean
from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.plan import SelfSupervised, TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.priors import Grid, Uniform
from labelwise.simulation import simulate

MODEL = lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000)
PRIOR, RICIAN = Uniform.paper(), lw.Rician()
WEIGHTS = 1 / PRIOR.ranges.mean(axis=1)
RANGE = (1 / 60, 1 / 5)


def plan(labels, sigma, recipe, **more):
    return TrainingPlan(MODEL, RICIAN, PRIOR, sigma, tuple(labels), recipe, normalise=False, **more)


def floor(options):
    """Part 1."""
    begin = time.perf_counter()
    every = train_networks(
        plan([GroundTruth()], RANGE, Recipe.every_level(restarts=options.restarts))
    )[0]
    print(f"One network for SNR 5 to 60: {time.perf_counter() - begin:.0f} s of training")
    bars = {"one SNR": {15: 0.01, 30: 0.025}, "every level": {15: 0.01, 30: 0.02}}
    for snr in (5, 10, 15, 30, 60):
        voxels = simulate(MODEL, RICIAN, PRIOR, 1 / snr, options.voxels, jax.random.key(77))
        reference = PosteriorMean(MODEL, RICIAN, PRIOR, options.draws, jax.random.key(5))
        mean = reference(voxels.signal, voxels.sigma)
        best = weighted(mean.values, voxels.params)
        error = best.std() / np.sqrt(len(best))
        effective = np.median(mean.stats["effective_sample_size"])
        print(
            f"SNR {snr}: posterior mean {best.mean():.4f} ± {error:.4f} "
            f"(median effective sample size {effective:.0f})"
        )
        networks = {"every level": every}
        if snr in bars["one SNR"]:
            recipe = Recipe.fast(epochs=options.epochs)
            networks["one SNR"] = train_networks(plan([GroundTruth()], 1 / snr, recipe))[0]
        for name, network in networks.items():
            loss = weighted(network(voxels.signal, voxels.sigma).values, voxels.params)
            above = (loss - best) / best.mean()
            bar = bars[name].get(snr)
            verdict = ""
            if bar:
                verdict = f"   at most {bar:.1%}: {'yes' if above.mean() <= bar else 'NO'}"
            spread = above.std() / np.sqrt(len(above))
            print(
                f"  {name:<12} {100 * above.mean():5.2f} ± {100 * spread:.2f} % above it{verdict}",
                flush=True,
            )


def weighted(values, params):
    """The weighted squared error of each voxel, the mean over parameters."""
    return np.mean((WEIGHTS * (np.asarray(values, float) - params)) ** 2, axis=1)


def labels(options):
    """Parts 2 and 3."""
    rician = MLE(MODEL, RICIAN, "truth")
    by_name = {
        "GT": GroundTruth(),
        "MLE Rician": rician,
        "MLE Gaussian": MLE(MODEL, lw.Gaussian(), "truth"),
        "mix 0.25": Mix(0.25, rician, GroundTruth()),
        "mix 0.5": Mix(0.5, rician, GroundTruth()),
        "mix 0.75": Mix(0.75, rician, GroundTruth()),
        "self-supervised": SelfSupervised(),
        "self-sup. Rician": SelfSupervised(RICIAN),
    }
    recipe = Recipe.fast(epochs=options.epochs, restarts=4)
    begin = time.perf_counter()
    trained = train_networks(plan(by_name.values(), 1 / 15, recipe), cache=None)
    networks = dict(zip(by_name, trained, strict=True))
    print(
        f"{len(by_name)} labels x {recipe.restarts} restarts: {time.perf_counter() - begin:.0f} s"
    )
    kept = train_networks(plan([rician], 1 / 15, recipe, on_bound="keep"))[0]
    networks["MLE Rician, kept"] = kept
    report = networks["MLE Rician"].card.label_report
    shares = ", ".join(f"{name} {share:.1%}" for name, share in report["on_bound_of"].items())
    print(f"Rician labels on a bound: {report['on_bound']:.1%} ({shares})")
    for alpha in (0.25, 0.5, 0.75):
        networks[f"blend {alpha}"] = lw.blend(networks["MLE Rician"], networks["GT"], alpha)
    begin = time.perf_counter()
    dataset = evaluate(
        networks,
        MODEL,
        RICIAN,
        1 / 15,
        Grid.over(PRIOR, points=10, fixed={"S0": 1.0}),
        options.repeats,
        jax.random.key(3),
        labels={"MLE from truth": rician, "MLE by search": MLE(MODEL, RICIAN, "search")},
    )
    print(f"evaluated in {time.perf_counter() - begin:.0f} s")
    return summary(dataset)


COLUMNS = ("abs_bias", "abs_bias_grid", "std", "rmse", "slope", "top", "retained")


def table(found):
    for name in ("f", "D_slow", "D_fast"):
        print(f"\n{name:<18}" + "".join(f"{column:>22}" for column in COLUMNS if column in found))
        for estimator in found.estimator.values:
            cells = []
            for column in COLUMNS:
                if column in found:
                    here = found.sel(estimator=estimator, parameter=name)
                    value, error = float(here[column]), float(here[f"{column}_error"])
                    cells.append(f"{value:12.4f} ± {error:.4f}")
            print(f"{estimator:<18}" + "".join(f"{cell:>22}" for cell in cells))


def trainings(options):
    """Part 4: what is the label, and what is the luck of one training?"""
    rician = MLE(MODEL, RICIAN, "truth")
    by_name = {
        "GT": GroundTruth(),
        "mix 0.5": Mix(0.5, rician, GroundTruth()),
        "MLE Rician": rician,
    }
    grid, key = Grid.over(PRIOR, points=10, fixed={"S0": 1.0}), jax.random.key(3)
    seen = []
    for seed in range(options.seeds):
        recipe = Recipe.fast(epochs=options.epochs, restarts=4)
        trained = train_networks(plan(by_name.values(), 1 / 15, recipe, seed=seed))
        networks = dict(zip(by_name, trained, strict=True))
        seen.append(summary(evaluate(networks, MODEL, RICIAN, 1 / 15, grid, 50, key)))
    print(f"\nMean and standard deviation over {options.seeds} trainings (data and first weights)")
    for quantity in ("abs_bias", "std", "rmse", "slope"):
        for name in ("f", "D_slow", "D_fast"):
            cells = []
            for label in by_name:
                values = [float(s[quantity].sel(estimator=label, parameter=name)) for s in seen]
                cells.append(f"{label} {np.mean(values):8.4f} ± {np.std(values, ddof=1):.4f}")
            print(f"  {quantity:<9} {name:<7} " + "   ".join(cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["floor", "labels", "trainings"])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.voxels, options.draws, options.repeats = 2000, 50_000, 40
        options.restarts, options.epochs, options.seeds = 1, 20, 2
    if options.only in (None, "floor"):
        floor(options)
    if options.only in (None, "labels"):
        table(labels(options))
    if options.only in (None, "trainings"):
        trainings(options)


if __name__ == "__main__":
    main()
