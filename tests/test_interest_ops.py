"""The interest layer's operators against plain PyTorch, on shapes that hurt, and what the dispatcher asks."""

import copy
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, assert_within_twice
from torch import nn

import dien_fast
from dien_fast import Attention, Ragged
from dien_fast import _interest_ops as ops
from dien_fast.nn.attention import native_layers

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
NATIVE = torch.ops.dien_fast
CODES = {"linear": ops.IDENTITY, "relu": ops.RELU, "prelu": ops.PRELU, "sigmoid": ops.SIGMOID, "dice": ops.DICE}
DTYPES = [torch.float32, torch.float64]
NORMS = pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def draw(*shape, scale=1.0, generator=None):
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def offsets_of(lengths):
    return F.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))


def differentiate(output, leaves):
    """The gradients of a fixed random weighting of an output, by name."""
    weight = draw(*output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    gradients = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    return {f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)}


# ---- Attention scores ----


@dataclass
class Scoring:
    """The arguments of one call of attention_scores."""

    query: torch.Tensor
    keys: torch.Tensor
    offsets: torch.Tensor
    max_length: int
    mlp: ops.ScoreLayers

    def leaves(self):
        parameters = {f"parameter {index}": value for index, value in enumerate(self.mlp.parameters)}
        return {"query": self.query, "keys": self.keys} | parameters

    def to(self, dtype):
        def move(value):
            return value.detach().to(dtype).requires_grad_(value.requires_grad)

        parameters, running = (list(map(move, values)) for values in (self.mlp.parameters, self.mlp.running))
        mlp = self.mlp._replace(parameters=parameters, running=running)
        return replace(self, query=move(self.query), keys=move(self.keys), mlp=mlp)

    def with_parameters(self, query, keys, *parameters):
        return replace(self, query=query, keys=keys, mlp=self.mlp._replace(parameters=list(parameters)))

    def raw(self, key_start=None, seed=None, save=True):
        """The arguments of the operator itself."""
        mlp = self.mlp
        rest = (self.max_length, mlp.layers, mlp.epsilons, mlp.dropout, mlp.training, save)
        return [self.query, self.keys, self.offsets, key_start, mlp.parameters, mlp.running, seed, *rest]


def scoring(
    lengths,
    max_length=None,
    depth=5,
    widths=(7, 4),
    activation="dice",
    norm=True,
    training=True,
    dropout=0.0,
    dtype=torch.float64,
):
    generator = torch.Generator().manual_seed(0)
    batch, rows = len(lengths), sum(lengths)

    def some(*shape, scale=1.0, shift=0.0):
        return shift + draw(*shape, scale=scale, generator=generator)

    parameters, running, epsilons = [], [], []

    def normalisation(width):
        parameters.extend([some(width, scale=0.3, shift=1.0), some(width, scale=0.3)])
        if not training:
            running.extend([some(width, scale=0.3), some(width).abs() + 0.5])

    inputs = 4 * depth
    for width in widths:
        parameters.extend([some(width, inputs, scale=max(inputs, 1) ** -0.5), some(width)])
        if norm:
            normalisation(width)
            epsilons.append(1e-5)
        if activation in ("prelu", "dice"):
            parameters.append(some(1 if activation == "prelu" else width, scale=0.3, shift=0.2))
        if activation == "dice":
            normalisation(width)
            epsilons.append(1e-8)
        inputs = width
    parameters.extend([some(1, inputs), some(1)])
    code = CODES[activation] + ops.NORMALISED * norm
    mlp = ops.ScoreLayers(parameters, running, [code] * len(widths), epsilons, dropout, training)
    longest = max(lengths, default=0)
    found = Scoring(some(batch, depth), some(rows, depth), offsets_of(lengths), max_length or longest, mlp).to(
        dtype
    )
    for leaf in found.leaves().values():
        leaf.requires_grad_()
    return found


def plain(s, masks=None):
    """Scores and batch statistics, from the batch padded with zeros; masks are dropout's, of ragged rows."""
    lengths, depth = s.offsets.diff(), s.keys.size(1)
    batch, steps = lengths.numel(), s.max_length
    valid = torch.arange(steps) < lengths[:, None]
    place = valid.nonzero(as_tuple=True)
    keys = s.keys.new_zeros(batch, steps, depth).index_put(place, s.keys)
    query = s.query[:, None].expand_as(keys)
    x = torch.cat([query, keys, query - keys, query * keys], 2).view(batch * steps, 4 * depth)
    given, running, epsilons = (iter(values) for values in (s.mlp.parameters, s.mlp.running, s.mlp.epsilons))
    statistics = []

    def normalise(x):
        gamma, beta = next(given), next(given)
        if s.mlp.training:
            statistics.extend([x.new_zeros(x.size(1)), x.new_zeros(x.size(1))])
            mean, variance = statistics[-2:]
        else:
            mean, variance = next(running), next(running)
        return F.batch_norm(x, mean, variance, gamma, beta, s.mlp.training, 1.0, next(epsilons))

    for layer, code in enumerate(s.mlp.layers):
        x = F.linear(x, next(given), next(given))
        if code >= ops.NORMALISED:
            x = normalise(x)
        activation = code % ops.NORMALISED
        if activation == ops.RELU:
            x = torch.relu(x)
        elif activation == ops.PRELU:
            x = F.prelu(x, next(given))
        elif activation == ops.SIGMOID:
            x = torch.sigmoid(x)
        elif activation == ops.DICE:
            slope, p = next(given), torch.sigmoid(normalise(x))
            x = p * x + (1 - p) * slope * x
        if masks is not None:
            x = x * x.new_ones(batch, steps, x.size(1)).index_put(place, masks[layer]).view_as(x)
    logits = F.linear(x, next(given), next(given)).view(batch, steps) / depth**0.5
    # Softmax of nothing but -inf would be NaN.
    logits = logits.masked_fill(~valid & (lengths[:, None] > 0), -torch.inf)
    scores = torch.softmax(logits, 1)[valid]
    return scores, torch.cat(statistics) if statistics else scores.new_zeros(0)


def native(s):
    return ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp)


class _Seeded(torch.autograd.Function):
    """The operators with a seed of the caller's."""

    @staticmethod
    def forward(ctx, s, seed, *leaves):
        scores, statistics, saved = NATIVE.attention_scores(*s.with_parameters(*leaves).raw(seed=seed))
        ctx.mark_non_differentiable(statistics)
        ctx.s, ctx.seed, ctx.count = s, seed, len(leaves)
        ctx.save_for_backward(scores, saved, *leaves)
        return scores, statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dscores, _):
        scores, saved, *leaves = ctx.saved_tensors
        query, keys, offsets, _, parameters, running, seed, *rest, _ = ctx.s.with_parameters(*leaves).raw(
            seed=ctx.seed
        )
        given = (dscores.contiguous(), scores, query, keys, offsets, parameters, running, seed, saved, *rest)
        dquery, dkeys, dparameters = NATIVE.attention_scores_backward(*given)
        return None, None, dquery, dkeys, *dparameters


def seeded(s, seed):
    return _Seeded.apply(s, seed, *s.leaves().values())


