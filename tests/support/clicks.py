"""A small click table with every kind of column, and its schema."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from dien_fast.data import Group, Pair, Schema


def make_table(rows: int = 40, seed: int = 0) -> pa.Table:
    """Items 1..9 of categories a, b, c; histories of 0 to 6 events as lists, tags as text."""
    rng = np.random.default_rng(seed)
    items = rng.integers(1, 10, rows)
    histories = [rng.integers(1, 10, rng.integers(0, 7)).tolist() for _ in range(rows)]
    histories[0], histories[1] = [], None
    return pa.table(
        {
            "user": pa.array(np.arange(rows) % 5),
            "time": pa.array(np.arange(rows)),
            "label": pa.array(rng.integers(0, 2, rows)),
            "age": pa.array(rng.integers(18, 60, rows), pa.float64()),
            "item": pa.array(items),
            "category": pa.array(["abc"[item % 3] for item in items]),
            "tags": pa.array(["x|y", "", None, "y"] * (rows // 4)),
            "hist_item": pa.array(histories, pa.list_(pa.int64())),
            "hist_category": pa.array([["abc"[i % 3] for i in h or []] for h in histories], pa.list_(pa.string())),
        }
    )


def make_schema(**settings: object) -> Schema:
    base: dict[str, object] = {
        "user": "user",
        "time": "time",
        "numeric": ["age"],
        "categorical": ["item", "category"],
        "sequences": ["tags", "hist_item", "hist_category"],
        "groups": [Group("items", [Pair("item", "hist_item"), Pair("category", "hist_category")])],
        "min_count": 1,
    }
    return Schema(**(base | settings))  # type: ignore[arg-type]


def timed_table(rows: int = 40, seed: int = 0) -> pa.Table:
    """The same table with the times of the histories' events; about every other pause exceeds half an hour."""
    table = make_table(rows, seed)
    pauses = [[item * 977 % 3600 for item in history or []] for history in table["hist_item"].to_pylist()]
    times = [np.cumsum(pause, dtype=np.int64).tolist() for pause in pauses]
    return table.append_column("hist_time", pa.array(times, pa.list_(pa.int64())))


def timed_schema(session_gap: float = 1800.0, **settings: object) -> Schema:
    """The schema of a table with times."""
    schema = make_schema(**settings)
    return replace(schema, groups=[replace(g, time="hist_time", session_gap=session_gap) for g in schema.groups])
