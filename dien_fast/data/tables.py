"""Tables from files and from whatever speaks Arrow, and tables to files."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from dien_fast.data.columns import as_column, as_lists, first_line, is_list, refuse_sets
from dien_fast.data.schema import Schema
from dien_fast.data.text_files import read_text_table
from dien_fast.data.utf8 import check_name
from dien_fast.errors import DataError
from dien_fast.files import remove_abandoned, write_atomically

_PARQUET = (".parquet", ".pq")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# The path that stands for standard input or output.
STANDARD_STREAM = "-"


class TableFormat(NamedTuple):
    """How a file holds a table: what divides its columns (None for Parquet), and whether gzip compressed it."""

    delimiter: str | None
    compressed: bool


def table_format(path: str | Path) -> TableFormat:
    """Return the format that a file's name ends in, in letters of either case.

    Raises:
        DataError: the ending is not known, or the path is not UTF-8.

    Example:
        >>> table_format("clicks.CSV.gz")
        TableFormat(delimiter=',', compressed=True)
    """
    check_name(path)
    name = Path(path).name.lower()
    if name.endswith(_PARQUET):
        return TableFormat(None, False)
    plain = name.removesuffix(".gz")
    for ending, delimiter in _DELIMITERS.items():
        if plain.endswith(ending):
            return TableFormat(delimiter, plain != name)
    raise DataError(f"{path} must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet")


def read_table(source: Any, schema: Schema | None = None) -> pa.Table:
    """Return a table from a file or from memory.

    Args:
        source: path of a ``.csv``, ``.tsv`` (both also ``.gz``) or ``.parquet`` file or of a directory of
            Parquet files, whose ``key=value`` folders are columns; or a binary stream of such a file; or an
            object with ``__arrow_c_stream__`` (pyarrow, pandas, Polars, DuckDB), or a mapping from column
            name to values. Columns of text are divided by ``,``, ``;`` or tabs, as the header shows.
        schema: where given, every column of a CSV file that it does not call numeric, label or time stays
            text, so that ``01234`` keeps its zero and a history of one event is not taken for a number.

    Raises:
        DataError: the source cannot be read, or holds bytes that are no Arrow data, such as text that is not
            UTF-8; the message names the file.

    Example:
        >>> read_table({"itemId": [3, 4], "label": [0, 1]}).num_rows
        2
    """
    if isinstance(source, str | Path):
        return check_valid(_read_path(Path(source), schema), str(source))
    if isinstance(source, io.IOBase):
        return check_valid(_read_stream(source, schema), str(getattr(source, "name", "stream")))
    return check_valid(source if isinstance(source, pa.Table) else _read_memory(source), "table")


def check_valid(table: pa.Table, source: str) -> pa.Table:
    """Return a table, unless it breaks the rules of Arrow's format, which readers of files do not look at.

    Raises:
        DataError: naming the column.
    """
    try:
        names = table.column_names
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: the name of a column is not UTF-8: {error.object!r}") from None
    for name, column in zip(names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{source}: column {name!r} is damaged: {first_line(error)}") from None
    return table


def _read_memory(source: Any) -> pa.Table:
    """Return a table from an object in memory."""
    try:
        if isinstance(source, Mapping):
            return pa.table({name: _named_column(name, values) for name, values in source.items()})
        if hasattr(source, "__arrow_c_stream__"):
            table = pa.table(source)
            _refuse_sets(table, source)
            return table
    except DataError:
        raise
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"cannot turn the {type(source).__name__} into a table: {first_line(error)}") from None
    raise DataError(
        "a table must be a path, a mapping of columns or an object with __arrow_c_stream__, "
        f"got {type(source).__name__}"
    )


def _named_column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    try:
        return as_column(values)
    except DataError as error:
        raise DataError(f"column {name!r}: {error}") from None


def _refuse_sets(table: pa.Table, source: Any) -> None:
    """Refuse a DataFrame of pandas, the only table that can hold Python objects, if one of them is a set."""
    if type(source).__module__.partition(".")[0] != "pandas":
        return
    for column in table.schema:
        # The index comes along under a name of its own.
        if column.name in source and is_list(column.type):
            try:
                refuse_sets(column.type, source[column.name])
            except DataError as error:
                raise DataError(f"column {column.name!r}: {error}") from None


def _read_path(path: Path, schema: Schema | None) -> pa.Table:
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    try:
        if path.is_dir():
            return _read_directory(path, schema)
        delimiter, compressed = table_format(path)
        if delimiter is None:
            return _read_parquet(path)
        return read_text_table(path, str(path), schema, delimiter=delimiter, compressed=compressed)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the table: {first_line(error)}") from None


def _read_stream(stream: Any, schema: Schema | None) -> pa.Table:
    """Return the table that a stream holds: Parquet, or text that may be compressed."""
    name = str(getattr(stream, "name", "stream"))
    if isinstance(stream, io.TextIOBase):
        raise DataError(f"{name}: a table is read from a binary stream, got {type(stream).__name__}")
    try:
        content = stream.read()
        if content.startswith(b"PAR1"):
            return _read_parquet(pa.BufferReader(content))
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return read_text_table(content, name, schema)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot read the table: {first_line(error)}") from None


def _read_parquet(source: Any) -> pa.Table:
    # Unlike read_table, it takes a file with two columns of one name, which are refused only where they are read.
    with pyarrow.parquet.ParquetFile(source) as file:
        return file.read()


def _read_directory(path: Path, schema: Schema | None) -> pa.Table:
    # Names with a dot before them are other programs' unfinished files.
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in _PARQUET and not file.name.startswith(".")
    )
    if not files:
        raise DataError(f"{path}: the directory holds no .parquet file")

    for file in files:
        check_name(file)

    def dataset(partitioning: Any) -> Any:
        return pyarrow.dataset.dataset(
            [str(file) for file in files],
            format="parquet",
            partitioning=partitioning,
            partition_base_dir=str(path),
        )

    found = dataset("hive").schema
    folders = [part.partition("=")[0] for part in files[0].relative_to(path).parts[:-1] if "=" in part]
    keys = [key for key in folders if key in found.names]
    if not keys:
        return dataset(None).to_table()
    numbers = {*schema.numeric, schema.label, schema.time} if schema is not None else set(keys)
    types = [(key, found.field(key).type if key in numbers else pa.string()) for key in keys]
    return dataset(pyarrow.dataset.partitioning(pa.schema(types), flavor="hive")).to_table()


def write_table(table: pa.Table, path: str | Path, separator: str = "|") -> None:
    """Write ``table`` atomically as Parquet or, with lists as text, as CSV or TSV.

    Args:
        table: any table.
        path: ends in ``.parquet``, ``.csv``, ``.tsv``, ``.csv.gz`` or ``.tsv.gz``; ``-`` writes CSV to
            standard output.
        separator: put between the words of a list in a CSV or TSV file.

    Raises:
        DataError: text cannot hold one of the columns, or the ending is not known.

    Example:
        >>> write_table(pa.table({"probability": [0.5]}), "scored.csv")  # doctest: +SKIP
    """
    if str(path) == STANDARD_STREAM:
        pyarrow.csv.write_csv(_lists_as_text(table, "standard output", separator), sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    delimiter, compressed = table_format(path)
    remove_abandoned(path)
    if delimiter is None:
        with write_atomically(path) as unfinished:
            pyarrow.parquet.write_table(table, unfinished)
        return
    table = _lists_as_text(table, path, separator)
    with (
        write_atomically(path) as unfinished,
        pa.output_stream(str(unfinished), compression="gzip" if compressed else None) as stream,
    ):
        pyarrow.csv.write_csv(table, stream, pyarrow.csv.WriteOptions(delimiter=delimiter))


def _lists_as_text(table: pa.Table, path: str | Path, separator: str) -> pa.Table:
    for number, column in enumerate(table.schema):
        try:
            if is_list(column.type):
                words = as_lists(table[number]).cast(pa.large_list(pa.large_string()))
                joined = pc.binary_join(words, pa.scalar(separator, pa.large_string()))
                table = table.set_column(number, column.name, joined)
            elif pa.types.is_nested(column.type):
                raise pa.ArrowInvalid("nested")
        except (pa.ArrowException, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"column {column.name!r} of type {column.type} cannot be written to {path}: write .parquet instead"
            ) from error
    return table


def no_column(name: str, columns: Iterable[str]) -> str:
    """Return the clause that says that a table has no such column.

    Example:
        >>> no_column("item", ["", "brand", "price"])
        "no column 'item'; the columns are brand, price"
    """
    # A column without a name only says how many rows there are.
    named = ", ".join(filter(None, columns))
    return f"no column {name!r}; " + (f"the columns are {named}" if named else "there are no columns")


def get_column(table: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    """Return a column of a table.

    Raises:
        DataError: there is none, or two, of that name.
    """
    found = table.schema.get_all_field_indices(name)
    if not found:
        raise DataError(f"{source}: {no_column(name, table.column_names)}")
    if len(found) > 1:
        raise DataError(f"{source}: column {name!r} is there {len(found)} times")
    return table.column(found[0])


@contextmanager
def reading(table: pa.Table, name: str, source: str) -> Iterator[pa.ChunkedArray]:
    """Give a column of a table, and put its name before the message of a DataError raised inside."""
    column = get_column(table, name, source)
    try:
        yield column
    except DataError as error:
        raise DataError(f"{source}: column {name!r}: {error}") from None
