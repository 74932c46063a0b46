"""An HTTP server that ends when its caller says so, with all the connections that it has accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

# A connection is known two rounds of asyncio's loop after it was accepted, and one round of uvloop's.
_ROUNDS = 10


class EndingServer(uvicorn.Server):
    """uvicorn's server, which by itself lets a connection that it accepts while it ends go on forever.

    It leaves signals to its caller, who sets ``should_exit``. uvicorn's own handlers are set after it has imported
    its loop, and raise the signal again at the end.

    Args:
        config: of uvicorn.

    Example:
        >>> EndingServer(uvicorn.Config(service.application)).run()  # doctest: +SKIP
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, answer what was asked, and close every connection."""
        for server in self.servers:
            server.close()
        # What was accepted must be known before the connections are told of the end, which happens once.
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        await super().shutdown(sockets)
