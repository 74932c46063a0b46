"""Tables of any number of rows: files read one after the other, in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet

from dien_fast.data.columns import SLICE_ROWS, first_line, is_list, is_text
from dien_fast.data.schema import Schema
from dien_fast.data.tables import check_valid, no_column, table_format
from dien_fast.data.text_files import convert_options, parse_options, text_layout
from dien_fast.data.utf8 import HEAD_BYTES, check_name, not_utf8
from dien_fast.errors import DataError

# What a batch may take in memory, by what its file says, and in CSV as text.
_BATCH_BYTES = 1 << 24
_TEXT_BYTES = 1 << 23
_LEAST_ROWS = 1024
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class RowBatch(NamedTuple):
    """Some rows of a file.

    Attributes:
        table: the columns that the schema names.
        source: what messages call these rows.
        first: the number of the first of them, counted over all files.
    """

    table: pa.Table
    source: str
    first: int


@dataclass
class TableFile:
    """A file of a table.

    Attributes:
        path: in its file system.
        size: bytes.
        modified: nanoseconds since 1970, or None where the file system does not say.
        folders: the ``key=value`` folders it lies in.
    """

    path: str
    size: int
    modified: int | None
    folders: Mapping[str, str] = field(default_factory=dict)


class TableFiles:
    """The rows of one or more CSV or Parquet files, read in a stream.

    Args:
        dataset: path of a file or of a directory, whose ``key=value`` folders are columns, or a pattern in which
            ``*`` stands for any characters but ``/`` and ``**/`` for any folders; local, or a URI of a file
            system that pyarrow or fsspec knows.
        schema: what the columns mean. All columns that it names must be there.

    Attributes:
        files: sorted by path.

    Raises:
        DataError: there are no such files.

    Example:
        >>> files = TableFiles("s3://bucket/clicks/**/*.parquet", schema)  # doctest: +SKIP
        >>> sum(batch.table.num_rows for batch in files.batches(sorted(schema.columns())))  # doctest: +SKIP
        50000000
    """

    def __init__(self, dataset: str | Path, schema: Schema) -> None:
        self.dataset = str(dataset)
        self._schema = schema
        self._system, self.files = find_files(self.dataset)
        self._rows: dict[str, int] = {}
        # The kind of each column's values, and the file that showed it.
        self._kinds: dict[str, tuple[str, str]] = {}

    def batches(
        self, columns: list[str], first: int = 0, on_file: Callable[[int], object] | None = None
    ) -> Iterator[RowBatch]:
        """Yield the rows in order.

        Args:
            columns: which columns to read.
            first: the row to begin with.
            on_file: takes the size of each file in bytes, once it has been read.

        Raises:
            DataError: a file has vanished or changed since it was found, cannot be read, lacks a column, or has
                values of another kind than the files before it.
        """
        row = 0
        for file in self.files:
            known = self._rows.get(file.path)
            if known is not None and row + known <= first:
                row += known
                continue
            begin = row
            for table in self._read(file, columns):
                skipped = min(max(first - row, 0), table.num_rows)
                if skipped < table.num_rows:
                    start = row + skipped - begin
                    counted = f" (rows counted from its row {start:,})" if start else ""
                    yield RowBatch(table.slice(skipped), f"{file.path}{counted}", row + skipped)
                row += table.num_rows
            self._rows[file.path] = row - begin
            if on_file is not None:
                on_file(file.size)

    def _read(self, file: TableFile, columns: list[str]) -> Iterator[pa.Table]:
        try:
            self._check_unchanged(file)
            delimiter, compressed = table_format(file.path)
            own = [name for name in columns if name not in file.folders]
            if delimiter is None:
                parts = self._read_parquet(file, own)
            else:
                parts = self._read_text(file, own, delimiter, compressed)
            for part in parts:
                check_valid(part, file.path)
                for name in [name for name in columns if name in file.folders]:
                    part = part.append_column(name, self._folder_column(file, name, part.num_rows))
                # Text that should be numbers is told later, by its row.
                self._check_kinds(file, part, set() if delimiter is None else self._numbers())
                yield part
        except FileNotFoundError:
            raise DataError(f"{file.path}: the file has vanished") from None
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{file.path}: cannot read the table: {first_line(error)}") from None

    def _check_unchanged(self, file: TableFile) -> None:
        now = self._system.get_file_info(file.path)
        if now.type == pyarrow.fs.FileType.NotFound:
            raise DataError(f"{file.path}: the file has vanished")
        if (now.size, now.mtime_ns) != (file.size, file.modified):
            raise DataError(f"{file.path}: the file has changed while it was being prepared")

    def _read_parquet(self, file: TableFile, columns: list[str]) -> Iterator[pa.Table]:
        with self._system.open_input_file(file.path) as stream:
            opened = pyarrow.parquet.ParquetFile(stream)
            _check_columns(file.path, columns, opened.schema_arrow.names)
            groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
            size = sum(group.total_byte_size for group in groups) // max(opened.metadata.num_rows, 1)
            rows = min(max(_BATCH_BYTES // max(size, 1), _LEAST_ROWS), SLICE_ROWS)
            for batch in opened.iter_batches(batch_size=rows, columns=columns):
                yield pa.Table.from_batches([batch])

    def _read_text(
        self, file: TableFile, columns: list[str], delimiter: str, compressed: bool
    ) -> Iterator[pa.Table]:
        def opened() -> pa.NativeFile:
            return self._system.open_input_stream(file.path, compression="gzip" if compressed else None)

        with opened() as stream:
            delimiter, names = text_layout(stream.read(HEAD_BYTES), file.path, self._schema, delimiter)
        _check_columns(file.path, columns, names)
        # The reader below waits forever where it gets no thread from the system; this one starts them or fails.
        pyarrow.csv.read_csv(pa.BufferReader(b"a\n1\n"))
        with opened() as stream:
            try:
                reader = pyarrow.csv.open_csv(
                    stream,
                    read_options=pyarrow.csv.ReadOptions(block_size=_TEXT_BYTES),
                    parse_options=parse_options(delimiter),
                    # A stream would guess types from its first rows alone, so all is text and guessed below.
                    convert_options=convert_options(columns, columns),
                )
                for batch in reader:
                    table = pa.Table.from_batches([batch])
                    for name in [name for name in columns if name in self._numbers()]:
                        table = table.set_column(table.column_names.index(name), name, _guessed(table[name]))
                    yield table
            except pa.ArrowInvalid as error:
                if "UTF8" in str(error):
                    raise DataError(not_utf8(file.path, "LATIN1")) from None
                raise

    def _folder_column(self, file: TableFile, name: str, rows: int) -> pa.ChunkedArray:
        """Return the value of a folder for each row: text, unless the schema calls it a number."""
        value = None if file.folders[name] == _NO_PARTITION else file.folders[name]
        column = pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), rows)])
        return _guessed(column) if name in self._numbers() else column

    def _numbers(self) -> set[str | None]:
        """Return the columns that the schema calls numbers."""
        return {*self._schema.numeric, self._schema.label, self._schema.time}

    def _check_kinds(self, file: TableFile, table: pa.Table, but: set[str | None]) -> None:
        """Refuse columns, but for some, with values of another kind than before."""
        for column in table.schema:
            kind = _kind(column.type)
            if kind is None or column.name in but:
                continue
            before, where = self._kinds.setdefault(column.name, (kind, file.path))
            if kind != before:
                raise DataError(
                    f"{file.path}: column {column.name!r} holds {kind}, but {before} in {where}; all files must "
                    "hold values of one kind"
                )


def _check_columns(path: str, wanted: list[str], there: list[str]) -> None:
    for name in wanted:
        if there.count(name) != 1:
            if name in there:
                raise DataError(f"{path}: column {name!r} is there {there.count(name)} times")
            raise DataError(f"{path}: {no_column(name, there)}")


def _guessed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text as numbers or truth values, if all of it is that."""
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return pc.cast(column, kind)
        except pa.ArrowException:
            continue
    return column


