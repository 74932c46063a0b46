"""Sums over all processes, for layers whose means are those of all processes' batches."""

from __future__ import annotations

import torch
from torch import Tensor


def total_of(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, through which gradients flow back to each."""
    from torch.distributed.nn.functional import all_reduce

    summed: Tensor = all_reduce(value.clone())
    return summed


def weight_of(count: Tensor) -> Tensor:
    """Return by what a mean over ``count`` terms is multiplied, so that DDP's mean is that over all terms.

    Args:
        count: number of terms in this process, a scalar of any dtype.

    Returns:
        ``count * processes / total``, a float64 scalar; 0 where no process has a term.
    """
    total = count.detach().double()
    torch.distributed.all_reduce(total)
    return count * torch.distributed.get_world_size() / total.clamp(min=1)
