"""The whole interest layer and DIEN, compiled and exported: one program for every batch and length."""

import itertools

import pytest
import torch
import torch._dynamo
from selection import slow_but
from torch import nn

import dien_fast
from dien_fast import AttentionGroup, Interest, Ragged

SIZE, STEPS = 8, 5


@pytest.fixture(autouse=True)
def compiler():
    """Dynamo traces modules that hold an nn.GRU only if allowed to."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


class RaggedInterest(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, query, keys, negatives, offsets):
        return self.layer(query, Ragged(keys, offsets, STEPS), None, Ragged(negatives, offsets, STEPS))


class PaddedInterest(RaggedInterest):
    def forward(self, query, keys, negatives, lengths):
        return self.layer(query, keys, lengths, negatives)


def lengths_of(batch):
    torch.manual_seed(batch)
    lengths = torch.randint(STEPS + 1, (batch,))
    lengths[0] = STEPS
    return lengths


def ragged(batch):
    offsets = nn.functional.pad(lengths_of(batch).cumsum(0), (1, 0))
    rows = int(offsets[-1])
    return torch.randn(batch, SIZE), torch.randn(rows, SIZE), torch.randn(rows, SIZE), offsets


def padded(batch):
    lengths = lengths_of(batch)
    return torch.randn(batch, SIZE), *torch.randn(2, batch, STEPS, SIZE), lengths


LAYOUTS = {"ragged": (RaggedInterest, ragged), "padded": (PaddedInterest, padded)}
# tests/nn/test_native_compile.py compiles ragged histories, and attention inside the recurrence.
CASES = pytest.mark.parametrize(
    ("gru_type", "layout"),
    slow_but([("GRU", "padded")], itertools.product(Interest.SUPPORTED_GRU_TYPE, LAYOUTS)),
)


@CASES
def test_compile_training(gru_type, layout):
    module, inputs = LAYOUTS[layout]
    eager = module(Interest(SIZE, gru_type=gru_type, use_negsampling=True))
    other = module(Interest(SIZE, gru_type=gru_type, use_negsampling=True))
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 9, 4):
        arguments = inputs(batch)
        gradients = []
        for run, owner in ((eager, eager), (compiled, other)):
            output, loss = run(*arguments)
            gradients.append(
                [output, loss, *torch.autograd.grad(output.sum() + loss, [*owner.parameters()], allow_unused=True)]
            )
        for want, got in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        for name, buffer in eager.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], buffer, msg=name)


@CASES
def test_export(gru_type, layout):
    module, inputs = LAYOUTS[layout]
    layer = module(Interest(SIZE, gru_type=gru_type, use_negsampling=True)).eval()
    arguments = inputs(6)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in arguments)
    program = torch.export.export(layer, arguments, dynamic_shapes=shapes, strict=False).module()
    for batch in (6, 9, 4):
        arguments = inputs(batch)
        for got, want in zip(program(*arguments), layer(*arguments), strict=True):
            torch.testing.assert_close(got, want)


class RaggedDIEN(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, movie, history, negatives, offsets):
        sequences = {"history": history, "negatives": negatives}
        rows = {name: Ragged(ids, offsets, STEPS) for name, ids in sequences.items()}
        return self.model({"movie": movie} | rows)


def clicks(batch):
    offsets = nn.functional.pad(lengths_of(batch).cumsum(0), (1, 0))
    rows = int(offsets[-1])
    return torch.randint(1, 20, (batch,)), torch.randint(1, 20, (rows,)), torch.randint(1, 20, (rows,)), offsets


def dien():
    group = AttentionGroup(
        "movies", [{"ad": "movie", "pos_hist": "history", "neg_hist": "negatives"}], hidden_layers=[16, 8]
    )
    return RaggedDIEN(
        dien_fast.DIEN(
            num_features=[],
            cat_features=["movie"],
            seq_features=["history", "negatives"],
            cat_nums=dict.fromkeys(["movie", "history", "negatives"], 20),
            embedding_size=SIZE,
            attention_groups=[group],
            mlp_hidden_layers=[16, 8],
            use_negsampling=True,
            shared_embeddings={"history": "movie", "negatives": "movie"},
        )
    )


@pytest.mark.slow
def test_compile_dien():
    model, other = dien(), dien()
    other.load_state_dict(model.state_dict())
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 9, 4):
        gradients = []
        for run, owner in ((model, model), (compiled, other)):
            logits, loss = run(*clicks(batch))
            gradients.append([logits, loss, *torch.autograd.grad(logits.sum() + loss, [*owner.parameters()])])
        for want, got in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_export_dien():
    model = dien().eval()
    arguments = clicks(6)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in arguments)
    program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False).module()
    for batch in (6, 9, 4):
        for got, want in zip(program(*clicks(batch)), model(*clicks(batch)), strict=True):
            torch.testing.assert_close(got, want)
