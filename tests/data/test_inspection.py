"""Words that a model does not know are counted, and tables of nothing else refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import ClickDataset, Encoders, Group, Pair, Schema, fit_encoders, inspection
from dien_fast.data.encoding import UnknownWords
from dien_fast.data.inspection import check_words_known, unknown_lines, vocabulary_lines, warning_lines
from dien_fast.errors import DataError

SHOP = Schema(categorical=["item", "country"], sequences=["past"], min_count=1, separator=";")


def shop(
    rows: int = 200, item: str = "i{}", country: str = "{}", past: str = "i{}", separator: str = ";"
) -> pa.Table:
    """A table of 30 items and two countries whose words are written as the formats say."""
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 30, rng.integers(0, 5)) for _ in range(rows)]
    return pa.table(
        {
            "item": [item.format(number) for number in rng.integers(0, 30, rows)],
            "country": [country.format(name) for name in rng.choice(["NO", "IS"], rows)],
            "past": [separator.join(past.format(number) for number in history) for history in histories],
        }
    )


@pytest.fixture(scope="module")
def shop_encoders() -> Encoders:
    return fit_encoders(shop(400), SHOP)


def check(table: pa.Table, encoders: Encoders, schema: Schema = SHOP) -> dict[str, UnknownWords]:
    dataset = ClickDataset(table, schema, encoders, require_label=False, source="t.csv")
    check_words_known(table, schema, encoders, dataset.unknown, "t.csv")
    return dataset.unknown


def test_unknown_words_are_counted(table: pa.Table, schema: Schema, encoders: Encoders) -> None:
    names = ["item", "category", "tags", "hist_item", "hist_category"]
    dataset = ClickDataset(table, schema, encoders)
    assert {name: found.unknown for name, found in dataset.unknown.items()} == dict.fromkeys(names, 0)
    assert dataset.unknown["tags"].words == 30
    assert dataset.unknown["hist_item"].words == sum(len(row or []) for row in table["hist_item"].to_pylist())
    new = pa.table(
        {
            "age": [1.0] * 4,
            "item": [1.0, float("nan"), 77.0, None],
            "category": ["a", None, "b", "new"],
            "tags": ["x|new|newer", "", None, "y"],
            "hist_item": [[1, 2, 77], [], None, [3]],
            "hist_category": [["a", "b", "new"], [], None, ["new"]],
        }
    )
    unknown = ClickDataset(new, schema, encoders, require_label=False).unknown
    # Missing values are no words.
    assert [unknown[name][:2] for name in names] == [(2, 1), (3, 1), (4, 2), (4, 1), (4, 2)]
    assert unknown_lines(unknown)[2] == "tags: 50.0 % of 4 words are unknown (0.0 % in training)"


def test_the_training_share_is_remembered_and_changes_no_fingerprint(tmp_path) -> None:
    table = pa.table({"item": ["a"] * 6 + ["b", "c"], "past": ["a;d"] * 8})
    schema = Schema(categorical=["item"], sequences=["past"], min_count=5, separator=";")
    encoders = fit_encoders(table, schema)
    encoders.save(tmp_path)
    loaded = Encoders.load(tmp_path)
    assert loaded["item"].coverage_ == encoders["item"].coverage_ == (3, 1, 0.25)
    assert loaded["past"].coverage_ == (2, 2, 0.0)
    assert str(check(table, loaded, schema)["item"]) == "25.0 % of 8 words are unknown (25.0 % in training)"
    loaded["item"].coverage_ = None
    assert loaded.fingerprint() == encoders.fingerprint()
    assert str(check(table, loaded, schema)["item"]) == "25.0 % of 8 words are unknown"


def test_a_shared_vocabulary_is_covered_column_by_column() -> None:
    group = Group("g", [Pair("item", "past")])
    schema = Schema(categorical=["item"], sequences=["past"], groups=[group], min_count=3)
    encoders = fit_encoders(pa.table({"item": [1, 1, 2, 4], "past": [[1, 1], [2, 2], [3], []]}), schema)
    assert encoders["item"].coverage_ == (3, 2, 0.25)
    assert encoders["past"].coverage_ == (3, 2, 0.2)
    assert encoders["neg_past"].coverage_ is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"item": "{}"},
            r"column 'item': 100.0 % of 200 words are unknown \(0.0 % in training\), for example '\d+', ",
        ),
        ({"item": "I{}"}, "where training had 'i0'; to score rows whose words are new, allow unknown words"),
        ({"country": "{}WAY"}, "column 'country': 100.0 % of 200 words are unknown .* where training had 'IS'"),
        ({"past": "{}"}, "column 'past': 100.0 % of .* where training had 'i0'"),
        (
            {"separator": ","},
            "column 'past': .* written another way: ',' divides them, not ';', for example in 'i",
        ),
        (
            {"separator": "|"},
            r"column 'past': .* written another way: '\|' divides them, not ';', for example in 'i",
        ),
        ({"separator": " ; "}, "column 'past': .* written another way: there are blanks around them"),
        (
            {"item": " i{}"},
            "column 'item': .* written another way: there are blanks around them, for example in ' i",
        ),
    ],
)
def test_words_a_model_cannot_read_are_refused(
    shop_encoders: Encoders, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check(shop(**settings), shop_encoders)
    assert str(caught.value).startswith("t.csv: column ")


def test_whole_numbers_against_text_and_back() -> None:
    text = fit_encoders(shop(400), SHOP)
    numbers = shop().set_column(0, "item", pa.array(np.arange(200) % 30))
    with pytest.raises(DataError, match=r"column 'item': 100\.0 % of 200 words are unknown"):
        check(numbers, text)
    digits = fit_encoders(shop(400, item="{}"), SHOP)
    assert check(numbers, digits)["item"].unknown == 0


def test_new_words_are_taken_where_some_are_known_or_few_are_there(shop_encoders: Encoders) -> None:
    table = shop()
    half = pa.array([f"new{row}" if row % 2 else word for row, word in enumerate(table["item"].to_pylist())])
    assert check(table.set_column(0, "item", half), shop_encoders)["item"].share == 0.5
    # A new country, and a user's candidates that are all new.
    one = table.slice(0, 19).set_column(1, "country", pa.array(["SE"] * 19))
    one = one.set_column(0, "item", pa.array([f"new{row}" for row in range(19)]))
    assert check(one, shop_encoders)["item"].unknown == 19
    assert check(table.slice(0, 0), shop_encoders)["item"] == (0, 0, 0.0)


def test_a_column_that_was_unknown_in_training_may_stay_so() -> None:
    schema = Schema(categorical=["item"], min_count=5)
    rare = pa.table({"item": [f"session{row}" for row in range(95)] + ["common"] * 5})
    encoders = fit_encoders(rare, schema)
    new = pa.table({"item": [f"other{row}" for row in range(97)] + ["common"] * 3})
    assert check(new, encoders, schema)["item"].share == 0.97
    with pytest.raises(DataError, match=r"100.0 % of 100 words are unknown \(95.0 % in training\)"):
        check(pa.table({"item": [f"other{row}" for row in range(100)]}), encoders, schema)


def clicks(items: list[object], histories: list[object], labels: list[int]) -> pa.Table:
    return pa.table({"item": items, "past": histories, "label": labels, "tag": ["t"] * len(items)})


def click_schema(**settings: object) -> Schema:
    group = Group(
        "g", [Pair("tag", "past_tags"), Pair("item", "past")] if "tags" in settings else [Pair("item", "past")]
    )
    settings.pop("tags", None)
    columns = {"categorical": ["item", "tag"], "sequences": ["past"], "groups": [group], "min_count": 1}
    return Schema(**(columns | settings))  # type: ignore[arg-type]


def test_what_training_kept_is_told_for_each_column() -> None:
    table = clicks(["a"] * 6 + ["b", "c"], [["a", "d"]] * 8, [0, 1] * 4)
    schema = click_schema(min_count=5)
    encoders = fit_encoders(table, schema)
    parts = {
        "training": ClickDataset(table, schema, encoders),
        "test": ClickDataset(table.slice(4), schema, encoders),
    }
    assert vocabulary_lines(encoders, parts) == [
        "words of item: 1 of 3 kept, seen 5 times or more; unknown: 25.0 % in training, 50.0 % in test",
        "words of tag: 1 of 1 kept, seen 5 times or more; unknown: 0.0 % in training, 0.0 % in test",
        "words of past: 2 of 2 kept, seen 5 times or more; unknown: 0.0 % in training, 0.0 % in test",
    ]
    encoders = fit_encoders(table, click_schema())
    lines = vocabulary_lines(encoders, {"training": ClickDataset(table, click_schema(), encoders)})
    assert lines[0] == "words of item: 3 of 3 kept, seen once or more; unknown: 0.0 % in training"


def test_candidates_unknown_with_one_label_are_warned_of() -> None:
    # Most of the items not clicked are rare, as they are where they were drawn evenly from a catalogue.
    table = clicks(["a"] * 40 + [f"rare{row}" for row in range(30)] + ["a"] * 10, [[]] * 80, [1] * 40 + [0] * 40)
    schema = click_schema(min_count=5)
    encoders = fit_encoders(table, schema)
    assert warning_lines(ClickDataset(table, schema, encoders), encoders, "training") == [
        "warning: item is unknown in 0.0 % of the clicks and 75.0 % of the other training rows, and a model can "
        "tell labels by that; a smaller min_count keeps more words"
    ]
    encoders = fit_encoders(table, click_schema())
    assert warning_lines(ClickDataset(table, click_schema(), encoders), encoders, "training") == []


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("slice_rows", [3, 4, 100])
def test_candidates_of_their_own_histories_are_warned_of(
    share: bool, kind: type, slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "SLICE_ROWS", slice_rows)
    histories = [[7], [8, 7], [9], [], None, [8, 9], [9, 10], [10]]
    words = [None if row is None else [kind(word) for word in row] for row in histories]
    table = clicks([7, 7, 8, 9, 9, 8, 11, 11], words, [1, 1, 1, 0, 0, 0, 0, 0])
    schema = click_schema(share_vocabulary=share)
    encoders = fit_encoders(table, schema)
    assert warning_lines(ClickDataset(table, schema, encoders), encoders, "training") == [
        "warning: in 37.5 % of the training rows (66.7 % of the clicks, 20.0 % of the others) item is one of its "
        "own past: either users return to what they clicked, or a history holds the click to be predicted and the "
        "metrics are too good"
    ]


def test_unknown_items_and_categories_are_no_repeated_clicks() -> None:
    table = clicks(["new", "b"], [["new2"], ["a"]], [0, 1])
    table = table.append_column("past_tags", pa.array([["t"], ["t"]]))
    schema = click_schema(tags=True, sequences=["past", "past_tags"])
    known = clicks(["a", "b"], [["b"], ["a"]], [0, 1]).append_column("past_tags", pa.array([["t"], ["t"]]))
    encoders = fit_encoders(known, schema)
    lines = warning_lines(ClickDataset(table, schema, encoders), encoders, "training")
    assert not any("one of its own" in line for line in lines)
