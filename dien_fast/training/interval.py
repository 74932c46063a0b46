"""When something is done again: after some time, or after some steps."""

from __future__ import annotations

import re
import time

from dien_fast.errors import DienFastError

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds_of(name: str, text: str) -> float:
    """Return the seconds of a time such as ``"30s"``, ``"10min"`` or ``"2h"``.

    Raises:
        DienFastError: naming the setting, if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise DienFastError(f"{name} must be a time such as 30s, 10min or 2h, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


class Interval:
    """Says when the next checkpoint within an epoch is due.

    Args:
        text: such as ``"30s"``, ``"10min"``, ``"2h"`` or ``"500steps"``.

    Raises:
        DienFastError: if it is none of these.

    Example:
        >>> interval = Interval("3steps")
        >>> [interval.is_due() for _ in range(6)]
        [False, False, True, False, False, True]
    """

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|steps?)", text.strip())
        if found is None or float(found[1]) <= 0 or (found[2].startswith("step") and not found[1].isdigit()):
            raise DienFastError(
                f"checkpoint_every must be a time or a number of steps, such as 10min or 500steps, got {text!r}"
            )
        steps = found[2].startswith("step")
        self._steps = int(found[1]) if steps else 0
        self._seconds = 0.0 if steps else float(found[1]) * _SECONDS[found[2]]
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._passed, self._begin = 0, time.monotonic()

    def is_due(self) -> bool:
        """Count a step, and return whether a checkpoint is due; if so, count anew."""
        self._passed += 1
        due = self._passed >= self._steps if self._steps else time.monotonic() - self._begin >= self._seconds
        if due:
            self.restart()
        return due
