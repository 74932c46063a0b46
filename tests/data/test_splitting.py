from __future__ import annotations

import datetime
import itertools

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import split_table
from dien_fast.errors import DataError


def random_table(seed: int = 0, rows: int = 400, moments: int = 25) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "userId": rng.choice(["u", "v", "w", "x"], rows),
            "timestamp": rng.integers(0, moments, rows),
            "row": np.arange(rows),
        }
    )


@pytest.mark.parametrize("how", ["user", "global"])
@pytest.mark.parametrize("seed", range(3))
def test_parts_are_whole_in_order_and_never_split_a_moment(how: str, seed: int) -> None:
    table = random_table(seed)
    parts = split_table(table, how)
    rows = [part["row"].to_pylist() for part in parts]
    assert sorted(rows[0] + rows[1] + rows[2]) == list(range(400))
    assert all(part == sorted(part) for part in rows)
    for user in ["u", "v", "w", "x"] if how == "user" else [None]:
        moments = [
            {row["timestamp"] for row in part.to_pylist() if user in (None, row["userId"])} for part in parts
        ]
        bounds = [(min(times), max(times)) for times in moments if times]
        assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(bounds))
    # 16 rows or 4 a moment: shares are met within one moment of each user.
    assert abs(len(rows[0]) - 320) <= 32
    assert abs(len(rows[1]) - 40) <= 32


def test_moments_go_where_their_middle_belongs() -> None:
    table = pa.table({"userId": [1] * 10, "timestamp": [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]})
    assert [part.num_rows for part in split_table(table)] == [7, 3, 0]
    table = pa.table({"userId": [1] * 10, "timestamp": [1, 2, 3, 4, 5, 6, 7, 7, 7, 10]})
    assert [part.num_rows for part in split_table(table)] == [9, 0, 1]
    assert [part.num_rows for part in split_table(pa.table({"userId": [1, 1], "timestamp": [3, 3]}))] == [2, 0, 0]


@pytest.mark.parametrize("rows", [10, 20, 100, 1000])
def test_shares_are_exact_where_moments_differ(rows: int) -> None:
    table = pa.table({"userId": [1] * rows, "timestamp": range(rows)})
    expected = [rows * 8 // 10, rows // 10, rows // 10]
    for how in ("user", "global"):
        assert [part.num_rows for part in split_table(table, how)] == expected
    half = split_table(table, fractions=(0.5, 0.3, 0.2))
    assert [part.num_rows for part in half] == [rows // 2, rows * 3 // 10, rows // 5]


def test_other_columns_and_dates() -> None:
    days = [datetime.date(2024, 1, day) for day in range(10, 0, -1)]
    table = pa.table({"who": ["a"] * 10, "day": days})
    train, valid, test = split_table(table, user="who", time="day")
    assert train["day"].to_pylist() == days[2:]
    assert (valid["day"].to_pylist(), test["day"].to_pylist()) == ([days[1]], [days[0]])
    assert split_table(table.drop_columns(["who"]), "global", time="day")[0].num_rows == 8


def test_empty_table() -> None:
    assert [part.num_rows for part in split_table(random_table().slice(0, 0))] == [0, 0, 0]


def test_wrong_arguments_are_refused() -> None:
    table = random_table()
    with pytest.raises(ValueError, match="how must be 'user' or 'global', got 'random'"):
        split_table(table, "random")
    for fractions in ((0.5, 0.5), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)):
        with pytest.raises(ValueError, match="fractions must be three shares that sum to 1"):
            split_table(table, fractions=fractions)
    with pytest.raises(DataError, match=r"c.csv: no column 'time'"):
        split_table(table, time="time", source="c.csv")
    gap = pa.table({"userId": [1, 1, 1], "timestamp": [1, None, None]})
    with pytest.raises(DataError, match=r"c.csv: column 'timestamp': a split needs a value in every row"):
        split_table(gap, source="c.csv")


def test_text_that_does_not_sort_in_time_is_refused():
    days = ["2024-01-02", "12/30/2023", "2024-01-03"]
    table = pa.table({"userId": [1, 1, 1], "timestamp": days})
    with pytest.raises(
        DataError, match=r"shop.csv: column 'timestamp': '12/30/2023' in row 1 does not sort in time"
    ):
        split_table(table, source="shop.csv")
    table = pa.table(
        {"userId": [1, 1, 1], "timestamp": ["2024-01-02", "2024-01-01 10:00", "2024-01-03T01:00:00Z"]}
    )
    assert sum(part.num_rows for part in split_table(table, how="global")) == 3


@pytest.mark.parametrize("name", ["userId", "timestamp"])
def test_lists_are_refused(name):
    table = pa.table({"userId": [1, 2], "timestamp": [1, 2]} | {name: [[1], [2]]})
    with pytest.raises(DataError, match=f"column '{name}': a split needs one value a row, got list"):
        split_table(table)


def test_dictionary_columns_are_split_as_their_values():
    table = pa.table({"userId": pa.array(["a", "b"] * 10).dictionary_encode(), "timestamp": range(20)})
    assert [part.num_rows for part in split_table(table)] == [16, 2, 2]
