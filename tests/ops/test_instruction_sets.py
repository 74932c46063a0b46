"""Every instruction set of this machine, and errors that must not kill the process."""

import os
import subprocess
import sys
from pathlib import Path

import instruction_sets
import pytest
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


def test_keys_without_channels():
    """A depth of 0 is refused. It runs in its own process, which a division by 0 would kill."""
    code = (
        "import pytest, torch\n"
        "from interest_cases import SOME, native, outcome, scoring\n"
        "s = scoring(SOME)\n"
        "query, keys, weight = (torch.zeros(rows, 0).double().requires_grad_() for rows in (6, 18, 7))\n"
        "s = s.with_parameters(query, keys, weight, *s.mlp.parameters[1:])\n"
        "with pytest.raises(RuntimeError, match='query must have at least one channel'):\n"
        "    outcome(native, s)\n"
    )
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_of_this_machine(capability):
    """Each instruction set needs its own process, because the choice is made once in a process."""
    result = run(instruction_sets.__file__, capability)
    if result.returncode == 3:
        pytest.skip(f"this machine has no {capability}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"checked {capability}\n"


def test_unknown_instruction_set():
    result = run("-c", "import dien_fast; print(dien_fast.backend())", DIEN_FAST_CPU_CAPABILITY="avx3")
    assert "DIEN_FAST_CPU_CAPABILITY must be baseline, avx2, avx512vl or avx512, got avx3" in result.stderr
