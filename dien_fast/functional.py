"""The recurrence as a function: GRU, AGRU and the three rules of AUGRU over any layout of a batch.

With the gates of input ``x`` and state ``h``::

    u = sigmoid(W_u x + b_iu + U_u h + b_hu)          update gate (absent in agru)
    r = sigmoid(W_r x + b_ir + U_r h + b_hr)          reset gate
    n = tanh(W_n x + b_in + r * (U_n h + b_hn))       reset="after", as PyTorch and cuDNN
    n = tanh(W_n x + b_in + U_n (r * h) + b_hn)       reset="before", as the paper's TensorFlow code
    h <- h + z * (n - h)

a cell is a rule for z, the share of the state that a step replaces, from u and the attention ``a``::

    cell             z                  rows of weight_ih, weight_hh and the biases
    augru            a * u              (u | r | n)   DIEN, equations 8 and 9
    augru_official   1 - (1 - a) * u    (u | r | n)   mouna99/dien, oneDNN, OpenVINO
    augru_inverted   1 - a * u          (u | r | n)   prediction-flow
    agru             a                  (r | n)       DIEN, equation 7
    gru              1 - u              (r | u | n)   torch.nn.GRU
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dien_fast.ops.attention_gru import CELLS, has_kernels, native_attention_gru, wants_native, warn_of_device
from dien_fast.reference.gru import attention_gru as packed_loop

GATES = {cell: 2 if cell == "agru" else 3 for cell in CELLS}

# Whether calls on CUDA wait for the device to check lengths and offsets; the kernels cut them to what is there.
_CHECK = os.environ.get("DIEN_FAST_CHECK") == "1"

_Sizes = tuple[Tensor | None, Tensor | None, Tensor | None]  # lengths, offsets, batch_sizes


class _Leaves(NamedTuple):
    """The tensors of a call that have gradients."""

    x: Tensor
    att: Tensor | None
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    h0: Tensor | None


class Schedule(NamedTuple):
    """Packed order of a batch: which rows run at which step."""

    rows: Tensor  # [N] row of x at each packed position
    batch_sizes: list[int]
    order: Tensor  # [B] samples, longest first


def attention_gru(
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    cell: str = "augru",
    reset: str = "after",
    return_states: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Run the recurrence over a batch of histories.

    Exactly one of ``lengths``, ``offsets`` and ``batch_sizes`` tells the layout. I is the input size, H the
    hidden size, and G the number of gates (2 for ``"agru"``, else 3). 16-bit arguments are computed in
    float32; under autocast they may stand beside float32 ones, and the results are float32.

    Args:
        x: inputs: padded ``[B, T, I]`` with ``lengths``, ragged ``[N, I]`` with ``offsets``, or packed
            ``[N, I]`` with ``batch_sizes``. Padded positions are never read.
        att: attention of each step, ``[B, T]`` or ``[N]``, of any sign and size; None for ``"gru"`` alone.
        weight_ih: ``[G * H, I]``, rows as in the table of this module.
        weight_hh: ``[G * H, H]``.
        bias_ih: ``[G * H]``; None is zero.
        bias_hh: ``[G * H]``; None is zero.
        h0: initial states ``[B, H]``, in packed (sorted) order for the packed layout; None is zero.
        lengths: steps of each history ``[B]``, any integer dtype, 0 to T.
        offsets: first row of each history and N at the end, ``[B + 1]``.
        batch_sizes: number of histories that have a step t, ``[T]`` on the CPU, as in PackedSequence.
        cell: ``"augru"``, ``"augru_official"``, ``"augru_inverted"``, ``"agru"`` or ``"gru"``.
        reset: ``"after"`` or ``"before"``: whether r multiplies after or before the product with U_n.
        return_states: whether all states are returned.

    Returns:
        The states in the layout of ``x`` (``[B, T, H]`` or ``[N, H]``, 0 on padding; None unless
        ``return_states``) and the last state of each history ``[B, H]``: h0 for an empty one.

    Raises:
        ValueError: for a wrong shape, layout, length, device or name; the message names the argument.
        TypeError: for a wrong dtype.

    Example:
        >>> x, att = torch.randn(2, 5, 4), torch.rand(2, 5)
        >>> weight_ih, weight_hh = torch.randn(24, 4), torch.randn(24, 8)
        >>> states, last = attention_gru(x, att, weight_ih, weight_hh, lengths=torch.tensor([5, 2]))
        >>> states.shape, last.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
    """
    leaves = _Leaves(x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    layout = (lengths, offsets, batch_sizes)
    if torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type):
        # Attention and state stay float32, and so do the products of the loop over steps.
        with torch.autocast(x.device.type, enabled=False):
            return _run(_converted(leaves, _widened), layout, cell, reset, return_states)
    if reset == "after" and has_kernels(x) and cell in CELLS and wants_native():
        return _run_native(leaves, layout, cell, return_states)
    return _run(leaves, layout, cell, reset, return_states)


