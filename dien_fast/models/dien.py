"""DIEN over ragged or padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.nn.embedding import Embedding
from dien_fast.nn.interest import Interest, candidate_owners
from dien_fast.ragged import Ragged
from dien_fast.reference.groups import AttentionGroup
from dien_fast.reference.layers import MaxPooling, SumPooling

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

    embedding_type: ClassVar[type[nn.Embedding]] = Embedding

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
            TypeError: for a feature that is no tensor, or ids that are no integers.
            IndexError: for an id outside its feature's vocabulary; on a GPU, torch's own assertion.
        """
        pooled = [(feature, _sequence(x, feature)) for feature in self.sequence_poolings]
        groups = [self._group_histories(group, x) for group in self.attention_groups]
        candidates = [(feature, _category(x, feature)) for feature in self.cat_features]
        vectors = iter(self._embed([*candidates, *pooled, *[pair for group in groups for pair in group]]))
        embedded = {feature: _values(next(vectors)) for feature, _ in candidates}
        inputs = [_number(x, feature) for feature in self.num_features]
        inputs += embedded.values()
        inputs += [_pool(pool, next(vectors)) for pool in self.sequence_poolings.values()]
        auxiliary_losses = []
        for group, histories in zip(self.attention_groups, groups, strict=True):
            rows = [next(vectors) for _ in histories]
            interest, auxiliary_loss = self._group_interest(group, self._query(group, embedded), rows)
            inputs.append(interest)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        mean_loss = torch.stack(auxiliary_losses).mean() if auxiliary_losses else None
        return self.head(torch.cat(inputs, dim=-1)), mean_loss

    @torch.no_grad()
    def score_candidates(self, user: Batch, candidates: Batch, candidate_offsets: Tensor | None = None) -> Tensor:
        """Score many candidates of each user, in evaluation mode.

        What depends on the user alone, above all the interest states of the histories, is computed once a user.

        Args:
            user: the features of U users, as a batch for :meth:`forward`; those of the candidates may be absent,
                and sampled histories are not looked at.
            candidates: the features that are the candidate's, numeric ``[C]`` float or categorical ``[C]`` int64,
                the candidates of a user next to each other; a feature that is in both is taken from here.
            candidate_offsets: ``[U + 1]`` int64, from 0 to C: user ``u`` has candidates
                ``candidate_offsets[u]`` to ``candidate_offsets[u + 1]``. None for one user.

        Returns:
            Logits ``[C]``, or ``[C, d_out]`` for ``d_out > 1``: those of :meth:`forward` for the repeated user.

        Raises:
            ValueError: in training mode, or where the features do not fit together.
            TypeError: for lists, words or other ids that are no integer tensor.
            IndexError: for an id outside its feature's vocabulary; on a GPU, torch's own assertion.
        """
        if self.training:
            raise ValueError("score_candidates needs evaluation mode, got a model in training mode; call eval()")
        known = {*self.num_features, *self.cat_features}
        self._check_candidates(user, candidates, known)
        pooled = [(feature, _sequence(user, feature)) for feature in self.sequence_poolings]
        groups = [self._group_histories(group, user, with_negatives=False) for group in self.attention_groups]
        own = [(f, _category(candidates if f in candidates else user, f)) for f in self.cat_features]
        vectors = iter(self._embed([*own, *pooled, *[pair for group in groups for pair in group]]))
        embedded = {feature: _values(next(vectors)) for feature, _ in own}
        pools = [_pool(pool, next(vectors)) for pool in self.sequence_poolings.values()]
        histories = [[next(vectors) for _ in group] for group in groups]
        numbers = {f: _number(candidates if f in candidates else user, f) for f in self.num_features}
        clicked = {pair["pos_hist"] for group in self.attention_groups for pair in group.pairs}
        of_user = (known | clicked | set(self.sequence_poolings)) - set(candidates)
        sizes = {name: _rows_of(value) for name, value in user.items() if name in of_user}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"user must have the same number of rows in every feature, got {sizes}")
        rows = _values(next(iter(candidates.values()))).size(0)
        users = next(iter(sizes.values()), 1)
        owner = candidate_owners(candidate_offsets, users, rows, next(self.parameters()).device)

        def per_candidate(feature: str, value: Tensor) -> Tensor:
            return value if feature in candidates else value[owner]

        inputs = [per_candidate(feature, value) for feature, value in numbers.items()]
        embedded = {feature: per_candidate(feature, value) for feature, value in embedded.items()}
        inputs += embedded.values()
        inputs += [value[owner] for value in pools]
        for group, keys in zip(self.attention_groups, histories, strict=True):
            query = self._query(group, embedded)
            inputs.append(self._candidate_interest(group, query, keys, owner, candidate_offsets))
        return self.head(torch.cat(inputs, dim=-1))

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
        pairs = [(pair["ad"], _category(x, pair["ad"])) for pair in group.pairs]
        histories = self._group_histories(group, x, with_negatives=False)
        vectors = self._embed([*pairs, *histories])
        embedded = {feature: _values(vector) for (feature, _), vector in zip(pairs, vectors, strict=False)}
        return layer.trace(self._query(group, embedded), _side_by_side(vectors[len(pairs) :]))

    def _embed(self, requests: Sequence[tuple[str, Tensor | Ragged]]) -> list[Tensor | Ragged]:
        """Look up ids of features, those of a table all at once: its gradient then is one sum."""
        tables = self.embeddings
        of_table: dict[int, list[int]] = {}
        for place, (feature, _) in enumerate(requests):
            of_table.setdefault(id(tables[feature]), []).append(place)
        vectors: list[Tensor | Ragged] = [ids for _, ids in requests]
        for places in of_table.values():
            table = tables[requests[places[0]][0]]
            ids = [_values(requests[place][1]) for place in places]
            try:
                found = _look_up(table, ids)
            except (IndexError, RuntimeError):
                self._check_ids([requests[place] for place in places])
                raise
            for place, vector in zip(places, found, strict=True):
                asked = requests[place][1]
                vectors[place] = asked._replace(values=vector) if isinstance(asked, Ragged) else vector
        return vectors

    def _check_ids(self, requests: Sequence[tuple[str, Tensor | Ragged]]) -> None:
        """Raise, in one sentence, for the first feature whose ids are not those of its table."""
        for feature, asked in requests:
            ids, number = _values(asked), self.cat_nums[feature]
            if ids.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"feature {feature!r} must hold ids of dtype int64, got {ids.dtype}")
            # On other devices a failed lookup leaves nothing that can be read.
            wrong = ids[(ids < 0) | (ids >= number)] if ids.is_cpu else ids[:0]
            if wrong.numel():
                raise IndexError(f"ids of feature {feature!r} must lie in [0, {number - 1}], got {int(wrong[0])}")

    def _check_candidates(self, user: Batch, candidates: Batch, known: set[str]) -> None:
        for name, given in (("user", user), ("candidates", candidates)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{name} must be a dict of tensors by feature, got {_kind(given)}")
        if not candidates or not known.issuperset(candidates):
            raise ValueError(
                f"candidates must hold numeric or categorical features, one or more of {sorted(known)}, "
                f"got {sorted(candidates)}"
            )
        for name, value in candidates.items():
            if not isinstance(value, Tensor | Ragged):
                raise TypeError(
                    f"candidates[{name!r}] must be a tensor, got {_kind(value)}; "
                    "for the words of a table see dien_fast.load(...).score_candidates"
                )
        sizes = {
            name: (_category if name in self.cat_features else _number)(candidates, name).size(0)
            for name in candidates
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"candidates must have the same number of rows in every feature, got {sizes}")

    @staticmethod
    def _query(group: AttentionGroup, embedded: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([embedded[pair["ad"]] for pair in group.pairs], dim=-1)

    def _group_interest(
        self, group: AttentionGroup, query: Tensor, histories: Sequence[Tensor | Ragged]
    ) -> tuple[Tensor, Tensor | None]:
        """Evolve the interest from the vectors of what _group_histories returned."""
        clicked = _side_by_side(histories[: group.pairs_count])
        sampled = _side_by_side(histories[group.pairs_count :]) if len(histories) > group.pairs_count else None
        layer = self.attention_poolings[group.name]
        interest, auxiliary_loss = layer(query, clicked, None, sampled)
        return interest, auxiliary_loss

    def _candidate_interest(
        self,
        group: AttentionGroup,
        query: Tensor,
        histories: Sequence[Tensor | Ragged],
        owner: Tensor,
        candidate_offsets: Tensor | None,
    ) -> Tensor:
        """Evolve the interest of users in their candidates."""
        layer = self.attention_poolings[group.name]
        assert isinstance(layer, Interest)
        return layer.evolve_candidates(query, _side_by_side(histories), candidate_offsets=candidate_offsets)

    def _group_histories(
        self, group: AttentionGroup, x: Batch, with_negatives: bool = True
    ) -> list[tuple[str, Tensor | Ragged]]:
        """Return the ids of the clicked histories of a group's pairs, then of the sampled, cut to the shortest."""
        clicked = self._histories(group, "pos_hist", x)
        histories = [(pair["pos_hist"], ids) for pair, ids in zip(group.pairs, clicked, strict=True)]
        if with_negatives and self.use_negsampling and all(pair["neg_hist"] in x for pair in group.pairs):
            sampled = self._histories(group, "neg_hist", x)
            if not sampled[0].fits(clicked[0]):
                raise ValueError(f"sampled histories of group {group.name!r} must be as long as the clicked ones")
            histories += [(pair["neg_hist"], ids) for pair, ids in zip(group.pairs, sampled, strict=True)]
        return list(histories)

    @staticmethod
    def _histories(group: AttentionGroup, role: str, x: Batch) -> list[Ragged]:
        ids = [_sequence(x, pair[role]) for pair in group.pairs]
        clicked = [_sequence(x, pair["pos_hist"]) for pair in group.pairs]
        if len({isinstance(value, Ragged) for value in [*ids, *clicked]}) > 1:
            raise ValueError(f"histories of group {group.name!r} must be all padded or all ragged, got both")
        if isinstance(ids[0], Ragged):
            return _common_prefix([value for value in ids if isinstance(value, Ragged)])
        return _padded_prefix([value for value in ids if isinstance(value, Tensor)], clicked)


def _side_by_side(histories: Sequence[Tensor | Ragged]) -> Ragged:
    rows = [history for history in histories if isinstance(history, Ragged)]
    if len(rows) == 1:
        return rows[0]
    return rows[0]._replace(values=torch.cat([row.values for row in rows], dim=-1))


def _values(value: Tensor | Ragged) -> Tensor:
    return value.values if isinstance(value, Ragged) else value


def _rows_of(value: Tensor | Ragged) -> int:
    return value.offsets.numel() - 1 if isinstance(value, Ragged) else value.size(0)


def _feature(x: Batch, feature: str) -> Tensor:
    value = _given(x, feature)
    if isinstance(value, Ragged):
        raise ValueError(f"feature {feature!r} must have one value per row, got a ragged sequence")
    return value


def _category(x: Batch, feature: str) -> Tensor:
    """Return the ids of a categorical feature ``[B]``."""
    ids = _feature(x, feature)
    if ids.dim() != 1:
        raise ValueError(f"feature {feature!r} must have shape (B,), got {tuple(ids.shape)}")
    return ids


def _number(x: Batch, feature: str) -> Tensor:
    """Return a numeric feature ``[B, 1]``."""
    value = _feature(x, feature)
    if value.dim() == 0 or value.numel() != value.size(0):
        raise ValueError(f"feature {feature!r} must have shape (B,) or (B, 1), got {tuple(value.shape)}")
    return value.reshape(-1, 1)


def _sequence(x: Batch, feature: str) -> Tensor | Ragged:
    """Return the ids of a sequence feature, padded ``[B, T]`` or ragged."""
    ids = _given(x, feature)
    if isinstance(ids, Tensor) and ids.dim() != 2:
        raise ValueError(f"feature {feature!r} must be Ragged or have shape (B, T), got {tuple(ids.shape)}")
    return ids


def _given(x: Batch, feature: str) -> Tensor | Ragged:
    if feature not in x:
        raise ValueError(f"the batch must have feature {feature!r}, got {sorted(x)}")
    value = x[feature]
    if not isinstance(value, Tensor | Ragged):
        raise TypeError(f"feature {feature!r} must be a tensor or Ragged, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """Say what an argument is that should have been a tensor."""
    kind = type(value).__name__
    return f"a {kind} of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else f"a {kind}"


def _look_up(table: nn.Module, ids: Sequence[Tensor]) -> list[Tensor]:
    """Return the vectors of several features' ids ``[...]``, each ``[..., D]``."""
    if len(ids) == 1:
        return [table(ids[0])]
    rows = table(torch.cat([value.reshape(-1) for value in ids]))
    parts = rows.split([value.numel() for value in ids])
    return [part.view(*value.shape, rows.size(1)) for part, value in zip(parts, ids, strict=True)]


def _pool(pool: nn.Module, rows: Ragged | Tensor) -> Tensor:
    """Pool padded vectors; of ragged ones no more padding is made than changes the result."""
    if isinstance(rows, Ragged):
        known = rows.offsets.is_cpu and rows.offsets.numel() > 1 and not torch.compiler.is_compiling()
        if known and isinstance(pool, (MaxPooling, SumPooling)):
            # One step of padding counts as much as many.
            rows = rows._replace(max_length=min(rows.max_length, int(rows.lengths().max()) + 1))
        rows = rows.pad()
    out: Tensor = pool(rows)
    return out


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
    start = torch.repeat_interleave(offsets[:-1], lengths)
    step = torch.arange(start.numel(), device=offsets.device) - start
    return [
        Ragged(row.values[torch.repeat_interleave(row.offsets[:-1], lengths) + step], offsets, width)
        for row in rows
    ]


def _padded_prefix(ids: list[Tensor], clicked: list[Tensor | Ragged]) -> list[Ragged]:
    """Take the valid steps of padded ids; the clicked histories tell how many there are."""
    counts = [(row > 0).sum(1) for row in clicked if isinstance(row, Tensor)]
    lengths = torch.stack(counts).min(0).values
    return [Ragged.from_padded(row, lengths) for row in ids]
