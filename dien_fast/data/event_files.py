"""Logs of events from files: MovieLens, Amazon reviews, RecBole's, and lines of ``user item``."""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from dien_fast.data.columns import first_line
from dien_fast.data.events import Events
from dien_fast.data.movielens import read_movielens
from dien_fast.errors import DataError

# What an item is called that has no category; the name is that of mouna99/dien, script/process_data.py.
NO_CATEGORY = "default_cat"

# Bytes of JSON parsed at once: bounds the memory, as reviews carry their texts.
_BLOCK = 8 << 20
# Lines of Python's literals turned into a table at once.
_LITERALS = 100_000

# The fields of a review: user, item, time. 2014 and 2018 have the same names, 2023 others and milliseconds.
_REVIEW_FIELDS = (("reviewerID", "asin", "unixReviewTime"), ("user_id", "parent_asin", "timestamp"))
# The fields of an item's description: its id, and its category as a list of paths or as one path.
_META_FIELDS = (
    ("asin", "categories", pa.list_(pa.list_(pa.string()))),
    ("asin", "category", pa.list_(pa.string())),
    ("parent_asin", "categories", pa.list_(pa.string())),
)


def read_events(path: str | Path) -> Events:
    r"""Read a log of events, whichever of the known formats it has.

    - A directory of MovieLens, in any layout of :func:`read_movielens`: the genres are the item's category.
    - ``reviews_X.json`` or ``.jsonl``, also ``.gz``: Amazon reviews with the field names of 2014, 2018 or 2023;
      categories from ``meta_X`` beside it, where it is there.
    - ``X.inter``: RecBole's; the columns of words of ``X.item`` beside it describe the items.
    - ``X.txt``: a user and an item a line, in order of time, as SASRec's.

    A directory that holds one such file will do, too.

    Raises:
        DataError: the format is none of these, or the file is not what its name says.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "log.txt"
        ...     _ = path.write_text("ann 1\nann 2\nbob 2\n")
        ...     events = read_events(path)
        >>> events.table["item"].to_pylist()
        ['1', '2', '2']
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_dir():
        if _is_movielens(path):
            return _movielens_events(path)
        known = [file for file in sorted(path.iterdir()) if _reader(file) and not _is_description(file)]
        if len(known) != 1:
            found = ", ".join(file.name for file in known) or "none"
            raise DataError(
                f"{path}: expected MovieLens, or one file of reviews (reviews_*.json.gz), *.inter or *.txt; "
                f"found {found}"
            )
        path = known[0]
    reader = _reader(path)
    if reader is None:
        raise DataError(
            f"{path}: expected reviews (.json or .jsonl, also .gz), .inter or .txt; a table of another kind needs "
            "a schema that names its columns"
        )
    try:
        return reader(path)
    except (OSError, EOFError, zlib.error) as error:  # of a compressed file that is damaged or cut short, too
        raise DataError(f"{path}: cannot be read: {error}") from None


def _reader(path: Path) -> Callable[[Path], Events] | None:
    name = path.name.removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        return _read_reviews
    return {".inter": _read_inter, ".txt": _read_lines}.get(path.suffix)


def _is_description(path: Path) -> bool:
    """Whether a JSON file describes items rather than events."""
    return path.name.startswith("meta_")


def _is_movielens(path: Path) -> bool:
    names = ("u.data", "ratings.dat", "ratings.csv")
    return any((path / name).exists() for name in names) or bool(sorted(path.glob("ml-*.inter")))


def _movielens_events(path: Path) -> Events:
    ratings, movies, users = read_movielens(path)
    rows = pc.index_in(ratings["movieId"], value_set=movies["movieId"])
    genres, notes = _named_categories(ratings["movieId"], movies["genres"].take(rows), "the file of movies")
    table = ratings.append_column("genres", genres)
    columns: list[str] = []
    if users is not None:
        columns = [name for name in users.column_names if name != "userId"]
        rows = pc.index_in(ratings["userId"], value_set=users["userId"])
        for name in columns:
            table = table.append_column(name, users[name].take(rows))
    return Events(
        table,
        user="userId",
        item="movieId",
        time="timestamp",
        item_columns=["genres"],
        user_columns=columns,
        numeric=[name for name in columns if name == "age"],
        source=str(path),
        notes=notes,
    )


def _read_reviews(path: Path) -> Events:
    """Read Amazon reviews, and the categories of their items where their descriptions are beside them."""
    if _is_description(path):
        raise DataError(f"{path}: this file describes items; name the file of reviews beside it")
    keys = _first_object(path)
    fields = next((names for names in _REVIEW_FIELDS if keys.keys() >= set(names)), None)
    if fields is None:
        wanted = " or ".join(", ".join(names) for names in _REVIEW_FIELDS)
        raise DataError(f"{path}: a review must have the fields {wanted}; the first one has {', '.join(keys)}")
    user, item, time = fields
    schema = pa.schema([(user, pa.string()), (item, pa.string()), (time, pa.int64())])
    table = pa.concat_tables(_blocks(path, schema)).rename_columns(["user", "item", "time"])
    if time == "timestamp":
        table = table.set_column(2, "time", table["time"].cast(pa.timestamp("ms")))
    description = _description_of(path)
    if description is None:
        return Events(table, source=str(path))
    category = _categories(description, table["item"].unique())
    named, notes = _named_categories(table["item"], category(table["item"]), description.name)
    return Events(table.append_column("category", named), item_columns=["category"], source=str(path), notes=notes)


def _description_of(path: Path) -> Path | None:
    """Return the file of items beside a file of reviews: reviews_Books_5.json.gz -> meta_Books.json.gz."""
    stem = path.name.partition(".json")[0].removeprefix("reviews_").removesuffix("_5")
    found = sorted(path.parent.glob(f"meta_{stem}.json*"))
    return found[0] if found else None


def _categories(path: Path, items: pa.Array) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    """Return a function from items to their categories: the last name of an item's first path."""
    keys = _first_object(path)
    fields = next(
        (names for names in _META_FIELDS if names[0] in keys and _fits(keys.get(names[1]), names[2])), None
    )
    if fields is None:
        raise DataError(
            f"{path}: an item must have the fields asin (or parent_asin) and categories (or category); the first "
            f"one has {', '.join(keys)}"
        )
    name, lists, kind = fields
    ids, words = [], []
    for block in _blocks(path, pa.schema([(name, pa.string()), (lists, kind)])):
        block = block.filter(pc.is_in(block[name], value_set=items))
        paths = block[lists].combine_chunks()
        if pa.types.is_list(kind.value_type):
            paths = _element(paths, last=False)
        ids.append(block[name])
        words.append(_element(paths, last=True))
    known = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    category = pa.chunked_array(words, pa.string())
    return lambda column: category.take(pc.index_in(column, value_set=known))


