"""The recurrence as an operator: how to call it, its autograd, and what stands in for its kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dien_fast.ops.backend import LOADED, Kernels, wants_native
from dien_fast.ops.cells import CELLS, Inputs, check_cell
from dien_fast.ops.dispatch import (
    define,
    eager_autograd,
    refuse_double_backward,
    register,
    run,
    run_backward,
    vector_padded,
)
from dien_fast.ops.layouts import Addresses, Layout, addresses_of, check_integers, check_shape, packed_schedule
from dien_fast.reference.gru import attention_gru as packed_loop

# As in csrc/library.cpp.
SCHEMA = (
    "attention_gru(Tensor x, Tensor? att, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? h0, Tensor? lengths, Tensor? offsets, Tensor? batch_sizes, Tensor? x_start, int cell, "
    "bool save_states, bool save_gates) -> (Tensor states, Tensor last, Tensor gates)"
)

KERNELS = Kernels(
    "attention_gru",
    {
        "cpu": (torch.float32, torch.float64),
        "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    },
)

# Above this many numbers of state, backward computes the gates again instead of keeping 4 numbers a state.
SAVED_GATES_LIMIT = 10_000_000


def native_attention_gru(
    inputs: Inputs, layout: Layout, cell: str, return_states: bool, x_start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the operator, which checks its arguments.

    Args:
        inputs: of a dtype that :data:`KERNELS` take, all on one device; on CUDA, attention and h0 of 16-bit inputs
            are float32.
        layout: on any device.
        cell: name of the rule for z.
        return_states: whether the caller wants all states.
        x_start: first row of x of each history ``[B]`` where histories share rows, without gradient.

    Returns:
        States in the layout of ``x`` (``[0, H]`` where nobody needs them) and last states ``[B, H]``.
    """
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = inputs
    differentiable = torch.is_grad_enabled() and inputs.require_gradient()
    lengths, offsets, batch_sizes = layout
    if not x.is_cpu:
        # Copies to the device that nothing waits for; the kernels take int64.
        lengths, offsets, x_start = (_on_device(value, x.device) for value in (lengths, offsets, x_start))
        batch_sizes = None if batch_sizes is None else batch_sizes.to("cpu", torch.int64).contiguous()
    # Lines instead of loops and functions: those would take a tenth of a short call.
    arguments = (
        x.contiguous(),
        None if att is None else att.contiguous(),
        weight_ih.contiguous(),
        weight_hh.contiguous(),
        None if bias_ih is None else bias_ih.contiguous(),
        None if bias_hh is None else bias_hh.contiguous(),
        None if h0 is None else h0.contiguous(),
        lengths if lengths is None or lengths.is_cpu or not x.is_cpu else lengths.cpu(),
        offsets if offsets is None or offsets.is_cpu or not x.is_cpu else offsets.cpu(),
        batch_sizes if batch_sizes is None or batch_sizes.is_cpu else batch_sizes.cpu(),
        x_start,
        CELLS[cell],
        return_states or differentiable,
        differentiable and _keeps_gates(x, weight_hh.size(1)),
    )
    states, last, _ = run(_OPERATOR, _EAGER, differentiable, arguments)
    return states, last


def _keeps_gates(x: Tensor, hidden: int) -> bool:
    """Whether the gates are kept for backward."""
    if not x.is_cpu:
        return True
    if torch.compiler.is_exporting():
        # The limit would bound the number of rows; without gates backward computes them again.
        return False
    small = math.prod(x.shape[:-1]) * hidden <= SAVED_GATES_LIMIT
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        # Not where traced code does not know how many numbers there are.
        return guard_or_false(small)
    return small


def _on_device(integers: Tensor | None, device: torch.device) -> Tensor | None:
    if integers is None or integers.is_floating_point() or integers.dtype == torch.bool:
        return integers  # for the operator to refuse
    return integers.to(device, torch.int64, non_blocking=True).contiguous()


# ---- Without kernels ----