def outcome(compute, s):
    """Scores, statistics and every gradient, by name."""
    scores, statistics = compute(s)
    return {"scores": scores.detach(), "statistics": statistics} | differentiate(scores, s.leaves())


def check_scores(s):
    """With gradients, and without, where nothing is kept."""
    found = outcome(native, s)
    assert_same(found, outcome(plain, s), 1e-9, 1e-9)
    with torch.no_grad():
        scores, statistics = native(s)
    torch.testing.assert_close(scores, found["scores"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics, found["statistics"], rtol=1e-12, atol=1e-12)


SOME = [3, 0, 6, 1, 6, 2]
MANY = [length % 4 for length in range(101)]
# Lengths, max_length, depth, widths: one of everything, more rows than a tile of 48, more histories, many layers.
SHAPES = {
    "one step": ([1, 1], 1, 1, (1,)),
    "one history": ([4], 5, 3, (7,)),
    "all full": ([5, 5, 5], 5, 4, (6, 3)),
    "all empty": ([0, 0, 0], 4, 3, (5, 2)),
    "empty at the ends": ([0, 0, 3, 0, 6, 1, 0], 6, 3, (7, 4)),
    "a tile and its neighbours": ([47, 48, 49], 49, 18, (36,)),
    "long": ([145, 0, 97, 1], 145, 18, (36, 8)),
    "many histories": (MANY, 3, 3, (5, 1)),
    "wide": ([50, 3, 0, 20], 50, 36, (80, 40)),
    "wide behind narrow": ([9, 30], 30, 1, (1, 100, 7)),
    "more channels than a panel": ([20, 2], 20, 257, (100, 80, 1)),
    "eight layers": (SOME, 6, 18, (7, 1, 80, 18, 3, 36, 9, 5)),
    "mostly padding": (SOME, 500, 5, (7, 4)),
}
# Every kernel of an activation, with and without statistics.
KINDS = [("dice", True, True), ("prelu", False, True), ("relu", True, False), ("dice", False, False)]
KIND_NAMES = [
    f"{activation}-{'norm' if norm else 'no norm'}-{'train' if training else 'eval'}"
    for activation, norm, training in KINDS
]


def scoring_of(shape, activation, norm, training, dtype=torch.float64):
    lengths, max_length, depth, widths = SHAPES[shape]
    return scoring(lengths, max_length, depth, widths, activation, norm, training, dtype=dtype)


class TestAttentionScores:
    @pytest.mark.parametrize(("activation", "norm", "training"), KINDS, ids=KIND_NAMES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, shape, activation, norm, training):
        check_scores(scoring_of(shape, activation, norm, training))

    @MODES
    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_options(self, activation, norm, training):
        check_scores(scoring(SOME, 8, activation=activation, norm=norm, training=training))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_large_batches_without_gradients(self, threads, dtype):
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

    def test_layers_of_different_kinds(self):
        """An MLP's layers are alike; the operator takes them as they come."""
        s = scoring(SOME, 8, widths=(7, 4, 6), activation="sigmoid", norm=False)
        prelu, dice = (scoring(SOME, widths=(4,), activation=name) for name in ("prelu", "dice"))
        parameters = [*s.mlp.parameters[:4], *prelu.mlp.parameters[2:5], *s.mlp.parameters[4:6]]
        parameters += [value.detach().repeat(2)[:6].requires_grad_() for value in dice.mlp.parameters[4:7]]
        layers = [ops.SIGMOID, ops.PRELU + ops.NORMALISED, ops.DICE]
        epsilons = [1e-5, 1e-8]
        s.mlp = s.mlp._replace(parameters=[*parameters, *s.mlp.parameters[6:]], layers=layers, epsilons=epsilons)
        assert_same(outcome(native, s), outcome(plain, s), 1e-9, 1e-9)

    @MODES
    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_float32(self, activation, norm, training):
        lengths = [length % 61 for length in range(0, 800, 13)]
        s = scoring(lengths, 60, 18, (36, 20), activation, norm, training)
        single = s.to(torch.float32)
        exact = single.to(torch.float64)
        assert_within_twice(outcome(native, single), outcome(plain, single), outcome(plain, exact))

    @pytest.mark.parametrize("activation", ["dice", "prelu"])
    def test_float32_with_channels_far_from_zero(self, activation):
        """A variance that is a difference of squares would be noise."""
        s = scoring([30, 7, 0, 60, 11] * 6, 60, 18, (36, 20), activation)
        with torch.no_grad():
            s.mlp.parameters[1] += 3000.0
        single = s.to(torch.float32)
        exact = single.to(torch.float64)
        assert_within_twice(outcome(native, single), outcome(plain, single), outcome(plain, exact))

    def test_float32_mostly_padding(self):
        s = scoring([3, 0, 6, 1] * 5, 5000, 6, (12, 5))
        single = s.to(torch.float32)
        exact = single.to(torch.float64)
        assert_within_twice(outcome(native, single), outcome(plain, single), outcome(plain, exact))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_large_logits(self, dtype):
        """The largest of a history is taken off before the exponentials."""
        s = scoring(SOME, widths=(7,), activation="relu", norm=False, dtype=dtype)
        with torch.no_grad():
            s.mlp.parameters[-2].mul_(1e4)
            s.mlp.parameters[-1].fill_(-1e5)
        scores, _ = native(s)
        want, _ = plain(s.to(torch.float64))
        assert scores.isfinite().all()
        torch.testing.assert_close(
            scores.double(), want, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-30
        )

    @pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
    def test_at_the_kink(self, activation):
        """Numbers that are exactly zero have the gradient that torch gives them."""
        s = scoring(SOME, widths=(7, 4), activation=activation, norm=False, training=activation != "dice")
        with torch.no_grad():
            for value in (s.query, s.keys, s.mlp.parameters[1]):
                value.zero_()
        assert_same(outcome(native, s), outcome(plain, s), 1e-9, 1e-9)

    @MODES
    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_gradcheck(self, activation, norm, training):
        s = scoring([3, 0, 2, 1], 4, 3, (4, 3), activation, norm, training)

        def scores(*leaves):
            return native(s.with_parameters(*leaves))[0]

        assert torch.autograd.gradcheck(scores, tuple(s.leaves().values()))

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_no_history(self, training):
        s = scoring([], 4, activation="relu", norm=not training, training=training)
        scores, _ = native(s)
        gradients = torch.autograd.grad(scores.sum(), list(s.leaves().values()))
        assert scores.shape == (0,)
        assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in s.leaves().values()]

    def test_arguments_need_not_be_contiguous(self):
        s = scoring(SOME)

        def spread(value):
            wide = value.detach().repeat_interleave(2, -1)
            return wide[..., ::2].requires_grad_()

        apart = s.with_parameters(*map(spread, s.leaves().values()))
        assert not apart.query.is_contiguous()
        assert_same(outcome(native, apart), outcome(native, s), 0, 0)

    def test_only_what_wants_a_gradient_gets_one(self):
        s = scoring(SOME)
        whole = outcome(native, s)
        for parameter in s.mlp.parameters:
            parameter.requires_grad_(False)
        scores, statistics = native(s)
        assert not statistics.requires_grad
        found = differentiate(scores, {"query": s.query, "keys": s.keys})
        for name, value in found.items():
            assert torch.equal(value, whole[name]), name
        with torch.no_grad():
            assert not native(s)[0].requires_grad

    def test_second_derivative_is_refused(self):
        s = scoring(SOME)
        scores, _ = native(s)
        (gradient,) = torch.autograd.grad(scores.square().sum(), s.query, create_graph=True)
        with pytest.raises(NotImplementedError, match="attention_scores has no second derivative"):
            gradient.sum().backward()

    def test_second_derivative_of_the_operator_itself_is_refused(self):
        s = scoring(SOME)
        scores, _, _ = NATIVE.attention_scores(*s.raw())
        (gradient,) = torch.autograd.grad(scores.square().sum(), s.query, create_graph=True)
        with pytest.raises(NotImplementedError, match="attention_scores has no second derivative"):
            gradient.sum().backward()

    @MODES
    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_operator_itself(self, activation, norm, training):
        """Through the dispatcher, with its own autograd."""
        s = scoring(SOME, activation=activation, norm=norm, training=training)
        found = outcome(lambda s: NATIVE.attention_scores(*s.raw())[:2], s)
        assert_same(found, outcome(native, s), 0, 0)

    def test_forward_mode_is_refused(self):
        s = scoring(SOME)
        with torch.autograd.forward_ad.dual_level():
            s.query = torch.autograd.forward_ad.make_dual(s.query.detach(), torch.ones(6, 5).double())
            with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
                native(s)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", CODES)
    @pytest.mark.parametrize("where", ["query", "keys"])
    def test_a_nan_stays_in_its_history_in_evaluation(self, where, activation, dtype):
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

    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf, 1e30])
    def test_numbers_beyond_measure_stay_in_their_history_in_evaluation(self, bad):
        s = scoring([40, 0, 30, 60, 1], 60, 6, (9, 5), "relu", training=False, dtype=torch.float32)
        clean, _ = native(s)
        with torch.no_grad():
            s.keys[50] = bad
        found, _ = native(s)
        others = torch.repeat_interleave(torch.arange(5), s.offsets.diff()) != 2
        assert torch.equal(found[others], clean[others])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_same_bits_from_the_same_threads(self, dtype):
        s = scoring([60, 3, 0, 41] * 12, 60, 18, (36, 20), dropout=0.3, dtype=dtype)

        def run():
            torch.manual_seed(3)
            return outcome(native, s)

        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two, again = run(), run()
            torch.set_num_threads(1)
            one = run()
        finally:
            torch.set_num_threads(before)
        assert_same(again, two, 0, 0)
        assert_same(run(), one, 0, 0)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        assert_same(two, one, tolerance, tolerance)

    def test_one_thread_gives_the_bits_of_two_in_evaluation(self):
        """Rows are computed by themselves, so only sums over all of them know of threads."""
        s = scoring([60, 3, 0, 41] * 12, 60, 18, (36, 20), training=False, dtype=torch.float32)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two = outcome(native, s)
        finally:
            torch.set_num_threads(before)
        one = outcome(native, s)
        for name in ("scores", "gradient of query", "gradient of keys"):
            assert torch.equal(one[name], two[name]), name


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


