"""Encoding as a function of Arrow batches, which runs in whatever engine reads the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from dien_fast.data.checks import check_labels, check_table
from dien_fast.data.columns import Sequences, gather_index, offsets_of
from dien_fast.data.encoding import encode_columns, from_zero
from dien_fast.data.fitting import Encoders
from dien_fast.data.hashing import hash_names
from dien_fast.data.schema import Schema
from dien_fast.data.tables import reading
from dien_fast.models.batches import session_key

# Names that no feature can have, as in a batch's "__row__".
USER_KEY, LIST_KEY = "__user__", "__list__"


class ArrowEncoder:
    """Encodes tables and record batches of clicks: words to ids, numbers to quantiles, times to sessions.

    It keeps no state between batches and can be pickled, so that it runs on many machines. The ids are those of
    :func:`dien_fast.data.prepare`.

    Args:
        schema: what the columns mean.
        encoders: of these columns, for example those that ``prepare`` has fitted.
        require_label: False for rows to predict, which need no label, user or list.

    Attributes:
        encoders: as they were given.
        output_schema: of the encoded rows: the label and each numeric feature as float32, each categorical one as
            int32, each sequence as list of int32, ``NAME.session`` of each group with times (the session of each
            event) as list of int32, and as int64 ``__user__`` and ``__list__``, hashes that are equal for the rows
            of a user or list.

    Example:
        >>> from dien_fast.data import fit_encoders
        >>> table = pa.table({"item": [7, 8], "past": [[8, 9], []], "label": [1, 0]})
        >>> schema = Schema(categorical=["item"], sequences=["past"], min_count=1)
        >>> encoder = ArrowEncoder(schema, fit_encoders(table, schema))
        >>> encoder(table).to_pylist()
        [{'label': 1.0, 'item': 1, 'past': [1, 2]}, {'label': 0.0, 'item': 2, 'past': []}]
    """

    def __init__(self, schema: Schema, encoders: Encoders, *, require_label: bool = True) -> None:
        self.encoders = encoders
        self._schema, self._require_label = schema, require_label
        self._zero_known = [name for name in schema.histories() if encoders.sequence(name).knows_zero()]
        self.output_schema = self._output_schema()

    def _output_schema(self) -> pa.Schema:
        schema = self._schema
        fields: list[tuple[str, pa.DataType]] = []
        if self._require_label:
            fields.append((schema.label, pa.float32()))
        fields += [(name, pa.float32()) for name in schema.numeric]
        fields += [(name, pa.int32()) for name in schema.categorical]
        lists = [*schema.sequences, *self._read_negatives()]
        lists += [session_key(group.name) for group in schema.groups if group.time]
        fields += [(name, pa.list_(pa.int32())) for name in lists]
        if self._require_label:
            named = {USER_KEY: schema.user, LIST_KEY: schema.lists}
            fields += [(key, pa.int64()) for key, column in named.items() if column is not None]
        return pa.schema(fields)

    def _read_negatives(self) -> list[str]:
        reads = self._require_label and self._schema.negatives == "columns"
        return self._schema.negative_features() if reads else []

    def __call__(self, rows: pa.Table | pa.RecordBatch) -> pa.Table:
        """Return the encoded rows, in their order.

        Args:
            rows: with the columns that the schema names, and any others.

        Raises:
            DataError: a column is missing or does not hold what the schema says.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        check_table(table, self._schema, "batch", require_label=self._require_label, zero_known=self._zero_known)
        return self.encode_checked(table, "batch")

    def map(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the encoded rows of batches, as Spark's ``mapInArrow`` wants them.

        Args:
            batches: of rows, as for a call.

        Raises:
            DataError: as a call.
        """
        for batch in batches:
            yield from self(batch).combine_chunks().to_batches()

    def encode_checked(self, table: pa.Table, source: str) -> pa.Table:
        """Return the encoded rows.

        Args:
            table: rows that ``dien_fast.data.checks.check_table`` has seen.
            source: what messages call them.
        """
        schema = self._schema
        found = encode_columns(table, schema, self.encoders, source, read_negatives=bool(self._read_negatives()))
        columns: dict[str, pa.Array] = {}
        if self._require_label:
            with reading(table, schema.label, source) as column:
                columns[schema.label] = pa.array(check_labels(column))
            for key, name in ((USER_KEY, schema.user), (LIST_KEY, schema.lists)):
                if name is not None:
                    with reading(table, name, source) as column:
                        columns[key] = pa.array(hash_names(column, "user" if key == USER_KEY else "list"))
        columns |= {name: pa.array(values) for name, values in found.scalars.items()}
        sessions = {session_key(group.name) for group in schema.groups}
        columns |= {name: _as_list(found.sequences[name], name in sessions) for name in found.sequences}
        arrays = [columns[item.name].cast(item.type) for item in self.output_schema]
        return pa.Table.from_arrays(arrays, schema=self.output_schema)


def _as_list(sequences: Sequences, are_sessions: bool) -> pa.ListArray:
    """Return sequences as lists; sessions are counted from 0 in each, whatever stands before it in the batch."""
    offsets = offsets_of(sequences.lengths)
    values = sequences.values
    if len(values) != offsets[-1] or not np.array_equal(sequences.starts, offsets[:-1]):
        values = values[gather_index(sequences.starts, offsets)]
    if are_sessions:
        values = from_zero(values, offsets)[0]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
