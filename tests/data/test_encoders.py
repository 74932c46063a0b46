from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from dien_fast.data import CategoryEncoder, NumericEncoder, SequenceEncoder
from dien_fast.data import columns as columns_module
from dien_fast.errors import DataError

WORDS = ["b", "a", "b", "c", "a", "b"]


def test_category_ids_by_hand() -> None:
    encoder = CategoryEncoder(min_cnt=2).fit(WORDS)
    assert encoder.word2idx_ == {"__PAD__": 0, "a": 1, "b": 2, "__UNKNOWN__": 3}
    assert encoder.idx2word_ == {0: "__PAD__", 1: "a", 2: "b", 3: "__UNKNOWN__"}
    assert encoder.dimension() == 4
    ids = encoder.transform(["a", "b", "c", "new", None, "__PAD__", "__UNKNOWN__"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 2, 3, 3, 3, 0, 3]


def test_category_default_keeps_words_seen_five_times() -> None:
    assert set(CategoryEncoder().fit(["x"] * 5 + ["y"] * 4).word2idx_) == {"__PAD__", "x", "__UNKNOWN__"}


def test_whole_numbers_sort_as_numbers_and_text_as_text() -> None:
    assert CategoryEncoder(min_cnt=1).fit([10, 9, -1]).transform([-1, 9, 10]).tolist() == [1, 2, 3]
    assert CategoryEncoder(min_cnt=1).fit(["10", "9"]).transform(["10", "9"]).tolist() == [1, 2]


@pytest.mark.parametrize(
    "column",
    [
        np.array([3, 1, 3]),
        np.array([[3], [1], [3]]),
        np.array([3.0, 1.0, 3.0], np.float32),
        pd.Series([3, 1, 3], index=[5, 6, 7]),
        pd.Series([3, 1, 3], dtype="category"),
        pd.DataFrame({"item": [3, 1, 3]}),
        pl.Series([3, 1, 3]),
        pa.array([3, 1, 3], pa.uint8()),
        pa.chunked_array([[3, 1], [3]]),
        (3, 1, 3),
    ],
)
def test_category_takes_any_column(column: object) -> None:
    assert CategoryEncoder(min_cnt=1).fit_transform(column).tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    "column",
    [pl.Series(["v", None, "u"]), pd.Series(["v", None, "u"]), pl.Series(["v", None, "u"], dtype=pl.Categorical)],
)
def test_category_takes_text_with_nulls(column: object) -> None:
    assert CategoryEncoder(min_cnt=1).fit_transform(column).tolist() == [2, 3, 1]


class Tagged(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "dien_fast.tagged")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Tagged:
        return cls()


def test_extension_types_are_their_storage() -> None:
    column = pa.ExtensionArray.from_storage(Tagged(), pa.array(["v", "u"]))
    assert CategoryEncoder(min_cnt=1).fit_transform(column).tolist() == [2, 1]


def test_digits_are_read_as_the_kind_that_was_fitted() -> None:
    numbers = CategoryEncoder(min_cnt=1).fit([1, 12])
    assert numbers.transform(["12", "1", "x", "1.0", None, "+12"]).tolist() == [2, 1, 3, 1, 3, 2]
    assert numbers.transform([12.0, np.nan, 1.5]).tolist() == [2, 3, 3]
    assert numbers.transform(np.array([12, 1 << 63], np.uint64)).tolist() == [2, 3]
    text = CategoryEncoder(min_cnt=1).fit(["1", "12"])
    assert text.transform([12, 1]).tolist() == [2, 1]
    assert text.transform([12.0, np.nan]).tolist() == [2, 3]


def test_text_where_numbers_were_fitted_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected whole numbers, as it was fitted on, got the text 'x'"):
        CategoryEncoder(min_cnt=1).fit([1]).transform(["x", "y"])


def test_floats_that_are_no_ids_stay_apart() -> None:
    encoder = CategoryEncoder(min_cnt=1).fit([3.5, 4.0, 3.5])
    assert encoder.transform([4.0, 3.5]).tolist() == [2, 1]


