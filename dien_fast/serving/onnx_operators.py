"""This package's operators in standard operators of ONNX.

The recurrence is translated here. Where it is a GRU, it becomes ``GRU``, for which ONNX Runtime has a kernel;
AUGRU and AGRU become a ``Loop``, whose products with the history are computed before it, once for all candidates
of a user. The other operators have plain forms, which torch's exporter translates. A whole model in onnxscript
would repeat what the modules say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
import torch
from onnxscript import FLOAT, INT64, opset18
from torch import Tensor

from dien_fast.ops import attention_scores as scoring
from dien_fast.ops import rows
from dien_fast.ops.cells import CELLS
from dien_fast.ops.layouts import owners_of

op: Any = opset18  # its types do not know that torch's exporter records calls
_OPERATORS = torch.ops.dien_fast
_INT32 = 6  # of onnx.TensorProto


# ---- Operators in plain PyTorch ----


def _scores(
    query: Tensor, keys: Tensor, offsets: Tensor, key_start: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the operator returns; its own fallback reads the number of rows on the host."""
    if key_start is not None:
        count = torch.ops.aten._local_scalar_dense(offsets[-1])
        torch._check(count >= 0)
        owner = owners_of(offsets, count)
        keys = keys[key_start[owner] + torch.arange(owner.numel()) - offsets[owner]]
    return scoring.fallback(query, keys, offsets, None, *rest)


PLAIN: dict[Any, Callable[..., Any]] = {
    _OPERATORS.attention_scores.default: _scores,
    _OPERATORS.weighted_sum.default: rows.plain_weighted_sum,
    _OPERATORS.padded_from_rows.default: rows.plain_padded_from_rows,
    _OPERATORS.rows_from_padded.default: rows.plain_rows_from_padded,
}


# ---- The recurrence ----


@onnxscript.script(default_opset=op)
def _augru(
    px: FLOAT, att: FLOAT, weight: FLOAT, bias: FLOAT, h0: FLOAT, x_start: INT64, start: INT64, lengths: INT64
) -> FLOAT:
    """Step B histories: h = h + a * u * (n - h).

    The last rows of ``px`` ``[N + 1, 3H]`` and ``att`` ``[M + 1, 1]`` are 0 and are read behind a history's end.
    An attention of 0 keeps the state.
    """
    zero = op.Constant(value_ints=[0])
    steps = op.ReduceMax(op.Concat(lengths, zero, axis=0), keepdims=0)
    x_end = op.Shape(px, start=0, end=1) - 1
    end = op.Shape(att, start=0, end=1) - 1
    h = h0
    for t in range(steps):
        active = op.Less(t, lengths)
        xu, xr, xn = op.Split(op.Gather(px, op.Where(active, op.Add(x_start, t), x_end)), num_outputs=3, axis=1)
        hu, hr, hn = op.Split(op.MatMul(h, weight) + bias, num_outputs=3, axis=1)
        n = op.Tanh(xn + op.Sigmoid(xr + hr) * hn)
        a = op.Gather(att, op.Where(active, op.Add(start, t), end))
        h = h + a * op.Sigmoid(xu + hu) * (n - h)
    return h


@onnxscript.script(default_opset=op)
def _agru(
    px: FLOAT, att: FLOAT, weight: FLOAT, bias: FLOAT, h0: FLOAT, x_start: INT64, start: INT64, lengths: INT64
) -> FLOAT:
    """Step B histories: h = h + a * (n - h), otherwise as :func:`_augru`."""
    zero = op.Constant(value_ints=[0])
    steps = op.ReduceMax(op.Concat(lengths, zero, axis=0), keepdims=0)
    x_end = op.Shape(px, start=0, end=1) - 1
    end = op.Shape(att, start=0, end=1) - 1
    h = h0
    for t in range(steps):
        active = op.Less(t, lengths)
        xr, xn = op.Split(op.Gather(px, op.Where(active, op.Add(x_start, t), x_end)), num_outputs=2, axis=1)
        hr, hn = op.Split(op.MatMul(h, weight) + bias, num_outputs=2, axis=1)
        n = op.Tanh(xn + op.Sigmoid(xr + hr) * hn)
        a = op.Gather(att, op.Where(active, op.Add(start, t), end))
        h = h + a * (n - h)
    return h


