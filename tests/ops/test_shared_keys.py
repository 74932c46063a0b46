"""Attention scores of histories that candidates share."""

import os
from dataclasses import replace

import pytest
import torch
from interest_cases import CODES, DTYPES, NATIVE, STARTS, draw, native, scoring, shared_keys
from interest_checks import check_shared_keys

from dien_fast import Attention, Ragged
from dien_fast.nn.native_layers import native_layers
from dien_fast.ops import attention_scores as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestSharedKeys:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", CODES)
    def test_equals_repeated_keys(self, activation, dtype):
        check_shared_keys(activation, dtype)

    def test_every_candidate_on_all_keys(self):
        s = scoring([70] * 7, depth=6, widths=(9,), training=False)
        s.keys = draw(70, 6)
        starts = torch.zeros(7, dtype=torch.int64)
        found, _ = ops.attention_scores(s.query, s.keys, s.offsets, 70, s.mlp, starts)
        assert torch.equal(found, native(replace(s, keys=s.keys.repeat(7, 1)))[0].detach())

    def test_no_gradient(self):
        s, _ = shared_keys()
        assert not ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp, STARTS)[0].requires_grad
        scores, _, _ = NATIVE.attention_scores(*s.raw(STARTS, save=False))
        with pytest.raises(NotImplementedError, match="no gradient where histories share keys"):
            scores.sum().backward()

    @pytest.mark.parametrize("activation", ["dice", "tanh"])
    def test_shared_scores_of_the_module(self, activation):
        """The native operator, or repeated rows for an MLP that the operator does not compute."""
        attention = Attention(6, [9, 5], activation=activation, return_scores=True).double().eval()
        assert (native_layers(attention) is None) == (activation == "tanh")
        keys = Ragged(draw(9, 6), torch.tensor([0, 4, 4, 9]), 6)
        owner = torch.tensor([0, 0, 1, 2, 2, 2])
        query = draw(6, 6)
        found = attention.shared_scores(query, keys, owner)
        repeated = keys.take(owner)
        assert torch.equal(found.offsets, repeated.offsets)
        want = attention.ragged_scores(query, repeated)
        torch.testing.assert_close(found.values, want, rtol=1e-12, atol=1e-12)
