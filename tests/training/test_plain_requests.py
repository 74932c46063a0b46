"""Requests in plain Python values get what tables get, or the same refusal; the ordinary ones make no table."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from clicks import make_table
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_candidates import make_run, one_column_run

from dien_fast.data import CategoryEncoder
from dien_fast.data import vocabulary as vocabularies
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged
from dien_fast.training import candidates
from dien_fast.training.candidates import encode_request
from dien_fast.training.plain import plain_candidates, plain_user

USER = {"age": 30, "tags": "x|other", "hist_item": [1, 50, 3], "hist_category": ["a", "b", "c"]}
ITEMS = {"item": [3, 9, 77, None], "category": ["a", "c", "never", "b"]}
RUN = make_run("din")


def by_tables(run, user, items):
    """What the tables' way gives, whatever the values."""
    encoded = candidates._encode_tables(run, user, items, None)
    unknown = Counter()
    for name in (*run.schema.categorical, *run.schema.sequences):
        unknown[name] += candidates._count_unknown((encoded[0] | encoded[1])[name], run, name)
    return (encoded[0], encoded[1], torch.from_numpy(encoded[2]), unknown)


def outcome(call, *arguments):
    try:
        return call(*arguments)
    except DataError as error:
        return str(error)


def assert_same(found, expected):
    if isinstance(expected, str):
        assert found == expected
        return
    for got, want in zip(found[:2], expected[:2], strict=True):
        assert list(got) == list(want)
        for name, value in want.items():
            assert type(got[name]) is type(value)
            for left, right in (
                zip(got[name], value, strict=True) if isinstance(value, Ragged) else [(got[name], value)]
            ):
                torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=0, atol=0)
    assert torch.equal(found[2], expected[2])
    assert found[3] == expected[3]


def is_plain(run, user, items):
    encoded = plain_candidates(run, items)
    return encoded is not None and plain_user(run, user, encoded) is not None


@pytest.mark.parametrize(
    ("user", "items"),
    [
        (USER, ITEMS),
        (USER | {"age": None, "tags": None, "hist_item": [], "hist_category": None}, ITEMS),
        (
            USER | {"age": 29.5, "tags": "", "hist_category": "a|b|"},
            ITEMS | {"age": [20, 30.5, None, float("nan")]},
        ),
        (USER | {"hist_item": np.array([1, 5]), "hist_category": np.array(["a", "b"])}, ITEMS),
        (USER | {"hist_item": [None, 3], "hist_category": ["", None], "else": {}}, {"item": [], "category": []}),
        (USER | {"hist_item": [1, 2] * 40, "hist_category": ["a", "b"] * 40}, ITEMS),
        (USER | {"category": "c"}, ITEMS | {"item": np.array([3, 3, 3, 3], np.int16)}),
    ],
)
def test_ordinary_requests_make_no_table(user, items):
    assert is_plain(RUN, user, items)
    assert_same(encode_request(RUN, user, items), by_tables(RUN, user, items))


def test_words_alone_make_no_table():
    run = one_column_run()
    user, items = {"hist_item": [1, 2]}, [3, 9, 77]
    assert is_plain(run, user, items)
    assert_same(encode_request(run, user, items), by_tables(run, user, items))


@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_long_histories_are_cut_alike(keep):
    run = one_column_run(max_length=4, keep=keep)
    user = {"hist_item": [77, 1, 2, 3, 4, 5, 88]}
    assert is_plain(run, user, [3])
    found = encode_request(run, user, [3])
    assert_same(found, by_tables(run, user, [3]))
    assert found.unknown["hist_item"] == 1


WORDS = st.sampled_from(
    ["a", "b", "c", "x", "0", "", "__PAD__", "__UNKNOWN__", "[1, 2]", "1", "\ud800", " a", "ü"]
)
NUMBERS = st.sampled_from(
    [0, 1, 3, 9, 77, -1, 2**53 + 1, 2**63, 2**70, 1.0, 1.5, float("nan"), float("inf"), True]
)
VALUES = st.one_of(st.none(), WORDS, NUMBERS)
LISTS = st.one_of(
    st.lists(WORDS, max_size=4),
    st.lists(NUMBERS, max_size=4),
    st.lists(st.sampled_from([1, 3, 9, 77, None]), max_size=4),
    st.lists(VALUES, max_size=3),
)
CELLS = st.one_of(LISTS, VALUES, st.sampled_from(["a|b", "1|3|9", "0|1", "a|", "['a']", "x|__PAD__"]))
# Most columns are right, so that what is wrong with one is not hidden by the others.
USERS = st.fixed_dictionaries(
    {"age": st.one_of(st.just(30), VALUES)},
    optional={
        "tags": st.one_of(st.just("x|y"), CELLS),
        "hist_item": st.one_of(st.just([1, 3]), CELLS),
        "hist_category": st.one_of(st.just(["a", "b"]), CELLS),
        "category": VALUES,
    },
)
CANDIDATES = st.fixed_dictionaries(
    {"item": st.one_of(st.just([3, 9]), LISTS), "category": st.one_of(st.just(["a", "c"]), LISTS)},
    optional={"age": st.one_of(st.just([1, 2.5]), LISTS), "tags": LISTS, "else": CELLS},
)


@given(user=USERS, items=CANDIDATES)
@example(
    user={"age": 30, "tags": "x|y", "category": "\ud800", "hist_category": [], "hist_item": []},
    items={"item": [3, 9], "category": ["a", "c"]},
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_values_get_what_tables_get(user, items):
    assert_same(outcome(encode_request, RUN, user, items), outcome(by_tables, RUN, user, items))


def test_a_zero_that_is_an_item_is_no_padding():
    table = make_table()
    items = table["item"].to_numpy() - 1
    run = one_column_run()
    run.encoders["hist_item"].use(CategoryEncoder(min_cnt=1).fit(items).vocabulary_)
    user = {"hist_item": [0, 3, 0]}
    assert is_plain(run, user, [3])
    assert_same(encode_request(run, user, [3]), by_tables(run, user, [3]))
    run = one_column_run()
    assert not is_plain(run, user, [3])


def test_large_vocabularies_take_no_python_objects(monkeypatch):
    monkeypatch.setattr(vocabularies, "_INDEXED_WORDS", 4)
    run = make_run("din")
    assert is_plain(run, USER, ITEMS)
    assert_same(encode_request(run, USER, ITEMS), by_tables(run, USER, ITEMS))
    assert "_index" not in vars(run.encoders.category("item").vocabulary_)
    for words in ([2**63], ["\ud800"]):
        kind = "int64" if isinstance(words[0], int) else "string"
        vocabulary = vocabularies.Vocabulary.of(
            pa.array([1, 2, 3] if kind == "int64" else ["a", "b", "c"], vocabularies._TYPES[kind]), kind
        )
        assert vocabulary.encode_list(words) is None
