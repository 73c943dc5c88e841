"""What fused kernels gain: the same fits with and without the options that the command line sets.

    python benchmarks/kernels.py        # a minute

IVIM, ten b-values, 60,000 voxels, Rician noise, SNR 15. Processes with and without the options
alternate, three times each; speeds are of compiled programs.
"""

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 3
VOXELS = 60_000


def speed() -> float:
    """Voxels per second in this process."""
    import jax
    import numpy as np

    import labelwise as lw

    model = lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000)
    prior = lw.Uniform.typical(model)
    voxels = lw.simulate(model, lw.Rician(), prior, 1 / 15, VOXELS, jax.random.key(0))
    fitter = lw.MaximumLikelihood(model, lw.Rician())
    fitter(voxels.signal, 1 / 15)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        fitter(voxels.signal, 1 / 15)
        seconds.append(time.perf_counter() - begin)
    return VOXELS / min(seconds)


def main() -> None:
    """Alternate both, and print medians and the ratio."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "fused":
            from labelwise.fitting.compiler import use_fused_kernels

            use_fused_kernels()
        print(speed())
        return
    found: dict[str, list[float]] = {"fused": [], "plain": []}
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for _ in range(ROUNDS):
        for kind, speeds in found.items():
            call = [sys.executable, __file__, kind]
            speeds.append(float(subprocess.check_output(call, env=env, text=True)))
    for kind, speeds in found.items():
        print(f"{kind}: {statistics.median(speeds):,.0f} voxels/s")
    ratios = [a / b for a, b in zip(found["fused"], found["plain"], strict=True)]
    low, high = min(ratios), max(ratios)
    print(f"ratio: {statistics.median(ratios):.2f} (from {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