def _attention_gru(
    x: Any,
    att: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    h0: Any,
    lengths: Any,
    offsets: Any,
    batch_sizes: Any,
    x_start: Any,
    cell: int,
    save_states: bool,
    save_gates: bool,
) -> tuple[Any, Any, Any]:
    """Translate a call as models make it: ragged, from a state of 0, with biases."""
    assert offsets is not None
    assert h0 is None
    assert bias_ih is not None
    assert bias_hh is not None
    start = op.Slice(offsets, _ints(0), _ints(-1))
    counts = op.Sub(op.Slice(offsets, _ints(1), _ints(2**62)), start)
    if cell == CELLS["gru"]:
        states, last = _gru(x, start, counts, (weight_ih, weight_hh, bias_ih, bias_hh))
        return states, last, op.Identity(states)
    loop = {CELLS["augru"]: _augru, CELLS["agru"]: _agru}[cell]
    rows, hidden = weight_hh.shape
    zeros = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(counts), _ints(hidden), axis=0))
    last = loop(
        _with_zero(op.Add(op.MatMul(x, op.Transpose(weight_ih, perm=[1, 0])), bias_ih), rows),
        _with_zero(op.Unsqueeze(att, _ints(1)), 1),
        op.Transpose(weight_hh, perm=[1, 0]),
        bias_hh,
        zeros,
        start if x_start is None else x_start,
        start,
        counts,
    )
    # Models ask these cells for last states alone.
    return op.Identity(last), last, op.Identity(last)


def _gru(x: Any, start: Any, counts: Any, weights: Sequence[Any]) -> tuple[Any, Any]:
    """Return all states ``[N, H]`` and the last ones ``[B, H]`` of a GRU over ragged rows."""
    inputs, hidden = weights[0].shape[1], weights[1].shape[1]
    # ONNX Runtime crashes without a history and refuses histories without a step, so there is one more of each.
    counts, start = (op.Concat(value, _ints(0), axis=0) for value in (counts, start))
    steps = op.ReduceMax(op.Concat(counts, _ints(1), axis=0), keepdims=0)
    time = op.Unsqueeze(op.Range(op.Constant(value_int=0), steps, op.Constant(value_int=1)), _ints(1))
    active = op.Less(time, op.Unsqueeze(counts, _ints(0)))  # [T, B]
    place = op.Where(active, op.Add(time, op.Unsqueeze(start, _ints(0))), op.Shape(x, start=0, end=1))
    # ONNX has the gates in the order u, r, n.
    rows = [*range(hidden, 2 * hidden), *range(hidden), *range(2 * hidden, 3 * hidden)]
    w, r, *biases = (op.Gather(weight, _ints(*rows), axis=0) for weight in weights)
    padded, last = op.GRU(
        op.Gather(_with_zero(x, inputs), place),
        op.Unsqueeze(w, _ints(0)),
        op.Unsqueeze(r, _ints(0)),
        op.Unsqueeze(op.Concat(*biases, axis=0), _ints(0)),
        op.Cast(counts, to=_INT32),
        None,
        hidden_size=hidden,
        linear_before_reset=1,
    )
    by_history = op.Transpose(op.Squeeze(padded, _ints(1)), perm=[1, 0, 2])
    states = op.GatherND(by_history, op.Transpose(op.NonZero(op.Transpose(active, perm=[1, 0])), perm=[1, 0]))
    empty = op.Equal(op.Unsqueeze(counts, _ints(1)), _ints(0))
    last = op.Where(empty, op.Constant(value_float=0.0), op.Squeeze(last, _ints(0)))
    return states, op.Slice(last, _ints(0), _ints(-1))


def _repeat_interleave(repeats: Any, output_size: Any = None) -> Any:
    """Number each row by its history; torch's translation compares every row with every history."""
    ends = op.CumSum(repeats, op.Constant(value_int=0))
    size = op.Add(op.ReduceSum(repeats, keepdims=1), _ints(1))
    ones = op.Expand(op.Constant(value_int=1), op.Shape(ends))
    marks = op.ScatterElements(op.Expand(op.Constant(value_int=0), size), ends, ones, axis=0, reduction="add")
    return op.Slice(op.CumSum(marks, op.Constant(value_int=0)), _ints(0), _ints(-1))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _with_zero(values: Any, width: int) -> Any:
    """Append a row of zeros."""
    return op.Concat(values, op.ConstantOfShape(_ints(1, width)), axis=0)


TRANSLATIONS: dict[Callable[..., Any], Any] = {
    _OPERATORS.attention_gru.default: _attention_gru,
    torch.ops.aten.repeat_interleave.Tensor: _repeat_interleave,
}
