"""What was made fast, what was left and why."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple


class Entry(NamedTuple):
    """A line of a report.

    Attributes:
        path: name of the module in the model; empty for the model itself.
        kind: its class.
        sentence: what became of it, or why it was left.
    """

    path: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path + ': ' if self.path else ''}{self.kind}: {self.sentence}"


class Report:
    """What :func:`dien_fast.accelerate` did; prints readably, and restores what it did when a ``with`` block ends.

    Attributes:
        subject: class of the model or name of the library.
        fast: what was made fast.
        left: what was found and left as it was, and why.
        notes: what is different now.
        models: for a library, the reports of the models that were made since.
    """

    def __init__(self, subject: str, undo: Callable[[], None]) -> None:
        self.subject = subject
        self.fast: list[Entry] = []
        self.left: list[Entry] = []
        self.notes: list[str] = []
        self.models: list[Report] = []
        self._undo = undo

    def __bool__(self) -> bool:
        """Whether anything was made fast."""
        return bool(self.fast)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.fast)} made fast, {len(self.left)} left"]
        lines += [f"  fast  {entry}" for entry in self.fast]
        lines += [f"  left  {entry}" for entry in self.left]
        lines += [f"  note  {note}" for note in self.notes]
        lines += [line for report in self.models for line in str(report).splitlines()]
        return "\n".join(lines)

    __repr__ = __str__

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()
