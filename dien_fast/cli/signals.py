"""SIGTERM ends the command as Ctrl-C does, a training at its next step, and a server when it has answered."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from dien_fast.training.position import StopRequest


_SECONDS_LATER = 0.01


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, with which schedulers and containers end a process."""


# What handlers have raised since the command began; not the exceptions, whose frames would stay too.
_raised: list[type[KeyboardInterrupt]] = []


def _raise(kind: type[KeyboardInterrupt]) -> NoReturn:
    _raised.append(kind)
    raise kind


def raise_lost_signal(error: Exception) -> None:
    """Raise what a signal has raised before an error, if there was one.

    Extensions that convert arguments call Python, and make an error of their own of whatever that raises.
    """
    if _raised:
        raise _raised[-1] from error


@contextmanager
def _errors_as_signals() -> Iterator[None]:
    """Take an error that comes behind a signal for that signal."""
    try:
        yield
    except Exception as error:
        raise_lost_signal(error)
        raise


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
        _raise(Terminated)

    # Python runs handlers in the main thread alone, and sets them only there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with _errors_as_signals():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def no_signal_lost() -> Iterator[None]:
    """Hear SIGTERM and Ctrl-C also where their exceptions get lost.

    Destructors and what weak references call swallow theirs: Python prints them and goes on. The signal is sent
    again then. Where an extension makes another error of it, that error is taken for the signal.
    """
    _raised.clear()
    main = threading.current_thread() is threading.main_thread()
    with _swallowed_signals_again(), _errors_as_signals():
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, lambda *_: _raise(KeyboardInterrupt))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _swallowed_signals_again() -> Iterator[None]:
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        # A little later, as its handler would still run within the destructor now.
        later = threading.Timer(_SECONDS_LATER, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def handlers(given: Mapping[signal.Signals, Callable[..., object]]) -> Iterator[None]:
    """Handle signals this way inside, and as before behind.

    Args:
        given: a handler of each signal. Where Ctrl-C is ignored, as a shell lets programs in the background do, it
            stays ignored.
    """
    before = {}
    try:
        for number, handler in given.items():
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def leave(number: int, _frame: object = None) -> None:
    """End the process at once with a line and the status of Ctrl-C or SIGTERM; a handler of these signals."""
    leave_with("\ndien-fast: interrupted" if number == signal.SIGINT else "\ndien-fast: terminated", 128 + number)


def leave_with(line: str, status: int) -> NoReturn:
    """End the process at once with a line on stderr, if that can be written; for handlers of signals."""
    # print may be what the signal has interrupted, and must not be called again then.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(status)
