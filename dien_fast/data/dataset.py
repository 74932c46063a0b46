"""A click table as a data set: all rows are encoded once, and batches are gathered from the arrays."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dien_fast.data.checks import check_labels, check_table
from dien_fast.data.columns import as_column, codes, gather_index, offsets_of
from dien_fast.data.encoding import Gathered, UnknownWords, encode_columns, from_zero, gather
from dien_fast.data.fitting import Encoders
from dien_fast.data.negatives import NegativeSampler
from dien_fast.data.schema import ROW_KEY, Schema
from dien_fast.data.tables import get_column, reading
from dien_fast.errors import DataError
from dien_fast.models.batches import session_key
from dien_fast.ragged import Ragged

Batch = dict[str, Tensor | Ragged]


class ClickDataset(Dataset[Batch]):
    """A table of clicks, encoded into numpy arrays once.

    A batch is a dict: numeric feature -> float32 ``[B]``, categorical -> int64 ``[B]``, sequence ->
    :class:`~dien_fast.ragged.Ragged` of int64 ids, the label -> float32 ``[B]``, and ``"__row__"`` ->
    int64 ``[B]``, the rows' numbers in the table. Of a group with times, such as ``"items"``, it also has
    ``"items.session"``: Ragged int64, the session of each event, from 0 for the oldest of a history.

    Args:
        table: the rows, with the columns that ``schema`` names.
        schema: what the columns mean.
        encoders: learnt from the training rows.
        negatives: draws the negative histories; None leaves them out, unless the schema reads them
            from columns.
        require_label: False for rows to predict: the label's column, the user's and those of negatives
            need not be there, no labels are given, and the table may be empty.
        checked: True where ``dien_fast.data.checks.check_table`` has seen these rows.
        source: what error messages call the table, for example its path.

    Attributes:
        unknown: how many words of each column the encoders do not know.

    Raises:
        DataError: a column is missing or does not hold what the schema says, a label is not 0 or 1, a
            history is padded, the pairs of a group differ in length, or a table that needs labels is empty.

    Example:
        >>> from dien_fast.data import Schema, fit_encoders
        >>> table = pa.table({"itemId": [7, 8], "label": [0, 1]})
        >>> schema = Schema(categorical=["itemId"], min_count=1)
        >>> ClickDataset(table, schema, fit_encoders(table, schema)).batch(np.array([1]))["itemId"]
        tensor([2])
    """

    def __init__(
        self,
        table: pa.Table,
        schema: Schema,
        encoders: Encoders,
        *,
        negatives: NegativeSampler | None = None,
        require_label: bool = True,
        checked: bool = False,
        source: str = "table",
    ) -> None:
        if not table.num_rows and require_label:
            raise DataError(f"{source}: the table has no rows")
        if not checked:
            zero_known = [name for name in schema.histories() if encoders.sequence(name).knows_zero()]
            check_table(table, schema, source, require_label=require_label, zero_known=zero_known)
        read_negatives = require_label and schema.negatives == "columns"
        encoded = encode_columns(table, schema, encoders, source, read_negatives=read_negatives)
        self._hold(schema, table.num_rows, encoded.widths, encoded.unknown, negatives)
        self._scalars, self._sequences = encoded.scalars, encoded.sequences
        self._labels: np.ndarray | None = None
        self._users: np.ndarray | None = None
        self._lists: np.ndarray | None = None
        if require_label:
            with reading(table, schema.label, source) as column:
                self._labels = check_labels(column)
            if schema.user is not None:
                self._users = _number_rows(table, schema.user, "user", source)
            self._lists = self._users
            if schema.lists is not None:
                self._lists = _number_rows(table, schema.lists, "list", source)

    def _hold(
        self,
        schema: Schema,
        size: int,
        widths: dict[str, int],
        unknown: dict[str, UnknownWords],
        negatives: NegativeSampler | None,
    ) -> None:
        """Set what every data set has, wherever its rows are."""
        self.schema = schema
        self.unknown = unknown
        self._size, self._epoch, self._widths = size, 0, dict(widths)
        self._negatives = negatives if schema.negatives in ("uniform", "popularity") else None
        if self._negatives is not None:
            self._widths |= {pair.neg_hist: self._widths[pair.pos_hist] for pair in schema.pairs()}

    @property
    def labels(self) -> np.ndarray | None:
        """``[rows]`` float32, or None."""
        return self._labels

    @property
    def users(self) -> np.ndarray | None:
        """``[rows]`` int64, equal for the rows of a user, or None where the schema names no user."""
        return self._users

    @property
    def lists(self) -> np.ndarray | None:
        """``[rows]`` int64, equal for rows shown together: by the schema's ``lists``, else ``users``."""
        return self._lists

    def __len__(self) -> int:
        return self._size

    def lengths(self, feature: str) -> np.ndarray:
        """Return the ``[rows]`` int64 lengths of a sequence feature, in events, after the cut."""
        return self._sequences[feature].lengths

    def category_ids(self, feature: str) -> np.ndarray:
        """Return the ``[rows]`` int64 ids of a categorical feature."""
        return self._scalars[feature]

    def events(self, feature: str, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a sequence feature in some rows, and where each row's begin.

        Args:
            feature: its name, or the key of a group's sessions.
            rows: which rows.

        Returns:
            int32 ``[N]`` row after row, and int64 ``[B + 1]`` offsets.
        """
        values, starts, lengths = self._sequences[feature]
        offsets = offsets_of(lengths[rows])
        return values[gather_index(starts[rows], offsets)], offsets

    def checksum(self) -> int:
        """Return a CRC-32 of the encoded rows and their labels, to tell two data sets apart.

        Example:
            >>> from dien_fast.data import fit_encoders
            >>> tables = [pa.table({"itemId": [7, 8], "label": labels}) for labels in ([0, 1], [1, 1])]
            >>> schema = Schema(categorical=["itemId"], min_count=1)
            >>> left, right = (ClickDataset(t, schema, fit_encoders(t, schema)).checksum() for t in tables)
            >>> left == right
            False
        """
        named = [*self._scalars.items(), *((name, part) for name, s in self._sequences.items() for part in s)]
        if self._labels is not None:
            named.append((self.schema.label, self._labels))
        total = 0
        for name, values in named:
            total = zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(name.encode(), total))
        return total

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose negatives ``dataset[rows]`` draws."""
        self._epoch = epoch

    def __getitem__(self, rows: int | Sequence[int] | np.ndarray) -> Batch:
        return self.batch(np.atleast_1d(np.asarray(rows, np.int64)), self._epoch)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """Return the given rows as a batch.

        Args:
            rows: ``[B]`` integer row numbers, in any order.
            epoch: the negatives are drawn anew for each epoch.

        Raises:
            IndexError: a row is not in the table.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._size:
            raise IndexError(f"rows must be in [0, {self._size}), got {rows.min()} to {rows.max()}")
        scalars, gathered = self._gather(rows, epoch)
        labels = scalars.pop(self.schema.label, None)
        batch: Batch = {name: torch.from_numpy(values) for name, values in scalars.items()}
        for group in [group for group in self.schema.groups if group.time]:
            gathered[session_key(group.name)] = from_zero(*gathered[session_key(group.name)])
        if self._negatives is not None:
            for group in self.schema.groups:
                offsets = gathered[group.pairs[0].pos_hist][1]
                clicks = [gathered[pair.pos_hist][0] for pair in group.pairs]
                drawn = self._negatives.sample(group, clicks, offsets, rows, epoch)
                for pair, values in zip(group.pairs, drawn, strict=True):
                    gathered[pair.neg_hist] = (values, offsets)
        for name, (values, offsets) in gathered.items():
            batch[name] = Ragged(torch.from_numpy(values), torch.from_numpy(offsets), self._widths[name])
        if labels is not None:
            batch[self.schema.label] = torch.from_numpy(labels)
        batch[ROW_KEY] = torch.from_numpy(rows)
        return batch

    def _gather(self, rows: np.ndarray, epoch: int) -> Gathered:
        """Return what a batch holds of rows: numbers, labels among them, and sequences with their offsets."""
        scalars, sequences = gather(self._scalars, self._sequences, rows)
        if self._labels is not None:
            scalars[self.schema.label] = self._labels[rows]
        return scalars, sequences

    def sample(self, most: int) -> ClickDataset:
        """Return a data set in memory of at most ``most`` of the rows; one in memory returns itself."""
        return self

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> EpochBatches:
        """Return the row numbers of each epoch's batches; the arguments are those of :class:`EpochBatches`."""
        return EpochBatches(len(self), batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)


def _number_rows(table: pa.Table, column: str, what: str, source: str) -> np.ndarray:
    """Return ``[rows]`` int64: equal numbers for the rows of one user, or of one list."""
    names = as_column(get_column(table, column, source))
    try:
        return codes(names)
    except pa.ArrowNotImplementedError:
        raise DataError(f"{source}: column {column!r}: expected one {what} a row, got {names.type}") from None


def pad_batch(batch: Batch) -> dict[str, Tensor]:
    """Return the batch with each sequence padded with zeros at its end: int64 ``[B, T]``."""
    return {name: value.pad() if isinstance(value, Ragged) else value for name, value in batch.items()}


class EpochBatches(Sampler[np.ndarray]):
    """Row numbers of one epoch's batches; the order depends on (seed, epoch) alone.

    With several ranks, rank r takes batches r, r + world_size, ... of the one order. When shuffling
    (training) a last batch of one row joins the one before it, because batch statistics need two rows,
    and the first batches are repeated at the end where ranks would otherwise get different numbers.

    Args:
        num_rows: rows in the data set.
        batch_size: rows in a batch.
        shuffle: a new random order each epoch; otherwise the table's order.
        seed: what the order depends on beside the epoch.
        rank: which of ``world_size`` processes this is.
        world_size: number of processes.

    Example:
        >>> [rows.tolist() for rows in EpochBatches(5, 2, shuffle=False)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size) = [0, {world_size}), got {rank}")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch whose order comes next, and how many of its batches are left out."""
        self.epoch, self.first_batch = epoch, first_batch

    def _starts(self) -> np.ndarray:
        """Return where this rank's batches begin in the order."""
        starts = np.arange(0, self.num_rows, self.batch_size)
        if self.shuffle:
            if len(starts) > 1 and starts[-1] == self.num_rows - 1:
                starts = starts[:-1]
            if len(starts):
                starts = np.resize(starts, -(-len(starts) // self.world_size) * self.world_size)
        return starts[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        else:
            order = np.arange(self.num_rows)
        joined = self.num_rows - 1 if self.shuffle else self.num_rows
        for start in self._starts()[self.first_batch :]:
            stop = start + self.batch_size
            yield order[start : self.num_rows if stop == joined else stop]


class EpochLoader:
    """Batches of a data set, epoch by epoch.

    Args:
        dataset: the rows.
        batch_size: rows in a batch.
        shuffle: a new random order each epoch; set it for training.
        seed: what the order depends on beside the epoch.
        num_workers: processes that prepare batches; 0 prepares them here, which is fast enough for most.
        rank: which of ``world_size`` processes this is.
        world_size: number of processes.
        pin_memory: give batches in page-locked memory, for faster copies to a GPU.

    Example:
        >>> from dien_fast.data import Schema, fit_encoders
        >>> table = pa.table({"itemId": [7, 8, 9], "label": [0, 1, 0]})
        >>> schema = Schema(categorical=["itemId"], min_count=1)
        >>> loader = EpochLoader(ClickDataset(table, schema, fit_encoders(table, schema)), batch_size=2)
        >>> loader.set_epoch(3)
        >>> [batch["itemId"].tolist() for batch in loader]
        [[1, 2], [3]]
    """

    def __init__(
        self,
        dataset: ClickDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.batches = dataset.batches(batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch whose order and negatives come next, and how many of its batches are left out.

        The number of batches, ``len(loader)``, stays that of the whole epoch.
        """
        self.batches.set_epoch(epoch, first_batch)
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers:
            # Workers start anew in each epoch, with a copy of the data set that knows which epoch it is.
            yield from DataLoader(
                self.dataset,
                batch_size=None,
                sampler=self.batches,
                num_workers=self.num_workers,
                collate_fn=_as_is,
                pin_memory=self.pin_memory,
            )
            return
        for rows in self.batches:
            batch = self.dataset.batch(rows, self.batches.epoch)
            yield {name: value.pin_memory() for name, value in batch.items()} if self.pin_memory else batch


def _as_is(batch: Any) -> Any:
    return batch
