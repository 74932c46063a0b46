"""The attention scores on CUDA over the emulated kernels, on the cases of the CPU's."""

import pytest
import torch
from comparison import assert_same
from dropout_masks import check_dropout_gradients, check_kept_share, check_masks
from interest_cases import (
    CODES,
    FEW_SCORES,
    KIND_NAMES,
    KINDS,
    MODES,
    NORMS,
    SHAPES,
    SOME,
    native,
    outcome,
    plain,
    scoring,
    scoring_of,
    seeded,
)
from interest_checks import check_against_plain, check_nan_in_scores, check_scores, check_shared_keys
from selection import slow_but

from dien_fast.ops import attention_scores as ops

ORDERS = ("forward", "reverse", "random")
CASES = [(shape, kind) for shape in SHAPES for kind in KIND_NAMES]


@pytest.mark.parametrize(("shape", "kind"), slow_but(FEW_SCORES, CASES))
def test_shapes(emulated, configure, shape, kind):
    number = CASES.index((shape, kind))
    configure(ORDERS[number % 3], seed=number)
    check_scores(scoring_of(shape, *KINDS[KIND_NAMES.index(kind)]))


def test_many_rows(emulated):
    """Each lane of the warp that adds up a channel's sums takes more than one share of the rows."""
    check_scores(scoring([60] * 35, depth=1, widths=(1,)))


@MODES
@NORMS
@pytest.mark.parametrize("activation", CODES)
def test_options(emulated, activation, norm, training):
    check_scores(scoring(SOME, 8, activation=activation, norm=norm, training=training))


@pytest.mark.parametrize("activation", ["dice", "prelu", "sigmoid"])
def test_float32(emulated, activation):
    s = scoring([length % 61 for length in range(0, 400, 13)], 60, 18, (36, 20), activation)
    check_against_plain(outcome, native, plain, s.to(torch.float32))


def test_float32_with_channels_far_from_zero(emulated):
    """A variance computed as a difference of squares would be rounding noise."""
    s = scoring([30, 7, 0, 60, 11], 60, 18, (36, 20), "dice")
    with torch.no_grad():
        s.mlp.parameters[1] += 3000.0
    check_against_plain(outcome, native, plain, s.to(torch.float32))


def test_large_logits(emulated):
    """The largest logit of a history is subtracted before exponentials are taken."""
    s = scoring(SOME, widths=(7,), activation="relu", norm=False)
    with torch.no_grad():
        s.mlp.parameters[-2].mul_(1e4)
        s.mlp.parameters[-1].fill_(-1e5)
    scores, _ = native(s)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, plain(s)[0], rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
def test_at_the_kink(emulated, activation):
    """At exactly 0, activations have the gradient that torch gives them."""
    s = scoring(SOME, widths=(7, 4), activation=activation, norm=False, training=activation != "dice")
    with torch.no_grad():
        for value in (s.query, s.keys, s.mlp.parameters[1]):
            value.zero_()
    assert_same(outcome(native, s), outcome(plain, s), 1e-9, 1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_history(emulated, training):
    s = scoring([], 4, activation="relu", norm=not training, training=training)
    scores, _ = native(s)
    gradients = torch.autograd.grad(scores.sum(), list(s.leaves().values()))
    assert scores.shape == (0,)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in s.leaves().values()]


def test_same_bits_in_any_order_of_threads(emulated, configure):
    s = scoring([60, 3, 0, 41, 130], 130, 18, (36, 20), dropout=0.3, dtype=torch.float32)

    def run(order, seed=0):
        configure(order, seed)
        return outcome(lambda s: seeded(s, torch.tensor([11])), s)

    want = run("forward")
    for order, seed in (("reverse", 0), ("random", 0), ("random", 1)):
        assert_same(run(order, seed), want, 0, 0)


@pytest.mark.parametrize("where", ["query", "keys"])
def test_a_nan_stays_in_its_history_in_evaluation(emulated, where):
    check_nan_in_scores(where, "dice")


@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_shared_keys(emulated, activation):
    check_shared_keys(activation, torch.float64)


