"""Copies of the widespread listings of DIEN in somebody's own modules.

A class named DynamicGRU or DynamicRNN with a cell in ``rnn``, and an Interest around it, in whatever module they are:
what the cell computes is found out by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dien_fast.patches.library import Change, Plan, gru_changes
from dien_fast.patches.recurrence import packed_loop


def dynamic_gru(module: Any) -> Plan:
    """Plan a DynamicGRU."""
    recipe = packed_loop(module, "rnn")
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])


def interest(module: Any) -> Plan:
    """Plan an Interest."""
    names = [name for name in ("interest_extractor", "interest_evolution") if _is_gru(module, name)]
    return gru_changes(module, *names)


def _is_gru(module: Any, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.GRU)


PARTS: dict[str, Callable[[Any], Plan]] = {
    "DynamicGRU": dynamic_gru,
    "DynamicRNN": dynamic_gru,
    "Interest": interest,
}
