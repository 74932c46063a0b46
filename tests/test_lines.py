"""What data say never looks like a line of the program, or gives orders to a terminal."""

import ast
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from shop import SCHEMA, shop_table

import dien_fast
from dien_fast.cli import main
from dien_fast.data import Schema, fit_encoders
from dien_fast.errors import DataError
from dien_fast.lines import print_line, visible

# A newline, an escape sequence that clears the screen, a carriage return, a mark of direction, a lone surrogate.
FORGED = "x\nepoch 9: train loss 0\x1b[2J\r\u202e\udc80"
SHOWN = r"x\nepoch 9: train loss 0\x1b[2J\r\u202e\udc80"


def prints(text):
    """Whether a text has nothing but letters, and newlines at the ends of lines."""
    return all(line.isprintable() for line in text.split("\n"))


def test_what_does_not_print_is_escaped_and_nothing_else():
    assert visible(FORGED) == SHOWN
    assert visible(SHOWN) == SHOWN
    assert visible("Straße, 東京, 🦀, C:\\temp") == "Straße, 東京, 🦀, C:\\temp"


def test_errors_and_lines_show_it(capsys):
    assert str(DataError(f"no column {FORGED}")) == f"no column {SHOWN}"
    print_line(FORGED)
    assert capsys.readouterr().out == f"{SHOWN}\n"


def calls_of_print(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and node.id == "print":
            yield f"{path.name}:{node.lineno}: print"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write"):
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_the_package_prints_by_this_way_alone():
    package = Path(dien_fast.__file__).parent
    found = {path.name: list(calls_of_print(path)) for path in package.rglob("*.py")}
    assert [name for name, calls in found.items() if calls] == ["lines.py"]


def column_of(text):
    """A text without what is no UTF-8, which Arrow takes."""
    return text.replace("\udc80", "")


@pytest.fixture
def forged(tmp_path):
    """A table and a schema with a forged name of a column, of a group, of a word, and of the file."""
    column = column_of(FORGED)
    table = shop_table().rename_columns({"country": column, "item": "item"})
    words = pa.array([f"{word}{column}" for word in table["item"].to_pylist()])
    table = table.set_column(table.column_names.index("item"), "item", words)
    path = tmp_path / f"clicks {column}.parquet"
    pa.parquet.write_table(table, path)
    schema = SCHEMA.replace('"country"', json.dumps(column)).replace(
        "[[groups]]", "share_vocabulary = false\n\n[[groups]]"
    )
    (tmp_path / "clicks.toml").write_text(schema, encoding="utf-8")
    return path, tmp_path / "clicks.toml"


def test_a_training_prints_no_line_of_the_data(forged, tmp_path, capsys):
    path, schema = forged
    arguments = ["--dataset", str(path), "--schema", str(schema), "--epochs", "1", "--cpu", "--quiet"]
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 0
    assert main(["info", str(tmp_path / "run")]) == 0
    output = str(tmp_path / f"{FORGED}.csv")
    assert main(["predict", str(tmp_path / "run"), str(path), "--output", column_of(output)]) == 0
    assert main(["predict", str(tmp_path / "run"), str(path), "--output", output]) == 2
    strange = pa.parquet.read_table(path).drop_columns(["item"])  # the message names the columns that are there
    other = tmp_path / f"other {column_of(FORGED)}.parquet"
    pa.parquet.write_table(strange, other)
    assert main(["evaluate", str(tmp_path / "run"), str(other)]) == 2
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 2
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / f"none {FORGED}.csv"), "--output", "o.csv"]) == 2
    captured = capsys.readouterr()
    assert prints(captured.out)
    assert prints(captured.err)
    assert SHOWN.removesuffix(r"\udc80") in captured.out
    assert SHOWN in captured.err
    assert sum(line.startswith("epoch ") for line in captured.out.splitlines()) == 1


def test_names_of_files_on_the_command_line(tmp_path, capsys):
    """A pattern of the shell adds them, and the parser repeats words that it does not know."""
    with pytest.raises(SystemExit) as caught:
        main(["info", str(tmp_path), str(tmp_path / "x\x1b[2J\nforged")])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert prints(printed)
    assert r"x\x1b[2J\nforged" in printed


def test_a_word_in_an_error(tmp_path):
    table = pa.table({"item": ["a", "b"], "past": ["a", "b"], "label": [1, 0]})
    encoders = fit_encoders(table, Schema(categorical=["item"], sequences=["past"], min_count=1))
    with pytest.raises(DataError) as caught:
        encoders.category(FORGED)
    assert str(caught.value).isprintable()