def _run_native(leaves: _Leaves, layout: _Sizes, cell: str, return_states: bool) -> tuple[Tensor | None, Tensor]:
    """Run the operator, which checks what it gets; checks here would cost more than a short call."""
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = leaves
    if torch.compiler.is_compiling():
        # What a graph can know before it runs; the operator checks everything when it does.
        _check(leaves, layout, cell, "after")
    if cell == "gru" and att is not None:
        if att.shape != x.shape[:-1] or att.dtype not in (x.dtype, torch.float32) or att.device != x.device:
            _check(leaves, layout, cell, "after")
        att = None
    if _CHECK and not x.is_cpu and not torch.compiler.is_compiling():
        _check(leaves, layout, cell, "after")
        _layout(x, *layout, h0, weight_hh.size(1))
    # float64 may come with float32 attention and state; on CUDA, those of 16-bit inputs are float32.
    wide = x.dtype if x.is_cpu else torch.promote_types(x.dtype, torch.float32)
    if att is not None and att.dtype != wide and att.dtype in (torch.float32, x.dtype):
        att = att.to(wide)
    if h0 is not None and h0.dtype != wide and h0.dtype in (torch.float32, x.dtype):
        h0 = h0.to(wide)
    try:
        states, last = native_attention_gru(
            x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0, layout, cell, return_states
        )
    except RuntimeError:
        # The operator refuses with one sentence; these checks raise it with its type.
        _check(leaves, layout, cell, "after")
        _layout(x, *layout, h0, weight_hh.size(1))
        raise
    return (states if return_states else None), last


def _run(
    leaves: _Leaves, layout: _Sizes, cell: str, reset: str, return_states: bool
) -> tuple[Tensor | None, Tensor]:
    """Check a call that the operator does not take as it is, then widen it for the operator or run the loop."""
    _check(leaves, layout, cell, reset)
    x = leaves.x
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = _converted(leaves, lambda value: value.to(dtype))
    if reset == "after" and has_kernels(wide.x) and wants_native():
        states, last = _run_native(wide, layout, cell, return_states)
    else:
        warn_of_device(x.device)
        states, last = _run_loop(
            wide, _layout(x, *layout, leaves.h0, leaves.weight_hh.size(1)), cell, return_states, reset == "before"
        )
    return (None if states is None else states.to(x.dtype)), last.to(x.dtype)


