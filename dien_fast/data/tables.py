"""Tables from files and from whatever speaks Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from dien_fast.data.columns import as_column, first_line
from dien_fast.data.schema import Schema
from dien_fast.errors import DataError

# "NA" is a country and a surname: only what no column means as a word counts as missing.
_NULLS = ["", "NaN", "nan", "null", "NULL"]


def read_table(source: Any, schema: Schema | None = None) -> pa.Table:
    """Return a table from a file or from memory.

    Args:
        source: path of a ``.csv``, ``.tsv`` (both also ``.gz``) or ``.parquet`` file or of a directory of
            Parquet files; or an object with ``__arrow_c_stream__`` (pyarrow, pandas, Polars, DuckDB), or a
            mapping from column name to values.
        schema: where given, every column of a CSV file that it does not call numeric, label or time stays
            text, so that ``01234`` keeps its zero and a history of one event is not taken for a number.

    Raises:
        DataError: the source cannot be read; the message names the file.

    Example:
        >>> read_table({"itemId": [3, 4], "label": [0, 1]}).num_rows
        2
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, str | Path):
        return _read_path(Path(source), schema)
    try:
        if isinstance(source, Mapping):
            return pa.table({name: as_column(values) for name, values in source.items()})
        if hasattr(source, "__arrow_c_stream__"):
            return pa.table(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"cannot turn the {type(source).__name__} into a table: {first_line(error)}") from None
    raise DataError(
        "a table must be a path, a mapping of columns or an object with __arrow_c_stream__, "
        f"got {type(source).__name__}"
    )


def _read_path(path: Path, schema: Schema | None) -> pa.Table:
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    name = path.name.lower().removesuffix(".gz")
    try:
        if path.is_dir():
            return _read_directory(path)
        if name.endswith((".csv", ".tsv")):
            return _read_csv(path, "," if name.endswith(".csv") else "\t", schema)
        if name.endswith((".parquet", ".pq")):
            return pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the table: {first_line(error)}") from None
    raise DataError(f"{path}: expected a .csv, .tsv or .parquet file or a directory of Parquet files")


def _read_directory(path: Path) -> pa.Table:
    files = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".pq"))
    if not files:
        raise DataError(f"{path}: the directory holds no .parquet file")
    return pyarrow.dataset.dataset([str(file) for file in files], format="parquet").to_table()


def _read_csv(path: Path, delimiter: str, schema: Schema | None) -> pa.Table:
    words: list[str] = []
    if schema is not None:
        # What the schema does not name only passes through, and a user is a name: both keep their zeros.
        numbers = {*schema.numeric, schema.label, schema.time}
        with pyarrow.csv.open_csv(
            path, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        ) as reader:
            words = [name for name in reader.schema.names if name not in numbers]
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in words},
            null_values=_NULLS,
            strings_can_be_null=True,
        ),
    )


def get_column(table: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    """Return a column of a table.

    Raises:
        DataError: there is none, or two, of that name.
    """
    found = table.schema.get_all_field_indices(name)
    if not found:
        raise DataError(f"{source}: no column {name!r}; the columns are {', '.join(table.column_names)}")
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
