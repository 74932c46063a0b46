"""Run directories: opened with `load`, refused with one sentence when they are not whole."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import dien_fast
from dien_fast.data import Schema, checks, synthetic_clicks
from dien_fast.data.sources import Source
from dien_fast.errors import CheckpointError, DataError
from dien_fast.models import MODELS
from dien_fast.training import loop, scoring
from dien_fast.training.checkpoints import load_checkpoint, save_checkpoint
from dien_fast.training.directory import RunDirectory
from dien_fast.training.metrics import auc
from dien_fast.training.pipeline import train_run
from dien_fast.training.runs import RunConfig, build_model, load, prepare_directory, without_negatives


def small_run(directory, **settings):
    config = RunConfig(**{"epochs": 1, "embedding_size": 4, "mlp_hidden": [4], "attention_hidden": [4]} | settings)
    lines = []
    metrics = train_run(
        Source("synthetic", rows=400), config, directory, cpu=True, progress=False, log=lines.append
    )
    return metrics, lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "small"
    metrics, lines = small_run(directory)
    return directory, metrics, lines


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy to damage."""
    import shutil

    return shutil.copytree(trained[0], tmp_path / "copy")


def test_a_run_directory_holds_what_it_should(trained):
    directory, metrics, lines = trained
    assert sorted(path.name for path in directory.iterdir()) == [
        ".lock",
        "auc.png",
        "best.pt",
        "config.json",
        "encoders",
        "history.csv",
        "last.pt",
        "loss.png",
        "metrics.json",
    ]
    stored = json.loads((directory / "metrics.json").read_text())
    # JSON has no NaN: the GAUC of so few rows is undefined.
    assert stored == {name: None if value != value else value for name, value in metrics.items()}
    assert lines[-1] == f"test AUC: {metrics['test_auc']:.4f}"
    assert any(line.startswith("best reachable test AUC: 0.") for line in lines)
    history = pd.read_csv(directory / "history.csv")
    assert metrics["valid_auc"] == pytest.approx(history["valid_auc"].max())


def test_the_rows_of_a_training_are_checked_once(tmp_path, monkeypatch):
    calls = []
    check_history = checks.check_history
    monkeypatch.setattr(
        checks,
        "check_history",
        lambda column, *rest, **options: calls.append(len(column)) or check_history(column, *rest, **options),
    )
    small_run(tmp_path / "run")
    assert calls == [400]


def test_load_gives_the_weights_of_the_best_epoch(trained):
    run = dien_fast.load(trained[0])
    best = load_checkpoint(trained[0] / "best.pt")["model"]
    assert not run.model.training
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, best[name])
    assert run.encoders.fingerprint() == run.config.fingerprint


def test_predict_takes_any_table_and_repeats_the_test_metrics(trained, tmp_path):
    directory, metrics, _ = trained
    run = load(directory)
    table = Source("synthetic", rows=400).load(seed=0).test
    expected = run.predict(table)
    assert expected.dtype == np.float32
    assert expected.shape == (table.num_rows,)
    assert auc(table["label"].to_numpy(), expected) == pytest.approx(metrics["test_auc"])
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    features = ["itemId", "histItemIds"]
    for other in (
        tmp_path / "t.parquet",
        str(tmp_path / "t.parquet"),
        table.select(features),
        table.to_pandas(),
        pl.from_arrow(table),
    ):
        # Rows are scored in batches of other shapes only in the last case; worst difference seen 0.
        np.testing.assert_allclose(run.predict(other), expected, rtol=1e-6)
    np.testing.assert_allclose(run.predict(table, batch_size=7), expected, rtol=1e-5)


def test_unseen_words_and_empty_histories_are_scored(trained):
    run = load(trained[0])
    table = pa.table(
        {"itemId": [1, 99999, None, 3], "histItemIds": [[1, 88888], [], None, [5]]},
        schema=pa.schema({"itemId": pa.int64(), "histItemIds": pa.list_(pa.int64())}),
    )
    probabilities = run.predict(table)
    assert np.isfinite(probabilities).all()
    # Of one unseen item or another, the model knows the same: nothing.
    assert probabilities[1] == probabilities[2]