class TestSharedKeys:
    LENGTHS = (4, 0, 60, 4, 3, 1)
    STARTS = torch.tensor([10, 999, 0, 10, 67, 5])

    def shared(self, activation="dice", dtype=torch.float64, depth=6):
        s = scoring(list(self.LENGTHS), 64, depth, (9, 5), activation, training=False, dtype=dtype)
        s.keys = draw(70, depth).to(dtype)
        rows = [torch.arange(length) + start for length, start in zip(self.LENGTHS, self.STARTS, strict=True)]
        return s, replace(s, keys=s.keys[torch.cat(rows)])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", CODES)
    def test_equals_repeated_keys(self, activation, dtype):
        s, repeated = self.shared(activation, dtype)
        want, _ = native(repeated)
        with torch.no_grad():
            scores, statistics = ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp, self.STARTS)
            assert torch.equal(scores, want)
            assert statistics.shape == (0,)
            raw, _, saved = NATIVE.attention_scores(*s.raw(self.STARTS, save=False))
        assert torch.equal(raw, want)
        assert saved.shape == (0,)

    def test_every_candidate_on_all_keys(self):
        s = scoring([70] * 7, depth=6, widths=(9,), training=False)
        s.keys = draw(70, 6)
        starts = torch.zeros(7, dtype=torch.int64)
        found, _ = ops.attention_scores(s.query, s.keys, s.offsets, 70, s.mlp, starts)
        assert torch.equal(found, native(replace(s, keys=s.keys.repeat(7, 1)))[0].detach())

    def test_no_gradient(self):
        s, _ = self.shared()
        assert not ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp, self.STARTS)[
            0
        ].requires_grad
        scores, _, _ = NATIVE.attention_scores(*s.raw(self.STARTS, save=False))
        with pytest.raises(NotImplementedError, match="no gradient where histories share keys"):
            scores.sum().backward()

    @pytest.mark.parametrize("activation", ["dice", "tanh"])
    def test_shared_scores_of_the_module(self, activation):
        """The native operator, and repeated rows where it does not compute the MLP."""
        attention = Attention(6, [9, 5], activation=activation, return_scores=True).double().eval()
        assert (native_layers(attention) is None) == (activation == "tanh")
        keys = Ragged(draw(9, 6), torch.tensor([0, 4, 4, 9]), 6)
        owner = torch.tensor([0, 0, 1, 2, 2, 2])
        query = draw(6, 6)
        found = attention.shared_scores(query, keys, owner)
        repeated = keys.take(owner)
        assert torch.equal(found.offsets, repeated.offsets)
        want = attention.ragged_scores(query, repeated)
        torch.testing.assert_close(found.values, want, rtol=1e-12, atol=1e-12)


# ---- Auxiliary loss ----


@dataclass
class Pairs:
    """The arguments of one call of auxiliary_loss."""

    rows: list  # states, events, negatives
    offsets: torch.Tensor
    parameters: list

    def leaves(self):
        names = ["states", "events", "negatives", *[f"parameter {i}" for i in range(len(self.parameters))]]
        return dict(zip(names, [*self.rows, *self.parameters], strict=True))

    def to(self, dtype):
        rows, parameters = (
            [value.detach().to(dtype).requires_grad_() for value in values]
            for values in (self.rows, self.parameters)
        )
        return Pairs(rows, self.offsets, parameters)


