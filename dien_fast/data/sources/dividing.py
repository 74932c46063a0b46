"""The rows of a source, divided into training, validation and test rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dien_fast.data.dataset import ClickDataset
from dien_fast.data.fitting import Encoders, fit_encoders
from dien_fast.data.negatives import NegativeSampler
from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceRows, SourceSettings
from dien_fast.data.splitting import (
    Shares,
    check_split,
    default_split,
    describe_split,
    most_moments,
    split_table,
    split_users,
)
from dien_fast.data.tables import read_table
from dien_fast.errors import DataError


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

    def learn(self, schema: Schema) -> Encoders:
        """Return encoders fitted to the training rows.

        Args:
            schema: that of the parts, or one that lacks some of its features.
        """
        return fit_encoders(self.train, schema, source=self.names[0], checked=self.checked[0])

    def datasets(self, schema: Schema, encoders: Encoders, seed: int) -> list[ClickDataset]:
        """Return the three parts as data sets, checked.

        Args:
            schema: as for :meth:`learn`.
            encoders: that :meth:`learn` returned.
            seed: of the negatives, which come from the training rows.
        """
        negatives = None
        if schema.groups and schema.negatives in ("uniform", "popularity"):
            negatives = NegativeSampler.fit(self.train, schema, encoders, seed=seed)
        parts = zip((self.train, self.valid, self.test), self.names, self.checked, strict=True)
        return [
            ClickDataset(table, schema, encoders, negatives=negatives, checked=checked, source=name)
            for table, name, checked in parts
        ]


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
    parts = list(_split(table, schema, how, Shares.without(1 in given, 2 in given), seed, settings.dataset))
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
        split=describe_split(how, reason, schema, settings.valid, settings.test),
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


def _chosen_split(rows: SourceRows, settings: SourceSettings) -> tuple[str, str]:
    """Return how the rows are divided, and why so."""
    if settings.split is not None:
        return settings.split, "as asked for"
    if rows.split is not None:
        return rows.split
    return default_split(rows.schema)


def _split(
    table: pa.Table, schema: Schema, how: str, shares: Shares, seed: int, source: str
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
    check_split(how, schema)
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
            parts = _split(table, schema, other, Shares(), 0, "table")
            if all(part.num_rows for part in parts):
                return f"{reason}; --split {other} works for this table"
    return reason