def _check(leaves: _Leaves, layout: _Sizes, cell: str, reset: str) -> None:
    """Check names, shapes, devices and dtypes."""
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = leaves
    _check_cell(cell, reset, weight_ih, weight_hh, bias_ih, bias_hh)
    names = ("lengths", "offsets", "batch_sizes")
    given = [name for name, value in zip(names, layout, strict=True) if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of lengths, offsets and batch_sizes must be given, got {given}")
    padded = layout[0] is not None
    _check_shape("x", x, (None, None, weight_ih.size(1)) if padded else (None, weight_ih.size(1)))
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
        _check_shape("att", att, tuple(x.shape[:-1]))
    elif cell != "gru":
        raise ValueError(f"att must be given for cell {cell!r}, got None")
    for name, size in zip(names, layout, strict=True):
        if size is not None:
            _check_integer(name, size, x.size(0) if padded else None)
    if h0 is not None:
        _check_shape("h0", h0, (None, None))


class _Layout(NamedTuple):
    """Where the steps are: step t of sample b is row ``row_start[b] + step_start[t]``; int64, on x's device."""

    steps: Tensor  # [B] steps of each sample
    row_start: Tensor  # [B]
    step_start: Tensor | None  # [T], None for 0, 1, 2, ...


def _layout(
    x: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    hidden: int,
) -> _Layout:
    """Check the values of the one layout that is given, and h0 against it."""
    if lengths is not None:
        steps = check_lengths("lengths", lengths, x.size(0), x.size(1)).to(x.device)
        layout = _Layout(steps, torch.arange(x.size(0), device=x.device) * x.size(1), None)
    elif offsets is not None:
        bounds = _check_offsets(offsets, x.size(0)).to(x.device)
        layout = _Layout(bounds[1:] - bounds[:-1], bounds[:-1], None)
    else:
        assert batch_sizes is not None
        sizes, batch = _check_batch_sizes(batch_sizes, x.size(0), h0)
        samples = torch.arange(batch)
        steps = (sizes > samples.unsqueeze(1)).sum(1)
        layout = _Layout(steps.to(x.device), samples.to(x.device), (sizes.cumsum(0) - sizes).to(x.device))
    if h0 is not None:
        _check_shape("h0", h0, (layout.steps.numel(), hidden))
    return layout


def _run_loop(
    leaves: _Leaves, layout: _Layout, cell: str, return_states: bool, reset_before: bool
) -> tuple[Tensor | None, Tensor]:
    """Run the reference loop in packed order and bring its results back to the layout of the batch."""
    x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0 = leaves
    schedule = packed_schedule(layout.row_start, layout.steps, layout.step_start)
    batch, hidden = layout.steps.numel(), weight_hh.size(1)
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


def packed_schedule(row_start: Tensor, steps: Tensor, step_start: Tensor | None = None) -> Schedule:
    """Sort a batch into packed order; sample b's step t is row ``row_start[b] + step_start[t]``."""
    order = torch.argsort(steps, descending=True, stable=True)
    longest = int(steps.max()) if steps.numel() else 0
    time = torch.arange(longest, device=steps.device)
    active = time.unsqueeze(1) < steps[order]
    rows = (row_start[order] + (time if step_start is None else step_start).unsqueeze(1))[active]
    return Schedule(rows, active.sum(1).tolist(), order)


def _check_shape(name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise unless ``value`` has ``shape``, where None stands for any size."""
    if value.dim() != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, value.shape, strict=True)
    ):
        wanted = ", ".join("*" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}")


def _check_cell(
    cell: str,
    reset: str,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> None:
    """Check the arguments that make a cell."""
    if cell not in GATES:
        raise ValueError(f"cell must be one of {sorted(GATES)}, got {cell!r}")
    if reset not in ("after", "before"):
        raise ValueError(f"reset must be 'after' or 'before', got {reset!r}")
    _check_shape("weight_hh", weight_hh, (None, None))
    rows, hidden = GATES[cell] * weight_hh.size(1), weight_hh.size(1)
    _check_shape("weight_hh", weight_hh, (rows, hidden))
    if hidden == 0:
        raise ValueError(f"weight_hh must have at least one column, got shape {tuple(weight_hh.shape)}")
    _check_shape("weight_ih", weight_ih, (rows, None))
    for name, value in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if value is not None:
            _check_shape(name, value, (rows,))


def _widened(value: Tensor) -> Tensor:
    """Return 16-bit numbers as float32 and any other as they are, for the checks to judge."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _converted(leaves: _Leaves, convert: Callable[[Tensor], Tensor]) -> _Leaves:
    return _Leaves._make(None if value is None else convert(value) for value in leaves)


def _check_integer(name: str, value: Tensor, size: int | None) -> Tensor:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    _check_shape(name, value, (size,))
    return value.to(torch.int64)


def check_lengths(name: str, lengths: Tensor, batch: int, longest: int) -> Tensor:
    """Return ``lengths`` as int64, or raise unless they are B integers in ``[0, T]``.

    Those on another device than the CPU are cut to ``[0, T]``; to look at them would wait for it.
    """
    lengths = _check_integer(name, lengths, batch)
    if torch.compiler.is_compiling():
        # A length has no value while a graph is traced; the graph checks it when it runs.
        torch._assert_async(((lengths >= 0) & (lengths <= longest)).all(), f"{name} must lie in [0, T]")
    elif not lengths.is_cpu and not _CHECK:
        return lengths.clamp(0, longest)
    elif batch and (int(lengths.min()) < 0 or int(lengths.max()) > longest):
        raise ValueError(f"{name} must lie in [0, {longest}], got [{int(lengths.min())}, {int(lengths.max())}]")
    return lengths


def _check_offsets(offsets: Tensor, rows: int) -> Tensor:
    offsets = _check_integer("offsets", offsets, None)
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else None
    if ends != (0, rows) or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must rise from 0 to {rows}, got {offsets.tolist()[:8]} ...")
    return offsets


def _check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> tuple[Tensor, int]:
    """Return the sizes and B; with h0, B may exceed the first size by histories without a step."""
    sizes = _check_integer("batch_sizes", batch_sizes, None).cpu()
    rising = bool((sizes[1:] > sizes[:-1]).any())
    if int(sizes.sum()) != rows or rising or (sizes.numel() and int(sizes[-1]) < 1):
        raise ValueError(f"batch_sizes must fall, be positive and sum to {rows}, got {sizes.tolist()[:8]} ...")
    first = int(sizes[0]) if sizes.numel() else 0
    batch = first if h0 is None else h0.size(0)
    if batch < first:
        raise ValueError(f"h0 must have at least {first} rows, got {batch}")
    return sizes, batch