def test_words_the_model_does_not_know_are_counted_or_refused(trained):
    run = load(trained[0])
    table = pa.table({"itemId": np.arange(100, 180), "histItemIds": [[1, 2]] * 80})
    with pytest.raises(DataError, match=r"column 'itemId': 100\.0 % of 80 words are unknown .*allow_unknown=True"):
        run.predict(table)
    assert np.ptp(run.predict(table, allow_unknown=True)) == 0
    dataset = run.dataset(table, allow_unknown=True)
    assert {name: (found.words, found.unknown) for name, found in dataset.unknown.items()} == {
        "itemId": (80, 80),
        "histItemIds": (160, 0),
    }
    np.testing.assert_array_equal(run.predict(dataset), run.predict(table, allow_unknown=True))


def test_columns_of_pandas_without_a_value_are_empty(trained):
    run = load(trained[0])
    expected = run.predict({"itemId": [1, 2], "histItemIds": [[], []]})
    for empty in (None, float("nan"), pd.NA):
        table = pd.DataFrame({"itemId": [1, 2], "histItemIds": [empty, empty]})
        np.testing.assert_array_equal(run.predict(table), expected)
    with pytest.raises(DataError, match=r"column 'histItemIds': expected lists, or text .* got double values"):
        run.predict(pd.DataFrame({"itemId": [1, 2], "histItemIds": [float("nan"), 3.0]}))


def test_a_table_without_rows_has_an_empty_prediction(trained, tmp_path):
    run = load(trained[0])
    (tmp_path / "header.csv").write_text("itemId,histItemIds\n")
    typed = pa.table({"itemId": [1], "histItemIds": [[1]]}).slice(1)
    untyped = pd.DataFrame(columns=["itemId", "histItemIds"])
    for table in (typed, untyped, pd.DataFrame([]), tmp_path / "header.csv", {"itemId": [], "histItemIds": []}):
        probabilities = run.predict(table)
        assert probabilities.shape == (0,)
        assert probabilities.dtype == np.float32
    with pytest.raises(DataError, match="no column 'histItemIds'"):
        run.predict(pd.DataFrame(columns=["itemId"]))


def test_a_table_without_a_feature_is_refused(trained):
    with pytest.raises(DataError, match="no column 'histItemIds'"):
        load(trained[0]).predict(pa.table({"itemId": [1]}))


@pytest.mark.parametrize("negatives", ["none", "popularity"])
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model_is_trained_and_loaded(tmp_path, model, negatives):
    source = Source("synthetic", rows=300, overrides={"negatives": negatives, "share_vocabulary": False})
    options = {"gru_type": "AIGRU"} if model == "dien" else {}
    config = RunConfig(model=model, options=options, epochs=1, embedding_size=8)
    train_run(source, config, tmp_path / "run", cpu=True, progress=False, log=lambda line: None)
    run = load(tmp_path / "run")
    assert type(run.model) is MODELS[model]
    assert run.predict(synthetic_clicks(rows=20).table).shape == (20,)
    aux_loss = pd.read_csv(tmp_path / "run" / "history.csv")["train_aux_loss"]
    assert aux_loss.isna().all() == (negatives == "none" or not MODELS[model].uses_negatives)


def remove(name):
    return lambda run: (run / name).unlink()


def write(name, content):
    return lambda run: (run / name).write_text(content)


def change_config(**changes):
    def damage(run):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | changes))

    return damage


def change_schema(**changes):
    def damage(run):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"schema": config["schema"] | changes}))

    return damage


def drop_setting(run):
    config = json.loads((run / "config.json").read_text())
    del config["lr"]
    (run / "config.json").write_text(json.dumps(config))


def drop_weight(run):
    content = load_checkpoint(run / "best.pt")
    content["model"].popitem()
    save_checkpoint(run / "best.pt", content)


def other_encoders(run):
    path = run / "encoders" / "itemId.json"
    # Two items change places: the vocabulary keeps its size, the ids lose their meaning.
    encoder = json.loads(path.read_text())
    words = next(value for value in encoder.values() if isinstance(value, list) and len(value) > 9)
    words[3], words[4] = words[4], words[3]
    path.write_text(json.dumps(encoder))