def _named_categories(
    items: pa.ChunkedArray, categories: pa.ChunkedArray, file: str
) -> tuple[pa.ChunkedArray, list[str]]:
    """Name the category of events that have none, and return a sentence that counts their items."""
    nameless = pc.is_null(categories)
    missing = pc.count_distinct(items.filter(nameless)).as_py()
    notes = []
    if missing:
        total = pc.count_distinct(items).as_py()
        notes.append(f"{file} has no category for {missing:,} of {total:,} items; theirs is {NO_CATEGORY}")
    return pc.fill_null(categories, NO_CATEGORY), notes


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a field of the first item is a list of paths, or a path, as ``kind`` says."""
    if not isinstance(value, list):
        return False
    return not value or isinstance(value[0], list) == pa.types.is_list(kind.value_type)


def _element(lists: pa.Array, *, last: bool) -> pa.Array:
    """Return the first or the last element of each list; null where there is none."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    there = pc.greater(lengths, 0)
    # Nulls and empty lists have no element in the flattened values.
    ends = pc.cumulative_sum(lengths)
    index = pc.subtract(ends, 1) if last else pc.subtract(ends, lengths)
    return lists.flatten().take(pc.if_else(there, index, None))


def _first_object(path: Path) -> dict[str, Any]:
    with _stream(path) as stream:
        line = stream.readline()
    return _object(line.decode("utf-8", "replace"), path, 0)


