"""Fixtures that close one of the two ways through the interest layer: native operators, or torch's."""

import pytest

from dien_fast import Ragged
from dien_fast import _interest_ops as ops
from dien_fast.nn import attention as attention_module


@pytest.fixture
def _no_fallback(monkeypatch):
    """Every way around the operators raises."""

    def refuse(*_):
        raise AssertionError("the layer went around the native operators")

    monkeypatch.setattr(attention_module, "segment_softmax", refuse)
    monkeypatch.setattr(attention_module, "first_linear", refuse)
    monkeypatch.setattr(Ragged, "mask", refuse)


@pytest.fixture
def _only_fallback(monkeypatch):
    """The operators of attention and auxiliary loss raise."""

    def refuse(*_):
        raise AssertionError("the layer ran an operator that does not compute what its modules do")

    monkeypatch.setattr(ops, "attention_scores", refuse)
    monkeypatch.setattr(ops, "auxiliary_loss", refuse)