def truncate(run):
    path = run / "best.pt"
    path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "is not a run directory: it has no config.json"),
        (remove("best.pt"), r"there is no checkpoint .*best\.pt"),
        (remove("encoders/itemId.json"), "itemId"),
        (write("config.json", "{"), "not valid JSON"),
        (write("config.json", "[]"), "not the configuration of a dien-fast run"),
        (write("encoders/itemId.json", "{}"), "is damaged"),
        (change_config(model="gpt"), f"model must be one of {', '.join(MODELS)}, got 'gpt'"),
        (change_config(extra=1), "the setting 'extra' is missing or unknown"),
        (drop_setting, "the setting 'lr' is missing or unknown"),
        (change_config(embedding_size=8), "trained with embedding_size = 4, now embedding_size = 8"),
        (change_config(options={"gru_type": "AIGRU"}), "trained with gru_type = 'AUGRU', now gru_type = 'AIGRU'"),
        (change_schema(separator=","), r"config\.json was changed after training: .*best\.pt was trained with "),
        (change_schema(separator=","), r"schema\.separator = '\|', now schema\.separator = ','"),
        (change_schema(max_length=7), r"schema\.max_length = 20, now schema\.max_length = 7"),
        (change_schema(min_count=1), r"schema\.min_count = 2, now schema\.min_count = 1"),
        (change_schema(keep="oldest"), r"schema\.keep = 'newest', now schema\.keep = 'oldest'"),
        (change_config(schema={"categorical": "x"}), "is damaged: schema: categorical must be a list"),
        (drop_weight, "lacks the weight"),
        (truncate, "damaged, cut short"),
        (other_encoders, "do not fit"),
    ],
)
def test_damaged_runs_are_refused_with_one_sentence(run_copy, damage, message):
    damage(run_copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(run_copy)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run directory"):
        load(tmp_path / "nothing")


def test_a_run_is_not_resumed_with_other_settings_or_data(run_copy):
    run = load(run_copy)
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    schema = run.config.schema | {"min_count": 3}
    for changes, message in (
        ({"batch_size": 64}, "trained with batch_size = 128, now batch_size = 64"),
        ({"schema": schema}, r"trained with schema\.min_count = 2, now schema\.min_count = 3"),
        ({"fingerprint": "other"}, "the training rows are not those it was trained on"),
    ):
        with pytest.raises(CheckpointError, match=message):
            prepare_directory(RunDirectory(run_copy), replace(run.config, **changes), run.encoders, resume=True)
    prepare_directory(RunDirectory(run_copy), run.config, run.encoders, resume=True)
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_another_programs_configuration_is_not_overwritten(tmp_path, trained):
    run = load(trained[0])
    (tmp_path / "config.json").write_text('{"name": "other"}')
    with pytest.raises(CheckpointError, match="not the configuration of a dien-fast run"):
        prepare_directory(RunDirectory(tmp_path), run.config, run.encoders)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_is_replaced_once_the_new_one_has_a_checkpoint(run_copy, monkeypatch):
    (run_copy / "notes.txt").write_text("mine")
    (run_copy / "encoders" / "gone.json").write_text("{}")
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}

    def train():
        config = RunConfig(epochs=2, embedding_size=2, mlp_hidden=[4], attention_hidden=[4])
        train_run(
            Source("synthetic", rows=200), config, run_copy, overwrite=True, cpu=True, progress=False, log=print
        )

    seen = []

    def evaluate(*arguments, **options):
        """Interrupt the training in its first epoch; look at the directory in the first and second."""
        seen.append({path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()})
        if len(seen) == 1:
            raise KeyboardInterrupt
        return scoring.evaluate(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before
    train()
    assert {path: content for path, content in seen[1].items() if ".new" not in path.parts} == before
    # After its first epoch the new run is there, whole, and of the old one nothing.
    names = {path.relative_to(run_copy).as_posix() for path in seen[2]} - {".lock"}
    encoders = {"encoders/histItemIds.json", "encoders/itemId.json", "encoders/neg_histItemIds.json"}
    assert names == {"best.pt", "last.pt", "config.json", "history.csv", "notes.txt"} | encoders
    assert load_checkpoint(run_copy / "last.pt")["epoch"] == 2
    assert load(run_copy).config.embedding_size == 2
    assert (run_copy / "notes.txt").read_text() == "mine"


def test_embeddings_may_have_sizes_of_their_own(trained):
    clicks = synthetic_clicks(rows=200)
    schema = Schema.from_dict(clicks.schema.to_dict() | {"embedding_sizes": {"itemId": 6}})
    encoders = dien_fast.data.fit_encoders(clicks.table, schema)
    model = build_model(RunConfig(schema=schema.to_dict()), encoders)
    assert model.embeddings["itemId"].embedding_dim == 6
    separate = schema.to_dict() | {"share_vocabulary": False, "embedding_sizes": {"itemId": 6, "histItemIds": 6}}
    model = build_model(
        RunConfig(schema=separate), dien_fast.data.fit_encoders(clicks.table, Schema.from_dict(separate))
    )
    assert model.embeddings["neg_histItemIds"].embedding_dim == 6
    plain = without_negatives(
        Schema.from_dict(separate | {"embedding_sizes": {"itemId": 6, "neg_histItemIds": 6}})
    )
    assert plain.embedding_sizes == {"itemId": 6}
    assert plain.negatives == "none"


def test_a_schema_the_model_cannot_serve_is_a_data_error(trained):
    clicks = synthetic_clicks(rows=200)
    settings = clicks.schema.to_dict() | {"share_vocabulary": False, "embedding_sizes": {"histItemIds": 5}}
    encoders = dien_fast.data.fit_encoders(clicks.table, Schema.from_dict(settings))
    with pytest.raises(DataError, match="the schema does not fit the model"):
        build_model(RunConfig(schema=settings), encoders)


def test_only_a_model_of_sessions_knows_the_times(tmp_path):
    """The times of the synthetic clicks leave the runs of other models as they were before there were any."""
    groups = {}
    for model in MODELS:
        small_run(tmp_path / model, model=model, embedding_size=8)
        groups[model] = json.loads((tmp_path / model / "config.json").read_text())["schema"]["groups"][0]
    pair = {"ad": "itemId", "pos_hist": "histItemIds", "neg_hist": "neg_histItemIds"}
    assert groups["dien"] == groups["din"] == {"name": "items", "pairs": [pair]}
    assert groups["dsin"] == {"name": "items", "pairs": [pair], "time": "histTimes", "session_gap": 1800.0}
    table = synthetic_clicks(rows=20).table.drop_columns(["histTimes"])
    assert load(tmp_path / "din").predict(table).shape == (20,)
    with pytest.raises(DataError, match="no column 'histTimes'"):
        load(tmp_path / "dsin").predict(table)


def test_a_model_of_sessions_is_resumed(tmp_path):
    whole, _ = small_run(tmp_path / "whole", model="dsin", embedding_size=8, epochs=2)
    small_run(tmp_path / "halves", model="dsin", embedding_size=8, epochs=1)
    config = RunConfig(model="dsin", epochs=2, embedding_size=8, mlp_hidden=[4], attention_hidden=[4])
    quiet = {"cpu": True, "progress": False, "log": lambda line: None}
    resumed = train_run(Source("synthetic", rows=400), config, tmp_path / "halves", resume=True, **quiet)
    assert str(resumed) == str(whole)  # One of the numbers is NaN.
    assert 0.5 < whole["best_reachable_auc"] < 1


def test_sessions_need_times(tmp_path):
    path = tmp_path / "clicks.parquet"
    clicks = synthetic_clicks(rows=200)
    pa.parquet.write_table(clicks.table, path)
    (tmp_path / "clicks.toml").write_text(
        'categorical = ["itemId"]\nsequences = ["histItemIds"]\n'
        '[[groups]]\nname = "items"\npairs = [{ ad = "itemId", pos_hist = "histItemIds" }]\n'
    )
    source = Source(str(path), schema=str(tmp_path / "clicks.toml"))
    with pytest.raises(
        DataError, match="dsin reads sessions, so group 'items' of the schema must name a column"
    ) as e:
        train_run(source, RunConfig(model="dsin"), tmp_path / "run", cpu=True, progress=False)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_may_be_told_where_its_rows_are_now(run_copy):
    config = json.loads((run_copy / "config.json").read_text())
    config["data"]["dataset"], config["epochs"] = "moved.csv", 5
    (run_copy / "config.json").write_text(json.dumps(config))
    assert load(run_copy).config.epochs == 5
