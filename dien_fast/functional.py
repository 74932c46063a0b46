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

from typing import NamedTuple

import torch
from torch import Tensor

from dien_fast._ops import native_attention_gru, wants_native
from dien_fast.reference.gru import attention_gru as packed_loop

GATES = {"augru": 3, "augru_official": 3, "augru_inverted": 3, "agru": 2, "gru": 3}


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
    if x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type):
        # Attention and state stay float32, and so do the products of the loop over steps.
        with torch.autocast(x.device.type, enabled=False):
            return attention_gru(
                _widened(x),
                None if att is None else _widened(att),
                _widened(weight_ih),
                _widened(weight_hh),
                None if bias_ih is None else _widened(bias_ih),
                None if bias_hh is None else _widened(bias_hh),
                None if h0 is None else _widened(h0),
                lengths=lengths,
                offsets=offsets,
                batch_sizes=batch_sizes,
                cell=cell,
                reset=reset,
                return_states=return_states,
            )
    hidden = _check_cell(cell, reset, weight_ih, weight_hh, bias_ih, bias_hh)
    given = [name for name, value in _layouts(lengths, offsets, batch_sizes) if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of lengths, offsets and batch_sizes must be given, got {given}")
    padded = lengths is not None
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
    if att is None:
        if cell != "gru":
            raise ValueError(f"att must be given for cell {cell!r}, got None")
    else:
        _check_shape("att", att, tuple(x.shape[:-1]))

    state_dtype = torch.promote_types(x.dtype, torch.float32)

    def rows_of(value: Tensor) -> Tensor:
        return value.flatten(0, 1) if padded else value

    flat_x = rows_of(x).to(state_dtype)
    flat_att = None if att is None or cell == "gru" else rows_of(att).to(state_dtype)
    layout = _layout(x, lengths, offsets, batch_sizes, h0)
    if h0 is not None:
        _check_shape("h0", h0, (layout.steps.numel(), hidden))
        h0 = h0.to(state_dtype)
    arguments = (
        flat_x,
        flat_att,
        weight_ih.to(state_dtype),
        weight_hh.to(state_dtype),
        None if bias_ih is None else bias_ih.to(state_dtype),
        None if bias_hh is None else bias_hh.to(state_dtype),
        h0,
        *layout,
        cell,
        return_states,
    )
    if reset == "after" and x.is_cpu and wants_native():
        states, last = native_attention_gru(*arguments)
    else:
        states, last = _run_loop(*arguments, reset_before=reset == "before")
    last = last.to(x.dtype)
    return (states.to(x.dtype).view(*x.shape[:-1], hidden) if return_states else None), last


class _Layout(NamedTuple):
    """Where the steps are: step t of sample b is row ``row_start[b] + step_start[t]``; int64, on x's device."""

    steps: Tensor  # [B] steps of each sample
    row_start: Tensor  # [B]
    step_start: Tensor | None  # [T], None for 0, 1, 2, ...


def _layout(
    x: Tensor, lengths: Tensor | None, offsets: Tensor | None, batch_sizes: Tensor | None, h0: Tensor | None
) -> _Layout:
    """Check the one layout that is given."""
    if lengths is not None:
        steps = check_lengths("lengths", lengths, x.size(0), x.size(1)).to(x.device)
        return _Layout(steps, torch.arange(x.size(0), device=x.device) * x.size(1), None)
    if offsets is not None:
        bounds = _check_offsets(offsets, x.size(0)).to(x.device)
        return _Layout(bounds[1:] - bounds[:-1], bounds[:-1], None)
    assert batch_sizes is not None
    sizes, batch = _check_batch_sizes(batch_sizes, x.size(0), h0)
    samples = torch.arange(batch)
    steps = (sizes > samples.unsqueeze(1)).sum(1)
    return _Layout(steps.to(x.device), samples.to(x.device), (sizes.cumsum(0) - sizes).to(x.device))


def _run_loop(
    x: Tensor,
    att: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    steps: Tensor,
    row_start: Tensor,
    step_start: Tensor | None,
    cell: str,
    return_states: bool,
    reset_before: bool,
) -> tuple[Tensor, Tensor]:
    """Run the reference loop in packed order and bring its results back to the rows of the batch."""
    schedule = packed_schedule(row_start, steps, step_start)
    hidden = weight_hh.size(1)
    initial = x.new_zeros((steps.numel(), hidden)) if h0 is None else h0[schedule.order]
    states, last = packed_loop(
        x[schedule.rows],
        x.new_zeros(schedule.rows.numel()) if att is None else att[schedule.rows],
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        initial,
        schedule.batch_sizes,
        cell,
        reset_before,
    )
    last = torch.zeros_like(last).index_copy(0, schedule.order, last)
    if return_states:
        states = x.new_zeros((x.size(0), hidden)).index_copy(0, schedule.rows, states)
    return states, last


def packed_schedule(row_start: Tensor, steps: Tensor, step_start: Tensor | None = None) -> Schedule:
    """Sort a batch into packed order; sample b's step t is row ``row_start[b] + step_start[t]``."""
    order = torch.argsort(steps, descending=True, stable=True)
    longest = int(steps.max()) if steps.numel() else 0
    time = torch.arange(longest, device=steps.device)
    active = time.unsqueeze(1) < steps[order]
    rows = (row_start[order] + (time if step_start is None else step_start).unsqueeze(1))[active]
    return Schedule(rows, active.sum(1).tolist(), order)


def _layouts(
    lengths: Tensor | None, offsets: Tensor | None, batch_sizes: Tensor | None
) -> list[tuple[str, Tensor | None]]:
    return [("lengths", lengths), ("offsets", offsets), ("batch_sizes", batch_sizes)]


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
) -> int:
    """Check the arguments that make a cell; return H."""
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
    return hidden


