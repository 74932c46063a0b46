"""FuxiCTR 2.3.10 (model_zoo/LongCTR/DIEN/DIEN.py).

Its AUGRU is ``augru`` with gates (u | r | n) in two nn.Linear; DynamicGRU returns the last states too.
"""

from __future__ import annotations

from typing import Any

from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.recurrence import packed_loop

_MODULE = "model_zoo.LongCTR.DIEN.DIEN"


def dynamic_gru(module: Any) -> Plan:
    """Plan a DynamicGRU."""
    recipe = packed_loop(module, "gru_cell", returns_last=True)
    return Plan([Change(module, recipe, f"recurrence {recipe.details.rule} as one operator")], [])


def dien(module: Any) -> Plan:
    """Plan a DIEN."""
    names = [f"extraction_modules.{index}" for index in range(len(module.extraction_modules))]
    if module.gru_type in ("GRU", "AIGRU"):
        names += [f"evolving_modules.{index}" for index in range(len(module.evolving_modules))]
    return gru_changes(module, *names)


LIBRARY = Library(
    name="fuxictr",
    distribution="fuxictr",
    versions=("2.3.10",),
    roots=("fuxictr", "model_zoo"),
    parts={(_MODULE, "DynamicGRU"): dynamic_gru, (_MODULE, "DIEN"): dien},
)
