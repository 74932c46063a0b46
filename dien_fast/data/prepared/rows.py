"""The rows of prepared data as a data set that keeps a window of them in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import Sequences, offsets_of
from dien_fast.data.dataset import ClickDataset
from dien_fast.data.encoding import Gathered, UnknownWords, gather
from dien_fast.data.fitting import Encoders
from dien_fast.data.negatives import NegativeSampler
from dien_fast.data.prepared.encoder import LIST_KEY, USER_KEY
from dien_fast.data.prepared.manifest import Shard
from dien_fast.data.prepared.order import BlockBatches
from dien_fast.data.prepared.shards import read_blocks, read_columns
from dien_fast.data.schema import ROW_KEY, Schema
from dien_fast.errors import DataError
from dien_fast.models.batches import session_key

# How much of the files is in memory at once; during a change from one window to the next it is twice that.
WINDOW_BYTES = 1 << 28


class _Window(NamedTuple):
    """Blocks in memory.

    Attributes:
        rows: how many.
        place: ``[blocks]`` int64, where each block's rows begin in the arrays, or -1 where it is not here.
        scalars: numbers and int32 ids.
        sequences: int32 ids.
    """

    rows: int
    place: np.ndarray
    scalars: dict[str, np.ndarray]
    sequences: dict[str, Sequences]


class PreparedDataset(ClickDataset):
    """A part of prepared data: the same batches as :class:`ClickDataset` gives for the same rows.

    Made by :meth:`dien_fast.data.PreparedData.dataset`. Rows are read in windows of blocks, of 256 MiB, so that
    batches should come in the order of :class:`BlockBatches`, as those of an :class:`EpochLoader` do. Others are
    right, but slow.

    Args:
        directory: where the shards are.
        shards: those of the part, in order.
        schema: what the columns mean.
        encoders: of these columns.
        unknown: how many words of each column the encoders do not know.
        negatives: as for :class:`ClickDataset`.
        require_label: whether batches are to have labels.
        window_bytes: how much of the files is in memory at once.

    Example:
        >>> empty = PreparedDataset(Path("prepared"), [], Schema(numeric=["age"]), Encoders({}), {})
        >>> len(empty), list(empty.batch(np.zeros(0, np.int64)))
        (0, ['age', 'label', '__row__'])
    """

    def __init__(
        self,
        directory: Path,
        shards: list[Shard],
        schema: Schema,
        encoders: Encoders,
        unknown: dict[str, UnknownWords],
        *,
        negatives: NegativeSampler | None = None,
        require_label: bool = True,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._directory, self._shards = directory, shards
        blocks = [(number, place) for number, shard in enumerate(shards) for place in range(len(shard.blocks))]
        self._blocks = np.array(blocks, np.int64).reshape(-1, 2)
        sizes = [block for shard in shards for block in shard.blocks]
        self._block_rows = np.array([block.rows for block in sizes], np.int64)
        self._block_starts = np.cumsum(self._block_rows) - self._block_rows
        mean = sum(block.size for block in sizes) / max(len(sizes), 1)
        self._window = max(1, int(window_bytes / mean)) if sizes else 1
        reads_negatives = require_label and schema.negatives == "columns"
        names = [*schema.sequences, *(schema.negative_features() if reads_negatives else [])]
        widths = {name: encoders.max_length(name) for name in names}
        for group in schema.groups:
            if group.time:
                widths[session_key(group.name)] = widths[group.pairs[0].pos_hist]
        self._read_scalars = [*schema.numeric, *schema.categorical, *([schema.label] if require_label else [])]
        self._read_sequences = list(widths)
        self._hold(schema, int(self._block_rows.sum()), widths, unknown, negatives)
        self._order = BlockBatches(self._block_rows, self._window, 1)
        self._loaded: list[_Window] = []
        self._require_label = require_label
        self._ids = encoders.dimensions()
        self._whole: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads its windows itself.
        return self.__dict__ | {"_loaded": [], "_whole": {}}

    @property
    def labels(self) -> np.ndarray | None:
        """``[rows]`` float32, or None."""
        return self.column(self.schema.label) if self._require_label else None

    @property
    def users(self) -> np.ndarray | None:
        """``[rows]`` int64, equal for the rows of a user, or None."""
        return self.column(USER_KEY) if self._require_label and self.schema.user else None

    @property
    def lists(self) -> np.ndarray | None:
        """``[rows]`` int64, equal for rows shown together, or None."""
        return self.column(LIST_KEY) if self._require_label and self.schema.lists else self.users

    @property
    def source_rows(self) -> np.ndarray:
        """``[rows]`` int64, the number of each row in the files that were prepared."""
        return self.column(ROW_KEY)

    def checksum(self) -> int:
        """Return a CRC-32 of the shards, from what the manifest says of their blocks."""
        blocks = [(block.rows, block.size, block.crc32) for shard in self._shards for block in shard.blocks]
        return zlib.crc32(repr(blocks).encode())

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers of all rows, which stays in memory."""
        if name not in self._whole:
            parts = [read_columns(self._directory / shard.file, shard, name) for shard in self._shards]
            self._whole[name] = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return self._whole[name]

    def category_ids(self, feature: str) -> np.ndarray:
        """Return the ``[rows]`` int64 ids of a categorical feature, read from all shards."""
        return self.column(feature).astype(np.int64)

    def lengths(self, feature: str) -> np.ndarray:
        """Return the ``[rows]`` int64 lengths of a sequence feature, read from all shards."""
        return np.diff(self.events(feature)[1])

    def events(self, feature: str, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a sequence feature in some rows, and their offsets, as :class:`ClickDataset` does."""
        values, offsets = self._gather(np.arange(len(self))[rows], self._epoch)[1][feature]
        return values.astype(np.int32), offsets

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> BlockBatches:
        """Return the row numbers of each epoch's batches; the arguments are those of :class:`BlockBatches`."""
        self._order = BlockBatches(
            self._block_rows,
            self._window,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        return self._order

    def sample(self, most: int) -> ClickDataset:
        """Return a data set in memory of at most ``most`` of the rows, from blocks all over the data."""
        if len(self) <= most:
            chosen = np.arange(len(self._block_rows))
        else:
            count = max(1, most // int(self._block_rows.max()))
            chosen = np.unique(np.linspace(0, len(self._block_rows) - 1, count).astype(np.int64))
        return _LoadedRows(self._load(chosen), self.schema, self._widths, self.unknown)

    def _gather(self, rows: np.ndarray, epoch: int) -> Gathered:
        blocks = np.searchsorted(self._block_starts, rows, side="right") - 1
        self._need(blocks, epoch)
        inside = rows - self._block_starts[blocks]
        found: list[tuple[np.ndarray, Gathered]] = []
        for window in self._loaded:
            here = np.flatnonzero(window.place[blocks] >= 0)
            local = window.place[blocks[here]] + inside[here]
            part = gather(window.scalars, window.sequences, local)
            if len(here) == len(rows):
                return part
            found.append((here, part))
        return _merged(found)

    def _need(self, blocks: np.ndarray, epoch: int) -> None:
        """Load the windows of blocks that are not in memory, and forget those that these rows do not need."""
        needed = np.unique(blocks)
        if self._loaded and np.any([window.place[needed] >= 0 for window in self._loaded], axis=0).all():
            return
        self._loaded = [window for window in self._loaded if (window.place[needed] >= 0).any()]
        for block in needed.tolist():
            if not any(window.place[block] >= 0 for window in self._loaded):
                self._loaded.append(self._load(self._order.blocks_with(block, epoch)))
        if not self._loaded:
            self._loaded = [self._load(np.zeros(0, np.int64))]

    def _load(self, blocks: np.ndarray) -> _Window:
        """Read blocks, which are numbered in rising order."""
        scalars: dict[str, list[np.ndarray]] = {name: [] for name in self._read_scalars}
        values: dict[str, list[np.ndarray]] = {name: [] for name in self._read_sequences}
        lengths: dict[str, list[np.ndarray]] = {name: [] for name in self._read_sequences}
        for batch in self._read(blocks):
            for name, parts in scalars.items():
                parts.append(np.array(batch.column(name).to_numpy(zero_copy_only=False)))
            for name in self._read_sequences:
                column = batch.column(name)
                offsets = column.offsets.to_numpy()
                values[name].append(np.array(column.values.to_numpy()[offsets[0] : offsets[-1]]))
                lengths[name].append(np.diff(offsets).astype(np.int64))
        place = np.full(len(self._block_rows), -1)
        place[blocks] = np.cumsum(self._block_rows[blocks]) - self._block_rows[blocks]
        joined = {name: _joined(scalars, name, np.int32) for name in self._read_scalars}
        sequences: dict[str, Sequences] = {}
        for name in self._read_sequences:
            own = _joined(lengths, name, np.int64)
            # The sequences of a group share one array of starts, so that a batch finds their events once.
            twin = next((other for other in sequences.values() if np.array_equal(other.lengths, own)), None)
            starts, own = (offsets_of(own)[:-1], own) if twin is None else (twin.starts, twin.lengths)
            sequences[name] = Sequences(_joined(values, name, np.int32), starts, own)
        self._check_ids(joined | {name: found.values for name, found in sequences.items()})
        return _Window(int(self._block_rows[blocks].sum()), place, joined, sequences)

    def _check_ids(self, found: dict[str, np.ndarray]) -> None:
        """Refuse ids that the encoders do not have, with which a model would read what is no embedding.

        Raises:
            DataError: naming the feature.
        """
        for name, ids in found.items():
            limit = self._ids.get(name)
            if limit is not None and len(ids) and not 0 <= ids.min() <= ids.max() < limit:
                raise DataError(
                    f"{self._directory}: the shards are damaged: feature {name!r} has ids from {ids.min()} to "
                    f"{ids.max()}, and the encoders those from 0 to {limit - 1}"
                )

    def _read(self, blocks: np.ndarray) -> Iterator[pa.RecordBatch]:
        for number in np.unique(self._blocks[blocks, 0]):
            shard = self._shards[number]
            places = self._blocks[blocks][self._blocks[blocks, 0] == number, 1]
            yield from read_blocks(self._directory / shard.file, shard, places.tolist())


class _LoadedRows(ClickDataset):
    """Rows that were read from shards, all in memory."""

    def __init__(
        self, window: _Window, schema: Schema, widths: dict[str, int], unknown: dict[str, UnknownWords]
    ) -> None:
        scalars = dict(window.scalars)
        self._labels = scalars.pop(schema.label, None)
        self._users = self._lists = None
        self._hold(schema, window.rows, widths, unknown, None)
        self._scalars, self._sequences = scalars, window.sequences


def _joined(parts: dict[str, list[np.ndarray]], name: str, kind: type) -> np.ndarray:
    """Return the parts of a column as one array, and forget them."""
    found = parts.pop(name)
    return np.concatenate(found) if found else np.zeros(0, kind)


def _merged(found: list[tuple[np.ndarray, Gathered]]) -> Gathered:
    """Return rows that were gathered in parts, each with its places among all rows, in the order of the places."""
    order = np.argsort(np.concatenate([places for places, _ in found]), kind="stable")
    parts = [part for _, part in found]
    scalars = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    sequences = {}
    for name in parts[0][1]:
        lengths = np.concatenate([np.diff(part[1][name][1]) for part in parts])
        values = np.concatenate([part[1][name][0] for part in parts])
        sequences[name] = Sequences(values, offsets_of(lengths)[:-1], lengths)
    return gather(scalars, sequences, order)
