"""Training side by side: labelwise's compiled loop, and the usual eager PyTorch.

    python benchmarks/training.py            # a few minutes on 2 cores; needs torch
    python benchmarks/training.py --quick

One run, two questions. (1) How many network-steps a second: the paper's recipe (16 networks
10-10-10-10-4, ELU, batch 100, Adam 1e-3, squared error) in labelwise, all 16 at once, and in eager
PyTorch, one network after the other, on the same data; rounds of both alternate. (2) How long until
the fast recipe has the validation error that the paper's recipe ends with: both in labelwise, on
the same voxels, compiling included.
"""

import argparse
import time

import jax
import numpy as np

import labelwise as lw
from labelwise.networks.mlp import Architecture
from labelwise.networks.recipe import Recipe
from labelwise.networks.training import Examples, optimise, supervised
from labelwise.priors import Uniform
from labelwise.simulation import simulate

MODEL = lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000)
UNIT = Uniform.paper().ranges.mean(axis=1)


def examples(recipe, snr):
    """Signals as they are and the truth over its mean: nothing to gain by scaling for either."""
    voxels = simulate(
        MODEL, lw.Rician(), Uniform.paper(), 1 / snr, recipe.signals, jax.random.key(1)
    )
    return voxels.signal, (voxels.params / UNIT).astype(np.float32)


def train_here(inputs, targets, recipe, seed=0, progress=None):
    shown = Examples(inputs, targets[None], np.ones((1, len(inputs)), bool), np.ones((1, 4)))
    network = Architecture(inputs.shape[1], 4, width=recipe.width or inputs.shape[1])
    return optimise(shown, network, supervised("squared"), recipe, seed, progress=progress)[0]


def torch_steps(inputs, targets, steps, threads, batch=100):
    """Seconds for some steps of one network the usual way."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    layers = []
    for _ in range(3):
        layers += [torch.nn.Linear(inputs.shape[1], inputs.shape[1]), torch.nn.ELU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(inputs.shape[1], 4))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    data = torch.utils.data.TensorDataset(torch.tensor(inputs), torch.tensor(targets))
    order = torch.randperm(len(data))[: steps * batch].reshape(steps, batch)
    x, y = data.tensors  # batches are sliced: a DataLoader would be several times slower
    begin = time.perf_counter()
    for rows in order:
        loss = ((network(x[rows]).abs() - y[rows]) ** 2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - begin


def speed(options):
    recipe = Recipe.paper(epochs=options.epochs, patience=None)
    inputs, targets = examples(recipe, 15)
    here, there = [], []
    for _ in range(options.rounds):
        ends = []

        def note(done, loss, ends=ends):
            ends.append(time.perf_counter())

        train_here(inputs, targets, recipe, progress=note)
        seconds = ends[-1] - ends[0]  # the first epoch compiles
        here.append(seconds / (len(ends) - 1) / recipe.steps / recipe.restarts)
        steps = options.torch_steps
        usual = [torch_steps(inputs, targets, steps, threads) / steps for threads in (1, 2)]
        there.append(min(usual))  # one thread or two, whichever is faster
    here, there = np.array(here), np.array(there)
    ratio = there / here
    print("The paper's recipe: 16 networks 10-10-10-10-4, batch 100, Adam")
    print(f"  eager PyTorch, one after the other  {1e6 * np.median(there):8.1f} µs a network-step")
    print(f"  labelwise, all 16 at once           {1e6 * np.median(here):8.1f} µs a network-step")
    verdict = "yes" if np.median(ratio) >= 15 else "NO"
    print(
        f"  ratio {np.median(ratio):.1f} [{ratio.min():.1f} to {ratio.max():.1f}]"
        f"   at least 15: {verdict}",
        flush=True,
    )


def reach(options, snr):
    paper, fast = Recipe.paper(), Recipe.fast()
    inputs, targets = examples(paper, snr)
    times = {}
    for recipe in (paper, fast):
        begin, seen = time.perf_counter(), []

        def note(done, loss, seen=seen, begin=begin):
            seen.append((time.perf_counter() - begin, loss))

        result = train_here(inputs, targets, recipe, progress=note)
        times[recipe.name] = (result, seen)
        print(
            f"  {recipe.name:<6} {recipe.restarts:3} networks, {len(seen):4} epochs of "
            f"{recipe.steps} steps: {seen[-1][0]:6.1f} s, validation error {result.loss:.5f}",
            flush=True,
        )
    goal, whole = times["paper"][0].loss, times["paper"][1][-1][0]
    first = next((seconds for seconds, loss in times["fast"][1] if loss <= goal), None)
    if first is None:
        print("  the fast recipe does not reach it   at most a fifth: NO")
        return
    verdict = "yes" if first <= whole / 5 else "NO"
    print(
        f"  the fast recipe has it after {first:.1f} s: 1/{whole / first:.1f} of the time"
        f"   at most a fifth: {verdict}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--torch-steps", type=int, default=800)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, SNR 15 only")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.torch_steps = 2, 400
    speed(options)
    for snr in (15,) if options.quick else (15, 30):
        print(f"\nTime to the paper recipe's validation error, GT labels, SNR {snr}")
        reach(options, snr)


if __name__ == "__main__":
    main()
