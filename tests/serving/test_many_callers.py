"""Runs called by many threads, computed together, with a number of threads of their own, and after a fork."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from shop import make_shop, run_python

from dien_fast.errors import DataError
from dien_fast.serving import threads
from dien_fast.serving.batching import Batcher
from dien_fast.training.runs import Run, load

USER = {"country": "NO", "price": 0.4, "words": "new", "past_items": ["i1", "i4"] * 20, "past_brands": ["b1"] * 40}
ITEMS = pd.DataFrame({"item": [f"i{n % 12}" for n in range(200)], "brand": [f"b{n % 3}" for n in range(200)]})


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(shop):
    return load(shop / "run")


@pytest.mark.parametrize("callers", [1, 2, 8])
def test_every_thread_gets_the_same_bits(run, callers):
    expected = run.score_candidates(USER, ITEMS)
    with ThreadPoolExecutor(callers) as pool:
        for found in pool.map(lambda _: run.score_candidates(USER, ITEMS), range(3 * callers)):
            assert np.array_equal(found, expected)


def test_a_number_of_threads_of_ones_own(run):
    before = torch.get_num_threads()
    inside, others = [], []

    def call():
        with threads(before + 1):
            inside.append(torch.get_num_threads())
            other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
            other.start()
            other.join()
            run.score_candidates(USER, ITEMS)
        inside.append(torch.get_num_threads())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert inside == [before + 1, before]
    assert others == [before]
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="count must be at least 1, got 0"), threads(0):
        pass


def test_what_waits_is_computed_together(run, monkeypatch):
    started, released = threading.Event(), threading.Event()
    compute = Run.score_encoded

    def slow_at_first(self, request):
        if not started.is_set():
            started.set()
            assert released.wait(60)
        return compute(self, request)

    monkeypatch.setattr(Run, "score_encoded", slow_at_first)
    batcher = Batcher(run, most_users=5, most_candidates=50)
    first = batcher.submit(USER, ITEMS[:3])
    assert started.wait(60)
    users = [USER | {"past_items": [f"i{n}"], "past_brands": ["b0"]} for n in range(6)]
    waiting = [batcher.submit(user, ITEMS[: n + 1]) for n, user in enumerate(users)]
    with_price = batcher.submit(USER, ITEMS[:2].assign(price=0.1))
    wrong, many = batcher.submit(USER, ["i1"]), batcher.submit(USER, ITEMS[:51])
    released.set()
    batcher.close()
    assert first.result().together == 1
    assert [one.result().together for one in waiting] == [5, 5, 5, 5, 5, 1]
    assert with_price.result().together == 1  # its candidates have other features
    for number, (user, one) in enumerate(zip(users, waiting, strict=True)):
        expected = run.score_candidates(user, ITEMS[: number + 1])
        np.testing.assert_allclose(one.result().probabilities, expected, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="items must be a table with the candidate columns item, brand"):
        wrong.result()
    with pytest.raises(DataError, match="a request must have at most 50 candidates, got 51"):
        many.result()


def test_a_caller_may_give_up_and_the_others_are_answered(run, monkeypatch):
    started, released = threading.Event(), threading.Event()
    compute = Run.score_encoded

    def slow(self, request):
        started.set()
        assert released.wait(60)
        return compute(self, request)

    monkeypatch.setattr(Run, "score_encoded", slow)
    batcher = Batcher(run)
    first = batcher.submit(USER, ITEMS[:3])
    assert started.wait(60)
    given_up, last = (batcher.submit(USER, ITEMS[:3]) for _ in range(2))
    assert given_up.cancel()
    released.set()
    assert np.array_equal(last.result(60).probabilities, first.result(60).probabilities)
    batcher.close()


FORK = """
import json, os, sys
import torch
from dien_fast.errors import DienFastError
from dien_fast.training.runs import load

run = load(sys.argv[1])
user = json.loads(sys.argv[2])
items = {"item": ["i1"] * 5000, "brand": ["b1"] * 5000}
torch.set_num_threads(2)
expected = run.score_candidates(user, items)
child = os.fork()
if child == 0:
    try:
        run.score_candidates(user, items)
    except DienFastError as error:
        print(error, flush=True)
    torch.set_num_threads(1)
    os._exit(0 if (abs(run.score_candidates(user, items) - expected) < 1e-6).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_after_a_fork_it_works_with_one_thread_and_refuses_several(shop):
    done = run_python("-c", FORK, shop / "run", json.dumps(USER))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "the run was loaded before this process forked; call torch.set_num_threads(1) here"
    )
