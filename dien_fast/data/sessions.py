"""The times of events, and the sessions into which their pauses divide a history."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import (
    Sequences,
    as_column,
    first_without_number,
    is_text,
    offsets_of,
    row_slices,
    split_words,
    views,
)
from dien_fast.errors import DataError


def check_times(column: pa.Array | pa.ChunkedArray, separator: str) -> None:
    """Refuse times of which one is missing or earlier than the one before it.

    Args:
        column: as for :func:`event_times`.
        separator: as for :func:`event_times`.

    Raises:
        DataError: naming the first row at fault.
    """
    for start, times, lengths in _slices(column, separator):
        row_of = np.repeat(np.arange(start, start + len(lengths)), lengths)
        missing = np.flatnonzero(~np.isfinite(times))
        if len(missing):
            raise DataError(f"expected a time for each event, got none in row {row_of[missing[0]]}")
        earlier = np.flatnonzero((np.diff(times) < 0) & (np.diff(row_of) == 0))
        if len(earlier):
            first = earlier[0]
            raise DataError(
                f"expected the times of a history from the oldest event to the newest, got "
                f"{times[first + 1]:.15g} s behind {times[first]:.15g} s in row {row_of[first]}"
            )


def event_times(column: pa.Array | pa.ChunkedArray, separator: str) -> Sequences:
    """Return the time of each event.

    Args:
        column: ``[B]`` lists of seconds, timestamps or dates, or text of seconds.
        separator: what divides the seconds of text.

    Returns:
        Pieces of ``[N]`` float64 seconds, NaN where one is missing; views of one log stay views of one log.

    Raises:
        DataError: the column holds something else; the message names the row.
    """
    log = views(as_column(column))
    if log is not None:
        whole = pa.LargeListArray.from_arrays(pa.array([0, len(log.values)]), log.values)
        return log._replace(values=event_times(whole, separator).values)
    times, lengths = [np.zeros(0)], [np.zeros(0, np.int64)]
    for _, found, counts in _slices(column, separator):
        times.append(found)
        lengths.append(counts)
    counts = np.concatenate(lengths)
    return Sequences(np.concatenate(times), offsets_of(counts)[:-1], counts)


def session_numbers(times: np.ndarray, gap: float) -> np.ndarray:
    """Return a number for the session of each event, ``[N]`` int32, which grows by 1 with each session.

    Args:
        times: ``[N]`` seconds of histories one behind the other, not decreasing within one.
        gap: seconds; a longer pause begins a new session.

    Example:
        >>> session_numbers(np.array([0, 60, 4000, 4060, 0]), gap=1800).tolist()
        [0, 0, 1, 1, 1]
    """
    # What stands between two histories does not matter: a batch counts each from its own beginning.
    pauses = np.concatenate([np.zeros(min(len(times), 1)), np.diff(times)])
    return np.cumsum(pauses > gap).astype(np.int32)


def _slices(column: pa.Array | pa.ChunkedArray, separator: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the first row of some rows, the times of their events and how many each has."""
    start = 0
    for rows in row_slices(as_column(column)):
        values, counts = split_words(rows, separator)
        kind = values.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            seconds = values.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
            times = seconds.to_numpy(zero_copy_only=False) / 1e6
        elif is_text(rows.type) or pa.types.is_null(kind) or _is_number(kind) or not len(values):
            times = _numbers(values, counts, start)
        else:
            raise DataError(f"expected lists of seconds, timestamps or dates, got lists of {kind} values")
        yield start, times, counts
        start += len(rows)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _numbers(values: pa.Array, counts: np.ndarray, start: int) -> np.ndarray:
    """Return ``[N]`` float64, NaN for nulls; ``start`` is the number of the first row."""
    try:
        # A cast that is safe refuses whole numbers that have no float of their own, such as nanoseconds.
        numbers = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowException:
        first = first_without_number(values)
        row = start + int(np.searchsorted(offsets_of(counts), first, side="right")) - 1
        raise DataError(f"expected seconds, got {values[first].as_py()!r} in row {row}") from None
    return np.array(numbers.to_numpy(zero_copy_only=False), np.float64)
