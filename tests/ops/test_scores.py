"""Attention scores against plain PyTorch, on shapes that hurt."""

import copy
import os

import pytest
import torch
from comparison import assert_same, assert_within_twice
from interest_cases import (
    CODES,
    DTYPES,
    KIND_NAMES,
    KINDS,
    MODES,
    NATIVE,
    NORMS,
    SHAPES,
    SOME,
    differentiate,
    draw,
    native,
    offsets_of,
    outcome,
    plain,
    scoring,
    scoring_of,
)
from interest_checks import check_large_batch, check_nan_in_scores, check_scores
from torch import nn

import dien_fast
from dien_fast import Attention, Ragged
from dien_fast.nn.native_layers import native_layers
from dien_fast.ops import attention_scores as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


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
        check_large_batch(threads, dtype)

    def test_layers_of_different_kinds(self):
        """The modules build MLPs of one kind of layer; the operator takes any mix."""
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
        """A variance computed as a difference of squares would be rounding noise."""
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
        """The largest logit of a history is subtracted before exponentials are taken."""
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
        """At exactly 0, activations have the gradient that torch gives them."""
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
        """The operator called through the dispatcher, with the autograd registered there."""
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
        check_nan_in_scores(where, activation, dtype)

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
        """A row does not depend on the others, so threads change sums over all rows alone."""
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
    """The buffers move as in the modules' own forward, over batches of several widths, and serve in evaluation."""
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


def test_layers_without_channels():
    """A batch without channels is refused; a division by their number would kill the process."""
    for widths in ((0,), (4, 0), (0, 4), (4, 0, 3)):
        for training in (True, False):
            with pytest.raises(RuntimeError, match="must have at least one output a layer"):
                outcome(native, scoring(SOME, 6, 5, widths, "relu", False, training))
