"""Any events of users: scores from states are those from histories, or they are refused and nothing changes."""

import json

import numpy as np
import pytest
from asgi import Client, check_refusal
from campaign import Tally, amounts, campaign
from hypothesis import example, given
from hypothesis import strategies as st
from spoiled_values import spoiled
from test_any_request import ITEMS, VALUES

from dien_fast.serving.http import Limits, Service
from dien_fast.serving.states import MemoryStore

OTHERS = {"country": "NO", "price": 0.4, "words": "new;red"}
FIRST = {"past_items": ["i1", "i4"], "past_brands": ["b1", "b1"]}
MORE = {"past_items": ["i7", "never seen"], "past_brands": ["b0", "b2"]}
ONE = {"user_id": "ann", "events": FIRST}
SEVERAL = {"user_ids": ["ann", "eva"], "events": [FIRST, MORE]}


@pytest.fixture(scope="module")
def client(run):
    client = Client(Service(run, Limits(body=20_000, users=5, candidates=50), MemoryStore()).application)
    yield client
    client.close()


def ask(client, content, **how):
    return client.ask(json.dumps(content).encode("utf-8", "surrogatepass"), **how)


def scores(client, **user):
    """What /score answers for the other features and this."""
    status, answer = ask(client, {"items": ITEMS, "user": OTHERS | user.pop("history", {})} | user)
    return status, json.loads(answer).get("probabilities")


def are_words(events):
    """Whether events are lists of text, to which others can be added here."""
    return all(
        isinstance(events.get(name), list) and all(isinstance(word, str) for word in events[name])
        for name in FIRST
    )


@amounts(quick=60, slow=4000)
def test_any_events_are_added_or_refused(count, client):
    tally = Tally("events of users")

    @campaign(count)
    @given(st.sampled_from([ONE, SEVERAL]).flatmap(lambda valid: spoiled(valid, odd=VALUES)), st.booleans())
    @example(ONE, True)
    @example(SEVERAL, False)
    @example({"user_ids": ["ann", "ann"], "events": [FIRST, MORE]}, False)
    @example({"user_id": "\ud800", "events": FIRST}, True)
    def check(content, replace):
        assert ask(client, ONE, path="/events", method="PUT")[0] == 200
        before = scores(client, user_id="ann")
        status, answer = ask(client, content, path="/events", method="PUT" if replace else "POST")
        if status != 200:
            check_refusal(status, answer)
            assert scores(client, user_id="ann") == before
            tally["refused"] += 1
            return
        tally["right"] += 1
        single = "user_id" in content
        names = [content["user_id"]] if single else content["user_ids"]
        for name, events in zip(names, [content["events"]] if single else content["events"], strict=True):
            if not replace and name == "ann" and are_words(events):
                events = {key: FIRST[key] + events[key] for key in FIRST}
            elif not replace:
                continue
            found, wanted = scores(client, user_id=name), scores(client, history=events)
            assert found[0] == wanted[0] == 200
            np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=1e-6)

    check()
    tally.check()
