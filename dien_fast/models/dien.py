"""DIEN over ragged or padded batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.attention_group import AttentionGroup
from dien_fast.nn.interest import Interest
from dien_fast.ragged import Ragged

Batch = Mapping[str, Tensor | Ragged]


class DIEN(reference.DIEN):
    """Deep Interest Evolution Network (arXiv 1809.03672): embeddings, an interest layer per group, an MLP.

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
            every feature a table of its own; the auxiliary net can then tell clicks from negatives by the
            table alone, so share one table between candidate, history and negatives.

    Raises:
        ValueError: if the feature lists, sizes, groups and shared tables do not fit together.

    Example:
        >>> group = AttentionGroup(
        ...     "movies",
        ...     pairs=[{"ad": "movieId", "pos_hist": "history", "neg_hist": "negatives"}],
        ...     hidden_layers=[16, 8],
        ... )
        >>> model = DIEN(
        ...     num_features=["age"],
        ...     cat_features=["movieId"],
        ...     seq_features=["history", "negatives"],
        ...     cat_nums={"movieId": 100, "history": 100, "negatives": 100},
        ...     embedding_size=16,
        ...     attention_groups=[group],
        ...     mlp_hidden_layers=[32, 16],
        ...     use_negsampling=True,
        ...     shared_embeddings={"history": "movieId", "negatives": "movieId"},
        ... )
        >>> offsets = torch.tensor([0, 3, 3])
        >>> logits, auxiliary_loss = model(
        ...     {
        ...         "age": torch.tensor([0.2, 0.7]),
        ...         "movieId": torch.tensor([5, 6]),
        ...         "history": Ragged(torch.tensor([7, 8, 9]), offsets, max_length=50),
        ...         "negatives": Ragged(torch.tensor([1, 2, 3]), offsets, max_length=50),
        ...     }
        ... )
        >>> logits.shape
        torch.Size([2])
    """

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new interest layer for a group."""
        return Interest(
            self.group_size(attention_group),
            gru_type=attention_group.gru_type,
            gru_dropout=attention_group.gru_dropout,
            att_hidden_layers=attention_group.hidden_layers,
            att_dropout=attention_group.att_dropout,
            att_activation=attention_group.activation,
            use_negsampling=self.use_negsampling,
        )

    def forward(self, x: Batch) -> tuple[Tensor, Tensor | None]:
        """Score a batch.

        Args:
            x: numeric features ``[B]`` float, categorical features ``[B]`` int64, sequence features either
                ragged ids (:class:`dien_fast.Ragged`, int64) or padded ids ``[B, T]`` int64 with 0 behind
                each sequence. Ragged lengths are taken as they are and the pairs of a group cut to the
                shortest; the length of a padded history is its number of ids above 0, the least of a
                group's pairs. Other keys are ignored. Sampled histories may be absent in evaluation.

        Returns:
            Logits ``[B]``, or ``[B, d_out]`` for ``d_out > 1``, and the mean of the groups' auxiliary
            losses (None without negatives).

        Raises:
            ValueError: if a feature is absent, or the histories of a group do not fit together.
        """
        embedded = self._embed_candidate(x)
        inputs = [_feature(x, feature).reshape(-1, 1) for feature in self.num_features]
        inputs += embedded.values()
        inputs += [
            pool(_pad(self._embed_sequence(feature, x))) for feature, pool in self.sequence_poolings.items()
        ]
        auxiliary_losses = []
        for group in self.attention_groups:
            interest, auxiliary_loss = self._group_interest(group, self._query(group, embedded), x)
            inputs.append(interest)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        mean_loss = torch.stack(auxiliary_losses).mean() if auxiliary_losses else None
        return self.head(torch.cat(inputs, dim=-1)), mean_loss

    @torch.no_grad()
    def trace(self, x: Batch, group_name: str) -> tuple[Tensor, Tensor]:
        """Show what a group attends to and how the interest moves, in evaluation mode.

        Args:
            x: a batch as for :meth:`forward`.
            group_name: name of an attention group.

        Returns:
            Attention ``[B, T]`` and evolved states ``[B, T, D]``, 0 on padding.

        Raises:
            ValueError: for an unknown group, or in training mode.
        """
        groups = {group.name: group for group in self.attention_groups}
        if group_name not in groups:
            raise ValueError(f"group_name must be one of {sorted(groups)}, got {group_name!r}")
        group = groups[group_name]
        layer = self.attention_poolings[group_name]
        if not isinstance(layer, Interest):
            raise ValueError(f"trace needs a group with an interest layer, got {type(layer).__name__}")
        histories = self._histories(group, "pos_hist", x)
        return layer.trace(self._query(group, self._embed_candidate(x)), histories)

    def _embed_candidate(self, x: Batch) -> dict[str, Tensor]:
        tables = self.embeddings
        return {feature: tables[feature](_feature(x, feature)) for feature in self.cat_features}

    def _embed_sequence(self, feature: str, x: Batch) -> Ragged | Tensor:
        ids, table = _sequence(x, feature), self.embeddings[feature]
        return ids._replace(values=table(ids.values)) if isinstance(ids, Ragged) else table(ids)

    @staticmethod
    def _query(group: AttentionGroup, embedded: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([embedded[pair["ad"]] for pair in group.pairs], dim=-1)

    def _group_interest(self, group: AttentionGroup, query: Tensor, x: Batch) -> tuple[Tensor, Tensor | None]:
        histories = self._histories(group, "pos_hist", x)
        negatives = None
        if self.use_negsampling and all(pair["neg_hist"] in x for pair in group.pairs):
            negatives = self._histories(group, "neg_hist", x)
            if not negatives.same_offsets(histories):
                raise ValueError(f"sampled histories of group {group.name!r} must be as long as the clicked ones")
        layer = self.attention_poolings[group.name]
        interest, auxiliary_loss = layer(query, histories, None, negatives)
        return interest, auxiliary_loss

    def _histories(self, group: AttentionGroup, role: str, x: Batch) -> Ragged:
        """Embed the histories of all pairs of a group, cut to the shortest, side by side."""
        ids = [_sequence(x, pair[role]) for pair in group.pairs]
        clicked = [_sequence(x, pair["pos_hist"]) for pair in group.pairs]
        if len({isinstance(value, Ragged) for value in [*ids, *clicked]}) > 1:
            raise ValueError(f"histories of group {group.name!r} must be all padded or all ragged, got both")
        if isinstance(ids[0], Ragged):
            rows = _common_prefix([value for value in ids if isinstance(value, Ragged)])
        else:
            rows = _padded_prefix([value for value in ids if isinstance(value, Tensor)], clicked)
        tables = self.embeddings
        vectors = [tables[pair[role]](row.values) for pair, row in zip(group.pairs, rows, strict=True)]
        return rows[0]._replace(values=torch.cat(vectors, dim=-1))


def _feature(x: Batch, feature: str) -> Tensor:
    value = _sequence(x, feature)
    if isinstance(value, Ragged):
        raise ValueError(f"feature {feature!r} must have one value per row, got a ragged sequence")
    return value


def _sequence(x: Batch, feature: str) -> Tensor | Ragged:
    if feature not in x:
        raise ValueError(f"the batch must have feature {feature!r}, got {sorted(x)}")
    return x[feature]


def _pad(rows: Ragged | Tensor) -> Tensor:
    return rows.pad() if isinstance(rows, Ragged) else rows


def _common_prefix(rows: list[Ragged]) -> list[Ragged]:
    """Cut every history to the shortest of its row's."""
    first = rows[0]
    width = max(row.max_length for row in rows)
    if all(row.same_offsets(first) for row in rows):
        return [row._replace(max_length=width) for row in rows]
    if len({row.offsets.numel() for row in rows}) > 1:
        raise ValueError(f"histories must have the same number of rows, got {[len(r.offsets) - 1 for r in rows]}")
    lengths = torch.stack([row.lengths() for row in rows]).min(0).values
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    step = torch.arange(int(offsets[-1]), device=offsets.device) - torch.repeat_interleave(offsets[:-1], lengths)
    return [
        Ragged(row.values[torch.repeat_interleave(row.offsets[:-1], lengths) + step], offsets, width)
        for row in rows
    ]


def _padded_prefix(ids: list[Tensor], clicked: list[Tensor | Ragged]) -> list[Ragged]:
    """Take the valid steps of padded ids; the clicked histories tell how many there are."""
    counts = [(row > 0).sum(1) for row in clicked if isinstance(row, Tensor)]
    lengths = torch.stack(counts).min(0).values
    return [Ragged.from_padded(row, lengths) for row in ids]
