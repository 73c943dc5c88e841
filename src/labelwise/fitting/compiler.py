"""Options of JAX and of its compiler XLA, and a cache of compiled programs.

One iteration of a fit computes a few dozen small results from the same few inputs. By default, XLA
on CPUs makes a kernel for each; with multi-output fusion they share kernels, and a short loop is
one kernel. XLA takes these two options from the environment only, once, when the first computation
starts. See `docs/decisions/0003-one-fused-kernel.md` for the gain and its measurement.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from labelwise.types import InputError

_WANTED = "xla_cpu_use_multi_output_fusion=true,xla_cpu_small_while_loop_byte_threshold=100000000"
_USUAL = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": None,
}
_OPTION = "--xla_backend_extra_options="


def use_fused_kernels() -> None:
    """Add two options to `XLA_FLAGS` that make fits faster by about a quarter.

    Call this before the first JAX computation, as the command line does; later it has no effect.
    Existing options of this kind are not changed.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("--"):  # the name of a file of flags
        return
    if _OPTION not in flags and not _started():
        os.environ["XLA_FLAGS"] = f"{flags} {_OPTION}{_WANTED}".strip()


def kernels_are_fused() -> bool:
    """Whether XLA was asked for kernels with several results, which suit other sums."""
    return "xla_cpu_use_multi_output_fusion" in os.environ.get("XLA_FLAGS", "")


def refuse_unknown_flags() -> None:
    """Refuse flags at which XLA would end the process; a trial in another process takes a second.

    Raises:
        InputError: if the compiler does not start with the `XLA_FLAGS` of this process.
    """
    ours = f"{_OPTION}{_WANTED}"
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags not in ("", ours):
        _try_flags(flags.removesuffix(ours).strip())


def _started() -> bool:
    """Whether JAX has started its compiler; False if this version does not tell."""
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:
        return False
    return backends_are_initialized()


@cache
def _try_flags(flags: str) -> None:
    trial = "import jax; jax.jit(lambda x: x + 1)(0.0)"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PLATFORM_NAME": ""}
    done = subprocess.run(
        [sys.executable, "-c", trial],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        words = ("Unknown", "Could not open", "interpret", "INVALID")
        lines = [line for line in done.stderr.splitlines() if any(word in line for word in words)]
        reason = lines[0].partition("] ")[2] or lines[0] if lines else "it ends at once"
        raise InputError(
            f"XLA_FLAGS={flags}: the compiler XLA does not start with these flags ({reason}); "
            "correct or unset this environment variable"
        )


def use_what_is_there() -> None:
    """Start JAX with its usual settings, on the CPU if the wanted device is not there.

    The environment may ask for a device, as a profile for all machines of a cluster does, or for
    settings that suit a search for errors and change the results. Call it before any computation.

    Raises:
        InputError: if there is no CPU either.

    Warns:
        UserWarning: if the CPU replaces the wanted device.
    """
    for name, value in _USUAL.items():
        jax.config.update(name, value)
    try:
        jax.devices()
    except Exception as error:
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        wanted = " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_platform_name", "")
        try:
            jax.devices()
        except RuntimeError:
            raise InputError(f"JAX finds no device to compute on: {error}") from error
        warnings.warn(f"{wanted}: there is no such device, so the CPU is used", stacklevel=2)


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


def make_room() -> None:
    """Forget all compiled programs if their memory mappings come near the limit of a process.

    Each program takes some hundred mappings, of the 65,530 that Linux allows by default; beyond,
    the compiler ends the process. A program that is used again is compiled, or loaded, again.
    """
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        allowed = int(_LIMIT.read_text())
    except OSError:  # not Linux
        return
    if used > allowed / 2:
        eqx.clear_caches()
        jax.clear_caches()


_LIMIT = Path("/proc/sys/vm/max_map_count")


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
