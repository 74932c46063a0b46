"""DIN, the baseline without interest evolution."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dien_fast.models.base import ClickModel
from dien_fast.models.batches import Histories, Padded
from dien_fast.nn.attention import Attention
from dien_fast.ragged import Ragged
from dien_fast.reference.groups import AttentionGroup


class DIN(ClickModel):
    """Deep Interest Network (arXiv 1706.06978): attention over the history in place of the interest layer.

    The constructor is that of :class:`DIEN`, so that one set of groups describes both models; ``gru_type``
    and the sampled histories are not used, and there is no auxiliary loss. Attention is normalised by
    softmax. Padded input is scored with the padding it has, as in :class:`dien_fast.Attention`.

    Example:
        >>> import torch
        >>> from dien_fast import DIN, AttentionGroup
        >>> group = AttentionGroup("movies", [{"ad": "movieId", "pos_hist": "history"}], hidden_layers=[16, 8])
        >>> model = DIN(
        ...     num_features=[],
        ...     cat_features=["movieId"],
        ...     seq_features=["history"],
        ...     cat_nums={"movieId": 100, "history": 100},
        ...     embedding_size=16,
        ...     attention_groups=[group],
        ...     mlp_hidden_layers=[32, 16],
        ... )
        >>> logits, auxiliary_loss = model(
        ...     {"movieId": torch.tensor([5, 6]), "history": torch.tensor([[7, 8, 0], [9, 0, 0]])}
        ... )
        >>> logits.shape, auxiliary_loss
        (torch.Size([2]), None)
    """

    # The batch statistics of its attention include the padding, whatever stands there.
    keeps_padding: ClassVar[bool] = True

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new attention for a group."""
        return Attention(
            self.group_size(attention_group),
            attention_group.hidden_layers,
            dropout=attention_group.att_dropout,
            activation=attention_group.activation,
        )

    def pool_group(
        self, layer: nn.Module, query: Tensor, clicked: Histories, sampled: Histories | None
    ) -> tuple[Tensor, Tensor | None]:
        """Sum the events ``[B, D]``, weighted by their attention; there is no auxiliary loss."""
        assert isinstance(layer, Attention)
        if isinstance(clicked, Ragged):
            return layer.forward_ragged(query, clicked), None
        assert isinstance(clicked, Padded)
        return layer(query, clicked.values, clicked.lengths), None
