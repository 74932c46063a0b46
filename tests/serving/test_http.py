"""The server: scores of predict over HTTP, refusals, metrics, another model without a lost request, its end."""

import json
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from served import Server
from shop import failure, make_shop

from dien_fast.cli import main
from dien_fast.errors import DataError
from dien_fast.serving import http
from dien_fast.serving.http import Service
from dien_fast.training.runs import load

USER = {"country": "NO", "past_items": ["i1", "i4", "i7"], "past_brands": ["b1", "b1", "b1"], "words": "new;red"}
USER["price"] = 0.4
ITEMS = {"item": ["i1", "i2", "never seen"], "brand": ["b1", "b2", "b0"], "price": [0.1, None, 0.9]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def server(shop, tmp_path_factory):
    run = shutil.copytree(shop / "run", tmp_path_factory.mktemp("served") / "run")
    server = Server(run, "--threads", "1", "--max-body", "100000", "--max-users", "64", "--max-candidates", "500")
    yield server
    status, printed = server.end()
    assert status == 0, printed


@pytest.fixture(scope="module")
def run(shop):
    return load(shop / "run")


def test_a_user_gets_the_probabilities_of_score_candidates(server, run):
    status, answer = server.score({"user": USER, "items": ITEMS})
    assert status == 200
    items = pd.DataFrame(ITEMS)
    np.testing.assert_allclose(answer["probabilities"], run.score_candidates(USER, items), rtol=0, atol=1e-6)
    rows = items.assign(country="NO", past_items="i1;i4;i7", past_brands="b1;b1;b1", words="new;red")
    np.testing.assert_allclose(answer["probabilities"], run.predict(rows), rtol=0, atol=1e-6)


def test_probabilities_are_written_with_the_digits_of_float32(server):
    status, text = server.ask("POST", "/score", json.dumps({"user": USER, "items": ITEMS}))
    assert status == 200, text
    numbers = json.loads(text, parse_float=str)["probabilities"]
    assert len(numbers) == 3
    assert all(float(str(np.float32(number))) == float(number) for number in numbers)


def test_several_users_get_theirs(server, run):
    other = {"country": "IS", "price": None, "past_items": [], "past_brands": None, "words": ""}
    users = [USER, other, USER | {"price": 0.5}]
    items = [
        {"item": ["i1", "i2"], "brand": ["b1", "b2"]},
        {"item": [], "brand": []},
        {"item": ["i3"], "brand": ["b0"]},
    ]
    status, answer = server.score({"users": users, "items": items})
    assert status == 200, answer
    for user, item, found in zip(users, items, answer["probabilities"], strict=True):
        expected = run.score_candidates(user, pd.DataFrame(item, dtype=str)) if item["item"] else []
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_requests_at_once_do_not_mix(server, run):
    def ask(number):
        user = {"country": "NA", "price": 0.7, "past_items": [f"i{number % 12}"] * (number % 5), "words": []}
        user["past_brands"] = [f"b{number % 3}"] * (number % 5)
        # Requests with a price and without one are computed apart.
        items = {"item": [f"i{number % 7}"] * (number % 4 + 1), "brand": ["b1"] * (number % 4 + 1)}
        if number % 2:
            items["price"] = [0.3] * (number % 4 + 1)
        return user, items, server.score({"user": user, "items": items})

    before = server.metric('dien_fast_requests_total{status="200"}')
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    for user, items, (status, answer) in answers:
        assert status == 200, answer
        expected = run.score_candidates(user, pd.DataFrame(items))
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-6)
    assert server.metric('dien_fast_requests_total{status="200"}') == before + 120


@pytest.mark.parametrize(
    ("user", "items"),
    [
        (USER, {"item": ["i1"]}),
        (USER, ["i1"]),
        (USER, {"item": ["i1"], "brand": ["b1"], "price": ["cheap"]}),
        ({"past_items": ["i1"]}, {"item": ["i1"], "brand": ["b1"]}),
        (USER | {"country": ["NO"]}, {"item": ["i1"], "brand": ["b1"]}),
        (USER, {"item": ["i1"], "brand": ["b1"], "past_items": ["i1"]}),
        (USER | {"past_brands": ["b1"]}, {"item": ["i1"], "brand": ["b1"]}),
    ],
)
def test_wrong_words_are_refused_with_the_sentence_of_the_library(server, run, user, items):
    with pytest.raises(DataError) as refusal:
        run.score_candidates(user, items)
    status, answer = server.score({"user": user, "items": items})
    assert (status, answer["error"]) == (400, " ".join(str(refusal.value).split()))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, "{", "the body must be JSON: "),
        (400, '{"user": {}, "items": [NaN]}', "the body must be JSON: "),
        (400, b"\xff\xfe\x00", "the body must be JSON: "),
        (400, "[" * 50_000, "the body must be JSON: "),
        (400, "[]", "the body must be an object with user or users, and items, got list"),
        (
            400,
            '{"user": {}, "item": []}',
            "the body must be an object with user or users, and items, got user, item",
        ),
        (400, '{"items": []}', "the body must have exactly one of user and users, and items, got items"),
        (400, '{"user": [], "items": []}', "user must be an object, got list"),
        (400, '{"users": {}, "items": []}', "users must be a list of objects, one for each user"),
        (400, '{"users": [], "items": []}', "users must be a list of objects, one for each user"),
        (400, '{"users": [{}], "items": []}', "items must be a list of what each of 1 users gets, got 0"),
        (400, '{"user": {}, "items": {"item": "i1"}}', "items['item'] must be a list, got str"),
        (400, '{"user": {}, "items": {"item": [1, "a", []]}}', "a column must hold values of one kind"),
        (400, '{"user_id": "ann", "items": []}', "user_id and events need a server that keeps states"),
        (413, " " * 100_001, "a body must have at most 100000 bytes"),
        (
            400,
            json.dumps({"user": USER, "items": {"item": ["i1"] * 501, "brand": ["b1"] * 501}}),
            "500 candidates",
        ),
        (400, json.dumps({"users": [USER] * 65, "items": [{"item": [], "brand": []}] * 65}), "64 users, got 65"),
    ],
)
def test_what_is_no_request_is_refused(server, status, body, message):
    found, text = server.ask("POST", "/score", body)
    assert found == status, text
    assert message in json.loads(text)["error"]


