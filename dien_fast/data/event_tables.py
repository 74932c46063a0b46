"""Logs of events from tables of one's own, with a schema file that says which columns are what."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from dien_fast.data.events import Events
from dien_fast.data.schema import Schema, check_keys, read_toml
from dien_fast.data.tables import read_table
from dien_fast.errors import DataError

# The settings of a schema of clicks that say nothing about its columns; a schema of events may have them too.
_SETTINGS = ("share_vocabulary", "min_count", "max_length", "negatives", "exclude_clicked", "embedding_sizes")
_LISTS = ("item_columns", "user_columns", "numeric")


def read_event_table(path: str | Path, schema: str | Path) -> Events:
    r"""Read a log of events from a table.

    Args:
        path: of the table, as for :func:`dien_fast.data.read_table`.
        schema: path of the TOML file with the names of its columns.

    Example of a schema file::

        min_count = 5

        [events]
        user = "customer"
        item = "article"
        time = "bought_at"                     # leave out where the rows stand in order of time
        item_columns = ["brand"]               # what else is known of the item
        user_columns = ["country", "age"]
        numeric = ["age"]                      # those of user_columns that are numbers
        session_gap = 1800                     # seconds; a longer pause begins a new session

    Raises:
        DataError: a file cannot be read, the schema has a wrong setting, or a column that it names is missing or
            has no value in some row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     table, schema = Path(directory) / "log.csv", Path(directory) / "log.toml"
        ...     _ = table.write_text("customer,article\nann,7\nann,8\n")
        ...     _ = schema.write_text('[events]\nuser = "customer"\nitem = "article"\n')
        ...     read_event_table(table, schema).item
        'article'
    """
    settings = read_toml(schema)
    check_keys(settings, ["events", *_SETTINGS], f"{schema}: the schema of events", required=["events"])
    if settings.get("negatives") == "columns":
        raise DataError(f"{schema}: negatives = 'columns' reads them from rows of clicks, which events are not")
    columns = settings.pop("events")
    _check_columns(columns, f"{schema}: [events]")
    # As in a table of clicks, whatever is not said to be a number or a time stays text.
    described = [columns["user"], columns["item"], *columns.get("item_columns", ())]
    kinds = Schema.from_dict(
        {name: value for name, value in settings.items() if name != "embedding_sizes"}
        | {
            "time": columns.get("time"),
            "numeric": columns.get("numeric", []),
            "categorical": list(dict.fromkeys(described)),
        },
        str(schema),
    )
    table = read_table(path, kinds)
    return Events(table, **{"time": None, **columns}, source=str(path), settings=settings)


def _check_columns(columns: Any, where: str) -> None:
    if not isinstance(columns, dict):
        raise DataError(f"{where} must be a table of settings, got {columns!r}")
    known = [item.name for item in fields(Events) if item.name not in ("table", "source", "notes", "settings")]
    check_keys(columns, known, where, required=["user", "item"])
    for name, value in columns.items():
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(column, str) and column for column in value):
                raise DataError(f"{where} {name} must be a list of column names, got {value!r}")
        elif name != "session_gap" and (not isinstance(value, str) or not value):
            raise DataError(f"{where} {name} must be the name of a column, got {value!r}")
    for name in columns.get("numeric", []):
        if name not in columns.get("user_columns", []):
            raise DataError(f"{where} numeric names {name!r}, which is not among user_columns")
    named = [columns[name] for name in ("user", "item", "time") if name in columns]
    named += [*columns.get("item_columns", []), *columns.get("user_columns", [])]
    for name in named:
        if named.count(name) > 1:
            raise DataError(f"{where} names the column {name!r} twice")
