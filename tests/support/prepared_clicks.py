"""Small tables prepared with small ranges and blocks, so that there are many of both."""

import pyarrow as pa
import pyarrow.parquet
from clicks import timed_schema, timed_table

from dien_fast.data.prepared import prepare as module
from dien_fast.data.prepared import shards


def small_pieces(monkeypatch, range_rows=150, block_rows=32):
    """Let a range and a block of prepared data have few rows."""
    monkeypatch.setattr(module, "RANGE_ROWS", range_rows)
    monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(shards, "BLOCK_ROWS", block_rows)


def write_clicks(directory, rows=400, files=3, **settings):
    """Write a table in several files; return the table, its schema and a pattern of the files."""
    table, schema = timed_table(rows), timed_schema(**settings)
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        begin = number * rows // files
        part = table.slice(begin, (number + 1) * rows // files - begin)
        pa.parquet.write_table(part, directory / f"clicks-{number}.parquet", row_group_size=70)
    return table, schema, str(directory / "*.parquet")
