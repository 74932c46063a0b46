"""The auxiliary loss against plain PyTorch."""

import os

import pytest
import torch
from comparison import assert_same
from interest_cases import DTYPES, LOSS_SHAPES, SOME, Pairs, loss_outcome, native_loss, pairs, plain_loss
from interest_checks import (
    check_certain_and_wrong,
    check_float32_loss,
    check_nothing_to_tell_apart,
    check_what_no_pair_has,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestAuxiliaryLoss:
    @pytest.mark.parametrize("shape", LOSS_SHAPES)
    def test_shapes(self, shape):
        p = pairs(*LOSS_SHAPES[shape])
        found = loss_outcome(native_loss, p)
        assert_same(found, loss_outcome(plain_loss, p), 1e-9, 1e-9)
        with torch.no_grad():
            assert torch.equal(native_loss(p), found["loss"])

    @pytest.mark.parametrize(("depth", "widths"), [(18, (36, 20)), (36, (100, 50)), (3, (7,))])
    def test_float32(self, depth, widths):
        check_float32_loss(800, depth, widths)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [30.0, 1e4])
    def test_certain_and_wrong(self, scale, dtype):
        check_certain_and_wrong(scale, dtype)

    def test_gradcheck(self):
        p = pairs([3, 0, 2, 1], 3, (4, 3))

        def loss(*leaves):
            return native_loss(Pairs(list(leaves[:3]), p.offsets, list(leaves[3:])))

        assert torch.autograd.gradcheck(loss, tuple(p.leaves().values()))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_no_pair_has_is_not_looked_at(self, dtype):
        check_what_no_pair_has(dtype)

    def test_a_nan_shows(self):
        for index in range(3):
            p = pairs([3, 0, 60, 1, 2])
            with torch.no_grad():
                p.rows[index][20, 1] = torch.nan
            assert native_loss(p).isnan()

    @pytest.mark.parametrize("lengths", [[1, 0, 1], [0, 0], []])
    def test_nothing_to_tell_apart(self, lengths):
        check_nothing_to_tell_apart(lengths)

    def test_second_derivative_is_refused(self):
        p = pairs(SOME)
        loss = native_loss(p)
        with pytest.raises(NotImplementedError, match="auxiliary_loss has no second derivative"):
            torch.autograd.grad(loss, p.rows[0], create_graph=True)[0].sum().backward()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_threads(self, dtype):
        p = pairs([60, 3, 0, 41] * 12, 18, (100, 50), dtype)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two, again = loss_outcome(native_loss, p), loss_outcome(native_loss, p)
        finally:
            torch.set_num_threads(before)
        one = loss_outcome(native_loss, p)
        assert_same(again, two, 0, 0)
        assert_same(loss_outcome(native_loss, p), one, 0, 0)
        for name in ("gradient of states", "gradient of events", "gradient of negatives"):
            # Two threads may cut the histories into other tiles, which does not change the numbers of a row.
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-9, msg=name)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert_same(two, one, tolerance, tolerance)
