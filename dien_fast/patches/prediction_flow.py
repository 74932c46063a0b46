"""prediction-flow 0.1.5 (prediction_flow/pytorch/nn/rnn.py, interest.py).

Its AUGRU is ``augru_inverted``: attention scales how much of the state is kept. Gates are in the order (r | u | n),
also in its AGRU, whose rows of u are unused.
"""

from __future__ import annotations

from typing import Any

from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.recurrence import packed_loop


def dynamic_gru(module: Any) -> Plan:
    """Plan a DynamicGRU."""
    recipe = packed_loop(module, "rnn")
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])


def interest(module: Any) -> Plan:
    """Plan an Interest."""
    names = ["interest_extractor"]
    if module.gru_type in ("GRU", "AIGRU"):
        names.append("interest_evolution")
    return gru_changes(module, *names)


LIBRARY = Library(
    name="prediction-flow",
    distribution="prediction-flow",
    versions=("0.1.5",),
    roots=("prediction_flow",),
    parts={
        ("prediction_flow.pytorch.nn.rnn", "DynamicGRU"): dynamic_gru,
        ("prediction_flow.pytorch.nn.interest", "Interest"): interest,
    },
)
