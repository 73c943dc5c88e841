"""What is asked of XLA: by a call, never by an import; and only what it knows."""

import os
import subprocess
import sys

import jax
import pytest

from labelwise.fitting import compiler
from labelwise.fitting.compiler import keep_programs, make_room, plain_kernels, use_fused_kernels


@pytest.mark.parametrize("mine", ["", "--xla_dump_to=/nowhere"])
def test_options_are_added_once_and_others_stay(mine, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", mine)
    use_fused_kernels()  # without effect once JAX has started, as the form of sums assumes
    assert os.environ["XLA_FLAGS"] == mine
    monkeypatch.setattr(compiler, "_started", lambda: False)
    use_fused_kernels()
    use_fused_kernels()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith(mine)
    assert flags.count("multi_output_fusion=true") == 1


def test_options_of_the_person_stay(monkeypatch):
    monkeypatch.setattr(compiler, "_started", lambda: False)
    mine = "--xla_backend_extra_options=xla_cpu_nothing=true"
    monkeypatch.setenv("XLA_FLAGS", mine)
    use_fused_kernels()
    assert os.environ["XLA_FLAGS"] == mine


def test_jax_has_started_after_a_computation():
    jax.jit(lambda x: x + 1)(1.0)
    assert compiler._started()


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


PROGRAMS = """
import sys
from pathlib import Path
import jax
from labelwise.fitting.compiler import keep_programs

compiled = []
jax.monitoring.register_event_listener(lambda event, **more: compiled.append(event))
keep_programs(Path(sys.argv[1]))

@jax.jit
def one(x):
    return x + 1

@jax.jit
def two(x):
    return x * 2

print(float(one(10.0)), float(two(10.0)), compiled.count("/jax/compilation_cache/cache_hits"))
"""


def values_and_hits(folder):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAMS, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


def swapped(one, two):
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def flipped(one, two):
    data = one.read_bytes()
    one.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    two.write_bytes(two.read_bytes()[32:])  # as JAX writes it, without a digest


def cut(one, two):
    one.write_bytes(one.read_bytes()[:100])
    two.write_bytes(b"")


@pytest.mark.parametrize("damage", [swapped, flipped, cut])
def test_a_compiled_program_that_is_another_or_damaged_is_compiled_anew(damage, tmp_path):
    assert values_and_hits(tmp_path) == ["11.0", "20.0", "0"]
    assert values_and_hits(tmp_path) == ["11.0", "20.0", "2"]
    (one,), (two,) = tmp_path.glob("jit_one-*"), tmp_path.glob("jit_two-*")
    whole = len(one.read_bytes())
    damage(one, two)
    assert values_and_hits(tmp_path) == ["11.0", "20.0", "0"]
    assert abs(len(one.read_bytes()) - whole) < 100  # it was replaced
    assert values_and_hits(tmp_path) == ["11.0", "20.0", "2"]


def test_a_folder_in_place_of_a_compiled_program_costs_a_compilation(tmp_path):
    values_and_hits(tmp_path)
    (one,) = tmp_path.glob("jit_one-*")
    one.unlink()
    one.mkdir()
    assert values_and_hits(tmp_path) == ["11.0", "20.0", "1"]


@pytest.mark.parametrize("other", ["no file cache", "made elsewhere"])
def test_without_the_interface_of_jax_no_program_is_kept(other, tmp_path, monkeypatch):
    from jax._src import compilation_cache, lru_cache

    before = jax.config.values.get("jax_compilation_cache_dir")
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    if other == "no file cache":
        monkeypatch.delattr(lru_cache, "LRUCache")
    else:
        monkeypatch.setattr(compilation_cache, "_initialize_cache", lambda: None)
    try:
        keep_programs(tmp_path)
        assert jax.config.values["jax_compilation_cache_dir"] is None
        assert jax.jit(lambda x: x - 3)(1.0) == -2
        assert not list(tmp_path.iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_programs_are_forgotten_before_a_process_has_too_many_mappings(monkeypatch, tmp_path):
    program = jax.jit(lambda x: x + 1)
    program(1.0)
    make_room()
    assert program._cache_size() == 1
    limit = tmp_path / "max_map_count"
    limit.write_text("100\n")
    monkeypatch.setattr(compiler, "_LIMIT", limit)
    make_room()
    assert program._cache_size() == 0
    assert program(1.0) == 2