def pairs(lengths, depth=5, widths=(7, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = [draw(sum(lengths), depth, generator=generator) for _ in range(3)]
    parameters, inputs = [], 2 * depth
    for width in (*widths, 1):
        parameters.append(draw(width, inputs, scale=2 * inputs**-0.5, generator=generator))
        parameters.append(draw(width, generator=generator))
        inputs = width
    return Pairs(rows, offsets_of(lengths), parameters).to(dtype)


def plain_loss(p):
    states, events, negatives = p.rows
    before = torch.ones(states.size(0), dtype=torch.bool)
    before[p.offsets[1:][p.offsets.diff() > 0] - 1] = False
    step = before.nonzero().squeeze(1)

    def logits(rows):
        x = torch.cat([states[step], rows[step + 1]], 1)
        for weight, bias in zip(p.parameters[:-2:2], p.parameters[1:-2:2], strict=True):
            x = torch.sigmoid(F.linear(x, weight, bias))
        return F.linear(x, *p.parameters[-2:])

    losses = F.softplus(-logits(events)).sum() + F.softplus(logits(negatives)).sum()
    return losses / max(2 * step.numel(), 1)


def native_loss(p):
    return ops.auxiliary_loss(*p.rows, p.offsets, p.parameters)


def loss_outcome(compute, p):
    loss = compute(p)
    return {"loss": loss.detach()} | differentiate(3 * loss, p.leaves())


LOSS_SHAPES = {
    "one pair": ([2], 1, (1,)),
    "one step each": ([1, 1, 1], 3, (7, 4)),
    "all empty": ([0, 0], 3, (7, 4)),
    "no history": ([], 3, (7,)),
    "empty at the ends": ([0, 0, 3, 0, 6, 1, 0], 3, (7, 4)),
    "a tile and its neighbours": ([48, 49, 50], 18, (36,)),
    "tiles that end in a history": ([30, 30, 1, 38, 2], 18, (36, 8)),
    "long": ([200, 0, 97, 1], 18, (100, 50)),
    "many histories": (MANY, 3, (5, 1)),
    "wide": ([60, 3, 0, 20], 36, (80, 40)),
    "more channels than a panel": ([20, 2], 257, (100, 7, 80)),
    "eight layers": (SOME, 18, (7, 1, 80, 18, 3, 36, 9, 5)),
}


class TestAuxiliaryLoss:
    @pytest.mark.parametrize("shape", LOSS_SHAPES)
    def test_shapes(self, shape):
        p = pairs(*LOSS_SHAPES[shape])
        found = loss_outcome(native_loss, p)
        assert_same(found, loss_outcome(plain_loss, p), 1e-9, 1e-9)
        with torch.no_grad():
            assert torch.equal(native_loss(p), found["loss"])

    @pytest.mark.parametrize(("depth", "widths"), [(18, (36, 20)), (36, (100, 50)), (3, (7,))])
    def test_float32(self, depth, widths):
        single = pairs([length % 61 for length in range(0, 800, 13)], depth, widths, torch.float32)
        exact = single.to(torch.float64)
        assert_within_twice(
            loss_outcome(native_loss, single), loss_outcome(plain_loss, single), loss_outcome(plain_loss, exact)
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [30.0, 1e4])
    def test_certain_and_wrong(self, scale, dtype):
        """Large logits of either sign; nothing overflows, and log(1 + e^x) is x."""
        p = pairs([60, 3, 0, 20], dtype=dtype)
        with torch.no_grad():
            p.parameters[-2].mul_(scale)
        found, want = loss_outcome(native_loss, p), loss_outcome(plain_loss, p.to(torch.float64))
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        largest = max(value.abs().max() for value in want.values())
        for name, value in want.items():
            torch.testing.assert_close(
                found[name].double(), value, rtol=tolerance, atol=tolerance * largest, msg=name
            )

    def test_gradcheck(self):
        p = pairs([3, 0, 2, 1], 3, (4, 3))

        def loss(*leaves):
            return native_loss(Pairs(list(leaves[:3]), p.offsets, list(leaves[3:])))

        assert torch.autograd.gradcheck(loss, tuple(p.leaves().values()))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_no_pair_has_is_not_looked_at(self, dtype):
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

    def test_a_nan_shows(self):
        for index in range(3):
            p = pairs([3, 0, 60, 1, 2])
            with torch.no_grad():
                p.rows[index][20, 1] = torch.nan
            assert native_loss(p).isnan()

    @pytest.mark.parametrize("lengths", [[1, 0, 1], [0, 0], []])
    def test_nothing_to_tell_apart(self, lengths):
        """0, and still attached to the graph."""
        p = pairs(lengths)
        loss = native_loss(p)
        assert loss == 0
        assert loss.requires_grad
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, list(p.leaves().values())))

    def test_second_derivative_is_refused(self):
        p = pairs(SOME)
        loss = native_loss(p)
        with pytest.raises(NotImplementedError, match="auxiliary_loss has no second derivative"):
            torch.autograd.grad(loss, p.rows[0], create_graph=True)[0].sum().backward()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_threads(self, dtype):
        p = pairs([60, 3, 0, 41] * 12, 18, (100, 50), dtype)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            two, again = loss_outcome(native_loss, p), loss_outcome(native_loss, p)
        finally:
            torch.set_num_threads(before)
        one = loss_outcome(native_loss, p)
        assert_same(again, two, 0, 0)
        assert_same(loss_outcome(native_loss, p), one, 0, 0)
        for name in ("gradient of states", "gradient of events", "gradient of negatives"):
            # Tiles may cut the histories of two threads elsewhere, which moves no row's own numbers.
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-9, msg=name)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert_same(two, one, tolerance, tolerance)


# ---- Rows ----

ROW_LENGTHS = {
    "some": ([3, 0, 6, 1], 6),
    "wider": ([3, 0, 6, 1], 9),
    "all empty": ([0, 0], 3),
    "no steps": ([0, 0], 0),
    "no history": ([], 3),
    "all full": ([4, 4], 4),
    "many": (MANY, 3),
}


def plain_padded(values, offsets, steps):
    place = (torch.arange(steps) < offsets.diff()[:, None]).nonzero(as_tuple=True)
    return values.new_zeros(offsets.numel() - 1, steps, *values.shape[1:]).index_put(place, values)


def plain_rows(padded, offsets):
    return padded[torch.arange(padded.size(1)) < offsets.diff()[:, None]]


def plain_sum(values, weights, offsets):
    owner = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    out = values.new_zeros(offsets.numel() - 1, values.size(1))
    return out.index_add(0, owner, values * weights[:, None])


