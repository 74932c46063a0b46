"""Operators that move the rows of an embedding table that have a gradient, as an optimizer says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dien_fast.ops.backend import LOADED, Kernels
from dien_fast.ops.dispatch import below_autograd, register

ADAM_KERNELS = Kernels("adam_rows_")
ADAGRAD_KERNELS = Kernels("adagrad_rows_")


class Adam(NamedTuple):
    """The numbers of a step of Adam (arXiv 1412.6980, algorithm 1).

    Attributes:
        rate: step size over what corrects the bias of the first moment, ``1 - first ** step``.
        decay: L2 penalty.
        first: decay of the first moment.
        second: decay of the second moment.
        root: 1 over the root of what corrects the bias of the second moment.
        eps: what is added to the root in the denominator.
    """

    rate: float
    decay: float
    first: float
    second: float
    root: float
    eps: float


def adam_rows_(table: Tensor, average: Tensor, square: Tensor, change: Tensor, rows: Tensor, of: Adam) -> None:
    """Move rows of a table and of its moments in place, without gradient.

    Args:
        table: ``[V, D]``, contiguous.
        average: first moments ``[V, D]``.
        square: second moments ``[V, D]``.
        change: gradients of the rows ``[U, D]``.
        rows: their numbers ``[U]`` int64, rising.
        of: the numbers of the step.
    """
    if ADAM_KERNELS.are_used(table, average, square, change):
        below_autograd(torch.ops.dien_fast.adam_rows_.default, table, average, square, change, rows, *of)
        return
    weights = table.index_select(0, rows)
    gradient = change.add(weights, alpha=of.decay)
    first = average.index_select(0, rows).lerp_(gradient, 1 - of.first)
    second = square.index_select(0, rows).mul_(of.second).addcmul_(gradient, gradient, value=1 - of.second)
    average.index_copy_(0, rows, first)
    square.index_copy_(0, rows, second)
    table.index_copy_(0, rows, weights.addcdiv_(first, second.sqrt_().mul_(of.root).add_(of.eps), value=-of.rate))


def adagrad_rows_(
    table: Tensor, total: Tensor, change: Tensor, rows: Tensor, rate: float, decay: float, eps: float
) -> None:
    """Move rows of a table by Adagrad with one sum a row, in place, without gradient.

    Args:
        table: ``[V, D]``, contiguous.
        total: sums of the rows' mean squared gradients ``[V]``.
        change: gradients of the rows ``[U, D]``.
        rows: their numbers ``[U]`` int64, rising.
        rate: step size.
        decay: L2 penalty.
        eps: what is added to the root in the denominator.
    """
    if ADAGRAD_KERNELS.are_used(table, total, change):
        operator = torch.ops.dien_fast.adagrad_rows_.default
        below_autograd(operator, table, total, change, rows, rate, decay, eps)
        return
    weights = table.index_select(0, rows)
    gradient = change.add(weights, alpha=decay)
    sums = total.index_select(0, rows).add_(gradient.square().mean(1))
    total.index_copy_(0, rows, sums)
    table.index_copy_(0, rows, weights.addcdiv_(gradient, sums.sqrt().add_(eps).unsqueeze(1), value=-rate))


if LOADED:
    register("adam_rows_", lambda table, average, square, change, rows, *numbers: None)
    register("adagrad_rows_", lambda table, total, change, rows, *numbers: None)
