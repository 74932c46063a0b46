"""Dropout in the attention scores: each number of its masks, and their effect."""

import os
from dataclasses import replace

import pytest
import torch
from comparison import assert_same
from dropout_masks import SEED, check_dropout_gradients, check_kept_share, check_masks, seen_masks
from interest_cases import CODES, DTYPES, NORMS, SOME, native, outcome, scoring, seeded

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


class TestDropout:
    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_kept_share_and_scale(self, rate, dtype):
        check_kept_share(rate, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_and_channels_have_masks_of_their_own(self, dtype):
        kept = (seen_masks(SEED, 0.4, (24, None), [60] * 20, dtype) != 0).double()
        rows, channels = kept.shape
        centred = (kept - 0.6) / 0.24**0.5
        between = (centred.t() @ centred / rows).fill_diagonal_(0)
        assert between.abs().max() < 6 / rows**0.5
        for lag in range(1, 130):  # the lengths of histories are among them
            rest = (centred[lag:] * centred[:-lag]).mean()
            assert abs(rest) < 6 / (channels * (rows - lag)) ** 0.5, lag

    @pytest.mark.parametrize("shift", [0, 1, 2, 8])
    def test_layers_have_masks_of_their_own(self, shift):
        """Independent masks of two layers keep 0.36; equal ones, or one that is the other shifted, keep 0.6."""
        kept = seen_masks(SEED, 0.4, (24, shift), [60] * 20) != 0
        error = (0.36 * 0.64 / kept.numel()) ** 0.5
        assert abs(kept.double().mean() - 0.36) < 5 * error

    @pytest.mark.parametrize("other", [1, 8, 2**32, 2**61, 0x9E3779B97F4A7C15 - 2**64])
    def test_seeds_have_masks_of_their_own(self, other):
        kept, others = (seen_masks(seed, 0.5, (24, None), [60] * 20) != 0 for seed in (SEED, SEED + other))
        error = 0.5 / kept.numel() ** 0.5
        for lag in (-2, -1, 0, 1, 2):
            assert abs((kept == others.roll(lag, 0)).double().mean() - 0.5) < 6 * error, lag

    def test_threads_have_the_same_masks(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two = seen_masks(SEED, 0.4, (64, 1), [60] * 20)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(two, seen_masks(SEED, 0.4, (64, 1), [60] * 20))

    @pytest.mark.parametrize("activation", ["linear", "relu", "prelu", "sigmoid"])
    def test_forward_and_backward_use_the_masks_that_are_seen(self, activation):
        check_masks(activation)

    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_gradcheck(self, activation, norm):
        check_dropout_gradients(activation, norm)

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
        """In evaluation there are no masks, and torch's generator is not advanced."""
        s = scoring(SOME, training=False, dropout=0.3)
        before = torch.get_rng_state()
        found, _ = native(s)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(found, native(replace(s, mlp=s.mlp._replace(dropout=0.0)))[0])

    def test_float32_gradients(self):
        """Compares with float64, whose masks are the same for the same seed."""
        s = scoring([60, 7, 0, 33] * 8, 60, 18, (36, 20), "prelu", dropout=0.3)
        single = s.to(torch.float32)
        found, exact = (outcome(lambda s: seeded(s, SEED), given) for given in (single, single.to(torch.float64)))
        largest = max(value.abs().max() for value in exact.values() if value.numel())
        for name, value in exact.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-5 * largest, msg=name)
