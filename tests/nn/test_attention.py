"""Attention over ragged rows against the padded reference, and its weighted statistics."""

import copy

import pytest
import torch
from comparison import assert_same, outcome
from torch import nn

from dien_fast import Attention, AuxiliaryNet, Ragged, reference
from dien_fast.nn.batch_norm import weighted_batch_norm
from dien_fast.ops.attention_scores import segment_softmax

LENGTHS = torch.tensor([3, 0, 5, 1, 5])
B, T, D = 5, 5, 3
pytestmark = pytest.mark.usefixtures("_float64")


def inputs(lengths=LENGTHS, steps=T):
    """Query and keys whose padding is zero."""
    mask = torch.arange(steps) < lengths[:, None]
    return torch.randn(len(lengths), D), torch.randn(len(lengths), steps, D) * mask[:, :, None]


@pytest.mark.parametrize("activation", ["dice", "prelu", "sigmoid", None])
@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("return_scores", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_ragged_equals_the_padded_reference(activation, batchnorm, return_scores, training):
    options = {"batchnorm": batchnorm, "activation": activation, "return_scores": return_scores}
    padded = reference.Attention(D, [4, 3], **options).train(training)
    ragged = Attention(D, [4, 3], **options).train(training)
    ragged.load_state_dict(padded.state_dict())
    query, keys = (value.requires_grad_() for value in inputs())
    leaves = {"query": query, "keys": keys}

    def call():
        rows = Ragged.from_padded(keys, LENGTHS)
        found = ragged.forward_ragged(query, rows)
        return (rows._replace(values=found).pad() if return_scores else found), None

    want = outcome(padded, lambda: (padded(query, keys, LENGTHS), None), leaves)
    # In training, the reference has gradients of the zero keys on padding, which ragged rows do not hold.
    for found in (got := outcome(ragged, call, leaves), want):
        found["gradient of keys"] = found["gradient of keys"] * (torch.arange(T) < LENGTHS[:, None])[:, :, None]
    assert_same(got, want)


@pytest.mark.parametrize("library", [reference, None], ids=["reference", "fast"])
@pytest.mark.parametrize("return_scores", [True, False])
class TestPadded:
    """The public forward: every row is computed, whatever the padding holds."""

    @pytest.fixture
    def layer(self, library, return_scores):
        return (library.Attention if library else Attention)(D, [4], return_scores=return_scores)

    def test_scores(self, layer, return_scores):
        query, keys = torch.randn(B, D), torch.randn(B, T, D)
        found = layer.eval()(query, keys, LENGTHS)
        for b, length in enumerate(LENGTHS.tolist()):
            rows = [torch.cat([query[b], k, query[b] - k, query[b] * k]) for k in keys[b, :length]]
            logits = (
                torch.stack([layer.fc(layer.mlp(row[None]))[0, 0] for row in rows]) if rows else torch.zeros(0)
            )
            scores = torch.cat([torch.softmax(logits / D**0.5, 0), torch.zeros(T - length)])
            torch.testing.assert_close(
                found[b], scores if return_scores else scores @ keys[b], rtol=1e-12, atol=1e-12
            )

    def test_padding_counts_in_the_batch_statistics(self, layer, return_scores):
        query, keys = torch.randn(B, D), torch.randn(B, T, D)
        rows = torch.cat(
            [torch.cat([q.expand(T, D), k, q - k, q * k], 1) for q, k in zip(query, keys, strict=True)]
        )
        hidden = layer.mlp.mlp.dense0(rows)
        layer(query, keys, LENGTHS)
        norm = layer.mlp.mlp.batchnorm0
        torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * hidden.var(0), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("batch", "steps"), [(0, 4), (3, 0), (0, 0)])
    def test_nothing_to_score(self, layer, return_scores, batch, steps):
        lengths = torch.zeros(batch, dtype=torch.int64)
        found = layer(torch.randn(batch, D), torch.randn(batch, steps, D), lengths)
        assert torch.equal(found, torch.zeros(batch, steps if return_scores else D))

    def test_one_row_keeps_its_dimension(self, layer, return_scores):
        found = layer(torch.randn(1, D), torch.randn(1, T, D), torch.tensor([T], dtype=torch.int32))
        assert found.shape == ((1, T) if return_scores else (1, D))

    def test_a_nan_stays_in_its_history(self, layer, return_scores):
        query, keys = torch.randn(B, D), torch.randn(B, T, D)
        clean = layer.eval()(query, keys, LENGTHS)
        keys[2, 0, 0] = torch.nan
        found = layer(query, keys, LENGTHS)
        others = [0, 1, 3, 4]
        assert torch.equal(found[others], clean[others])
        assert found[2].isnan().all()


def test_a_nan_stays_in_its_ragged_history():
    layer = Attention(D, [4], activation="dice", return_scores=True).eval()
    query, keys = inputs()
    rows = Ragged.from_padded(keys, LENGTHS)
    clean = layer.ragged_scores(query, rows)
    rows.values[rows.owners() == 2] = torch.nan
    found = layer.ragged_scores(query, rows)
    assert torch.equal(found[rows.owners() != 2], clean[rows.owners() != 2])
    assert found[rows.owners() == 2].isnan().all()


def test_dropout_is_for_training_alone():
    layer = Attention(D, [8], dropout=0.5, return_scores=True)
    query, keys = inputs()
    rows = Ragged.from_padded(keys, LENGTHS)
    assert not torch.equal(layer.ragged_scores(query, rows), layer.ragged_scores(query, rows))
    layer.eval()
    assert torch.equal(layer.ragged_scores(query, rows), layer.ragged_scores(query, rows))


def test_auxiliary_net_logits_are_those_of_its_probabilities():
    net = AuxiliaryNet(2 * D, [6, 4])
    states, clicks, negatives = torch.randn(3, 7, D)
    for logits, events in zip(net.logits(states, clicks, negatives), (clicks, negatives), strict=True):
        want = net(torch.cat([states, events], 1)).squeeze(1)
        torch.testing.assert_close(torch.sigmoid(logits), want, rtol=1e-12, atol=1e-14)


def test_segment_softmax():
    logits = torch.tensor([1.0, 2.0, 5000.0, -5000.0, 3.0])
    found = segment_softmax(logits, torch.tensor([0, 0, 2, 2, 3]), 4)
    want = torch.cat([torch.softmax(logits[:2], 0), torch.tensor([1.0, 0.0, 1.0])])
    torch.testing.assert_close(found, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}, {"affine": False}]
)
@pytest.mark.parametrize("training", [True, False])
def test_weighted_batch_norm_equals_that_of_repeated_rows(options, training):
    plain = nn.BatchNorm1d(D, **options).train(training)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    weighted = copy.deepcopy(plain)
    for _ in range(3):
        x = torch.randn(4, D)
        repeats = torch.tensor([1, 3, 0, 2])
        got = weighted_batch_norm(weighted, x, repeats / repeats.sum(), 6)
        want = plain(x.repeat_interleave(repeats, 0))
        torch.testing.assert_close(got.repeat_interleave(repeats, 0), want, rtol=1e-12, atol=1e-12)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(weighted.get_buffer(name), value, rtol=1e-12, atol=1e-12)


def test_one_row_has_no_batch_statistics():
    with pytest.raises(ValueError, match="expected more than 1 value per channel when training, got 1 row"):
        weighted_batch_norm(nn.BatchNorm1d(D), torch.randn(1, D), torch.ones(1), 1)
