"""Clicks made up so that the best reachable AUC is known.

A user's interest is a topic that drifts: a hidden Markov chain. Every click is an item of the topic of its
moment, except some that are any item. The label depends on whether the candidate's topic is the topic of
the last moment, so a model must find out which items belong together and trust recent clicks most. The
exact probability of a click, given the row's history and candidate, follows from the forward algorithm
(Rabiner, "A tutorial on hidden Markov models", 1989, section III.A).

Users often come back with another interest than they left with: most topics change over a long pause, and few
pauses are long where the topic stays. So the times of the clicks tell more than their order, and with them the
probability of a click is another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import as_lists, gather_index, offsets_of
from dien_fast.data.schema import Group, Pair, Schema
from dien_fast.data.tables import get_column

_ROWS_PER_USER = 8
# Probability of a click where the candidate has the current topic, and where it has another.
_CLICK_MATCH, _CLICK_OTHER = 0.92, 0.08
# The share of candidates drawn from the current topic; the others are drawn from all items.
_ON_TOPIC = 0.5
# How often a pause is long where the topic changes over it, and where it stays.
_LONG_CHANGED, _LONG_SAME = 0.9, 0.1
# Seconds of short and of long pauses, from least to most; sessions of half an hour's gap tell them apart.
_SHORT, _LONG = (5, 600), (3600, 3 * 86400)
_FIRST_CLICK = 1_600_000_000


@dataclass(frozen=True)
class SyntheticClicks:
    """Made-up clicks and what can be known about them.

    Attributes:
        table: userId, timestamp, label, itemId, histItemIds, histTimes (seconds), and bestProbability and
            bestProbabilityInTime, which are no features.
        best_probability: ``[rows]`` float64, P(click | history, candidate); no model can rank better that does not
            know the times.
        best_probability_in_time: ``[rows]`` float64, P(click | history, times, candidate).
        schema: the meaning of the columns.
    """

    table: pa.Table
    best_probability: np.ndarray
    best_probability_in_time: np.ndarray
    schema: Schema


def synthetic_clicks(
    rows: int = 50_000,
    items: int = 80,
    topics: int = 8,
    length: int = 20,
    drift: float = 0.15,
    noise: float = 0.1,
    seed: int = 0,
) -> SyntheticClicks:
    """Return made-up clicks with drifting interests.

    Args:
        rows: number of rows; every user has eight (the last one perhaps fewer).
        items: number of items, spread evenly over the topics.
        topics: number of topics, at least 2 and at most ``items``.
        length: the most events in a history; some are shorter, some empty.
        drift: probability in [0, 1] that the topic changes from one click to the next.
        noise: probability in [0, 1] that a click is any item.
        seed: equal seeds give equal clicks.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> clicks = synthetic_clicks(rows=1000)
        >>> clicks.table.num_rows, clicks.best_probability.shape
        (1000, (1000,))
    """
    _check_arguments(rows, items, topics, length, drift, noise)
    rng = np.random.default_rng(seed)
    users = -(-rows // _ROWS_PER_USER)
    # An item's number says nothing about its topic.
    topic_of = rng.permutation(np.arange(items) % topics)
    steps = length + length // 2
    states, clicks = _chains(rng, users, steps, topic_of, topics, drift, noise)

    # A user's rows are moments of one chain; before moment t the user has clicked t times.
    moments = np.sort(rng.integers(0, steps + 1, (users, _ROWS_PER_USER)), axis=1).ravel()[:rows]
    user_of = np.repeat(np.arange(users), _ROWS_PER_USER)[:rows]
    current = states[user_of, np.maximum(moments - 1, 0)]
    lengths = np.minimum(moments, length)
    offsets = offsets_of(lengths)
    events = gather_index(user_of * steps + moments - lengths, offsets)
    history = clicks.ravel()[events]
    # Of a generator of their own, so that rows and labels are those of clicks without times.
    long, times = _pauses(np.random.default_rng([seed, 1]), states)

    candidates = _items_of(rng, current, topic_of, topics)
    candidates = np.where(rng.random(rows) < _ON_TOPIC, candidates, rng.integers(0, items, rows))
    match = topic_of[candidates] == current
    labels = rng.random(rows) < np.where(match, _CLICK_MATCH, _CLICK_OTHER)
    known = (topic_of[history], offsets, topic_of)
    best, best_in_time = (
        click_probability(topic_belief(*known, change, noise), topic_of[candidates], topic_of)
        for change in (drift, _change_given_pause(drift, long).ravel()[events])
    )

    table = pa.table(
        {
            "userId": pa.array(user_of),
            "timestamp": pa.array(moments),
            "label": pa.array(labels.astype(np.int64)),
            "itemId": pa.array(candidates + 1),
            "histItemIds": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(history + 1)),
            "histTimes": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(times.ravel()[events])),
            "bestProbability": pa.array(best),
            "bestProbabilityInTime": pa.array(best_in_time),
        }
    )
    schema = Schema(
        user="userId",
        time="timestamp",
        categorical=["itemId"],
        sequences=["histItemIds"],
        groups=[Group("items", [Pair("itemId", "histItemIds")], time="histTimes")],
        max_length=length,
    )
    return SyntheticClicks(table, best, best_in_time, schema)


def _check_arguments(rows: int, items: int, topics: int, length: int, drift: float, noise: float) -> None:
    for name, value in (("rows", rows), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 2 <= topics <= items:
        raise ValueError(f"topics must be in [2, items] = [2, {items}], got {topics}")
    for name, share in (("drift", drift), ("noise", noise)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")


def shuffle_histories(table: pa.Table, column: str = "histItemIds", seed: int = 0) -> pa.Table:
    """Return the table with the events of every history in random order.

    Args:
        table: any table with a list column.
        column: the list column to shuffle.
        seed: equal seeds give equal orders.

    Raises:
        DataError: there is no such column.
    """
    history = as_lists(get_column(table, column, "table"))
    if isinstance(history, pa.ChunkedArray):
        history = history.combine_chunks()
    values = history.flatten()
    lengths = np.diff(history.offsets.to_numpy())
    keys = np.random.default_rng(seed).random(len(values))
    order = np.lexsort((keys, np.repeat(np.arange(len(lengths)), lengths)))
    shuffled = pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths)), values.take(pa.array(order)))
    return table.set_column(table.column_names.index(column), column, shuffled)


def topic_belief(
    topics: np.ndarray, offsets: np.ndarray, topic_of: np.ndarray, drift: float | np.ndarray, noise: float
) -> np.ndarray:
    """Return ``[B, K]`` P(current topic | history): the forward algorithm from a uniform start.

    Args:
        topics: ``[N]`` the topic of every clicked item.
        offsets: ``[B + 1]`` int64 offsets of the histories.
        topic_of: ``[items]`` the topic of every item.
        drift: probability that the topic changes between two clicks: a number, or for each click ``[N]`` that it
            changed since the one before.
        noise: probability that a click is any item.
    """
    sizes = np.bincount(topic_of)
    count, items = len(sizes), len(topic_of)
    # click_given[z, k] = P(an item, one of topic k | current topic z)
    click_given = np.full((count, count), noise / items) + np.diag((1 - noise) / sizes)
    belief = np.full((len(offsets) - 1, count), 1 / count)
    lengths, drift = np.diff(offsets), np.broadcast_to(drift, len(topics))
    for step in range(int(lengths.max(initial=0))):
        there = np.flatnonzero(lengths > step)
        now = belief[there]
        if step:
            change = drift[offsets[there] + step][:, None]
            now = now * (1 - change) + (1 - now) * change / (count - 1)
        now = now * click_given[:, topics[offsets[there] + step]].T
        belief[there] = now / now.sum(axis=1, keepdims=True)
    return belief


def click_probability(belief: np.ndarray, candidate_topics: np.ndarray, topic_of: np.ndarray) -> np.ndarray:
    """Return ``[B]`` P(click | history, candidate) from P(current topic | history) ``[B, K]``."""
    sizes, items = np.bincount(topic_of), len(topic_of)
    rows = np.arange(len(belief))
    # What the candidate itself says: it was drawn from the current topic with probability _ON_TOPIC.
    weights = belief * (1 - _ON_TOPIC) / items
    weights[rows, candidate_topics] += belief[rows, candidate_topics] * _ON_TOPIC / sizes[candidate_topics]
    match = weights[rows, candidate_topics] / weights.sum(axis=1)
    return match * _CLICK_MATCH + (1 - match) * _CLICK_OTHER


def _chains(
    rng: np.random.Generator,
    users: int,
    steps: int,
    topic_of: np.ndarray,
    topics: int,
    drift: float,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[users, steps]`` topics and ``[users, steps]`` clicked items."""
    moves = rng.integers(1, topics, (users, steps)) * (rng.random((users, steps)) < drift)
    moves[:, 0] = rng.integers(0, topics, users)
    states = np.cumsum(moves, axis=1) % topics
    clicks = _items_of(rng, states.ravel(), topic_of, topics).reshape(users, steps)
    anything = rng.random((users, steps)) < noise
    return states, np.where(anything, rng.integers(0, len(topic_of), (users, steps)), clicks)


