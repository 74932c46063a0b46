"""The kernels under three sanitizers: `make sanitize`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_sanitized


def test_no_file_is_forgotten():
    here = {f"ops/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here == {*run_sanitized.FILES, *run_sanitized.OTHERS}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
@pytest.mark.parametrize("part", run_sanitized.PARTS)
def test_nothing_is_reported(part):
    """Builds are kept under build; ninja renews what changed."""
    if not Path(run_sanitized.runtime("libasan.so")).is_absolute():
        pytest.skip("this compiler has no AddressSanitizer")
    command = [sys.executable, run_sanitized.__file__, part]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "this machine lacks it" in done.stdout:
        pytest.skip(f"this machine lacks {part}")
    assert done.stdout.splitlines()[-1] == f"sanitized: {part}"
