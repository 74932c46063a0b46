"""Copies between padded and ragged rows, and weighted sums."""

import os

import pytest
import torch
from interest_cases import (
    NATIVE,
    ROW_LENGTHS,
    SOME,
    draw,
    offsets_of,
    plain_padded,
    plain_rows,
)
from interest_checks import check_copies, check_weighted_sum, check_weighted_sum_in_float32

from dien_fast.ops import rows as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestRows:
    DTYPES = [
        torch.bool,
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]

    @pytest.mark.parametrize("shape", ROW_LENGTHS)
    @pytest.mark.parametrize("tail", [(), (1,), (18,), (2, 3), (257,), (0,)], ids=str)
    def test_there_and_back(self, tail, shape):
        check_copies(shape, tail)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, dtype):
        offsets = offsets_of(SOME)
        values = torch.randint(0, 100, (sum(SOME), 3)).to(dtype)
        padded = ops.padded_from_rows(values, offsets, 7)
        assert padded.dtype == dtype
        assert torch.equal(padded, plain_padded(values, offsets, 7))
        assert torch.equal(ops.rows_from_padded(padded, offsets), values)

    def test_not_contiguous(self):
        offsets = offsets_of(SOME)
        values, padded = draw(3, sum(SOME)).t(), draw(3, 6, 6).permute(1, 2, 0)
        assert torch.equal(ops.padded_from_rows(values, offsets, 6), plain_padded(values, offsets, 6))
        assert torch.equal(ops.rows_from_padded(padded, offsets), plain_rows(padded, offsets))

    def test_threads(self):
        lengths = [60, 3, 0, 41] * 100
        offsets, padded = offsets_of(lengths), draw(400, 60, 18)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            rows = ops.rows_from_padded(padded, offsets)
            assert torch.equal(rows, plain_rows(padded, offsets))
            assert torch.equal(ops.padded_from_rows(rows, offsets, 61), plain_padded(rows, offsets, 61))
        finally:
            torch.set_num_threads(before)

    def test_derivatives(self):
        """First and second derivatives."""
        offsets = offsets_of([2, 0, 3])
        padded, values = draw(3, 4, 2).requires_grad_(), draw(5, 2).requires_grad_()
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda padded: ops.rows_from_padded(padded, offsets), padded)
            assert check(lambda values: ops.padded_from_rows(values, offsets, 4), values)
            assert check(lambda padded: NATIVE.rows_from_padded(padded, offsets), padded)
            assert check(lambda values: NATIVE.padded_from_rows(values, offsets, 4), values)

    @pytest.mark.parametrize("shape", ROW_LENGTHS)
    @pytest.mark.parametrize("depth", [1, 18, 257])
    def test_weighted_sum(self, depth, shape):
        check_weighted_sum(shape, depth)

    def test_weighted_sum_in_float32(self):
        check_weighted_sum_in_float32()

    def test_weighted_sum_gradcheck(self):
        offsets, leaves = offsets_of([2, 0, 3]), (draw(5, 3).requires_grad_(), draw(5).requires_grad_())
        assert torch.autograd.gradcheck(lambda *leaves: ops.weighted_sum(*leaves, offsets), leaves)
        assert torch.autograd.gradcheck(lambda *leaves: NATIVE.weighted_sum(*leaves, offsets), leaves)

    def test_weighted_sum_has_no_second_derivative(self):
        offsets, values, weights = offsets_of([2, 0, 3]), draw(5, 3), draw(5).requires_grad_()
        total = ops.weighted_sum(values, weights, offsets).square().sum()
        (gradient,) = torch.autograd.grad(total, weights, create_graph=True)
        with pytest.raises(NotImplementedError, match="weighted_sum has no second derivative"):
            gradient.sum().backward()

    def test_a_nan_stays_in_its_sum(self):
        offsets, values, weights = offsets_of([2, 0, 3]), draw(5, 3), draw(5)
        clean = ops.weighted_sum(values, weights, offsets)
        values[3] = torch.nan
        found = ops.weighted_sum(values, weights, offsets)
        assert torch.equal(found[:2], clean[:2])
        assert found[2].isnan().all()
        assert not found[1].any()
