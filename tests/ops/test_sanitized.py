"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: what `make sanitize` does, but less of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_sanitized


@pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
def test_nothing_is_reported():
    """About 3 minutes from a clean clone, 2 of them for a build that is kept under build/sanitize."""
    if not Path(run_sanitized.runtime("libasan.so")).is_absolute():
        pytest.skip("this compiler has no AddressSanitizer")
    command = [sys.executable, run_sanitized.__file__, "--reduced"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("sanitized: baseline")
