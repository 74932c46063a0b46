"""Rows of the shop in every kind of file that holds a table, for campaigns."""

import csv
import gzip
import io
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

COLUMNS = ["who", "when", "clicked", "price", "country", "item", "brand", "words", "past_items", "past_brands"]
SEQUENCES = ["words", "past_items", "past_brands"]
# What a CSV file means by no value; the same list stands in docs/own-data.md.
NULLS = ["", "NaN", "nan", "null", "NULL"]
STRANGE = [
    "NA",
    "None",
    "ü",
    "\U0001f6d2",
    "a,b",
    'say "x"',
    "line\nbreak",
    " i1",
    "i1 ",
    "\t",
    "0",
    "007",
    "1.0",
    "-0",
]
STRANGE += ["e\u0301", "\u200b", "\ufeff", "i1\x00", "TRUE", "2024-01-01", "a" * 300, "__UNKNOWN__"]
# Python's csv writes a carriage return without quotes.
TEXT = st.characters(codec="utf-8", exclude_characters="\r")
ITEMS = [f"i{number}" for number in range(12)]
BRANDS = [f"b{number}" for number in range(3)]
PRICES = [None, 0.0, -0.0, 0.25, 1, -3.5, 1e-320, 1e300, 2**53, 0.1]


def words(known):
    """One word: mostly of those that the run knows."""
    return st.one_of(
        st.sampled_from(known), st.sampled_from(known), st.sampled_from(STRANGE), st.text(TEXT, max_size=4)
    )


@st.composite
def rows(draw):
    """Rows as dicts of Python values, whose histories describe the same events."""
    found = []
    for number in range(draw(st.integers(0, 6))):
        events = draw(st.integers(0, 4))
        found.append(
            {
                "who": draw(words(["u1", "u2"])),
                "when": number,
                "clicked": draw(st.integers(0, 1)),
                "price": draw(
                    st.one_of(st.sampled_from(PRICES), st.floats(allow_nan=False, allow_infinity=False))
                ),
                "country": draw(st.one_of(st.none(), words(["NO", "NA", "IS"]))),
                "item": draw(st.one_of(st.none(), words(ITEMS))),
                "brand": draw(words(BRANDS)),
                "words": draw(st.one_of(st.none(), st.lists(words(["new", "red", "blue"]), max_size=3))),
                "past_items": draw(st.lists(words(ITEMS), min_size=events, max_size=events)),
                "past_brands": draw(st.lists(words(BRANDS), min_size=events, max_size=events)),
            }
        )
    return found


@dataclass
class Text:
    """How a CSV file is written."""

    delimiter: str = ","
    quoting: int = csv.QUOTE_MINIMAL
    newline: str = "\n"
    mark: bool = False  # a byte order mark before the text
    compressed: bool = False
    order: list = field(default_factory=lambda: list(COLUMNS))
    extra: list = field(default_factory=list)  # names of more columns

    @property
    def ending(self):
        return ".tsv" * (self.delimiter == "\t") + ".csv" * (self.delimiter != "\t") + ".gz" * self.compressed


def text_styles():
    return st.builds(
        Text,
        delimiter=st.sampled_from([",", ";", "\t"]),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        newline=st.sampled_from(["\n", "\r\n"]),
        mark=st.booleans(),
        compressed=st.booleans(),
        order=st.permutations(COLUMNS),
        extra=st.lists(st.sampled_from(["", "note", "Ünit", "item ", "probabilitY"]), max_size=2, unique=True),
    )


def as_text(found, style):
    """Return the bytes of a CSV file with rows, and the rows that it means."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=style.delimiter, quoting=style.quoting, lineterminator=style.newline)
    writer.writerow([*style.order, *style.extra])
    meant = []
    for row in found:
        cells = {name: _cell(name, row[name]) for name in COLUMNS}
        writer.writerow([*(cells[name] for name in style.order), *("x" for _ in style.extra)])
        meant.append({name: _meaning(name, cells[name], row[name]) for name in COLUMNS})
    content = ("\ufeff" * style.mark + stream.getvalue()).encode()
    return (gzip.compress(content) if style.compressed else content), meant


def _cell(name, value):
    if value is None:
        return ""
    return ";".join(value) if name in SEQUENCES else str(value)


def _meaning(name, cell, value):
    """What a cell of a CSV file means, written anew from docs/own-data.md."""
    if name in ("price", "clicked", "when"):
        return value
    if cell in NULLS:
        return None
    return cell.split(";") if name in SEQUENCES else cell


WORD_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]
NUMBER_TYPES = [
    pa.float64(),
    pa.float64(),
    pa.decimal128(38, 10),
    pa.float32(),
    pa.int64(),
    pa.dictionary(pa.int32(), pa.float64()),
]
LIST_TYPES = [pa.list_, pa.large_list, None]


@dataclass
class Columns:
    """How a Parquet file is written."""

    types: dict
    order: list
    compression: str
    group: int  # rows of a row group
    paged: int  # version of its data pages
    ending: str = ".parquet"


@st.composite
def column_styles(draw):
    types = {name: draw(st.sampled_from(WORD_TYPES)) for name in ("who", "country", "item", "brand")}
    types |= {
        "price": draw(st.sampled_from(NUMBER_TYPES)),
        "clicked": draw(st.sampled_from([pa.int8(), pa.bool_(), pa.float32(), pa.uint64()])),
    }
    types |= {
        "when": draw(
            st.sampled_from([pa.int64(), pa.int16(), pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.date32()])
        )
    }
    for name in SEQUENCES:
        container = draw(st.sampled_from(LIST_TYPES))
        types[name] = pa.string() if container is None else container(draw(st.sampled_from(WORD_TYPES[:2])))
    return Columns(
        types=types,
        order=draw(st.permutations(COLUMNS)),
        compression=draw(st.sampled_from(["none", "snappy", "gzip", "zstd"])),
        group=draw(st.integers(1, 7)),
        paged=draw(st.sampled_from(["1.0", "2.0"])),
    )


def as_parquet(found, style):
    """Return the bytes of a Parquet file, None where a type cannot hold the rows; and the rows it means."""
    columns, meant = {}, [dict(row) for row in found]
    for name in style.order:
        kind, values = style.types[name], [row[name] for row in found]
        if name in SEQUENCES and pa.types.is_string(kind):
            values = [None if value is None else ";".join(value) for value in values]
            for row, value in zip(meant, values, strict=True):
                # A text of no letters is a sequence of no words.
                row[name] = value.split(";") if value else None
        if name == "clicked" and pa.types.is_boolean(kind):
            values = [bool(value) for value in values]
        try:
            plain = pa.array(values, pa.string() if not found else None) if pa.types.is_dictionary(kind) else None
            columns[name] = (
                pa.array(values, kind) if plain is None else plain.cast(kind.value_type).dictionary_encode()
            )
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return None, meant
        if name == "price":
            for row, value in zip(meant, columns[name].to_pylist(), strict=True):
                row[name] = None if value is None else float(value)
    stream = io.BytesIO()
    pa.parquet.write_table(
        pa.table(columns),
        stream,
        compression=style.compression,
        row_group_size=style.group,
        data_page_version=style.paged,
    )
    return stream.getvalue(), meant
