"""The errors that a user's input can cause; each message is one sentence that says what to change."""

from __future__ import annotations

from dien_fast.lines import visible


class DienFastError(ValueError):
    r"""Base of the errors below. The command line prints its message and exits with status 2.

    A message may repeat a column's name, a word or a file's name: what does not print in it is escaped.

    Example:
        >>> str(DienFastError("a\nb"))
        'a\\nb'
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class DataError(DienFastError):
    """A table, file or schema cannot be used; the message names the file, column and row it knows."""


class CheckpointError(DienFastError):
    """A run directory or checkpoint is missing, corrupt, or does not fit the model."""
