"""Files of a table are found, and read in batches."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from clicks import make_schema

from dien_fast.data import Schema
from dien_fast.data.prepared import files
from dien_fast.data.prepared.files import TableFiles
from dien_fast.errors import DataError

SCHEMA = Schema(label="label", numeric=["price"], categorical=["item"])
COLUMNS = sorted(SCHEMA.columns())


def write(path, rows=10, start=0, **columns):
    table = {"label": np.arange(start, start + rows) % 2, "price": np.arange(rows) / 2, "item": np.arange(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(table | columns), path)


def names(dataset):
    return [file.path.rpartition("/")[2] for file in TableFiles(dataset, SCHEMA).files]


def read(dataset, schema=SCHEMA, **options):
    batches = list(TableFiles(dataset, schema).batches(sorted(schema.columns()), **options))
    return pa.concat_tables([batch.table for batch in batches], promote_options="permissive"), batches


@pytest.fixture
def tree(tmp_path):
    for name in ("a.parquet", "b.parquet", "deep/c.parquet", "deep/er/d.parquet", "_temporary/e.parquet"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / "deep/.f.parquet").write_bytes(b"half")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.parquet", "ab"),
        ("**/*.parquet", "abcd"),
        ("deep/**", "cd"),
        ("deep/*.parquet", "c"),
        ("*/er/?.parquet", "d"),
        ("[a-b].parquet", "ab"),
        ("", "abcd"),
        ("deep/er/d.parquet", "d"),
    ],
)
def test_patterns(tree, pattern, found):
    assert names(str(tree / pattern)) == [f"{letter}.parquet" for letter in found]


def test_relative_patterns(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert names("*.parquet") == ["a.parquet", "b.parquet"]
    assert names("deep") == ["c.parquet", "d.parquet"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_file_systems(tree, scheme):
    """pyarrow knows file://, and fsspec memory://."""
    if scheme == "file":
        assert names(f"file://{tree}/**/*.parquet") == [f"{letter}.parquet" for letter in "abcd"]
        return
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/clicks/a.parquet", (tree / "a.parquet").read_bytes())
    assert read("memory://clicks/*.parquet")[0].num_rows == 10
    with pytest.raises(DataError, match=r"unknown://x: .*[Pp]rotocol"):
        TableFiles("unknown://x", SCHEMA)


def test_nothing_found(tmp_path):
    for name, message in (("no", "no such file"), ("*.parquet", "no file fits"), ("", "the directory holds no")):
        with pytest.raises(DataError, match=message):
            TableFiles(str(tmp_path / name), SCHEMA)


def test_folders_are_columns(tmp_path):
    write(tmp_path / "item=007/label=1/a.parquet")
    write(tmp_path / "item=x%20y/label=0/a.parquet")
    write(tmp_path / "item=__HIVE_DEFAULT_PARTITION__/label=0/a.parquet")
    table = read(tmp_path)[0]
    assert table["item"].to_pylist() == ["007"] * 10 + [None] * 10 + ["x y"] * 10
    assert table["label"].to_pylist() == [1] * 10 + [0] * 20


def test_rows_have_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LEAST_ROWS", 4)
    monkeypatch.setattr(files, "_BATCH_BYTES", 1)
    for name in "ab":
        write(tmp_path / f"{name}.parquet")
    found = TableFiles(tmp_path, SCHEMA)
    for first in (0, 4, 7, 13, 20):
        batches = list(found.batches(COLUMNS, first=first))
        assert sum(batch.table.num_rows for batch in batches) == 20 - first
        assert [batch.first for batch in batches[:1]] == ([first] if first < 20 else [])
    last = next(found.batches(COLUMNS, first=13))
    assert last.source.endswith("b.parquet (rows counted from its row 3)")


def test_text_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_TEXT_BYTES", 64)
    lines = [f"{number % 2};{number / 4};0{number}" for number in range(50)]
    text = "\n".join(["label;price;item", *lines]) + "\n"
    (tmp_path / "clicks.CSV.gz").write_bytes(gzip.compress(text.encode()))
    table, batches = read(tmp_path / "clicks.CSV.gz")
    assert len(batches) > 5
    assert table["item"].to_pylist() == [f"0{number}" for number in range(50)]
    assert table["price"].to_pylist() == [number / 4 for number in range(50)]
    (tmp_path / "latin.csv").write_bytes("label,price,item\n1,2,Møbel\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: the text is not UTF-8"):
        read(tmp_path / "latin.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"item": ["a"] * 10},
            r"b\.parquet: column 'item' holds text, but numbers in \S+a\.parquet; all files must",
        ),
        ({"price": [[1]] * 10}, r"b\.parquet: column 'price' holds lists of numbers, but numbers in"),
    ],
)
def test_files_of_other_types(tmp_path, columns, message):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", **columns)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_file_without_a_column(tmp_path):
    write(tmp_path / "a.parquet")
    pa.parquet.write_table(pa.table({"label": [1], "price": [2.0]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no column 'item'; the columns are label, price"):
        read(tmp_path)
    write(tmp_path / "b.parquet", item=pa.nulls(10))
    assert read(tmp_path)[0]["item"].null_count == 10


def test_files_that_vanish_or_change(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet")
    found = TableFiles(tmp_path, SCHEMA)
    write(tmp_path / "b.parquet", rows=11)
    with pytest.raises(DataError, match=r"b\.parquet: the file has changed while it was being prepared"):
        list(found.batches(COLUMNS))
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(DataError, match=r"b\.parquet: the file has vanished"):
        list(found.batches(COLUMNS))


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table at all")
    with pytest.raises(DataError, match=r"a\.parquet: cannot read the table"):
        read(tmp_path)
    os.truncate(tmp_path / "a.parquet", 0)
    with pytest.raises(DataError, match=r"a\.parquet: cannot read the table"):
        read(tmp_path)


def test_only_named_columns_are_read(tmp_path):
    write(tmp_path / "a.parquet", other=[{"x": 1}] * 10)
    assert read(tmp_path)[0].column_names == COLUMNS
    assert make_schema().columns() > {"item", "hist_item"}
