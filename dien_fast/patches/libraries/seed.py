"""Copies of the widespread listings of DIEN in somebody's own modules.

A class named DynamicGRU or DynamicRNN with a cell in ``rnn``, and an Interest around it, in whatever module they
are: what they compute is found out by running them. FuxiCTR's model zoo is meant to be copied, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dien_fast.patches.libraries import fuxictr
from dien_fast.patches.libraries.article_listing import dynamic_gru, interest
from dien_fast.patches.library import Plan
from dien_fast.patches.probe import RefusedError


def zoo_model(module: Any) -> Plan:
    """Plan a class named DIEN if it is FuxiCTR's to the letter; any other is nobody's business."""
    try:
        fuxictr.check_model(type(module))
    except RefusedError:
        return Plan([], [])
    return fuxictr.dien(module)


def zoo_attention(module: Any) -> Plan:
    """Plan a class named AttentionLayer if it has the parts of FuxiCTR's; what it computes is found out."""
    if getattr(module, "attention_type", None) != "bilinear_attention" or set(module._parameters) != {"W_kernel"}:
        return Plan([], [])
    return fuxictr.attention(module)


COPIES: dict[str, Callable[[Any], Plan]] = {"DIEN": zoo_model, "AttentionLayer": zoo_attention}

PARTS: dict[str, Callable[[Any], Plan]] = {
    "DynamicGRU": dynamic_gru,
    "DynamicRNN": dynamic_gru,
    "Interest": interest,
}
