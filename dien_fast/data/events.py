"""Logs of events (user, item, time), and the table of clicks that predicting the next event needs.

The task is that of the DIEN paper (arXiv 1809.03672, section 5.1): given what a user did before, tell the item
that came next from items that were drawn. :func:`next_clicks` with ``first=None, by="popularity"`` and
:func:`dien_fast.data.split_users` do what the official code does (mouna99/dien, commit 1f314d1), but for what
stands in brackets:

- ``script/process_data.py``, ``manual_join``: a user's reviews are sorted by time, ties in the file's order. For
  each review one item is drawn from the list of all reviews, so by popularity, until it is another item than the
  review's. [Here it is none of the user's items.] The drawn row stands before the true one.
- ``process_meta``: the category of an item is the last name of its first path; ``default_cat`` where it has none.
- ``split_test`` and ``script/local_aggretor.py``: only each user's last review becomes samples; the reviews before
  it are their history, and users with one review give none.
- ``script/split_by_user.py``: one user in ten is a test user. [Here another tenth validates.]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import LogHistory, as_column, codes
from dien_fast.data.schema import Group, Pair, Schema
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError

DRAWS = ("uniform", "popularity")
# A negative is drawn again where the user has the item. After so many rounds the rest is chosen from a list of
# what the user does not have, which costs a pass over the catalogue for each.
_ROUNDS = 32


@dataclass(frozen=True)
class Events:
    """What users did, sorted by user and time; events of one moment keep the order of their source.

    Attributes:
        table: the events, with the columns below and any others.
        user: column that names the user.
        item: column that names the item.
        time: column that orders a user's events, or None where the rows are in order already.
        item_columns: columns that say more about the item, such as its category.
        user_columns: columns that say more about the user.
        numeric: those of ``user_columns`` that are numbers.
        session_gap: seconds; a longer pause between two events of a user begins a new session.
        source: what messages call the events, for example a path.
        notes: a sentence for everything that a reader should know about the file.
        settings: those of the :class:`Schema` of the clicks, such as ``min_count``, that are not its defaults.
    """

    table: pa.Table
    user: str = "user"
    item: str = "item"
    time: str | None = "time"
    item_columns: Sequence[str] = ()
    user_columns: Sequence[str] = ()
    numeric: Sequence[str] = ()
    session_gap: float = Group.session_gap
    source: str = "events"
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.user, self.item, *([self.time] if self.time else [])):
            column = get_column(self.table, name, self.source)
            if column.null_count:
                row = int(pc.index(pc.is_null(column), True).as_py())
                raise DataError(f"{self.source}: column {name!r}: an event needs a value, row {row} has none")
        for name in (*self.item_columns, *self.user_columns):
            get_column(self.table, name, self.source)

    def sorted(self) -> Events:
        """Return the events sorted by user, in order of first appearance, and time."""
        users = codes(self.table[self.user])
        keys = [users]
        if self.time is not None:
            keys.insert(0, _ranks(self.table[self.time], self.time, self.source))
        order = np.lexsort(keys)
        if (np.diff(order) == 1).all():
            return self
        return replace(self, table=self.table.take(pa.array(order)))


@dataclass(frozen=True)
class NextClicks:
    """The clicks of :func:`next_clicks` and what was left out on the way.

    Attributes:
        table: label (1 for the true item, 0 for a drawn one), event (the number of the event that is predicted),
            the user, the time, the item with its columns, and time, item and its columns of the events before,
            oldest first, in ``hist_`` and the name of each of these columns.
        schema: what the columns mean.
        notes: a sentence for everything that a reader should know: users left out, equal times, drawn items.
    """

    table: pa.Table
    schema: Schema
    notes: tuple[str, ...]


def next_clicks(
    events: Events,
    *,
    first: int | None = None,
    negatives: int = 1,
    by: str = "uniform",
    max_length: int | None = 50,
    seed: int = 0,
    views: bool = False,
) -> NextClicks:
    """Make a table of clicks: which item came next, told from items that were drawn.

    Args:
        events: the log; it is sorted here.
        first: the first event of a user to predict, counted from 1 and at least 2, as the first has no history;
            every later event is predicted too. None predicts each user's last event alone.
        negatives: items drawn for every true one; none of them is an item of the user.
        by: ``"uniform"`` draws every item of the log equally often, ``"popularity"`` as often as it has events.
        max_length: events kept of a longer history, the newest; None keeps all.
        seed: equal seeds draw equal items.
        views: give the histories as views of the log (Arrow's large_list_view) instead of copies. They take the
            memory of one log, however many rows there are, but not every library reads them.

    Returns:
        The rows, sorted by user and time, the drawn items before the true one.

    Raises:
        DataError: no user has enough events, or a user has every item there is.
        ValueError: an argument out of its range.

    Example:
        >>> log = pa.table({"user": ["a", "a", "a", "b", "b"], "item": [1, 2, 3, 4, 1], "time": [1, 2, 3, 1, 2]})
        >>> clicks = next_clicks(Events(log), seed=1)
        >>> clicks.table.select(["label", "user", "item", "hist_item"]).to_pylist()[1]
        {'label': 1, 'user': 'a', 'item': 3, 'hist_item': [1, 2]}
    """
    if first is not None and first < 2:
        raise ValueError(f"first must be at least 2, as a user's first event has no history, got {first}")
    if negatives < 1:
        raise ValueError(f"negatives must be at least 1, got {negatives}")
    if by not in DRAWS:
        raise ValueError(f"by must be one of {', '.join(DRAWS)}, got {by!r}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1 or None, got {max_length}")
    _check_names(events)
    events = events.sorted()
    user = codes(events.table[events.user])
    start = np.flatnonzero(np.diff(user, prepend=-1))
    count = np.diff(start, append=len(user))
    position = np.arange(len(user)) - np.repeat(start, count)
    last = position + 1 == np.repeat(count, count)
    true = np.flatnonzero(position >= first - 1 if first is not None else last & (position > 0))
    if not len(true):
        raise DataError(
            f"{events.source}: no user has {first or 2} events or more, so there is nothing to predict; "
            f"{len(start)} users have {len(user)} events"
        )
    item = codes(events.table[events.item])
    drawn = _draw(user, item, user[true], negatives, by, seed, events)
    # The event of every row: where its user, time and history come from, and the event that shows its item.
    at = np.repeat(true, negatives + 1)
    shown = np.empty(len(item), np.int64)
    shown[item[::-1]] = np.arange(len(item))[::-1]
    of_item = np.hstack([shown[drawn], true[:, None]]).ravel()
    label = np.tile(np.append(np.zeros(negatives, np.int64), 1), len(true))

    begin = at - position[at]
    if max_length is not None:
        begin = np.maximum(begin, at - max_length)
    table = _table(events, label, at, of_item, LogHistory(begin, at - begin, views))
    return NextClicks(table, _schema(events, max_length), _notes(events, first, count, user, by))


def _check_names(events: Events) -> None:
    """Refuse columns whose names those of the clicks take."""
    described = (events.item, *events.item_columns)
    given = [*described, events.user, *events.user_columns, *([events.time] if events.time else [])]
    made = {"label", "event", *(f"hist_{name}" for name in given)}
    for name in given:
        if name in made:
            raise DataError(
                f"{events.source}: column {name!r} must have another name, as the clicks have one of it"
            )


def _ranks(column: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    """Return ``[N]`` int64 that rise with the times."""
    column = as_column(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        row = int(np.argmin(np.asarray(pc.match_substring_regex(column, r"^\d+$"))))
        raise DataError(
            f"{source}: column {name!r}: times must be numbers or dates, got text: {column[row].as_py()!r} "
            f"in row {row}"
        )
    return pc.rank(column, tiebreaker="dense").to_numpy().astype(np.int64)


def _draw(
    user: np.ndarray, item: np.ndarray, of: np.ndarray, negatives: int, by: str, seed: int, events: Events
) -> np.ndarray:
    """Return ``[rows, negatives]`` items that the users ``of`` ``[rows]`` do not have.

    Args:
        user: ``[N]`` user of every event.
        item: ``[N]`` item of every event.
        of: ``[rows]`` users to draw for.
        negatives: how many for each.
        by: uniform over items, or over events.
        seed: of the draws.
        events: for messages.
    """
    items = int(item.max()) + 1
    own = np.unique(user * items + item)
    owned = np.bincount(own // items, minlength=int(user.max()) + 1)
    if owned[of].max() == items:
        name = events.table[events.user][int(np.flatnonzero(user == of[np.argmax(owned[of])])[0])].as_py()
        raise DataError(f"{events.source}: user {name!r} has all {items} items, so no other can be drawn")
    rng = np.random.default_rng(seed)

    def draw(number: int) -> np.ndarray:
        return rng.integers(0, items, number) if by == "uniform" else item[rng.integers(0, len(item), number)]

    users = np.repeat(of, negatives)
    drawn = draw(len(users))
    pending = np.arange(len(users))
    for _ in range(_ROUNDS):
        key = users[pending] * items + drawn[pending]
        found = np.searchsorted(own, key)
        pending = pending[own[np.minimum(found, len(own) - 1)] == key]
        if not len(pending):
            break
        drawn[pending] = draw(len(pending))
    else:
        weights = np.ones(items) if by == "uniform" else np.bincount(item, minlength=items).astype(float)
        for place in pending:
            free = weights.copy()
            free[own[np.searchsorted(own, users[place] * items) :][: owned[users[place]]] % items] = 0
            drawn[place] = rng.choice(items, p=free / free.sum())
    return drawn.reshape(len(of), negatives)


def _table(
    events: Events, label: np.ndarray, at: np.ndarray, of_item: np.ndarray, history: LogHistory
) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"label": pa.array(label), "event": pa.array(at)}
    for name in (events.user, *([events.time] if events.time else []), *events.user_columns):
        columns[name] = events.table[name].take(pa.array(at))
    for name in (events.item, *events.item_columns):
        values = events.table[name].combine_chunks()
        columns[name] = values.take(pa.array(of_item))
        columns[f"hist_{name}"] = history.of(values)
    if events.time is not None:
        columns[f"hist_{events.time}"] = history.of(events.table[events.time].combine_chunks())
    return pa.table(columns)


def _schema(events: Events, max_length: int | None) -> Schema:
    described = [events.item, *events.item_columns]
    schema = Schema(
        user=events.user,
        time=events.time,
        lists="event",
        numeric=list(events.numeric),
        categorical=[*described, *(name for name in events.user_columns if name not in events.numeric)],
        sequences=[f"hist_{name}" for name in described],
        groups=[
            Group(
                "events",
                [Pair(name, f"hist_{name}") for name in described],
                time=f"hist_{events.time}" if events.time else "",
                session_gap=events.session_gap,
            )
        ],
    )
    return Schema.from_dict(schema.to_dict() | dict(events.settings) | {"max_length": max_length}, events.source)


def _notes(events: Events, first: int | None, count: np.ndarray, user: np.ndarray, by: str) -> tuple[str, ...]:
    notes = list(events.notes)
    short = int((count < (first or 2)).sum())
    if short:
        notes.append(
            f"{short:,} of {len(count):,} users have fewer than {first or 2} events and are left out; "
            "their items can still be drawn"
        )
    if events.time is not None:
        times = _ranks(events.table[events.time], events.time, events.source)
        same = (np.diff(times) == 0) & (np.diff(user) == 0)
        tied = np.append(same, False) | np.append(False, same)
        if tied.any():
            notes.append(
                f"{tied.mean():.0%} of the events share their user's moment with another; they keep the order of "
                "their source"
            )
    return tuple(notes)
