"""Training, validation and test rows of a table that does not fit into memory.

``user`` and ``global`` are the rules of :func:`dien_fast.data.split_table`, to the row: a first pass writes the
user and time of each row to a file, 16 bytes a row, from which a file with the parts is made, a byte a row.
``users`` and ``random`` need no pass: a hash of (seed, user) or (seed, row) decides, so that the shares hold up to
chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import as_column, first_line, first_row, is_text
from dien_fast.data.hashing import hash_names, mix, unit
from dien_fast.data.prepared.files import RowBatch
from dien_fast.data.schema import Schema
from dien_fast.data.splitting import parts_in_time
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError
from dien_fast.files import write_atomically

# How many rows are looked at together: they take a few hundred megabytes.
_BUCKET_ROWS = 1 << 21
_KEY_BYTES = 16
# A sum of shares is rounded; a row exactly on the bound belongs to the later part.
_ROUNDING = 1e-12


class Division(NamedTuple):
    """How rows are divided.

    Attributes:
        how: "user", "users", "global" or "random".
        shares: of training, validation and test rows.
        seed: of "users" and "random".
    """

    how: str
    shares: Sequence[float]
    seed: int

    @property
    def needs_times(self) -> bool:
        """Whether the times of all rows must be known before the part of the first."""
        return self.how in ("user", "global") and self.shares[0] < 1

    @property
    def bounds(self) -> np.ndarray:
        """Float64 ``[2]``: where validation and test rows begin."""
        return np.cumsum(self.shares)[:2]

    def parts(self, batch: RowBatch, schema: Schema, in_time: Path | None) -> np.ndarray:
        """Return int8 ``[rows]``: 0, 1 or 2 for training, validation and test rows.

        Args:
            batch: some rows.
            schema: what their columns mean.
            in_time: the file of :func:`divide_in_time`, where :attr:`needs_times`.
        """
        rows = batch.table.num_rows
        if self.shares[0] >= 1:
            return np.zeros(rows, np.int8)
        if self.needs_times:
            assert in_time is not None
            return np.fromfile(in_time, np.int8, rows, offset=batch.first)
        seed = mix(np.array([self.seed % (1 << 64)], np.uint64))
        if self.how == "users":
            keys = hash_names(get_column(batch.table, schema.user or "", batch.source), "user").view(np.uint64)
        else:
            keys = np.arange(batch.first, batch.first + rows, dtype=np.uint64)
        places = unit(mix(mix(keys) + seed))
        return np.searchsorted(self.bounds, places, side="right").astype(np.int8)


def divide_in_time(batches: Iterable[RowBatch], schema: Schema, division: Division, place: Path) -> None:
    """Write the part of each row by its time to a file, a byte a row.

    Args:
        batches: all rows, with user and time.
        schema: which columns these are.
        division: "user" or "global".
        place: the file; beside it stands one that ends in ``.keys`` meanwhile.

    Raises:
        DataError: a time is missing, or is no number, date or ISO date as text.
    """
    keys = place.with_suffix(".keys")
    with write_atomically(keys) as unfinished, unfinished.open("wb") as file:
        for pairs in _keys(batches, schema, division.how):
            file.write(pairs.tobytes())
    with write_atomically(place) as unfinished:
        if division.how == "user":
            _write_by_user(keys, division, unfinished)
        else:
            _write_by_moment(keys, division, unfinished)
    keys.unlink()


def _blocks(keys: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of some rows, and int64 ``[rows, 2]`` users and times.

    The file is read and not mapped, as its pages would count as memory of the process.
    """
    for start in range(0, keys.stat().st_size // _KEY_BYTES, _BUCKET_ROWS):
        yield start, np.fromfile(keys, np.int64, 2 * _BUCKET_ROWS, offset=start * _KEY_BYTES).reshape(-1, 2)


def _keys(batches: Iterable[RowBatch], schema: Schema, how: str) -> Iterator[np.ndarray]:
    """Yield int64 ``[rows, 2]``: a hash of the user, and a number that rises with the time."""
    kind: str | None = None
    for batch in batches:
        found, times = _time_keys(batch, schema.time or "")
        if kind is None or kind == found:
            kind = found
        else:
            raise DataError(
                f"{batch.source}: column {schema.time!r}: the times are {found}, but {kind} in the rows before; "
                "write them all alike"
            )
        users = np.zeros(len(times), np.int64)
        if how == "user":
            column = get_column(batch.table, schema.user or "", batch.source)
            if column.null_count:
                row = first_row(pc.is_null(column))
                where = f"{batch.source}: column {schema.user!r}"
                raise DataError(f"{where}: a split needs a value in every row, row {row} has none")
            users = hash_names(column, "user")
        yield np.stack([users, times], axis=1)


def _time_keys(batch: RowBatch, name: str) -> tuple[str, np.ndarray]:
    """Return of what kind the times are, and int64 ``[rows]`` numbers that rise with them."""
    column = as_column(get_column(batch.table, name, batch.source))
    if column.null_count:
        row = first_row(pc.is_null(column))
        raise DataError(f"{batch.source}: column {name!r}: a split needs a value in every row, row {row} has none")
    kind = column.type
    if is_text(kind):
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowException as error:
            raise DataError(
                f"{batch.source}: column {name!r}: text must be ISO dates (2024-12-31), or write numbers: "
                f"{first_line(error)}"
            ) from None
        return "dates", column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return "whole numbers", column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        dates = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return "dates", dates.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind) or pa.types.is_uint64(kind):
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if np.isnan(numbers).any():
            row = int(np.flatnonzero(np.isnan(numbers))[0])
            raise DataError(
                f"{batch.source}: column {name!r}: a split needs a value in every row, row {row} has none"
            )
        bits = (numbers + 0.0).view(np.int64)
        # The bits of negative floats fall where the numbers rise.
        return "numbers with fractions", bits ^ ((bits >> 63) & np.int64(2**63 - 1))
    raise DataError(f"{batch.source}: column {name!r}: a split needs one value a row, got {kind}")


