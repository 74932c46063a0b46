"""A model that is registered is trained, scored and shown by the command, which asks for no names."""

import json

import pandas as pd
import pytest
from shop import SCHEMA, failure, shop_table
from toy_models import Sums, Traced

import dien_fast
from dien_fast.cli import main
from dien_fast.models import MODELS
from dien_fast.settings import rules
from dien_fast.training.config import RunConfig

ARGUMENTS = ["--epochs", "1", "--embedding-size", "4", "--cpu", "--quiet"]


@pytest.fixture(params=[Sums, Traced])
def kind(request, monkeypatch):
    """A model under the name toy, as if its line stood in MODELS when the configuration was defined."""
    monkeypatch.setitem(MODELS, "toy", request.param)
    rule = rules(RunConfig)["model"]
    before = rule.choices
    object.__setattr__(rule, "choices", tuple(MODELS))
    yield request.param
    object.__setattr__(rule, "choices", before)


def test_a_third_model_needs_no_more_than_its_line(kind, tmp_path, capsys):
    shop_table().to_pandas().to_csv(tmp_path / "clicks.csv", index=False)
    (tmp_path / "clicks.toml").write_text(SCHEMA)
    arguments = ["--dataset", str(tmp_path / "clicks.csv"), "--schema", str(tmp_path / "clicks.toml"), *ARGUMENTS]
    directory = str(tmp_path / "run")
    assert main(["train", "--model", "toy", "--scale-layers", "2", *arguments, "--output", directory]) == 0
    described = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("model: "))
    negatives = ", negatives: uniform" if kind.uses_negatives else ""
    assert described.startswith(f"model: {kind.__name__} (scale_layers: 2{negatives}), ")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"], config["options"]) == ("toy", {"scale_layers": 2})
    assert config["schema"]["negatives"] == ("uniform" if kind.uses_negatives else "none")
    aux_loss = pd.read_csv(tmp_path / "run" / "history.csv")["train_aux_loss"]
    assert aux_loss.isna().all() != kind.uses_negatives

    run = dien_fast.load(directory)
    assert type(run.model) is kind
    assert len(run.model.attention_poolings["items"].scale) == 2
    users = shop_table(1)
    items = users.select(["item", "brand"])
    assert run.score_candidates(users, items) == pytest.approx(run.predict(users), rel=1e-5)

    assert main(["train", "--resume", "--epochs", "2", "--cpu", "--quiet", "--output", directory]) == 0
    attention = ["info", directory, "--attention", str(tmp_path / "pictures")]
    if kind.can_trace:
        assert main(attention) == 0
    else:
        assert failure(capsys, *attention).endswith("which a Sums does not model")
    sentence = failure(capsys, "train", "--model", "toy", "--gru-type", "GRU", "--output", tmp_path / "other")
    assert sentence == "--gru-type is an option of dien, not of toy"
