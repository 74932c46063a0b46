"""The order of rows that do not fit into memory: by blocks, a window of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dien_fast.data.dataset import EpochBatches


class BlockBatches(EpochBatches):
    """Row numbers of one epoch's batches, in an order for which few blocks of the data must be in memory.

    Where all blocks fit into one window, the order is that of :class:`EpochBatches`. Otherwise, when shuffling,
    the blocks are dealt out to the ranks in a random order, and the rows of as many of them as a window holds are
    shuffled together. Ranks read their own blocks alone. All get equal numbers of batches: a rank with fewer rows
    repeats its first batches at the end. Without shuffling, each rank has a piece of the rows, in their order.

    The order is a function of (seed, epoch), the sizes of blocks and window, and the number of ranks.

    Args:
        block_rows: ``[blocks]`` int64 rows in each block.
        window: blocks in a window.
        batch_size: rows in a batch.
        shuffle: a new random order each epoch.
        seed: what the order depends on beside the epoch.
        rank: which of ``world_size`` processes this is.
        world_size: number of processes.

    Example:
        >>> batches = BlockBatches(np.array([4, 4, 4]), window=1, batch_size=2, shuffle=True, seed=1)
        >>> [rows.tolist() for rows in batches]
        [[0, 1], [2, 3], [6, 4], [5, 7], [9, 11], [10, 8]]
    """

    def __init__(
        self,
        block_rows: np.ndarray,
        window: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            int(block_rows.sum()), batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size
        )
        self._block_rows = block_rows
        self._block_starts = np.cumsum(block_rows) - block_rows
        self._window = window
        self._in_windows = len(block_rows) > window

    def blocks_with(self, block: int, epoch: int) -> np.ndarray:
        """Return the blocks ``[window]`` to load together with a block, rising.

        Args:
            block: which block is needed.
            epoch: in which epoch.
        """
        if self.shuffle and self._in_windows:
            mine = self._dealt(epoch)[self.rank]
            place = np.flatnonzero(mine == block)
            if len(place):
                begin = place[0] // self._window * self._window
                return np.sort(mine[begin : begin + self._window])
        begin = block // self._window * self._window
        return np.arange(begin, min(begin + self._window, len(self._block_rows)))

    def _dealt(self, epoch: int) -> list[np.ndarray]:
        """Return the blocks of each rank, in the order in which it reads them."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._block_rows))
        return [order[rank :: self.world_size] for rank in range(self.world_size)]

    def _starts(self) -> np.ndarray:
        if not self.shuffle:
            starts = np.arange(0, self.num_rows, self.batch_size)
            return np.array_split(starts, self.world_size)[self.rank]
        if not self._in_windows:
            return super()._starts()
        counts = [_batch_starts(int(rows), self.batch_size) for rows in self._rows_of_ranks()]
        return np.resize(counts[self.rank], max(map(len, counts)))

    def _rows_of_ranks(self) -> list[int]:
        return [int(self._block_rows[blocks].sum()) for blocks in self._dealt(self.epoch)]

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self.shuffle:
            for start in self._starts()[self.first_batch :]:
                yield np.arange(start, min(start + self.batch_size, self.num_rows))
            return
        if not self._in_windows:
            yield from super().__iter__()
            return
        rows = _WindowedRows(self._windows(), self._block_rows, self._block_starts, [self.seed, self.epoch])
        joined = rows.total - 1
        for start in self._starts()[self.first_batch :]:
            stop = start + self.batch_size
            yield rows.between(start, rows.total if stop >= joined else stop)

    def _windows(self) -> list[np.ndarray]:
        mine = self._dealt(self.epoch)[self.rank]
        return [np.sort(mine[begin : begin + self._window]) for begin in range(0, len(mine), self._window)]


def _batch_starts(rows: int, batch_size: int) -> np.ndarray:
    """Return where batches begin; a last one of a single row joins the one before it."""
    starts = np.arange(0, rows, batch_size)
    return starts[:-1] if len(starts) > 1 and starts[-1] == rows - 1 else starts


class _WindowedRows:
    """The rows of an epoch in their order, of which only the windows that were asked for last are made."""

    def __init__(
        self, windows: list[np.ndarray], block_rows: np.ndarray, block_starts: np.ndarray, seed: list[int]
    ) -> None:
        self._windows, self._seed = windows, seed
        self._block_rows, self._block_starts = block_rows, block_starts
        self._ends = np.cumsum([block_rows[blocks].sum() for blocks in windows])
        self.total = int(self._ends[-1]) if windows else 0
        self._made: dict[int, np.ndarray] = {}

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the int64 row numbers of the places from ``start`` to ``stop`` of the order."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop - 1, side="right"))
        self._made = {number: rows for number, rows in self._made.items() if first <= number <= last}
        parts = []
        for number in range(first, last + 1):
            if number not in self._made:
                self._made[number] = self._rows_of(number)
            rows = self._made[number]
            begin = int(self._ends[number]) - len(rows)
            parts.append(rows[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def _rows_of(self, number: int) -> np.ndarray:
        blocks = self._windows[number]
        starts, rows = self._block_starts[blocks], self._block_rows[blocks]
        ranges = [np.arange(start, start + count) for start, count in zip(starts, rows, strict=True)]
        # Ranks have different blocks, so that the first of them tells windows apart.
        rng = np.random.default_rng([*self._seed, int(blocks[0])])
        return rng.permutation(np.concatenate(ranges))
