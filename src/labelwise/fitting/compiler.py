"""Options of the XLA compiler, and a cache of the programs that it compiled.

One iteration of a fit computes a few dozen small results from the same few inputs. By default, XLA
on CPUs makes a kernel for each; with multi-output fusion they share kernels, and a short loop is
one kernel. XLA takes these two options from the environment only, once, when the first computation
starts. See `docs/decisions/0003-one-fused-kernel.md` for the gain and its measurement.
"""

import contextlib
import hashlib
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import jax

_WANTED = "xla_cpu_use_multi_output_fusion=true,xla_cpu_small_while_loop_byte_threshold=100000000"
_OPTION = "--xla_backend_extra_options="


def use_fused_kernels() -> None:
    """Add two options to `XLA_FLAGS` that make fits faster by about a quarter.

    Call this before the first JAX computation, as the command line does; later it has no effect.
    Existing options of this kind are not changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_OPTION}{_WANTED}".strip()


@cache
def plain_kernels() -> dict[str, Any]:
    """`compiler_options` of the programs that apply networks; empty if unsupported.

    Fused kernels gain nothing there, and the compiler of jaxlib 0.10.2 aborts on some of them.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:  # no such option, since JAX 0.12
        return {}
    return options


def keep_programs(folder: Path) -> None:
    """Let JAX keep compiled programs in a folder, for later processes.

    JAX runs what it finds under the name of a program. Here each file begins with a digest of its
    name and content; any other file is compiled anew. Without effect if this version of JAX has
    another interface. Call it before the first computation.

    Args:
        folder: where; it exists, and no other user can write to it.
    """
    try:
        from jax._src import compilation_cache
        from jax._src.lru_cache import LRUCache

        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        programs = _Programs(LRUCache(str(folder), max_size=-1), folder)
        compilation_cache.get_file_cache = lambda path: (programs, path)
        compilation_cache._initialize_cache()
        checked = compilation_cache._cache is programs
    except (ImportError, AttributeError, TypeError, OSError):
        checked = False
    if not checked:
        jax.config.update("jax_compilation_cache_dir", None)


class _Programs:
    """A cache of JAX whose entries begin with a digest of their name and content.

    The name includes the processor: programs use its instructions, and a home folder may be shared
    by several machines.
    """

    def __init__(self, files: Any, folder: Path) -> None:
        self._files, self._path = files, folder

    def get(self, key: str) -> bytes | None:
        """The program of that name; None if there is none, or if it is another or damaged."""
        name = self._name(key)
        try:
            entry = self._files.get(name)
        except OSError:
            return None
        if entry is None:
            return None
        digest, program = entry[:_DIGEST], entry[_DIGEST:]
        if digest == _digest(name, program):
            return program
        self._remove(name)  # an existing file would not be replaced
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep a program; without effect if it cannot be written."""
        name = self._name(key)
        try:
            self._files.put(name, _digest(name, value) + value)
        except OSError:
            self._remove(name)

    def _name(self, key: str) -> str:
        return f"{key}-{_processor()}"

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._path / f"{name}-cache").unlink()


_DIGEST = 32  # bytes of SHA-256


def _digest(name: str, program: bytes) -> bytes:
    return hashlib.sha256(f"{name}\n".encode() + program).digest()


@cache
def _processor() -> str:
    """A short hash of the processor and its instructions."""
    words = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = [f"model name: {platform.processor()}"]
    kinds = {line for line in lines if line.startswith(words)}
    text = "\n".join([platform.machine(), *sorted(kinds)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
