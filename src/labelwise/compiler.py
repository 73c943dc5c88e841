"""What labelwise asks of the XLA compiler, before JAX starts it.

One iteration of a fit has a few dozen small results from the same few inputs. By default XLA on
CPUs makes a kernel for each; with multi-output fusion they share kernels, and a short loop is one
kernel. `docs/decisions/0003-one-fused-kernel.md` says how to measure what that gains. XLA reads its
options once, from the environment, when the first computation starts; one that started before
labelwise was imported only runs slower.
"""

import os

_WANTED = "xla_cpu_use_multi_output_fusion=true,xla_cpu_small_while_loop_byte_threshold=100000000"
_OPTION = "--xla_backend_extra_options="


def ask_for_fused_kernels() -> None:
    """Add the options to XLA_FLAGS, unless its owner has set such options."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_OPTION}{_WANTED}".strip()


PLAIN_KERNELS = {"xla_cpu_use_fusion_emitters": False}
"""`compiler_options` of the programs that apply networks: fused kernels gain nothing there, and the
compiler of jaxlib 0.10.2 aborts on some of them."""
