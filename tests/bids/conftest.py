"""The simulated cohort of `examples/bids_dataset.py`."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "bids_dataset.py"


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("bids_dataset", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    root = tmp_path_factory.mktemp("bids") / "cohort"
    script.write(root)
    return root


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The environment of other processes, which share compiled programs."""
    return os.environ | {"LABELWISE_CACHE": str(tmp_path_factory.mktemp("programs"))}


@pytest.fixture
def cohort(written, tmp_path, monkeypatch):
    """A dataset of one's own: 01 to 03 with protocol a, 04 to 06 with b, 06 damaged."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    shutil.copytree(written, tmp_path / "cohort")
    return tmp_path / "cohort"