def _widened(value: Tensor) -> Tensor:
    """Return 16-bit numbers as float32 and any other as they are, for the checks to judge."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _check_integer(name: str, value: Tensor, size: int | None) -> Tensor:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    _check_shape(name, value, (size,))
    return value.to(torch.int64)


def check_lengths(name: str, lengths: Tensor, batch: int, longest: int) -> Tensor:
    """Return ``lengths`` as int64, or raise unless they are B integers in ``[0, T]``."""
    lengths = _check_integer(name, lengths, batch)
    if torch.compiler.is_compiling():
        # A length has no value while a graph is traced; the graph checks it when it runs.
        torch._assert_async(((lengths >= 0) & (lengths <= longest)).all(), f"{name} must lie in [0, T]")
    elif batch and (int(lengths.min()) < 0 or int(lengths.max()) > longest):
        raise ValueError(f"{name} must lie in [0, {longest}], got [{int(lengths.min())}, {int(lengths.max())}]")
    return lengths


def _check_offsets(offsets: Tensor, rows: int) -> Tensor:
    offsets = _check_integer("offsets", offsets, None)
    if torch.compiler.is_compiling():
        rising = (offsets[1:] >= offsets[:-1]).all() & (offsets[0] == 0) & (offsets[-1] == rows)
        torch._assert_async(rising, "offsets must rise from 0 to N")
        return offsets
    ends = (int(offsets[0]), int(offsets[-1])) if offsets.numel() else None
    if ends != (0, rows) or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must rise from 0 to {rows}, got {offsets.tolist()[:8]} ...")
    return offsets


def _check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> tuple[Tensor, int]:
    """Return the sizes and B; with h0, B may exceed the first size by histories without a step."""
    sizes = _check_integer("batch_sizes", batch_sizes, None).cpu()
    if torch.compiler.is_compiling():
        falling = (sizes[1:] <= sizes[:-1]).all() & (sizes >= 1).all() & (sizes.sum() == rows)
        torch._assert_async(falling, "batch_sizes must fall, be positive and sum to N")
        batch = int(sizes[0]) if h0 is None else h0.size(0)
        torch._check(batch >= 0)
        return sizes, batch
    rising = bool((sizes[1:] > sizes[:-1]).any())
    if int(sizes.sum()) != rows or rising or (sizes.numel() and int(sizes[-1]) < 1):
        raise ValueError(f"batch_sizes must fall, be positive and sum to {rows}, got {sizes.tolist()[:8]} ...")
    first = int(sizes[0]) if sizes.numel() else 0
    batch = first if h0 is None else h0.size(0)
    if batch < first:
        raise ValueError(f"h0 must have at least {first} rows, got {batch}")
    return sizes, batch