def _object(line: str, path: Path, row: int) -> dict[str, Any]:
    """Return one line as a dict; the descriptions of 2014 are Python's, not JSON's."""
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise DataError(f"{path}: row {row} is no JSON object: {line.strip()[:60]!r}")


def _stream(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _blocks(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the wanted fields of a file of one object a line, some megabytes at a time.

    Raises:
        DataError: a line is no object, or a field has another type; the message names the row.
    """
    with _stream(path) as stream:
        first = stream.readline()
    if not _is_json(first):
        yield from _literals(path, schema)
        return
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with _stream(path) as stream:
            blocks = pyarrow.json.ReadOptions(block_size=_BLOCK)
            for batch in pyarrow.json.open_json(stream, read_options=blocks, parse_options=options):
                yield pa.Table.from_batches([batch]).select(schema.names)
    except (pa.ArrowException, OSError) as error:
        for _ in _literals(path, schema):  # slower, but it knows the row
            pass
        raise DataError(f"{path}: cannot be read as JSON: {first_line(error)}") from None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _literals(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the fields of a file of Python's literals, which the descriptions of 2014 are, line by line."""
    rows: list[dict[str, Any]] = []
    with _stream(path) as stream:
        for number, line in enumerate(stream):
            found = _object(line.decode("utf-8", "replace"), path, number)
            try:
                rows.append(pa.scalar({name: found.get(name) for name in schema.names}, pa.struct(schema)).as_py())
            except (pa.ArrowException, TypeError) as error:
                raise DataError(f"{path}: row {number}: {first_line(error)}") from None
            if len(rows) == _LITERALS:
                yield pa.Table.from_pylist(rows, schema)
                rows = []
    yield pa.Table.from_pylist(rows, schema)


def _read_inter(path: Path) -> Events:
    table = _read_atomic(path)
    for name in ("user_id", "item_id"):
        if name not in table.column_names:
            raise DataError(f"{path}: no field {name!r}; the header has {', '.join(table.column_names)}")
    described = path.with_suffix(".item")
    columns: list[str] = []
    notes: list[str] = []
    if described.exists():
        items = _read_atomic(described)
        if "item_id" not in items.column_names:
            raise DataError(f"{described}: no field 'item_id'; the header has {', '.join(items.column_names)}")
        columns = [
            name for name in items.column_names if name != "item_id" and pa.types.is_string(items[name].type)
        ]
        rows = pc.index_in(table["item_id"], value_set=items["item_id"])
        for name in columns:
            where = f"field {name!r} of {described.name}"
            values, missing = _named_categories(table["item_id"], items[name].take(rows), where)
            table, notes = table.append_column(name, values), notes + missing
    time = "timestamp" if "timestamp" in table.column_names else None
    return Events(
        table, user="user_id", item="item_id", time=time, item_columns=columns, source=str(path), notes=notes
    )


def _read_atomic(path: Path) -> pa.Table:
    """Read one of RecBole's files: tab-separated, with a header of ``name:type``; sequences are left out."""
    with path.open("rb") as stream:
        header = stream.readline().decode("utf-8", "replace").strip().split("\t")
    kinds = {"token": pa.string(), "float": pa.float64()}
    fields = [field.partition(":") for field in header]
    wrong = [field for field, (_, colon, _) in zip(header, fields, strict=True) if not colon]
    if wrong:
        raise DataError(f"{path}: a header of name:type fields was expected, got {wrong[0]!r}")
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=[name for name, _, _ in fields], skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: kinds.get(kind, pa.string()) for name, _, kind in fields}
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot read the table: {first_line(error)}") from None
    return table.select([name for name, _, kind in fields if kind in kinds])


def _read_lines(path: Path) -> Events:
    """Read lines of ``user item`` in order of time, as SASRec and its many successors have them."""
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=["user", "item"]),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" "),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"user": pa.string(), "item": pa.string()}),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a user and an item in every line: {first_line(error)}") from None
    return Events(table, time=None, source=str(path))
