"""What the environment of a process asks of JAX: done, replaced with a note, or refused."""

import os
import subprocess
import sys

import pytest


def models(tmp_path, **environment):
    """The result of a short command with some environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "labelwise", "models"],
        env={**os.environ, "LABELWISE_CACHE": str(tmp_path), "XLA_FLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "wanted",
    [
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "nonsense"},
        {"JAX_PLATFORMS": "rocm", "CUDA_VISIBLE_DEVICES": "7,none"},
        {"JAX_PLATFORM_NAME": "gpu"},
    ],
)
def test_a_device_that_is_not_there_is_replaced_by_the_cpu_with_a_note(wanted, tmp_path):
    done = models(tmp_path, **wanted)
    asked = " ".join(f"{k}={v}" for k, v in wanted.items() if k.startswith("JAX"))
    note = f"note: {asked}: there is no such device, so the CPU is used\n"
    assert (done.returncode, done.stderr) == (0, note)


@pytest.mark.parametrize("wanted", [{"CUDA_VISIBLE_DEVICES": "banana"}, {"JAX_PLATFORMS": ""}])
def test_what_does_not_matter_is_no_note(wanted, tmp_path):
    done = models(tmp_path, **wanted)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--xla_no_such_flag=1", "Unknown flag"),
        ("--xla_cpu_enable_fast_math=false --xla_no_such_flag", "Unknown flag"),
        ("no-such-file", "Could not open file"),
        ("--xla_force_host_platform_device_count=many", "interpret value many"),
        ("--xla_backend_extra_options=nonsense", "Unknown command line argument"),
    ],
)
def test_flags_that_the_compiler_refuses_are_a_sentence(flags, words, tmp_path):
    done = models(tmp_path, XLA_FLAGS=flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"labelwise: XLA_FLAGS={flags}: the compiler XLA does not start")
    assert words in done.stderr


def test_flags_that_the_compiler_has_are_used(tmp_path):
    done = models(tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["JAX_ENABLE_X64", "JAX_NUM_CPU_DEVICES"])
def test_a_variable_that_jax_cannot_read_is_a_sentence(name, tmp_path):
    done = models(tmp_path, **{name: "banana"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("labelwise: cannot start (ValueError: ")
    assert "banana" in done.stderr


@pytest.mark.parametrize(("given", "used"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_numpy_computes_in_one_thread_unless_others_are_asked_for(given, used):
    code = (
        "from labelwise.cli.options import start_jax; start_jax();"
        "import os; print(os.environ['OMP_NUM_THREADS'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | given
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [used]


SETTINGS = ("JAX_ENABLE_X64", "JAX_DISABLE_JIT", "JAX_DEBUG_NANS")


def test_settings_for_a_search_for_errors_do_not_change_results():
    code = (
        "from labelwise.cli.options import start_jax; start_jax();"
        "import jax, jax.numpy as jnp; print(jnp.arange(2.0).dtype, jnp.sqrt(-1.0));"
        "print(jax.config.jax_disable_jit)"
    )
    environment = {**os.environ, "LABELWISE_CACHE": "off", **dict.fromkeys(SETTINGS, "1")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["float32", "nan", "False"]
