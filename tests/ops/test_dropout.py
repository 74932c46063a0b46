"""Dropout in the attention scores: its masks, seen one number at a time, and what they do."""

import os
from dataclasses import replace

import pytest
import torch
from comparison import assert_same
from interest_cases import CODES, DTYPES, NORMS, SOME, _Seeded, draw, native, outcome, plain, scoring, seeded

from dien_fast.ops import interest as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestDropout:
    SEED = torch.tensor([2**62 + 12345])

    @staticmethod
    def seen(seed, rate, widths, lengths, dtype=torch.float64):
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

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_kept_share_and_scale(self, rate, dtype):
        found = self.seen(self.SEED, rate, (24, None), [60] * 20, dtype).double()
        kept = found != 0
        error = (rate * (1 - rate) / kept.numel()) ** 0.5
        assert abs(kept.double().mean() - (1 - rate)) < 5 * error
        torch.testing.assert_close(found, kept.double() / (1 - rate), rtol=1e-3, atol=0)
        assert abs(found.mean() - 1) < 5 * error / (1 - rate)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_and_channels_have_masks_of_their_own(self, dtype):
        kept = (self.seen(self.SEED, 0.4, (24, None), [60] * 20, dtype) != 0).double()
        rows, channels = kept.shape
        centred = (kept - 0.6) / 0.24**0.5
        between = (centred.t() @ centred / rows).fill_diagonal_(0)
        assert between.abs().max() < 6 / rows**0.5
        for lag in range(1, 130):  # also a history's length, and its neighbour's
            rest = (centred[lag:] * centred[:-lag]).mean()
            assert abs(rest) < 6 / (channels * (rows - lag)) ** 0.5, lag

    @pytest.mark.parametrize("shift", [0, 1, 2, 8])
    def test_layers_have_masks_of_their_own(self, shift):
        """Of two layers with the same mask, or one moved by a few channels, 0.6 would be kept and not 0.36."""
        kept = self.seen(self.SEED, 0.4, (24, shift), [60] * 20) != 0
        error = (0.36 * 0.64 / kept.numel()) ** 0.5
        assert abs(kept.double().mean() - 0.36) < 5 * error

    @pytest.mark.parametrize("other", [1, 8, 2**32, 2**61, 0x9E3779B97F4A7C15 - 2**64])
    def test_seeds_have_masks_of_their_own(self, other):
        kept, others = (
            self.seen(seed, 0.5, (24, None), [60] * 20) != 0 for seed in (self.SEED, self.SEED + other)
        )
        error = 0.5 / kept.numel() ** 0.5
        for lag in (-2, -1, 0, 1, 2):
            assert abs((kept == others.roll(lag, 0)).double().mean() - 0.5) < 6 * error, lag

    def test_threads_have_the_same_masks(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two = self.seen(self.SEED, 0.4, (64, 1), [60] * 20)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(two, self.seen(self.SEED, 0.4, (64, 1), [60] * 20))

    @pytest.mark.parametrize("activation", ["linear", "relu", "prelu", "sigmoid"])
    def test_forward_and_backward_use_the_masks_that_are_seen(self, activation):
        """A mask depends on seed, layer, row and channel, not on the network, so another network shows it.

        Batch statistics would know of the padded rows, whose masks are not seen.
        """
        lengths, rate, width = [50, 3, 0, 20], 0.5, 100
        first = self.seen(self.SEED, rate, (width, None), lengths)
        # Of the second layer's channel, any kept one of 25 channels of the first shows it.
        both = self.seen_behind(self.SEED, rate, width, 4, lengths)
        second = both.view(-1, 4, 25).any(2).double() / (1 - rate)
        s = scoring(lengths, depth=6, widths=(9, 4), activation=activation, norm=False)
        s.mlp = s.mlp._replace(dropout=rate)
        found = outcome(lambda s: seeded(s, self.SEED), s)
        want = outcome(lambda s: plain(s, [first[:, :9], second]), s)
        assert_same(found, want, 1e-9, 1e-9)

    @staticmethod
    def seen_behind(seed, rate, width, behind, lengths):
        """As :meth:`seen` with a second layer whose channels each add a part of the first one's."""
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

    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_gradcheck(self, activation, norm):
        s = scoring([3, 0, 2, 1], 4, 3, (5, 4), activation, norm, dropout=0.4)
        for seed in (1, 2):

            def scores(*leaves, seed=seed):
                return _Seeded.apply(s, torch.tensor([seed]), *leaves)[0]

            assert torch.autograd.gradcheck(scores, tuple(s.leaves().values()))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_manual_seed(self, dtype):
        s = scoring(SOME, dropout=0.3, dtype=dtype)

        def run(seed):
            torch.manual_seed(seed)
            return outcome(native, s)

        first, again, other = run(7), run(7), run(8)
        assert_same(again, first, 0, 0)
        assert not torch.equal(other["scores"], first["scores"])
        assert not torch.equal(native(s)[0], native(s)[0])

    def test_none_in_evaluation(self):
        """Neither masks nor a number taken from torch's generator."""
        s = scoring(SOME, training=False, dropout=0.3)
        before = torch.get_rng_state()
        found, _ = native(s)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(found, native(replace(s, mlp=s.mlp._replace(dropout=0.0)))[0])

    def test_float32_gradients(self):
        """Against float64 with the same seed, whose masks are the same."""
        s = scoring([60, 7, 0, 33] * 8, 60, 18, (36, 20), "prelu", dropout=0.3)
        single = s.to(torch.float32)
        found, exact = (
            outcome(lambda s: seeded(s, self.SEED), given) for given in (single, single.to(torch.float64))
        )
        largest = max(value.abs().max() for value in exact.values() if value.numel())
        for name, value in exact.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-5 * largest, msg=name)
