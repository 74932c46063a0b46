"""From raw words of users and their candidates to what a model's ``score_candidates`` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dien_fast.data import read_table
from dien_fast.data.columns import as_column, is_list, offsets_of, split_words
from dien_fast.data.tables import no_column
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged
from dien_fast.training.plain import plain_candidates, plain_user

if TYPE_CHECKING:
    from dien_fast.data import Schema
    from dien_fast.training.runs import Run

_USERS = "user_table"
_ITEMS = "items"
# Features of users by name, of candidates by name, and where each user's candidates begin.
_Encoded = tuple[dict[str, Tensor | Ragged], dict[str, Tensor], np.ndarray]


class Request(NamedTuple):
    """Encoded users and candidates.

    Attributes:
        user: the features of U users, as a batch.
        candidates: the features that are the candidate's ``[C]``.
        offsets: ``[U + 1]`` int64: user ``u`` has candidates ``offsets[u]`` to ``offsets[u + 1]``.
        unknown: how many words of each column training did not see.
        states: by group, what the model's ``extract_states`` returned for the users, in place of their histories.
    """

    user: dict[str, Tensor | Ragged]
    candidates: dict[str, Tensor]
    offsets: Tensor
    unknown: Counter[str]
    states: dict[str, Ragged] | None = None


def encode_request(run: Run, user_table: Any, items: Any, candidate_offsets: Any = None) -> Request:
    """Encode the arguments of :meth:`Run.score_candidates`, where they are described.

    Raises:
        DataError: if a column is missing or not what the schema says, or users and candidates do not fit together.
    """
    found = None
    if candidate_offsets is None:
        found = _encode_plain(run, user_table, items)
    if found is None:
        found = _encode_tables(run, user_table, items, candidate_offsets)
    user, candidates, offsets = found
    unknown: Counter[str] = Counter()
    for name in (*run.schema.categorical, *run.schema.sequences):
        unknown[name] += _count_unknown(candidates[name] if name in candidates else user[name], run, name)
    return Request(user, candidates, torch.from_numpy(offsets), unknown)


def merged(requests: Sequence[Request]) -> Request:
    """Return one request of the users of all; all have the same features of candidates, and all or none states."""
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    return Request(
        joined_by_name([request.user for request in requests]),
        joined_by_name([request.candidates for request in requests]),
        _joined_offsets([request.offsets for request in requests]),
        sum((request.unknown for request in requests), start=Counter()),
        None if first.states is None else joined_by_name([request.states or {} for request in requests]),
    )


def joined_by_name(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return batches of the same features as one, of the rows of all."""
    return {name: _joined([batch[name] for batch in batches]) for name in batches[0]}


def _joined(values: Sequence[Any]) -> Any:
    """Return tensors ``[B]``, or ragged sequences, one after the other."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return Ragged(
        torch.cat([value.values for value in values]),
        _joined_offsets([value.offsets for value in values]),
        max(value.max_length for value in values),
    )


def _joined_offsets(offsets: Sequence[Tensor]) -> Tensor:
    """Return the offsets of sequences one after the other, of which each part has its own ``[B + 1]`` int64."""
    return torch.nn.functional.pad(torch.cat([part.diff() for part in offsets]).cumsum(0), (1, 0))


def _encode_plain(run: Run, user: Any, items: Any) -> _Encoded | None:
    """Encode one user and its candidates, given as plain Python values; None if they are not."""
    candidates = plain_candidates(run, items)
    if candidates is None:
        return None
    features = plain_user(run, user, candidates)
    count = len(next(iter(candidates.values())))
    return None if features is None else (features, candidates, np.array([0, count]))


def _encode_tables(run: Run, user_table: Any, items: Any, candidate_offsets: Any) -> _Encoded:
    users = _read_users(user_table, run.schema)
    columns = _read_items(items, run.schema)
    words, offsets = _flatten(columns, users.num_rows, candidate_offsets)
    candidates: dict[str, Tensor] = {}
    for name, column in words.items():
        try:
            if name in run.schema.numeric:
                candidates[name] = torch.from_numpy(run.encoders.numeric(name).transform(column))
                continue
            candidates[name] = torch.from_numpy(run.encoders.category(name).transform(column))
        except DataError as error:
            raise DataError(f"{_ITEMS}: column {name!r}: {error}") from None
    users = users.drop_columns([name for name in words if name in users.column_names])
    for name in words:
        # A dataset wants every column; the candidate's own are not used.
        users = users.append_column(name, pa.nulls(users.num_rows))
    batch = run.dataset(users, allow_unknown=True, source=_USERS).batch(np.arange(users.num_rows))
    user = {name: value for name, value in batch.items() if name not in candidates}
    return user, candidates, offsets


def _read_users(user_table: Any, schema: Schema) -> pa.Table:
    """Return a table with a row for each user."""
    if not isinstance(user_table, Mapping):
        return read_table(user_table, schema)
    # A table without columns would have no row either.
    columns: dict[str, Any] = {"": pa.nulls(1)}
    lists = [*schema.sequences, *schema.event_times()]
    for name in (*schema.numeric, *schema.categorical, *lists):
        if name not in user_table:
            continue
        value = user_table[name]
        value = value.as_py() if isinstance(value, pa.Scalar) else value
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            columns[name] = as_column([value])
        elif name in lists:
            columns[name] = as_column([value.to_pylist() if isinstance(value, pa.Array) else list(value)])
        else:
            raise DataError(
                f"{_USERS}[{name!r}] must be one value, as a dict holds one user, got a {type(value).__name__}; "
                "give several users as a table"
            )
    return pa.table(columns)


def _read_items(items: Any, schema: Schema) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Return the candidate's columns by name."""
    if isinstance(items, str):
        raise DataError(f"{_ITEMS} must be a list of words or a table, got the text {items!r}")
    ads = list(dict.fromkeys(pair.ad for pair in schema.pairs()))
    if not isinstance(items, Mapping | pa.Table | pa.RecordBatch | Path) and not hasattr(items, "columns"):
        if len(ads) != 1:
            which = f"the candidate columns {', '.join(ads)}" if ads else "the columns that are the candidate's"
            raise DataError(f"{_ITEMS} must be a table with {which}, got a {type(items).__name__}")
        return {ads[0]: _column(items)}
    table = read_table(items, schema)
    for name in schema.sequences:
        if name in table.column_names:
            raise DataError(
                f"{_ITEMS} has the sequence {name!r}, but sequences are the user's; predict scores rows that hold "
                "both"
            )
    known = [name for name in (*schema.numeric, *schema.categorical) if name in table.column_names]
    for name in ads or known[:1] or [*schema.categorical, *schema.numeric][:1]:
        if name not in known:
            raise DataError(f"{_ITEMS}: {no_column(name, table.column_names)}")
    return {name: as_column(table.column(name)) for name in known}