def _pauses(rng: np.random.Generator, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the pause before each click is long, and the time of each in seconds: ``[users, steps]``."""
    changed = np.diff(states, axis=1, prepend=states[:, :1]) != 0
    long = rng.random(states.shape) < np.where(changed, _LONG_CHANGED, _LONG_SAME)
    pauses = np.where(long, rng.integers(*_LONG, states.shape), rng.integers(*_SHORT, states.shape))
    return long, _FIRST_CLICK + np.cumsum(pauses, axis=1)


def _change_given_pause(drift: float, long: np.ndarray) -> np.ndarray:
    """Return P(the topic changed | whether the pause was long), of the shape of ``long``, by Bayes' rule."""
    changed = drift * np.where(long, _LONG_CHANGED, 1 - _LONG_CHANGED)
    return changed / (changed + (1 - drift) * np.where(long, _LONG_SAME, 1 - _LONG_SAME))


def _items_of(rng: np.random.Generator, states: np.ndarray, topic_of: np.ndarray, topics: int) -> np.ndarray:
    """Return an item of each topic in ``states`` ``[N]``."""
    by_topic = np.argsort(topic_of, kind="stable")
    sizes = np.bincount(topic_of, minlength=topics)
    return by_topic[offsets_of(sizes)[states] + rng.integers(0, sizes[states])]
