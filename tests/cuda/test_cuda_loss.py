"""The auxiliary loss on CUDA over the emulated kernels, on the cases of the CPU's."""

import pytest
import torch
from comparison import assert_same
from interest_cases import DTYPES, LOSS_SHAPES, SOME, loss_outcome, native_loss, pairs, plain_loss
from interest_checks import (
    check_certain_and_wrong,
    check_float32_loss,
    check_nothing_to_tell_apart,
    check_what_no_pair_has,
)

ORDERS = ("forward", "reverse", "random")


@pytest.mark.parametrize("shape", LOSS_SHAPES)
def test_shapes(emulated, configure, shape):
    number = list(LOSS_SHAPES).index(shape)
    configure(ORDERS[number % 3], seed=number)
    p = pairs(*LOSS_SHAPES[shape])
    found = loss_outcome(native_loss, p)
    assert_same(found, loss_outcome(plain_loss, p), 1e-9, 1e-9)
    with torch.no_grad():
        assert torch.equal(native_loss(p), found["loss"])


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 60_000])
def test_chunks(emulated, configure, chunk_bytes):
    """Sums over rows are cut in other places; all else is the same."""
    p = pairs([60, 3, 0, 1, 41, 2], 18, (30, 20))
    want = loss_outcome(native_loss, p)
    configure("reverse", chunk_bytes=chunk_bytes)
    found = loss_outcome(native_loss, p)
    for name in ("gradient of states", "gradient of events", "gradient of negatives"):
        assert torch.equal(found[name], want[name]), name
    assert_same(found, want, 1e-12, 1e-12)


def test_same_bits_in_any_order_of_threads(emulated, configure):
    p = pairs([60, 3, 0, 41, 130], 18, (100, 50), torch.float32)
    want = loss_outcome(native_loss, p)
    for order, seed in (("reverse", 0), ("random", 0), ("random", 1)):
        configure(order, seed)
        assert_same(loss_outcome(native_loss, p), want, 0, 0)


@pytest.mark.parametrize(("depth", "widths"), [(18, (36, 20)), (3, (7,))])
def test_float32(emulated, depth, widths):
    check_float32_loss(400, depth, widths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_certain_and_wrong(emulated, scale, dtype):
    check_certain_and_wrong(scale, dtype)


def test_what_no_pair_has_is_not_looked_at(emulated):
    check_what_no_pair_has(torch.float64)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_nan_shows(emulated, index):
    p = pairs([3, 0, 60, 1, 2])
    with torch.no_grad():
        p.rows[index][20, 1] = torch.nan
    assert native_loss(p).isnan()


@pytest.mark.parametrize("lengths", [[1, 0, 1], [0, 0], []])
def test_nothing_to_tell_apart(emulated, lengths):
    check_nothing_to_tell_apart(lengths)


@pytest.mark.parametrize(
    "offsets",
    [[0, 4, 2, 9, 10], [-5, 3, 3, 9, 10], [0, 2**62, 2**63 - 1, -(2**63), 10], [0, 0, 0, 5, 99]],
    ids=str,
)
def test_values_outside_of_the_arrays(emulated, offsets):
    """Offsets are cut, and no memory beside the arrays is touched: the guard zones show it."""
    p = pairs([3, 0, 6, 1])
    arguments = [*p.rows, torch.tensor(offsets), p.parameters, True]
    loss, *_ = emulated.auxiliary_loss(*arguments)
    assert loss.isfinite()


def test_rows_that_belong_to_no_history(emulated):
    p = pairs(SOME)
    more = [torch.cat([value.detach(), torch.full((7, 5), torch.nan).double()]) for value in p.rows]
    parameters = [value.detach() for value in p.parameters]
    want = emulated.auxiliary_loss(*[value.detach() for value in p.rows], p.offsets, parameters, True)
    found = emulated.auxiliary_loss(*more, p.offsets, parameters, True)
    torch.testing.assert_close(found[0], want[0], rtol=1e-12, atol=0)
    for one, other in zip(want[1:4], found[1:4], strict=True):
        assert torch.equal(other[: sum(SOME)], one)
        assert not other[sum(SOME) :].any()
    torch.testing.assert_close(found[4], want[4], rtol=1e-12, atol=1e-12)
