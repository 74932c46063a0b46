"""Histories that are views of one log give the same batches as copies, with the memory of the log."""

import numpy as np
import pyarrow as pa
import pytest
from event_log import log
from same_batches import assert_same_batches

from dien_fast.data import (
    ClickDataset,
    Events,
    NegativeSampler,
    click_table,
    fit_encoders,
    movielens_schema,
    next_clicks,
    shuffle_histories,
)
from dien_fast.data.columns import as_lists, views
from dien_fast.data.inspection import warning_lines
from dien_fast.data.schema import Schema


@pytest.fixture(scope="module", params=[{}, {"max_length": 3}, {"max_length": 3, "keep": "oldest"}], ids=str)
def both(request):
    """The rows of one log with copied histories and with views, and what they mean."""
    events = Events(log(users=200, items=40), item_columns=["category"], session_gap=1)
    made = [next_clicks(events, first=2, negatives=2, max_length=None, views=flag) for flag in (False, True)]
    assert pa.types.is_large_list(made[0].table["hist_item"].type)
    assert pa.types.is_large_list_view(made[1].table["hist_item"].type)
    schema = Schema.from_dict(made[0].schema.to_dict() | {"min_count": 3} | request.param)
    return [clicks.table for clicks in made], schema


def datasets(tables, schema, part=slice(None)):
    """A data set of each table, or of some of its rows, with encoders and negatives from the whole."""
    found = []
    for table in tables:
        encoders = fit_encoders(table, schema)
        negatives = NegativeSampler.fit(table, schema, encoders)
        rows = np.arange(table.num_rows)[part]
        found.append(ClickDataset(table.take(pa.array(rows)), schema, encoders, negatives=negatives))
    return found


@pytest.mark.parametrize("part", [slice(None), slice(50, 700, 3), slice(0, 0)], ids=["all", "some", "none"])
def test_batches_are_the_same_bit_for_bit(both, part):
    tables, schema = both
    if part.stop == 0:
        encoders = fit_encoders(tables[0], schema)
        empty = [ClickDataset(table.slice(0, 0), schema, encoders, require_label=False) for table in tables]
        assert [len(data) for data in empty] == [0, 0]
        return
    left, right = datasets(tables, schema, part)
    assert_same_batches(left, right)
    assert left.unknown == right.unknown
    assert "events.session" in left.batch(np.array([0]))


def test_encoders_are_the_same(both):
    tables, schema = both
    assert len({fit_encoders(table, schema).fingerprint() for table in tables}) == 1


def test_warnings_are_the_same(both):
    tables, schema = both
    left, right = datasets(tables, schema)
    encoders = fit_encoders(tables[0], schema)
    lines = warning_lines(left, encoders, "training")
    assert lines == warning_lines(right, encoders, "training")
    assert any("is one of its own hist_item" in line for line in lines)


def test_a_dataset_of_views_holds_the_log_once(both):
    tables, schema = both
    left, right = datasets(tables, schema)
    events = log(users=200, items=40).num_rows
    assert len(right._sequences["hist_item"].values) <= events
    assert left.lengths("hist_item").sum() > 3 * events
    # Item, category and session are found with one index.
    assert len({id(found.starts) for found in right._sequences.values()}) == 1


def test_views_become_lists_where_these_are_needed(both):
    copies, shared = both[0]
    assert as_lists(shared["hist_item"]).to_pylist() == copies["hist_item"].to_pylist()
    assert views(copies["hist_item"]) is None
    assert shuffle_histories(shared, "hist_item").column("hist_item").to_pylist() == (
        shuffle_histories(copies, "hist_item").column("hist_item").to_pylist()
    )


def test_a_null_among_views_is_a_history_without_events():
    column = pa.LargeListViewArray.from_arrays(
        pa.array([0, 1, 0]), pa.array([2, 2, 3]), pa.array([5, 6, 7]), mask=pa.array([False, True, False])
    )
    found = views(column)
    assert found.lengths.tolist() == [2, 0, 3]
    assert as_lists(column).to_pylist() == [[5, 6], [], [5, 6, 7]]


@pytest.mark.parametrize("settings", [{}, {"max_length": 3}], ids=str)
def test_clicks_on_movies_are_the_same_bit_for_bit(settings):
    rng = np.random.default_rng(0)
    rows = 600
    columns = {"userId": 7, "movieId": 40, "timestamp": 99}
    ratings = pa.table({name: rng.integers(1, most, rows) for name, most in columns.items()})
    ratings = ratings.append_column("rating", pa.array(rng.integers(1, 6, rows)))
    movies = pa.table({"movieId": range(1, 40), "genres": ["A|B", None, "C"] * 13})
    tables = [click_table(ratings, movies, **settings, views=flag) for flag in (False, True)]
    assert pa.types.is_large_list_view(tables[1]["histTimestamps"].type)
    schema = movielens_schema(tables[0])
    left, right = datasets(tables, schema, slice(10, 500))
    assert_same_batches(left, right)
    assert len(right._sequences["histHighRatedMovieIds"].values) < rows
    assert left.lengths("histHighRatedMovieIds").sum() > 2 * rows
