"""What a person waits for first: help, imports, and warm and cold runs of 2,500 voxels.

    python benchmarks/start.py                 # this checkout; about 3 minutes on 2 cores
    python benchmarks/start.py REVISION        # in alternation with an older git revision
    python benchmarks/start.py --series IMAGE BVALS MASK     # on a series of your own

The simulated series has 50 x 50 voxels and IVIM with b = 0 (four times) 10 20 30 50 80 100 200 400
800 s/mm², Rician noise of 20, S0 from 400 to 600. Cold means an empty cache: nothing compiled, no
network. Of several rounds, the least CPU time (user and system, children included) and the least
wall time are shown; the first round of warm runs fills the cache and is the cold one.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP = (
    *("", "fit", "map", "train", "evaluate", "tune", "export", "models", "demo"),
    *("study", "study paper", "study run", "study invivo"),
)
ROOT = Path(__file__).parents[1]
BARS = {
    "--help": ("CPU", 0.4),
    "import": ("CPU", 0.3),
    "warm fit": ("wall", 2.5),
    "warm map": ("wall", 4),
}


def write_series(folder):
    """The options of a simulated series."""
    import jax
    import nibabel as nib
    import numpy as np

    import labelwise as lw

    b = np.array([0, 0, 0, 0, 10, 20, 30, 50, 80, 100, 200, 400, 800])
    model = lw.IVIM(b / 1000)
    key, other = jax.random.split(jax.random.key(1))
    params = lw.Uniform.typical(model, S0=(400, 600)).sample(key, 2500)
    signal = np.asarray(jax.vmap(lambda p: model.signal(*p))(params))
    data = np.asarray(lw.Rician().sample(other, signal, 20.0), np.float32)
    image, mask = folder / "dwi.nii.gz", folder / "mask.nii.gz"
    nib.save(nib.Nifti1Image(data.reshape(50, 50, 1, -1), np.diag([2.0, 2, 2, 1])), image)
    nib.save(nib.Nifti1Image(np.ones((50, 50, 1), np.uint8), np.diag([2.0, 2, 2, 1])), mask)
    (folder / "dwi.bval").write_text(" ".join(map(str, b)))
    return image, folder / "dwi.bval", mask


def checkout(revision, folder):
    """The sources of a revision."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", revision, "src"], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder / "src"


def timed(words, source, cache):
    """CPU and wall time of a process, in seconds."""
    environment = os.environ | {"PYTHONPATH": str(source), "LABELWISE_CACHE": str(cache)}
    used, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *words], check=True, env=environment, capture_output=True, cwd=cache
    )
    wall, now = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, wall


def alternated(words, homes, rounds):
    """The CPU and wall times of each home in each round: source and cache of a revision."""
    return [[timed(words, *home) for home in homes] for _ in range(rounds)]


def least(rounds):
    """For each home the least CPU time and the least wall time."""
    return [
        tuple(min(column) for column in zip(*runs, strict=True))
        for runs in zip(*rounds, strict=True)
    ]


def show(what, times):
    """One line: CPU and wall time of this checkout, of the older one, their ratio, and the bar."""
    (cpu, wall), *older = times
    line = f"{what:24} {cpu:7.2f} {wall:7.2f}"
    if older:
        line += f"   {older[0][0]:7.2f} {older[0][1]:7.2f}   {older[0][0] / cpu:5.1f}"
    for name, (which, limit) in BARS.items():
        if name in what:
            within = {"CPU": cpu, "wall": wall}[which] <= limit
            line += f"   {which} <= {limit:g} s: {'yes' if within else 'NO'}"
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", nargs="?", help="a git revision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--series", nargs=3, type=Path, metavar=("IMAGE", "BVALS", "MASK"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, bvals, mask = map(Path.absolute, options.series or write_series(folder))
        sources = [ROOT / "src"]
        if options.before:
            sources.append(checkout(options.before, folder / "before"))
        homes = [(source, folder / f"cache{index}") for index, source in enumerate(sources)]
        for _, cache in homes:
            cache.mkdir(mode=0o700)
        print(f"{'seconds':24} {'CPU':>7} {'wall':>7}", end="")
        print(f"   {'CPU':>7} {'wall':>7}   ratio ({options.before})" if options.before else "")
        jobs = {"import labelwise": ["-c", "import labelwise"]}
        for command in HELP:
            words = [*command.split(), "--help"]
            jobs[" ".join(words)] = ["-m", "labelwise", *words]
        for what, words in jobs.items():
            show(what, least(alternated(words, homes, options.rounds)))
        for command in ("fit", "map"):
            words = ["-m", "labelwise", command, image, "--bvals", bvals, "--mask", mask]
            words += ["--model", "ivim", "--out", folder / "maps", "--overwrite", "--quiet"]
            cold, *warm = alternated([str(word) for word in words], homes, 1 + options.rounds)
            show(f"cold {command}", cold)
            show(f"warm {command}", least(warm))


if __name__ == "__main__":
    main()
