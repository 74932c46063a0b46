"""Columns as Arrow arrays, which encoders and data set read, from whatever the caller has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.errors import DataError

# Rows worked on at once: bounds the memory that splitting text takes, and keeps the 32-bit offsets of
# an Arrow string array from overflowing.
SLICE_ROWS = 1 << 17


def as_column(x: Any) -> pa.Array | pa.ChunkedArray:
    """Return one-dimensional data as an Arrow column.

    Args:
        x: list, numpy array ``[N]`` or ``[N, 1]``, pandas Series or one-column DataFrame, pyarrow array,
            or an object with ``__arrow_c_stream__`` or ``__arrow_c_array__`` (Polars Series).

    Raises:
        DataError: not one-dimensional, or values of different kinds.
    """
    if isinstance(x, pa.Array | pa.ChunkedArray):
        return _plain(x)
    shape = getattr(x, "shape", None)
    if shape is not None and len(shape) == 2 and shape[1] == 1:
        x = np.asarray(x)[:, 0]
    elif shape is not None and len(shape) != 1:
        raise DataError(f"a column must have shape (N,) or (N, 1), got {tuple(shape)}")
    try:
        if isinstance(x, np.ndarray) or hasattr(x, "iloc"):
            # pandas and numpy write a missing value as NaN; Arrow has nulls.
            return _ordered(pa.array(x, from_pandas=True), x)
        if hasattr(x, "__arrow_c_stream__"):
            return _plain(pa.chunked_array(x))
        if hasattr(x, "__arrow_c_array__"):
            return _plain(pa.array(x))
        x = list(x)
        return _ordered(pa.array(x, from_pandas=True), x)
    except DataError:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"a column must hold values of one kind: {first_line(error)}") from None


def codes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return ``[N]`` int64, equal for equal values, numbered by first appearance."""
    encoded = as_column(column).dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        # Arrow does not unify dictionaries that hold nulls.
        encoded = encoded.unify_dictionaries().combine_chunks()
    numbers = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy().astype(np.int64)
    if not encoded.null_count:
        return numbers
    _, first, places = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def _ordered(column: pa.Array | pa.ChunkedArray, values: Any) -> pa.Array | pa.ChunkedArray:
    """Return the column made of Python ``values``, unless they are sets."""
    refuse_sets(column.type, values)
    return _plain(column)


def refuse_sets(kind: pa.DataType, values: Iterable[Any]) -> None:
    """Refuse Python sets, which Arrow takes for lists of type ``kind``.

    Raises:
        DataError: one of the values is a set.
    """
    if is_list(kind) and any(isinstance(value, set) for value in values):
        raise DataError("a set has no order; give a list, whose oldest event comes first")


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the column without dictionaries, runs, views and extension types around its values."""
    if isinstance(column, pa.ChunkedArray):
        chunks = [_plain(chunk) for chunk in column.chunks] or [_plain(pa.array([], column.type))]
        return pa.chunked_array(chunks)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.storage)
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(column))
    if pa.types.is_float16(kind):  # for which Arrow has few functions
        return column.cast(pa.float32())
    if pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    return column.cast(pa.large_string()) if pa.types.is_string_view(kind) else column


def is_list(kind: pa.DataType) -> bool:
    """Return whether ``kind`` is a list of any layout."""
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Return whether ``kind`` is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def row_slices(column: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield the rows in order, ``SLICE_ROWS`` at once; columns of equal length are cut alike."""
    for start in range(0, len(column), SLICE_ROWS):
        part = column.slice(start, SLICE_ROWS)
        yield part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part


