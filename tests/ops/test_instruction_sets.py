"""Every instruction set of this machine but its best, which all other tests use."""

import os

import instruction_sets
import pytest
import torch
from faults import Forked
from run_sanitized import CAPABILITIES

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def run(capability):
    """Check an instruction set in a process of its own, as the choice is made once."""
    process = Forked(instruction_sets.main, capability)
    return process.wait(), process.printed()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_of_this_machine(capability):
    used = torch.ops.dien_fast.cpu_capability()
    if capability == used:
        pytest.skip("every other test runs it")
    if "DIEN_FAST_CPU_CAPABILITY" not in os.environ and CAPABILITIES.index(capability) > CAPABILITIES.index(used):
        pytest.skip(f"this machine has {used} at best")
    status, printed = run(capability)
    if status == 3:
        pytest.skip(f"this machine has no {capability}")
    assert status == 0, printed
    assert printed == f"checked {capability}\n"


def test_unknown_instruction_set():
    _, printed = run("avx3")
    assert "DIEN_FAST_CPU_CAPABILITY must be baseline, avx2, avx512vl or avx512, got avx3" in printed
