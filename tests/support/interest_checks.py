"""Checks of the interest layer's operators against plain PyTorch.

Their tests run them on the best instruction set of this machine, instruction_sets.py on each of the others.
"""

import torch
from comparison import assert_same, assert_within_twice
from interest_cases import (
    MANY,
    NATIVE,
    ROW_LENGTHS,
    SOME,
    STARTS,
    draw,
    loss_outcome,
    native,
    native_loss,
    offsets_of,
    outcome,
    pairs,
    plain,
    plain_loss,
    plain_padded,
    plain_rows,
    plain_sum,
    scoring,
    shared_keys,
    sum_outcome,
    summands,
)

from dien_fast.ops import attention_scores, rows


def check_against_plain(outcome, compute, plain, arguments, most=1):
    """An operator's outcome equals plain PyTorch's in float64; in float32 it has twice the error at most.

    ``outcome(compute, arguments)`` is a dict, and the arguments have ``to(dtype)``. ``most`` is as in
    :func:`assert_within_twice`. Returns the outcomes of the operator and of plain PyTorch in float64.
    """
    found, exact = outcome(compute, arguments), outcome(plain, arguments.to(torch.float64))
    if next(iter(arguments.leaves().values())).dtype == torch.float64:
        assert_same(found, exact, 1e-9, 1e-9)
    else:
        assert_within_twice(found, outcome(plain, arguments), exact, most)
    return found, exact


