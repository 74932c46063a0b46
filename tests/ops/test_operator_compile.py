"""attention_gru under torch.compile, torch.export and autocast: the numbers of the eager call."""

import itertools
import os

import pytest
import torch
from selection import slow_but
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import dien_fast
from dien_fast import DynamicGRU, Ragged
from dien_fast.functional import GATES, attention_gru

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
I, H = 11, 13  # noqa: E741 (I is the input size everywhere in this project); no size of a batch, which would be one symbol
PATTERNS = [[4, 0, 2], [1, 3, 0, 5], [6, 6], [2, 1, 7, 3, 0]]  # batch size and longest history change
LAYOUTS = {"padded": "lengths", "ragged": "offsets", "packed": "batch_sizes"}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class Recurrence(nn.Module):
    """Computes something before and after the call, as a model does."""

    def __init__(self, layout, cell="augru", bias=True):
        super().__init__()
        rows = GATES[cell] * H
        self.layout, self.cell = layout, cell
        self.embed = nn.Linear(I, I)
        self.weight_ih = nn.Parameter(torch.randn(rows, I))
        self.weight_hh = nn.Parameter(0.5 * torch.randn(rows, H))
        self.bias_ih, self.bias_hh = (nn.Parameter(torch.randn(rows)) if bias else None for _ in range(2))

    def forward(self, x, att, sizes):
        states, last = attention_gru(
            self.embed(x),
            att,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            cell=self.cell,
            **{LAYOUTS[self.layout]: sizes},
        )
        return states.tanh(), last * 2


def inputs(layout, lengths):
    """Return x, which requires a gradient, attention and sizes of a batch."""
    lengths = torch.tensor(lengths)
    x, att = torch.randn(len(lengths), int(lengths.max()), I), torch.rand(len(lengths), int(lengths.max()))
    if layout == "ragged":
        mask = torch.arange(x.size(1)) < lengths[:, None]
        x, att, lengths = x[mask], att[mask], nn.functional.pad(lengths.cumsum(0), (1, 0))
    elif layout == "packed":
        ordered = lengths[lengths > 0].sort(descending=True).values
        x, lengths, *_ = pack_padded_sequence(x[: len(ordered)], ordered, batch_first=True)
        att = att.flatten()[: len(x)]
    return x.detach().requires_grad_(), att, lengths


def outcome(call, module, arguments):
    outputs = call(*arguments)
    leaves = [arguments[0], *module.parameters()]
    gradients = torch.autograd.grad(sum((value * value).sum() for value in outputs), leaves)
    return *outputs, *gradients


def assert_equal(got, want):
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


# Each layout; cells of two and three gates, with attention and without.
FEW = [("padded", "augru"), ("ragged", "agru"), ("packed", "gru")]


@pytest.mark.parametrize(("layout", "cell"), slow_but(FEW, itertools.product(LAYOUTS, GATES)))
def test_compile(layout, cell):
    """One graph serves every batch size, length of history and pattern of lengths, forward and backward."""
    module = Recurrence(layout, cell, bias=cell != "agru")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for lengths in PATTERNS:
        arguments = inputs(layout, lengths)
        assert_equal(outcome(compiled, module, arguments), outcome(module, module, arguments))
    assert counter.frame_count == 1
    assert any("dien_fast.attention_gru" in str(node.target) for node in counter.graphs[0].graph.nodes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_alone_never_compile_again(layout):
    """Sizes become dynamic when they change."""
    module = Recurrence(layout)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lengths in ([4, 2, 3], [4, 4, 1], [4, 1, 4]):
        arguments = inputs(layout, lengths)
        assert_equal(outcome(compiled, module, arguments), outcome(module, module, arguments))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compile_with_inductor():
    module = Recurrence("ragged")
    arguments = inputs("ragged", PATTERNS[0])
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    assert_equal(outcome(compiled, module, arguments), outcome(module, module, arguments))


@pytest.mark.parametrize(
    ("layout", "wrong", "message"),
    [
        ("padded", [[5, 1], [-1, 1]], r"lengths must lie in \[0, 4\]"),
        ("ragged", [[0, 4, 7], [0, 9, 8], [1, 4, 8]], "offsets must rise from 0 to 8"),
        ("packed", [[2, 2, 2, 1], [1, 2, 2, 3]], "batch_sizes must fall, be positive and sum to 8"),
    ],
)
def test_a_compiled_graph_checks_lengths_when_it_runs(layout, wrong, message):
    """A length of 5 in a padded batch of 4 steps would read the next history's rows."""
    module = Recurrence(layout)
    x, att, good = inputs(layout, [4, 4])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(x, att, good)
    for sizes in wrong:
        with pytest.raises(RuntimeError, match=message):
            compiled(x, att, torch.tensor(sizes))


@pytest.mark.parametrize("strict", slow_but([False], [True, False]))
@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        ("padded", ({0: Dim("B"), 1: Dim("T")}, {0: Dim("B"), 1: Dim("T")}, {0: Dim("B")})),
        ("ragged", ({0: Dim("N")}, {0: Dim("N")}, {0: Dim.DYNAMIC})),
    ],
)
def test_export(layout, shapes, strict):
    """One exported program serves every batch size and length of history, and refuses wrong lengths."""
    module = Recurrence(layout)
    program = torch.export.export(module, inputs(layout, PATTERNS[0]), dynamic_shapes=shapes, strict=strict)
    exported = program.module()
    for lengths in PATTERNS[1:]:
        arguments = inputs(layout, lengths)
        assert_equal(exported(*arguments), module(*arguments))
    x, att, sizes = inputs(layout, [4, 4])
    with pytest.raises(RuntimeError, match="must"):
        exported(x, att, sizes + 1)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = DynamicGRU(I, H, gru_type="AUGRU")

    def forward(self, x, att):
        states = self.gru(x, att)
        return (states.data.tanh(), states.batch_sizes * 1.0)


