"""Columns whose words are written another way than expected."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from clicks import make_schema, make_table

from dien_fast.data import CategoryEncoder, ClickDataset, Encoders, Schema, fit_encoders, read_table
from dien_fast.data.notation import check_no_lists_as_text, other_notation, sample_rows
from dien_fast.errors import DataError

KNOWN = ["a", "b", "c", "red shoes"]


def explain(words: list[str], separator: str | None = "|") -> str | None:
    return other_notation(words, np.ones(len(words)), separator, lambda words: np.isin(words, KNOWN))


def test_other_notations_are_found() -> None:
    assert explain(["a", "a,b", "c,c,x"]) == "',' divides them, not '|', for example in 'a,b'"
    assert explain(["a", "a; b"]) == "';' divides them, not '|', for example in 'a; b'"
    assert explain(["a|b"], separator=",") == "'|' divides them, not ',', for example in 'a|b'"
    assert explain([" a", "b ", "red shoes"]) == "there are blanks around them, for example in ' a'"
    assert explain([" a"], separator=None) == "there are blanks around them, for example in ' a'"


def test_new_words_are_no_notation() -> None:
    assert explain(["a", "b"]) is None
    assert explain([]) is None
    assert explain(["x", "y,z", "red hat"]) is None
    # A candidate is one word, whatever its characters.
    assert explain(["a,b"], separator=None) is None
    # Most of what is unknown is new; or a few words happen to be made of known ones.
    assert explain(["x", "y", "a,b"]) is None
    assert explain(["a"] * 30 + ["b c"]) is None


@pytest.mark.parametrize("text", ["[1, 2]", '["a", "b"]', "['a']", "[1 2 3]", "{'a', 'b'}", "[]", " [1] "])
def test_lists_as_text_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="got lists written as text, such as") as caught:
        check_no_lists_as_text(pa.array([None, "", text, text]), "|")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("column", [["[new]", "[old]"], ["[1]|[2]"], ["[1, 2]", "a"], ["", None], [], [[1, 2]]])
def test_other_text_in_brackets_is_taken(column: list[object]) -> None:
    check_no_lists_as_text(pa.array(column), "|")


def test_rows_are_looked_at_all_over_a_long_column() -> None:
    rows = sample_rows(pa.chunked_array([np.arange(30_000), np.arange(30_000, 50_000)]))
    assert len(rows) == 20_000
    assert (rows[0].as_py(), rows[-1].as_py()) == (0, 49_999)


@pytest.mark.parametrize("holder", [list, pd.Series])
def test_sets_are_refused_because_they_have_no_order(holder: type) -> None:
    value = {3, 1}
    with pytest.raises(DataError, match=r"^a set has no order; give a list"):
        CategoryEncoder().fit(holder([[1, 2], value]))
    for table in ({"past": [[1], value]}, pd.DataFrame({"past": [[1], value]})):
        with pytest.raises(DataError, match=r"^column 'past': a set has no order; give a list"):
            read_table(table)


def test_what_python_lists_hold_is_read() -> None:
    table = read_table(pd.DataFrame({"past": [[1], None], "tags": [np.array(["a"]), ("b",)]}, index=["x", "y"]))
    assert table["past"].to_pylist() == [[1], None]
    assert table["tags"].to_pylist() == [["a"], ["b"]]


def joined(table: pa.Table, column: str, separator: str) -> pa.Table:
    text = [separator.join(map(str, row or [])) for row in table[column].to_pylist()]
    return table.set_column(table.column_names.index(column), column, pa.array(text))


@pytest.mark.parametrize("separator", [",", ", ", ";", " "])
def test_training_refuses_histories_that_another_separator_divides(separator: str) -> None:
    schema = make_schema(groups=make_schema().groups[0:0])
    single = Schema.from_dict(
        schema.to_dict() | {"groups": [{"name": "g", "pairs": [{"ad": "item", "pos_hist": "hist_item"}]}]}
    )
    for share in (True, False):
        settings = Schema.from_dict(single.to_dict() | {"share_vocabulary": share})
        with pytest.raises(DataError, match=r"t\.csv: column 'hist_item': its words would be those of 'item' if"):
            fit_encoders(joined(make_table(), "hist_item", separator), settings, source="t.csv")


@pytest.mark.parametrize("column", ["hist_item", "tags"])
def test_lists_as_text_are_refused_in_training_and_scoring(
    encoders: Encoders, table: pa.Table, schema: Schema, column: str
) -> None:
    text = [str(row if isinstance(row, list) else ["x"]) for row in table[column].to_pylist()]
    table = table.set_column(table.column_names.index(column), column, pa.array(text))
    message = rf"t\.csv: column '{column}': expected lists, or text in which '\|' divides the words, got lists"
    with pytest.raises(DataError, match=message):
        fit_encoders(table, schema, source="t.csv")
    with pytest.raises(DataError, match=message):
        ClickDataset(table, schema, encoders, require_label=False, source="t.csv")
