"""Signals to a server while it starts and while it answers: right answers, a bounded end, no traceback.

More moments, by hand::

    DIEN_FAST_MOMENTS=200 python -m pytest -s -m '' tests/faults/test_signals_to_a_server.py
"""

import asyncio
import http.client
import json
import random
import re
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn
from faults import MOMENTS, Command, signal_at
from served import Server

from dien_fast.serving.protocol import BoundedProtocol
from dien_fast.serving.server import EndingServer
from dien_fast.training.runs import load

USER = {"country": "NO", "past_items": ["i1", "i4"], "past_brands": ["b1", "b1"], "words": "new", "price": 0.4}
ENDS = {signal.SIGTERM: (143, "\ndien-fast: terminated\n"), signal.SIGINT: (130, "\ndien-fast: interrupted\n")}
SERVING = re.compile(r"serving \S+ on 127\.0\.0\.1, port \d+\n")


def items_of(count):
    return {"item": [f"i{number % 12}" for number in range(count)], "brand": ["b1"] * count}


@pytest.fixture(scope="module")
def expected(shop):
    """The probabilities of the first candidates, whose number each client chooses."""
    return load(shop / "run").score_candidates(USER, items_of(60))


@pytest.mark.parametrize("number", list(ENDS))
def test_a_signal_while_modules_are_loaded(shop, number):
    """uvicorn imports its loop when it has made the coroutine that serves, but nothing awaits that yet."""
    command = Command(
        ["serve", shop / "run", "--port", "0"], (signal_at, "uvicorn.Config.get_loop_factory", number)
    )
    assert command.wait() == 0
    assert SERVING.fullmatch(command.printed()), command.printed()


@pytest.mark.parametrize("number", list(ENDS))
def test_a_signal_before_it_listens(shop, number):
    command = Command(["serve", shop / "run", "--port", "0"], (signal_at, "dien_fast.training.runs.load", number))
    assert (command.wait(), command.printed()) == ENDS[number]


def begin_request(client):
    """Send a head and the first byte of a body, and wait until the server waits for the rest."""
    head = b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    client.sendall(head)
    assert client.recv(100).startswith(b"HTTP/1.1 100 ")
    client.sendall(b"{")


def test_a_client_that_sends_or_reads_nothing_does_not_keep_it(shop):
    server = Server(shop / "run", "--grace-seconds", "0.5")
    with socket.socket() as sends, socket.socket() as reads:
        reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for client in (sends, reads):
            client.connect(("127.0.0.1", server.port))
        begin_request(sends)
        reads.settimeout(0.2)
        try:
            # Until the server's answers fill the memory of the sockets, and its side reads no more.
            while True:
                reads.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n" * 100)
        except TimeoutError:
            pass
        begin = time.monotonic()
        assert server.end() == (0, "dien-fast: ended after 0.5 seconds, with 2 connections open\n")
        assert 0.5 < time.monotonic() - begin < 5


def test_a_second_ctrl_c_ends_it_at_once(shop):
    server = Server(shop / "run", "--grace-seconds", "60")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        begin_request(client)
        server.command.send(signal.SIGINT)
        time.sleep(0.3)
        assert server.command.process.is_alive()
        server.command.send(signal.SIGINT)
        status = server.command.wait()
    assert (status, server.command.printed().partition("\n")[2]) == ENDS[signal.SIGINT]


