"""The main job as a person runs it: `labelwise map` as a process, cold and with the network cached.

    python benchmarks/map.py            # about 2 minutes on 2 cores

Simulated series, IVIM with b = 0 (four times) 10 20 30 50 80 100 200 400 800 s/mm², Rician noise of
20, S0 from 400 to 600. Cold means an empty cache: nothing compiled, no network. "After start-up" is
what run.json calls prepare, map and write: reading the series, noise level, network, standard
errors, likelihoods, all maps written and the picture drawn; not Python's imports, not compiling.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import nibabel as nib
import numpy as np

import labelwise as lw

B = np.array([0, 0, 0, 0, 10, 20, 30, 50, 80, 100, 200, 400, 800])
SHAPES = {"100,000": (50, 50, 40), "1 million": (125, 100, 80)}


def write_series(folder, shape):
    """A series with its b-values; the command that maps it."""
    model = lw.IVIM(B / 1000)
    key, other = jax.random.split(jax.random.key(1))
    params = lw.Uniform.typical(model, S0=(400, 600)).sample(key, int(np.prod(shape)))
    signal = np.asarray(jax.jit(jax.vmap(lambda p: model.signal(*p)))(params))
    data = np.asarray(lw.Rician().sample(other, signal, 20.0), np.float32)
    image = folder / f"dwi_{len(data)}.nii"
    nib.save(nib.Nifti1Image(data.reshape(*shape, -1, order="F"), np.diag([2.0, 2, 2, 1])), image)
    (folder / "dwi.bval").write_text(" ".join(map(str, B)))
    command = [sys.executable, "-m", "labelwise", "map", str(image), "--model", "ivim"]
    return [*command, "--bvals", str(folder / "dwi.bval"), "--sigma", "repeats", "--quiet"]


def run(command, out, cache):
    begin = time.perf_counter()
    environment = os.environ | {"LABELWISE_CACHE": str(cache)}
    subprocess.run([*command, "--out", str(out)], check=True, env=environment)
    whole = time.perf_counter() - begin
    return whole, json.loads((out / "run.json").read_text())["seconds"]


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {voxels: write_series(folder, shape) for voxels, shape in SHAPES.items()}
        whole, parts = run(commands["100,000"], folder / "cold", folder / "cache")
        verdict = "yes" if whole < 60 else "NO"
        print(f"100,000 voxels, cold: {whole:.1f} s (training {parts['train']:.1f} s)", end="")
        print(f"   under 60 s: {verdict}", flush=True)
        for voxels, command in commands.items():
            # the first run of a size trains it if its noise levels differ, and fills the cache
            run(command, folder / f"first {voxels}", folder / "cache")
            for turn in range(3):
                whole, parts = run(command, folder / f"{voxels} {turn}", folder / "cache")
                work = parts["prepare"] + parts["map"] + parts["write"]
                text = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
                verdict = ""
                if voxels == "1 million":
                    verdict = f"   under 3 s: {'yes' if work < 3 else 'NO'}"
                print(
                    f"{voxels} voxels, cached: {work:.2f} s after start-up, {whole:.1f} s in all "
                    f"({text}){verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
