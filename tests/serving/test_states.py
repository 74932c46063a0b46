"""States of users in place of histories: the scores of whole histories, kept in memory and on the disk."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch
from served import run_of
from shop import make_shop

from dien_fast.errors import DataError, DienFastError
from dien_fast.serving.states import LmdbStore, MemoryStore, UserStates
from dien_fast.training.runs import load

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
    lengths = states._read(NAMES)["items"].lengths()
    assert lengths.tolist() == [longest, 2, 3]


def test_states_on_the_disk_outlive_the_process_that_wrote_them(shop, tmp_path):
    run = load(shop / "run")
    UserStates(run, LmdbStore(tmp_path / "states", 2**24)).replace(NAMES, histories(5, 0, 2))
    states = UserStates(load(shop / "run"), LmdbStore(tmp_path / "states", 2**24))
    assert states._read(NAMES)["items"].lengths().tolist() == [5, 0, 2]


def test_states_of_another_model_are_refused(shop, store):
    run = load(shop / "run")
    UserStates(run, store).replace(NAMES, histories(5, 0, 2))
    other = load(shop / "run")
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[-1] += 1e-3
    states = UserStates(other, store)
    sentence = "the states of user 'ann' are of another model; write them anew with replace"
    with pytest.raises(DataError, match=sentence):
        states.score_candidates(NAMES, USERS, ITEMS)
    with pytest.raises(DataError, match=sentence):
        states.extend(NAMES, histories(1, 1, 1))
    states.replace(NAMES, histories(5, 0, 2))
    assert len(states.score_candidates(NAMES, USERS, ITEMS)) == 4


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
    assert states._read(["ann"])["items"].lengths().tolist() == [20]


def test_wrong_arguments(shop, tmp_path):
    run = load(shop / "run")
    states = UserStates(run, MemoryStore())
    with pytest.raises(DataError, match="events must have a row for each of 1 users, got 3"):
        states.extend(["ann"], histories(1, 1, 1))
    with pytest.raises(DataError, match="events: no column 'past_brands'; the columns are past_items"):
        states.extend(["ann"], {"past_items": ["i1"]})
    with pytest.raises(DataError, match="users must be named once each"):
        states.extend(["ann", "ann"], {"past_items": ["i1", "i1"], "past_brands": ["b1", "b1"]})
    with pytest.raises(DataError, match="user_table must have a row for each of 3 users, got 1"):
        states.score_candidates(NAMES, {"country": ["NO"]}, ITEMS)
    with pytest.raises(DienFastError, match=r"states are kept for dien alone, the run .* is din"):
        UserStates(run_of(run, "DIN"), MemoryStore())
    small = LmdbStore(tmp_path / "small", 2**15)
    with pytest.raises(DienFastError, match=r"the store .*small is full: it has grown to 32768 bytes"):
        small.put({str(user): b"x" * 4000 for user in range(20)})
    assert small.get(["0"]) == [None]