@pytest.mark.parametrize("chunk_bytes", [1, 600])
def test_chunks_of_histories(emulated, configure, chunk_bytes):
    """The matrices of one or of two histories at a time; the sums over all of them are added in other places."""
    s = scoring(SOME, 8, 5, (7, 4))
    want = outcome(native, s)
    configure("reverse", chunk_bytes=chunk_bytes)
    found = outcome(native, s)
    assert torch.equal(found["gradient of keys"], want["gradient of keys"])
    assert_same(found, want, 1e-12, 1e-12)


class TestDropout:
    @pytest.mark.parametrize("rate", [0.1, 0.9])
    def test_kept_share_and_scale(self, emulated, rate):
        check_kept_share(rate, torch.float64)

    @pytest.mark.parametrize("activation", ["linear", "prelu"])
    def test_forward_and_backward_use_the_masks_that_are_seen(self, emulated, activation):
        check_masks(activation)

    @pytest.mark.slow
    @NORMS
    @pytest.mark.parametrize("activation", CODES)
    def test_gradcheck(self, emulated, activation, norm):
        check_dropout_gradients(activation, norm)

    def test_masks_are_the_cpus(self, emulated, monkeypatch):
        s = scoring(SOME, 8, dropout=0.4)
        seed = torch.tensor([77])
        found = outcome(lambda s: seeded(s, seed), s)
        monkeypatch.undo()
        assert_same(found, outcome(lambda s: seeded(s, seed), s), 1e-9, 1e-9)


def test_rows_that_belong_to_no_history(emulated):
    """Rows behind the last offset take part in nothing, whatever they hold."""
    s = scoring([3, 0, 6, 1], 6)
    query, keys, *rest = s.raw()
    more = torch.cat([keys.detach(), torch.full((7, 5), torch.nan).double()])
    want, statistics, saved = (value.detach() for value in emulated.attention_scores(query, keys, *rest))
    found = emulated.attention_scores(query.detach(), more, *rest)
    assert torch.equal(found[0][:10], want)
    assert torch.equal(found[1], statistics)
    dscores = torch.randn(17).double()
    offsets, _, parameters, running, seed, *tail, _ = rest
    gradients = [
        emulated.attention_scores_backward(
            dscores[: len(scores)], scores.detach(), query, given, offsets, parameters, running, seed, saved, *tail
        )
        for scores, given in ((want, keys), (found[0], more))
    ]
    for one, other in zip(gradients[0][2], gradients[1][2], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-12, atol=1e-12)
    assert torch.equal(gradients[1][1][:10], gradients[0][1])


@pytest.mark.parametrize(
    "offsets",
    [[0, 4, 2, 9, 10], [-5, 3, 3, 9, 10], [0, 2**62, 2**63 - 1, -(2**63), 10], [0, 0, 0, 0, 99], [7, 3, 0, 0, 0]],
    ids=str,
)
@MODES
def test_values_outside_of_the_arrays(emulated, offsets, training):
    """Offsets are cut, and no memory beside the arrays is touched: the guard zones show it."""
    s = scoring([3, 0, 6, 1], 6, training=training)
    s.offsets = torch.tensor(offsets)
    scores, _, saved = emulated.attention_scores(
        *[v.detach() if isinstance(v, torch.Tensor) else v for v in s.raw()]
    )
    query, keys, given, _, parameters, running, seed, *rest, _ = s.raw()
    emulated.attention_scores_backward(
        torch.randn(10).double(), scores, query, keys, given, parameters, running, seed, saved, *rest
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["dice", "relu"])
def test_fake(emulated, activation, training):
    """Shapes and dtypes of what compiled code expects."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    s = scoring([3, 0, 6, 1], 6, activation=activation, training=training, dtype=torch.float32)
    real = emulated.attention_scores(*s.raw())
    with FakeTensorMode():

        def on_cuda(value):
            if isinstance(value, list):
                return [on_cuda(item) for item in value]
            if isinstance(value, torch.Tensor):
                return torch.empty(value.shape, dtype=value.dtype, device="cuda")
            return value

        fake = ops._fake(*map(on_cuda, s.raw()))
    for value, expected in zip(real, fake, strict=True):
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
