"""An embedding table whose gradient is summed natively."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dien_fast._interest_ops import embedding, runs_natively


class Embedding(nn.Embedding):
    """:class:`torch.nn.Embedding`, to the same bits, with a gradient that takes a fifth of the time on the CPU.

    Tables with ``sparse``, ``max_norm`` or ``scale_grad_by_freq``, and everything that is compiled, traced or on
    another device, are torch's own.

    Example:
        >>> Embedding(100, 16, padding_idx=0)(torch.tensor([3, 0])).shape
        torch.Size([2, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]`` int64; returns ``[..., embedding_dim]``."""
        plain = self.sparse or self.scale_grad_by_freq or self.max_norm is not None
        if plain or torch.compiler.is_compiling() or not runs_natively(self.weight):
            return super().forward(input)
        return embedding(input, self.weight, self.padding_idx)
