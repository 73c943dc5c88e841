"""Options of the XLA compiler.

One iteration of a fit computes a few dozen small results from the same few inputs. By default, XLA
on CPUs makes a kernel for each; with multi-output fusion they share kernels, and a short loop is
one kernel. XLA takes these two options from the environment only, once, when the first computation
starts. See `docs/decisions/0003-one-fused-kernel.md` for the gain and its measurement.
"""

import os
from functools import cache
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
