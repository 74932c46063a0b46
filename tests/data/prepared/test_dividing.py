"""The split in time of a table on the disk is that of a table in memory, to the row."""

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import Schema, split_table
from dien_fast.data.prepared import dividing
from dien_fast.data.prepared.dividing import Division, divide_in_time
from dien_fast.data.prepared.files import RowBatch
from dien_fast.data.splitting import Shares
from dien_fast.errors import DataError

SCHEMA = Schema(label="label", user="user", time="time", categorical=["item"])


def batches(table, size=70):
    return [RowBatch(table.slice(first, size), "t", first) for first in range(0, table.num_rows, size)]


def parts_of(table, how, place, shares=None):
    division = Division(how, shares or Shares(), 0)
    divide_in_time(batches(table), SCHEMA, division, place)
    assert not place.with_suffix(".keys").exists()
    return np.concatenate([division.parts(batch, SCHEMA, place) for batch in batches(table)])


def times(kind, rng, rows):
    numbers = rng.integers(-40, 40, rows)
    if kind == "whole":
        return pa.array(numbers * 10**17)
    if kind == "fractions":
        return pa.array(numbers / 4)
    if kind == "dates":
        return pa.array(numbers.astype("datetime64[D]"))
    return pa.array([str(day) for day in numbers.astype("datetime64[D]")])


@pytest.mark.parametrize("kind", ["whole", "fractions", "dates", "text"])
@pytest.mark.parametrize("how", ["user", "global"])
def test_the_rules_of_a_table_in_memory(how, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(dividing, "_BUCKET_ROWS", 128)
    rng = np.random.default_rng(0)
    rows = 1000
    table = pa.table(
        {
            "user": [f"u{user}" for user in rng.integers(0, 30, rows)],
            "time": times(kind, rng, rows),
            "row": range(rows),
        }
    )
    for shares in (Shares(), Shares.without(valid=True, test=False)):
        found = parts_of(table, how, tmp_path / "parts", shares)
        expected = split_table(table, how, shares, user="user", time="time")
        for number, part in enumerate(expected):
            assert np.flatnonzero(found == number).tolist() == part["row"].to_pylist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"time": [1, None]}, "t: column 'time': a split needs a value in every row, row 1 has none"),
        ({"time": [1.0, float("nan")]}, "t: column 'time': a split needs a value in every row, row 1 has none"),
        ({"user": ["a", None]}, "t: column 'user': a split needs a value in every row, row 1 has none"),
        ({"time": ["2024-12-31", "31.12.2024"]}, r"t: column 'time': text must be ISO dates \(2024-12-31\)"),
        ({"time": [[1], [2]]}, "t: column 'time': a split needs one value a row, got list"),
    ],
)
def test_times_that_do_not_divide(columns, message, tmp_path):
    table = pa.table({"user": ["a", "b"], "time": [1, 2]} | columns)
    with pytest.raises(DataError, match=message):
        parts_of(table, "user", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_times_of_two_kinds(tmp_path):
    both = [RowBatch(pa.table({"user": [1], "time": [time]}), "t", 0) for time in (1, 1.5)]
    with pytest.raises(
        DataError, match="the times are numbers with fractions, but whole numbers in the rows before"
    ):
        divide_in_time(both, SCHEMA, Division("user", Shares(), 0), tmp_path / "parts")


def test_users_stay_together():
    table = pa.table({"user": np.random.default_rng(0).integers(0, 500, 3000)})
    division = Division("users", Shares(), 3)
    parts = np.concatenate([division.parts(batch, SCHEMA, None) for batch in batches(table)])
    users = table["user"].to_numpy()
    assert all(len(set(parts[users == user])) == 1 for user in np.unique(users))
    assert 0.75 < (parts == 0).mean() < 0.85
    text = pa.table({"user": [str(user) for user in users]})
    assert len(np.unique(division.parts(RowBatch(text, "t", 0), SCHEMA, None))) == 3
