"""The task "next" from the command line: trained, evaluated as lists, resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
from shop import REPOSITORY, failure
from sklearn.metrics import ndcg_score

import dien_fast
from dien_fast.cli import main
from dien_fast.data.sources import Source

EXAMPLES = REPOSITORY / "examples"
DATA = ["--dataset", str(EXAMPLES / "events.csv"), "--schema", str(EXAMPLES / "events.toml")]
SMALL = ["--epochs", "1", "--embedding-size", "4", "--batch-size", "64", "--cpu", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("next") / "run"
    task = ["--task", "next", "--first-event", "3", "--sampled", "4", "--sampling", "popularity"]
    assert main(["train", *DATA, *task, *SMALL, "--output", str(directory)]) == 0
    return directory


def test_the_run_says_how_its_rows_were_made(run):
    data = json.loads((run / "config.json").read_text())["data"]
    assert (data["task"], data["first_event"], data["sampled"], data["sampling"]) == ("next", 3, 4, "popularity")
    assert Path(data["schema"]).is_absolute()


def test_evaluate_ranks_each_event_among_its_samples(run, capsys):
    assert main(["evaluate", str(run), "--quiet", "--json", "--k", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = dien_fast.load(run)
    rows = Source.from_dict(trained.config.data, run).load(trained.config.seed).test
    scores = trained.predict(rows).reshape(-1, 5)
    labels = rows["label"].to_numpy().reshape(-1, 5)
    # The true item stands last among its samples.
    assert (labels.argmax(1) == 4).all()
    rank = 1 + (scores[:, :4] >= scores[:, 4:]).sum(1)
    assert found["rows"] == labels.size
    assert found["hr@2"] == pytest.approx(np.mean(rank <= 2))
    assert found["mrr"] == pytest.approx(np.mean(1 / rank))
    assert found["ndcg@2"] == pytest.approx(ndcg_score(labels, scores, k=2), abs=1e-6)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test_mrr"] == pytest.approx(found["mrr"])
    assert set(found) == {"rows", "auc", "logloss", "gauc", "hr@2", "ndcg@2", "mrr"}

    assert main(["evaluate", str(run), "--quiet", "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:] == [f"{name.upper()}: {found[name]:.4f}" for name in ("hr@2", "ndcg@2", "mrr")]
    assert failure(capsys, "evaluate", run, "--k", "0") == "k must be at least 1, got 0"


def test_undefined_metrics_are_null_in_json(run, tmp_path, capsys):
    trained = dien_fast.load(run)
    rows = Source.from_dict(trained.config.data, run).load(trained.config.seed).test.to_pandas()
    rows[rows["label"] == 1].to_parquet(tmp_path / "clicked.parquet")
    assert main(["evaluate", str(run), str(tmp_path / "clicked.parquet"), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auc"] is None
    assert found["mrr"] is None


@pytest.mark.parametrize("model", ["din", "dsin"])
def test_other_models_take_the_same_rows(tmp_path, capsys, model):
    task = ["--task", "next", "--first-event", "3", "--model", model]
    options = ["--embedding-size", "8"]  # two pairs; DSIN has eight heads
    assert main(["train", *DATA, *task, *SMALL, *options, "--output", str(tmp_path / model)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test AUC: 0.")


def test_a_run_goes_on_with_its_task(run, capsys):
    assert main(["train", "--resume", "--epochs", "2", "--cpu", "--quiet", "--output", str(run)]) == 0
    assert "epoch 2: " in capsys.readouterr().out