def _write_by_user(keys: Path, division: Division, place: Path) -> None:
    """Write the parts of the rows, for one group of users after the other."""
    rows = keys.stat().st_size // _KEY_BYTES
    buckets = -(-rows // _BUCKET_ROWS)
    with place.open("r+b") as file:
        file.truncate(rows)
        for bucket in range(buckets):
            found = [(start, *_of_bucket(pairs, bucket, buckets)) for start, pairs in _blocks(keys)]
            pairs = np.concatenate([pairs for _, _, pairs in found])
            ranks = [np.unique(pairs[:, column], return_inverse=True)[1] for column in range(2)]
            parts = parts_in_time(ranks[0], ranks[1], division.shares)
            ends = np.cumsum([len(chosen) for _, chosen, _ in found])[:-1]
            for (start, chosen, _), part in zip(found, np.split(parts, ends), strict=True):
                file.seek(start)
                block = np.frombuffer(file.read(_BUCKET_ROWS), np.int8).copy()
                block[chosen] = part
                file.seek(start)
                file.write(block.tobytes())


def _of_bucket(pairs: np.ndarray, bucket: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the rows have a user of the bucket, and these."""
    chosen = np.flatnonzero(mix(pairs[:, 0].view(np.uint64)) % np.uint64(buckets) == bucket)
    return chosen, pairs[chosen]


def _write_by_moment(keys: Path, division: Division, place: Path) -> None:
    """Write the parts of the rows, which two moments divide."""
    begins = [_first_moment(keys, bound - _ROUNDING) for bound in division.bounds]
    with place.open("wb") as file:
        for _, pairs in _blocks(keys):
            parts = np.searchsorted(begins, pairs[:, 1], side="right").astype(np.int8)
            file.write(parts.tobytes())


def _first_moment(keys: Path, bound: float) -> int:
    """Return the smallest time with at least a share ``bound`` of the rows before its middle row."""
    rows = keys.stat().st_size // _KEY_BYTES
    if not rows:
        return 0

    def middle(time: int) -> float:
        times = (pairs[:, 1] for _, pairs in _blocks(keys))
        return sum(np.count_nonzero(part < time) + np.count_nonzero(part <= time) for part in times) / 2 / rows

    low = min(int(pairs[:, 1].min()) for _, pairs in _blocks(keys))
    high = max(int(pairs[:, 1].max()) for _, pairs in _blocks(keys)) + 1
    while low < high:
        time = (low + high) // 2
        if middle(time) >= bound:
            high = time
        else:
            low = time + 1
    return low
