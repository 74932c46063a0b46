"""Embedding equals torch's to the last bit, however its gradient is summed."""

import os

import pytest
import torch
from torch import nn

from dien_fast.nn import Embedding

NATIVE = os.environ.get("DIEN_FAST_BACKEND") != "reference"
needs_native = pytest.mark.skipif(not NATIVE, reason="the reference backend was asked for")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def twins(rows, size, dtype=torch.float32, **options):
    torch.manual_seed(1)
    plain = nn.Embedding(rows, size, dtype=dtype, **options)
    fast = Embedding(rows, size, dtype=dtype, **options)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def gradient(table, ids, weights):
    """Return the rows looked up, and the gradient of the table for a weighted sum of them."""
    table.zero_grad()
    out = table(ids)
    (out * weights).sum().backward()
    return out, table.weight.grad


def assert_equal(plain, fast, ids):
    weights = torch.randn(*ids.shape, plain.embedding_dim, dtype=plain.weight.dtype)
    for found, want in zip(gradient(fast, ids, weights), gradient(plain, ids, weights), strict=True):
        assert found.is_sparse == want.is_sparse
        assert torch.equal(found.to_dense(), want.to_dense())


@pytest.mark.parametrize("padding", [None, 0, 7, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2000,), (40, 50), (0,), (8, 0), (20, 10, 5)], ids=str)
def test_same_bits(shape, dtype, padding):
    assert_equal(*twins(50, 18, dtype, padding_idx=padding), torch.randint(0, 50, shape))


@pytest.mark.parametrize("size", [1, 16, 257])
def test_same_bits_on_several_threads(size):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            # Most ids are small, as in a vocabulary sorted by frequency.
            ids = (torch.rand(2**21 // size + 600) ** 3 * 90).long()
            assert_equal(*twins(90, size, padding_idx=0), ids)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("padding", [None, 0, 7])
@pytest.mark.parametrize("shape", [(2000,), (40, 50)], ids=str)
def test_a_sparse_gradient_has_the_same_bits_and_each_row_once(shape, padding):
    ids = torch.randint(0, 50, shape)
    plain, fast = twins(50, 18, padding_idx=padding)
    fast.sparse = True
    weights = torch.randn(*shape, 18)
    found, want = gradient(fast, ids, weights)[1], gradient(plain, ids, weights)[1]
    assert torch.equal(found.to_dense(), want)
    rows = sorted(set(ids.flatten().tolist()) - {padding})
    assert found.coalesce().indices()[0].tolist() == rows
    if NATIVE:  # torch's own has a row for each id
        assert found._indices()[0].tolist() == rows


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"max_norm": 0.5}], ids=str)
def test_other_options_are_torchs(options):
    assert_equal(*twins(50, 6, **options), torch.randint(0, 50, (900,)))


@pytest.mark.parametrize("ids", [torch.arange(1200).view(2, 600).t() % 50, torch.arange(700).int() % 50])
def test_strided_and_short_ids(ids):
    assert_equal(*twins(50, 6), ids)


def test_gradient_without_strides():
    plain, fast = twins(50, 6)
    ids = torch.randint(0, 50, (900,))
    for table in (plain, fast):
        table(ids).sum().backward()  # its gradient is one number in memory, expanded
    assert torch.equal(fast.weight.grad, plain.weight.grad)


def test_gradients_add_up():
    plain, fast = twins(50, 6)
    for _ in range(2):
        ids = torch.randint(0, 50, (900,))
        for table in (plain, fast):
            table(ids).square().sum().backward()
    assert torch.equal(fast.weight.grad, plain.weight.grad)


@needs_native
def test_which_one_sums():
    _, fast = twins(50, 6)
    ids = torch.randint(0, 50, (900,))
    assert type(fast(ids).grad_fn).__name__ == "_EmbeddingBackward"
    assert type(fast(ids[:100]).grad_fn).__name__ == "EmbeddingBackward0"
    fast.sparse = True
    assert type(fast(ids).grad_fn).__name__ == "_SparseEmbeddingBackward"
    fast.requires_grad_(False)
    assert fast(ids).grad_fn is None
    with torch.inference_mode():
        assert fast(ids).is_inference()


def test_second_derivative():
    weight = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    table = Embedding(7, 2, _weight=weight)
    ids = torch.randint(0, 7, (600,))

    def function(weight):
        return torch.func.functional_call(table, {"weight": weight}, (ids,)).square().sum()

    assert torch.autograd.gradcheck(function, weight)
    assert torch.autograd.gradgradcheck(function, weight)


def test_ids_outside_the_table():
    _, fast = twins(50, 6)
    for wrong in (50, -1):
        ids = torch.full((900,), wrong)
        with pytest.raises(IndexError):
            fast(ids)


def test_hooks_and_names():
    _, fast = twins(50, 6, padding_idx=0)
    seen = []
    fast.register_forward_hook(lambda *_: seen.append("forward"))
    fast.register_full_backward_hook(lambda *_: seen.append("backward"))
    fast(torch.randint(0, 50, (900,))).sum().backward()
    assert seen == ["forward", "backward"]
    assert repr(fast) == "Embedding(50, 6, padding_idx=0)"
    assert list(fast.state_dict()) == ["weight"]


def test_compiles_in_one_graph():
    plain, fast = twins(50, 6)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    ids = torch.randint(0, 50, (900,))
    compiled(ids).square().sum().backward()
    plain(ids).square().sum().backward()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad)
