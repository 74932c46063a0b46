"""SIGTERM ends the command as Ctrl-C does, and a training at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dien_fast.training.position import StopRequest


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, with which schedulers and containers end a process."""


@contextmanager
def sigterm_as_interrupt(stop: StopRequest | None = None) -> Iterator[None]:
    """Let SIGTERM end the code inside as Ctrl-C does, so that it cleans up and says how to go on.

    Args:
        stop: where this is heard, SIGTERM asks for a stop instead; a second one interrupts all the same.
    """

    def terminate(*_: object) -> None:
        if stop is not None and stop.is_heard and not stop.asked:
            stop.asked = True
            return
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
