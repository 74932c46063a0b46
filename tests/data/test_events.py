"""The next event of a log against drawn ones, and users kept apart."""

from itertools import combinations

import pyarrow as pa
import pytest
from event_log import log

from dien_fast.data.events import Events, next_clicks
from dien_fast.data.splitting import split_users
from dien_fast.errors import DataError


def by_user(table):
    """Each user's events in order of time, ties in the table's order: the definition, row by row."""
    events = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["time"]):
        events.setdefault(row["user"], []).append(row)
    return events


@pytest.mark.parametrize("by", ["uniform", "popularity"])
@pytest.mark.parametrize(
    ("first", "negatives", "max_length"), [(None, 1, 50), (2, 3, 50), (4, 2, 3), (2, 1, None)]
)
def test_rows_are_those_of_the_definition(first, negatives, max_length, by):
    table = log()
    events = Events(table, item_columns=["category"])
    clicks = next_clicks(events, first=first, negatives=negatives, max_length=max_length, by=by)
    rows = iter(clicks.table.to_pylist())
    known = by_user(table)
    for user in dict.fromkeys(table["user"].to_pylist()):
        done = known[user]
        places = range((first or 2) - 1, len(done)) if first else range(max(len(done) - 1, 1), len(done))
        for place in places:
            before = done[:place][-(max_length or len(done)) :]
            for label, row in zip([0] * negatives + [1], rows, strict=False):
                assert (row["user"], row["time"], row["label"]) == (user, done[place]["time"], label)
                assert row["hist_item"] == [event["item"] for event in before]
                assert row["hist_time"] == [event["time"] for event in before]
                assert row["hist_category"] == [event["category"] for event in before]
                assert row["category"] == f"c{row['item'] % 4}"
                own = {event["item"] for event in done}
                assert row["item"] == done[place]["item"] if label else row["item"] not in own
    assert next(rows, None) is None


def test_draws_follow_the_events_or_the_items():
    table = pa.table(
        {
            "user": [f"u{n}" for n in range(900)] * 2,
            "item": ["hit"] * 900 + list("abc") * 300,
            "time": [1] * 1_800,
        }
    )
    asking = pa.table({"user": ["x", "x"], "item": ["rare", "other"], "time": [1, 2]})
    events = Events(pa.concat_tables([table, asking]))
    shares = {}
    for by in ("uniform", "popularity"):
        clicks = next_clicks(events, by=by, negatives=2_000).table
        drawn = clicks.filter(pa.compute.equal(clicks["user"], "x"))["item"].to_pylist()[:-1]
        shares[by] = drawn.count("hit") / len(drawn)
    assert shares["uniform"] == pytest.approx(1 / 4, abs=0.05)
    assert shares["popularity"] == pytest.approx(1 / 2, abs=0.05)


def test_a_user_with_nearly_everything_gets_what_is_left():
    items = list(range(200))
    table = pa.table({"user": ["all"] * 199 + ["b"], "item": items, "time": items})
    for by in ("uniform", "popularity"):
        clicks = next_clicks(Events(table), negatives=50, by=by).table
        assert set(clicks["item"].to_pylist()[:-1]) == {199}


def test_equal_seeds_draw_equally():
    events = Events(log())
    assert next_clicks(events, seed=3).table == next_clicks(events, seed=3).table
    assert next_clicks(events, seed=3).table != next_clicks(events, seed=4).table


def test_the_schema_trains_on_both_pairs():
    schema = next_clicks(Events(log(), item_columns=["category"])).schema
    assert [(pair.ad, pair.pos_hist) for pair in schema.pairs()] == [
        ("item", "hist_item"),
        ("category", "hist_category"),
    ]
    assert (schema.user, schema.time) == ("user", "time")


def test_columns_of_the_user_come_along():
    table = log()
    table = table.append_column("age", pa.array([len(name) for name in table["user"].to_pylist()]))
    clicks = next_clicks(Events(table, user_columns=["age"], numeric=["age"]))
    assert clicks.schema.numeric == ["age"]
    assert clicks.table["age"].to_pylist() == [len(name) for name in clicks.table["user"].to_pylist()]


def test_nothing_is_left_out_in_silence():
    table = pa.table({"user": ["a", "a", "b"], "item": [1, 2, 3], "time": [5, 5, 5]})
    assert next_clicks(Events(table)).notes == (
        "1 of 2 users have fewer than 2 events and are left out; their items can still be drawn",
        "67% of the events share their user's moment with another; they keep the order of their source",
    )
    in_order = Events(table.drop(["time"]), time=None)
    assert [note[:6] for note in next_clicks(in_order).notes] == ["1 of 2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": ["a", "b"]},
            "log: no user has 2 events or more, so there is nothing to predict; 2 users have 2 events",
        ),
        ({"item": [1, 1]}, "log: user 'a' has all 1 items, so no other can be drawn"),
        ({"item": [1, None]}, "log: column 'item': an event needs a value, row 1 has none"),
        ({"time": ["1", "2"]}, "log: column 'time': times must be numbers or dates, got text: '1' in row 0"),
    ],
)
def test_what_is_wrong_is_said(columns, message):
    table = {"user": ["a", "a"], "item": [1, 2], "time": [1, 2]} | columns
    with pytest.raises(DataError) as refused:
        next_clicks(Events(pa.table(table), source="log"))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("role", "name"), [("user", "event"), ("time", "label"), ("item", "event"), ("user", "hist_item")]
)
def test_names_that_the_clicks_have_are_refused(role, name):
    roles = {"user": "user", "item": "item", "time": "time"} | {role: name}
    table = pa.table({roles["user"]: ["a", "a", "b"], roles["item"]: [1, 2, 3], roles["time"]: [1, 2, 3]})
    with pytest.raises(
        DataError, match=f"log: column '{name}' must have another name, as the clicks have one of it"
    ):
        next_clicks(Events(table, **roles, source="log"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 1}, "first must be at least 2"),
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"by": "luck"}, "by must be one of uniform, popularity, got 'luck'"),
        ({"max_length": 0}, "max_length must be at least 1 or None, got 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        next_clicks(Events(log()), **arguments)


def test_users_are_kept_apart():
    table = log(users=500)
    parts = split_users(table, "user", seed=1)
    names = [set(part["user"].to_pylist()) for part in parts]
    assert not any(one & other for one, other in combinations(names, 2))
    assert [len(part) for part in names] == [400, 50, 50]
    assert sum(part.num_rows for part in parts) == table.num_rows
    assert split_users(table, "user", seed=1)[2] == parts[2] != split_users(table, "user", seed=2)[2]