def _column(items: Any) -> pa.Array | pa.ChunkedArray:
    try:
        return as_column(items)
    except DataError as error:
        raise DataError(f"{_ITEMS}: {error}") from None


def _flatten(
    columns: dict[str, pa.Array | pa.ChunkedArray], users: int, candidate_offsets: Any
) -> tuple[dict[str, pa.Array | pa.ChunkedArray], np.ndarray]:
    """Return the columns with a value for each candidate, and the ``[U + 1]`` offsets of users in them."""
    nested = [name for name, column in columns.items() if is_list(column.type)]
    if not nested:
        return columns, _given_offsets(len(next(iter(columns.values()))), users, candidate_offsets)
    if len(nested) < len(columns):
        flat = next(name for name in columns if name not in nested)
        raise DataError(
            f"{_ITEMS} must hold lists in every column or in none, got lists in {nested[0]!r}, not in {flat!r}"
        )
    if candidate_offsets is not None:
        raise DataError(f"candidate_offsets must be None where {_ITEMS} holds a list for each user")
    words: dict[str, pa.Array | pa.ChunkedArray] = {}
    counts: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        words[name], counts[name] = split_words(whole, "")
    first = counts[nested[0]]
    if len(first) != users:
        raise DataError(f"{_ITEMS} must hold a list for each of {users} users, got {len(first)}")
    for name, other in counts.items():
        different = np.flatnonzero(first != other)
        if len(different):
            row = different[0]
            raise DataError(
                f"{_ITEMS}: columns {nested[0]!r} and {name!r} hold {first[row]} and {other[row]} candidates of "
                f"user {row}"
            )
    return words, offsets_of(first)


def _given_offsets(candidates: int, users: int, candidate_offsets: Any) -> np.ndarray:
    if candidate_offsets is None:
        if users != 1:
            raise DataError(
                f"{_ITEMS} must hold a list for each of {users} users, or candidate_offsets must say where each "
                "user's candidates begin"
            )
        return np.array([0, candidates])
    offsets = np.asarray(candidate_offsets)
    if offsets.shape != (users + 1,) or not np.issubdtype(offsets.dtype, np.integer):
        raise DataError(
            f"candidate_offsets must be {users + 1} whole numbers for {users} users, got {offsets.dtype} of shape "
            f"{offsets.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != candidates or (np.diff(offsets) < 0).any():
        raise DataError(f"candidate_offsets must rise from 0 to {candidates}, got {offsets[0]} to {offsets[-1]}")
    return offsets.astype(np.int64)


def _count_unknown(ids: Tensor | Ragged, run: Run, name: str) -> int:
    values = ids.values if isinstance(ids, Ragged) else ids
    return int((values == run.encoders.unknown(name)).sum())
