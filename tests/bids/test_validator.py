"""The derivative beside the validator of BIDS."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labelwise.bids.derivatives import UNSETTLED
from labelwise.cli.main import app

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
pytestmark = pytest.mark.skipif(
    not VALIDATOR.exists() and not shutil.which("bids-validator-deno"),
    reason="bids-validator-deno is not installed",
)


def errors(folder):
    """The errors that the validator finds, by code and file."""
    command = [str(VALIDATOR if VALIDATOR.exists() else "bids-validator-deno"), str(folder)]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [(each["code"], each["location"]) for each in issues if each["severity"] == "error"]


def test_a_derivative_has_no_error_but_what_is_not_settled(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELWISE_CACHE", "off")
    assert errors(cohort) == []
    out = tmp_path / "out"
    masks = cohort / "derivatives" / "masks"
    options = ["--masks", str(masks), "--participant-label", "01", "--session-label", "1"]
    models = ["--model", "adc", "t2"]
    done = CliRunner().invoke(
        app, ["bids", str(cohort), str(out), "participant", *options, *models]
    )
    assert done.exit_code == 0, done.stdout
    assert CliRunner().invoke(app, ["bids", str(cohort), str(out), "group"]).exit_code == 0
    assert list(out.rglob("*_T2map.nii.gz"))
    assert errors(out) == []
    # what is left out of this check: names of maps of models, figures and records, nothing else
    (out / ".bidsignore").unlink()
    assert len(UNSETTLED) == 6
    known = ("dwimap", "MESEmap", "MEGREmap", "/figures/", "/logs/", "/group.")
    unsettled = errors(out)
    assert unsettled
    assert [each for each in unsettled if not any(word in each[1] for word in known)] == []
