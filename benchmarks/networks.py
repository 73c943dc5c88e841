"""How fast networks are, by number of measurements, with standard errors and intervals.

    python benchmarks/networks.py                      # a minute on 2 cores
    python benchmarks/networks.py --before REVISION    # beside an older labelwise, in turns

Blends of two networks as `labelwise map` trains them for IVIM (3 layers of 32 nodes, or of 48 for
intervals), with random weights. CPU time of both cores per voxel, which other work on the machine
changes little, and voxels per second by the clock; best of several rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOXELS, ROUNDS = 200_000, 6
KINDS = ("estimates", "and errors", "and intervals")


def acquisitions():
    import numpy as np

    b = np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000
    return {
        "10 b-values": (b, [(i,) for i in range(10)]),
        "54, 6 of each of 9": (
            np.repeat(b[:9], 6),
            [tuple(range(i, i + 6)) for i in range(0, 54, 6)],
        ),
        "54 b-values": (np.linspace(0, 0.8, 54), [(i,) for i in range(54)]),
    }


def network(model, groups):
    """A blend with random weights for groups of measurements, the first at the lowest b."""
    import numpy as np

    import labelwise as lw
    from labelwise.models.find import describe_model
    from labelwise.networks.card import Card
    from labelwise.networks.intervals import LEVELS, Heads, IntervalNetwork
    from labelwise.networks.mlp import Architecture, Scaling
    from labelwise.networks.network import Member, Network
    from labelwise.noise import describe_noise

    noise, members = lw.Rician(), []
    inputs, size = len(groups) + 1, len(model.parameters)
    ranges = [[0.0, 1e3]] * size
    card = Card(
        **{"model": describe_model(model), "noise": describe_noise(noise), "prior": {}},
        **{"sigma": [0.001, 0.5], "label": {"kind": "random"}, "label_report": None},
        **{"label_range": ranges, "ranges": ranges, "noise_range": [0.001, 0.5]},
        **{"normalised": True, "on_bound": "keep", "weights": None, "recipe": {}, "seed": 0},
        **{"validation": {}, "versions": {"labelwise": "0"}},
    )
    scaling = Scaling(
        groups=tuple(groups),
        reference=groups[0],
        scale=0,
        conditioned=True,
        centre=(0.5,) * (inputs - 1) + (-4.0,),
        spread=(0.3,) * (inputs - 1) + (1.0,),
        unit=tuple(lw.Uniform.typical(model).ranges.mean(axis=1).tolist()),
    )
    for seed, kind in enumerate(("confidence", "credible")):
        rng = np.random.default_rng(seed)
        architecture = Architecture(inputs, size, 32)
        ends = Architecture(inputs, size * (len(LEVELS[kind]) + 1), 48)
        no = (False,) * size
        heads = Heads(kind, ends, (0.1,) * size, (2.0,) * size, no, no)
        interval = IntervalNetwork(heads, ends.initial(rng), {})
        weights = architecture.initial(rng)
        members.append(Member(architecture, scaling, weights, card, interval))
    return Network(tuple(members), model.parameters, noise, (0.5,) * size)


def child():
    """At each line of input, run every case once, and print CPU and clock seconds."""
    from dataclasses import replace

    import jax
    import numpy as np

    import labelwise as lw

    cases = {}
    for name, (b, groups) in acquisitions().items():
        model, noise = lw.IVIM(b), lw.Rician()
        prior = lw.Uniform.typical(model)
        signal = lw.simulate(model, noise, prior, 0.05, VOXELS, jax.random.key(0)).signal
        whole = network(model, groups)
        kinds = whole.without_errors(), replace(whole, intervals=False), whole
        for kind, each in zip(KINDS, kinds, strict=True):
            cases[f"{name}, {kind}"] = each, np.asarray(signal)
            each(signal[:20_000], 0.05)
    print(flush=True)
    for _ in sys.stdin:
        seconds = {}
        for name, (each, signal) in cases.items():
            cpu, clock = time.process_time(), time.perf_counter()
            each(signal, 0.05)
            seconds[name] = time.process_time() - cpu, time.perf_counter() - clock
        print(json.dumps(seconds), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", help="an older revision of labelwise")
    before = parser.parse_args().before
    with tempfile.TemporaryDirectory() as folder:
        sources = {"now": os.pathsep.join(sys.path)}
        if before:
            packed = subprocess.check_output(["git", "archive", before, "src"])
            subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
            sources[before] = str(Path(folder) / "src")
        runs = {
            name: subprocess.Popen(
                [sys.executable, __file__, "--child"],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, path in sources.items()
        }
        found = {name: [] for name in runs}
        for run in runs.values():
            run.stdout.readline()
        for _ in range(ROUNDS):
            for name, run in runs.items():
                run.stdin.write("\n")
                run.stdin.flush()
                found[name].append(json.loads(run.stdout.readline()))
        for run in runs.values():
            run.stdin.close()
            run.wait()
    for case in found["now"][0]:
        text = f"{case:<33}"
        best = {
            name: [min(one[case][i] for one in rounds) for i in (0, 1)]
            for name, rounds in found.items()
        }
        for name, (cpu, clock) in best.items():
            text += f"  {name}: {cpu / VOXELS * 1e6:5.2f} µs CPU, {VOXELS / clock:9,.0f} voxels/s"
        if before:
            text += f"  CPU x {best[before][0] / best['now'][0]:.1f}"
        print(text)


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main()
