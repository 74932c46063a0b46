"""``dien-fast serve``: a run over HTTP."""

from __future__ import annotations

import argparse
import math
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dien_fast.cli.signals import handlers, leave, leave_with
from dien_fast.errors import DienFastError
from dien_fast.lines import print_line

if TYPE_CHECKING:
    import uvicorn

    from dien_fast.serving.http import Service

_MOST_THREADS = 4096
_MOST_SECONDS = 10**6  # more than a timer of the system takes would be an error in a handler
_EXAMPLES = """\
examples:
  dien-fast serve runs/clicks
  curl -s localhost:8000/score -d '{"user": {"past_items": ["i9"]}, "items": {"item": ["i3"], "brand": ["b3"]}}'
  dien-fast serve runs/clicks --states states
  curl -s localhost:8000/events -d '{"user_id": "ann", "events": {"past_items": ["i9"], "past_brands": ["b3"]}}'
  curl -s localhost:8000/score -d '{"user_id": "ann", "items": {"item": ["i3"], "brand": ["b3"]}}'

SIGHUP loads the run again. SIGTERM and Ctrl-C answer what was asked and end the server;
a second Ctrl-C ends it at once.
"""


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "serve",
        help="score over HTTP",
        description="Score candidates of users over HTTP, as JSON: POST /score, POST and PUT /events, "
        "GET /health, GET /metrics.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run directory that train wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--states",
        metavar="memory|DIRECTORY",
        help="keep states of users, for requests that name a user_id: in memory, or on the disk in a directory",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads that compute (default: one a core)")
    parser.add_argument(
        "--max-body", type=int, default=4 * 2**20, metavar="BYTES", help="of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-users", type=int, default=256, metavar="N", help="users of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--max-candidates",
        type=int,
        default=10_000,
        metavar="N",
        help="candidates of a request (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections", type=int, default=1000, metavar="N", help="open at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=30.0,
        metavar="X",
        help="that a client may take to send the head of a request, and its body (default: %(default)s)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=20.0,
        metavar="X",
        help="that the end of the server may take; what is not answered then is cut off (default: %(default)s)",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command until it is stopped."""
    _check(arguments)
    early: list[int] = []
    # A server that does not listen yet has nothing to answer.
    with handlers({signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: lambda *_: early.append(1)}):
        service, server = _loaded(arguments)
        listening = _listening(arguments)
        end = _End(server, arguments.grace_seconds)
        given: dict[signal.Signals, Callable[..., object]] = {
            signal.SIGTERM: end.ask,
            signal.SIGINT: end.ask,
            signal.SIGALRM: end.give_up,
            signal.SIGHUP: lambda *_: service.ask_reload(),
        }
        with handlers(given):
            if early:
                service.ask_reload()
            print_line(f"serving {arguments.run} on {arguments.host}, port {listening.getsockname()[1]}")
            try:
                server.run([listening])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)


class _End:
    """The end of a server: when it has answered what was asked, or after some seconds.

    Its methods are handlers of signals, which may come at any moment.
    """

    def __init__(self, server: uvicorn.Server, seconds: float) -> None:
        self._server, self._seconds = server, seconds

    def ask(self, number: int, _frame: object) -> None:
        """Begin to end; a second Ctrl-C ends the process at once."""
        if self._server.should_exit and number == signal.SIGINT:
            leave(number)
        if not self._server.should_exit:
            self._server.should_exit = True
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def give_up(self, *_: object) -> None:
        """End the process, whatever is open: a client that does not read, a load or a batch that takes long."""
        left = len(self._server.server_state.connections)
        leave_with(f"dien-fast: ended after {self._seconds:g} seconds, with {left} connections open", 0)


def _loaded(arguments: argparse.Namespace) -> tuple[Service, uvicorn.Server]:
    """Load the run, and what serves it."""
    try:
        import uvicorn

        from dien_fast.serving.http import Limits, Service
        from dien_fast.serving.protocol import BoundedProtocol
        from dien_fast.serving.server import EndingServer
        from dien_fast.serving.stores import LmdbStore, MemoryStore
    except ModuleNotFoundError as error:
        if error.name not in ("httptools", "orjson", "prometheus_client", "starlette", "uvicorn"):
            raise
        raise ImportError(f'{error.name} is not installed: pip install "dien-fast[serve]"') from error
    import torch

    from dien_fast.training.runs import load

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    limits = Limits(arguments.max_body, arguments.max_users, arguments.max_candidates, arguments.max_seconds)
    store = None
    if arguments.states is not None:
        store = MemoryStore() if arguments.states == "memory" else LmdbStore(arguments.states)
    service = Service(load(arguments.run), limits, store)
    config = uvicorn.Config(
        service.application,
        http=partial(BoundedProtocol, arguments.max_seconds),  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # nothing here asks where a client is
        limit_concurrency=arguments.max_connections,
    )
    return service, EndingServer(config)


def _listening(arguments: argparse.Namespace) -> socket.socket:
    """Return the socket of the server's address."""
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    # Without the protocol's number, asyncio leaves small packets to wait for each other, 40 ms a request.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((arguments.host, arguments.port))
    listening.listen(1024)
    return listening


def _check(arguments: argparse.Namespace) -> None:
    """Refuse limits that are none."""
    for name in ("max_body", "max_users", "max_candidates", "max_connections", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DienFastError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.threads is not None and arguments.threads > _MOST_THREADS:
        raise DienFastError(f"--threads must be at most {_MOST_THREADS}, got {arguments.threads}")
    if not 0 <= arguments.port < 2**16:
        raise DienFastError(f"--port must lie in [0, {2**16 - 1}], got {arguments.port}")
    if not 0 < arguments.max_seconds < math.inf:
        raise DienFastError(f"--max-seconds must be a positive number, got {arguments.max_seconds}")
    if not 0 < arguments.grace_seconds <= _MOST_SECONDS:
        raise DienFastError(f"--grace-seconds must lie in (0, {_MOST_SECONDS}], got {arguments.grace_seconds}")
