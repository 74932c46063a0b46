"""Shards: encoded rows as Arrow IPC files, written and read in blocks."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from dien_fast.data.prepared.manifest import Block, Shard, check_size
from dien_fast.errors import DataError
from dien_fast.files import write_atomically

BLOCK_ROWS = 1 << 14
# What a shard's columns hold.
_NUMBERS, _LISTS = (pa.float32(), pa.int32(), pa.int64()), (pa.list_(pa.int32()),)


class _Sink(io.RawIOBase):
    """A file that Arrow writes to, and that knows where it is and the checksum of what was written since."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.crc32 = 0

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        data = memoryview(content)  # type: ignore[arg-type]
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


class ShardWriter:
    """Writes rows of one part to a file, in blocks of equal numbers of rows; the file appears whole or not at all.

    Args:
        path: the file.
        part: which part the rows are of.

    Example:
        >>> with ShardWriter(Path("train-00000.arrow"), "train") as writer:  # doctest: +SKIP
        ...     writer.add(encoder(table))
        >>> writer.shard.blocks[0].rows  # doctest: +SKIP
        16384
    """

    def __init__(self, path: Path, part: str) -> None:
        self._path, self._part = path, part
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._blocks: list[Block] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self.shard: Shard | None = None

    def __enter__(self) -> Self:
        self._whole = write_atomically(self._path)
        self._file = self._whole.__enter__().open("wb")
        self._sink = _Sink(self._file)
        return self

    def add(self, table: pa.Table) -> None:
        """Add encoded rows."""
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._sink, table.schema)
        self._pending.append(table)
        self._rows += table.num_rows
        while self._rows >= BLOCK_ROWS:
            whole = pa.concat_tables(self._pending)
            self._write(whole.slice(0, BLOCK_ROWS))
            self._pending = [whole.slice(BLOCK_ROWS)]
            self._rows -= BLOCK_ROWS

    def _write(self, table: pa.Table) -> None:
        assert self._writer is not None
        begin, self._sink.crc32 = self._sink.tell(), 0
        # combine_chunks copies, so that no buffer of a larger table is written along.
        for batch in table.combine_chunks().to_batches():
            self._writer.write_batch(batch)
        size = self._sink.tell() - begin
        self._blocks.append(Block(table.num_rows, begin, size, self._sink.crc32))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._give_up(failure)
                raise
            self._whole.__exit__(None, None, None)
            with pa.OSFile(str(self._path)) as file:
                rest = _crc32_of_rest(file, self._blocks)
            self.shard = Shard(self._path.name, self._part, self._path.stat().st_size, self._blocks, rest)
            return None
        return self._give_up(error)

    def _give_up(self, error: BaseException) -> bool | None:
        """Remove what was written; an error of the system gets the name of the file."""
        with suppress(OSError):
            # Closing writes what is left in its buffer, which fails again on a full disk.
            self._file.close()
        return self._whole.__exit__(type(error), error, error.__traceback__)

    def _finish(self) -> None:
        if self._rows:
            self._write(pa.concat_tables(self._pending))
        if self._writer is not None:
            self._writer.close()
        self._file.close()


def read_blocks(path: Path, shard: Shard, numbers: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield blocks of a shard.

    They are read and not mapped: where a mapped file is cut short, reading the memory ends the process (SIGBUS).

    Args:
        path: the file.
        shard: what the manifest says of it.
        numbers: which blocks.

    Raises:
        DataError: the shard is missing or damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            check_size(path, shard.size)
            if shard.rest_crc32 not in (None, _crc32_of_rest(file, shard.blocks)):
                raise DataError(f"{path}: the shard is damaged: the checksum of its ends is not the manifest's")
            reader = pa.ipc.open_file(file)
            for number in numbers:
                block = shard.blocks[number]
                file.seek(block.offset)
                if zlib.crc32(file.read_buffer(block.size)) != block.crc32:
                    raise DataError(
                        f"{path}: the shard is damaged: the checksum of block {number} is not the manifest's"
                    )
                batch = reader.get_batch(number)
                if batch.num_rows != block.rows:
                    raise DataError(f"{path}: the shard is damaged: block {number} has {batch.num_rows} rows")
                _check_columns(path, number, batch)
                yield batch
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: the shard is damaged or cannot be read: {error}") from None


def _check_columns(path: Path, number: int, batch: pa.RecordBatch) -> None:
    """Refuse columns that no encoder writes; a checksum tells damage alone, and not who wrote them.

    Raises:
        DataError: naming the column.
        pyarrow.ArrowInvalid: lengths or offsets lead out of the file.
    """
    batch.validate(full=True)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        nulls = column.null_count + (column.values.null_count if column.type in _LISTS else 0)
        if column.type not in (*_NUMBERS, *_LISTS) or nulls:
            kind = f"{column.type} with {nulls} nulls" if nulls else column.type
            raise DataError(f"{path}: the shard is damaged: column {name!r} of block {number} holds {kind}")


def read_columns(path: Path, shard: Shard, name: str) -> np.ndarray:
    """Return a column of numbers of a whole shard.

    Args:
        path: the file.
        shard: what the manifest says of it.
        name: of the column.

    Raises:
        DataError: the shard is missing or damaged.
    """
    parts = []
    for block in read_blocks(path, shard, list(range(len(shard.blocks)))):
        if name not in block.schema.names or block.schema.field(name).type not in _NUMBERS:
            raise DataError(f"{path}: the shard is damaged: it has no numbers in a column {name!r}")
        # A copy, which does not keep the other columns of the block in memory.
        parts.append(np.array(block.column(name).to_numpy(zero_copy_only=False)))
    return np.concatenate(parts)


def _crc32_of_rest(file: pa.NativeFile, blocks: list[Block]) -> int:
    """Return the CRC-32 of all bytes of a shard outside of its blocks."""
    found = end = 0
    for block in [*blocks, Block(0, file.size(), 0, 0)]:
        file.seek(end)
        found = zlib.crc32(file.read_buffer(block.offset - end), found)
        end = block.offset + block.size
    return found
