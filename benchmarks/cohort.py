"""A cohort that is killed comes to the same bytes as one that is not.

    python benchmarks/cohort.py [--method map] [--keep FOLDER]       # some minutes

The dataset of `examples/bids_dataset.py` (six participants, two protocols, two sessions, one
damaged file) is mapped by one worker. Then it is mapped in another folder by two workers; one of
them is killed (SIGKILL) at work, then the whole run, and the third run ends it. Finished series
must be kept, and maps, sidecars, figures and networks be the same, byte by byte.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parents[1] / "examples" / "bids_dataset.py"


def command(dataset: Path, out: Path, *options: str) -> list[str]:
    masks = dataset / "derivatives" / "masks"
    base = [sys.executable, "-m", "labelwise", "bids", str(dataset), str(out), "participant"]
    return [*base, "--masks", str(masks), "--model", "ivim", *options]


def start(arguments: list[str]) -> subprocess.Popen:
    print("$", *arguments[1:], flush=True)
    return subprocess.Popen(arguments)


def wait_for_work(process: subprocess.Popen, out: Path, finished: int) -> psutil.Process:
    """A worker, once some series are finished and another one is being mapped."""
    while process.poll() is None:
        if len(records(out)) >= finished and list(out.glob("sub-*/.labelwise-partial-*")):
            found = psutil.Process(process.pid).children(recursive=True)
            return next(each for each in found if "spawn_main" in " ".join(each.cmdline()))
        time.sleep(0.01)
    raise SystemExit("the run ended before it could be killed")


def records(out: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in out.glob("sub-*/logs/*.json")}


def content(out: Path) -> dict[str, bytes]:
    """All files but the records, which have times."""
    every = (path for path in sorted(out.rglob("*")) if path.is_file())
    names = {str(path.relative_to(out)): path for path in every if "logs" not in path.parts}
    return {name: path.read_bytes() for name, path in names.items() if not name.endswith(".lock")}


def compare(dataset: Path, place: Path, method: str) -> None:
    whole, killed = place / "whole", place / "killed"
    options = ("--method", method)
    began = time.perf_counter()
    code = start(command(dataset, whole, *options)).wait()
    print(f"one worker: exit {code}, {time.perf_counter() - began:.0f} s\n", flush=True)

    process = start(command(dataset, killed, *options, "--jobs", "2"))
    worker = wait_for_work(process, killed, 1)
    worker.kill()
    print(f"killed worker {worker.pid}", flush=True)
    wait_for_work(process, killed, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # until its workers have noticed
    before = records(killed)
    print(f"killed the run; finished until then: {len(before)} series\n", flush=True)

    code = start(command(dataset, killed, *options, "--jobs", "2")).wait()
    again = [name for name, changed in before.items() if records(killed)[name] != changed]
    print(f"third run: exit {code}, {len(again)} of {len(before)} finished series repeated")
    ours, theirs = content(killed), content(whole)
    differing = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    networks = len(list(killed.glob("networks/*.safetensors")))
    print(f"{len(ours)} files, {len(differing)} differ; {networks} networks")
    assert not again, again
    assert not differing, differing

    validator = Path(sys.executable).with_name("bids-validator-deno")
    if validator.exists():
        arguments = [str(validator), str(killed), "--ignoreWarnings", "--format", "json"]
        found = json.loads(subprocess.run(arguments, capture_output=True, text=True).stdout)
        print("validator:", found["issues"]["issues"] or "no errors", found["summary"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="fit", choices=("fit", "map"))
    parser.add_argument("--keep", type=Path, help="a new folder for all that is written")
    options = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1790000000")
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        subprocess.run([sys.executable, str(SCRIPT), str(place / "dataset")], check=True)
        compare(place / "dataset", place, options.method)


if __name__ == "__main__":
    main()
