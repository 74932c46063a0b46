"""Two processes on one directory: the second is refused, and a lock never outlives its process."""

import contextlib
import signal
import time
from pathlib import Path

import pytest
from faults import Command, finished, hold_after_lock

SYNTHETIC = ["--dataset", "synthetic", "--rows", "300", "--epochs", "1", "--embedding-size", "4", "--cpu"]


def words_of(name, shop, output):
    table = ["--dataset", shop / "clicks.csv", "--schema", shop / "clicks.toml"]
    return {
        "prepare": ["prepare", *table, "--quiet"],
        "train": ["train", *SYNTHETIC, "--quiet"],
        "compare": ["compare", "--models", "din", "--seeds", "1", *SYNTHETIC],
        "tune": ["tune", "--trials", "1", "--search", "lr=1e-3:1e-2", "--model", "din", *SYNTHETIC],
    }[name] + ["--output", output]


REFUSALS = {
    "prepare": "another process prepares data there",
    "train": "another training is writing to",
    "compare": "another process compares there",
    "tune": "another process tunes there",
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_the_second_is_refused_and_a_killed_one_leaves_no_lock(shop, tmp_path, name):
    output = tmp_path / "out"
    first = Command(words_of(name, shop, output), (hold_after_lock, str(tmp_path / "locked")))
    until = time.monotonic() + 60
    while not (tmp_path / "locked").exists() and time.monotonic() < until:
        time.sleep(0.01)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    status, printed = finished(words_of(name, shop, output))
    assert (status, printed.count("\n")) == (2, 1), printed
    assert REFUSALS[name] in printed
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert first.send(signal.SIGKILL)
    first.wait()
    status, printed = finished(words_of(name, shop, output))
    assert status == 0, printed


def children_of(process):
    """The processes that a process has started, and theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process:
                found += [int(path.name), *children_of(int(path.name))]
    return found


def is_running(process):
    """Whether a process is there, and not only waits for somebody to read its status."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_of_a_comparison_end_with_it(tmp_path, number):
    """They would train on, and keep the locks of their runs from the next comparison."""
    words = [
        "compare",
        "--models",
        "din",
        "--seeds",
        "4",
        "--jobs",
        "2",
        "--dataset",
        "synthetic",
        "--epochs",
        "50",
    ]
    words += ["--patience", "50", "--cpu", "--output", tmp_path / "out"]
    command = Command(words)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("out/din/*/.lock"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = children_of(command.process.pid)
    assert len(workers) >= 2
    command.send(number)
    command.wait()
    until = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(filter(is_running, workers)) == []