async def answer_nothing(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_that_is_accepted_while_it_ends_ends_too(loop):
    """Whatever lies between the connection and the end: nothing but that connection would keep the server."""
    pytest.importorskip(loop)

    def serve(rounds):
        config = uvicorn.Config(answer_nothing, loop=loop, lifespan="off", http=one_minute, log_level="error")

        class Ending(EndingServer):
            async def main_loop(self):
                self.client = socket.create_connection(listening.getsockname())
                for _ in range(rounds):
                    await asyncio.sleep(0)

        server = Ending(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            begin = time.monotonic()
            server.run([listening])
        server.client.close()
        return time.monotonic() - begin

    def one_minute(**arguments):
        return BoundedProtocol(60.0, **arguments)

    assert max(serve(rounds) for rounds in range(6)) < 10


class Clients:
    """Threads that ask a server until it answers no more, and compare each answer.

    Args:
        server: which is asked.
        expected: the probabilities.
        seed: of what they do.
    """

    COUNT = 3

    def __init__(self, server, expected, seed):
        self._server, self._expected = server, expected
        self._pool = ThreadPoolExecutor(self.COUNT)
        self._answers = [self._pool.submit(self._ask, random.Random(f"{seed} {one}")) for one in range(self.COUNT)]

    def _ask(self, rng):
        answers, connection = 0, None
        while True:
            count = rng.randint(1, len(self._expected))
            try:
                if connection is None or rng.random() < 0.3:
                    connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
                connection.request("POST", "/score", json.dumps({"user": USER, "items": items_of(count)}))
                answer = connection.getresponse()
            except ConnectionError:  # also RemoteDisconnected: no answer has begun
                return answers
            content = json.loads(answer.read())
            assert answer.status == 200, content
            np.testing.assert_allclose(content["probabilities"], self._expected[:count], rtol=0, atol=1e-6)
            answers += 1
            if answer.will_close:
                connection = None

    def end(self):
        """Wait for all of them; return the number of their answers."""
        with self._pool:
            return sum(answers.result(60) for answers in self._answers)


def while_it_serves(run, expected, seed, ended):
    """Send signals at a moment of serving; return those sent, and how many answers came."""
    rng = random.Random(seed)
    server = Server(run, "--grace-seconds", "20")
    clients = Clients(server, expected, seed)
    reloads = rng.choice([0, 0, 1, 3])
    sent = [*[signal.SIGHUP] * reloads, rng.choice(list(ENDS))]
    for number in sent:
        time.sleep(rng.uniform(0, 0.3))
        assert server.command.send(number)
    begin = time.monotonic()
    status = server.command.wait()
    ended.append(time.monotonic() - begin)
    printed = server.command.printed().partition("\n")[2]
    assert status == 0, printed
    assert printed in [f"dien-fast: loaded {run} again\n" * loads for loads in range(reloads + 1)], printed
    return sent, clients.end()


def while_it_starts(run, seed, seconds):
    """Send a signal at a moment of starting."""
    rng = random.Random(seed)
    number = rng.choice(list(ENDS))
    command = Command(["serve", run, "--port", "0"])
    command.process.join(rng.uniform(0, seconds))
    assert command.send(number)
    status, printed = command.wait(), command.printed()
    if status == 0:
        assert SERVING.fullmatch(printed), printed
    elif status == -signal.SIGTERM:  # before the words of the command are read
        assert printed == ""
    else:
        assert (status, printed) == ENDS[number]
    return [number]


def say(name, sent, moments, ended=()):
    shown = ", ".join(f"{count} {signal.Signals(number).name}" for number, count in sorted(sent.items()))
    print(f"\n{name}: {moments} moments, {shown}{f'; at most {max(ended):.2f} s to the end' if ended else ''}")


@pytest.mark.slow
def test_any_moment_of_starting(shop):
    begin, server = time.monotonic(), Server(shop / "run")
    seconds = time.monotonic() - begin
    server.end()
    sent = Counter()
    for seed in range(MOMENTS):
        sent.update(while_it_starts(shop / "run", seed, 1.2 * seconds))
    say("serve, starting", sent, MOMENTS)


@pytest.mark.slow
def test_any_moment_of_serving(shop, expected):
    sent, answers, ended = Counter(), 0, []
    for seed in range(MOMENTS):
        numbers, count = while_it_serves(shop / "run", expected, seed, ended)
        sent.update(numbers)
        answers += count
    say(f"serve, {answers} answers", sent, MOMENTS, ended)
    assert answers > MOMENTS
