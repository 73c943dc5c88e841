"""What is asked of XLA: added once, and never over what its owner has set."""

import os

import pytest

from labelwise.compiler import ask_for_fused_kernels


@pytest.mark.parametrize("mine", ["", "--xla_cpu_enable_fast_math=false"])
def test_options_are_added_once_and_others_kept(monkeypatch, mine):
    monkeypatch.setenv("XLA_FLAGS", mine)
    ask_for_fused_kernels()
    ask_for_fused_kernels()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith(mine)
    assert flags.count("xla_cpu_use_multi_output_fusion=true") == 1


def test_options_of_that_kind_are_left_to_their_owner(monkeypatch):
    mine = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=false"
    monkeypatch.setenv("XLA_FLAGS", mine)
    ask_for_fused_kernels()
    assert os.environ["XLA_FLAGS"] == mine
