"""Copies of the widespread listings of DIEN in somebody's own modules.

A class named DynamicGRU or DynamicRNN with a cell in ``rnn``, and an Interest around it, in whatever module they
are: what they compute is found out by running them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dien_fast.patches.library import Plan
from dien_fast.patches.listing import dynamic_gru, interest

PARTS: dict[str, Callable[[Any], Plan]] = {
    "DynamicGRU": dynamic_gru,
    "DynamicRNN": dynamic_gru,
    "Interest": interest,
}
