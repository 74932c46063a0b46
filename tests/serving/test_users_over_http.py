"""Users over HTTP: their events, scores from their states, refusals, and another model."""

import dataclasses
import json
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from served import Server, run_of
from shop import failure, make_shop

from dien_fast.cli import main
from dien_fast.errors import DienFastError
from dien_fast.serving.batching import Batcher
from dien_fast.serving.states import LmdbStore, MemoryStore, UserStates
from dien_fast.training.runs import build_model, load

OTHERS = {"country": "NO", "price": 0.4, "words": "new;red"}
ITEMS = {"item": ["i1", "i2", "never seen"], "brand": ["b1", "b2", "b0"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(shop, directory):
    run = shutil.copytree(shop / "run", directory / "run")
    options = ["--threads", "1", "--max-body", "100000", "--max-users", "64"]
    server = Server(run, "--states", str(directory / "states"), *options)
    yield server
    status, printed = server.end()
    assert status == 0, printed


@pytest.fixture(scope="module")
def run(shop):
    return load(shop / "run")


def send(server, content, method="POST"):
    status, text = server.ask(method, "/events", json.dumps(content))
    return status, json.loads(text)


def events(*numbers):
    return {"past_items": [f"i{n % 12}" for n in numbers], "past_brands": [f"b{n % 3}" for n in numbers]}


def expected(run, *numbers):
    return run.score_candidates(OTHERS | events(*numbers), pd.DataFrame(ITEMS))


def scores(server, user):
    status, answer = server.score({"user_id": user, "user": OTHERS, "items": ITEMS})
    assert status == 200, answer
    return answer["probabilities"]


def test_a_user_is_scored_from_the_events_that_came(server, run):
    assert send(server, {"user_id": "ann", "events": events(1, 4)}) == (200, {"added": 2})
    np.testing.assert_allclose(scores(server, "ann"), expected(run, 1, 4), rtol=0, atol=1e-6)
    # As text, and with a word that training did not see.
    before = server.metric('dien_fast_unknown_words_total{column="past_items"}')
    more = {"past_items": "i7;new", "past_brands": "b1;b1"}
    assert send(server, {"user_id": "ann", "events": more}) == (200, {"added": 2})
    assert server.metric('dien_fast_unknown_words_total{column="past_items"}') == before + 1
    whole = {"past_items": "i1;i4;i7;new", "past_brands": "b1;b1;b1;b1"}
    wanted = run.score_candidates(OTHERS | whole, pd.DataFrame(ITEMS))
    np.testing.assert_allclose(scores(server, "ann"), wanted, rtol=0, atol=1e-6)
    assert not np.allclose(wanted, expected(run, 1, 4), rtol=0, atol=1e-6)

    assert send(server, {"user_id": "ann", "events": events(2)}, "PUT") == (200, {"added": 1})
    np.testing.assert_allclose(scores(server, "ann"), expected(run, 2), rtol=0, atol=1e-6)
    assert server.metric('dien_fast_event_requests_total{status="200"}') >= 3
    assert server.metric("dien_fast_events_total") >= 5


def test_several_users_at_once(server, run):
    given = {"user_ids": ["eva", "tom", "zoë"], "events": [events(3), events(), events(5, 6, 7)]}
    assert send(server, given) == (200, {"added": 4})
    items = [ITEMS, {"item": [], "brand": []}, ITEMS]
    # The order is that of the request, and a user may be there twice.
    names = ["zoë", "tom", "eva"]
    status, answer = server.score({"user_ids": names, "users": [OTHERS] * 3, "items": items})
    assert status == 200, answer
    np.testing.assert_allclose(answer["probabilities"][0], expected(run, 5, 6, 7), rtol=0, atol=1e-6)
    assert answer["probabilities"][1] == []
    np.testing.assert_allclose(answer["probabilities"][2], expected(run, 3), rtol=0, atol=1e-6)


def test_no_event_is_lost_among_many_requests(server, run):
    def add(number):
        return send(server, {"user_id": f"many{number % 3}", "events": events(2)})[0]

    def ask(number):
        history = OTHERS | events(*range(number % 4))
        return server.score({"user": history, "items": ITEMS}), history

    with ThreadPoolExecutor(16) as pool:
        added = [pool.submit(add, number) for number in range(60)]
        asked = [pool.submit(ask, number) for number in range(30)]
    assert {one.result() for one in added} == {200}
    for one in asked:
        (status, answer), history = one.result()
        assert status == 200
        wanted = run.score_candidates(history, pd.DataFrame(ITEMS))
        np.testing.assert_allclose(answer["probabilities"], wanted, rtol=0, atol=1e-6)
    kept = UserStates(run, MemoryStore())
    kept.extend(["many"], {name: [words] for name, words in events(*[2] * 20).items()})
    wanted = kept.score_candidates(
        ["many"], {name: [value] for name, value in OTHERS.items()}, pd.DataFrame(ITEMS)
    )
    for number in range(3):
        np.testing.assert_allclose(scores(server, f"many{number}"), wanted, rtol=0, atol=1e-6)


NAME = "user_id must be text, got "


@pytest.mark.parametrize(
    ("status", "path", "content", "message"),
    [
        (
            404,
            "/score",
            {"user_id": "nobody", "user": OTHERS, "items": ITEMS},
            "no events of user 'nobody' are kept",
        ),
        (400, "/score", {"user_id": 7, "user": OTHERS, "items": ITEMS}, NAME + "int"),
        (400, "/score", {"user_id": "", "user": OTHERS, "items": ITEMS}, NAME + "no characters"),
        (400, "/score", {"user_id": "\ud800", "user": OTHERS, "items": ITEMS}, "the body must be JSON: "),
        (400, "/score", {"user_id": "a", "user_ids": ["a"], "items": ITEMS}, "exactly one of user and users"),
        (
            400,
            "/score",
            {"user_ids": "ann", "items": [ITEMS]},
            "user_ids must be a list of texts, one for each user",
        ),
        (400, "/score", {"user_ids": ["a", 1], "items": [ITEMS] * 2}, "user_ids[1] must be text, got int"),
        (
            400,
            "/score",
            {"user_ids": ["a"], "users": [OTHERS] * 2, "items": [ITEMS] * 2},
            "user_ids must name each of 2 users, got 1",
        ),
        (
            400,
            "/score",
            {"user_id": "a", "user": events(1), "items": ITEMS},
            "must not have 'past_items': states take the place of histories",
        ),
        (400, "/events", [], "the body must be an object with user_id or user_ids, and events, got list"),
        (400, "/events", {"user_id": "a"}, "exactly one of user_id and user_ids, and events, got user_id"),
        (400, "/events", {"user": "a", "events": events(1)}, "user_id or user_ids, and events, got user, events"),
        (400, "/events", {"user_id": None, "events": events(1)}, NAME + "NoneType"),
        (400, "/events", {"user_id": "a", "events": [events(1)]}, "events must be an object, got list"),
        (400, "/events", {"user_id": "a", "events": {"past_items": ["i1"]}}, "events: no column 'past_brands'"),
        (400, "/events", {"user_id": "a", "events": events(1) | {"past_items": 5}}, "expected lists, or text"),
        (
            400,
            "/events",
            {"user_id": "a", "events": events(1) | {"past_items": {"i": 1}}},
            "expected lists, or text",
        ),
        (400, "/events", {"user_id": "a", "events": events(1) | {"past_items": [["i1"]]}}, "past_items"),
        (400, "/events", {"user_id": "a", "events": events(1) | {"past_items": ["i", 1]}}, "values of one kind"),
        (
            400,
            "/events",
            {"user_id": "a", "events": events(1) | {"past_items": ["i"] * 2}},
            "2 and 1 events in row 0",
        ),
        (400, "/events", {"user_ids": ["a", "a"], "events": [events(1)] * 2}, "users must be named once each"),
        (400, "/events", {"user_ids": ["a"], "events": [events(1)] * 2}, "of each of 2 events objects, got 1"),
        (400, "/events", {"user_ids": ["a"], "events": []}, "events must be a list of objects, one for each user"),
        (
            400,
            "/events",
            {"user_ids": ["a", "b"], "events": [events(1), {"past_items": ["i1"]}]},
            "events[1] has no column 'past_brands', which others have",
        ),
        (
            400,
            "/events",
            {"user_ids": [str(n) for n in range(65)], "events": [events(1)] * 65},
            "at most 64 users, got 65",
        ),
        (413, "/events", {"user_id": "a" * 100_000, "events": events(1)}, "at most 100000 bytes"),
    ],
)
def test_what_is_refused(server, status, path, content, message):
    found, text = server.ask("POST", path, json.dumps(content))
    assert found == status, text
    assert message in json.loads(text)["error"]
    assert server.score({"user_id": "a", "user": OTHERS, "items": ITEMS})[0] == 404


def test_events_that_the_model_cannot_read(server, run, directory):
    """What another process has kept with a model of other columns; whole histories set it right."""
    run = run_of(run, "DIEN AUGRU")
    group = run.schema.groups[0]
    groups = [dataclasses.replace(group, pairs=group.pairs[:1])]
    schema = dataclasses.replace(run.schema, sequences=["words", "past_items"], groups=groups)
    config = dataclasses.replace(run.config, schema=schema.to_dict())
    model = build_model(config, run.encoders).eval()
    other = dataclasses.replace(run, config=config, schema=schema, model=model)
    UserStates(other, LmdbStore(directory / "states")).replace(["old"], {"past_items": ["i1;i2"]})
    for status, answer in (
        server.score({"user_id": "old", "user": OTHERS, "items": ITEMS}),
        send(server, {"user_id": "old", "events": events(1)}),
    ):
        assert status == 409
        assert "the states of user 'old' are of another model, and the events that are kept" in answer["error"]
    assert send(server, {"user_id": "old", "events": events(1)}, "PUT") == (200, {"added": 1})
    assert len(scores(server, "old")) == 3


def test_another_model_computes_the_states_anew(server, shop, directory):
    send(server, {"user_ids": ["ida", "liv"], "events": [events(1, 2, 3), events(4)]})
    before = scores(server, "ida")
    words = ["--dataset", str(shop / "clicks.csv"), "--schema", str(shop / "clicks.toml")]
    options = ["--overwrite", "--epochs", "1", "--seed", "5", "--embedding-size", "6", "--cpu", "--quiet"]
    assert main(["train", *words, "--output", str(directory / "run"), *options]) == 0
    server.command.send(signal.SIGHUP)
    for _ in range(600):
        if server.metric('dien_fast_reloads_total{result="done"}'):
            break
        time.sleep(0.1)
    other = load(directory / "run")
    np.testing.assert_allclose(scores(server, "ida"), expected(other, 1, 2, 3), rtol=0, atol=1e-6)
    assert not np.allclose(before, expected(other, 1, 2, 3), rtol=0, atol=1e-6)
    send(server, {"user_id": "liv", "events": events(5)})
    np.testing.assert_allclose(scores(server, "liv"), expected(other, 4, 5), rtol=0, atol=1e-6)


def test_a_model_without_states_is_not_taken(run):
    batcher = Batcher(run, store=MemoryStore())
    try:
        with pytest.raises(DienFastError, match="states are kept for dien alone"):
            batcher.exchange(run_of(run, "DIN"))
        assert batcher.run is run
    finally:
        batcher.close()


def test_wrong_events_fail_alone(run):
    """Requests that wait together: those of a user with outdated states, and those before and after."""
    store = MemoryStore()
    store.put({"old": b"of a time before"})
    batcher = Batcher(run, store=store)
    busy = batcher.submit(OTHERS | events(*range(5)), {"item": ["i1"] * 9000, "brand": ["b1"] * 9000})
    columns = {name: [words] for name, words in events(1).items()}
    added = [batcher.add([user], columns) for user in ("ann", "old", "bob", "ann")]
    batcher.close()
    assert len(busy.result().probabilities) == 9000
    assert [one.exception() is None for one in added] == [True, False, True, True]
    states = UserStates(run, store)
    assert [len(one.states["items"]) for one in states._read(["ann", "bob"], must_be_known=True)] == [2, 1]


def test_what_cannot_be_served(shop, tmp_path, capsys):
    (tmp_path / "file").touch()
    sentence = failure(capsys, "serve", shop / "run", "--states", tmp_path / "file")
    assert sentence.startswith(f"cannot open the store {tmp_path / 'file'}: ")
