from __future__ import annotations

import gzip
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from dien_fast.data import Group, Pair, Schema, read_table
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError

CSV = "zip,item,hist,label\n01234,7,7|8,1\n,8,7,0\n99,9,,1\n"
SCHEMA = Schema(categorical=["zip", "item"], sequences=["hist"], groups=[Group("g", [Pair("item", "hist")])])


def test_csv_with_schema_keeps_words_as_text(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text(CSV)
    table = read_table(path, SCHEMA)
    assert table["zip"].to_pylist() == ["01234", None, "99"]
    assert table["hist"].to_pylist() == ["7|8", "7", None]
    assert table["label"].to_pylist() == [1, 0, 1]
    assert read_table(str(path))["item"].to_pylist() == [7, 8, 9]


def test_tsv_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "clicks.tsv").write_text(CSV.replace(",", "\t"))
    with gzip.open(tmp_path / "clicks.csv.gz", "wt") as file:
        file.write(CSV)
    for name in ("clicks.tsv", "clicks.csv.gz"):
        assert read_table(tmp_path / name).num_rows == 3


def test_quoted_text_and_na(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text('country,title\nNA,"a, b"\nnan,"line\nbreak"\n')
    assert read_table(path).to_pydict() == {"country": ["NA", None], "title": ["a, b", "line\nbreak"]}


def test_parquet_file_and_directory(tmp_path: Path) -> None:
    table = pa.table({"hist": [[1, 2], None], "item": [1, 2]})
    for name in ("a.parquet", "b.parquet"):
        pa.parquet.write_table(table, tmp_path / name)
    assert read_table(tmp_path / "a.parquet") == table
    assert read_table(tmp_path) == pa.concat_tables([table, table])


@pytest.mark.parametrize(
    "source",
    [
        pa.table({"a": [1, 2]}),
        pa.record_batch({"a": [1, 2]}),
        pd.DataFrame({"a": [1, 2]}),
        pl.DataFrame({"a": [1, 2]}),
        {"a": [1, 2]},
    ],
)
def test_tables_in_memory(source: object) -> None:
    assert read_table(source)["a"].to_pylist() == [1, 2]


def test_duckdb_relations() -> None:
    with duckdb.connect() as connection:
        assert read_table(connection.sql("select unnest([1, 2]) as a"))["a"].to_pylist() == [1, 2]


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv: no such file or directory"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"the directory holds no .parquet file"):
        read_table(tmp_path)
    (tmp_path / "clicks.json").write_text("{}")
    with pytest.raises(DataError, match=r"clicks.json: expected a .csv, .tsv or .parquet file"):
        read_table(tmp_path / "clicks.json")
    with pytest.raises(DataError, match=r"a table must be a path, a mapping of columns or .* got int"):
        read_table(3)
    with pytest.raises(DataError, match="cannot turn the dict into a table"):
        read_table({"a": [1], "b": [1, 2]})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("ragged.csv", b"a,b\n1,2\n3\n"),
        ("binary.csv", b"a\n\xff\xfe\n"),
        ("text.parquet", b"a,b\n1,2\n"),
    ],
)
def test_broken_files_are_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot read the table: ") as caught:
        read_table(path, Schema(categorical=["a"]))
    assert "\n" not in str(caught.value)


def test_columns_are_found_or_named() -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "b"])
    assert get_column(table, "b", "t").to_pylist() == [3]
    with pytest.raises(DataError, match="t: column 'a' is there 2 times"):
        get_column(table, "a", "t")
    with pytest.raises(DataError, match="t: no column 'c'; the columns are a, a, b"):
        get_column(table, "c", "t")
