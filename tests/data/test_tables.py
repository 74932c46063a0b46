from __future__ import annotations

import gzip
import io
import subprocess
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from dien_fast.data import Group, Pair, Schema, read_table
from dien_fast.data.tables import get_column, write_table
from dien_fast.data.text_files import find_delimiter
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
    with pytest.raises(DataError, match=r"clicks.json must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet"):
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["clicks.csv", "clicks.CSV", "clicks.tsv", "clicks.csv.GZ"])
@pytest.mark.parametrize("schema", [SCHEMA, None])
def test_what_divides_columns_is_recognised(
    tmp_path: Path, delimiter: str, name: str, schema: Schema | None
) -> None:
    # Excel writes a byte order mark, and semicolons where the comma divides decimals.
    content = ("\ufeff" + CSV.replace(",", delimiter)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    table = read_table(tmp_path / name, schema)
    assert table.column_names == ["zip", "item", "hist", "label"]
    assert table["hist"].to_pylist() == ["7|8", "7", None]
    assert table["zip"].to_pylist() == (["01234", None, "99"] if schema else [1234, None, 99])


def test_delimiters_inside_names_and_values_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"item;label",label\na;b,1\n')
    assert read_table(tmp_path / "t.csv").to_pydict() == {"item;label": ["a;b"], "label": [1]}
    assert find_delimiter("product;clicked", ",", {"item", "label"}) == ";"
    (tmp_path / "one.csv").write_text("item\na\n")
    assert read_table(tmp_path / "one.csv", Schema(categorical=["item"]))["item"].to_pylist() == ["a"]


@pytest.mark.parametrize("schema", [SCHEMA, None])
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("latin-1", "LATIN1"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")],
)
def test_other_encodings_are_named_with_the_way_out(
    tmp_path: Path, encoding: str, name: str, schema: Schema | None
) -> None:
    text = CSV.replace("99,9,", "99,ä,")
    (tmp_path / "clicks.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"clicks\.csv: the text is not UTF-8 but, it seems, {name}; ") as caught:
        read_table(tmp_path / "clicks.csv", schema)
    command = str(caught.value).partition("convert it: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert read_table(tmp_path / "utf8-clicks.csv", SCHEMA)["item"].to_pylist() == ["7", "8", "ä"]


def test_windows_text_far_down_a_file_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_bytes(b"item,label\n" + b"a,1\n" * 300_000 + "ä,1\n".encode("latin-1"))
    for schema in (Schema(categorical=["item"]), None):
        with pytest.raises(DataError, match="the text is not UTF-8"):
            read_table(tmp_path / "clicks.csv", schema)
    (tmp_path / "prices.csv").write_bytes("item\n9 €\n".encode("cp1252"))
    with pytest.raises(DataError, match="WINDOWS-1252"):
        read_table(tmp_path / "prices.csv")


@pytest.mark.parametrize("header", ["item", "items"])
def test_a_character_cut_by_the_head_is_no_fault(tmp_path: Path, header: str) -> None:
    # Of two headers whose lengths differ by one byte, one puts the end of the head into a character.
    (tmp_path / "t.csv").write_text(f"{header}\n" + ("ä" * 500 + "\n") * 1100, encoding="utf-8")
    assert read_table(tmp_path / "t.csv").num_rows == 1100


def test_parquet_under_another_name_is_told(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "clicks.csv")
    with pytest.raises(DataError, match=r"holds Parquet, not text; its name should end in \.parquet"):
        read_table(tmp_path / "clicks.csv")


def test_folders_named_after_values_are_columns(tmp_path: Path) -> None:
    for day in ("01", "02"):
        for country in ("NO", "__HIVE_DEFAULT_PARTITION__"):
            folder = tmp_path / f"day={day}" / f"country={country}"
            folder.mkdir(parents=True)
            pa.parquet.write_table(pa.table({"item": ["a"]}), folder / "part.PARQUET")
    (tmp_path / "day=02" / ".part.x.unfinished.parquet").write_bytes(b"half")
    # A word keeps its zero, a time is a number.
    words = Schema(categorical=["item", "country", "day"])
    assert read_table(tmp_path, words).to_pydict() == {
        "item": ["a"] * 4,
        "day": ["01", "01", "02", "02"],
        "country": ["NO", None, "NO", None],
    }
    assert read_table(tmp_path, Schema(categorical=["item"], time="day"))["day"].to_pylist() == [1, 1, 2, 2]
    assert read_table(tmp_path)["day"].to_pylist() == [1, 1, 2, 2]


def test_streams_are_read_as_files_are(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({"a": [1]}), sink)
    assert read_table(io.BytesIO(sink.getvalue())).to_pydict() == {"a": [1]}
    for content in (CSV.encode(), gzip.compress(CSV.encode()), CSV.replace(",", "\t").encode()):
        assert read_table(io.BytesIO(content), SCHEMA)["zip"].to_pylist() == ["01234", None, "99"]
    with pytest.raises(DataError, match="stream: cannot read the table"):
        read_table(io.BytesIO(b""))
    with pytest.raises(DataError, match="read from a binary stream, got StringIO"):
        read_table(io.StringIO(CSV))


def test_tables_are_written_as_text_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"item": ["a", "b;c"], "past": [[7, 8], []]})
    for name in ("t.csv", "t.CSV", "t.tsv", "t.csv.gz", "t.TSV.gz"):
        write_table(table, tmp_path / name)
        assert read_table(tmp_path / name)["past"].to_pylist() == ["7|8", None]
    assert gzip.decompress((tmp_path / "t.TSV.gz").read_bytes()).startswith(b'"item"\t"past"\n')
    write_table(table, "-", separator="/")
    assert capfd.readouterr().out == '"item","past"\n"a","7/8"\n"b;c",""\n'
    with pytest.raises(DataError, match=r"t\.txt must end in \.csv, "):
        write_table(table, tmp_path / "t.txt")


def test_tables_are_written_as_parquet_and_csv(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "past": [[7, 8], [], None], "tags": [["a"], ["b", "c"], []]})
    write_table(table, tmp_path / "t.parquet")
    assert pa.parquet.read_table(tmp_path / "t.parquet").equals(table)
    write_table(table, tmp_path / "t.csv", separator="|")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines == ['"id","past","tags"', '1,"7|8","a"', '2,"","b|c"', '3,,""']
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_what_csv_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    for column in ([{"a": 1}], [[{"a": 1}]]):
        with pytest.raises(DataError, match=r"column 'x' of type .* write \.parquet instead"):
            write_table(pa.table({"x": column}), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())