class TestRows:
    DTYPES = [
        torch.bool,
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]

    @pytest.mark.parametrize("shape", ROW_LENGTHS)
    @pytest.mark.parametrize("tail", [(), (1,), (18,), (2, 3), (257,), (0,)], ids=str)
    def test_there_and_back(self, tail, shape):
        lengths, steps = ROW_LENGTHS[shape]
        offsets = offsets_of(lengths)
        values = draw(sum(lengths), *tail)
        padded = ops.padded_from_rows(values, offsets, steps)
        assert torch.equal(padded, plain_padded(values, offsets, steps))
        assert torch.equal(ops.rows_from_padded(padded, offsets), values)
        filled = draw(len(lengths), steps, *tail)
        assert torch.equal(ops.rows_from_padded(filled, offsets), plain_rows(filled, offsets))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, dtype):
        offsets = offsets_of(SOME)
        values = torch.randint(0, 100, (sum(SOME), 3)).to(dtype)
        padded = ops.padded_from_rows(values, offsets, 7)
        assert padded.dtype == dtype
        assert torch.equal(padded, plain_padded(values, offsets, 7))
        assert torch.equal(ops.rows_from_padded(padded, offsets), values)

    def test_not_contiguous(self):
        offsets = offsets_of(SOME)
        values, padded = draw(3, sum(SOME)).t(), draw(3, 6, 6).permute(1, 2, 0)
        assert torch.equal(ops.padded_from_rows(values, offsets, 6), plain_padded(values, offsets, 6))
        assert torch.equal(ops.rows_from_padded(padded, offsets), plain_rows(padded, offsets))

    def test_threads(self):
        lengths = [60, 3, 0, 41] * 100
        offsets, padded = offsets_of(lengths), draw(400, 60, 18)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            rows = ops.rows_from_padded(padded, offsets)
            assert torch.equal(rows, plain_rows(padded, offsets))
            assert torch.equal(ops.padded_from_rows(rows, offsets, 61), plain_padded(rows, offsets, 61))
        finally:
            torch.set_num_threads(before)

    def test_derivatives(self):
        """First and second."""
        offsets = offsets_of([2, 0, 3])
        padded, values = draw(3, 4, 2).requires_grad_(), draw(5, 2).requires_grad_()
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda padded: ops.rows_from_padded(padded, offsets), padded)
            assert check(lambda values: ops.padded_from_rows(values, offsets, 4), values)
            assert check(lambda padded: NATIVE.rows_from_padded(padded, offsets), padded)
            assert check(lambda values: NATIVE.padded_from_rows(values, offsets, 4), values)

    @pytest.mark.parametrize("shape", ROW_LENGTHS)
    @pytest.mark.parametrize("depth", [1, 18, 257])
    def test_weighted_sum(self, depth, shape):
        lengths, _ = ROW_LENGTHS[shape]
        offsets, values, weights = offsets_of(lengths), draw(sum(lengths), depth), draw(sum(lengths))
        leaves = {"values": values.requires_grad_(), "weights": weights.requires_grad_()}
        found, want = (compute(values, weights, offsets) for compute in (ops.weighted_sum, plain_sum))
        assert found.shape == (len(lengths), depth)
        assert_same(
            {"sum": found.detach()} | differentiate(found, leaves),
            {"sum": want.detach()} | differentiate(want, leaves),
            1e-9,
            1e-9,
        )

    def test_weighted_sum_in_float32(self):
        lengths = [length % 61 for length in range(0, 800, 13)]
        offsets = offsets_of(lengths)
        values, weights = draw(sum(lengths), 18).float(), draw(sum(lengths)).float()

        def run(compute, dtype):
            leaves = {
                "values": values.to(dtype).detach().requires_grad_(),
                "weights": weights.to(dtype).detach().requires_grad_(),
            }
            found = compute(*leaves.values(), offsets)
            return {"sum": found.detach()} | differentiate(found, leaves)

        single = [run(compute, torch.float32) for compute in (ops.weighted_sum, plain_sum)]
        assert_within_twice(*single, run(plain_sum, torch.float64))

    def test_weighted_sum_gradcheck(self):
        offsets, leaves = offsets_of([2, 0, 3]), (draw(5, 3).requires_grad_(), draw(5).requires_grad_())
        assert torch.autograd.gradcheck(lambda *leaves: ops.weighted_sum(*leaves, offsets), leaves)
        assert torch.autograd.gradcheck(lambda *leaves: NATIVE.weighted_sum(*leaves, offsets), leaves)

    def test_weighted_sum_has_no_second_derivative(self):
        offsets, values, weights = offsets_of([2, 0, 3]), draw(5, 3), draw(5).requires_grad_()
        total = ops.weighted_sum(values, weights, offsets).square().sum()
        (gradient,) = torch.autograd.grad(total, weights, create_graph=True)
        with pytest.raises(NotImplementedError, match="weighted_sum has no second derivative"):
            gradient.sum().backward()

    def test_a_nan_stays_in_its_sum(self):
        offsets, values, weights = offsets_of([2, 0, 3]), draw(5, 3), draw(5)
        clean = ops.weighted_sum(values, weights, offsets)
        values[3] = torch.nan
        found = ops.weighted_sum(values, weights, offsets)
        assert torch.equal(found[:2], clean[:2])
        assert found[2].isnan().all()
        assert not found[1].any()


# ---- What the dispatcher asks ----


def leaf(*shape):
    return draw(*shape).float().requires_grad_()


