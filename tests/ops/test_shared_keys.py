"""Attention scores of histories that candidates share."""

import os
from dataclasses import replace

import pytest
import torch
from interest_cases import CODES, DTYPES, NATIVE, draw, native, scoring

from dien_fast import Attention, Ragged
from dien_fast.nn.attention import native_layers
from dien_fast.ops import interest as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestSharedKeys:
    LENGTHS = (4, 0, 60, 4, 3, 1)
    STARTS = torch.tensor([10, 999, 0, 10, 67, 5])

    def shared(self, activation="dice", dtype=torch.float64, depth=6):
        s = scoring(list(self.LENGTHS), 64, depth, (9, 5), activation, training=False, dtype=dtype)
        s.keys = draw(70, depth).to(dtype)
        rows = [torch.arange(length) + start for length, start in zip(self.LENGTHS, self.STARTS, strict=True)]
        return s, replace(s, keys=s.keys[torch.cat(rows)])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", CODES)
    def test_equals_repeated_keys(self, activation, dtype):
        s, repeated = self.shared(activation, dtype)
        want, _ = native(repeated)
        with torch.no_grad():
            scores, statistics = ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp, self.STARTS)
            assert torch.equal(scores, want)
            assert statistics.shape == (0,)
            raw, _, saved = NATIVE.attention_scores(*s.raw(self.STARTS, save=False))
        assert torch.equal(raw, want)
        assert saved.shape == (0,)

    def test_every_candidate_on_all_keys(self):
        s = scoring([70] * 7, depth=6, widths=(9,), training=False)
        s.keys = draw(70, 6)
        starts = torch.zeros(7, dtype=torch.int64)
        found, _ = ops.attention_scores(s.query, s.keys, s.offsets, 70, s.mlp, starts)
        assert torch.equal(found, native(replace(s, keys=s.keys.repeat(7, 1)))[0].detach())

    def test_no_gradient(self):
        s, _ = self.shared()
        assert not ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp, self.STARTS)[
            0
        ].requires_grad
        scores, _, _ = NATIVE.attention_scores(*s.raw(self.STARTS, save=False))
        with pytest.raises(NotImplementedError, match="no gradient where histories share keys"):
            scores.sum().backward()

    @pytest.mark.parametrize("activation", ["dice", "tanh"])
    def test_shared_scores_of_the_module(self, activation):
        """The native operator, and repeated rows where it does not compute the MLP."""
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
