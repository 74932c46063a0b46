"""The interest layer's operators where no library was built: the library's schemas and numbers."""

import pytest
import torch

from dien_fast import Interest
from dien_fast.nn.attention import native_layers
from dien_fast.ops import fallback

OFFSETS = torch.tensor([0, 5, 5, 12])


@pytest.fixture(autouse=True)
def rows():
    torch.manual_seed(0)
    return torch.randn(12, 8).double(), torch.randn(3, 8).double()


@pytest.mark.parametrize("schema", fallback.SCHEMAS, ids=lambda schema: schema.partition("(")[0])
def test_schemas(schema):
    operator = getattr(torch.ops.dien_fast, schema.partition("(")[0]).default
    assert str(operator._schema) == f"dien_fast::{schema}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["prelu", "dice", "relu", "sigmoid", "linear"])
def test_scores(rows, activation, training):
    keys, query = rows
    layer = Interest(8, att_activation=activation).double().train(training)
    layers, _ = native_layers(layer.attention)
    arguments = (layers.parameters, layers.running, None, 9, layers.layers, layers.epsilons, 0.0, training, False)
    starts = [None] if training else [None, torch.tensor([7, 0, 2])]
    for start in starts:
        got = fallback.attention_scores(query, keys, OFFSETS, start, *arguments)
        want = torch.ops.dien_fast.attention_scores(query, keys, OFFSETS, start, *arguments)
        torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-13)
        if training:
            torch.testing.assert_close(got[1], want[1], rtol=1e-12, atol=1e-13)


def test_dropout_keeps_its_share(rows):
    keys, query = rows
    layer = Interest(8, att_activation="relu", att_dropout=0.5).double()
    layers, _ = native_layers(layer.attention)
    rest = (layers.layers, layers.epsilons, 0.5, True, False)
    seeds = [torch.tensor([number]) for number in (3, 3, 4)]
    first, again, other = (
        fallback.attention_scores(query, keys, OFFSETS, None, layers.parameters, [], seed, 9, *rest)[0]
        for seed in seeds
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_auxiliary_loss(rows):
    keys, _ = rows
    parameters = Interest(8, use_negsampling=True).double().auxiliary_net._native_parameters()
    got = fallback.auxiliary_loss(keys, keys.flip(0), -keys, OFFSETS, parameters, False)[0]
    want = torch.ops.dien_fast.auxiliary_loss(keys, keys.flip(0), -keys, OFFSETS, parameters, False)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_rows(rows):
    keys, _ = rows
    padded = fallback.padded_from_rows(keys, OFFSETS, 8)
    assert torch.equal(padded, torch.ops.dien_fast.padded_from_rows(keys, OFFSETS, 8))
    assert torch.equal(fallback.rows_from_padded(padded, OFFSETS), keys)
    got = fallback.weighted_sum(keys, keys[:, 0], OFFSETS)
    torch.testing.assert_close(got, torch.ops.dien_fast.weighted_sum(keys, keys[:, 0].contiguous(), OFFSETS))
