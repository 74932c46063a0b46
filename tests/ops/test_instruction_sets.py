"""Every instruction set of this machine but its best, which all other tests use."""

import os
import subprocess
import sys
from pathlib import Path

import instruction_sets
import pytest
import torch
from run_sanitized import CAPABILITIES

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def run(*arguments, **environment):
    """Run Python on one thread, with tests/support importable."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        cwd=Path(instruction_sets.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_of_this_machine(capability):
    """Each instruction set needs its own process, because the choice is made once in a process."""
    used = torch.ops.dien_fast.cpu_capability()
    if capability == used:
        pytest.skip("every other test runs it")
    if "DIEN_FAST_CPU_CAPABILITY" not in os.environ and CAPABILITIES.index(capability) > CAPABILITIES.index(used):
        pytest.skip(f"this machine has {used} at best")
    result = run(instruction_sets.__file__, capability)
    if result.returncode == 3:
        pytest.skip(f"this machine has no {capability}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"checked {capability}\n"


def test_unknown_instruction_set():
    result = run("-c", "import dien_fast; print(dien_fast.backend())", DIEN_FAST_CPU_CAPABILITY="avx3")
    assert "DIEN_FAST_CPU_CAPABILITY must be baseline, avx2, avx512vl or avx512, got avx3" in result.stderr
