"""Tables that TorchRec divides among real processes train as plain ones do."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-peers" / "torchrec" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-peers/torchrec, which make test-all creates")
def test_divided_tables_are_plain_ones():
    script = Path(__file__).parent / "shard_with_torchrec.py"
    done = subprocess.run([PYTHON, script], capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "2 -> 1 -> 2" in done.stdout
