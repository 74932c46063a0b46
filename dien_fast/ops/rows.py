"""Operators on ragged rows: copies from and to padded ones, weighted sums, and sums by id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dien_fast.ops.backend import LOADED, Kernels
from dien_fast.ops.dispatch import (
    below_autograd,
    define,
    eager_autograd,
    needs_gradient,
    refuse_double_backward,
    register,
    run,
    run_backward,
)
from dien_fast.ops.layouts import owners_of

# As in csrc/library.cpp.
SCHEMAS = {
    "rows_from_padded": "rows_from_padded(Tensor padded, Tensor offsets) -> Tensor",
    "padded_from_rows": "padded_from_rows(Tensor values, Tensor offsets, SymInt steps) -> Tensor",
    "weighted_sum": "weighted_sum(Tensor values, Tensor weights, Tensor offsets) -> Tensor",
}

_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COPIED = (*_INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64)

COPY_KERNELS = Kernels("rows_from_padded", {"cpu": _COPIED, "cuda": _COPIED})
PAD_KERNELS = Kernels("padded_from_rows", {"cpu": _COPIED, "cuda": _COPIED})
SUM_KERNELS = Kernels("weighted_sum")
ADD_KERNELS = Kernels("add_rows_")


# ---- Rows of padded histories ----


def rows_from_padded(padded: Tensor, offsets: Tensor) -> Tensor:
    """Return the valid rows ``[N, ...]`` of ``padded`` ``[B, T, ...]``; N = ``offsets[-1]``."""
    padded = padded.contiguous()
    rows: Tensor = run(_ROWS, _EAGER_ROWS, needs_gradient(padded), (padded, offsets))
    return rows


def plain_rows_from_padded(padded: Tensor, offsets: Tensor) -> Tensor:
    """Return what :func:`rows_from_padded` returns."""
    lengths = offsets[1:] - offsets[:-1]
    return padded[torch.arange(padded.size(1), device=padded.device) < lengths.unsqueeze(1)]


def known_rows(padded: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """Return what :func:`rows_from_padded` returns, where the number N of ``rows`` is known: nothing waits."""
    owner = owners_of(offsets, rows)
    place = owner * padded.size(1) + torch.arange(rows, device=owner.device) - offsets[owner]
    return padded.flatten(0, 1).index_select(0, place)


def _fake_rows(padded: Tensor, offsets: Tensor) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return padded.new_empty((rows, *padded.shape[2:]))


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.steps = inputs[0].size(1)
    ctx.save_for_backward(inputs[1])


def _rows_backward(ctx: Any, drows: Tensor) -> tuple[Any, ...]:
    return padded_from_rows(drows, ctx.saved_tensors[0], ctx.steps), None


class _FrontRows(torch.autograd.Function):
    """Valid rows in front of unused ones, whose gradients are not looked at."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, offsets: Tensor) -> Tensor:
        batch, steps = padded.shape[:2]
        ctx.steps = steps
        ctx.save_for_backward(offsets)
        place = torch.arange(batch * steps, device=padded.device)
        used = place < offsets[-1]
        owner = torch.searchsorted(offsets[1:], place, right=True).clamp(max=batch - 1)
        source = torch.where(used, owner * steps + place - offsets[owner], 0)
        return padded.flatten(0, 1).index_select(0, source)

    @staticmethod
    def backward(ctx: Any, drows: Tensor) -> tuple[Tensor, None]:
        return padded_from_rows(drows, ctx.saved_tensors[0], ctx.steps), None


def front_rows(padded: Tensor, offsets: Tensor) -> Tensor:
    """Return the valid rows of padded histories, in front of rows that belong to none; nothing waits for a device.

    For kernels that read from the last offset how many rows are in use, and no others.

    Args:
        padded: ``[B, T, ...]``, B and T at least 1.
        offsets: ``[B + 1]`` int64, from 0 to N.

    Returns:
        ``[B T, ...]``; the first N rows are those that :func:`rows_from_padded` returns.
    """
    rows: Tensor = _FrontRows.apply(padded.contiguous(), offsets)
    return rows


# ---- Padding of ragged rows ----