def check_scores(s):
    """With gradients, and without, where nothing is kept."""
    found, _ = check_against_plain(outcome, native, plain, s)
    with torch.no_grad():
        scores, statistics = native(s)
    torch.testing.assert_close(scores, found["scores"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics, found["statistics"], rtol=1e-12, atol=1e-12)


def check_large_batch(threads, dtype):
    """Histories go through all layers a few at a time, longer ones by themselves, empty ones among them."""
    lengths = [0, 0, 191, 192, 193, 0, 1, *[0] * 300, 500, 3, *MANY, 96, 95, 1, 0, *[1] * 400, 0, 0]
    s = scoring(lengths, depth=6, widths=(9, 5), training=False, dtype=dtype)
    found = outcome(native, s)["scores"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            without, _ = native(s)
    finally:
        torch.set_num_threads(before)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(without, found, rtol=tolerance, atol=tolerance)
    want, _ = plain(s.to(torch.float64))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(without.double(), want, rtol=tolerance, atol=tolerance)


def check_shared_keys(activation, dtype):
    """Candidates that share keys get the scores that copies of the keys give."""
    s, repeated = shared_keys(activation, dtype)
    want, _ = native(repeated)
    with torch.no_grad():
        scores, statistics = attention_scores.attention_scores(
            s.query, s.keys, s.offsets, s.max_length, s.mlp, STARTS
        )
        assert torch.equal(scores, want)
        assert statistics.shape == (0,)
        raw, _, saved = NATIVE.attention_scores(*s.raw(STARTS, save=False))
    assert torch.equal(raw, want)
    assert saved.shape == (0,)


def check_copies(shape, tail):
    """Rows go into padding and back."""
    lengths, steps = ROW_LENGTHS[shape]
    offsets = offsets_of(lengths)
    values = draw(sum(lengths), *tail)
    padded = rows.padded_from_rows(values, offsets, steps)
    assert torch.equal(padded, plain_padded(values, offsets, steps))
    assert torch.equal(rows.rows_from_padded(padded, offsets), values)
    filled = draw(len(lengths), steps, *tail)
    assert torch.equal(rows.rows_from_padded(filled, offsets), plain_rows(filled, offsets))


def check_padding(shape, tail):
    """Rows go into padding, and so do the gradients of padding back."""
    lengths, steps = ROW_LENGTHS[shape]
    offsets, values = offsets_of(lengths), draw(sum(lengths), *tail).requires_grad_()
    padded = rows.padded_from_rows(values, offsets, steps)
    want = plain_padded(values, offsets, steps)
    assert torch.equal(padded, want)
    weight = draw(*padded.shape)
    gradients = [torch.autograd.grad((value * weight).sum(), values)[0] for value in (padded, want)]
    assert torch.equal(*gradients)


def check_padding_of(dtype, width):
    """Rows of a dtype and a number of elements."""
    offsets = offsets_of(SOME)
    values = torch.randint(0, 100, (sum(SOME), width)).to(dtype)
    assert torch.equal(rows.padded_from_rows(values, offsets, 7), plain_padded(values, offsets, 7))


def check_offsets_outside(offsets):
    """Offsets [5] that point outside of ten rows are cut."""
    values, weights = torch.randn(10, 3), torch.randn(10)
    begin = offsets[:-1].clamp(0, 10)
    bounds = list(zip(begin.tolist(), torch.maximum(offsets[1:].clamp(0, 10), begin).tolist(), strict=True))
    sums = NATIVE.weighted_sum(values, weights, offsets)
    torch.testing.assert_close(sums, torch.stack([(values * weights[:, None])[b:e].sum(0) for b, e in bounds]))
    NATIVE.weighted_sum_backward(torch.randn(4, 3), values, weights, offsets)
    padded = NATIVE.padded_from_rows(values, offsets, 6)
    want = [torch.nn.functional.pad(values[b:e][:6], (0, 0, 0, 6 - min(e - b, 6))) for b, e in bounds]
    assert torch.equal(padded, torch.stack(want))


def check_weighted_sum(shape, depth):
    """Sums of histories, and their gradients."""
    lengths, _ = ROW_LENGTHS[shape]
    found, _ = check_against_plain(sum_outcome, rows.weighted_sum, plain_sum, summands(lengths, depth))
    assert found["sum"].shape == (len(lengths), depth)


def check_weighted_sum_in_float32():
    """The error is at most twice that of plain PyTorch."""
    single = summands([length % 61 for length in range(0, 800, 13)], 18, torch.float32)
    check_against_plain(sum_outcome, rows.weighted_sum, plain_sum, single)


def check_nan_in_scores(where, activation, dtype=torch.float64):
    """In evaluation a NaN stays in its history."""
    s = scoring([40, 0, 30, 60, 1], 60, 6, (9, 5), activation, training=False, dtype=dtype)
    clean = outcome(native, s)
    with torch.no_grad():
        getattr(s, where)[2 if where == "query" else 50, 1] = torch.nan
    found = outcome(native, s)
    owner = torch.repeat_interleave(torch.arange(5), s.offsets.diff())
    assert found["scores"][owner == 2].isnan().all()
    for name, others in (
        ("scores", owner != 2),
        ("gradient of keys", owner != 2),
        ("gradient of query", torch.arange(5) != 2),
    ):
        assert torch.equal(found[name][others], clean[name][others]), name


def check_float32_loss(most, depth, widths):
    """The error is at most twice that of plain PyTorch."""
    single = pairs([length % 61 for length in range(0, most, 13)], depth, widths, torch.float32)
    check_against_plain(loss_outcome, native_loss, plain_loss, single)


def check_certain_and_wrong(scale, dtype):
    """Large logits of either sign do not overflow: log(1 + e^x) is x."""
    p = pairs([60, 3, 0, 20], dtype=dtype)
    with torch.no_grad():
        p.parameters[-2].mul_(scale)
    found, want = loss_outcome(native_loss, p), loss_outcome(plain_loss, p.to(torch.float64))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    largest = max(value.abs().max() for value in want.values())
    for name, value in want.items():
        torch.testing.assert_close(found[name].double(), value, rtol=tolerance, atol=tolerance * largest, msg=name)


def check_what_no_pair_has(dtype):
    """A history's first event and negative, and its last state."""
    p = pairs([3, 0, 60, 1, 2], dtype=dtype)
    clean = loss_outcome(native_loss, p)
    first, last = torch.tensor([0, 3, 63, 64]), torch.tensor([2, 62, 63, 65])
    with torch.no_grad():
        p.rows[0][last] = torch.nan
        p.rows[1][first] = torch.nan
        p.rows[2][first] = torch.nan
    found = loss_outcome(native_loss, p)
    assert_same(found, clean, 0, 0)
    assert not found["gradient of states"][last].any()
    assert not found["gradient of events"][first].any()
    assert not found["gradient of negatives"][first].any()


def check_nothing_to_tell_apart(lengths):
    """The loss is 0 and still part of the graph."""
    p = pairs(lengths)
    loss = native_loss(p)
    assert loss == 0
    assert loss.requires_grad
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, list(p.leaves().values())))