class Histories(Packed):
    def forward(self, values, att, offsets):
        states, last = self.gru.forward_ragged(Ragged(values, offsets, 9), att, return_states=True)
        return states.tanh(), last


def test_dynamic_gru_on_ragged_rows():
    module = Histories()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for lengths in PATTERNS:
        arguments = inputs("ragged", lengths)
        assert_equal(outcome(compiled, module, arguments), outcome(module, module, arguments))
    assert counter.frame_count == 1


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_dynamic_gru_on_a_packed_sequence(enforce_sorted):
    """Packing stays outside of the graph, because torch.compile does not trace pack_padded_sequence."""
    module = Packed()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for lengths in ([4, 3, 1], [5, 2, 2, 1], [3, 3]):
        lengths = torch.tensor(lengths)
        x, att = torch.randn(len(lengths), 5, I), torch.rand(len(lengths), 5)
        packed = [
            pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=enforce_sorted)
            for value in (x, att)
        ]
        assert_equal(compiled(*packed), module(*packed))
    assert counter.frame_count == 1
    other = PackedSequence(att.flatten()[: len(packed[0].data)], torch.tensor([3, 2, 1]))
    with pytest.raises((RuntimeError, ValueError), match="att_scores must"):
        compiled(packed[0], other)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
class TestAutocast:
    def test_float32_goes_in_and_out(self, layout, backend):
        """Autocast would run the products of the loop over steps in 16 bits."""
        module = Recurrence(layout)
        module.embed = nn.Identity()
        arguments = inputs(layout, PATTERNS[0])
        with dien_fast.use_backend(backend):
            want = module(*arguments)
            with torch.autocast("cpu", torch.bfloat16):
                got = module(*arguments)
        for value, expected in zip(got, want, strict=True):
            assert value.dtype == torch.float32
            assert torch.equal(value, expected)
        gradients = (torch.autograd.grad(value[0].square().sum(), arguments[0]) for value in (got, want))
        assert torch.equal(*(gradient for (gradient,) in gradients))

    def test_16_bit_rows_beside_float32_weights(self, layout, backend):
        """Under autocast a linear layer returns 16-bit inputs, while attention stays float32."""
        module = Recurrence(layout)
        x, att, sizes = inputs(layout, PATTERNS[0])
        with dien_fast.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
            states, last = module(x, att, sizes)
            rows = module.embed(x)
        assert rows.dtype == torch.bfloat16
        module.embed = nn.Identity()
        with dien_fast.use_backend(backend):
            want = module(rows.float(), att, sizes)
        for value, expected in zip((states, last), want, strict=True):
            assert value.dtype == torch.float32
            assert torch.equal(value, expected)
        (states.sum() + last.sum()).backward()
        assert module.weight_hh.grad.dtype == x.grad.dtype == torch.float32


def test_autocast_leaves_other_dtypes_alone():
    """Autocast leaves float64 as it is, like torch's own operators, and refuses the same arguments."""
    module = Recurrence("padded").double()
    module.embed = nn.Identity()
    x, att, sizes = inputs("padded", PATTERNS[0])
    want = module(x.double(), att.double(), sizes)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, module(x.double(), att.double(), sizes), want))
        with pytest.raises(TypeError, match="x must have a floating-point dtype"):
            module(x.long(), att, sizes)


def test_autocast_in_a_compiled_graph():
    module = Recurrence("ragged")
    arguments = inputs("ragged", PATTERNS[0])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(outcome(compiled, module, arguments), outcome(module, module, arguments))
