"""Trainings in processes of their own: killed, told to stop, and two that train together."""

import json
import signal

import pytest
from faults import Command, finished, free_port, set_environment, signal_itself
from same_runs import assert_same_runs
from shop import run_python

from dien_fast.cli import main
from dien_fast.training.checkpoints import load_checkpoint

# Epochs of 38 steps.
SIGNALLED_TRAINING = ["train", "--dataset", "synthetic", "--rows", "800", "--epochs", "3", "--lr", "0.01"]
SIGNALLED_TRAINING += ["--batch-size", "16", "--embedding-size", "8", "--cpu", "--quiet"]


def epochs_of(lines):
    return [int(line.partition(":")[0][6:]) for line in lines.splitlines() if line.startswith("epoch ")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "every", "epoch", "kept"),
    [
        (70, "7steps", 2, 28),
        pytest.param(70, "10min", 2, 0, marks=pytest.mark.slow),
        pytest.param(20, "7steps", 1, 14, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_metrics_bit_for_bit(tmp_path, capsys, step, every, epoch, kept):
    arguments = [*SIGNALLED_TRAINING, "--checkpoint-every", every, "--output"]
    status, printed = finished([*arguments, tmp_path / "killed"], (signal_itself, signal.SIGKILL, step))
    assert status == -signal.SIGKILL, printed
    assert epochs_of(printed) == list(range(1, epoch))
    last = load_checkpoint(tmp_path / "killed" / "last.pt")
    assert last["epoch"] == epoch - 1
    assert len(last.get("position", {"record": {"sizes": []}})["record"]["sizes"]) == kept
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert main(["train", "--output", str(tmp_path / "killed"), "--resume", "--cpu", "--quiet"]) == 0
    assert epochs_of(capsys.readouterr().out) == list(range(epoch, 4))
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.long
def test_sigterm_stops_a_training_at_its_next_step_and_loses_nothing(tmp_path, capsys):
    directory = tmp_path / "stopped"
    status, printed = finished([*SIGNALLED_TRAINING, "--output", directory], (signal_itself, signal.SIGTERM, 70))
    assert status == 0, printed
    assert printed.splitlines()[-1] == (
        f"stopped after step 32 of 38 of epoch 2; go on with: dien-fast train --output {directory} --resume"
    )
    assert main([*SIGNALLED_TRAINING, "--output", str(tmp_path / "whole")]) == 0
    assert main(["train", "--output", str(directory), "--resume", "--cpu", "--quiet"]) == 0
    assert_same_runs(tmp_path / "whole", directory)


def by_torchrun(words):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dien_fast.cli"]
    done = run_python(*launch, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_hand(words):
    """With the variables that torchrun sets."""
    place = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    commands = [Command(words, (set_environment, variables)) for variables in ranks]
    for command in commands:
        assert command.wait() == 0, command.printed()
    assert not any(line.startswith("epoch ") for line in commands[1].printed().splitlines())
    return commands[0].printed()


@pytest.mark.long
@pytest.mark.parametrize("launched", [by_hand, pytest.param(by_torchrun, marks=pytest.mark.slow)])
def test_two_processes_train_together_and_score_every_row_once(tmp_path, capsys, launched):
    arguments = ["train", "--dataset", "synthetic", "--rows", "600", "--epochs", "2", "--cpu", "--quiet"]
    arguments += ["--gradient-accumulation", "2", "--batch-size", "33", "--embedding-size", "4"]
    lines = launched([*arguments, "--output", tmp_path / "run"]).splitlines()
    assert any(line.startswith("model: ") and "2 processes" in line for line in lines)
    assert [line[:8] for line in lines if line.startswith("epoch ")] == ["epoch 1:", "epoch 2:"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert lines[-1] == f"test AUC: {metrics['test_auc']:.4f}"
    # One process scores the same rows: a row left out or scored twice would have raised, a wrong one differs here.
    assert main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 0
    assert f"AUC: {metrics['test_auc']:.4f}" in capsys.readouterr().out.splitlines()
