"""Fixtures that forbid one of the two ways through the interest layer: native operators or plain PyTorch."""

import pytest

from dien_fast import Ragged
from dien_fast.ops import attention_scores, auxiliary_loss, rows


def refuse_calls(monkeypatch, reason, *places):
    def refuse(*_):
        raise AssertionError(reason)

    for owner, name in places:
        monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def _no_fallback(monkeypatch):
    """The functions in plain PyTorch raise."""
    places = [
        (attention_scores, "plain_attention_scores"),
        (auxiliary_loss, "plain_auxiliary_loss"),
        (rows, "plain_weighted_sum"),
        (Ragged, "mask"),
    ]
    refuse_calls(monkeypatch, "the layer went around the native operators", *places)


@pytest.fixture
def _only_fallback(monkeypatch):
    """The operators of attention scores and auxiliary loss raise."""
    reason = "the layer ran an operator that does not compute what its modules do"
    refuse_calls(monkeypatch, reason, (attention_scores, "attention_scores"), (auxiliary_loss, "auxiliary_loss"))
