"""The rows of a source, divided into training, validation and test rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceRows, SourceSettings
from dien_fast.data.splitting import most_moments, split_table
from dien_fast.data.tables import read_table
from dien_fast.errors import DataError

SPLITS = ("user", "global", "random")


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
    how = settings.split or _best_split(schema)
    parts = list(_split(table, schema, how, _shares(settings), seed, settings.dataset))
    names = [f"{settings.dataset} ({part} rows)" for part in ("training", "validation", "test")]
    files = {number: path for number, path in ((1, settings.valid), (2, settings.test)) if path is not None}
    for number, path in files.items():
        parts[number], names[number] = read_table(path, schema), path
    if len(files) == 2:
        names[0] = settings.dataset
    for number, name in enumerate(names):
        if parts[number].num_rows == 0:
            # A file that was given in place of a part holds none itself.
            reason = "the table has no rows" if number in files else _why_none(table, schema, how)
            raise DataError(f"{name}: there are none; {reason}")
    return Parts(
        parts[0],
        parts[1],
        parts[2],
        schema,
        (names[0], names[1], names[2]),
        split=_describe(how, settings, schema),
        checked=(True, 1 not in files, 2 not in files),
        best_column=rows.best_column,
        best_column_in_time=rows.best_column_in_time,
    )


def _shares(settings: SourceSettings) -> _Shares:
    """Return the shares of the table that the parts get; what a file provides stays with the training rows."""
    train, valid, test = _Shares()
    if settings.valid is not None:
        train, valid = train + valid, 0.0
    if settings.test is not None:
        train, test = train + test, 0.0
    return _Shares(train, valid, test)


def _best_split(schema: Schema) -> str:
    if schema.time is None:
        return "random"
    return "global" if schema.user is None else "user"


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
        if column is None and (how == "user" or setting == "time"):
            raise DataError(f"--split {how} needs a {setting} column: name it in the schema as {setting} = ...")
    return split_table(table, how, shares, user=schema.user or "", time=schema.time or "", source=source)


def _why_none(table: pa.Table, schema: Schema, how: str) -> str:
    """Return why a split leaves one of the three parts without rows, and which other split does not."""
    if how == "user":
        most = most_moments(table, user=schema.user or "", time=schema.time or "")
        reason = (
            "--split user puts the last tenths of each user's rows aside, but no user has rows at more than "
            f"{most} different {'time' if most == 1 else 'times'}"
        )
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


def _describe(how: str, settings: SourceSettings, schema: Schema) -> str:
    if settings.valid is not None and settings.test is not None:
        return f"split: none, since validation and test rows are files ({settings.valid}, {settings.test})"
    meaning = {
        "user": f"each user's own rows in the order of {schema.time!r}",
        "global": f"all rows in the order of {schema.time!r}",
        "random": "by chance",
    }
    line = f"split: {how}, {meaning[how]}"
    if settings.split is not None:
        return f"{line}, as asked for"
    if schema.time is None:
        return f"{line}, since the schema names no time column: training may know what comes after the test rows"
    if schema.user is None:
        return f"{line}, since the schema names a time but no user"
    return f"{line}, since the schema names user and time"
