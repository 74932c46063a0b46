"""The CUDA operators over the emulated kernels: checks of tensors, outputs, memory and autograd."""

import pytest
import torch
from cuda_cases import LAYOUTS, assert_close, incoming, make

from dien_fast.functional import GATES
from dien_fast.ops import attention_gru as operator
from dien_fast.ops.cells import CELLS


def arguments_of(leaves, arguments, cell, save_states=True, save_gates=True):
    """As native_attention_gru passes them to the kernels of CUDA."""
    wide = torch.promote_types(leaves["x"].dtype, torch.float32)
    leaves = {
        name: value.to(wide) if name in ("att", "h0") and value is not None else value
        for name, value in leaves.items()
    }
    layout = (arguments.get(name) for name in ("lengths", "offsets", "batch_sizes"))
    return [*leaves.values(), *layout, None, CELLS[cell], save_states, save_gates]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["augru", "agru", "gru"])
def test_autograd(operators, monkeypatch, cell, layout, dtype):
    monkeypatch.setattr(torch.ops, "dien_fast", operators)
    leaves, arguments = make((5, 4, 3, 6), cell, layout, dtype)
    gradients = incoming(leaves, arguments)
    states, last, wide_states = operator._EAGER(*arguments_of(leaves, arguments, cell))
    assert (wide_states.numel() > 0) == (dtype.itemsize == 2)
    given = {name: value for name, value in leaves.items() if value is not None}
    found = torch.autograd.grad((states, last), list(given.values()), (gradients["dstates"], gradients["dlast"]))
    got = {"states": states.detach(), "last": last.detach()}
    got |= {f"d{name}": value for name, value in zip(given, found, strict=True)}
    assert all(got[f"d{name}"].dtype == dtype for name in given)
    assert_close(got, leaves, arguments, cell, gradients)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_fake(operators, layout, dtype, optional):
    """Shapes and dtypes of what compiled code expects."""
    leaves, arguments = make((5, 4, 3, 6), "augru", layout, dtype, optional)
    real = [
        None if v is None else v.detach() if isinstance(v, torch.Tensor) else v
        for v in arguments_of(leaves, arguments, "augru")
    ]
    forward = operators.attention_gru(*real)
    gradients = [*incoming(leaves, arguments).values()]
    tail = (CELLS["augru"], [True, True, True, optional])
    backward = operators.attention_gru_backward(*gradients, *real[:10], forward[0], forward[2], *tail)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():

        def on_cuda(values):
            return [
                torch.empty(v.shape, dtype=v.dtype, device="cuda") if isinstance(v, torch.Tensor) else v
                for v in values
            ]

        fake_forward = operator._fake_forward(*on_cuda(real))
        fake_backward = operator._fake_backward(*on_cuda([*gradients, *real[:10], forward[0], forward[2]]), *tail)
    for value, fake in zip((*forward, *backward), (*fake_forward, *fake_backward), strict=True):
        assert (value.shape, value.dtype) == (fake.shape, fake.dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({8: torch.empty(0, dtype=torch.int64)}, "offsets must have at least one element, got 0"),
        ({8: torch.ones(6)}, "offsets must have dtype int64"),
        ({8: torch.arange(12)[::2]}, "offsets must be contiguous"),
        ({8: None}, "exactly one of lengths, offsets and batch_sizes must be given, got 0"),
        ({7: torch.full((5,), 4)}, "exactly one of lengths, offsets and batch_sizes must be given, got 2"),
        ({7: torch.full((5,), 4), 8: None}, r"x must have shape \(\*, \*, 3\), got \(20, 3\)"),
        ({8: None, 9: torch.tensor([5, 5, 5])}, "batch_sizes must fall, be positive and sum to 20"),
        ({8: None, 9: torch.tensor([5, 5, 5, 4, 2])}, "batch_sizes must fall, be positive and sum to 20"),
        ({8: None, 9: torch.tensor([5, 5, 5, 3, 0, 2])}, "batch_sizes must fall, be positive and sum to 20"),
        ({8: None, 9: torch.tensor([2**63 - 1, 5])}, "batch_sizes must fall, be positive and sum to 20"),
        ({8: None, 9: torch.tensor([10, 10])}, "h0 must have at least 10 rows, got 5"),
        ({8: None, 9: torch.tensor([5] * 4).int()}, "batch_sizes must be a contiguous int64 vector on the CPU"),
        ({10: torch.zeros(4, dtype=torch.int64)}, r"x_start must have shape \(5,\), got \(4,\)"),
        ({8: None, 9: torch.tensor([5] * 4), 10: torch.arange(5)}, "x_start must come with offsets"),
        (
            {1: None, 10: torch.zeros(5, dtype=torch.int64), 11: 4},
            "att must tell the number of rows where x_start",
        ),
        ({11: 5}, r"cell must lie in \[0, 4\], got 5"),
        ({1: torch.zeros(19)}, r"att must have shape \(20,\), got \(19,\)"),
        ({1: torch.zeros(20).bfloat16()}, "att must have dtype float32, or float64 as x"),
        ({1: None}, "att must be given for this cell, got none"),
        ({2: torch.zeros(18, 4)}, r"x must have shape \(\*, 4\), got \(20, 3\)"),
        ({2: torch.zeros(3, 18).t()}, "weight_ih must be contiguous"),
        ({2: torch.zeros(18, 3).double()}, "weight_ih must have the dtype of x"),
        ({3: torch.zeros(18, 7)}, r"weight_ih must have shape \(21, \*\), got \(18, 3\)"),
        ({3: torch.zeros(0, 0), 2: torch.zeros(0, 3)}, "weight_hh must have at least one column, got 0"),
        ({4: torch.zeros(17)}, r"bias_ih must have shape \(18,\), got \(17,\)"),
        ({6: torch.zeros(4, 6)}, r"h0 must have shape \(5, 6\), got \(4, 6\)"),
        ({0: torch.zeros(20, 3).int()}, "x must have dtype float32, float64, bfloat16 or float16"),
    ],
)
def test_the_operator_checks_before_it_touches_memory(operators, changes, message):
    leaves, _ = make((5, 4, 3, 6), "augru", "padded", torch.float32)
    leaves |= {"x": torch.zeros(20, 3), "att": torch.zeros(20)}
    arguments = arguments_of(leaves, {"offsets": torch.arange(6) * 4}, "augru")
    for position, value in changes.items():
        arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        operators.attention_gru(*arguments)


@pytest.mark.parametrize("cell", GATES)
def test_shared_rows(operators, cell):
    leaves, _ = make((5, 4, 3, 6), cell, "padded", torch.float32)
    x, att = torch.randn(7, 3), torch.randn(20)
    offsets, starts = torch.arange(6) * 4, torch.tensor([0, 3, 0, 1, 2])
    arguments = arguments_of(leaves | {"x": x, "att": att}, {"offsets": offsets}, cell)
    copies = torch.cat([x[start : start + 4] for start in starts.tolist()])
    states, last, _ = operators.attention_gru(*arguments[:10], starts, *arguments[11:])
    expected = operators.attention_gru(copies, *arguments[1:])
    assert torch.equal(states, expected[0])
    assert torch.equal(last, expected[1])
