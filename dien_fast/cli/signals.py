"""SIGTERM ends the command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, with which schedulers and containers end a process."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the code inside as Ctrl-C does, so that it cleans up and says how to go on."""

    def terminate(*_: object) -> None:
        raise Terminated

    # Python runs handlers in the main thread alone, and sets them only there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
