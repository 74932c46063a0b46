"""DIN, the baseline without interest evolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dien_fast.models.dien import DIEN, Batch, _side_by_side, _values
from dien_fast.nn.attention import Attention
from dien_fast.ragged import Ragged
from dien_fast.reference.groups import AttentionGroup

_LENGTHS = "\0lengths"  # stands for the lengths of padded histories among features


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

    def _group_histories(
        self, group: AttentionGroup, x: Batch, with_negatives: bool = True
    ) -> list[tuple[str, Tensor | Ragged]]:
        ids = [(pair["pos_hist"], x[pair["pos_hist"]]) for pair in group.pairs if pair["pos_hist"] in x]
        if len(ids) == group.pairs_count and all(
            isinstance(value, Tensor) and value.dim() == 2 for _, value in ids
        ):
            # How long they are is said by the ids alone.
            lengths = torch.stack([(value > 0).sum(1) for _, value in ids if isinstance(value, Tensor)])
            return [*ids, (_LENGTHS, lengths.min(0).values)]
        return super()._group_histories(group, x, with_negatives=False)

    def _embed(self, requests: Sequence[tuple[str, Tensor | Ragged]]) -> list[Tensor | Ragged]:
        vectors = iter(super()._embed([request for request in requests if request[0] != _LENGTHS]))
        return [ids if feature == _LENGTHS else next(vectors) for feature, ids in requests]

    def _group_interest(
        self, group: AttentionGroup, query: Tensor, histories: Sequence[Tensor | Ragged]
    ) -> tuple[Tensor, Tensor | None]:
        attention = self._attention(group)
        if isinstance(histories[0], Ragged):
            return attention.forward_ragged(query, _side_by_side(histories)), None
        *keys, lengths = (value for value in histories if isinstance(value, Tensor))
        return attention(query, torch.cat(keys, dim=-1), lengths), None

    def _candidate_interest(
        self,
        group: AttentionGroup,
        query: Tensor,
        histories: Sequence[Tensor | Ragged],
        owner: Tensor,
        candidate_offsets: Tensor | None,
    ) -> Tensor:
        if isinstance(histories[0], Ragged):
            return self._attention(group).forward_ragged(query, _side_by_side(histories).take(owner))
        return self._group_interest(group, query, [_values(value)[owner] for value in histories])[0]

    def _attention(self, group: AttentionGroup) -> Attention:
        attention = self.attention_poolings[group.name]
        assert isinstance(attention, Attention)
        return attention
