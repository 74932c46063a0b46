"""Train, validation and test rows, divided in time or by user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import as_column, codes, first_row, is_text
from dien_fast.data.schema import Schema
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError

# Year, month and day; a time of day may follow.
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"


SPLITS = ("user", "users", "global", "random")
# The columns that a split needs.
NEEDS = {"user": ("user", "time"), "users": ("user",), "global": ("time",), "random": ()}


class Shares(NamedTuple):
    """The shares of the three parts."""

    train: float = 0.8
    valid: float = 0.1
    test: float = 0.1

    @classmethod
    def without(cls, valid: bool, test: bool) -> Shares:
        """Return the shares where validation or test rows are given; theirs stays with the training rows."""
        shares = cls()
        if valid:
            shares = cls(shares.train + shares.valid, 0.0, shares.test)
        if test:
            shares = cls(shares.train + shares.test, shares.valid, 0.0)
        return shares


def default_split(schema: Schema) -> tuple[str, str]:
    """Return how rows are divided unless somebody says, and why so."""
    if schema.time is None:
        return (
            "random",
            "since the schema names no time column: training may know what comes after the test rows",
        )
    if schema.user is None:
        return "global", "since the schema names a time but no user"
    return "user", "since the schema names user and time"


def check_split(how: str, schema: Schema) -> None:
    """Refuse a split that needs a column that the schema does not name.

    Raises:
        DataError: naming it.
    """
    for setting, column in (("user", schema.user), ("time", schema.time)):
        if column is None and setting in NEEDS[how]:
            raise DataError(f"--split {how} needs a {setting} column: name it in the schema as {setting} = ...")


def describe_split(how: str, reason: str, schema: Schema, valid: str | None, test: str | None) -> str:
    """Return a line that says how rows were divided, and why so."""
    if valid is not None and test is not None:
        return f"split: none, since validation and test rows are files ({valid}, {test})"
    meaning = {
        "user": f"each user's own rows in the order of {schema.time!r}",
        "users": "all rows of a user in one part",
        "global": f"all rows in the order of {schema.time!r}",
        "random": "by chance",
    }
    return f"split: {how}, {meaning[how]}, {reason}"


def split_table(
    table: pa.Table,
    how: str = "user",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    user: str = "userId",
    time: str = "timestamp",
    source: str = "table",
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return training, validation and test rows, the earliest first, each in the table's order.

    Rows of equal time (of one user, where split by user) stay together: they go where the middle one of
    them belongs. A split by user trains on some users' rows that are later than other users' test rows;
    a global split does not.

    Args:
        table: the rows.
        how: ``"user"`` divides each user's own rows in time, ``"global"`` all rows at two moments.
        fractions: the three shares, which sum to 1.
        user: column that names the user.
        time: column that orders the rows: numbers, dates, or ISO dates as text.
        source: what error messages call the table.

    Raises:
        DataError: a column is missing or has an empty value, or a time is text but no ISO date.
        ValueError: ``how`` or ``fractions`` are wrong.

    Example:
        >>> table = pa.table({"userId": [1] * 10, "timestamp": range(10)})
        >>> [part.num_rows for part in split_table(table)]
        [8, 1, 1]
    """
    if how not in ("user", "global"):
        raise ValueError(f"how must be 'user' or 'global', got {how!r}")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be three shares that sum to 1, got {tuple(fractions)}")
    _check_sorts_in_time(table, time, source)
    times = _ranks(table, time, source)
    users = _ranks(table, user, source) if how == "user" else np.zeros(len(times), np.int64)
    part = parts_in_time(users, times, fractions)
    train, valid, test = (table.filter(pa.array(part == number)) for number in range(3))
    return train, valid, test


def split_users(
    table: pa.Table,
    user: str,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    source: str = "table",
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return training, validation and test rows that have no user in common, each in the table's order.

    Args:
        table: the rows.
        user: column that names the user.
        fractions: the shares of the users.
        seed: equal seeds choose equal users.
        source: what error messages call the table.

    Raises:
        DataError: the column is missing.

    Example:
        >>> table = pa.table({"user": [1, 1, 2, 3, 3, 4]})
        >>> [sorted(set(part["user"].to_pylist())) for part in split_users(table, "user", (0.5, 0.25, 0.25))]
        [[2, 3], [1], [4]]
    """
    users = codes(get_column(table, user, source))
    total = int(users.max(initial=-1)) + 1
    bounds = np.round(np.cumsum(fractions)[:2] * total).astype(np.int64)
    rank = np.random.default_rng(seed).permutation(total)
    part = np.searchsorted(bounds, rank, side="right")[users]
    train, valid, test = (table.filter(pa.array(part == number)) for number in range(3))
    return train, valid, test


def most_moments(table: pa.Table, user: str = "userId", time: str = "timestamp") -> int:
    """Return at how many different times the user with the most of them has rows.

    Example:
        >>> most_moments(pa.table({"userId": [1, 1, 1, 2], "timestamp": [5, 6, 6, 5]}))
        2
    """
    users, times = _ranks(table, user, "table"), _ranks(table, time, "table")
    moments = np.unique(np.stack([users, times]), axis=1)[0]
    return int(np.unique(moments, return_counts=True)[1].max(initial=0))


def _ranks(table: pa.Table, name: str, source: str) -> np.ndarray:
    """Return ``[rows]`` int64, equal for equal values and rising with them."""
    column = as_column(get_column(table, name, source))
    if column.null_count:
        row = first_row(pc.is_null(column))
        raise DataError(f"{source}: column {name!r}: a split needs a value in every row, row {row} has none")
    try:
        return pc.rank(column, tiebreaker="dense").to_numpy().astype(np.int64)
    except pa.ArrowNotImplementedError:
        raise DataError(f"{source}: column {name!r}: a split needs one value a row, got {column.type}") from None


def _check_sorts_in_time(table: pa.Table, name: str, source: str) -> None:
    """Refuse text whose alphabetic order is not its order in time."""
    column = as_column(get_column(table, name, source))
    if is_text(column.type):
        wrong = pc.invert(pc.match_substring_regex(column, _ISO_DATE))
        if pc.any(wrong).as_py():
            row = first_row(wrong)
            raise DataError(
                f"{source}: column {name!r}: {column[row].as_py()!r} in row {row} does not sort in time as text; "
                "write ISO dates (2024-12-31) or numbers"
            )


def parts_in_time(users: np.ndarray, times: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Return int8 ``[rows]``: 0, 1 or 2, the part that a row's moment falls into among its user's rows.

    Args:
        users: ``[rows]`` int64 of at least 0, equal for the rows of a user.
        times: ``[rows]`` int64 of at least 0, rising with time.
        fractions: the three shares.
    """
    rows = len(users)
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    new_user = np.diff(users, prepend=-1) != 0
    new_moment = new_user | (np.diff(times, prepend=-1) != 0)
    user_of, moment_of = np.cumsum(new_user) - 1, np.cumsum(new_moment) - 1
    user_start, moment_start = np.flatnonzero(new_user), np.flatnonzero(new_moment)
    user_rows = np.diff(user_start, append=rows)
    middle = (moment_start + np.append(moment_start[1:], rows)) / 2
    position = (middle[moment_of] - user_start[user_of]) / user_rows[user_of]
    bounds = np.cumsum(fractions)[:2]
    part = np.empty(rows, np.int8)
    # The sum of shares is rounded; a row exactly on the bound belongs to the later part.
    part[order] = np.searchsorted(bounds - 1e-12, position, side="right")
    return part
