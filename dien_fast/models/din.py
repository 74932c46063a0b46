"""DIN, the baseline without interest evolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dien_fast.attention_group import AttentionGroup
from dien_fast.models.dien import DIEN, Batch, _pad
from dien_fast.nn.attention import Attention


class DIN(DIEN):
    """Deep Interest Network (arXiv 1706.06978): attention over the history in place of the interest layer.

    The constructor is that of :class:`DIEN`, so that one set of groups describes both models; ``gru_type``
    and the sampled histories are not used, and there is no auxiliary loss. Attention is normalised by
    softmax. Padded input is scored with the padding it has, as in :class:`dien_fast.Attention`.

    Example:
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

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new attention for a group."""
        return Attention(
            self.group_size(attention_group),
            attention_group.hidden_layers,
            dropout=attention_group.att_dropout,
            activation=attention_group.activation,
        )

    def _group_interest(self, group: AttentionGroup, query: Tensor, x: Batch) -> tuple[Tensor, Tensor | None]:
        attention = self.attention_poolings[group.name]
        assert isinstance(attention, Attention)
        ids = [x[pair["pos_hist"]] for pair in group.pairs if pair["pos_hist"] in x]
        if len(ids) < group.pairs_count or not all(isinstance(value, Tensor) for value in ids):
            return attention.forward_ragged(query, self._histories(group, "pos_hist", x)), None
        keys = torch.cat([_pad(self._embed_sequence(pair["pos_hist"], x)) for pair in group.pairs], dim=-1)
        lengths = torch.stack([(value > 0).sum(1) for value in ids if isinstance(value, Tensor)])
        return attention(query, keys, lengths.min(0).values), None
