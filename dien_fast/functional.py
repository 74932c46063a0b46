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

import torch
from torch import Tensor

from dien_fast.ops import layouts
from dien_fast.ops.attention_gru import KERNELS, check_arguments, loop_attention_gru, native_attention_gru
from dien_fast.ops.backend import wants_native, warn_of_device
from dien_fast.ops.cells import CELLS, Inputs
from dien_fast.ops.cells import GATES as GATES
from dien_fast.ops.layouts import Layout, addresses_of


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
    float32; under autocast they may stand beside float32 ones, and the results are float32. The native kernels
    on the CPU compute with zero in place of denormal numbers.

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
    inputs = Inputs(x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    layout = Layout(lengths, offsets, batch_sizes)
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        # Attention and state stay float32, and so do the products of the loop over steps.
        with torch.autocast(x.device.type, enabled=False):
            return _run(inputs.converted(_widened), layout, cell, reset, return_states)
    if reset == "after" and KERNELS.take(x) and cell in CELLS and wants_native():
        return _run_native(inputs, layout, cell, return_states)
    return _run(inputs, layout, cell, reset, return_states)


def _run_native(inputs: Inputs, layout: Layout, cell: str, return_states: bool) -> tuple[Tensor | None, Tensor]:
    """Run the operator, which checks its arguments; to check them here would take longer than a short call."""
    x, att, _, _, _, _, h0 = inputs
    if torch.compiler.is_compiling():
        # What is known while a graph is traced; the operator checks everything when it runs.
        check_arguments(inputs, layout, cell, "after")
    elif layouts.CHECK and not x.is_cpu:
        _check_all(inputs, layout, cell)
    if cell == "gru" and att is not None:
        if att.shape != x.shape[:-1] or att.dtype not in (x.dtype, torch.float32) or att.device != x.device:
            check_arguments(inputs, layout, cell, "after")
        att = None
        inputs = inputs._replace(att=None)
    # float64 may come with float32 attention and state; on CUDA, those of 16-bit inputs are float32.
    wide = x.dtype if x.is_cpu else torch.promote_types(x.dtype, torch.float32)
    if att is not None and att.dtype != wide and att.dtype in (torch.float32, x.dtype):
        inputs = inputs._replace(att=att.to(wide))
    if h0 is not None and h0.dtype != wide and h0.dtype in (torch.float32, x.dtype):
        inputs = inputs._replace(h0=h0.to(wide))
    try:
        states, last = native_attention_gru(inputs, layout, cell, return_states)
    except RuntimeError:
        # The operator refuses with one sentence; these checks raise it with its type.
        _check_all(inputs, layout, cell)
        raise
    return (states if return_states else None), last


def _run(
    inputs: Inputs, layout: Layout, cell: str, reset: str, return_states: bool
) -> tuple[Tensor | None, Tensor]:
    """Check a call that the operator does not take as it is, then widen it for the operator or run the loop."""
    check_arguments(inputs, layout, cell, reset)
    x = inputs.x
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = inputs.converted(lambda value: value.to(dtype))
    if reset == "after" and KERNELS.are_used(wide.x):
        states, last = _run_native(wide, layout, cell, return_states)
    else:
        warn_of_device(x.device)
        addresses = addresses_of(x, layout, inputs.h0, inputs.weight_hh.size(1))
        states, last = loop_attention_gru(wide, addresses, cell, return_states, reset == "before")
    return (None if states is None else states.to(x.dtype)), last.to(x.dtype)


def _check_all(inputs: Inputs, layout: Layout, cell: str) -> None:
    """Check everything that the operator checks, lengths and offsets too."""
    check_arguments(inputs, layout, cell, "after")
    addresses_of(inputs.x, layout, inputs.h0, inputs.weight_hh.size(1))


def _widened(value: Tensor) -> Tensor:
    """Return 16-bit numbers as float32, and others as they are: the checks refuse what does not fit."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
