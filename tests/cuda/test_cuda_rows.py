"""The CUDA operators on ragged rows over the emulated kernels, on the cases of the CPU's."""

import pytest
import torch
from interest_cases import OUTSIDE, ROW_DTYPES, ROW_LENGTHS, ROW_TAILS, ROW_WIDTHS, draw, offsets_of
from interest_checks import (
    check_offsets_outside,
    check_padding,
    check_padding_of,
    check_weighted_sum,
    check_weighted_sum_in_float32,
)

from dien_fast.ops import rows


@pytest.mark.parametrize("shape", ROW_LENGTHS)
@pytest.mark.parametrize("tail", ROW_TAILS, ids=str)
def test_padding(emulated, tail, shape):
    check_padding(shape, tail)


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("width", ROW_WIDTHS)
def test_dtypes(emulated, dtype, width):
    check_padding_of(dtype, width)


def test_second_derivative_of_padding(emulated):
    offsets, values = offsets_of([2, 0, 3]), draw(5, 2).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda values: rows.padded_from_rows(values, offsets, 4), values)


@pytest.mark.parametrize("shape", ROW_LENGTHS)
@pytest.mark.parametrize("depth", [1, 18, 257])
def test_weighted_sum(emulated, configure, depth, shape):
    configure(("forward", "reverse", "random")[depth % 3])
    check_weighted_sum(shape, depth)


def test_weighted_sum_of_one_long_history(emulated):
    """Several blocks share the rows of a history."""
    offsets, dsum = offsets_of([3000]), draw(1, 5)
    values, weights = draw(3000, 5), draw(3000)
    dvalues, dweights = emulated.weighted_sum_backward(dsum, values, weights, offsets)
    torch.testing.assert_close(dvalues, weights[:, None] * dsum, rtol=0, atol=0)
    torch.testing.assert_close(dweights, values @ dsum[0], rtol=1e-12, atol=1e-12)


def test_weighted_sum_in_float32(emulated):
    check_weighted_sum_in_float32()


@pytest.mark.parametrize("offsets", OUTSIDE, ids=str)
def test_values_outside_of_the_arrays(emulated, offsets):
    """Offsets are cut, and no memory beside the arrays is touched: the guard zones show it."""
    check_offsets_outside(torch.tensor(offsets))


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("weighted_sum", (torch.zeros(3), torch.zeros(3), offsets_of([3])), r"values must have shape \(\*, \*\)"),
        ("weighted_sum", (torch.zeros(3, 2).half(), torch.zeros(3), offsets_of([3])), "values must have dtype"),
        ("weighted_sum", (torch.zeros(3, 2), torch.zeros(2), offsets_of([3])), r"weights must have shape \(3,\)"),
        (
            "weighted_sum",
            (torch.zeros(3, 2), torch.zeros(3).double(), offsets_of([3])),
            "weights must have the dtype of values",
        ),
        ("weighted_sum", (torch.zeros(2, 3).t(), torch.zeros(3), offsets_of([3])), "values must be contiguous"),
        (
            "weighted_sum",
            (torch.zeros(3, 2), torch.zeros(3), offsets_of([3]).int()),
            "offsets must have dtype int64",
        ),
        (
            "weighted_sum",
            (torch.zeros(3, 2), torch.zeros(3), torch.zeros(0).long()),
            "offsets must have at least one element, got 0",
        ),
        (
            "weighted_sum_backward",
            (torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(3), offsets_of([3])),
            r"dsum must have shape \(1, 2\), got \(2, 2\)",
        ),
        ("padded_from_rows", (torch.tensor(1.0), offsets_of([1]), 3), r"values must have shape \(N, \.\.\.\)"),
        ("padded_from_rows", (torch.zeros(2, 3).t(), offsets_of([3]), 3), "values must be contiguous"),
        ("padded_from_rows", (torch.zeros(0, 2), offsets_of([0]), -1), "steps must be at least 0, got -1"),
    ],
)
def test_wrong_arguments(emulated, operator, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(emulated, operator)(*arguments)
