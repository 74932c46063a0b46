"""Tables that are text: whichever character divides their columns."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from dien_fast.data.schema import Schema
from dien_fast.data.utf8 import HEAD_BYTES, check_utf8, not_utf8
from dien_fast.errors import DataError

# "NA" is a country and a surname, so that only what no column means as a word counts as missing.
_NULLS = ["", "NaN", "nan", "null", "NULL"]
_DELIMITERS = (",", ";", "\t")


def read_text_table(
    content: Path | bytes, name: str, schema: Schema | None, *, delimiter: str = ",", compressed: bool = False
) -> pa.Table:
    """Return a CSV or TSV file as a table.

    Args:
        content: the file's path, or what it holds.
        name: what messages call it.
        schema: every column that it does not call numeric, label or time stays text. Without it, the
            columns' types are guessed.
        delimiter: what divides the columns, unless the header shows that ``,``, ``;`` or a tab does.
        compressed: whether the file is compressed by gzip.

    Raises:
        DataError: the file holds Parquet, or text in another encoding than UTF-8.
        pyarrow.ArrowException: the file is no table.
    """

    def opened() -> pa.NativeFile:
        # Arrow knows a compressed file by a lower-case ending alone.
        source = memoryview(content) if isinstance(content, bytes) else str(content)
        return pa.input_stream(source, compression="gzip" if compressed else None)

    with opened() as stream:
        delimiter, names = text_layout(stream.read(HEAD_BYTES), name, schema, delimiter)
    words: list[str] = []
    if schema is not None:
        # What the schema does not name only passes through, and a user is a name: both keep their zeros.
        numbers = {*schema.numeric, schema.label, schema.time}
        words = [column for column in names if column not in numbers]
    with opened() as stream:
        try:
            table = pyarrow.csv.read_csv(
                stream,
                parse_options=parse_options(delimiter),
                convert_options=convert_options(words),
            )
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise DataError(not_utf8(name, "LATIN1")) from None
            raise
    # Where it guesses types, Arrow takes text that is not UTF-8 for bytes.
    if any(pa.types.is_binary(column.type) for column in table.schema):
        raise DataError(not_utf8(name, "LATIN1"))
    return table


def text_layout(head: bytes, name: str, schema: Schema | None, delimiter: str) -> tuple[str, list[str]]:
    """Return what divides the columns of a text file, and their names.

    Args:
        head: the first ``HEAD_BYTES`` of the file.
        name: what messages call it.
        schema: of the columns, where known.
        delimiter: what divides the columns, unless the header shows another character.

    Raises:
        DataError: the file holds Parquet, or text in another encoding than UTF-8.
    """
    if head.startswith(b"PAR1"):
        raise DataError(f"{name}: the file holds Parquet, not text; its name should end in .parquet")
    check_utf8(head, name)
    # Arrow skips a byte order mark too.
    header = head.decode("utf-8", errors="ignore").removeprefix("\ufeff")
    delimiter = find_delimiter(header, delimiter, set() if schema is None else schema.columns())
    return delimiter, _columns(header, delimiter)


def parse_options(delimiter: str) -> pyarrow.csv.ParseOptions:
    """Return how Arrow is to divide a text file into values."""
    return pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def convert_options(words: list[str], only: list[str] | None = None) -> pyarrow.csv.ConvertOptions:
    """Return how Arrow is to read the values of a text file.

    Args:
        words: columns that stay text.
        only: the columns to read; None reads all.
    """
    return pyarrow.csv.ConvertOptions(
        column_types={column: pa.string() for column in words},
        include_columns=only,
        null_values=_NULLS,
        strings_can_be_null=True,
    )


def find_delimiter(header: str, default: str, wanted: set[str]) -> str:
    """Return what divides the columns of a header: ``,``, ``;`` or a tab.

    Args:
        header: text that begins with the header.
        default: returned unless another one explains the header better.
        wanted: names of columns that should be there; where none is, the number of columns counts.

    Example:
        >>> find_delimiter("item;label", ",", {"item", "label"})
        ';'
    """
    # max() takes the first of equals.
    delimiters = (default, *(other for other in _DELIMITERS if other != default))
    found = {delimiter: len(wanted & set(_columns(header, delimiter))) for delimiter in delimiters}
    if any(found.values()):
        return max(delimiters, key=found.__getitem__)
    if len(_columns(header, default)) > 1:
        return default
    return max(delimiters, key=lambda delimiter: len(_columns(header, delimiter)))


def _columns(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(StringIO(header), delimiter=delimiter), [])
    except csv.Error:
        return []
