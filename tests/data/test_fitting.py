from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from clicks import make_schema, make_table

from dien_fast.data import Encoders, Group, Pair, Schema, fit_encoders
from dien_fast.errors import DataError

TINY = pa.table({"item": [1, 1, 2], "hist": ["2|3", "2", ""], "neg": ["4|5", "4", ""]})


def tiny_schema(**settings: object) -> Schema:
    base: dict[str, object] = {"categorical": ["item"], "sequences": ["hist"], "min_count": 2}
    return Schema(**(base | {"groups": [Group("g", [Pair("item", "hist", "neg")])]} | settings))  # type: ignore[arg-type]


def test_shared_vocabulary_counts_candidates_and_history_together() -> None:
    encoders = fit_encoders(TINY, tiny_schema())
    # Seen twice or more over both columns: 1 (twice a candidate) and 2 (candidate, and twice in histories).
    expected = {"__PAD__": 0, 1: 1, 2: 2, "__UNKNOWN__": 3}
    assert [encoders[name].word2idx_ for name in ("item", "hist", "neg")] == [expected] * 3
    assert encoders.dimensions() == {"item": 4, "hist": 4, "neg": 4}


def test_own_vocabularies_as_the_article() -> None:
    encoders = fit_encoders(TINY, tiny_schema(share_vocabulary=False, min_count=1))
    assert encoders["item"].word2idx_ == {"__PAD__": 0, 1: 1, 2: 2, "__UNKNOWN__": 3}
    assert encoders["hist"].word2idx_ == {"__PAD__": 0, "2": 1, "3": 2, "__UNKNOWN__": 3}
    assert encoders["neg"].word2idx_ == encoders["hist"].word2idx_


def test_negatives_from_columns_learn_their_words() -> None:
    own = fit_encoders(TINY, tiny_schema(share_vocabulary=False, min_count=1, negatives="columns"))
    assert own["neg"].word2idx_ == {"__PAD__": 0, "4": 1, "5": 2, "__UNKNOWN__": 3}
    shared = fit_encoders(TINY, tiny_schema(min_count=1, negatives="columns"))
    assert list(shared["item"].word2idx_) == ["__PAD__", 1, 2, 3, 4, 5, "__UNKNOWN__"]
    assert "neg" not in fit_encoders(TINY, tiny_schema(negatives="none"))


def test_text_that_is_no_number_makes_the_shared_words_text() -> None:
    table = pa.table({"item": [1, 2], "hist": ["1|x", "2"]})
    encoders = fit_encoders(table, tiny_schema(min_count=1))
    assert list(encoders["item"].word2idx_) == ["__PAD__", "1", "2", "x", "__UNKNOWN__"]
    assert encoders["item"].transform([1, 2]).tolist() == [1, 2]


def test_lengths_are_the_schemas_or_the_longest() -> None:
    table, schema = make_table(), make_schema(max_length=None)
    longest = max(len(row or []) for row in table["hist_item"].to_pylist())
    encoders = fit_encoders(table, schema)
    for feature in ("hist_item", "neg_hist_item", "hist_category", "neg_hist_category"):
        assert encoders.max_length(feature) == longest
    assert encoders.max_length("tags") == 2
    assert fit_encoders(table, make_schema(max_length=3)).max_length("tags") == 3


def test_save_load_and_fingerprint(tmp_path: Path, encoders: Encoders, table: pa.Table) -> None:
    encoders.save(tmp_path / "encoders")
    loaded = Encoders.load(tmp_path / "encoders")
    assert set(loaded) == set(encoders)
    assert len(loaded) == len(encoders)
    assert loaded.dimensions() == encoders.dimensions() | {}
    assert loaded.fingerprint() == encoders.fingerprint()
    assert fit_encoders(table.slice(1), make_schema()).fingerprint() != encoders.fingerprint()


def test_feature_names_may_hold_any_character(tmp_path: Path) -> None:
    encoders = fit_encoders(pa.table({"a/b é": [1]}), Schema(categorical=["a/b é"]))
    encoders.save(tmp_path)
    assert list(Encoders.load(tmp_path)) == ["a/b é"]


def test_typed_access(encoders: Encoders) -> None:
    assert encoders.category("item") is encoders["item"]
    assert encoders.numeric("age") is encoders["age"]
    with pytest.raises(DataError, match="'item' needs a SequenceEncoder, got a CategoryEncoder"):
        encoders.sequence("item")
    with pytest.raises(DataError, match="'new' needs a NumericEncoder, got none"):
        encoders.numeric("new")


def test_damaged_directories_are_refused(tmp_path: Path, encoders: Encoders) -> None:
    with pytest.raises(DataError, match=r"no encoder files \(\*.json\) there"):
        Encoders.load(tmp_path / "none")
    encoders.save(tmp_path)
    for content in ("{", "3", '{"encoder": "Other"}', "{}"):
        (tmp_path / "item.json").write_text(content)
        with pytest.raises(DataError, match=r"item.json: not a saved encoder"):
            Encoders.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": ["x"] * 40}, "t.csv: column 'age': expected a number, got 'x' in row 0"),
        ({"item": [[1]] * 40}, "t.csv: column 'item': expected one word a row, got lists"),
        ({"tags": [1] * 40}, "t.csv: column 'tags': expected lists, or text"),
        ({"hist_item": [[0, 3]] * 40}, "t.csv: column 'hist_item': row 0 is padded with 0 before its events"),
        ({"age": None}, "t.csv: no column 'age'"),
        ({"item": None}, "t.csv: no column 'item'"),
        ({"hist_item": None}, "t.csv: no column 'hist_item'"),
    ],
)
def test_wrong_columns_are_named(change: dict[str, list[object] | None], message: str, table: pa.Table) -> None:
    for name, values in change.items():
        position = table.column_names.index(name)
        table = table.remove_column(position)
        if values is not None:
            table = table.append_column(name, pa.array(values))
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        fit_encoders(table, make_schema(), source="t.csv")


def test_an_empty_table_is_refused(table: pa.Table) -> None:
    with pytest.raises(DataError, match=r"t.csv: the table has no rows to learn from"):
        fit_encoders(table.slice(0, 0), make_schema(), source="t.csv")


def test_candidates_written_differently_are_refused() -> None:
    items = list(range(1, 41))
    history = [[str(item)] for item in items]
    floats = [f"{item}.0" for item in items]
    with pytest.raises(DataError, match="columns 'item' and 'hist' should hold the same words but have none"):
        fit_encoders(pa.table({"item": floats, "hist": history}), tiny_schema())
    assert len(fit_encoders(pa.table({"item": items, "hist": history}), tiny_schema())["item"].word2idx_) == 42


def test_what_a_killed_process_left_is_no_encoder(tmp_path: Path, encoders: Encoders) -> None:
    encoders.save(tmp_path)
    (tmp_path / ".item.x1.unfinished.json").write_text("{")
    assert set(Encoders.load(tmp_path)) == set(encoders)
    encoders.save(tmp_path)
    assert not list(tmp_path.glob(".*"))
