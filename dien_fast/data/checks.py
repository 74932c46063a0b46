"""Checks of what a table holds, each with a message that names the first row at fault.

Rows are counted from 0, as in pandas and in a batch's ``__row__``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import (
    as_column,
    first_row,
    is_list,
    is_text,
    offsets_of,
    row_slices,
    sequence_lengths,
    split_words,
    to_finite_floats,
    to_floats,
)
from dien_fast.data.notation import check_no_lists_as_text
from dien_fast.data.schema import Group, Schema
from dien_fast.data.sessions import check_times
from dien_fast.data.tables import get_column, reading
from dien_fast.data.vocabulary import PAD
from dien_fast.errors import DataError


def check_table(
    table: pa.Table,
    schema: Schema,
    source: str,
    *,
    require_label: bool = True,
    zero_known: Collection[str] = (),
) -> None:
    """Refuse a table whose values are not what its schema says.

    Done once, on the table as it was read: in its parts a row would have another number.

    Args:
        table: the rows.
        schema: what their columns mean.
        source: what messages call the table.
        require_label: whether there must be labels.
        zero_known: histories in which 0 is known to be an item.

    Raises:
        DataError: naming the table, the column and the first row at fault.
    """
    if require_label:
        with reading(table, schema.label, source) as column:
            check_labels(column)
    for feature in schema.numeric:
        with reading(table, feature, source) as column:
            to_finite_floats(as_column(column))
    for feature in schema.categorical:
        with reading(table, feature, source) as column:
            if is_list(as_column(column).type):
                raise DataError("expected one word a row, got lists")
    for feature in [*schema.sequences, *_present_negatives(table, schema)]:
        with reading(table, feature, source) as column:
            check_no_lists_as_text(column, schema.separator)
            check_words(column, schema.separator)
            ads = [pair.ad for pair in schema.pairs() if pair.pos_hist == feature]
            if ads:
                candidates = [get_column(table, ad, source) for ad in ads]
                check_history(column, schema.separator, candidates, zero_known=feature in zero_known)
    for name in _present(schema.event_times(), table):
        with reading(table, name, source) as column:
            check_times(column, schema.separator)
    for group in schema.groups:
        _check_pairs(table, schema, group, source)


def _present(names: Sequence[str], table: pa.Table) -> list[str]:
    """Return the columns that are there, of those that not every model reads: whoever reads them asks for them."""
    return [name for name in names if name in table.column_names]


def _present_negatives(table: pa.Table, schema: Schema) -> list[str]:
    """Return the columns of negatives, if they are read from the table and not drawn."""
    return _present(schema.negative_features() if schema.negatives == "columns" else [], table)


def _check_pairs(table: pa.Table, schema: Schema, group: Group, source: str) -> None:
    """Refuse sequences of one group that differ in length, after the cut to ``max_length``."""
    negatives = set(_present_negatives(table, schema))
    names = [pair.pos_hist for pair in group.pairs]
    names += [pair.neg_hist for pair in group.pairs if pair.neg_hist in negatives]
    names += _present([group.time] if group.time else [], table)
    longest = schema.max_length or np.iinfo(np.int64).max
    start = 0
    for parts in zip(*(row_slices(as_column(get_column(table, name, source))) for name in names), strict=True):
        lengths = [sequence_lengths(part, schema.separator) for part in parts]
        for name, other in zip(names[1:], lengths[1:], strict=True):
            different = np.flatnonzero(np.minimum(lengths[0], longest) != np.minimum(other, longest))
            if len(different):
                row = different[0]
                raise DataError(
                    f"{source}: columns {names[0]!r} and {name!r} of group {group.name!r} have {lengths[0][row]} "
                    f"and {other[row]} events in row {start + row}, but should describe the same events"
                )
        start += len(parts[0])


def check_labels(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return ``[B]`` float32 labels.

    Raises:
        DataError: a label is missing or neither 0 nor 1.
    """
    if column.null_count:
        raise DataError(f"expected 0 or 1, got no value in row {first_row(pc.is_null(column))}")
    labels = to_floats(column)
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise DataError(f"expected 0 or 1, got {labels[wrong[0]]:g} in row {wrong[0]}")
    return labels.astype(np.float32)


def check_words(column: pa.Array | pa.ChunkedArray, separator: str) -> None:
    """Refuse sequences that hold the word ``__PAD__``, which would be taken for an event.

    Raises:
        DataError: the word is there, or the column holds no sequences.
    """
    start = 0
    for rows in row_slices(as_column(column)):
        padded = _rows_with_pad(rows, separator)
        if padded.any():
            raise DataError(
                f"row {start + np.flatnonzero(padded)[0]} holds the word {PAD!r}; "
                "give the events alone, without padding"
            )
        start += len(rows)


