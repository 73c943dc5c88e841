"""Do two revisions of labelwise write the same bytes? For moves and renames, which change nothing.

    python benchmarks/same_bytes.py BEFORE AFTER   # two git revisions; 3 to 6 minutes on 2 cores

Each revision is checked out into a folder of its own and does the same work with an empty cache:
the demo (a fit and a map, the network trained), `map` with that network at another alpha, `train`
(fast recipe), `evaluate`, `tune`, `export`, and a quick study of the paper. Then every file is
compared. Left out of the comparison, and printed, are what differs between two runs of one
revision: times, paths of caches, and versions in JSON and HTML. Ends with status 1 if a file
differs.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

VOLATILE = {"seconds", "voxels_per_second", "seconds_of_training", "path", "versions"}
COMMANDS = (
    ("demo", "demo"),
    (
        *("map", "demo/dwi.nii.gz", "--bvals", "demo/dwi.bval", "--mask", "demo/mask.nii.gz"),
        *("--net", "demo/maps_network/net.safetensors", "--alpha", "0.5", "--sigma", "background"),
        *("--out", "half"),
    ),
    (
        *("fit", "demo/dwi.nii.gz", "--bvals", "demo/dwi.bval", "--mask", "demo/mask.nii.gz"),
        *("--model", "kurtosis", "--noise", "gaussian", "--average", "geometric"),
        *("--sigma", "25", "--out", "kurtosis"),
    ),
    (
        *("train", "--model", "ivim", "--bvals", "demo/dwi.bval", "--snr", "15"),
        *("--signals", "20000", "--epochs", "10", "--out", "net.safetensors"),
    ),
    ("evaluate", "net.safetensors", "--points", "4", "--repeats", "20", "--out", "evaluation"),
    (
        *("tune", "net.safetensors", "--from", "f=0.1:0.2", "--to", "f=0.2:0.3"),
        *("--voxels", "2000", "--out", "tuned"),
    ),
    ("export", "onnx", "net.safetensors", "net.onnx"),
    ("study", "paper", "study", "--quick"),
)


def run(revision: str, folder: Path) -> Path:
    """Check a revision out and do all of the work with it."""
    code, out = folder / "code", folder / "work"
    top = subprocess.check_output(["git", "rev-parse", "--show-toplevel"], text=True).strip()
    subprocess.run(["git", "clone", "--quiet", top, code], check=True)
    subprocess.run(["git", "checkout", "--quiet", revision], cwd=code, check=True)
    out.mkdir()
    env = os.environ | {"PYTHONPATH": str(code / "src"), "LABELWISE_CACHE": str(folder / "cache")}
    for command in COMMANDS:
        call = [sys.executable, "-m", "labelwise", *command]
        done = subprocess.run(call, cwd=out, env=env, capture_output=True, text=True)
        print(f"  {' '.join(command)[:90]}: {'done' if not done.returncode else done.stderr}")
        if done.returncode:
            sys.exit(1)
    return out


def steady(value):
    """A JSON value without what differs between two runs of one revision."""
    if isinstance(value, dict):
        return {key: steady(entry) for key, entry in value.items() if key not in VOLATILE}
    return [steady(entry) for entry in value] if isinstance(value, list) else value


def content(path: Path) -> str:
    """A digest of what a file says."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(steady(json.loads(data))).encode()
    if path.suffix == ".html":
        data = re.sub(rb"\d[\d.,]* (?:m?s|min)\b|\d+ %|width:[\d.]+%", b"", data)
    return hashlib.sha256(data).hexdigest()


def files(folder: Path) -> dict[str, Path]:
    """Every result by its name; stages of a study are named by their code."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path for name, path in names.items() if "/stages/" not in name}


def main() -> None:
    """Compare two revisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = []
        for revision in (asked.before, asked.after):
            print(revision)
            folder = Path(temporary, str(len(results)))
            folder.mkdir()
            results.append(files(run(revision, folder)))
        before, after = results
        names = sorted(before.keys() | after.keys())
        other = [
            name
            for name in names
            if name not in before
            or name not in after
            or content(before[name]) != content(after[name])
        ]
    kinds: dict[str, int] = {}
    for name in names:
        kinds[Path(name).suffix] = kinds.get(Path(name).suffix, 0) + 1
    print("files:", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"left out of JSON: {', '.join(sorted(VOLATILE))}; of HTML: durations and their shares")
    print(f"the same: {len(names) - len(other)} of {len(names)}")
    for name in other:
        print(f"differs: {name}")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