class TestOpcheck:
    """Sizes are such that no line of what is kept for backward ends in numbers that nobody writes."""

    @pytest.mark.parametrize("activation", ["dice", "prelu"])
    def test_attention_scores(self, activation):
        s = scoring([3, 0, 6, 1], 6, activation=activation, dropout=0.2, dtype=torch.float32)
        s = replace(s, keys=leaf(16, 5), offsets=offsets_of([7, 0, 8, 1]), max_length=8)
        s = replace(s, query=leaf(4, 5))
        assert (16 + 4) % 4 == 0
        torch.library.opcheck(NATIVE.attention_scores.default, s.raw(seed=torch.tensor([5])))

    def test_attention_scores_in_evaluation(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        with torch.no_grad():
            torch.library.opcheck(NATIVE.attention_scores.default, s.raw(save=False))
        # The rest of what is kept is not written in evaluation, so that its numbers cannot be compared.
        torch.library.opcheck(
            NATIVE.attention_scores.default,
            s.raw(),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )

    def test_attention_scores_with_shared_keys(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32).to(torch.float32)
        s = s.with_parameters(*[value.detach() for value in s.leaves().values()])
        torch.library.opcheck(NATIVE.attention_scores.default, s.raw(torch.tensor([2, 0, 4, 9]), save=False))

    @MODES
    def test_attention_scores_backward(self, training):
        s = scoring([3, 0, 6, 1], 6, training=training, dtype=torch.float32)
        s = s.with_parameters(*[value.detach() for value in s.leaves().values()])
        scores, _, saved = NATIVE.attention_scores(*s.raw())
        query, keys, offsets, _, parameters, running, seed, *rest, _ = s.raw()
        torch.library.opcheck(
            NATIVE.attention_scores_backward.default,
            (torch.randn(10), scores, query, keys, offsets, parameters, running, seed, saved, *rest),
        )

    @pytest.mark.parametrize("save", [True, False])
    def test_auxiliary_loss(self, save):
        p = pairs([3, 0, 6, 1], dtype=torch.float32)
        arguments = [*p.rows, p.offsets, p.parameters, save]
        if save:
            torch.library.opcheck(NATIVE.auxiliary_loss.default, arguments)
        else:
            with torch.no_grad():
                torch.library.opcheck(NATIVE.auxiliary_loss.default, arguments)

    def test_rows(self):
        offsets = offsets_of([3, 0, 6, 1])
        torch.library.opcheck(NATIVE.rows_from_padded.default, (leaf(4, 6, 3), offsets))
        torch.library.opcheck(NATIVE.padded_from_rows.default, (leaf(10, 3), offsets, 7))
        torch.library.opcheck(NATIVE.weighted_sum.default, (leaf(10, 3), leaf(10), offsets))
        values = (torch.randn(4, 3), torch.randn(10, 3), torch.randn(10))
        torch.library.opcheck(NATIVE.weighted_sum_backward.default, (*values, offsets))


def changed(arguments, changes):
    """Arguments with some replaced by others, or by functions of them."""
    arguments = list(arguments)
    for position, value in changes.items():
        arguments[position] = value(arguments[position]) if callable(value) else value
    return arguments


def without(index):
    return lambda values: [value for place, value in enumerate(values) if place != index]


def with_one(index, change):
    return lambda values: [change(value) if place == index else value for place, value in enumerate(values)]


def twice(values):
    return [*values, values[-1]]


QUERY, KEYS, OFFSETS, STARTS, PARAMETERS, RUNNING, SEED, MAX_LENGTH, LAYERS, EPSILONS, DROPOUT, TRAINING = range(
    12
)
WRONG_SCORES = {
    "offsets beyond the keys": ({OFFSETS: offsets_of([3, 0, 6, 2])}, "offsets must rise from 0 to 10"),
    "offsets below the keys": ({OFFSETS: offsets_of([3, 0, 6, 0])}, "offsets must rise from 0 to 10"),
    "falling offsets": ({OFFSETS: torch.tensor([0, 3, 2, 9, 10])}, "offsets must rise from 0 to 10"),
    "negative offsets": ({OFFSETS: torch.tensor([-1, 3, 3, 9, 10])}, "offsets must rise from 0 to 10"),
    "huge offsets": ({OFFSETS: torch.tensor([0, 3, 2**63 - 1, 9, 10])}, "offsets must rise from 0 to 10"),
    "no offsets": (
        {OFFSETS: torch.empty(0, dtype=torch.int64)},
        r"offsets must have shape \(B \+ 1,\), got \(0,\)",
    ),
    "offsets of int32": ({OFFSETS: offsets_of([3, 0, 6, 1]).int()}, "offsets must be contiguous int64"),
    "offsets of float64": ({OFFSETS: offsets_of([3, 0, 6, 1]).double()}, "offsets must be contiguous int64"),
    "offsets apart": (
        {OFFSETS: offsets_of([3, 0, 6, 1]).repeat_interleave(2)[::2]},
        "offsets must be contiguous int64",
    ),
    "offsets in a matrix": ({OFFSETS: torch.zeros(5, 1).long()}, r"offsets must have shape \(\*,\), got \(5, 1\)"),
    "fewer queries": ({QUERY: torch.zeros(3, 5)}, r"query must have shape \(4, 5\), got \(3, 5\)"),
    "query without channels": ({QUERY: torch.zeros(4)}, r"query must have shape \(\*, \*\), got \(4,\)"),
    "wider keys": ({KEYS: torch.zeros(10, 6)}, r"keys must have shape \(\*, 5\), got \(10, 6\)"),
    "keys of float64": ({KEYS: torch.zeros(10, 5).double()}, "keys must have the dtype of "),
    "keys apart": ({KEYS: torch.zeros(5, 10).t()}, "keys must be contiguous"),
    "query of float16": ({QUERY: torch.zeros(4, 5).half()}, "query must have dtype float32 or float64"),
    "query of int64": ({QUERY: torch.zeros(4, 5).long()}, "query must have dtype float32 or float64"),
    "narrow max_length": ({MAX_LENGTH: 5}, "max_length must be at least the longest length 6, got 5"),
    "negative max_length": ({MAX_LENGTH: -1}, "max_length must be at least the longest length 6, got -1"),
    "no layers": ({LAYERS: []}, "layers must hold 1 to 8 layers, got 0"),
    "nine layers": ({LAYERS: [1] * 9}, "layers must hold 1 to 8 layers, got 9"),
    "unknown activation": ({LAYERS: [12, 5]}, "layers must hold codes of activations, got 5"),
    "unknown normalised activation": ({LAYERS: [13, 12]}, "layers must hold codes of activations, got 13"),
    "negative activation": ({LAYERS: [-1, 12]}, "layers must hold codes of activations, got -1"),
    "large activation": ({LAYERS: [16, 12]}, "layers must hold codes of activations, got 16"),
    "no parameters": ({PARAMETERS: []}, "parameters must "),
    "fewer parameters": ({PARAMETERS: without(15)}, "parameters must be those of the layers, got 15"),
    "more parameters": (
        {PARAMETERS: twice},
        "parameters, running and epsilons must be those of the layers, got 17",
    ),
    "fewer layers": ({LAYERS: [12]}, "parameters must have shape "),
    "narrow weight": (
        {PARAMETERS: with_one(0, lambda weight: weight[:, :15].contiguous())},
        r"parameters must have shape \(7, 20\), got \(7, 15\)",
    ),
    "weight without columns": (
        {PARAMETERS: with_one(0, lambda weight: weight[:, 0])},
        "parameters must hold a matrix",
    ),
    "long bias": (
        {PARAMETERS: with_one(1, lambda bias: bias.repeat(2))},
        r"parameters must have shape \(7,\), got \(14,\)",
    ),
    "parameter of float64": ({PARAMETERS: with_one(4, torch.Tensor.double)}, "parameters must have the dtype of "),
    "parameter apart": (
        {PARAMETERS: with_one(7, lambda weight: weight.t().contiguous().t())},
        "parameters must be contiguous",
    ),
    "fewer epsilons": ({EPSILONS: without(3)}, "epsilons must hold one number a normalisation, got 3"),
    "more epsilons": ({EPSILONS: twice}, "parameters, running and epsilons must be those of the layers"),
    "running in training": (
        {RUNNING: [torch.zeros(7)]},
        "parameters, running and epsilons must be those of the layers",
    ),
    "no running in evaluation": ({TRAINING: False}, "running must hold two tensors a normalisation, got 0"),
    "dropout of 1": ({DROPOUT: 1.0}, r"dropout must lie in \[0, 1\), got 1"),
    "negative dropout": ({DROPOUT: -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
    "dropout that is no number": ({DROPOUT: float("nan")}, r"dropout must lie in \[0, 1\), got"),
    "no seed": ({DROPOUT: 0.5, SEED: None}, "seed must be given with dropout"),
    "two seeds": ({DROPOUT: 0.5, SEED: torch.zeros(2).long()}, r"seed must have shape \(1,\), got \(2,\)"),
    "seed without a dimension": ({DROPOUT: 0.5, SEED: torch.tensor(3)}, r"seed must have shape \(1,\), got \(\)"),
    "seed of float32": ({DROPOUT: 0.5, SEED: torch.zeros(1)}, "seed must be int64"),
    "shared keys in training": ({STARTS: torch.zeros(4).long()}, "key_start must come with evaluation"),
}
WRONG_STARTS = {
    "behind": (torch.tensor([0, 0, 5, 9]), "key_start must leave history 2 inside the 10 keys, got 5 for 6 steps"),
    "in front": (
        torch.tensor([0, 0, -1, 9]),
        "key_start must leave history 2 inside the 10 keys, got -1 for 6 steps",
    ),
    "far": (
        torch.full((4,), 2**63 - 1),
        f"key_start must leave history 0 inside the 10 keys, got {2**63 - 1} for 3",
    ),
    "fewer": (torch.zeros(3).long(), r"key_start must have shape \(4,\), got \(3,\)"),
    "int32": (torch.zeros(4).int(), "key_start must be contiguous int64"),
    "apart": (torch.zeros(8).long()[::2], "key_start must be contiguous int64"),
}


class TestWrongArguments:
    """Checked before memory is touched, in a sentence."""

    @pytest.mark.parametrize("case", WRONG_SCORES)
    def test_attention_scores(self, case):
        changes, message = WRONG_SCORES[case]
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.attention_scores(*changed(scoring([3, 0, 6, 1], 6, dtype=torch.float32).raw(), changes))

    @pytest.mark.parametrize("case", WRONG_STARTS)
    def test_key_start(self, case):
        starts, message = WRONG_STARTS[case]
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.attention_scores(*s.raw(starts, save=False))

    def test_key_start_with_more_steps_than_keys(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        s.offsets, s.max_length = torch.tensor([0, 3, 3, 2**62, 2**62 + 1]), 2**62
        with (
            torch.no_grad(),
            pytest.raises(RuntimeError, match="key_start must leave history 2 inside the 10 keys"),
        ):
            NATIVE.attention_scores(*s.raw(torch.zeros(4).long(), save=False))

    def test_running_of_another_size(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        for running, message in (
            (with_one(1, lambda value: value[1:]), r"running must have shape \(7,\), got \(6,\)"),
            (with_one(1, torch.Tensor.double), "running must have the dtype of "),
            (without(7), "running must hold two tensors a normalisation, got 7"),
            (twice, "parameters, running and epsilons must be those of the layers"),
        ):
            with torch.no_grad(), pytest.raises(RuntimeError, match=message):
                NATIVE.attention_scores(*changed(s.raw(), {RUNNING: running}))

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, torch.zeros(9), r"dscores must have shape \(10,\), got \(9,\)"),
            (0, torch.zeros(20)[::2], "dscores must be contiguous"),
            (0, torch.zeros(10).double(), "dscores must have the dtype of "),
            (1, torch.zeros(11), r"scores must have shape \(10,\), got \(11,\)"),
            (8, torch.zeros(0), r"saved must have shape \(\d+,\), got \(0,\)"),
            (8, torch.zeros(0).double(), "saved must have "),
            (7, torch.zeros(2).long(), r"seed must have shape \(1,\), got \(2,\)"),
            (7, None, "seed must be given with dropout"),
            (9, 2, "max_length must be at least the longest length 6, got 2"),
            (4, offsets_of([3, 0, 6, 0]), "offsets must rise from 0 to 10"),
        ],
    )
    def test_attention_scores_backward(self, position, value, message):
        s = scoring([3, 0, 6, 1], 6, dropout=0.5, dtype=torch.float32)
        seed = torch.tensor([3])
        with torch.no_grad():
            scores, _, saved = NATIVE.attention_scores(*s.raw(seed=seed))
            query, keys, offsets, _, parameters, running, _, *rest, _ = s.raw()
            arguments = [torch.zeros(10), scores, query, keys, offsets, parameters, running, seed, saved, *rest]
            NATIVE.attention_scores_backward(*arguments)
            arguments[position] = value
            with pytest.raises(RuntimeError, match=message):
                NATIVE.attention_scores_backward(*arguments)

    def test_backward_of_what_was_not_kept(self):
        s = scoring([3, 0, 6, 1], 6, dtype=torch.float32)
        scores, _, _ = NATIVE.attention_scores(*s.raw(save=False))
        with pytest.raises(RuntimeError, match=r"saved must have shape \(\d+,\), got \(0,\)"):
            scores.sum().backward()

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, torch.zeros(10), r"states must have shape \(\*, \*\), got \(10,\)"),
            (0, torch.zeros(10, 5).half(), "states must have dtype float32 or float64"),
            (0, torch.zeros(5, 10).t(), "states must be contiguous"),
            (1, torch.zeros(9, 5), r"events must have shape \(10, 5\), got \(9, 5\)"),
            (1, torch.zeros(10, 4), r"events must have shape \(10, 5\), got \(10, 4\)"),
            (2, torch.zeros(10, 5).double(), "negatives must have the dtype of "),
            (2, torch.zeros(11, 5), r"negatives must have shape \(10, 5\), got \(11, 5\)"),
            (3, offsets_of([3, 0, 6, 2]), "offsets must rise from 0 to 10"),
            (3, torch.tensor([0, 3, 2, 9, 10]), "offsets must rise from 0 to 10"),
            (3, offsets_of([3, 0, 6, 1]).int(), "offsets must be contiguous int64"),
            (3, torch.empty(0, dtype=torch.int64), r"offsets must have shape \(B \+ 1,\), got \(0,\)"),
            (4, [], "parameters must hold weight and bias of 2 to 9 layers, got 0 tensors"),
            (4, without(0), "parameters must hold weight and bias of 2 to 9 layers, got 5 tensors"),
            (4, lambda values: values[4:], "parameters must hold weight and bias of 2 to 9 layers, got 2 tensors"),
            (
                4,
                lambda values: values * 4,
                "parameters must hold weight and bias of 2 to 9 layers, got 24 tensors",
            ),
            (
                4,
                with_one(0, lambda w: w[:, :9].contiguous()),
                r"parameters must have shape \(\*, 10\), got \(7, 9\)",
            ),
            (4, with_one(0, lambda w: w[:0]), "parameters must have at least one output a layer"),
            (4, with_one(1, lambda b: b[:6]), r"parameters must have shape \(7,\), got \(6,\)"),
            (4, with_one(2, torch.Tensor.double), "parameters must have the dtype of "),
            (4, with_one(2, lambda w: w.t().contiguous().t()), "parameters must be contiguous"),
            (4, with_one(4, lambda w: w.repeat(2, 1)), r"parameters must have shape \(1, 4\), got \(2, 4\)"),
        ],
    )
    def test_auxiliary_loss(self, position, value, message):
        p = pairs([3, 0, 6, 1], dtype=torch.float32)
        arguments = changed([*p.rows, p.offsets, p.parameters, True], {position: value})
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.auxiliary_loss(*arguments)

    @pytest.mark.parametrize(
        ("operator", "arguments", "message"),
        [
            (
                "rows_from_padded",
                (torch.zeros(3), offsets_of([1, 2, 0])),
                r"padded must have shape \(B, T, \.\.\.\)",
            ),
            ("rows_from_padded", (torch.zeros(4, 3).t(), offsets_of([1, 2, 0])), "padded must be contiguous"),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), offsets_of([1, 2])),
                r"offsets must have shape \(4,\), got \(3,\)",
            ),
            ("rows_from_padded", (torch.zeros(3, 4), offsets_of([1, 5, 0])), "lengths must be at most 4, got 5"),
            ("rows_from_padded", (torch.zeros(3, 4), torch.tensor([0, 3, 2, 4])), "offsets must rise from 0 to N"),
            ("rows_from_padded", (torch.zeros(3, 4), torch.tensor([1, 2, 3, 4])), "offsets must rise from 0 to N"),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), offsets_of([1, 2, 0]).int()),
                "offsets must be contiguous int64",
            ),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), torch.tensor([0, 2, 4, 2**63 - 1])),
                "lengths must be at most 4",
            ),
            ("padded_from_rows", (torch.tensor(1.0), offsets_of([1]), 3), r"values must have shape \(N, \.\.\.\)"),
            ("padded_from_rows", (torch.zeros(2, 3).t(), offsets_of([3]), 3), "values must be contiguous"),
            ("padded_from_rows", (torch.zeros(3, 2), offsets_of([1, 1]), 3), "offsets must rise from 0 to 3"),
            ("padded_from_rows", (torch.zeros(3, 2), offsets_of([3]), 2), "lengths must be at most 2, got 3"),
            ("padded_from_rows", (torch.zeros(0, 2), offsets_of([0]), -1), "must be"),
            ("padded_from_rows", (torch.zeros(0, 2), offsets_of([]), -1), "steps must "),
            (
                "padded_from_rows",
                (torch.zeros(0, 2), torch.empty(0).long(), 1),
                r"offsets must have shape \(B \+ 1,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3), torch.zeros(3), offsets_of([3])),
                r"values must have shape \(\*, \*\), got \(3,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(2), offsets_of([3])),
                r"weights must have shape \(3,\), got \(2,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(3).double(), offsets_of([3])),
                "weights must have the dtype",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(3), offsets_of([2])),
                "offsets must rise from 0 to 3",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2).int(), torch.zeros(3).int(), offsets_of([3])),
                "values must have dtype",
            ),
            (
                "weighted_sum",
                (torch.zeros(2, 3).t(), torch.zeros(3), offsets_of([3])),
                "values must be contiguous",
            ),
            (
                "weighted_sum_backward",
                (torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(3), offsets_of([3])),
                r"dsum must have shape \(1, 2\), got \(2, 2\)",
            ),
        ],
    )
    def test_rows(self, operator, arguments, message):
        with pytest.raises(RuntimeError, match=message):
            getattr(NATIVE, operator)(*arguments)