def check_history(
    column: pa.Array | pa.ChunkedArray,
    separator: str,
    candidates: Sequence[pa.ChunkedArray],
    zero_known: bool = False,
) -> None:
    """Refuse a history that is padded with the id 0, which would be taken for events.

    Padding is a 0 at the beginning or end of a history. It is an item nevertheless where the encoders learnt
    it as one, a candidate has it, or it stands between other events.

    Args:
        column: ``[B]`` lists or separated text.
        separator: what divides the words of text.
        candidates: the columns of the candidates that the history belongs to.
        zero_known: whether 0 is known to be an item.

    Raises:
        DataError: the history is padded, or holds no sequences.
    """
    if zero_known:
        return
    zeros = HistoryZeros(separator)
    zeros.add(column)
    for ids in candidates:
        zeros.add_candidates(ids)
    if zeros.problem is not None:
        raise DataError(zeros.problem)


class HistoryZeros:
    """Tells padding with the id 0 from an item of that id, in a history that comes in parts.

    Args:
        separator: what divides the words of text.
    """

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._is_item = False
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """What to say of the first padded row; None where 0 is an item or there is none."""
        return None if self._is_item else self._problem

    def add_candidates(self, column: pa.ChunkedArray) -> None:
        """Look at the candidates of a history: where one of them is 0, that is an item."""
        self._is_item = self._is_item or _has_zero(column)

    def add(self, column: pa.Array | pa.ChunkedArray, before: str = "") -> None:
        """Look at rows.

        Args:
            column: ``[B]`` lists or separated text.
            before: what to put before a message, such as the name of the file.

        Raises:
            DataError: the column holds no sequences.
        """
        start = 0
        for rows in row_slices(as_column(column)):
            if not self._is_item and _may_have_zero(rows, self._separator):
                self._look(rows, start, before)
            start += len(rows)

    def _look(self, rows: pa.Array, start: int, before: str) -> None:
        words, counts = split_words(rows, self._separator)
        zero = _is_zero(words)
        row_of = np.repeat(np.arange(len(counts)), counts)
        earlier = offsets_of(~zero)[:-1] - np.repeat(offsets_of(~zero)[offsets_of(counts)[:-1]], counts)
        events = np.bincount(row_of, weights=~zero, minlength=len(counts)).astype(np.int64)
        self._is_item = bool((zero & (earlier > 0) & (earlier < events[row_of])).any())
        edges = np.flatnonzero(zero)
        if len(edges) and self._problem is None:
            first = edges[0]
            where = "before" if earlier[first] == 0 and events[row_of[first]] else "behind"
            self._problem = (
                f"{before}row {start + row_of[first]} is padded with 0 {where} its events; give the events alone "
                "(or rename the id, if 0 is an item)"
            )


def _rows_with_pad(rows: pa.Array, separator: str) -> np.ndarray:
    """Return ``[B]`` bool: rows that hold the padding word."""
    if is_text(rows.type):
        found = pc.fill_null(pc.match_substring(rows, PAD), False)
        return found.to_numpy(zero_copy_only=False)
    words, counts = split_words(rows, separator)
    if not is_text(words.type):
        return np.zeros(len(rows), bool)
    found = pc.fill_null(pc.equal(words, PAD), False).to_numpy(zero_copy_only=False)
    totals = offsets_of(found)[offsets_of(counts)]
    return np.diff(totals) > 0


def _is_zero(words: pa.Array) -> np.ndarray:
    """Return ``[N]`` bool: words that are the id 0, as a number or as text."""
    if is_text(words.type):
        found = pc.equal(words, "0")
    elif pa.types.is_integer(words.type) or pa.types.is_floating(words.type):
        found = pc.equal(words, pa.scalar(0).cast(words.type))
    else:
        return np.zeros(len(words), bool)
    return pc.fill_null(found, False).to_numpy(zero_copy_only=False)


def _may_have_zero(rows: pa.Array, separator: str) -> bool:
    """Return whether the id 0 may be among the words, without dividing text."""
    if not is_text(rows.type):
        return bool(_is_zero(split_words(rows, separator)[0]).any())
    inside = pc.match_substring(rows, f"{separator}0{separator}")
    edges = pc.or_(pc.starts_with(rows, f"0{separator}"), pc.ends_with(rows, f"{separator}0"))
    return bool(pc.any(pc.or_(pc.or_(edges, pc.equal(rows, "0")), inside)).as_py())


def _has_zero(column: pa.ChunkedArray) -> bool:
    return any(_is_zero(rows).any() for rows in row_slices(as_column(column)))
