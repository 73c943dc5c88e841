"""A study that is killed in every stage comes to the same as one that was not.

    python benchmarks/killed.py            # some minutes

A small study (IVIM, two SNRs, the phantom too) is run once without interruption. Then it is run
again in another folder, and its process is killed (SIGKILL) in the middle of each stage in turn;
each next run must keep every stage that was whole. At the end claims, tables and figures of both
folders are compared, byte by byte but for what is a time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from labelwise.study.config import paper
from labelwise.study.run import run_study


def small():
    study = paper().quick()
    recipe = replace(study.recipe, signals=5000, epochs=6)
    return replace(study, recipe=recipe, points=4, repeats=40, trainings=2, training_repeats=20)


def run(folder: Path, kill_in: str | None) -> None:
    """One process: the whole study, or up to the middle of a stage."""
    if kill_in is None:
        run_study(small(), folder, command="benchmark")
        return

    def tell(what, done, total, words):
        name = what.split(": ")[0]
        if name == kill_in and (done > 0 or name in SUDDEN):
            os.kill(os.getpid(), signal.SIGKILL)

    run_study(small(), folder, command="benchmark", progress=tell)


SUDDEN = ("speed", "claims", "figures")  # they do not tell how far they are


def child(folder: Path, kill_in: str | None) -> int:
    arguments = [sys.executable, __file__, "--folder", str(folder)]
    arguments += ["--kill-in", kill_in] if kill_in else []
    return subprocess.run(arguments, check=False).returncode


def said(folder: Path) -> dict:
    """What the study found, without what is a time: times, speed, and what the speed decides."""
    record = json.loads((folder / "claims.json").read_text())
    record["claims"] = [claim for claim in record["claims"] if claim["key"] != "fast"]
    return {name: record[name] for name in ("claims", "tables", "settings", "notes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kill-in")
    options = parser.parse_args()
    if options.folder:
        run(options.folder, options.kill_in)
        return
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place, "whole"), Path(place, "killed")
        assert child(whole, None) == 0
        times = json.loads((whole / "claims.json").read_text())["stage_times"]
        stages = [time["stage"] for time in times[:-1]] + ["claims", "figures"]
        print(f"whole: {len(times) - 1} stages, {sum(time['seconds'] for time in times):.0f} s")
        for stage in stages:
            before = finished(killed)
            code = child(killed, stage)
            again = before - finished(killed)
            print(f"killed in {stage:<45} exit {code:>3}, {len(before)} results kept", flush=True)
            assert code == -signal.SIGKILL, "it was not killed: the stage was not entered"
            assert not again, f"made again: {again}"
        assert child(killed, None) == 0
        times = json.loads((killed / "claims.json").read_text())["stage_times"]
        print(f"last run: {sum(time['kept'] for time in times)} of {len(times)} stages kept")
        same = said(whole) == said(killed)
        names = sorted(path.name for path in (whole / "figures").iterdir())
        alike = [
            name
            for name in names
            if (whole / "figures" / name).read_bytes() == (killed / "figures" / name).read_bytes()
        ]
        print(f"claims and tables the same: {same}")
        print(f"figures the same to the byte: {len(alike)} of {len(names)}")
        sys.exit(0 if same and len(alike) == len(names) else 1)


def finished(folder: Path) -> set[tuple[str, int]]:
    """Stages that are whole, and when they were made."""
    return {
        (path.parent.name, path.stat().st_mtime_ns) for path in folder.glob("stages/*/stage.json")
    }


if __name__ == "__main__":
    main()