def split_words(rows: pa.Array, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Return all words of some sequences, and how many each sequence has.

    A null, an empty text and an empty list are sequences of no words.

    Args:
        rows: ``[B]`` lists, or text.
        separator: what divides the words of text.

    Returns:
        ``[N]`` words one sequence after the other, and ``[B]`` int64 counts that sum to N.

    Raises:
        DataError: neither lists nor text.
    """
    if is_text(rows.type):
        rows = pc.split_pattern(pc.if_else(pc.equal(rows, ""), None, rows), separator)
    elif pa.types.is_null(rows.type) or _holds_only_nan(rows):
        return pa.nulls(0, pa.string()), np.zeros(len(rows), np.int64)
    elif not is_list(rows.type):
        raise DataError(
            f"expected lists, or text in which {separator!r} divides the words, got {rows.type} values"
        )
    counts = pc.fill_null(pc.list_value_length(rows), 0)
    return _plain(rows.flatten()), counts.to_numpy(zero_copy_only=False).astype(np.int64)


def sequence_lengths(rows: pa.Array, separator: str) -> np.ndarray:
    """Return how many words each sequence has: ``[B]`` int64, as :func:`split_words` but without splitting.

    Raises:
        DataError: neither lists nor text.
    """
    if not is_text(rows.type):
        return split_words(rows, separator)[1]
    words = pc.add(pc.count_substring(rows, separator), 1)
    words = pc.if_else(pc.equal(rows, ""), 0, words)
    return pc.fill_null(words, 0).to_numpy(zero_copy_only=False).astype(np.int64)


class Sequences(NamedTuple):
    """Sequences as pieces of one array; the pieces may overlap.

    Attributes:
        values: ``[N]``.
        starts: ``[B]`` int64, where each sequence begins.
        lengths: ``[B]`` int64.
    """

    values: Any
    starts: np.ndarray
    lengths: np.ndarray

    def cut(self, width: int, keep: str) -> Sequences:
        """Return the sequences with at most ``width`` elements, the ``"newest"`` (last) or ``"oldest"``."""
        kept = np.minimum(self.lengths, width)
        starts = self.starts + (self.lengths - kept) if keep == "newest" else self.starts
        return Sequences(self.values, starts, kept)

    def total(self, numbers: np.ndarray) -> int:
        """Return the sum of ``numbers`` ``[N]`` over all elements of all sequences."""
        sums = offsets_of(numbers)
        return int((sums[self.starts + self.lengths] - sums[self.starts]).sum())


def views(column: pa.Array | pa.ChunkedArray) -> Sequences | None:
    """Return the rows of a column of Arrow's list views, which share one array of values; None for other columns.

    Args:
        column: ``[B]``; of one chunk, since the values of several would be several logs.
    """
    if not (pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type)):
        return None
    rows = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Sequences(rows.values, rows.offsets.to_numpy().astype(np.int64), lengths)


class LogHistory(NamedTuple):
    """Which events of a log come before each row.

    Attributes:
        begin: ``[rows]`` int64, the first of them.
        lengths: ``[rows]`` int64, how many.
        views: whether they are to be views of the log.
    """

    begin: np.ndarray
    lengths: np.ndarray
    views: bool

    def of(self, values: pa.Array) -> pa.Array:
        """Return the values ``[events]`` of these events, a list for each row."""
        if self.views:
            return pa.LargeListViewArray.from_arrays(pa.array(self.begin), pa.array(self.lengths), values)
        offsets = offsets_of(self.lengths)
        return pa.LargeListArray.from_arrays(
            pa.array(offsets), values.take(pa.array(gather_index(self.begin, offsets)))
        )


def as_lists(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the column with a copy of its values for each row, where these are views."""
    found = views(column)
    if found is None:
        return column
    offsets = offsets_of(found.lengths)
    index = pa.array(gather_index(found.starts, offsets))
    return pa.LargeListArray.from_arrays(pa.array(offsets), found.values.take(index))


def _holds_only_nan(rows: pa.Array) -> bool:
    """Return whether ``rows`` are floats without a number, as pandas writes a column without values."""
    return pa.types.is_floating(rows.type) and not pc.any(pc.is_finite(rows)).as_py()


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return ``[B + 1]`` int64 offsets, from 0 to N, of sequences with ``[B]`` lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather_index(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the ``[N]`` positions of sequences that begin at ``starts`` and have the given offsets.

    Args:
        starts: ``[B]`` int64, where each sequence begins in the source.
        offsets: ``[B + 1]`` int64 offsets of the sequences in the result.
    """
    shifts = np.repeat(starts - offsets[:-1], np.diff(offsets))
    shifts += np.arange(offsets[-1])
    return shifts


def to_floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a new ``[B]`` float64 array, NaN for nulls.

    Raises:
        DataError: a value is no number; the message names its row.
    """
    try:
        # A cast that is safe refuses whole numbers that have no float of their own.
        numbers = pc.cast(column, pa.float64(), safe=not pa.types.is_integer(column.type))
    except pa.ArrowException:
        if not len(column):
            raise DataError(f"expected numbers, got {column.type} values") from None
        row = first_without_number(column)
        raise DataError(f"expected a number, got {column[row].as_py()!r} in row {row}") from None
    return np.array(numbers.to_numpy(zero_copy_only=False), np.float64)


def first_without_number(column: pa.Array | pa.ChunkedArray) -> int:
    """Return the first row that Arrow does not cast to a number; there must be one."""
    good, bad = 0, len(column)  # the first `good` rows are numbers, the first `bad` are not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            pc.cast(column[good:middle], pa.float64())
            good = middle
        except pa.ArrowException:
            bad = middle
    return good


def to_finite_floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a new ``[B]`` float64 array, NaN for nulls.

    Raises:
        DataError: a value is no finite number; the message names its row.
    """
    numbers = to_floats(column)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise DataError(f"expected finite numbers, got {numbers[infinite[0]]} in row {infinite[0]}")
    return numbers


def count_missing(column: pa.Array | pa.ChunkedArray) -> int:
    """Return how many rows have no value: nulls and, among floats, NaN."""
    return int(pc.sum(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))).as_py() or 0)


def first_row(mask: pa.Array | pa.ChunkedArray) -> int:
    """Return the first row where a bool column is true."""
    return int(pc.index(mask, True).as_py())


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")
