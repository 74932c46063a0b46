"""RecBole 1.2.1 (recbole/model/sequential_recommender/dien.py).

Its AUGRU is ``augru`` with gates (r | u | n).
"""

from __future__ import annotations

from typing import Any

from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.recurrence import packed_loop

_MODULE = "recbole.model.sequential_recommender.dien"


def dynamic_rnn(module: Any) -> Plan:
    """Plan a DynamicRNN."""
    recipe = packed_loop(module, "rnn")
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])


def interest_extractor(module: Any) -> Plan:
    """Plan an InterestExtractorNetwork."""
    return gru_changes(module, "gru")


def interest_evolving(module: Any) -> Plan:
    """Plan an InterestEvolvingLayer."""
    return gru_changes(module, *(["dynamic_rnn"] if module.gru in ("GRU", "AIGRU") else []))


LIBRARY = Library(
    name="recbole",
    distribution="recbole",
    versions=("1.2.1",),
    roots=("recbole",),
    parts={
        (_MODULE, "DynamicRNN"): dynamic_rnn,
        (_MODULE, "InterestExtractorNetwork"): interest_extractor,
        (_MODULE, "InterestEvolvingLayer"): interest_evolving,
    },
)