def test_long_ids_are_not_rounded() -> None:
    ids = [1_800_000_000_000_000_001, 1_800_000_000_000_000_002]
    encoder = CategoryEncoder(min_cnt=1).fit(ids)
    assert encoder.transform([str(item) for item in ids]).tolist() == [1, 2]
    hashes = CategoryEncoder(min_cnt=1).fit(np.array([1 << 63, 5], np.uint64))
    # Past 64 bits with a sign, ids are text: "5" sorts before "9223372036854775808" here.
    assert hashes.transform(np.array([5, 1 << 63, 7], np.uint64)).tolist() == [1, 2, 3]


def test_booleans_are_words() -> None:
    encoder = CategoryEncoder(min_cnt=1).fit([True, False])
    assert encoder.transform([False, True, None]).tolist() == [1, 2, 3]
    assert CategoryEncoder(min_cnt=1).fit(["True", "False"]).transform([True, False]).tolist() == [2, 1]


def test_empty_and_all_null_columns() -> None:
    encoder = CategoryEncoder().fit([None, None])
    assert encoder.word2idx_ == {"__PAD__": 0, "__UNKNOWN__": 1}
    assert encoder.transform([None, "a"]).tolist() == [1, 1]
    assert encoder.transform([]).tolist() == []


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", 1], "values of one kind"),
        (np.zeros((2, 2)), r"shape \(N,\) or \(N, 1\), got \(2, 2\)"),
        ([[1], [2]], "one word a row, got lists"),
    ],
)
def test_category_refuses(column: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CategoryEncoder().fit(column)


def test_category_transform_refuses_lists() -> None:
    with pytest.raises(DataError, match="one word a row, got lists"):
        CategoryEncoder().fit([1]).transform([[1]])


def test_words_that_cannot_be_text_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be read as string words"):
        CategoryEncoder().fit([{"a": 1}])


@given(st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=40), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_category_equals_a_plain_count(words: list[str], min_cnt: int) -> None:
    counts = Counter(words)
    kept = sorted(word for word in counts if counts[word] >= min_cnt)
    expected = [kept.index(word) + 1 if word in kept else len(kept) + 1 for word in words]
    assert CategoryEncoder(min_cnt).fit_transform(words).tolist() == expected


def test_ready_vocabulary_is_used_and_completed() -> None:
    encoder = CategoryEncoder(word2idx={"__PAD__": 0, "x": 2, "y": 1}).fit(["z"] * 9)
    assert encoder.transform(["x", "y", "z"]).tolist() == [2, 1, 3]
    assert encoder.word2idx == {"__PAD__": 0, "x": 2, "y": 1}
    reverse = CategoryEncoder(idx2word={0: "__PAD__", 1: np.int64(7), 2: "__UNKNOWN__"}).fit([])
    assert reverse.transform([7, 8]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("word2idx", "message"),
    [
        ({"x": 7}, "must give the ids 0 to 2, got 7 for 'x'"),
        ({"x": "1"}, "got '1' for 'x'"),
        ({"x": 1, "y": 1}, "the id 1 to 'x' and to 'y'"),
        ({"__PAD__": 1, "x": 0}, "the id 0 to '__PAD__', got 1"),
        ({"x": 1, 5: 2}, "all text or all whole numbers"),
    ],
)
def test_wrong_vocabulary_is_refused(word2idx: dict[object, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CategoryEncoder(word2idx=word2idx).fit([])


def test_sequence_ids_by_hand() -> None:
    encoder = SequenceEncoder(sep="|", min_cnt=2).fit(["a|b|c", "b|a", "b", "", None])
    assert encoder.word2idx_ == {"__PAD__": 0, "a": 1, "b": 2, "__UNKNOWN__": 3}
    assert encoder.max_length() == 3
    assert encoder.dimension() == 4
    result = encoder.transform(["b|c|a", "", None, "a||b", "a|a|a|b"])
    assert result.type == pa.large_list(pa.int64())
    assert result.to_pylist() == [[2, 3, 1], [], [], [1, 3, 2], [1, 1, 2]]


def test_keep_newest_or_oldest() -> None:
    for keep, expected in (("newest", [[2, 3], [1]]), ("oldest", [[1, 2], [1]])):
        encoder = SequenceEncoder(min_cnt=1, max_len=2, keep=keep).fit(["1 2 3", "1"])
        assert encoder.transform(["1 2 3", "1"]).to_pylist() == expected


LISTS = [[5, 4], [], None, [5]]


@pytest.mark.parametrize(
    "column",
    [
        LISTS,
        pd.Series(LISTS),
        pd.Series([np.array([5, 4]), np.array([], int), None, np.array([5])]),
        np.array([np.array([5, 4]), np.array([], int), None, np.array([5])], dtype=object),
        pl.Series(LISTS),
        pl.Series([["5", "4"], [], None, ["5"]]),
        pl.Series([["5", "4"], [], None, ["5"]], dtype=pl.List(pl.Categorical)),
        pa.array(LISTS, pa.list_(pa.int32())),
        pa.array(LISTS, pa.large_list(pa.int64())),
        pa.array(LISTS, pa.list_view(pa.int64())),
        pa.chunked_array([pa.array([[9], *LISTS], pa.list_(pa.int64())).slice(1)]),
        ["5|4", "", None, "5"],
        pl.Series(["5|4", "", None, "5"]),
    ],
)
def test_sequence_takes_lists_and_text(column: object) -> None:
    encoder = SequenceEncoder(sep="|", min_cnt=1)
    assert encoder.fit_transform(column).to_pylist() == [[2, 1], [], [], [2]]


def test_fixed_size_lists() -> None:
    column = pa.array([[5, 4], None], pa.list_(pa.int64(), 2))
    assert SequenceEncoder(min_cnt=1).fit_transform(column).to_pylist() == [[2, 1], []]


def test_all_null_sequences_are_empty() -> None:
    encoder = SequenceEncoder().fit([None, None])
    assert encoder.max_length() == 1
    assert encoder.transform([None]).to_pylist() == [[]]


def test_sequence_slices_agree_with_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.chunked_array([["a b", "c"], ["b", None, "a a a"]])
    whole = SequenceEncoder(min_cnt=2).fit_transform(column).to_pylist()
    monkeypatch.setattr(columns_module, "SLICE_ROWS", 2)
    assert SequenceEncoder(min_cnt=2).fit_transform(column).to_pylist() == whole


@pytest.mark.parametrize(
    ("encoder", "column", "message"),
    [
        (SequenceEncoder(sep="|"), [1, 2], r"expected lists, or text in which '\|' divides the words, got int64"),
        (SequenceEncoder(keep="last"), ["a"], "keep must be 'newest' or 'oldest', got 'last'"),
        (SequenceEncoder(max_len=0), ["a"], "max_len must be at least 1, got 0"),
    ],
)
def test_sequence_refuses(encoder: SequenceEncoder, column: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoder.fit(column)


def test_numbers_equal_the_scikit_learn_pipeline() -> None:
    rng = np.random.default_rng(0)
    train = np.round(rng.normal(size=500), 1)
    train[::7] = np.nan
    test = np.append(rng.normal(size=200) * 2, [np.nan, train[1], np.nanmin(train), np.nanmax(train)])
    pipeline = make_pipeline(SimpleImputer(), QuantileTransformer(n_quantiles=100))
    pipeline.fit(train[:, None])
    encoder = NumericEncoder(n_quantiles=100).fit(train)
    expected = pipeline.transform(test[:, None])[:, 0].astype(np.float32)
    result = encoder.transform(test)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_numbers_by_hand() -> None:
    encoder = NumericEncoder().fit(["1", "3", None])
    assert encoder.mean_ == 2
    assert encoder.transform([None, 0, 9, 1.5]).tolist() == [0.5, 0.0, 1.0, 0.25]
    assert NumericEncoder().fit([4, 4]).transform([4, 3, 5]).tolist() == [0.0, 0.0, 1.0]
    # Sums and differences of such numbers overflow.
    encoder = NumericEncoder().fit([-1.7e308, 1.7e308, 1.7e308])
    assert encoder.transform([-1e305, None, 1.0, 1e305]).tolist() == [0.0, pytest.approx(1 / 3), 0.25, 1.0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([None, None], "at least one number"),
        ([], "at least one number"),
        (["1", "2", "x", "y"], "expected a number, got 'x' in row 2"),
        ([1.0, float("inf")], "expected finite numbers, got inf in row 1"),
        ([[1]], r"expected a number, got \[1\] in row 0"),
    ],
)
def test_numbers_refuse(column: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NumericEncoder().fit(column)


@pytest.mark.parametrize(
    ("encoder", "column"),
    [
        (CategoryEncoder(min_cnt=2), [7, 7, 8]),
        (CategoryEncoder(min_cnt=1), ["ä", "b"]),
        (SequenceEncoder(sep="|", min_cnt=1, keep="oldest", max_len=3), ["a|b", "c"]),
        (SequenceEncoder(min_cnt=1), [[1, 2], [3]]),
        (NumericEncoder(n_quantiles=5), [1.5, 2, 8]),
    ],
)
def test_json_round_trip(encoder: CategoryEncoder, column: list[object], tmp_path: Path) -> None:
    encoder.fit(column)
    encoder.save(tmp_path / "encoder.json")
    loaded = type(encoder).load(tmp_path / "encoder.json")
    assert loaded.to_dict() == encoder.to_dict()
    assert loaded.get_params() == encoder.get_params()
    assert loaded.transform(column).tolist() == encoder.transform(column).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.json"]


def test_words_keep_their_type_in_json(tmp_path: Path) -> None:
    CategoryEncoder(min_cnt=1).fit([7]).save(tmp_path / "numbers.json")
    assert CategoryEncoder.load(tmp_path / "numbers.json").word2idx_ == {"__PAD__": 0, 7: 1, "__UNKNOWN__": 2}
    CategoryEncoder(min_cnt=1).fit(["7"]).save(tmp_path / "text.json")
    assert CategoryEncoder.load(tmp_path / "text.json").word2idx_ == {"__PAD__": 0, "7": 1, "__UNKNOWN__": 2}


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    with pytest.raises(DataError, match=r"encoder.json: cannot read the encoder file: No such file"):
        CategoryEncoder.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"encoder.json: the encoder file is not JSON"):
        CategoryEncoder.load(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"expected a saved CategoryEncoder, got something else"):
        CategoryEncoder.load(path)
    NumericEncoder().fit([1]).save(path)
    with pytest.raises(DataError, match=r"expected a saved CategoryEncoder, got NumericEncoder"):
        CategoryEncoder.load(path)
    content = CategoryEncoder(min_cnt=1).fit(["a"]).to_dict()
    for damage in (
        {"word_by_id": ["a", "__PAD__", "__UNKNOWN__"]},
        {"word_by_id": ["__PAD__"]},
        {"word_by_id": ""},
        {"words": "int64"},
    ):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(DataError, match="the saved CategoryEncoder is damaged"):
            CategoryEncoder.load(path)


def test_a_length_that_is_no_whole_number(tmp_path):
    path = tmp_path / "encoder.json"
    content = SequenceEncoder("|", min_cnt=1).fit(["a|b"]).to_dict()
    path.write_text(json.dumps(content | {"longest": float("inf")}))
    with pytest.raises(DataError, match="the saved SequenceEncoder is damaged"):
        SequenceEncoder.load(path)


@pytest.mark.parametrize("encoder", [CategoryEncoder(3), SequenceEncoder("|", keep="oldest"), NumericEncoder(9)])
def test_scikit_learn_contract(encoder: CategoryEncoder) -> None:
    fitted = clone(encoder)
    parameters = fitted.get_params()
    with pytest.raises(NotFittedError):
        fitted.transform([])
    with pytest.raises(NotFittedError):
        fitted.to_dict()
    fitted.fit([1] if isinstance(encoder, NumericEncoder) else ["1"])
    assert fitted.get_params() == parameters == encoder.get_params()
    with pytest.raises(NotFittedError):
        clone(fitted).transform([])
