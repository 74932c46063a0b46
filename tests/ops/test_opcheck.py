"""torch.library.opcheck of the interest layer's operators."""

import os
from dataclasses import replace

import pytest
import torch
from interest_cases import MODES, NATIVE, draw, offsets_of, pairs, scoring

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def leaf(*shape):
    return draw(*shape).float().requires_grad_()


class TestOpcheck:
    """Sizes are chosen so that what is kept for backward holds no uninitialised numbers."""

    @pytest.mark.parametrize("activation", ["dice", "prelu"])
    def test_attention_scores(self, activation):
        s = scoring([3, 0, 6, 1], 6, activation=activation, dropout=0.2, dtype=torch.float32)
        s = replace(s, keys=leaf(16, 5), offsets=offsets_of([7, 0, 8, 1]), max_length=8)
        s = replace(s, query=leaf(4, 5))
        assert (16 + 4) % 4 == 0
        torch.library.opcheck(NATIVE.attention_scores.default, s.raw(seed=torch.tensor([5])))

    def test_attention_scores_in_evaluation(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        with torch.no_grad():
            torch.library.opcheck(NATIVE.attention_scores.default, s.raw(save=False))
        # In evaluation, parts of what is kept stay uninitialised, so the numbers cannot be compared.
        torch.library.opcheck(
            NATIVE.attention_scores.default,
            s.raw(),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )

    def test_attention_scores_with_shared_keys(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32).to(torch.float32)
        s = s.with_parameters(*[value.detach() for value in s.leaves().values()])
        torch.library.opcheck(NATIVE.attention_scores.default, s.raw(torch.tensor([2, 0, 4, 9]), save=False))

    @MODES
    def test_attention_scores_backward(self, training):
        s = scoring([3, 0, 6, 1], 6, training=training, dtype=torch.float32)
        s = s.with_parameters(*[value.detach() for value in s.leaves().values()])
        scores, _, saved = NATIVE.attention_scores(*s.raw())
        query, keys, offsets, _, parameters, running, seed, *rest, _ = s.raw()
        torch.library.opcheck(
            NATIVE.attention_scores_backward.default,
            (torch.randn(10), scores, query, keys, offsets, parameters, running, seed, saved, *rest),
        )

    @pytest.mark.parametrize("save", [True, False])
    def test_auxiliary_loss(self, save):
        p = pairs([3, 0, 6, 1], dtype=torch.float32)
        arguments = [*p.rows, p.offsets, p.parameters, save]
        if save:
            torch.library.opcheck(NATIVE.auxiliary_loss.default, arguments)
        else:
            with torch.no_grad():
                torch.library.opcheck(NATIVE.auxiliary_loss.default, arguments)

    def test_rows(self):
        offsets = offsets_of([3, 0, 6, 1])
        torch.library.opcheck(NATIVE.rows_from_padded.default, (leaf(4, 6, 3), offsets))
        torch.library.opcheck(NATIVE.padded_from_rows.default, (leaf(10, 3), offsets, 7))
        torch.library.opcheck(NATIVE.weighted_sum.default, (leaf(10, 3), leaf(10), offsets))
        values = (torch.randn(4, 3), torch.randn(10, 3), torch.randn(10))
        torch.library.opcheck(NATIVE.weighted_sum_backward.default, (*values, offsets))
