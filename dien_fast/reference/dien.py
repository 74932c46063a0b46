"""The whole model over padded batches, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from dien_fast.reference.base import ClickModel
from dien_fast.reference.groups import AttentionGroup
from dien_fast.reference.interest import Interest


class DIEN(ClickModel):
    """Deep Interest Evolution Network: embeddings, one interest layer per group, and an MLP.

    Args:
        num_features: names of numeric features.
        cat_features: names of categorical features.
        seq_features: names of sequence features: histories, sampled histories, and sequences that are
            max-pooled.
        cat_nums: vocabulary size of each categorical and sequence feature, padding id 0 included.
        embedding_size: embedding size of every feature, or a dict with the size of each.
        attention_groups: what is compared with what.
        mlp_hidden_layers: output sizes of the last MLP's layers.
        mlp_activation: name of that MLP's activation.
        mlp_dropout: dropout probability inside that MLP.
        use_negsampling: whether the pairs have sampled histories and the auxiliary loss is computed.
        d_out: number of logits per row.
        shared_embeddings: features that use the embedding table of another, ``{feature: owner}``. None gives
            every feature a table of its own.

    Raises:
        ValueError: if the feature lists, sizes, groups and shared tables do not fit together.
    """

    interest_type: ClassVar[type[Interest]] = Interest

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new interest layer for a group."""
        return self.interest_type(
            self.group_size(attention_group),
            gru_type=attention_group.gru_type,
            gru_dropout=attention_group.gru_dropout,
            att_hidden_layers=attention_group.hidden_layers,
            att_dropout=attention_group.att_dropout,
            att_activation=attention_group.activation,
            use_negsampling=self.use_negsampling,
        )

    def forward(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Score a padded batch.

        Args:
            x: numeric features ``[B]`` float, categorical features ``[B]`` int64, sequence features
                ``[B, T]`` int64 with 0 behind each sequence. A history's length is its number of ids
                above 0, the least of a group's pairs.

        Returns:
            Logits ``[B]``, or ``[B, d_out]`` for ``d_out > 1``, and the mean of the groups' auxiliary
            losses (None without negatives).
        """
        tables = self.embeddings
        inputs = [x[feature].reshape(-1, 1) for feature in self.num_features]
        embedded = {feature: tables[feature](x[feature]) for feature in self.cat_features}
        inputs += embedded.values()
        inputs += [pool(tables[feature](x[feature])) for feature, pool in self.sequence_poolings.items()]

        def history(group: AttentionGroup, role: str) -> Tensor:
            return torch.cat([tables[pair[role]](x[pair[role]]) for pair in group.pairs], dim=-1)

        auxiliary_losses = []
        for group in self.attention_groups:
            query = torch.cat([embedded[pair["ad"]] for pair in group.pairs], dim=-1)
            counts = torch.stack([(x[pair["pos_hist"]] > 0).sum(1) for pair in group.pairs])
            with_negatives = self.use_negsampling and all(pair["neg_hist"] in x for pair in group.pairs)
            interest, auxiliary_loss = self.attention_poolings[group.name](
                query,
                history(group, "pos_hist"),
                counts.min(0).values,
                history(group, "neg_hist") if with_negatives else None,
            )
            inputs.append(interest)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)

        mean_loss = torch.stack(auxiliary_losses).mean() if auxiliary_losses else None
        return self.head(torch.cat(inputs, dim=-1)), mean_loss
