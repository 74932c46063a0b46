"""Rows of tables summed by id, and moved by Adam and by Adagrad: kernels against plain PyTorch, and refusals."""

import os

import pytest
import torch
from interest_cases import NATIVE

from dien_fast import use_backend
from dien_fast.ops.rows import sum_by_id
from dien_fast.ops.table_rows import Adam, adagrad_rows_, adam_rows_

needs_native = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
OF = Adam(rate=0.3, decay=0.2, first=0.9, second=0.99, root=2.0, eps=1e-3)


def case(count, size, dtype=torch.float32, rows=5000):
    """A table, its moments, gradients and the rows that they belong to."""
    torch.manual_seed(0)
    table, average, change = (torch.randn(n, size, dtype=dtype) for n in (rows, rows, count))
    square = torch.rand(rows, size, dtype=dtype)
    return table, average, square, change, torch.randperm(rows)[:count].sort().values


@needs_native
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 1), (70, 18), (4999, 16), (5000, 64)])
def test_kernels_are_plain_pytorch(count, size, dtype, tolerance):
    found = {}
    for backend in ("native", "reference"):
        table, average, square, change, rows = case(count, size, dtype)
        other, total = table.clone(), square[:, 0].clone()
        with use_backend(backend):
            adam_rows_(table, average, square, change, rows, OF)
            adagrad_rows_(other, total, change, rows, 0.3, 0.2, 1e-3)
        found[backend] = [table, average, square, other, total]
    for left, right in zip(found["native"], found["reference"], strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@needs_native
def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            table, average, square, change, rows = case(4999, 33)
            adam_rows_(table, average, square, change, rows, OF)
            adagrad_rows_(average, square[:, 0].clone(), change, rows, 0.3, 0.2, 1e-3)
            found.append((table, average, square))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(left, right) for left, right in zip(found[0], found[1], strict=True))
    assert all(torch.equal(left, right) for left, right in zip(found[0], found[2], strict=True))


@needs_native
def test_opcheck():
    table, average, square, change, rows = case(20, 3, rows=50)
    torch.library.opcheck(NATIVE.adam_rows_.default, (table, average, square, change, rows, *OF))
    torch.library.opcheck(
        NATIVE.adagrad_rows_.default, (table, square[:, 0].clone(), change, rows, 0.3, 0.2, 1e-3)
    )


@needs_native
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(9), r"table must have shape \(\*, \*\), got \(9,\)"),
        (0, torch.zeros(9, 3).half(), "table must have dtype float32 or float64"),
        (1, torch.zeros(8, 3), r"average must have shape \(9, 3\), got \(8, 3\)"),
        (2, torch.zeros(9, 3).double(), "square must have the dtype"),
        (3, torch.zeros(4, 2), r"change must have shape \(4, 3\), got \(4, 2\)"),
        (4, torch.tensor([0, 1, 2, 9]), r"rows must lie in \[0, 9\), got 9"),
        (4, torch.tensor([-1, 1, 2, 3]), r"rows must lie in \[0, 9\), got -1"),
        (4, torch.tensor([0, 1, 1, 3]), "rows must rise, got 1 before 1"),
        (4, torch.arange(4).int(), "rows must be contiguous int64"),
    ],
)
def test_wrong_arguments(place, value, message):
    arguments = [torch.zeros(9, 3), torch.zeros(9, 3), torch.zeros(9, 3), torch.zeros(4, 3), torch.arange(4)]
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        NATIVE.adam_rows_(*arguments, *OF)


def ids_of(count, largest):
    """Ids of which small ones are frequent, with the largest among them."""
    ids = (torch.rand(count, dtype=torch.float64) ** 3 * largest).long()
    ids[count // 2 :][:1] = largest
    return ids


@needs_native
@pytest.mark.parametrize("padding", [-1, 0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("count", "size", "largest"),
    [(0, 3, 0), (1, 1, 0), (700, 18, 90), (700, 0, 90), (9000, 18, 2**11), (5000, 16, 10**6), (300, 3, 2**63 - 1)],
)
def test_sums_are_those_of_unique_ids(count, size, largest, dtype, padding):
    rows, ids = torch.randn(count, size, dtype=dtype), ids_of(count, largest)
    distinct, places = torch.unique(ids, return_inverse=True)
    want = rows.new_zeros(distinct.numel(), size)
    for place, row in zip(places.tolist(), rows, strict=True):
        want[place] += row
    kept = distinct != padding
    found = sum_by_id(rows, ids, padding)
    assert torch.equal(found[0], distinct[kept])
    assert torch.equal(found[1], want[kept])


@needs_native
def test_any_number_of_threads_sums_the_same_bits():
    before, found = torch.get_num_threads(), []
    rows, ids = torch.randn(20000, 33), ids_of(20000, 5000)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(sum_by_id(rows, ids, 0))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(left, right) for left, right in zip(found[0], other, strict=True))


@needs_native
def test_opcheck_of_sums():
    torch.library.opcheck(NATIVE.sum_by_id.default, (torch.randn(20, 3), torch.randint(0, 9, (20,)), 0))


@needs_native
@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (torch.zeros(4), torch.arange(4), r"rows must have shape \(\*, \*\), got \(4,\)"),
        (torch.zeros(4, 3), torch.arange(5), r"rows must have shape \(5, 3\), got \(4, 3\)"),
        (torch.zeros(4, 3).half(), torch.arange(4), "rows must have dtype float32 or float64"),
        (torch.zeros(3, 4).t(), torch.arange(4), "rows must be contiguous"),
        (torch.zeros(4, 3), torch.arange(4).int(), "ids must be contiguous int64"),
        (torch.zeros(4, 3), torch.tensor([0, 1, -2, 3]), "ids must be at least 0, got -2"),
    ],
)
def test_wrong_arguments_of_sums(rows, ids, message):
    with pytest.raises(RuntimeError, match=message):
        NATIVE.sum_by_id(rows, ids, 0)
