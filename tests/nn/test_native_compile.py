"""The interest layer over the native operators under torch.compile and torch.export."""

import copy

import pytest
import torch
from native_cases import needs_native
from selection import slow_but
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from dien_fast import Attention, Interest, Ragged

pytestmark = needs_native


@pytest.fixture
def _compiler():
    torch._dynamo.reset()
    # Dynamo refuses modules that have an nn.GRU, even if it is not called.
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


BATCHES = [[4, 0, 2], [1, 3, 0, 5, 2, 2], [6, 6], [2, 1, 7, 3, 0]]


class Whole(nn.Module):
    """An interest layer that takes tensors alone, in either layout; max_length is a constant of the graph."""

    def __init__(self, layout, **options):
        super().__init__()
        self.layout = layout
        self.layer = Interest(11, use_negsampling=True, att_hidden_layers=[17, 14], **options)

    def forward(self, query, keys, sizes, negatives):
        if self.layout == "padded":
            return self.layer(query, keys, sizes, negatives)
        return self.layer(query, Ragged(keys, sizes, 9), None, Ragged(negatives, sizes, 9))

    def arguments(self, lengths):
        lengths = torch.tensor(lengths)
        query, (keys, negatives) = (
            torch.randn(len(lengths), 11),
            torch.randn(2, len(lengths), int(lengths.max()), 11),
        )
        if self.layout == "padded":
            return query, keys, lengths, negatives
        rows, others = Ragged.from_padded(keys, lengths), Ragged.from_padded(negatives, lengths)
        return query, rows.values, rows.offsets, others.values


def same_numbers(got, want):
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_compiler")
class TestCompile:
    @pytest.mark.parametrize(
        ("gru_type", "activation", "norm", "training", "layout"),
        [
            ("AUGRU", "dice", True, True, "ragged"),
            pytest.param("GRU", "relu", False, True, "padded", marks=pytest.mark.slow),
            ("AGRU", "sigmoid", False, False, "ragged"),
        ],
    )
    def test_training_and_evaluation(self, gru_type, activation, norm, training, layout):
        """One graph for every batch and pattern of lengths, forward and backward, and the same buffers."""
        module = Whole(layout, gru_type=gru_type, att_activation=activation, att_batchnorm=norm).train(training)
        plain = copy.deepcopy(module)
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
        frames = None
        for lengths in BATCHES:
            arguments = module.arguments(lengths)
            results = []
            for call, owner in ((compiled, module), (plain, plain)):
                outputs = call(*arguments)
                gradients = torch.autograd.grad(sum(value.sum() for value in outputs), list(owner.parameters()))
                results.append((*outputs, *gradients, *owner.buffers()))
            same_numbers(*results)
            frames = frames or counter.frame_count
        assert counter.frame_count == frames
        names = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
        assert "dien_fast.attention_scores.default" in names
        assert "dien_fast.auxiliary_loss.default" in names

    def test_dropout(self):
        """A compiled call draws its seed from torch's generator, as an eager one does."""
        attention = Attention(11, [17, 14], dropout=0.5, return_scores=True)

        def scores(query, values, offsets):
            return attention.ragged_scores(query, Ragged(values, offsets, 9))

        compiled = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=True)
        query, values, offsets = torch.randn(3, 11), torch.randn(12, 11), torch.tensor([0, 5, 5, 12])
        found = []
        for call, seed in ((compiled, 1), (compiled, 1), (compiled, 2), (scores, 1)):
            torch.manual_seed(seed)
            found.append(call(query, values, offsets).detach())
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
        assert torch.equal(found[0], found[3])

    @pytest.mark.parametrize("layout", slow_but(["ragged"], ["padded", "ragged"]))
    def test_export(self, layout):
        """In evaluation, one program serves every batch and refuses wrong lengths."""
        module = Whole(layout, gru_type="AUGRU", att_activation="dice").eval()
        batch, steps, rows = Dim("B", min=2), Dim("T", min=2), Dim("N", min=2)
        shapes = (
            ({0: batch}, {0: batch, 1: steps}, {0: batch}, {0: batch, 1: steps})
            if layout == "padded"
            else ({0: batch}, {0: rows}, {0: batch + 1}, {0: rows})
        )
        program = torch.export.export(module, module.arguments(BATCHES[0]), dynamic_shapes=shapes, strict=True)
        names = {str(node.target) for node in program.graph.nodes}
        assert {"dien_fast.attention_scores.default", "dien_fast.auxiliary_loss.default"} <= names
        exported = program.module()
        for lengths in BATCHES[1:]:
            arguments = module.arguments(lengths)
            same_numbers(exported(*arguments), module(*arguments))
        query, keys, sizes, negatives = module.arguments([4, 4])
        with pytest.raises(RuntimeError, match="must"):
            exported(query, keys, sizes + 1, negatives)