def padded_from_rows(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """Return rows ``[N, ...]`` padded with zeros ``[B, steps, ...]``."""
    values = values.contiguous()
    padded: Tensor = run(_PADDED, _EAGER_PADDED, needs_gradient(values), (values, offsets, steps))
    return padded


def plain_padded_from_rows(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """Return what :func:`padded_from_rows` returns."""
    batch = offsets.numel() - 1
    owner = owners_of(offsets, values.size(0))
    step = torch.arange(owner.numel(), device=owner.device) - offsets[owner]
    padded = values.new_zeros((batch * steps, *values.shape[1:]))
    return padded.index_copy(0, owner * steps + step, values).view(batch, steps, *values.shape[1:])


def _fake_padded(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    return values.new_empty((offsets.size(0) - 1, steps, *values.shape[1:]))


def _padded_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rows = inputs[0].size(0)
    ctx.save_for_backward(inputs[1])


def _padded_backward(ctx: Any, dpadded: Tensor) -> tuple[Any, ...]:
    (offsets,) = ctx.saved_tensors
    if COPY_KERNELS.take(dpadded):
        return rows_from_padded(dpadded, offsets), None, None
    return known_rows(dpadded, offsets, ctx.rows), None, None


# ---- Weighted sums ----


def weighted_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return the sum of each history's rows ``[N, D]`` times their weights ``[N]``, ``[B, D]``."""
    values, weights = values.contiguous(), weights.contiguous()
    total: Tensor = run(_SUM, _EAGER_SUM, needs_gradient(values, weights), (values, weights, offsets))
    return total


def plain_weighted_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return what :func:`weighted_sum` returns."""
    weighted = values * weights.unsqueeze(1)
    total = weighted.new_zeros(offsets.numel() - 1, values.size(1))
    return total.index_add(0, owners_of(offsets, values.size(0)), weighted)


def _fake_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return values.new_empty((offsets.size(0) - 1, values.size(1)))


def _fake_sum_backward(dsum: Tensor, values: Tensor, weights: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), values.new_empty(weights.shape)


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sum_backward(ctx: Any, dsum: Tensor) -> tuple[Any, ...]:
    operator = torch.ops.dien_fast.weighted_sum_backward.default
    return *run_backward(operator, dsum.contiguous(), *ctx.saved_tensors), None


# ---- Sums by id ----


def add_rows_(out: Tensor, rows: Tensor, ids: Tensor, padding: int) -> None:
    """Add row i of ``rows`` ``[N, D]`` to row ``ids[i]`` of ``out`` ``[V, D]`` in place, without gradient.

    Args:
        out: ``[V, D]``, contiguous.
        rows: ``[N, D]``, contiguous.
        ids: ``[N]`` int64, from 0 to V - 1.
        padding: an id whose rows are left out; -1 is none.
    """
    below_autograd(torch.ops.dien_fast.add_rows_.default, out, rows, ids, padding)


def sum_by_id(rows: Tensor, ids: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Sum the rows of equal ids, natively and without gradient.

    Args:
        rows: ``[N, D]``, contiguous.
        ids: ``[N]`` int64, contiguous, at least 0.
        padding: an id that is left out; -1 is none.

    Returns:
        The U different ids, rising, ``[U]`` int64, and the sum of each one's rows in their order ``[U, D]``.
    """
    distinct, total = below_autograd(torch.ops.dien_fast.sum_by_id.default, rows, ids, padding)
    return distinct, total


def _fake_sum_by_id(rows: Tensor, ids: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    different = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(different), rows.new_empty((different, rows.size(1)))


if LOADED:
    register("rows_from_padded", _fake_rows, _rows_backward, _rows_setup)
    register("padded_from_rows", _fake_padded, _padded_backward, _padded_setup)
    register("weighted_sum", _fake_sum, _sum_backward, _sum_setup)
    register("weighted_sum_backward", _fake_sum_backward, refuse_double_backward("weighted_sum"))
    register("add_rows_", lambda out, rows, ids, padding: None)
    register("sum_by_id", _fake_sum_by_id)
else:
    define(SCHEMAS["rows_from_padded"], plain_rows_from_padded)
    define(SCHEMAS["padded_from_rows"], plain_padded_from_rows)
    define(SCHEMAS["weighted_sum"], plain_weighted_sum)
_ROWS, _EAGER_ROWS = (
    torch.ops.dien_fast.rows_from_padded.default,
    eager_autograd("rows_from_padded", _rows_setup, _rows_backward),
)
_PADDED, _EAGER_PADDED = (
    torch.ops.dien_fast.padded_from_rows.default,
    eager_autograd("padded_from_rows", _padded_setup, _padded_backward),
)
_SUM, _EAGER_SUM = (
    torch.ops.dien_fast.weighted_sum.default,
    eager_autograd("weighted_sum", _sum_setup, _sum_backward),
)
