"""DeepCTR-Torch 0.3.0 (deepctr_torch/layers/sequence.py, models/dien.py).

Its AUGRU is ``augru`` with gates (r | u | n). AUGRUCell registers one Parameter as both biases: it gets the sum of
both gradients, as before, because both are read from the module in every call.
"""

from __future__ import annotations

from typing import Any

from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.recurrence import packed_loop


def dynamic_gru(module: Any) -> Plan:
    """Plan a DynamicGRU."""
    recipe = packed_loop(module, "rnn")
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])


def interest_extractor(module: Any) -> Plan:
    """Plan an InterestExtractor."""
    return gru_changes(module, "gru")


def interest_evolving(module: Any) -> Plan:
    """Plan an InterestEvolving."""
    return gru_changes(module, *(["interest_evolution"] if module.gru_type in ("GRU", "AIGRU") else []))


LIBRARY = Library(
    name="deepctr-torch",
    distribution="deepctr-torch",
    versions=("0.3.0",),
    roots=("deepctr_torch",),
    parts={
        ("deepctr_torch.layers.sequence", "DynamicGRU"): dynamic_gru,
        ("deepctr_torch.models.dien", "InterestExtractor"): interest_extractor,
        ("deepctr_torch.models.dien", "InterestEvolving"): interest_evolving,
    },
)