def _kind(kind: pa.DataType) -> str | None:
    """Return what messages call the values of a type; None for a column without any."""
    if pa.types.is_null(kind):
        return None
    if is_list(kind):
        inner = _kind(kind.value_type)
        return None if inner is None else f"lists of {inner}"
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if is_text(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    return "times" if pa.types.is_temporal(kind) else str(kind)


def find_files(dataset: str) -> tuple[pyarrow.fs.FileSystem, list[TableFile]]:
    """Return a file system, and the files in it that a path, a directory or a pattern means, sorted.

    Raises:
        DataError: there are none.
    """
    check_name(dataset)
    begin, pattern = _divide_pattern(dataset)
    system, base = _file_system(begin, dataset)
    try:
        info = system.get_file_info(base)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise DataError(f"{dataset}: no such file or directory")
        if not pattern and info.type == pyarrow.fs.FileType.File:
            return system, [TableFile(info.path, info.size, info.mtime_ns)]
        listed = system.get_file_info(pyarrow.fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise DataError(f"{dataset}: cannot be listed: {first_line(error)}") from None
    files = []
    for info in sorted(listed, key=lambda info: info.path):
        inside = info.path[len(base) :].strip("/")
        # Names with a dot or a line before them are other programs' unfinished files and marks.
        hidden = any(part.startswith((".", "_")) for part in inside.split("/"))
        if info.type != pyarrow.fs.FileType.File or hidden or (pattern and not pattern.fullmatch(inside)):
            continue
        if pattern or re.search(r"\.(parquet|pq|[ct]sv(\.gz)?)$", info.path, re.IGNORECASE):
            folders = dict(part.split("=", 1) for part in inside.split("/")[:-1] if "=" in part)
            folders = {key: unquote(value) for key, value in folders.items()}
            files.append(TableFile(info.path, info.size, info.mtime_ns, folders))
    if not files:
        wanted = "no file fits" if pattern else "the directory holds no .parquet, .csv or .tsv file"
        raise DataError(f"{dataset}: {wanted}")
    return system, files


def _divide_pattern(dataset: str) -> tuple[str, re.Pattern[str] | None]:
    """Return the directory before the first wildcard, and what the paths inside it must look like."""
    if not re.search(r"[*?\[]", dataset) or ("://" not in dataset and Path(dataset).exists()):
        return dataset, None
    place = re.search(r"[*?\[]", dataset)
    assert place is not None
    begin = dataset[: place.start()].rpartition("/")[0]
    inside = dataset[len(begin) :].lstrip("/") if begin else dataset.lstrip("/")
    if not begin:
        begin = "/" if dataset.startswith("/") else "."
    translated = re.escape(inside).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*\*", ".*")
    translated = translated.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    translated = re.sub(r"\\\[(.*?)\\\]", lambda found: f"[{found[1]}]", translated)
    return begin, re.compile(translated)


def _file_system(path: str, dataset: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it."""
    if "://" not in path:
        return pyarrow.fs.LocalFileSystem(), path.rstrip("/") or "/"
    try:
        return pyarrow.fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = first_line(error)
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{dataset}: {reason}; with fsspec installed, its file systems are known too") from None
    try:
        system, inside = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{dataset}: {first_line(error)}") from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system)), inside


def described(files: list[TableFile]) -> list[list[Any]]:
    """Return what tells these files from others, as plain values."""
    return [[file.path, file.size, file.modified] for file in files]
