"""How large the house is and how its rooms hang together, for some revisions side by side.

    python benchmarks/structure.py fc05c44 HEAD      # two git revisions; a minute each

Lines, modules and imports are read from the code. "Files run through by map" are those with a
function that `labelwise map` calls on the demo's phantom, by a network of the cache. The files that
name a noise model, a label or a standard error stand for those that one more of it may touch.
"""

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

TRACE = """
import sys
seen = set()
def profile(frame, event, arg):
    if event == "call" and frame.f_code.co_flags & 1:  # a function, not a module or a class body
        seen.add(frame.f_code.co_filename)
import threading
threading.setprofile(profile)
sys.setprofile(profile)
try:
    from labelwise.__main__ import main
    sys.argv = ["labelwise", *sys.argv[1:]]
    main()
except SystemExit:
    pass
finally:
    sys.setprofile(None)
    print("FILES", len({f for f in seen if "/src/labelwise/" in f}), file=sys.stderr)
"""
SCAN = ("demo/dwi.nii.gz", "--bvals", "demo/dwi.bval", "--mask", "demo/mask.nii.gz")


def modules(src: Path) -> dict[str, Path]:
    """The files of the package by module name."""
    names = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports when it runs; type checking aside."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known and name != "labelwise"}


def longest(graph: dict[str, set[str]]) -> int:
    """Modules in the longest chain of imports."""
    depths: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in depths:
            below = [depth(each, (*above, name)) for each in graph[name] if each not in above]
            depths[name] = 1 + max(below, default=0)
        return depths[name]

    return max(depth(name) for name in graph)


def names(tree: ast.AST, wanted: str) -> bool:
    """Whether code, docstrings and comments aside, contains a name or a text."""
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and wanted in node.id:
            return True
        if isinstance(node, ast.Attribute) and wanted in node.attr:
            return True
        if isinstance(node, ast.alias) and wanted in node.name:
            return True
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docs and wanted in node.value:
            return True
    return False


def traced(root: Path, folder: Path) -> str:
    """How many files `labelwise map` runs through."""
    env = os.environ | {"PYTHONPATH": str(root / "src"), "LABELWISE_CACHE": str(folder / "cache")}
    quiet = {"cwd": folder, "env": env, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "labelwise", "demo", "demo"], check=True, **quiet)
    call = ["map", *SCAN, "--model", "ivim", "--sigma", "repeats", "--out", "again", "--quiet"]
    done = subprocess.run([sys.executable, "-c", TRACE, *call], check=True, **quiet)
    return done.stderr.split("FILES ")[1].split()[0]


def measure(revision: str, folder: Path) -> dict[str, object]:
    """One column of the table."""
    root = folder / "code"
    top = subprocess.check_output(["git", "rev-parse", "--show-toplevel"], text=True).strip()
    subprocess.run(["git", "clone", "--quiet", top, root], check=True)
    subprocess.run(["git", "checkout", "--quiet", revision], cwd=root, check=True)
    src = root / "src" / "labelwise"
    known = modules(src)
    graph = {name: imports(path, known) for name, path in known.items()}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in known.values()]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return {
        "lines of src (Python)": sum(
            len(path.read_text(encoding="utf-8").splitlines()) for path in known.values()
        ),
        "modules at the top": sum(
            path.parent == src and not path.name.startswith("__") for path in known.values()
        ),
        "rooms (folders at the top)": sum(each.is_dir() for each in src.glob("[a-z]*")),
        "layers of the first contract": len(contracts[0]["layers"]),
        "imports between modules": sum(map(len, graph.values())),
        "longest import chain": longest(graph),
        "files run through by map": traced(root, folder),
        "files that name a noise model (Gaussian)": sum(names(tree, "Gaussian") for tree in trees),
        "files that name a label (SelfSupervised)": sum(
            names(tree, "SelfSupervised") for tree in trees
        ),
        "files that name the standard error": sum(names(tree, "standard_error") for tree in trees),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="+")
    revisions = parser.parse_args().revision
    columns = []
    for revision in revisions:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measure(revision, Path(folder)))
    width = max(map(len, columns[0]))
    print(" " * width, *(f"{revision:>10}" for revision in revisions))
    for row in columns[0]:
        print(row.ljust(width), *(f"{column[row]:>10}" for column in columns))


if __name__ == "__main__":
    main()
