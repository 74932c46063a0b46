"""A run scores raw words of users and candidates as `predict` scores the table with a row for each pair."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from clicks import timed_schema, timed_table

from dien_fast.data import Group, Pair, fit_encoders
from dien_fast.errors import DataError
from dien_fast.models import MODELS
from dien_fast.training.runs import Run, RunConfig, build_model, schema_for

ITEMS = {"item": [3, 9, 77, None], "category": ["a", "c", "never", "b"]}  # 77 and never are not in the vocabulary
# Of the models whose defaults do not go with embeddings of 4.
OPTIONS = {"dsin": {"heads": 2}}


def make_run(model="dien", **settings):
    torch.manual_seed(0)
    table, schema = timed_table(), schema_for(model, timed_schema(**settings))
    encoders = fit_encoders(table, schema)
    config = RunConfig(schema=schema.to_dict(), model=model, embedding_size=4, options=OPTIONS.get(model, {}))
    return Run("run", config, schema, encoders, build_model(config, encoders).eval())


def one_column_run(**settings):
    """Only the item describes a candidate, and only the history a user."""
    group = Group("items", [Pair("item", "hist_item")])
    return make_run(numeric=[], categorical=["item"], sequences=["hist_item"], groups=[group], **settings)


def repeated(users, items, owner):
    """The table that `predict` needs: the rows of ``users`` by their numbers, with the columns of ``items``."""
    table = users.take(owner)
    for name, words in items.items():
        words = pa.array(words, users.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, words)
    return table


def close(got, want):
    assert got.dtype == np.float32
    # The worst difference seen is 6e-8: the two sum in other orders.
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("row", [3, 0, 1], ids=["a history", "an empty history", "no history"])
@pytest.mark.parametrize("model", MODELS)
def test_one_user_equals_predict(model, row):
    run, user = make_run(model), timed_table().slice(row, 1)
    want = run.predict(repeated(user, ITEMS, [0] * 4))
    assert len(set(want.tolist())) > 1
    for items in (ITEMS, pd.DataFrame(ITEMS), pl.DataFrame(ITEMS), pa.table(ITEMS)):
        close(run.score_candidates(user, items), want)
    close(run.score_candidates(user.drop_columns(["item", "category", "label", "user"]), ITEMS), want)
    close(run.score_candidates(user.to_pylist()[0], ITEMS), want)
    close(run.score_candidates(user.to_pandas(), ITEMS), want)


@pytest.mark.parametrize(
    "history", [[4, 5, 6], "4|5|6", np.array([4, 5, 6]), pa.array([4, 5, 6]), pa.scalar([4, 5, 6])]
)
def test_a_dict_is_one_user(history):
    run = one_column_run()
    want = run.predict(pa.table({"item": [3, 9], "hist_item": [[4, 5, 6]] * 2}))
    close(run.score_candidates({"hist_item": history}, [3, 9]), want)


@pytest.mark.parametrize(
    "items", [[3, 9, 77], np.array([3, 9, 77]), pa.array([3, 9, 77]), pd.Series([3, 9, 77]), pl.Series([3, 9, 77])]
)
def test_a_single_candidate_column_takes_its_words_alone(items):
    run = one_column_run()
    want = run.predict(pa.table({"item": [3, 9, 77], "hist_item": [[4, 5, 6]] * 3}))
    close(run.score_candidates({"hist_item": [4, 5, 6]}, items), want)


NESTED = {"item": [[3], [], [9, 77, 1], [2]], "category": [["a"], [], ["c", "b", "a"], ["b"]]}
FLAT = {name: [word for words in lists for word in words] for name, lists in NESTED.items()}
OWNER = [0, 2, 2, 2, 3]
OFFSETS = [0, 1, 1, 4, 5]


@pytest.mark.parametrize("model", MODELS)
def test_several_users_equal_predict(model):
    run, users = make_run(model), timed_table().slice(0, 4)
    want = run.predict(repeated(users, FLAT, OWNER))
    close(run.score_candidates(users, NESTED), want)
    close(run.score_candidates(users, pl.DataFrame(NESTED)), want)
    close(run.score_candidates(users, FLAT, OFFSETS), want)
    close(run.score_candidates(users, FLAT, torch.tensor(OFFSETS)), want)


def test_several_users_of_a_single_candidate_column():
    run, users = one_column_run(), timed_table().slice(0, 4).select(["hist_item"])
    want = run.predict(repeated(users.append_column("item", pa.array([1] * 4)), {"item": FLAT["item"]}, OWNER))
    close(run.score_candidates(users, NESTED["item"]), want)
    close(run.score_candidates(users, FLAT["item"], np.array(OFFSETS)), want)


def test_a_number_may_be_the_candidate_s():
    run, user = make_run(), timed_table().slice(3, 1)
    items = ITEMS | {"age": [20.0, 30.0, None, 50.0]}
    want = run.predict(repeated(user, items, [0] * 4))
    close(run.score_candidates(user, items), want)
    close(run.score_candidates(user.drop_columns("age"), items), want)


@pytest.mark.parametrize("model", MODELS)
def test_no_candidates_and_no_users(model):
    run, users = make_run(model), timed_table().slice(0, 2)
    nothing = {"item": [], "category": []}
    for found in (
        run.score_candidates(users.slice(0, 1), nothing),
        run.score_candidates(users, {"item": [[], []], "category": [[], []]}),
        run.score_candidates(users, nothing, [0, 0, 0]),
        run.score_candidates(users.slice(0, 0), nothing, [0]),
    ):
        assert found.shape == (0,)
        assert found.dtype == np.float32


def test_a_model_without_groups_takes_a_table():
    run = make_run(groups=[])
    user = timed_table().slice(3, 1)
    close(run.score_candidates(user, {"item": [3, 9]}), run.predict(repeated(user, {"item": [3, 9]}, [0, 0])))
    with pytest.raises(
        DataError, match="items must be a table with the columns that are the candidate's, got a list"
    ):
        run.score_candidates(user, [3, 9])


def test_unknown_words_are_counted():
    run = make_run()
    user = {"age": 30, "tags": "x|other", "hist_item": [1, 50, 60], "hist_category": ["a", "b", "c"]}
    assert run.unknown == {}
    run.score_candidates(user, ITEMS)
    assert {name: count for name, count in run.unknown.items() if count} == {
        "item": 2,
        "category": 1,
        "tags": 1,
        "hist_item": 2,
    }
    run.score_candidates(user, ITEMS)
    assert run.unknown["item"] == 4


USERS = timed_table().slice(0, 3)
WRONG = {
    "words for two columns": (
        (USERS[:1], [1, 2]),
        "items must be a table with the candidate columns item, category, got a l",
    ),
    "text": ((USERS[:1], "3"), "items must be a list of words or a table, got the text '3'"),
    "a column less": ((USERS[:1], {"item": [1]}), "items: no column 'category'; the columns are item"),
    "a sequence": (
        (USERS[:1], ITEMS | {"tags": ["x"] * 4}),
        "items has the sequence 'tags', but sequences are the user's",
    ),
    "other words": (
        (USERS[:1], {"item": ["x"], "category": ["a"]}),
        "items: column 'item': expected whole numbers, as it was fitted on, got the text 'x'",
    ),
    "no list for each user": (
        (USERS, ITEMS),
        "items must hold a list for each of 3 users, or candidate_offsets must say where each user's candidates b",
    ),
    "too few lists": (
        (USERS, {"item": [[1], [2]], "category": [["a"], ["b"]]}),
        "items must hold a list for each of 3 users, got 2",
    ),
    "unequal lists": (
        (USERS, {"item": [[1], [2], [3, 4]], "category": [["a"], ["b"], ["c"]]}),
        "items: columns 'item' and 'category' hold 2 and 1 candidates of user 2",
    ),
    "lists and words": (
        (USERS, {"item": [[1], [2], [3]], "category": ["a", "b", "c"]}),
        "items must hold lists in every column or in none, got lists in 'item', not in 'category'",
    ),
    "lists and offsets": (
        (USERS, {"item": [[1], [], []], "category": [["a"], [], []]}, [0, 1, 1, 1]),
        "candidate_offsets must be None where items holds a list for each user",
    ),
    "too few offsets": (
        (USERS, ITEMS, [0, 4]),
        r"candidate_offsets must be 4 whole numbers for 3 users, got int64 of sh",
    ),
    "offsets of another kind": (
        (USERS, ITEMS, [0, 1.5, 2, 4]),
        "candidate_offsets must be 4 whole numbers for 3 users, g",
    ),
    "falling offsets": ((USERS, ITEMS, [0, 3, 2, 4]), "candidate_offsets must rise from 0 to 4, got 0 to 4"),
    "offsets of fewer": ((USERS, ITEMS, [0, 1, 2, 3]), "candidate_offsets must rise from 0 to 4, got 0 to 3"),
    "a user's column less": (
        (USERS[:1].drop_columns("age"), ITEMS),
        "user_table: no column 'age'; the columns are ",
    ),
    "a dict without a value": (
        ({"age": 3, "tags": "x"}, ITEMS),
        "user_table: no column 'hist_item'; the columns are age, tags, item, category$",
    ),
    "a dict of columns": (
        (USERS.to_pydict(), ITEMS),
        r"user_table\['age'\] must be one value, as a dict holds one user, got a list; give several users as ",
    ),
    "histories that differ": (
        ({"age": 3, "tags": "x", "hist_item": [1, 2], "hist_category": ["a"]}, ITEMS),
        "'hist_item' and 'hist_category' .* 2 and 1 events",
    ),
    "no table": (
        (3, ITEMS),
        "a table must be a path, a mapping of columns or an object with __arrow_c_stream__, got int",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_sentence(case):
    arguments, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        make_run().score_candidates(*arguments)
    assert "\n" not in str(caught.value)
