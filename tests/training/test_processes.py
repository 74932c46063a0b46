"""Several processes train as one with the batch of all; metrics count every row once; a dead one ends all."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from dien_fast.training.checkpoints import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "support" / "one_of_several.py"


def train(directory, processes, batch_size, table_optimizer="adam", sync="sync", killed=0, *more):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
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
    assert (
        "process 0 of 2 has lost another one, which has ended or does not answer; start all of them" in died.stderr
    )
    assert "Error: process 0" in died.stderr
    resumed = train(tmp_path / "died", 2, 16, "adam", "sync", 0, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(tmp_path / "whole", tmp_path / "died", 0)
