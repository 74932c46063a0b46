"""The rows of a source, divided into training, validation and test rows."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceRows, SourceSettings
from dien_fast.data.splitting import most_moments, split_table, split_users
from dien_fast.data.tables import read_table
from dien_fast.errors import DataError

# The columns that a split needs.
_NEEDS = {"user": ("user", "time"), "users": ("user",), "global": ("time",), "random": ()}
SPLITS = ("user", "users", "global", "random")


class _Shares(NamedTuple):
    train: float = 0.8
    valid: float = 0.1
    test: float = 0.1


@dataclass
class Parts:
    """The rows of a run.

    Attributes:
        train, valid, test: the three parts.
        schema: what their columns mean.
        names: what messages call the three parts.
        split: a line that says how the rows were divided, and why so.
        checked: which of the three were checked, as part of the table that they were divided from.
        best_column: the column with the best prediction that is possible, where it is known.
        best_column_in_time: the same for models that know when the events of a history were.
        notes: a sentence for everything that a reader should know about the rows.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    schema: Schema
    names: tuple[str, str, str]
    split: str = "split: made by the caller"
    checked: tuple[bool, bool, bool] = (False, False, False)
    best_column: str | None = None
    best_column_in_time: str | None = None
    notes: tuple[str, ...] = ()


def divide(rows: SourceRows, settings: SourceSettings, seed: int) -> Parts:
    """Return the parts of a checked table, and the files in place of those that are given.

    Args:
        rows: the table.
        settings: how to divide it, and which parts are files of their own.
        seed: of a random split.

    Raises:
        DataError: the split needs a column that the schema does not name, a part would have no rows, or a file
            cannot be read.
    """
    table, schema = rows.table, rows.schema
    how, reason = _chosen_split(rows, settings)
    given = _given_parts(rows, settings)
    parts = list(_split(table, schema, how, _shares(given), seed, settings.dataset))
    names = [f"{settings.dataset} ({part} rows)" for part in ("training", "validation", "test")]
    for number, (part, name) in given.items():
        parts[number], names[number] = part, name
    if len(given) == 2:
        names[0] = settings.dataset
    for number, name in enumerate(names):
        if parts[number].num_rows == 0:
            # A file that was given in place of a part holds none itself.
            why = "the table has no rows" if number in given else _why_none(table, schema, how)
            raise DataError(f"{name}: there are none; {why}")
    return Parts(
        parts[0],
        parts[1],
        parts[2],
        schema,
        (names[0], names[1], names[2]),
        split=_describe(how, reason, settings, schema),
        checked=(True, 1 not in given, 2 not in given),
        best_column=rows.best_column,
        best_column_in_time=rows.best_column_in_time,
        notes=rows.notes,
    )


def _given_parts(rows: SourceRows, settings: SourceSettings) -> dict[int, tuple[pa.Table, str]]:
    """Return the parts that are not taken from the table, by number, and what messages call them."""
    given = {} if rows.test is None else {2: rows.test}
    for number, path in ((1, settings.valid), (2, settings.test)):
        if path is not None:
            given[number] = (read_table(path, rows.schema), path)
    return given


def _shares(given: Container[int]) -> _Shares:
    """Return the shares of the table that the parts get; that of a given part stays with the training rows."""
    train, valid, test = _Shares()
    if 1 in given:
        train, valid = train + valid, 0.0
    if 2 in given:
        train, test = train + test, 0.0
    return _Shares(train, valid, test)


def _chosen_split(rows: SourceRows, settings: SourceSettings) -> tuple[str, str]:
    """Return how the rows are divided, and why so."""
    if settings.split is not None:
        return settings.split, "as asked for"
    if rows.split is not None:
        return rows.split
    if rows.schema.time is None:
        return (
            "random",
            "since the schema names no time column: training may know what comes after the test rows",
        )
    if rows.schema.user is None:
        return "global", "since the schema names a time but no user"
    return "user", "since the schema names user and time"


def _split(
    table: pa.Table, schema: Schema, how: str, shares: _Shares, seed: int, source: str
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return training, validation and test rows of the given shares."""
    if how == "random":
        order = np.random.default_rng(seed).permutation(table.num_rows)
        first, second = (round(table.num_rows * bound) for bound in (shares.train, shares.train + shares.valid))
        # Each part keeps the table's order.
        parts = (np.sort(part) for part in np.split(order, [first, second]))
        train, valid, test = (table.take(pa.array(part)) for part in parts)
        return train, valid, test
    if shares.train == 1.0:
        return table, table.slice(0, 0), table.slice(0, 0)
    for setting, column in (("user", schema.user), ("time", schema.time)):
        if column is None and setting in _NEEDS[how]:
            raise DataError(f"--split {how} needs a {setting} column: name it in the schema as {setting} = ...")
    if how == "users":
        return split_users(table, schema.user or "", shares, seed, source=source)
    return split_table(table, how, shares, user=schema.user or "", time=schema.time or "", source=source)


def _why_none(table: pa.Table, schema: Schema, how: str) -> str:
    """Return why a split leaves one of the three parts without rows, and which other split does not."""
    if how == "user":
        most = most_moments(table, user=schema.user or "", time=schema.time or "")
        reason = (
            "--split user puts the last tenths of each user's rows aside, but no user has rows at more than "
            f"{most} different {'time' if most == 1 else 'times'}"
        )
    elif how == "users":
        reason = "--split users keeps a tenth of the users apart for each, but the table has too few users"
    elif how == "global":
        reason = (
            f"--split global divides the rows in time, but of {table.num_rows} rows too many have the same time"
        )
    else:
        reason = f"the table has {table.num_rows} rows, too few to divide"
    for other in ("global", "random"):
        if other != how and (other == "random" or schema.time is not None):
            parts = _split(table, schema, other, _Shares(), 0, "table")
            if all(part.num_rows for part in parts):
                return f"{reason}; --split {other} works for this table"
    return reason


def _describe(how: str, reason: str, settings: SourceSettings, schema: Schema) -> str:
    if settings.valid is not None and settings.test is not None:
        return f"split: none, since validation and test rows are files ({settings.valid}, {settings.test})"
    meaning = {
        "user": f"each user's own rows in the order of {schema.time!r}",
        "users": "all rows of a user in one part",
        "global": f"all rows in the order of {schema.time!r}",
        "random": "by chance",
    }
    return f"split: {how}, {meaning[how]}, {reason}"
