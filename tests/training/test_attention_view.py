"""The attention view draws what `trace` says for the row and candidates that were asked for."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from dien_fast.data import Schema, fit_encoders
from dien_fast.errors import DataError
from dien_fast.training import plots
from dien_fast.training.attention_view import attention_view
from dien_fast.training.runs import Run, RunConfig, build_model

TABLE = pa.table(
    {
        "user": [1, 1, 2, 2, 3],
        "item": [5, 6, 7, 5, 5],
        "brand": ["a", "b", "a", "a", "a"],
        "past_items": [[], [5], [6, 5, 7], [], []],
        "past_brands": [[], ["a"], ["b", "a", "a"], [], []],
        "label": [0, 1, 1, 0, 1],
    }
)
PAIRS = [{"ad": "item", "pos_hist": "past_items"}, {"ad": "brand", "pos_hist": "past_brands"}]


def make_run(pairs=2, model="dien", groups=True, **settings):
    torch.manual_seed(0)
    settings |= {
        "user": "user",
        "categorical": ["item", "brand"],
        "sequences": ["past_items", "past_brands"],
        "min_count": 1,
    }
    if groups:
        settings["groups"] = [{"name": "clicks", "pairs": PAIRS[:pairs]}]
    schema = Schema.from_dict(settings)
    encoders = fit_encoders(TABLE, schema)
    config = RunConfig(schema=schema.to_dict(), model=model, embedding_size=4)
    model = build_model(config, encoders).eval()
    return Run(directory=None, config=config, schema=schema, encoders=encoders, model=model)


@pytest.fixture
def drawn(monkeypatch):
    """What the plots are given, in place of files."""
    given = {}

    def attention(scores, candidates, steps, path, title):
        given.update(scores=scores, candidates=candidates, steps=steps, title=title)
        return path

    def interest(states, candidates, path, title):
        given.update(states=states)
        return path

    monkeypatch.setattr(plots, "plot_attention", attention)
    monkeypatch.setattr(plots, "plot_interest", interest)
    return given


def test_scores_states_and_names_are_those_of_the_row_and_candidates(tmp_path, drawn):
    run = make_run()
    paths = attention_view(run, TABLE, tmp_path, row=2, candidates=["6", "7"])
    assert [path.name for path in paths] == ["attention.png", "interest.png"]
    # By hand: row 2 twice, with item 6 of brand b and item 7 of brand a.
    rows = TABLE.take([2, 2]).set_column(1, "item", pa.array([6, 7])).set_column(2, "brand", pa.array(["b", "a"]))
    batch = run.dataset(rows).batch(np.arange(2))
    scores, states = run.model.trace(batch, "clicks")
    assert drawn["steps"] == ["6", "5", "7"]
    np.testing.assert_allclose(drawn["scores"], scores[:, :3].numpy())
    np.testing.assert_allclose(drawn["states"], states[:, :3].numpy())
    assert drawn["scores"].shape == (2, 3)
    np.testing.assert_allclose(drawn["scores"].sum(1), 1, rtol=1e-6)
    chances = torch.sigmoid(run.model(batch)[0]).tolist()
    assert drawn["candidates"] == [f"6  (p = {chances[0]:.2f})", f"7  (p = {chances[1]:.2f})"]


def test_by_default_the_first_history_with_its_own_and_frequent_candidates(tmp_path, drawn):
    attention_view(make_run(), TABLE, tmp_path)
    assert drawn["steps"] == ["5"]
    assert [name.split()[0] for name in drawn["candidates"]] == ["6", "5", "7"]
    assert drawn["title"].startswith("row 1: ")


def test_a_user_is_looked_up_by_name(tmp_path, drawn):
    attention_view(make_run(), TABLE, tmp_path, user="2", candidates=["5"])
    assert drawn["steps"] == ["6", "5", "7"]
    assert drawn["title"].startswith("user 2: ")


def test_a_single_candidate_column_takes_unseen_candidates_of_its_type(tmp_path, drawn):
    attention_view(make_run(pairs=1), TABLE, tmp_path, row=1, candidates=["5", "99"])
    assert [name.split()[0] for name in drawn["candidates"]] == ["5", "99"]
    with pytest.raises(DataError, match="candidates of column 'item' must be int64"):
        attention_view(make_run(pairs=1), TABLE, tmp_path, row=1, candidates=["x"])


@pytest.mark.parametrize("text", [False, True], ids=["lists", "text"])
def test_unknown_words_keep_their_names_and_are_marked(tmp_path, drawn, text):
    history = "5|98|7|99" if text else [5, 98, 7, 99]
    table = pa.table({"item": [6, 98, 77, None], "past_items": [history] * 4})
    lines = []
    attention_view(make_run(pairs=1), add_brands(table), tmp_path, row=0, log=lines.append)
    assert drawn["steps"] == ["5", "98 (unknown)", "7", "99 (unknown)"]
    names = [label.split("  (p = ")[0] for label in drawn["candidates"]]
    assert names[0] == "6"
    assert sorted(names[1:]) == ["77 (unknown)", "98 (unknown)", "missing (unknown)"]
    for row in drawn["scores"][2:]:
        np.testing.assert_array_equal(row, drawn["scores"][1])
    assert lines[0].startswith("3 of 4 candidates are unknown to the model, which sees them as one word: ")
    assert lines[1:] == [
        "2 of 4 items of the history are unknown to the model, which sees them as one word: 98, 99"
    ]


def add_brands(table):
    return table.append_column("brand", pa.array(["a"] * 4)).append_column("past_brands", pa.array([["a"]] * 4))


def test_the_newest_events_are_named_where_older_ones_are_cut(tmp_path, drawn):
    table = pa.table({"item": [6] * 4, "past_items": [[99, 5, 98, 7, 6]] * 4})
    attention_view(make_run(pairs=1, max_length=3), add_brands(table), tmp_path, row=0)
    assert drawn["steps"] == ["98 (unknown)", "7", "6"]
    attention_view(make_run(pairs=1, max_length=3, keep="oldest"), add_brands(table), tmp_path, row=0)
    assert drawn["steps"] == ["99 (unknown)", "5", "98 (unknown)"]


def test_known_words_are_not_marked(tmp_path, drawn):
    lines = []
    attention_view(make_run(), TABLE, tmp_path, row=2, log=lines.append)
    assert lines == []
    assert not [name for name in [*drawn["steps"], *drawn["candidates"]] if "unknown" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row": 9}, "below the table's 5 rows, got 9"),
        ({"row": 0}, "row 0 has an empty history"),
        ({"user": "8"}, "user '8' is not in column 'user'"),
        ({"user": "3"}, "user '3' has only empty histories"),
        ({"candidates": ["99"]}, "candidate '99' is in no row of the table, so its 'brand' is not known"),
        ({"group": "words"}, "no attention group 'words'; its groups are clicks"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        attention_view(make_run(), TABLE, tmp_path, **settings)


def test_models_and_tables_without_attention_are_refused(tmp_path):
    with pytest.raises(DataError, match="which a DIN does not model"):
        attention_view(make_run(model="din"), TABLE, tmp_path)
    with pytest.raises(DataError, match="no attention group to look at"):
        attention_view(make_run(groups=False), TABLE, tmp_path)
    with pytest.raises(DataError, match="no user column"):
        attention_view(make_run(), TABLE.drop_columns("user"), tmp_path, user="1")
    with pytest.raises(DataError, match="all histories of the table are empty"):
        attention_view(make_run(), TABLE.take([0, 3]), tmp_path)
