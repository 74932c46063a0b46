"""Columns of a table as numbers and ids, in numpy arrays; every path from words to batches comes through here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import Sequences, as_column, count_missing, gather_index, offsets_of
from dien_fast.data.encoders import CategoryEncoder, SequenceEncoder
from dien_fast.data.fitting import Encoders
from dien_fast.data.schema import Group, Schema
from dien_fast.data.sessions import event_times, session_numbers
from dien_fast.data.tables import reading
from dien_fast.errors import DataError
from dien_fast.models.batches import session_key
from dien_fast.progress import step

# Scalars by name, and sequences as (values, offsets) by name.
Gathered = tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]


class UnknownWords(NamedTuple):
    """How many words of a column an encoder does not know; rows without a word do not count.

    Attributes:
        words: how many words the column has.
        unknown: how many of them are unknown.
        training: the share in [0, 1] that was unknown in the rows the encoder was fitted on, or None.

    Example:
        >>> str(UnknownWords(words=50, unknown=3, training=0.012))
        '6.0 % of 50 words are unknown (1.2 % in training)'
    """

    words: int
    unknown: int
    training: float | None = None

    @property
    def share(self) -> float:
        """The share of unknown words, in [0, 1]; 0 where there are no words."""
        return self.unknown / self.words if self.words else 0.0

    def __str__(self) -> str:
        """Return the share as a clause."""
        before = "" if self.training is None else f" ({100 * self.training:.1f} % in training)"
        return f"{100 * self.share:.1f} % of {self.words:,} words are unknown{before}"


@dataclass
class EncodedColumns:
    """The features of some rows.

    Attributes:
        scalars: float32 ``[B]`` for each numeric feature, int64 ids ``[B]`` for each categorical one.
        sequences: int32 ids for each sequence, and for the key of each group's sessions the session of each
            event; the sequences of a group share one array of starts.
        widths: the most events of each sequence.
        unknown: how many words of each column the encoders do not know.
    """

    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    sequences: dict[str, Sequences] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, UnknownWords] = field(default_factory=dict)

    def note_unknown(
        self, feature: str, encoder: CategoryEncoder | SequenceEncoder, words: int, unknown: int
    ) -> None:
        """Record how many words of a column are unknown."""
        training = None if encoder.coverage_ is None else encoder.coverage_.unknown
        self.unknown[feature] = UnknownWords(words, unknown, training)


def encode_columns(
    table: pa.Table, schema: Schema, encoders: Encoders, source: str, *, read_negatives: bool
) -> EncodedColumns:
    """Return the features of a table, checked by ``dien_fast.data.checks.check_table``.

    Args:
        table: the rows.
        schema: what the columns mean.
        encoders: of these columns.
        source: what messages call the table.
        read_negatives: whether to read the columns of negatives.

    Raises:
        DataError: a column is missing or does not hold what the schema says.
    """
    found = EncodedColumns()
    for feature in schema.numeric:
        with reading(table, feature, source) as column:
            found.scalars[feature] = encoders.numeric(feature).transform(column)
        step()
    for feature in schema.categorical:
        with reading(table, feature, source) as column:
            encoder = encoders.category(feature)
            found.scalars[feature] = encoder.transform(column)
            missing = count_missing(as_column(column))
            unknown = int(np.count_nonzero(found.scalars[feature] == encoder.vocabulary_.unknown))
            found.note_unknown(feature, encoder, table.num_rows - missing, unknown - missing)
        step()
    for feature in [*schema.sequences, *(schema.negative_features() if read_negatives else [])]:
        with reading(table, feature, source) as column:
            words = encoders.sequence(feature)
            sequences = words.transform_sequences(column)
            unknown = sequences.total(sequences.values == words.vocabulary_.unknown)
            found.sequences[feature], found.widths[feature] = sequences, words.max_length()
            found.note_unknown(feature, words, int(sequences.lengths.sum()), unknown)
        step()
    _share_starts(found, schema, read_negatives)
    for group in schema.groups:
        if group.time:
            _divide_into_sessions(found, table, group, schema, encoders, source)
            step()
    return found


def _share_starts(found: EncodedColumns, schema: Schema, read_negatives: bool) -> None:
    """Let the sequences of a group share one array of starts, so that a batch finds their events once."""
    for group in schema.groups:
        names = [pair.pos_hist for pair in group.pairs]
        if read_negatives:
            names += [pair.neg_hist for pair in group.pairs]
        first = found.sequences[names[0]]
        for name in names[1:]:
            other = found.sequences[name]
            if not np.array_equal(first.lengths, other.lengths):
                raise DataError(
                    f"the encoders of {names[0]!r} and {name!r} keep different numbers of events, "
                    f"{found.widths[names[0]]} and {found.widths[name]}"
                )
            if np.array_equal(first.starts, other.starts):
                found.sequences[name] = first._replace(values=other.values)


def _divide_into_sessions(
    found: EncodedColumns, table: pa.Table, group: Group, schema: Schema, encoders: Encoders, source: str
) -> None:
    """Number the sessions of the events that are kept of a group's histories."""
    history = group.pairs[0].pos_hist
    encoder, events = encoders.sequence(history), found.sequences[history]
    with reading(table, group.time, source) as column:
        times = event_times(column, schema.separator).cut(encoder.max_length(), encoder.keep)
        if not np.array_equal(times.lengths, events.lengths):
            raise DataError(f"expected a time for each event of {history!r}")
    sessions = times._replace(values=session_numbers(times.values, group.session_gap))
    if np.array_equal(sessions.starts, events.starts):
        sessions = events._replace(values=sessions.values)
    found.sequences[session_key(group.name)] = sessions
    found.widths[session_key(group.name)] = found.widths[history]


def gather(scalars: Mapping[str, np.ndarray], sequences: Mapping[str, Sequences], rows: np.ndarray) -> Gathered:
    """Return the given rows of columns.

    Args:
        scalars: numbers, and ids of int32 or int64.
        sequences: ids of int32; those that share an array of starts also share their lengths.
        rows: ``[B]`` int64, in any order.

    Returns:
        Numbers ``[B]`` and int64 ids ``[B]``, and for each sequence int64 ids ``[N]`` and offsets ``[B + 1]``.
    """
    found = {name: values[rows] for name, values in scalars.items()}
    for name, values in found.items():
        if values.dtype == np.int32:
            found[name] = values.astype(np.int64)
    places: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    gathered: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (values, starts, lengths) in sequences.items():
        if id(starts) not in places:
            offsets = offsets_of(lengths[rows])
            places[id(starts)] = (gather_index(starts[rows], offsets), offsets)
        index, offsets = places[id(starts)]
        gathered[name] = (values[index].astype(np.int64), offsets)
    return found, gathered


def from_zero(sessions: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sessions ``[N]`` of histories counted from 0 for the oldest event of each, and their offsets."""
    lengths = np.diff(offsets)
    filled = lengths > 0
    return sessions - np.repeat(sessions[offsets[:-1][filled]], lengths[filled]), offsets
