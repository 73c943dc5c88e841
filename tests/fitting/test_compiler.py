"""What is asked of XLA: by a call, never by an import; and only what it knows."""

import os
import subprocess
import sys

import jax
import pytest

from labelwise.fitting.compiler import plain_kernels, use_fused_kernels


@pytest.mark.parametrize("mine", ["", "--xla_dump_to=/nowhere"])
def test_options_are_added_once_and_others_stay(mine, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", mine)
    use_fused_kernels()
    use_fused_kernels()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith(mine)
    assert flags.count("multi_output_fusion=true") == 1


def test_options_of_the_person_stay(monkeypatch):
    mine = "--xla_backend_extra_options=xla_cpu_nothing=true"
    monkeypatch.setenv("XLA_FLAGS", mine)
    use_fused_kernels()
    assert os.environ["XLA_FLAGS"] == mine


def test_an_import_changes_no_environment():
    code = (
        "import os; a = dict(os.environ); import labelwise as lw; lw.IVIM; assert a == os.environ"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_that_the_compiler_knows_are_kept_and_others_left_out(monkeypatch):
    found = plain_kernels()
    jax.jit(lambda x: x + 1, compiler_options=found)(1.0)

    def refuses(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    plain_kernels.cache_clear()
    monkeypatch.setattr(jax, "jit", refuses)
    assert plain_kernels() == {}
    plain_kernels.cache_clear()
