"""``dien-fast serve``: a run over HTTP."""

from __future__ import annotations

import argparse
import signal
import socket
from typing import Any

from dien_fast.errors import DienFastError

_EXAMPLES = """\
examples:
  dien-fast serve runs/clicks
  curl -s localhost:8000/score -d '{"user": {"past_items": ["i9"]}, "items": {"item": ["i3"], "brand": ["b3"]}}'
  dien-fast serve runs/clicks --states states
  curl -s localhost:8000/events -d '{"user_id": "ann", "events": {"past_items": ["i9"], "past_brands": ["b3"]}}'
  curl -s localhost:8000/score -d '{"user_id": "ann", "items": {"item": ["i3"], "brand": ["b3"]}}'

SIGHUP loads the run again; SIGTERM and Ctrl-C answer what was asked and end the server.
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
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command until it is stopped."""
    for name in ("max_body", "max_users", "max_candidates", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DienFastError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        import uvicorn

        from dien_fast.serving.http import Limits, Service
        from dien_fast.serving.stores import LmdbStore, MemoryStore
    except ModuleNotFoundError as error:
        if error.name not in ("prometheus_client", "starlette", "uvicorn"):
            raise
        raise ImportError(f'{error.name} is not installed: pip install "dien-fast[serve]"') from error
    import torch

    from dien_fast.training.runs import load

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    limits = Limits(arguments.max_body, arguments.max_users, arguments.max_candidates)
    store = None
    if arguments.states is not None:
        store = MemoryStore() if arguments.states == "memory" else LmdbStore(arguments.states)
    service = Service(load(arguments.run), limits, store)
    server = uvicorn.Server(uvicorn.Config(service.application, log_level="warning", access_log=False))
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    # Without the protocol's number, asyncio leaves small packets to wait for each other, 40 ms a request.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((arguments.host, arguments.port))
    listening.listen(1024)
    port = listening.getsockname()[1]
    print(f"serving {arguments.run} on {arguments.host}, port {port}", flush=True)
    # The server sends itself the signal that stopped it once more when it has ended.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run([listening])
    finally:
        signal.signal(signal.SIGTERM, before)
