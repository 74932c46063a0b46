"""Batch normalisation of rows that stand for several equal rows each, and over the batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dien_fast.nn.collectives import total_of
from dien_fast.ops.attention_scores import weighted_moments


def uses_batch_statistics(layer: nn.Module) -> bool:
    """Whether a layer is a batch normalisation that takes mean and variance from the batch."""
    return isinstance(layer, nn.BatchNorm1d) and (layer.training or layer.running_mean is None)


def weighted_batch_norm(layer: nn.BatchNorm1d, x: Tensor, shares: Tensor, count: int) -> Tensor:
    """Batch-normalise rows that stand for several equal rows each, as ``layer`` would the repeated rows.

    Args:
        layer: the normalisation; its running buffers are updated as by its own forward.
        x: ``[M, C]``.
        shares: the share of the batch each row stands for ``[M]``; they sum to 1.
        count: number of rows in the batch, repetitions included.

    Returns:
        ``[M, C]``.

    Raises:
        ValueError: if the batch is a single row in training, as torch does.
    """
    if not uses_batch_statistics(layer):
        out: Tensor = layer(x)
        return out
    if layer.training and not isinstance(layer, SynchronisedBatchNorm1d):
        check_count(count)
    if torch.is_autocast_enabled(x.device.type):
        # Statistics are float32, as in torch's own normalisation.
        with torch.autocast(x.device.type, enabled=False):
            return weighted_batch_norm(layer, x.float(), shares.float(), count)
    if isinstance(layer, SynchronisedBatchNorm1d):
        mean, centred, variance, count = _moments_of_all(x, shares, count)
    else:
        mean, centred, variance = weighted_moments(x, shares)
    if layer.training and layer.running_mean is not None:
        update_running(layer, mean, variance * (count / (count - 1)))
    normalised = centred * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        normalised = normalised * layer.weight + layer.bias
    return normalised


def update_running(norm: nn.BatchNorm1d, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Move the running buffers as the normalisation's own forward does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(unbiased_variance, momentum)


def check_count(count: int) -> None:
    """Raise torch's own ValueError for a batch of one row or none, which has no variance."""
    if count <= 1:
        raise ValueError(f"expected more than 1 value per channel when training, got {count} row")


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` whose mean and variance are those of the batches of all processes.

    In contrast to :class:`torch.nn.SyncBatchNorm` it also runs on CPUs.

    Example:
        >>> SynchronisedBatchNorm1d(4)(torch.randn(8, 4)).shape  # in one process of several # doctest: +SKIP
        torch.Size([8, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[N, C]`` or ``[N, C, L]``; same shape out."""
        if not uses_batch_statistics(self):
            return super().forward(input)
        rows = input if input.dim() == 2 else input.transpose(1, 2).flatten(0, 1)
        count = rows.size(0)
        out = weighted_batch_norm(self, rows, rows.new_full((count,), 1 / max(count, 1)), count)
        if input.dim() == 2:
            return out
        return out.view(input.size(0), input.size(2), input.size(1)).transpose(1, 2)


def _moments_of_all(x: Tensor, shares: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return mean, centred rows, variance and number of rows of the batches of all processes."""
    total = torch.tensor([count], dtype=torch.float64, device=x.device)
    total = total_of(total)
    check_count(int(total))
    shares = shares * (count / total).to(shares.dtype)
    mean = total_of(shares @ x)
    centred = x - mean
    return mean, centred, total_of(shares @ (centred * centred)), int(total)
