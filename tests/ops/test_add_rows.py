"""Sums of rows into the rows of a table."""

import os

import pytest
import torch
from interest_cases import NATIVE

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "size"), [(0, 3), (700, 18), (2**21 // 16 + 600, 16)])
def test_equals_torchs_gradient(count, size, dtype):
    torch.manual_seed(0)
    rows, ids = torch.randn(count, size, dtype=dtype), (torch.rand(count) ** 3 * 90).long()
    out = torch.zeros(90, size, dtype=dtype)
    NATIVE.add_rows_(out, rows, ids, 4)
    assert torch.equal(out, torch.ops.aten.embedding_dense_backward(rows, ids, 90, 4, False))


def test_opcheck():
    arguments = (torch.randn(9, 3), torch.randn(20, 3), torch.randint(0, 9, (20,)), 0)
    torch.library.opcheck(NATIVE.add_rows_.default, arguments)


def test_adds():
    out, rows = torch.ones(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [torch.nan, 0.0]])
    NATIVE.add_rows_(out, rows, torch.tensor([2, 0, 2, 1]), 1)
    assert out.tolist() == [[4.0, 5.0], [1.0, 1.0], [7.0, 9.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": torch.zeros(9)}, r"out must have shape \(\*, \*\), got \(9,\)"),
        ({"out": torch.zeros(9, 3).half()}, "out must have dtype float32 or float64"),
        ({"out": torch.zeros(3, 9).t()}, "out must be contiguous"),
        ({"rows": torch.zeros(20, 4)}, r"rows must have shape \(20, 3\), got \(20, 4\)"),
        ({"rows": torch.zeros(20, 3).double()}, "rows must have the dtype"),
        ({"ids": torch.zeros(4, 5).long()}, r"ids must have shape \(20,\), got \(4, 5\)"),
        ({"ids": torch.zeros(20).int()}, "ids must be contiguous int64"),
        ({"ids": torch.full((20,), 9)}, r"ids must lie in \[0, 9\), got 9"),
        ({"ids": torch.full((20,), -1)}, r"ids must lie in \[0, 9\), got -1"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"out": torch.zeros(9, 3), "rows": torch.zeros(20, 3), "ids": torch.zeros(20).long()}
    with pytest.raises(RuntimeError, match=message):
        NATIVE.add_rows_(*(arguments | change).values(), -1)
