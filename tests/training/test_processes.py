"""Several processes train as one with the batch of all; metrics count every row once; a dead one ends all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from clicks import timed_schema, timed_table
from faults import free_port

from dien_fast.data import ClickDataset, fit_encoders
from dien_fast.training.agreement import difference_among
from dien_fast.training.checkpoints import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "support" / "one_of_several.py"


def train(directory, processes, batch_size, table_optimizer="adam", sync="sync", killed=0, *more):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        # Whoever started the processes looks at them seldom, so that they have time to say what they miss.
        launch += ["--monitor-interval", "5"]
    command = [*launch, SCRIPT, directory, batch_size, table_optimizer, sync, killed, *more]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=300
    )


def weights(directory):
    return load_checkpoint(directory / "last.pt")["model"]


def assert_same_training(left, right, tolerance=1e-9):
    for name in ("train_loss", "train_aux_loss", "train_auc", "valid_loss", "valid_auc", "valid_gauc"):
        columns = [pd.read_csv(directory / "history.csv")[name].tolist() for directory in (left, right)]
        assert columns[0] == pytest.approx(columns[1], abs=tolerance, rel=0), name
    for name, value in weights(left).items():
        torch.testing.assert_close(value, weights(right)[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("table_optimizer", ["adam", "sparse-adam"])
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, table_optimizer):
    for processes, batch_size in ((1, 32), (2, 16)):
        done = train(tmp_path / str(processes), processes, batch_size, table_optimizer)
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_batch_statistics_apart_make_another_training(tmp_path):
    for processes, batch_size in ((1, 32), (2, 16)):
        assert train(tmp_path / str(processes), processes, batch_size, sync="apart").returncode == 0
    with pytest.raises(AssertionError):
        assert_same_training(tmp_path / "1", tmp_path / "2", 1e-4)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_resuming_loses_nothing(tmp_path):
    assert train(tmp_path / "whole", 2, 16).returncode == 0
    begin = time.monotonic()
    died = train(tmp_path / "died", 2, 16, "adam", "sync", 2)
    assert died.returncode != 0
    assert time.monotonic() - begin < 60
    assert "process 0 of 2 has lost another one, which has ended or does not answer; if it did not" in died.stderr
    assert "Error: process 0" in died.stderr
    resumed = train(tmp_path / "died", 2, 16, "adam", "sync", 0, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(tmp_path / "whole", tmp_path / "died", 0)


def train_apart(directory, *differences):
    """Start a process for each of the given options; return the exit status and the error of each."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(differences))}
    command = [sys.executable, "-m", "dien_fast", "train", "--cpu", "--dataset", "synthetic", "--rows", "200"]
    processes = []
    for rank, more in enumerate(differences):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(differences))}
        environment = os.environ | place | ranks
        words = [*command, "--epochs", "1", "--quiet", "--output", str(directory), *more]
        processes.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return [(process.communicate(timeout=120)[1], process.returncode) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--lr", "0.5"], "process 0 has lr = 0.002, but process 1 has lr = 0.5"),
        (["--seed", "1"], "process 0 has seed = 0, but process 1 has seed = 1"),
        (["--rows", "300"], "process 0 has training rows = "),
    ],
)
def test_processes_with_other_settings_or_rows_are_refused(tmp_path, other, said):
    for error, status in train_apart(tmp_path / "run", [], other):
        assert status == 2, error
        assert said in error
        assert error.count("dien-fast: error: ") == 1
        assert "Traceback" not in error
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other_in_a_sentence(tmp_path):
    (first, status), (second, other_status) = train_apart(tmp_path / "run", ["--resume"], ["--resume"])
    assert (status, other_status) == (2, 2), first + second
    assert "holds no run to resume" in first
    assert "process 1 of 2 has lost another one" in second
    assert "Traceback" not in first + second


def test_what_differs_is_named():
    assert difference_among([{"lr": 1}, {"lr": 1}, {}]) == "process 0 has lr = 1, but process 2 has no lr"


def test_a_checksum_tells_other_rows():
    def rows(*changed):
        table = timed_table(40)
        for name, values in changed:
            table = table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))
        return ClickDataset(table, schema, encoders).checksum()

    schema, table = timed_schema(), timed_table(40)
    encoders = fit_encoders(table, schema)
    label, history = schema.label, schema.groups[0].pairs[0].pos_hist
    other = [[item % 9 + 1 for item in items or []] for items in table[history].to_pylist()]
    assert rows() == rows()
    assert rows() != rows((label, [1 - value for value in table[label].to_pylist()]))
    assert rows() != rows((history, other))
