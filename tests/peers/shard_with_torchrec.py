"""Trains with tables that TorchRec divides among processes, and compares with plain tables in one process.

    .venv-peers/torchrec/bin/python tests/peers/shard_with_torchrec.py

Each check prints a line with what it has seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch.distributed.checkpoint import state_dict_loader

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
import dien_fast  # noqa: E402
from dien_fast.cli import main as command  # noqa: E402
from dien_fast.training.sharded.files import TablesReader  # noqa: E402

PROCESS = Path(__file__).parent / "one_of_several_sharded.py"
SECONDS = 240


def start(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run so many processes to their end."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, str(PROCESS), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment,
    )


def run(processes: int, *words: object) -> None:
    """Run so many processes, which must succeed."""
    done = start(processes, *words)
    assert done.returncode == 0, done.stderr[-4000:]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the best weights of a run, its tables among them, as one process without TorchRec reads them."""
    return dien_fast.load(directory).model.state_dict()


def furthest(left: Path, right: Path) -> float:
    """Return the largest difference between two runs' losses, metrics and weights."""
    names = ["train_loss", "train_aux_loss", "train_auc", "valid_loss", "valid_auc"]
    tables = [pd.read_csv(directory / "history.csv")[names].to_numpy() for directory in (left, right)]
    differences = [abs(tables[0] - tables[1]).max()]
    other = weights(right)
    for name, value in weights(left).items():
        differences.append((value.double() - other[name].double()).abs().max().item())
    return max(differences)


def check_equality(place: Path) -> None:
    """Two processes with divided tables are one with plain tables and the doubled batch."""
    for rule in ("sgd", "rowwise-adagrad"):
        one, two = place / f"{rule}-one", place / f"{rule}-two"
        run(1, "train", one, "local", rule, 32, 0)
        run(2, "train", two, "torchrec", rule, 16, 0)
        difference = furthest(one, two)
        assert difference < 1e-6, f"{rule}: {difference}"
        print(f"{rule}: two processes differ from one with plain tables by {difference:.1e}")


def check_kill(place: Path) -> None:
    """A process that dies ends the other with a sentence; what is resumed is what was not disturbed."""
    begin = time.monotonic()
    died = start(2, "train", place / "died", "torchrec", "sgd", 16, 2)
    seconds = time.monotonic() - begin
    assert died.returncode != 0
    assert "process 0 of 2 has lost another one" in died.stderr, died.stderr[-4000:]
    run(2, "train", place / "died", "torchrec", "sgd", 16, 0, "--resume")
    difference = furthest(place / "sgd-two", place / "died")
    assert difference == 0, difference
    assert {path.name for path in (place / "died").glob("tables-*")} <= {"tables-1", "tables-2"}
    print(f"a killed process ends the training after {seconds:.0f} s; resumed, it is the same to the bit")


def tensors(run_directory: Path) -> dict[str, torch.Tensor]:
    """Return all that a directory of tables holds."""
    reader = TablesReader(run_directory / "tables-1")
    entries = reader.read_metadata().state_dict_metadata
    found = {name: torch.full(entry.size, torch.nan) for name, entry in entries.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        state_dict_loader.load(found, storage_reader=reader, no_dist=True)
    return found


def check_resharding(place: Path) -> None:
    """Tables and the state of their optimizer are the same to the bit, whatever number of processes reads them."""
    run(2, "tables", "new", place / "2")
    run(1, "tables", place / "2", place / "2-1")
    run(2, "tables", place / "2-1", place / "2-1-2")
    run(2, "tables", place / "2", place / "2-2")
    first = tensors(place / "2")
    assert any(name.startswith("optimizer.") and value.any() for name, value in first.items())
    for other in ("2-1", "2-1-2", "2-2"):
        for name, value in tensors(place / other).items():
            assert torch.equal(value, first[name]), f"{other}: {name}"
    print(f"2 -> 1 -> 2 and 2 -> 2 processes: {len(first)} tensors are equal to the bit")


def check_plain_use(place: Path) -> None:
    """Commands that use a run do so in one process, without TorchRec."""
    assert command(["evaluate", str(place / "sgd-two"), "--quiet"]) == 0
    assert "torchrec" not in sys.modules
    print("evaluate reads the run without TorchRec")


def main() -> None:
    """Run all checks."""
    with tempfile.TemporaryDirectory() as directory:
        for check in (check_equality, check_kill, check_resharding, check_plain_use):
            check(Path(directory))


if __name__ == "__main__":
    main()