def test_what_is_served(server, run):
    status, text = server.ask("GET", "/health")
    answer = json.loads(text)
    assert (status, answer["status"], answer["model"]) == (200, "ok", "dien")
    assert answer["fingerprint"] == run.encoders.fingerprint()
    assert server.ask("GET", "/score")[0] == 405
    assert server.ask("GET", "/else")[0] == 404
    server.score({"user": USER, "items": ITEMS})
    assert server.metric('dien_fast_unknown_words_total{column="item"}') >= 1
    assert server.metric("dien_fast_request_seconds_count") > 0


def test_another_model_is_loaded_without_a_lost_request(server, shop, tmp_path):
    served = json.loads(server.ask("GET", "/health")[1])["run"]
    words = ["--dataset", str(shop / "clicks.csv"), "--schema", str(shop / "clicks.toml"), "--output", served]
    asked, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            asked.append(server.score({"user": USER, "items": ITEMS}))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        options = ["--overwrite", "--epochs", "1", "--seed", "5", "--embedding-size", "6", "--cpu", "--quiet"]
        assert main(["train", *words, *options]) == 0
        server.command.send(signal.SIGHUP)
        wait_for(lambda: server.metric('dien_fast_reloads_total{result="done"}') == 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in asked} == {200}
    expected = load(served).score_candidates(USER, pd.DataFrame(ITEMS))
    _, answer = server.score({"user": USER, "items": ITEMS})
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-6)

    Path(served, "best.pt").write_bytes(b"no checkpoint")
    server.command.send(signal.SIGHUP)
    wait_for(lambda: server.metric('dien_fast_reloads_total{result="failed"}') == 1)
    assert server.score({"user": USER, "items": ITEMS}) == (200, answer)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def test_many_signals_share_a_load_and_the_end_waits_for_one_alone(run, monkeypatch):
    loads, go_on = [], threading.Event()

    def slow(*arguments):
        loads.append(arguments)
        assert go_on.wait(60)
        return run

    monkeypatch.setattr(http, "load", slow)
    service = Service(run)
    service.ask_reload()
    wait_for(lambda: loads)
    for _ in range(50):
        service.ask_reload()
    go_on.set()
    wait_for(lambda: len(loads) == 2 and service._asked.empty() and not service._reloading.locked())
    go_on.clear()
    service.ask_reload()
    wait_for(lambda: len(loads) == 3)
    for _ in range(50):
        service.ask_reload()
    threading.Timer(0.1, go_on.set).start()
    service._close()
    assert len(loads) == 3


def test_a_load_that_the_system_refuses_is_not_the_last(run, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(24, "Too many open files")

    service = Service(run)
    with monkeypatch.context() as patch:
        patch.setattr(http, "load", refuse)
        service.ask_reload()
        wait_for(lambda: "the old model stays" in capsys.readouterr().err)
    service.ask_reload()
    wait_for(lambda: service.run is not run)
    service._close()


@pytest.mark.slow
def test_signals_may_come_at_any_moment_of_the_end(shop):
    server = Server(shop / "run")
    stop = threading.Event()

    def ask():
        while not stop.is_set() and server.command.send(signal.SIGHUP):
            time.sleep(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    try:
        # The last ones may come when Python itself has ended, whose own handler then ends the process.
        status, printed = server.end()
        assert status in (0, -signal.SIGHUP), printed
    finally:
        stop.set()
        asking.join()


@pytest.mark.slow  # the server of the other tests ends by SIGTERM, too
def test_sigterm_lets_requests_end(shop):
    server = Server(shop / "run")
    count = 9000
    content = {"user": USER, "items": {"item": ["i1"] * count, "brand": ["b1"] * count}}
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.score, content) for _ in range(4)]
        try:
            wait_for(lambda: server.metric("dien_fast_candidates_total") >= count)
        finally:
            status, printed = server.end()
        assert status == 0, printed
        for answer in answers:
            code, found = answer.result()
            assert (code, len(found["probabilities"])) == (200, count)


def test_what_cannot_be_served(shop, server, tmp_path, capsys, monkeypatch):
    assert failure(capsys, "serve", tmp_path / "none").startswith("there is no run directory")
    assert failure(capsys, "serve", shop / "run", "--max-body", 0) == "--max-body must be at least 1, got 0"
    assert "ddress already in use" in failure(capsys, "serve", shop / "run", "--port", server.port)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert failure(capsys, "serve", shop / "run") == 'uvicorn is not installed: pip install "dien-fast[serve]"'
