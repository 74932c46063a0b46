"""The report of :func:`dien_fast.accelerate`: what was made fast, and what was left and why."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

PICKLES_NOTE = "a pickle of the whole model loads where dien_fast is installed; its state_dict needs nothing"


def class_name(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


class Entry(NamedTuple):
    """A line of a report.

    Attributes:
        path: name of the module in the model; empty for the model itself.
        kind: its class.
        sentence: how it was made fast, or why it was left.
    """

    path: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path + ': ' if self.path else ''}{self.kind}: {self.sentence}"


class Report:
    """What a call of :func:`dien_fast.accelerate` did.

    ``print`` shows it line by line, it is true if anything was made fast, and the end of a ``with`` block undoes
    the call.

    Attributes:
        subject: class of the model or name of the library.
        fast: modules that were made fast.
        left: modules that were recognised but left as they are, and why.
        notes: what else to know, such as where the fast modules run the original code.
        models: for a library, the reports of the models that it has made since.
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
