"""Random trainings, one after the other: does any combination make the compiler abort?

    python benchmarks/shapes.py --seconds 240 --seed 1

Each trains a few networks for one epoch and applies them and their blend: another model, labels,
width, depth, activation, loss, batch and noise every time. A refusal in a sentence
is fine; an abort of the process is not, and nothing could catch it.
"""

import argparse
import time

import numpy as np

import labelwise as lw
from labelwise.networks.mlp import ACTIVATIONS
from labelwise.networks.recipe import PENALTIES
from labelwise.networks.train import train_networks

MODELS = (
    lw.ADC([0, 0.5, 1]),
    lw.ADC([0, 0, 0, 0.4, 0.4, 0.8, 1, 1]),
    lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000),
    lw.IVIM(np.tile([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8], 6)),
    lw.Kurtosis([0, 0.5, 1, 2, 2.5]),
    lw.T2([10, 20, 40, 80]),
    lw.T1InversionRecovery([50, 400, 1100, 2500]),
    lw.T2Biexponential(np.arange(1, 33) * 10.0),
    lw.T2EPG(np.arange(1, 9) * 10.0),
)


def random_plan(rng):
    model = MODELS[rng.integers(len(MODELS))]
    labels = [lw.GroundTruth(), lw.MLE(model, lw.Rician())]
    if model.differentiable:
        labels += [lw.SelfSupervised(), lw.SelfSupervised(lw.Rician())]
    recipe = lw.Recipe.fast(
        signals=int(rng.choice([600, 3000])),
        batch=int(rng.choice([50, 100, 250])),
        epochs=1,
        restarts=int(rng.integers(1, 5)),
        width=int(rng.choice([3, 8, 10, 32, 64])),
        depth=int(rng.choice([1, 2, 3, 5, 10])),
        activation=str(rng.choice(list(ACTIVATIONS))),
        loss=str(rng.choice(list(PENALTIES))),
        shared_start=bool(rng.integers(2)),
    )
    return lw.TrainingPlan(
        model,
        lw.Rician(),
        lw.Uniform.typical(model),
        (1 / 60, 1 / 10) if rng.integers(2) else 1 / 30,
        tuple(labels[i] for i in rng.permutation(len(labels))[: rng.integers(1, len(labels) + 1)]),
        recipe,
        normalise=bool(rng.integers(2)),
        on_bound="keep",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    end, done, refused = time.monotonic() + options.seconds, 0, 0
    while time.monotonic() < end:
        plan = random_plan(rng)
        print(type(plan.model).__name__, len(plan.labels), plan.recipe, flush=True)
        try:
            networks = train_networks(plan)
            signal = rng.random((50, networks[0].members[0].scaling.measurements))
            for network in (networks[0], lw.blend(networks[0], networks[-1], 0.5)):
                network(signal, 0.05)
            done += 1
        except ValueError as error:
            refused += 1
            print(f"  refused: {error}")
    print(f"{done} trainings, {refused} refused, no abort")


if __name__ == "__main__":
    main()