# ---- Running buffers ----


def attention_pair(activation, momentum, norm=True):
    """The same attention twice, for the operator and for plain torch."""
    layer = Attention(5, [7, 4], activation=activation, batchnorm=norm, return_scores=True).double()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
            nn.init.normal_(module.running_mean)
    return layer, copy.deepcopy(layer)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, 0.0, None])
@pytest.mark.parametrize(("activation", "norm"), [("dice", True), ("dice", False), ("relu", True)])
def test_running_buffers(activation, norm, momentum):
    """Those of the modules' own forward on ragged rows, over batches of several widths, and then in evaluation."""
    fast, slow = attention_pair(activation, momentum, norm)
    assert native_layers(fast) is not None
    for width in (6, 9, 7):
        rows = Ragged(draw(18, 5), offsets_of(SOME), width)
        query = draw(6, 5)
        found = fast.ragged_scores(query, rows)
        with dien_fast.use_backend("reference"):
            want = slow.ragged_scores(query, rows)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
        for name, value in slow.named_buffers():
            torch.testing.assert_close(fast.get_buffer(name), value, rtol=1e-9, atol=1e-9, msg=name)
    counts = [value for name, value in fast.named_buffers() if "num_batches" in name]
    assert counts
    assert all(count == 3 for count in counts)
    before = {name: value.clone() for name, value in fast.named_buffers()}
    found = fast.eval().ragged_scores(query, rows)
    with dien_fast.use_backend("reference"):
        torch.testing.assert_close(found, slow.eval().ragged_scores(query, rows), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in fast.named_buffers())


