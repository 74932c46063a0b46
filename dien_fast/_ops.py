"""Chooses the code that runs the recurrence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """The code that runs :func:`dien_fast.functional.attention_gru`.

    Attributes:
        name: ``"reference"``: the loop of :mod:`dien_fast.reference`.
        detail: one sentence on what that is.
    """

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})"


def backend() -> Backend:
    """Return the code in use, a small object that prints readably.

    Example:
        >>> print(backend())
        reference (the recurrence is a loop over time steps in PyTorch)
    """
    return Backend("reference", "the recurrence is a loop over time steps in PyTorch")
