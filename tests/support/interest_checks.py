"""Checks of the interest layer's operators against plain PyTorch.

Their tests run them on the best instruction set of this machine, instruction_sets.py on each of the others.
"""

import torch
from comparison import assert_same
from interest_cases import (
    MANY,
    NATIVE,
    ROW_LENGTHS,
    STARTS,
    differentiate,
    draw,
    native,
    offsets_of,
    outcome,
    plain,
    plain_padded,
    plain_rows,
    plain_sum,
    scoring,
    shared_keys,
)

from dien_fast.ops import attention_scores, rows


def check_scores(s):
    """With gradients, and without, where nothing is kept."""
    found = outcome(native, s)
    assert_same(found, outcome(plain, s), 1e-9, 1e-9)
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


def check_weighted_sum(shape, depth):
    """Sums of histories, and their gradients."""
    lengths, _ = ROW_LENGTHS[shape]
    offsets, values, weights = offsets_of(lengths), draw(sum(lengths), depth), draw(sum(lengths))
    leaves = {"values": values.requires_grad_(), "weights": weights.requires_grad_()}
    found, want = (compute(values, weights, offsets) for compute in (rows.weighted_sum, plain_sum))
    assert found.shape == (len(lengths), depth)
    assert_same(
        {"sum": found.detach()} | differentiate(found, leaves),
        {"sum": want.detach()} | differentiate(want, leaves),
        1e-9,
        1e-9,
    )
