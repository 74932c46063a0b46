"""How many threads compute the calls of one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute the calls that this thread makes inside with ``count`` threads; other threads keep their number.

    ``torch.set_num_threads`` also sets the number that threads which are started later begin with; this does not.

    Args:
        count: at least 1; with 1, calls start no other thread.

    Raises:
        ValueError: for a smaller number.

    Example:
        >>> with threads(1):
        ...     torch.get_num_threads()
        1
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    # In a new thread, torch's first call would set its own number.
    torch.get_num_threads()
    with _controller().limit(limits=count, user_api="openmp"):
        yield


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
