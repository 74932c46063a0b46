"""Somebody's own copy of the listing, accelerated: the same numbers, forward and backward."""

from types import SimpleNamespace

import copies
import pytest
import torch
from equality import assert_compares, assert_equal_runs, pair, randomised, run
from selection import slow_but_pairs
from torch.nn.utils.rnn import pack_padded_sequence

import dien_fast
from dien_fast.patches import recurrence
from dien_fast.patches.layers import next_event_loss

SIZE, STEPS = 6, 7
LENGTHS = torch.tensor([7, 1, 3, 7, 2])
pytestmark = pytest.mark.usefixtures("_float64")


@pytest.fixture
def inputs():
    """Query, keys, negatives; the padding holds numbers that must not matter."""
    return [torch.randn(*shape, requires_grad=True) for shape in ((5, SIZE), (5, STEPS, SIZE), (5, STEPS, SIZE))]


@pytest.mark.parametrize(
    ("gru_type", "activation", "negatives"),
    slow_but_pairs(["GRU", "AIGRU", "AGRU", "AUGRU"], ["prelu", "dice", "tanh"], [True, False]),
)
def test_interest(inputs, gru_type, activation, negatives):
    layer = randomised(
        copies.Interest(SIZE, gru_type, att_activation=activation, use_negsampling=negatives), scale=0.4
    )
    query, keys, noclicks = inputs
    report = assert_compares(layer, lambda m: m(query, keys, LENGTHS, noclicks if negatives else None), inputs)
    assert {entry.path for entry in report.fast} == {"", "interest_extractor", "interest_evolution"}
    assert not report.left


@pytest.mark.parametrize("gru_type", ["GRU", "AUGRU"])
def test_interest_with_dropout_draws_the_same_mask(inputs, gru_type):
    layer = randomised(copies.Interest(SIZE, gru_type, att_dropout=0.4))
    query, keys, noclicks = inputs

    def call(module):
        torch.manual_seed(7)
        return module(query, keys, LENGTHS, noclicks)

    assert not assert_compares(layer, call, inputs).left


@pytest.mark.parametrize("cell", [copies.SecondListing, copies.Inverted, copies.Official])
def test_interest_with_another_cell(inputs, cell):
    layer = randomised(copies.Interest(SIZE, cell=cell))
    query, keys, noclicks = inputs
    assert_compares(layer, lambda m: m(query, keys, LENGTHS, noclicks), inputs)


RULES = {
    copies.AttentionGRUCell: "agru, reset after the product, gates (r | n)",
    copies.SpareGate: "agru, reset after the product, gates (r | - | n)",
    copies.AttentionUpdateGateGRUCell: "augru, reset after the product, gates (u | r | n)",
    copies.SecondListing: "augru, reset after the product, gates (r | u | n)",
    copies.Inverted: "augru_inverted, reset after the product, gates (r | u | n)",
    copies.Official: "augru_official, reset after the product, gates (u | r | n)",
}


