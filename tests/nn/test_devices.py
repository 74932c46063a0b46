"""The interest layer as it runs on a GPU: the reference's numbers, and no operator that waits for the GPU."""

import os
from functools import partial

import pytest
import torch
from comparison import assert_same, outcome
from interest_layers import GRU_TYPES, forward
from native_cases import ACTIVATIONS, LENGTHS, MODES, batch, layers_of
from no_waiting import NoWaiting
from selection import slow_but_pairs

from dien_fast import Ragged
from dien_fast.nn import interest as interest_module
from dien_fast.ops import attention_scores, auxiliary_loss
from dien_fast.ops import rows as copies

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


@pytest.fixture(autouse=True)
def _on_a_device(monkeypatch):
    """Makes the CPU a device that has kernels for the recurrences and for no other operator, as a GPU is."""
    others = (attention_scores.KERNELS, auxiliary_loss.KERNELS)
    for kernels in (*others, copies.COPY_KERNELS, copies.SUM_KERNELS, copies.ADD_KERNELS):
        monkeypatch.setattr(kernels, "_on_cpu", frozenset())
    monkeypatch.setattr(Ragged, "check", lambda rows, name: None)
    monkeypatch.setattr(Ragged, "fits", lambda rows, other: True)
    monkeypatch.setattr(interest_module, "check_lengths", lambda name, lengths, batch, longest: lengths.long())


@pytest.mark.parametrize(
    ("gru_type", "activation", "norm", "layout", "training"),
    slow_but_pairs(GRU_TYPES, ACTIVATIONS, [True, False], ["padded", "ragged"], [True, False]),
)
def test_equals_the_reference(gru_type, activation, norm, layout, training):
    eager, fast = layers_of(gru_type, att_activation=activation, att_batchnorm=norm)
    eager.train(training)
    fast.train(training)
    want, got = both(eager, fast, *batch(), layout)  # padding is NaN
    assert_same(got, want, 1e-9, 1e-9)


def both(eager, fast, leaves, lengths, layout):
    """Return the outcomes of the reference and of the layer, from the same random numbers."""
    found = []
    for layer, given in ((eager, "reference"), (fast, layout)):
        torch.manual_seed(3)
        run = partial(forward, layer, leaves, lengths, given)
        found.append(outcome(layer, run, leaves))
    return found


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize(
    "lengths", [[0, 0, 0], [1, 0, 1], [7, 7, 7], []], ids=["all empty", "no pairs", "full", "no rows"]
)
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_lengths_that_hurt(gru_type, lengths, layout):
    eager, fast = layers_of(gru_type, att_activation="dice")
    want, got = both(eager, fast, *batch(lengths), layout)
    assert_same(got, want, 1e-9, 1e-9)


@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_padded_rows_draw_the_dropout_of_the_listing(gru_type):
    want, got = both(*layers_of(gru_type, att_dropout=0.3), *batch(), "padded")
    assert_same(got, want, 1e-9, 1e-9)


@MODES
@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_nothing_waits_for_the_device(gru_type, layout, training):
    layer = layers_of(gru_type, torch.float32, att_activation="dice", att_dropout=0.2)[1].train(training)
    leaves, lengths = batch(LENGTHS, dtype=torch.float32)
    query, keys, negatives = (leaves[name].detach() for name in ("query", "keys", "negatives"))
    given = [keys, lengths, negatives]
    if layout == "ragged":
        rows, others = Ragged.from_padded(keys, lengths), Ragged.from_padded(negatives, lengths)
        given = [rows, None, others]
    with NoWaiting():
        interest, auxiliary_loss = layer(query, *given)
        torch.autograd.grad(interest.sum() + auxiliary_loss, list(layer.parameters()))


def test_the_check_sees_what_waits():
    values = torch.arange(3.0)
    waits = [
        lambda: int(values[0]),
        lambda: bool((values > 1).any()),
        lambda: values[values > 1],
        lambda: torch.nonzero(values),
        lambda: torch.equal(values, values + 1),
        lambda: torch.repeat_interleave(values, torch.tensor([1, 2, 3])),
    ]
    for wait in waits:
        with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
            wait()
