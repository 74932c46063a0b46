"""What a client may hold of a server: bytes and seconds of a head, seconds of a body, connections."""

import json
import socket
import time
from pathlib import Path

import pytest
from served import Server
from shop import failure, make_shop

USER = {"country": "NO", "past_items": ["i1"], "past_brands": ["b1"], "words": "new", "price": 0.4}
BODY = json.dumps({"user": USER, "items": {"item": ["i1"], "brand": ["b1"]}})
SECONDS = 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    run = make_shop(tmp_path_factory.mktemp("shop")) / "run"
    server = Server(run, "--threads", "1", "--max-connections", "8", "--max-seconds", str(SECONDS))
    yield server
    status, printed = server.end()
    assert status == 0, printed
    assert "Traceback" not in printed, printed


@pytest.fixture
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        yield connection


def memory_of(server):
    status = Path(f"/proc/{server.command.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0])


def all_of(connection):
    """What a server sends until it closes the connection; of a reset, what came before."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("line", [b"X-Long: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
def test_a_head_without_end_is_refused(server, connection, line):
    """Many lines, or one that never ends: neither fills the server's memory."""
    before = memory_of(server)
    connection.sendall(b"POST /score HTTP/1.1\r\nHost: here\r\nX-First: ")
    sent = 0
    try:
        while sent < 1 << 24:
            connection.sendall(line)
            sent += len(line)
    except OSError:
        pass
    assert sent < 1 << 24
    answer = all_of(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 431 "), answer
    assert memory_of(server) - before < 4096


def test_a_large_head_is_fine(server):
    head = {"X-Cookie": "a" * 50_000}
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for _ in range(3):
        connection.request("GET", "/health", headers=head)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"POST /sco"])
def test_a_head_that_does_not_come_ends_the_connection(connection, sent):
    begin = time.monotonic()
    connection.sendall(sent)
    answer = all_of(connection)
    assert SECONDS / 2 < time.monotonic() - begin < SECONDS + 10
    assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""


def test_a_body_that_does_not_come_ends_the_connection(connection):
    begin = time.monotonic()
    connection.sendall(b"POST /score HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
    answer = all_of(connection)
    assert SECONDS / 2 < time.monotonic() - begin < SECONDS + 10
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"a body must arrive within 1 seconds" in answer


def test_requests_one_behind_the_other_are_all_answered(connection):
    """The bytes of a request that come with those of the one before are not counted twice."""
    head = f"POST /score HTTP/1.1\r\nHost: here\r\nContent-Length: {len(BODY)}\r\n"
    request = f"{head}X-Fill: {'a' * 30_000}\r\n\r\n{BODY}".encode()
    connection.sendall(request * 5)
    answers = b""
    while answers.count(b"probabilities") < 5:
        piece = connection.recv(1 << 16)
        assert piece, answers
        answers += piece
    assert answers.count(b"HTTP/1.1 200 ") == 5


def test_more_connections_than_there_may_be(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(8)]
    try:
        time.sleep(0.1)
        assert server.ask("GET", "/health")[0] == 503
    finally:
        for one in idle:
            one.close()
    until = time.monotonic() + 10
    while server.ask("GET", "/health")[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    "option",
    [
        ("--max-connections", "0"),
        ("--max-seconds", "0"),
        ("--max-seconds", "nan"),
        ("--grace-seconds", "0"),
        ("--grace-seconds", "1e300"),
    ],
)
def test_limits_that_are_none(capsys, option):
    assert failure(capsys, "serve", "run", *option).startswith(f"{option[0]} must ")