# ---- Processes of their own ----


def run_here(code, **environment):
    """Run code beside this file, with the test module as t; one thread."""
    return subprocess.run(
        [sys.executable, "-c", f"import torch, test_interest_ops as t\ntorch.set_num_threads(1)\n{code}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_layers_without_channels():
    """Refused; a division by their number would end the process."""
    for widths in ((0,), (4, 0), (0, 4), (4, 0, 3)):
        for training in (True, False):
            with pytest.raises(RuntimeError, match="must have at least one output a layer"):
                outcome(native, scoring(SOME, 6, 5, widths, "relu", False, training))


def test_keys_without_channels():
    """Refused, as torch refuses to divide by the root of 0; in a process of its own, which must not end."""
    code = (
        "s = t.scoring(t.SOME)\n"
        "query, keys, weight = (torch.zeros(rows, 0).double().requires_grad_() for rows in (6, 18, 7))\n"
        "s = s.with_parameters(query, keys, weight, *s.mlp.parameters[1:])\n"
        "with t.pytest.raises(RuntimeError, match='query must have at least one channel'):\n"
        "    t.outcome(t.native, s)\n"
    )
    result = run_here(code)
    assert result.returncode == 0, result.stderr


def check_everything():
    """What every instruction set must do; called in a process of its own."""
    for shape in SHAPES:
        for kind in KINDS:
            check_scores(scoring_of(shape, *kind))
    for dtype in DTYPES:
        TestAttentionScores().test_large_batches_without_gradients(1, dtype)
        TestSharedKeys().test_equals_repeated_keys("dice", dtype)
    lengths = [length % 61 for length in range(0, 800, 13)]
    for activation in CODES:
        for norm, training in ((True, True), (False, False)):
            single = scoring(lengths, 60, 18, (36, 20), activation, norm, training).to(torch.float32)
            exact = outcome(plain, single.to(torch.float64))
            assert_within_twice(outcome(native, single), outcome(plain, single), exact)
    for shape in LOSS_SHAPES:
        p = pairs(*LOSS_SHAPES[shape])
        assert_same(loss_outcome(native_loss, p), loss_outcome(plain_loss, p), 1e-9, 1e-9)
    single = pairs(lengths, 18, (100, 50), torch.float32)
    exact = loss_outcome(plain_loss, single.to(torch.float64))
    assert_within_twice(loss_outcome(native_loss, single), loss_outcome(plain_loss, single), exact)
    dropout = TestDropout()
    for dtype in DTYPES:
        dropout.test_kept_share_and_scale(0.5, dtype)
    for activation in ("sigmoid", "prelu"):
        dropout.test_forward_and_backward_use_the_masks_that_are_seen(activation)
        dropout.test_gradcheck(activation, True)
    for shape in ROW_LENGTHS:
        TestRows().test_there_and_back((18,), shape)
        TestRows().test_weighted_sum(18, shape)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512vl", "avx512"])
def test_every_instruction_set_of_this_machine(capability):
    """Each in a process of its own, as the choice is made once."""
    code = (
        f"if t.dien_fast.backend().detail != 'CPU kernels for {capability}': raise SystemExit(3)\n"
        "t.check_everything()\n"
    )
    result = run_here(code, DIEN_FAST_CPU_CAPABILITY=capability)
    if "must name an instruction set of this machine" in result.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert result.returncode == 0, result.stderr
