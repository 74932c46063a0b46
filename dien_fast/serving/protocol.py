"""HTTP/1.1 with bounds on what a client can hold: bytes and seconds of a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

# As uvicorn's other protocol, over h11, has it.
HEAD_BYTES = 1 << 16


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, which by itself keeps a head of any size and waits for its end forever.

    A head of more than 64 KiB is answered with status 431, one that takes too long with 408, and a connection on
    which none begins in that time is closed.

    Args:
        seconds: that the head of a request may take.
        arguments: those of uvicorn.

    Example:
        >>> uvicorn.Config(application, http=functools.partial(BoundedProtocol, 30.0))  # doctest: +SKIP
    """

    def __init__(self, seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._began, self._size = False, False, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and refuse a head that has become too large."""
        self._began = False
        super().data_received(data)
        # Of the bytes in which a head begins, some may belong to the request before; they are few.
        if self._in_head and not self._began:
            self._size += len(data)
            if self._size > HEAD_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._in_head, self._began, self._size = True, True, 0
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self._in_head = False
        self._wait_no_longer()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._too_slow)

    def _wait_no_longer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head:
            self._refuse(408)
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        """Answer with a status alone, and close the connection."""
        self._in_head = False
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
