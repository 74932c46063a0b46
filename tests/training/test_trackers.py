"""Trackers get the settings, each epoch and the metrics of the end."""

import json
import math

import pytest
from shop import SCHEMA, failure, shop_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dien_fast.cli import main
from dien_fast.errors import DienFastError
from dien_fast.training import trackers
from dien_fast.training.trackers import check_trackers


@pytest.fixture
def command(tmp_path):
    shop_table().to_pandas().to_csv(tmp_path / "clicks.csv", index=False)
    (tmp_path / "clicks.toml").write_text(SCHEMA)
    data = ["--dataset", str(tmp_path / "clicks.csv"), "--schema", str(tmp_path / "clicks.toml")]
    return ["train", *data, "--epochs", "2", "--embedding-size", "4", "--cpu", "--quiet"]


def test_tensorboard_shows_every_epoch(command, tmp_path):
    run = tmp_path / "runs" / "shop"
    assert main([*command, "--output", str(run), "--track", "tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path / "runs" / "tensorboard" / "shop")).Reload()
    history = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    column = history[0].index("valid_auc")
    shown = [(event.step, event.value) for event in events.Scalars("valid_auc")]
    assert shown == [(epoch, pytest.approx(float(history[epoch][column]))) for epoch in (1, 2)]
    metrics = json.loads((run / "metrics.json").read_text())
    (last,) = events.Scalars("test_auc")
    assert last.value == pytest.approx(metrics["test_auc"])
    assert not any(math.isnan(event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))
    assert list((tmp_path / "runs" / "tensorboard" / "shop").rglob("hparams.yml"))


def test_without_trackers_nothing_is_written(command, tmp_path):
    assert main([*command, "--output", str(tmp_path / "runs" / "shop")]) == 0
    assert not (tmp_path / "runs" / "tensorboard").exists()


def test_trackers_that_are_missing_are_named_before_training(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    run = tmp_path / "runs" / "shop"
    sentence = failure(capsys, *command, "--output", run, "--track", "mlflow")
    assert sentence == "--track mlflow needs mlflow: pip install mlflow"
    assert not run.exists()
    with pytest.raises(DienFastError, match="track must be among tensorboard, mlflow, wandb, got 'excel'"):
        check_trackers(["excel"])
