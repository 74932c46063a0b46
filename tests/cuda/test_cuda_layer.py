"""The interest layer over the emulated CUDA operators: the reference's numbers, and nothing waits for a device."""

from functools import partial

import pytest
import torch
from comparison import assert_same, outcome
from interest_layers import GRU_TYPES, forward
from native_cases import LENGTHS, MODES, batch, layers_of
from no_waiting import NoWaiting

from dien_fast import Ragged
from dien_fast.nn import interest as interest_module
from dien_fast.ops import attention_gru, attention_scores, auxiliary_loss, rows
from dien_fast.ops.dispatch import eager_autograd


@pytest.fixture(autouse=True)
def _on_a_device(emulated, monkeypatch):
    """The CPU is a device whose kernels are those of CUDA, and plain PyTorch does not stand in for them."""
    monkeypatch.setattr(attention_gru, "_OPERATOR", emulated.attention_gru.default)
    monkeypatch.setattr(Ragged, "check", lambda rows, name: None)
    monkeypatch.setattr(Ragged, "fits", lambda rows, other: True)
    monkeypatch.setattr(interest_module, "check_lengths", lambda name, lengths, batch, longest: lengths.long())

    # On the CPU, backward looks whether the loss's gradient is 1.
    backward = eager_autograd("auxiliary_loss", auxiliary_loss._setup, auxiliary_loss._backward, spread=4)
    monkeypatch.setattr(auxiliary_loss, "_EAGER", backward)

    def fail(*_, **__):
        raise AssertionError("plain PyTorch ran")

    for module, name in (
        (attention_scores, "plain_attention_scores"),
        (auxiliary_loss, "plain_auxiliary_loss"),
        (auxiliary_loss, "masked_mean_loss"),
        (rows, "plain_weighted_sum"),
    ):
        monkeypatch.setattr(module, name, fail)


def both(eager, fast, leaves, lengths, layout):
    """Return the outcomes of the reference and of the layer."""
    return [
        outcome(layer, partial(forward, layer, leaves, lengths, given), leaves)
        for layer, given in ((eager, "reference"), (fast, layout))
    ]


@MODES
@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize(
    ("gru_type", "activation"), list(zip(GRU_TYPES, ["dice", "prelu", "relu", "dice"], strict=True))
)
def test_equals_the_reference(gru_type, activation, layout, training):
    eager, fast = layers_of(gru_type, att_activation=activation)
    want, got = both(eager.train(training), fast.train(training), *batch(), layout)  # padding is NaN
    assert_same(got, want, 1e-9, 1e-9)


@pytest.mark.parametrize("lengths", [[0, 0, 0], [1, 0, 1], [7, 7, 7]], ids=["all empty", "no pairs", "full"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_padded_lengths_that_hurt(gru_type, lengths):
    want, got = both(*layers_of(gru_type, att_activation="dice"), *batch(lengths), "padded")
    assert_same(got, want, 1e-9, 1e-9)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_nothing_waits_for_the_device(gru_type, layout):
    layer = layers_of(gru_type, torch.float32, att_activation="dice", att_dropout=0.2)[1]
    leaves, lengths = batch(LENGTHS, dtype=torch.float32)
    query, *rest = (leaves[name].detach() for name in ("query", "keys", "negatives"))
    given = [rest[0], lengths, rest[1]]
    if layout == "ragged":
        given = [Ragged.from_padded(rest[0], lengths), None, Ragged.from_padded(rest[1], lengths)]
        rest = [given[0].values, given[2].values]
    wanted = [query, *rest, *layer.parameters()]
    for value in wanted:
        value.requires_grad_()
    with NoWaiting():
        interest, auxiliary_loss = layer(query, *given)
        gradients = torch.autograd.grad(interest.sum() + auxiliary_loss, wanted)
    assert all(gradient.isfinite().all() for gradient in gradients)
