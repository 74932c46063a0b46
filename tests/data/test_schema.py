from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clicks import make_schema, timed_schema

from dien_fast.data import Group, Pair, Schema
from dien_fast.errors import DataError

TOML = """
label = "clicked"
user = "userId"
numeric = ["age"]
categorical = ["itemId"]
sequences = ["tags", "hist"]
max_length = 20
embedding_sizes = { tags = 4 }

[[groups]]
name = "items"
pairs = [{ ad = "itemId", pos_hist = "hist" }]
"""


def test_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(TOML)
    schema = Schema.from_toml(path)
    assert schema.label == "clicked"
    assert schema.groups == [Group("items", [Pair("itemId", "hist", "neg_hist")])]
    assert schema.max_length == 20
    assert (schema.min_count, schema.separator, schema.negatives, schema.share_vocabulary) == (
        2,
        "|",
        "uniform",
        True,
    )
    assert schema.sequence_features() == ["tags", "hist", "neg_hist"]
    assert schema.shared_embeddings() == {"hist": "itemId", "neg_hist": "itemId"}
    assert schema.histories() == ["hist"]


def test_times_of_events(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(TOML + 'time = "hist_time"\n')
    schema = Schema.from_toml(path)
    assert (schema.groups[0].time, schema.groups[0].session_gap) == ("hist_time", 1800.0)
    assert schema.columns() == {"clicked", "userId", "age", "itemId", "tags", "hist", "hist_time"}
    assert (schema.event_times(), schema.timed_groups()) == (["hist_time"], 1)
    path.write_text(path.read_text() + "session_gap = 600\n")
    assert Schema.from_toml(path).groups[0].session_gap == 600


def test_a_group_without_times_is_described_as_before_there_were_any() -> None:
    schema = make_schema()
    assert [list(group) for group in schema.to_dict()["groups"]] == [["name", "pairs"]]
    assert (schema.event_times(), schema.timed_groups()) == ([], 0)
    timed = timed_schema(600)
    assert timed.to_dict()["groups"][0].keys() == {"name", "pairs", "time", "session_gap"}
    assert Schema.from_dict(json.loads(json.dumps(timed.to_dict()))) == timed


def test_dict_round_trip_through_json() -> None:
    schema = make_schema(negatives="popularity", max_length=None, embedding_sizes={"tags": 4})
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_without_sharing_or_negatives() -> None:
    assert make_schema(share_vocabulary=False).shared_embeddings() is None
    schema = make_schema(negatives="none")
    assert schema.sequence_features() == ["tags", "hist_item", "hist_category"]
    assert schema.shared_embeddings() == {"hist_item": "item", "hist_category": "category"}
    assert Schema(categorical=["a"]).shared_embeddings() is None


def test_candidates_of_one_history_share_the_first_ones_vocabulary() -> None:
    schema = Schema(
        categorical=["first", "second"],
        sequences=["hist"],
        groups=[Group("g", [Pair("second", "hist")]), Group("h", [Pair("first", "hist")])],
    )
    assert schema.vocabulary_owners() == {"hist": "first", "second": "first", "neg_hist": "first"}


PAIR = Pair("item", "hist_item")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": ""}, "label must be the name of a column, got ''"),
        ({"user": 3}, "user must be the name of a column, got 3"),
        ({"numeric": "age"}, "numeric must be a list of column names, got 'age'"),
        ({"categorical": [1]}, r"categorical must be a list of column names, got \[1\]"),
        ({"share_vocabulary": 1}, "share_vocabulary must be true or false, got 1"),
        ({"separator": ""}, "separator must be a non-empty text"),
        ({"min_count": 0}, "min_count must be a whole number of at least 1, got 0"),
        ({"max_length": True}, "max_length must be a whole number from 1 to 2,147,483,647, got True"),
        ({"keep": "new"}, "keep must be one of newest, oldest, got 'new'"),
        ({"negatives": "random"}, "negatives must be one of uniform, popularity, columns, none, got 'random'"),
        ({"numeric": ["age", "age"]}, "column 'age' is listed twice, in numeric"),
        ({"numeric": ["tags"]}, "column 'tags' is listed twice, in numeric and sequences"),
        ({"numeric": ["label"]}, "column 'label' cannot be a feature"),
        ({"numeric": ["__row__"]}, "column '__row__' cannot be a feature"),
        ({"numeric": [], "categorical": [], "sequences": [], "groups": []}, "names no feature"),
        ({"groups": {}}, "groups must be a list of groups"),
        ({"groups": [Group("item", [PAIR])]}, "a name that no feature or other group has, got 'item'"),
        ({"groups": [Group("g", [])]}, "group 'g' has no pairs"),
        ({"groups": [Group("g", [PAIR], time=3)]}, "group 'g': time must be the name of a column .* got 3"),
        ({"groups": [Group("g", [PAIR], time="tags")]}, "a column that is no feature, got 'tags'"),
        ({"groups": [Group("g", [PAIR], "t", -1)]}, "group 'g': session_gap must be a finite number of .* got -1"),
        (
            {"groups": [Group("g", [PAIR], "t", "1h")]},
            "group 'g': session_gap must be a finite number .* got '1h'",
        ),
        (
            {"groups": [Group("g", [PAIR], "t", True)]},
            "group 'g': session_gap must be a finite number .* got True",
        ),
        ({"groups": [Group("g", [PAIR], session_gap=60)]}, "group 'g': session_gap needs the times of the events"),
        ({"groups": [Group("g", [Pair("item", 3)])]}, "group 'g': a pair must hold column names"),
        ({"groups": [Group("g", [Pair("user", "hist_item")])]}, "ad 'user' is not listed under categorical"),
        ({"groups": [Group("g", [Pair("item", "hist")])]}, "pos_hist 'hist' is not listed under sequences"),
        ({"groups": [Group("g", [Pair("item", "hist_item", "tags")])]}, "neg_hist 'tags' is already the name"),
        (
            {"groups": [Group("g", [Pair("item", "hist_item", "n"), Pair("category", "hist_category", "n")])]},
            "neg_hist 'n' belongs to two histories, 'hist_item' and 'hist_category'",
        ),
        (
            {"groups": [Group("g", [PAIR]), Group("neg_hist_item", [Pair("category", "hist_category")])]},
            "has the name of a neg_hist",
        ),
        ({"embedding_sizes": [4]}, "embedding_sizes must map features to widths"),
        ({"embedding_sizes": {"age": 4}}, "embedding_sizes names 'age', which is no categorical or sequence"),
        ({"embedding_sizes": {"item": 0}}, r"embedding_sizes\['item'\] must be a whole number from 1 to 2,147"),
        ({"embedding_sizes": {"item": 2**63}}, r"embedding_sizes\['item'\] must be a whole number from 1 to"),
        ({"embedding_sizes": {"hist_item": 4}}, "'hist_item' another width than 'item', but they share one table"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_schema(**settings)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("lable = 'x'", r"schema.toml: the schema has no setting 'lable'; did you mean 'label'"),
        ("zzz = 1", r"schema.toml: the schema has no setting 'zzz'; expected some of label, user"),
        ("groups = 3", "groups must be a list of tables, got 3"),
        ("[[groups]]\npairs = []", r"groups\[0\] lacks the setting 'name'"),
        ("[[groups]]\nname = 'g'\npairs = [{ ad = 'a' }]", r"groups\[0\].pairs\[0\] lacks the setting 'pos_hist'"),
        ("[[groups]]\nname = 'g'\npairs = [{ add = 'a' }]", "no setting 'add'; did you mean 'ad'"),
        ("label = ", "schema.toml: the schema file is not valid TOML"),
    ],
)
def test_wrong_files_are_refused(toml: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(toml)
    with pytest.raises(DataError, match=message):
        Schema.from_toml(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the schema file: No such file"):
        Schema.from_toml(tmp_path / "none.toml")
    (tmp_path / "notepad.toml").write_bytes(TOML.encode("utf-16"))
    with pytest.raises(DataError, match=r"notepad\.toml: the text is not UTF-8 but, it seems, UTF-16; convert it"):
        Schema.from_toml(tmp_path / "notepad.toml")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "notepad.toml").write_text(TOML, encoding="utf-8-sig")
    assert Schema.from_toml(tmp_path / "notepad.toml").label == "clicked"