def check_arguments(inputs: Inputs, layout: Layout, cell: str, reset: str) -> None:
    """Check names, shapes, devices and dtypes; :func:`addresses_of` checks the values of the layout.

    Raises:
        ValueError: for a wrong shape, layout, device or name; the message names the argument.
        TypeError: for a wrong dtype.
    """
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = inputs
    check_cell(cell, reset, inputs.weights())
    names = ("lengths", "offsets", "batch_sizes")
    given = [name for name, value in zip(names, layout, strict=True) if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of lengths, offsets and batch_sizes must be given, got {given}")
    padded = layout.lengths is not None
    check_shape("x", x, (None, None, weight_ih.size(1)) if padded else (None, weight_ih.size(1)))
    if not x.is_floating_point():
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
    weights = (("weight_ih", weight_ih), ("weight_hh", weight_hh), ("bias_ih", bias_ih), ("bias_hh", bias_hh))
    for name, value in (("att", att), ("h0", h0), *weights):
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x is, got {value.device}")
    for name, value in weights:
        if value is not None and value.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {value.dtype}")
    for name, value in (("att", att), ("h0", h0)):
        if value is not None and value.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, or float32, got {value.dtype}")
    if att is not None:
        check_shape("att", att, tuple(x.shape[:-1]))
    elif cell != "gru":
        raise ValueError(f"att must be given for cell {cell!r}, got None")
    for name, size in zip(names, layout, strict=True):
        if size is not None:
            check_integers(name, size, x.size(0) if padded else None)
    if h0 is not None:
        check_shape("h0", h0, (None, None))


def loop_attention_gru(
    inputs: Inputs, addresses: Addresses, cell: str, return_states: bool, reset_before: bool = False
) -> tuple[Tensor | None, Tensor]:
    """Run the reference loop in packed order and bring its results back to the layout of the batch."""
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = inputs
    schedule = packed_schedule(addresses)
    batch, hidden = addresses.steps.numel(), weight_hh.size(1)
    states, last = packed_loop(
        x.flatten(0, -2)[schedule.rows],
        x.new_zeros(schedule.rows.numel()) if att is None or cell == "gru" else att.flatten()[schedule.rows],
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        x.new_zeros((batch, hidden)) if h0 is None else h0[schedule.order],
        schedule.batch_sizes,
        cell,
        reset_before,
    )
    last = torch.zeros_like(last).index_copy(0, schedule.order, last)
    if not return_states:
        return None, last
    rows = x.shape[:-1].numel()
    return x.new_zeros((rows, hidden)).index_copy(0, schedule.rows, states).view(*x.shape[:-1], hidden), last


def fallback(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Run the loop on the operator's arguments, of any floating-point dtype."""
    *tensors, x_start, number, _, _ = arguments
    if x_start is not None:
        raise NotImplementedError("histories that share rows of x need the native library")
    inputs, layout = Inputs(*tensors[:7]), Layout(*tensors[7:])
    cell = next(name for name, code in CELLS.items() if code == number)
    wants_native()  # warns that the library is missing
    check_arguments(inputs, layout, cell, "after")
    x = inputs.x
    wide = inputs.converted(lambda value: value.to(_wide(x.dtype)))
    addresses = addresses_of(x, layout, inputs.h0, inputs.weight_hh.size(1))
    with torch.autocast(x.device.type, enabled=False):
        states, last = loop_attention_gru(wide, addresses, cell, return_states=True)
    assert states is not None
    return states.to(x.dtype), last.to(x.dtype), x.new_empty(0, 0)


# ---- Shapes and autograd ----


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which 16-bit inputs are computed, and of their attention and states on CUDA."""
    return torch.promote_types(dtype, torch.float32)


def _fake_forward(
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    batch_sizes: Tensor | None,
    x_start: Tensor | None,
    cell: int,
    save_states: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    others = {"att": att, "weight_ih": weight_ih, "weight_hh": weight_hh}
    others |= {"bias_ih": bias_ih, "bias_hh": bias_hh, "h0": h0}
    for name, value in others.items():
        # A single argument on the meta device brings a call here, whatever devices the others are on.
        if value is not None and value.device != x.device:
            raise RuntimeError(f"{name} must be on {x.device} as x is, got {value.device}")
    hidden = weight_hh.size(1)
    # Where histories share rows of x, only the attention has a row for every step.
    shape = x.shape[:-1] if x_start is None or att is None else att.shape
    if h0 is not None:
        batch = h0.size(0)
    elif lengths is not None:
        batch = lengths.size(0)
    elif offsets is not None:
        batch = offsets.size(0) - 1
    else:
        batch = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    if x.device.type == "cuda":  # keeps float32 states for 16-bit ones, nothing else
        kept = math.prod(shape) if save_gates and x.dtype != _wide(x.dtype) else 0
        gates = x.new_empty((kept, hidden), dtype=_wide(x.dtype))
    else:
        columns = 4 * vector_padded(hidden, [hidden], x.dtype)
        gates = x.new_empty((math.prod(shape) if save_gates else 0, columns))
    return x.new_empty((*shape, hidden) if save_states else (0, hidden)), x.new_empty((batch, hidden)), gates


def _fake_backward(
    dstates: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    batch_sizes: Tensor | None,
    states: Tensor,
    gates: Tensor,
    cell: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    bias, state = weight_hh.shape[:1], () if h0 is None else h0.shape
    shapes = (x.shape, x.shape[:-1], weight_ih.shape, weight_hh.shape, bias, bias, state)
    needs = (wanted[0], wanted[1], *[wanted[2]] * 4, wanted[3])
    wide = _wide(x.dtype) if x.device.type == "cuda" else x.dtype
    dtypes = (x.dtype, wide, *[x.dtype] * 4, wide)
    return tuple(
        x.new_empty(shape if want else (0,), dtype=dtype)
        for want, shape, dtype in zip(needs, shapes, dtypes, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, x_start, cell, _, _ = inputs
    states, _, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.shared = cell, x_start is not None
    ctx.save_for_backward(*tensors, states, gates)


def _backward(ctx: Any, dstates: Tensor | None, dlast: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if ctx.shared:
        raise NotImplementedError("attention_gru has no gradient where histories share rows of x")
    saved = ctx.saved_tensors
    bias_ih, bias_hh, h0 = saved[4:7]
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1], any(needs[2:6]), h0 is not None and needs[6]]
    dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0 = run_backward(
        torch.ops.dien_fast.attention_gru_backward.default,
        None if dstates is None else dstates.contiguous(),
        None if dlast is None else dlast.contiguous(),
        *saved,
        ctx.cell,
        wanted,
    )
    return (
        dx if needs[0] else None,
        datt if needs[1] else None,
        dweight_ih if needs[2] else None,
        dweight_hh if needs[3] else None,
        dbias_ih if bias_ih is not None and needs[4] else None,
        dbias_hh if bias_hh is not None and needs[5] else None,
        dh0 if wanted[3] else None,
        *[None] * 7,
    )


if LOADED:
    register("attention_gru", _fake_forward, _backward, _setup)
    register("attention_gru_backward", _fake_backward, refuse_double_backward("attention_gru"))
else:
    define(SCHEMA, fallback)
_OPERATOR = torch.ops.dien_fast.attention_gru.default
_EAGER = eager_autograd("attention_gru", _setup, _backward)
