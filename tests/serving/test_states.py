"""States of users in place of histories: the scores of whole histories, kept in memory and on the disk."""

import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from served import run_of
from shop import make_shop

from dien_fast.errors import DataError, DienFastError
from dien_fast.serving.states import LmdbStore, MemoryStore, OutdatedStatesError, UnknownUserError, UserStates
from dien_fast.training.runs import build_model, load

ITEMS = pd.DataFrame({"item": [["i1", "i2"], [], ["i3", "new"]], "brand": [["b1", "b2"], [], ["b0", "b0"]]})
USERS = {"country": ["NO", "IS", "NA"], "price": [0.1, None, 0.9], "words": ["new;red", "", "blue"]}
NAMES = ["ann", "bob", "eve" * 300]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(params=["memory", "lmdb"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LmdbStore(tmp_path / "states", 2**24)


def histories(*lengths):
    """Histories of the three users, as text."""
    items = [[f"i{n % 12}" for n in range(length)] for length in lengths]
    brands = [[f"b{n % 3}" for n in range(length)] for length in lengths]
    return {"past_items": [";".join(row) for row in items], "past_brands": [";".join(row) for row in brands]}


def lengths(states, users):
    """How many states are kept of each user."""
    return [len(one.states["items"]) for one in states._read(users, must_be_known=False)]


def newer(before, after):
    """The events of histories that others have not."""
    return {
        name: [
            ";".join(cell.split(";")[len([*filter(None, old.split(";"))]) :])
            for cell, old in zip(after[name], before[name], strict=True)
        ]
        for name in after
    }


@pytest.mark.parametrize("gru_type", ["AUGRU", "AGRU", "AIGRU", "GRU"])
def test_states_give_the_scores_of_whole_histories(shop, store, gru_type):
    run = run_of(load(shop / "run"), f"DIEN {gru_type}")
    states = UserStates(run, store)

    def expected(table):
        return run.score_candidates(pd.DataFrame(USERS | table), ITEMS)

    found = states.score_candidates(NAMES, USERS, ITEMS)
    np.testing.assert_allclose(found, expected(histories(0, 0, 0)), rtol=0, atol=1e-6)
    first, second = histories(5, 0, 2), histories(6, 3, 2)
    states.replace(NAMES, first)
    found = states.score_candidates(NAMES, USERS, ITEMS)
    np.testing.assert_allclose(found, expected(first), rtol=0, atol=1e-6)
    states.extend(NAMES, newer(first, second))
    found = states.score_candidates(NAMES, USERS, ITEMS)
    np.testing.assert_allclose(found, expected(second), rtol=0, atol=1e-6)
    assert not np.allclose(expected(first), expected(second), rtol=0, atol=1e-6)


def test_the_newest_states_are_kept(shop, store):
    run = load(shop / "run")
    states = UserStates(run, store)
    longest = run.encoders.sequence("past_items").max_length()
    states.replace(NAMES, histories(longest, 0, 1))
    for _ in range(2):
        states.extend(NAMES, histories(3, 1, 1))
    assert lengths(states, NAMES) == [longest, 2, 3]
    assert [len(one.words["past_items"]) for one in states._read(NAMES, must_be_known=True)] == [longest, 2, 3]


def test_states_on_the_disk_outlive_the_process_that_wrote_them(shop, tmp_path):
    run = load(shop / "run")
    UserStates(run, LmdbStore(tmp_path / "states", 2**24)).replace(NAMES, histories(5, 0, 2))
    states = UserStates(load(shop / "run"), LmdbStore(tmp_path / "states", 2**24))
    assert lengths(states, NAMES) == [5, 0, 2]


@pytest.mark.parametrize("first", ["score", "extend"])
def test_states_of_another_model_are_computed_anew(shop, store, first):
    UserStates(load(shop / "run"), store).replace(NAMES, histories(5, 0, 2))
    before = store.get(NAMES)
    other = load(shop / "run")
    with torch.no_grad():
        other.model.embeddings["item"].weight.mul_(-1)
    states = UserStates(other, store)
    expected = histories(5, 0, 2)
    if first == "extend":
        expected = histories(6, 1, 2)
        states.extend(NAMES, newer(histories(5, 0, 2), expected))
    found = states.score_candidates([*NAMES], USERS, ITEMS)
    wanted = other.score_candidates(pd.DataFrame(USERS | expected), ITEMS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert not np.allclose(wanted, load(shop / "run").score_candidates(pd.DataFrame(USERS | expected), ITEMS))
    # They are kept: a value of the other model no longer has to be computed.
    kept = store.get(NAMES)
    assert all(old != new for old, new in zip(before, kept, strict=True))
    states.score_candidates(NAMES, USERS, ITEMS)
    assert store.get(NAMES) == kept


def test_whole_numbers_are_kept_as_words(shop, store):
    """Events may be numbers once and text another time, as a column of a table may be."""
    states = UserStates(load(shop / "run"), store)
    states.extend(["ann"], {"past_items": [[1, 2]], "past_brands": [[1.0, None]]})
    states.extend(["ann"], {"past_items": ["i3"], "past_brands": ["b0"]})
    (kept,) = states._read(["ann"], must_be_known=True)
    assert kept.words == {"past_items": ["1", "2", "i3"], "past_brands": ["1", None, "b0"]}


def test_events_that_another_model_cannot_read_are_refused(shop, store):
    run = run_of(load(shop / "run"), "DIEN AUGRU")
    group = run.schema.groups[0]
    schema = dataclasses.replace(
        run.schema,
        sequences=["words", "past_items"],
        groups=[dataclasses.replace(group, pairs=group.pairs[:1])],
    )
    config = dataclasses.replace(run.config, schema=schema.to_dict())
    without = dataclasses.replace(
        run, config=config, schema=schema, model=build_model(config, run.encoders).eval()
    )
    UserStates(without, store).replace(["ann"], {"past_items": ["i1;i2"]})
    states = UserStates(run, store)
    sentence = "states of user 'ann' are of another model, and .* no column 'past_brands'.*; write them anew with"
    for call in (
        lambda: states.score_candidates(["ann"], {}, ITEMS.head(1)),
        lambda: states.extend(["ann"], histories(1)),
    ):
        with pytest.raises(OutdatedStatesError, match=sentence):
            call()
    store.put({"bob": b"of a time before"})
    with pytest.raises(OutdatedStatesError, match="kept of user 'bob' was written by another version"):
        states.extend(["bob"], histories(1))
    states.replace(["ann", "bob"], histories(5, 2))
    assert lengths(states, ["ann", "bob"]) == [5, 2]


def test_events_of_many_threads_are_all_kept(shop, store):
    states = UserStates(load(shop / "run"), store)
    threads = [
        threading.Thread(
            target=lambda: [
                states.extend(["ann"], {"past_items": ["i1"], "past_brands": ["b1"]}) for _ in range(5)
            ]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths(states, ["ann"]) == [20]


def test_wrong_arguments(shop, tmp_path):
    run = load(shop / "run")
    states = UserStates(run, MemoryStore())
    with pytest.raises(DataError, match="events must have a row for each of 1 users, got 3"):
        states.extend(["ann"], histories(1, 1, 1))
    with pytest.raises(DataError, match="events: no column 'past_brands'; the columns are past_items"):
        states.extend(["ann"], {"past_items": ["i1"]})
    with pytest.raises(DataError, match="users must be named once each"):
        states.extend(["ann", "ann"], {"past_items": ["i1", "i1"], "past_brands": ["b1", "b1"]})
    with pytest.raises(DataError, match="users must be named once each"):
        states.replace(["ann", "ann"], {"past_items": ["i1", "i1"], "past_brands": ["b1", "b1"]})
    with pytest.raises(
        DataError, match="user_table must not have 'past_items': states take the place of histories"
    ):
        states.score_candidates(["ann"], {"past_items": ["i1"]}, ITEMS.head(1))
    with pytest.raises(UnknownUserError, match="no events of user 'ann' are kept"):
        states.encode(["ann"], {}, ITEMS.head(1), must_be_known=True)
    with pytest.raises(DataError, match="user_table must have a row for each of 3 users, got 1"):
        states.score_candidates(NAMES, {"country": ["NO"]}, ITEMS)
    with pytest.raises(DienFastError, match=r"states are kept for dien alone, the run .* is din"):
        UserStates(run_of(run, "DIN"), MemoryStore())
    (tmp_path / "file").touch()
    for path in ("file", "file/inside", "long" * 100, "a\0b"):
        with pytest.raises(DienFastError, match=r"cannot open the store .*: "):
            LmdbStore(tmp_path / path)
    LmdbStore(tmp_path / "in" / "turn", 2**15)
    small = LmdbStore(tmp_path / "small", 2**15)
    with pytest.raises(DienFastError, match=r"the store .*small is full: it has grown to 32768 bytes"):
        small.put({str(user): b"x" * 4000 for user in range(20)})
    assert small.get(["0"]) == [None]
