"""Any damage to the states of a user that a store keeps is noticed, and the other users keep theirs."""

import numpy as np
import pytest
from campaign import amounts, attempt, campaign
from hypothesis import given
from hypothesis import strategies as st
from spoiled_bytes import spoil

from dien_fast.serving.states import MemoryStore, UserStates

ITEMS = {"item": [["i1", "i2"], ["i3"]], "brand": [["b1", "b2"], ["b0"]]}
ROWS = {"country": ["NO", None], "price": [0.5, None], "words": [["new"], []]}


@pytest.fixture
def states(run):
    store = MemoryStore()
    states = UserStates(run, store)
    states.replace(["ann", "bob"], {"past_items": [["i1", "i4"], []], "past_brands": [["b1", "b1"], []]})
    return states


@amounts(quick=15, slow=5000)
def test_damaged_states_are_refused(count, states):
    (whole,) = states.store.get(["ann"])
    expected = states.score_candidates(["ann", "bob"], ROWS, ITEMS)
    alone = states.score_candidates(
        ["bob"],
        {name: values[1:] for name, values in ROWS.items()},
        {name: values[1:] for name, values in ITEMS.items()},
    )

    @campaign(count)
    @given(st.data())
    def check(data):
        value = spoil(data.draw, whole)
        states.store.put({"ann": value})
        found, sentence = attempt(states.score_candidates, ["ann", "bob"], ROWS, ITEMS)
        assert (sentence is None) == (value == whole), sentence
        if sentence is None:
            np.testing.assert_array_equal(found, expected)
        else:
            assert "what is kept of user 'ann'" in sentence
        events = {"past_items": [["i1"]], "past_brands": [["b1"]]}
        assert (attempt(states.extend, ["ann"], events)[1] is None) == (value == whole)

    check()
    again = states.score_candidates(
        ["bob"],
        {name: values[1:] for name, values in ROWS.items()},
        {name: values[1:] for name, values in ITEMS.items()},
    )
    np.testing.assert_array_equal(again, alone)