@pytest.mark.parametrize("cell", RULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_loop(cell, bias, with_state):
    loop = randomised(copies.DynamicGRU(SIZE, 4, bias, cell=cell))
    x, att = torch.randn(5, STEPS, SIZE, requires_grad=True), torch.randn(5, STEPS, requires_grad=True)
    h0 = torch.randn(5, 4, requires_grad=True)

    def call(module):
        packed = [pack_padded_sequence(v, LENGTHS, batch_first=True, enforce_sorted=False) for v in (x, att)]
        out = module(*packed, hx=h0 if with_state else None)
        return (out.data,)

    report = assert_compares(loop, call, (x, att, h0))
    assert report.fast[0].sentence == f"recurrence {RULES[cell]} as one operator"


@pytest.mark.parametrize("there_is_one", [True, False])
def test_loop_runs_where_there_is_a_kernel(monkeypatch, there_is_one):
    loop = copies.DynamicGRU(SIZE, 4, gru_type="AUGRU")
    dien_fast.accelerate(loop)
    asked, steps = [], []
    kernels = SimpleNamespace(are_used=lambda x: asked.append(x) or there_is_one)
    monkeypatch.setattr(recurrence, "KERNELS", kernels)
    monkeypatch.setattr(
        copies.AttentionUpdateGateGRUCell, "forward", lambda *_: steps.append(1) or torch.zeros(5, 4)
    )
    x, att = (
        pack_padded_sequence(v, torch.full((5,), STEPS), batch_first=True)
        for v in (torch.randn(5, STEPS, SIZE), torch.rand(5, STEPS))
    )
    loop(x, att)
    assert asked == [x.data]
    assert len(steps) == (0 if there_is_one else STEPS)


def test_small_trained_weights_do_not_mislead():
    loop = copies.DynamicGRU(SIZE, 4, cell=copies.SecondListing)
    for parameter in loop.parameters():
        torch.nn.init.zeros_(parameter)
    assert "gates (r | u | n)" in str(dien_fast.accelerate(loop))


def test_float32_is_as_exact_as_the_loop(inputs):
    torch.set_default_dtype(torch.float32)
    layer = randomised(copies.Interest(SIZE))
    query, keys, noclicks = inputs
    exact = layer.double()(query, keys, LENGTHS, noclicks)
    single = [value.detach().float() for value in inputs]
    plain, fast, _ = pair(layer.float())
    errors = [
        max((a - b).abs().max().item() for a, b in zip(m(*single[:2], LENGTHS, single[2]), exact, strict=True))
        for m in (plain, fast)
    ]
    assert errors[1] <= 2 * errors[0] + 1e-6


def test_what_the_original_refuses(inputs):
    query, keys, noclicks = (value.detach() for value in inputs)
    plain, fast, report = pair(randomised(copies.Interest(SIZE)).eval())
    assert "empty histories and a batch of one work" in str(report)
    want, _ = fast(query, keys, LENGTHS, noclicks)
    with pytest.raises(RuntimeError):
        plain(query[:1], keys[:1], LENGTHS[:1], noclicks[:1])
    got, loss = fast(query[:1], keys[:1], LENGTHS[:1], noclicks[:1])
    torch.testing.assert_close(got, want[:1])
    assert loss.isfinite()
    with pytest.raises(RuntimeError):
        plain(query, keys, LENGTHS * 0, noclicks)
    got, loss = fast(query, keys, LENGTHS * 0, noclicks)
    assert not got.any()
    assert loss == 0
    some = LENGTHS.clone()
    some[2] = 0
    got, _ = fast(query, keys, some, noclicks)
    assert not got[2].any()
    torch.testing.assert_close(got[[0, 1, 3, 4]], want[[0, 1, 3, 4]])


@pytest.mark.parametrize("gru_type", ["GRU", "AUGRU"])
def test_training_on_empty_histories_with_dropout(inputs, gru_type):
    query, keys, noclicks = inputs
    layer = randomised(copies.Interest(SIZE, gru_type, att_dropout=0.4))
    dien_fast.accelerate(layer)
    interest, loss = layer(query, keys, torch.tensor([0, 3, 7, 0, 1]), noclicks)
    (interest.sum() + loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert not interest[0].any()


@pytest.mark.parametrize("scale", [0.1, 40.0])
def test_loss_of_saturated_probabilities(inputs, scale):
    """Past the probabilities' exactness the original's loss is the rounded one, and stays so."""
    query, keys, noclicks = inputs
    layer = randomised(copies.Interest(SIZE))
    with torch.no_grad():
        layer.auxiliary_net.mlp[-1].weight.mul_(scale)
    plain, fast, _ = pair(layer)
    runs = [run(m, lambda m: m(query, keys, LENGTHS, noclicks), inputs) for m in (fast, plain)]
    assert_equal_runs(*runs)


def test_loss_of_saturated_float32(inputs):
    layer = randomised(copies.Interest(SIZE)).float()
    with torch.no_grad():
        layer.auxiliary_net.mlp[-1].weight.mul_(1000)
    plain, fast, _ = pair(layer)
    single = [value.detach().float() for value in inputs]
    want, got = (m(*single[:2], LENGTHS, single[2])[1] for m in (plain, fast))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_loss_of_layers_without_activations():
    """The products of such layers are one product."""
    states = dien_fast.Ragged(torch.randn(9, 3), torch.tensor([0, 4, 4, 5, 9]), 4)
    events, negatives = torch.randn(2, 9, 3)
    layers = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 4, bias=False), torch.nn.Linear(4, 1)]
    got = next_event_loss(layers, states, events, negatives, from_probabilities=False)
    step = torch.tensor([0, 1, 2, 5, 6, 7])
    net = torch.nn.Sequential(*layers)
    logits = [net(torch.cat([states.values[step], e[step + 1]], 1)).squeeze(1) for e in (events, negatives)]
    targets = torch.tensor([1.0] * 6 + [0.0] * 6)
    want = torch.nn.functional.binary_cross_entropy_with_logits(torch.cat(logits), targets)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
