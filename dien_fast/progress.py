"""Progress on stderr: a bar in a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from dien_fast.lines import print_line

# Drawing a bar costs more than a fast training step.
_BAR_SECONDS = 0.5
_LINE_SECONDS = 10.0


class Progress(Protocol):
    """What is told how far the work has come.

    Attributes:
        seconds: how long nothing new is shown; no need to call :meth:`set_postfix` more often.
    """

    seconds: float

    def update(self, count: int) -> object:
        """Add ``count`` to what is done."""

    def set_postfix(self, values: Mapping[str, str], refresh: bool = True) -> None:
        """Show ``values`` beside the count from now on."""


@contextmanager
def progress_bar(total: int, title: str, unit: str, show: bool = True) -> Iterator[Progress]:
    """Give something that shows on stderr how much of ``total`` is done.

    Args:
        total: how much there is to do.
        title: what is done.
        unit: what is counted, in the plural.
        show: False shows nothing.

    Raises:
        ImportError: if stderr is a terminal and tqdm is not installed.

    Example:
        >>> with progress_bar(3, "scoring", "rows", show=False) as bar:
        ...     bar.update(3)
    """
    if not show:
        yield _Nothing()
    elif not sys.stderr.isatty():
        # Without carriage returns, which would make one long line of a log file.
        yield _Lines(total, title, unit)
    else:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError('progress bars need tqdm: pip install "dien-fast[train]"') from error
        with tqdm(
            total=total, desc=title, unit=f" {unit}", unit_scale=True, leave=False, mininterval=_BAR_SECONDS
        ) as bar:
            bar.seconds = _BAR_SECONDS
            yield bar


_steps: ContextVar[Progress | None] = ContextVar("steps", default=None)


@contextmanager
def steps(total: int, title: str, show: bool = True) -> Iterator[None]:
    """Show how many of ``total`` calls of :func:`step` the code inside has made.

    Reading and encoding a large table takes minutes; the functions that do it report each column.
    """
    with progress_bar(total, title, "steps", show) as bar:
        token = _steps.set(bar)
        try:
            yield
        finally:
            _steps.reset(token)


def step() -> None:
    """Report that a part of reading or encoding is done; shown where :func:`steps` was called."""
    bar = _steps.get()
    if bar is not None:
        bar.update(1)


class _Nothing:
    seconds = float("inf")

    def update(self, count: int) -> None:
        """Do nothing."""

    def set_postfix(self, values: Mapping[str, str], refresh: bool = True) -> None:
        """Do nothing."""


class _Lines:
    seconds = _LINE_SECONDS

    def __init__(self, total: int, title: str, unit: str) -> None:
        self._total, self._title, self._unit = total, title, unit
        self._done, self._beside = 0, ""
        self._begin = self._shown = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown >= self.seconds and self._done < self._total:
            self._shown = now
            seconds = now - self._begin
            line = (
                f"{self._title}: {self._done:,} of {self._total:,} {self._unit} in {seconds:.0f} s{self._beside}"
            )
            print_line(line, sys.stderr)

    def set_postfix(self, values: Mapping[str, Any], refresh: bool = True) -> None:
        self._beside = "".join(f", {name} {value}" for name, value in values.items())
