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


# What a message quotes, such as a name that a request brings, may be as long as the sender likes.
_LONGEST = 1000


def one_sentence(message: object) -> str:
    r"""Return a message on one line, with what does not print escaped, and without its middle where it is long.

    Example:
        >>> one_sentence("label must be\n a column")
        'label must be a column'
    """
    text = visible(" ".join(str(message).split()))
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"
