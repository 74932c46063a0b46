"""Dropout's masks in the native attention scores, made visible, and checks of what they do."""

import torch
from comparison import assert_same
from interest_cases import _Seeded, draw, outcome, plain, scoring, seeded

from dien_fast.ops import attention_scores as ops

SEED = torch.tensor([2**62 + 12345])


def seen_masks(seed, rate, widths, lengths, dtype=torch.float64):
    """Dropout's factors of ragged rows, of as many channels as keys have: the gradient of x = k.

    ``widths`` are the number of channels, and None for a single layer, or by how many places the channels of
    a second one are moved, whose factors these are then times the first one's.
    """
    width, shift = widths
    s = scoring(lengths, depth=width, widths=(width,), activation="linear", norm=False, dtype=dtype)
    weight = torch.zeros(width, 4 * width, dtype=dtype)
    weight[:, width : 2 * width] = torch.eye(width, dtype=dtype)
    zero, one = torch.zeros(width, dtype=dtype), torch.ones(1, width, dtype=dtype)
    parameters = [weight, zero, one, torch.zeros(1, dtype=dtype)]
    layers = [ops.IDENTITY]
    if shift is not None:
        parameters[2:2] = [torch.eye(width, dtype=dtype).roll(shift, 0), zero]
        layers = [ops.IDENTITY] * 2
    s.mlp = ops.ScoreLayers(parameters, [], layers, [], rate, True)
    s.keys = torch.zeros_like(s.keys).requires_grad_()
    scores, _ = seeded(s, seed)
    dscores = draw(scores.numel(), generator=torch.Generator().manual_seed(1)).to(dtype)
    (dkeys,) = torch.autograd.grad(scores, s.keys, dscores)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), s.offsets.diff())
    scores = scores.detach()
    mean = torch.zeros(len(lengths), dtype=dtype).index_add(0, owner, scores * dscores)
    dlogits = scores * (dscores - mean[owner]) / width**0.5
    return dkeys / dlogits[:, None]


def _seen_behind(seed, rate, width, behind, lengths):
    """As :func:`seen_masks` with a second layer whose channels each add a part of the first one's."""
    s = scoring(lengths, depth=width, widths=(width,), activation="linear", norm=False)
    weight = torch.zeros(width, 4 * width).double()
    weight[:, width : 2 * width] = torch.eye(width)
    parts = torch.eye(behind).double().repeat_interleave(width // behind, 1)
    zeros = [torch.zeros(size).double() for size in (width, behind, 1)]
    parameters = [weight, zeros[0], parts, zeros[1], torch.ones(1, behind).double(), zeros[2]]
    s.mlp = ops.ScoreLayers(parameters, [], [ops.IDENTITY] * 2, [], rate, True)
    s.keys = torch.zeros_like(s.keys).requires_grad_()
    scores, _ = seeded(s, seed)
    dscores = draw(scores.numel(), generator=torch.Generator().manual_seed(1))
    (dkeys,) = torch.autograd.grad(scores, s.keys, dscores)
    return dkeys != 0


def check_kept_share(rate, dtype):
    """As many numbers are kept as the rate says, and scaled so that the mean stays."""
    found = seen_masks(SEED, rate, (24, None), [60] * 20, dtype).double()
    kept = found != 0
    error = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 5 * error
    torch.testing.assert_close(found, kept.double() / (1 - rate), rtol=1e-3, atol=0)
    assert abs(found.mean() - 1) < 5 * error / (1 - rate)


def check_masks(activation):
    """A mask depends on seed, layer, row and channel, not on the network, so another network shows it.

    Batch statistics would know of the padded rows, whose masks are not seen.
    """
    lengths, rate, width = [50, 3, 0, 20], 0.5, 100
    first = seen_masks(SEED, rate, (width, None), lengths)
    # Of the second layer's channel, any kept one of 25 channels of the first shows it.
    both = _seen_behind(SEED, rate, width, 4, lengths)
    second = both.view(-1, 4, 25).any(2).double() / (1 - rate)
    s = scoring(lengths, depth=6, widths=(9, 4), activation=activation, norm=False)
    s.mlp = s.mlp._replace(dropout=rate)
    found = outcome(lambda s: seeded(s, SEED), s)
    want = outcome(lambda s: plain(s, [first[:, :9], second]), s)
    assert_same(found, want, 1e-9, 1e-9)


def check_dropout_gradients(activation, norm):
    s = scoring([3, 0, 2, 1], 4, 3, (5, 4), activation, norm, dropout=0.4)
    for seed in (1, 2):

        def scores(*leaves, seed=seed):
            return _Seeded.apply(s, torch.tensor([seed]), *leaves)[0]

        assert torch.autograd.gradcheck(scores, tuple(s.leaves().values()))
