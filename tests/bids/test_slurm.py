"""A cohort on a SLURM of one node, which the test starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SLURM = Path(__file__).with_name("slurm.sh")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [
    name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge"
)
@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="SLURM is started as root")
def test_jobs_of_slurm_give_the_same_bytes(cohort, tmp_path, programs):
    pytest.importorskip("dask_jobqueue")

    def run(out, *before, options=()):
        command = [sys.executable, "-m", "labelwise", "bids", cohort, out, "participant"]
        command += ["--participant-label", "04", "05", "--model", "adc", *options]
        done = subprocess.run(
            [*before, *command],
            cwd=tmp_path,
            env=programs | {"SOURCE_DATE_EPOCH": "1790000000"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 of 2 participants done: 2 series mapped" in done.stdout
        return {
            path.relative_to(out): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file() and "logs" not in path.parts
        }

    here = run(tmp_path / "here")
    there = run(
        tmp_path / "there",
        "bash",
        SLURM,
        options=("--cluster", "slurm", "--jobs", "2", "--threads", "1", "--memory", "2"),
    )
    assert here == there
