"""What every model does: look ids up, pool sequences and the histories of groups, and run the last MLP.

A model is a subclass of :class:`ClickModel` that says how the histories of a group are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.models.batches import (
    Batch,
    Histories,
    Padded,
    category,
    fit,
    group_histories,
    kind_of,
    number,
    rows_of,
    sequence,
    side_by_side,
    with_sessions,
)
from dien_fast.nn.embedding import Embedding
from dien_fast.nn.interest import candidate_owners
from dien_fast.ragged import Ragged
from dien_fast.reference.groups import AttentionGroup
from dien_fast.reference.layers import MaxPooling, SumPooling
from dien_fast.settings import Settings

# A feature's name or, for a history, the group's name, the history's role and the number of its pair.
_Key = str | tuple[str, str, int]
_Requests = dict[_Key, tuple[str, Any]]
_Vectors = dict[_Key, Any]


class ClickModel(reference.ClickModel):
    """Base of the models: embeddings, a pooling for each sequence feature and each group, and an MLP.

    A subclass gives :meth:`create_attention_fn`, the layer that pools the histories of a group, and
    :meth:`pool_group`, which runs it. It may give :meth:`pool_candidates`, where the layer can share work between
    the candidates of a user, and :meth:`trace_group`.

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

    Attributes:
        options: the settings that this model alone has; the command makes options of them. Each is an argument of
            the constructor or, if ``group_options`` names it, of :class:`dien_fast.AttentionGroup`.
        group_options: names of options.
        uses_negatives: whether :meth:`pool_group` can use sampled histories; others never get any.
        can_trace: whether there is a :meth:`trace_group`.
        keeps_padding: whether padded histories are pooled as they are; others get them as ragged ones.
        uses_sessions: whether :meth:`pool_group` gets histories divided into sessions, which batches must then
            have for every group.
        remote_tables: what looks ids up in place of the model's own tables, with the arguments of :meth:`look_up`,
            where several processes share them; None in other models.

    Raises:
        ValueError: if the feature lists, sizes, groups and shared tables do not fit together.
    """

    embedding_type: ClassVar[type[nn.Module]] = Embedding
    options: ClassVar[type[Settings]] = Settings
    group_options: ClassVar[tuple[str, ...]] = ()
    uses_negatives: ClassVar[bool] = False
    can_trace: ClassVar[bool] = False
    keeps_padding: ClassVar[bool] = False
    uses_sessions: ClassVar[bool] = False
    remote_tables: Callable[[Mapping[str, Sequence[Tensor]]], dict[str, list[Tensor]]] | None = None

    def pool_group(
        self, layer: nn.Module, query: Tensor, clicked: Histories, sampled: Histories | None
    ) -> tuple[Tensor, Tensor | None]:
        """Pool the histories of a group for one candidate each.

        Args:
            layer: what :meth:`create_attention_fn` returned for the group.
            query: candidates ``[B, D]``.
            clicked: B histories of vectors of width D, oldest event first: ragged or, where the model
                ``keeps_padding``, as padded as they were given; with their sessions where it ``uses_sessions``.
            sampled: events that were not clicked, at the same steps, where the model ``uses_negatives`` and the
                batch has them.

        Returns:
            What the MLP learns of the histories, as wide as :meth:`pooled_size` says, which is ``[B, D]`` unless
            a model overrides it; and an auxiliary loss or None.
        """
        raise NotImplementedError

    def pool_candidates(
        self, layer: nn.Module, query: Tensor, clicked: Histories, owner: Tensor, candidate_offsets: Tensor | None
    ) -> Tensor:
        """Pool the histories of users for many candidates each, in evaluation mode.

        This repeats each history for its candidates; a layer that can do better overrides it.

        Args:
            layer: as for :meth:`pool_group`.
            query: candidates ``[C, D]``, those of a user next to each other.
            clicked: the histories of U users, as for :meth:`pool_group`.
            owner: the number of each candidate's user ``[C]`` int64.
            candidate_offsets: as in :meth:`score_candidates`.

        Returns:
            ``[C, D]``: what :meth:`pool_group` returns for the repeated histories.
        """
        return self.pool_group(layer, query, clicked.take(owner), None)[0]

    def pool_states(
        self, layer: nn.Module, query: Tensor, states: Ragged, candidate_offsets: Tensor | None
    ) -> Tensor:
        """Pool what :meth:`extract_states` returned for a group; otherwise as :meth:`pool_candidates`."""
        raise ValueError(f"states are kept for DIEN alone, got {type(self).__name__}")

    def extract_states(self, user: Batch, states: Mapping[str, Ragged] | None = None) -> dict[str, Ragged]:
        """Return what :meth:`score_candidates` takes in place of histories.

        Args:
            user: the histories of U users, as for :meth:`forward`, or their newer events.
            states: what this method returned for the events before; None where there are none.

        Returns:
            States by group, ragged ``[N, D]``, those of ``states`` included.

        Raises:
            ValueError: the model has no states, or the numbers of users differ.
        """
        raise ValueError(f"states are kept for DIEN alone, got {type(self).__name__}")

    def trace_group(self, layer: nn.Module, query: Tensor, clicked: Histories) -> tuple[Tensor, Tensor]:
        """Return what :meth:`trace` returns, from the arguments of :meth:`pool_group`."""
        raise NotImplementedError

    def forward(self, x: Batch) -> tuple[Tensor, Tensor | None]:
        """Score a batch.

        Args:
            x: numeric features ``[B]`` float, categorical features ``[B]`` int64, sequence features either
                ragged ids (:class:`dien_fast.Ragged`, int64) or padded ids ``[B, T]`` int64 with 0 behind
                each sequence. Ragged lengths are taken as they are and the pairs of a group cut to the
                shortest; the length of a padded history is its number of ids above 0, the least of a
                group's pairs. A model that ``uses_sessions`` reads the session of each event of a group
                ``"items"`` under ``"items.session"``, int64 and ragged or padded as the histories. Other keys are
                ignored. Sampled histories may be absent in evaluation.

        Returns:
            Logits ``[B]``, or ``[B, d_out]`` for ``d_out > 1``, and the mean of the groups' auxiliary
            losses (None without negatives).

        Raises:
            ValueError: if a feature is absent, or the histories of a group do not fit together.
            TypeError: for a feature that is no tensor, or ids that are no integers.
            IndexError: for an id outside its feature's vocabulary; on a GPU, torch's own assertion.
        """
        requests: _Requests = {feature: (feature, category(x, feature)) for feature in self.cat_features}
        requests |= self._pooled_requests(x)
        for group in self.attention_groups:
            requests |= self._group_requests(group, x, with_negatives=True)
        vectors = self._embed(requests)
        inputs = [number(x, feature) for feature in self.num_features]
        inputs += [vectors[feature] for feature in self.cat_features]
        inputs += self._pool_sequences(vectors)
        layers = self.attention_poolings
        auxiliary_losses = []
        for group in self.attention_groups:
            clicked, sampled = self._clicked(group, x, vectors), _histories(group, "neg_hist", vectors)
            layer = layers[group.name]
            interest, auxiliary_loss = self.pool_group(layer, _query(group, vectors), clicked, sampled)
            inputs.append(interest)
            if auxiliary_loss is not None:
                auxiliary_losses.append(auxiliary_loss)
        mean_loss = torch.stack(auxiliary_losses).mean() if auxiliary_losses else None
        return self.head(torch.cat(inputs, dim=-1)), mean_loss

    @torch.no_grad()
    def score_candidates(
        self,
        user: Batch,
        candidates: Batch,
        candidate_offsets: Tensor | None = None,
        *,
        states: Mapping[str, Ragged] | None = None,
    ) -> Tensor:
        """Score many candidates of each user, in evaluation mode.

        What depends on the user alone, above all the interest states of the histories, is computed once a user.

        Args:
            user: the features of U users, as a batch for :meth:`forward`; those of the candidates may be absent,
                and sampled histories are not looked at.
            candidates: the features that are the candidate's, numeric ``[C]`` float or categorical ``[C]`` int64,
                the candidates of a user next to each other; a feature that is in both is taken from here.
            candidate_offsets: ``[U + 1]`` int64, from 0 to C: user ``u`` has candidates
                ``candidate_offsets[u]`` to ``candidate_offsets[u + 1]``. None for one user.
            states: in place of the users' histories, what :meth:`extract_states` returned for them.

        Returns:
            Logits ``[C]``, or ``[C, d_out]`` for ``d_out > 1``: those of :meth:`forward` for the repeated user.

        Raises:
            ValueError: in training mode, or where the features do not fit together.
            TypeError: for lists, words or other ids that are no integer tensor.
            IndexError: for an id outside its feature's vocabulary; on a GPU, torch's own assertion.
        """
        if self.training:
            raise ValueError("score_candidates needs evaluation mode, got a model in training mode; call eval()")
        self._check_candidates(user, candidates)

        def source(feature: str) -> Batch:
            return candidates if feature in candidates else user

        requests: _Requests = {f: (f, category(source(f), f)) for f in self.cat_features}
        requests |= self._pooled_requests(user)
        for group in self.attention_groups if states is None else ():
            requests |= self._group_requests(group, user, with_negatives=False)
        vectors = self._embed(requests)
        numbers = {feature: number(source(feature), feature) for feature in self.num_features}
        users = self._count_users(user, candidates, states)
        rows = rows_of(next(iter(candidates.values())))
        owner = candidate_owners(candidate_offsets, users, rows, next(self.parameters()).device)

        def per_candidate(feature: str, value: Tensor) -> Tensor:
            return value if feature in candidates else value[owner]

        embedded: _Vectors = {feature: per_candidate(feature, vectors[feature]) for feature in self.cat_features}
        inputs = [per_candidate(feature, value) for feature, value in numbers.items()]
        inputs += embedded.values()
        inputs += [value[owner] for value in self._pool_sequences(vectors)]
        for group in self.attention_groups:
            layer, query = self.attention_poolings[group.name], _query(group, embedded)
            if states is not None:
                inputs.append(self.pool_states(layer, query, states[group.name], candidate_offsets))
                continue
            clicked = self._clicked(group, user, vectors)
            inputs.append(self.pool_candidates(layer, query, clicked, owner, candidate_offsets))
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
        if not self.can_trace:
            raise ValueError(f"trace needs a model that can be traced, such as DIEN, got {type(self).__name__}")
        if self.training:
            raise ValueError("trace needs evaluation mode, got a model in training mode; call eval() first")
        group = groups[group_name]
        requests: _Requests = {pair["ad"]: (pair["ad"], category(x, pair["ad"])) for pair in group.pairs}
        vectors = self._embed(requests | self._group_requests(group, x, with_negatives=False))
        clicked = self._clicked(group, x, vectors)
        return self.trace_group(self.attention_poolings[group_name], _query(group, vectors), clicked)

    def _pooled_requests(self, x: Batch) -> _Requests:
        return {feature: (feature, sequence(x, feature)) for feature in self.pooled_features}

    def _group_requests(self, group: AttentionGroup, x: Batch, with_negatives: bool) -> _Requests:
        """Return the ids of a group's clicked histories, and of the sampled ones where they are used."""
        clicked = group_histories(group, x, "pos_hist", self.keeps_padding)
        by_role = {"pos_hist": clicked}
        wanted = with_negatives and self.uses_negatives and self.use_negsampling
        if wanted and all(pair["neg_hist"] in x for pair in group.pairs):
            sampled = group_histories(group, x, "neg_hist", self.keeps_padding)
            if not fit(sampled[0], clicked[0]):
                raise ValueError(f"sampled histories of group {group.name!r} must be as long as the clicked ones")
            by_role["neg_hist"] = sampled
        return {
            (group.name, role, place): (pair[role], ids)
            for role, histories in by_role.items()
            for place, (pair, ids) in enumerate(zip(group.pairs, histories, strict=True))
        }

    def _clicked(self, group: AttentionGroup, x: Batch, vectors: _Vectors) -> Histories:
        """Return the clicked histories of a group, in sessions where the model uses them."""
        clicked = _histories(group, "pos_hist", vectors)
        assert clicked is not None
        if not self.uses_sessions:
            return clicked
        assert isinstance(clicked, Ragged), "a model that uses sessions must not keep padding"
        return with_sessions(group, x, clicked)

    def _embed(self, requests: _Requests) -> _Vectors:
        """Look up the ids of features, those of a table all at once: its gradient then is one sum."""
        of_table: dict[str, list[_Key]] = {}
        for key, (feature, _) in requests.items():
            of_table.setdefault(self.shared_embeddings.get(feature, feature), []).append(key)
        ids = {owner: [_values(requests[key][1]) for key in keys] for owner, keys in of_table.items()}
        try:
            found = self.look_up(ids)
        except (IndexError, RuntimeError):
            for owner, keys in of_table.items():
                self._check_ids([requests[key][0] for key in keys], ids[owner])
            raise
        vectors: _Vectors = {}
        for owner, keys in of_table.items():
            for key, vector in zip(keys, found[owner], strict=True):
                value = requests[key][1]
                vectors[key] = vector if isinstance(value, Tensor) else value._replace(values=vector)
        return vectors

    def look_up(self, ids: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Look ids up in the embedding tables.

        Args:
            ids: of each table, by the feature that owns it, any number of ids ``[...]`` int64.

        Returns:
            The vectors of each table's ids, ``[..., D]``.
        """
        if self.remote_tables is not None:
            return self.remote_tables(ids)
        tables = self.embeddings
        return {owner: _look_up(tables[owner], values) for owner, values in ids.items()}

    def _check_ids(self, features: Iterable[str], ids: Iterable[Tensor]) -> None:
        """Raise, in one sentence, for the first feature whose ids are not those of its table."""
        for feature, values in zip(features, ids, strict=True):
            if values.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"feature {feature!r} must hold ids of dtype int64, got {values.dtype}")
            # On other devices a failed lookup leaves nothing that can be read.
            size = self.cat_nums[feature]
            wrong = values[(values < 0) | (values >= size)] if values.is_cpu else values[:0]
            if wrong.numel():
                raise IndexError(f"ids of feature {feature!r} must lie in [0, {size - 1}], got {int(wrong[0])}")

    def _check_candidates(self, user: Batch, candidates: Batch) -> None:
        for name, given in (("user", user), ("candidates", candidates)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{name} must be a dict of tensors by feature, got {kind_of(given)}")
        known = {*self.num_features, *self.cat_features}
        if not candidates or not known.issuperset(candidates):
            raise ValueError(
                f"candidates must hold numeric or categorical features, one or more of {sorted(known)}, "
                f"got {sorted(candidates)}"
            )
        for name, value in candidates.items():
            if not isinstance(value, Tensor | Ragged):
                raise TypeError(
                    f"candidates[{name!r}] must be a tensor, got {kind_of(value)}; "
                    "for the words of a table see dien_fast.load(...).score_candidates"
                )
        sizes = {
            name: (category if name in self.cat_features else number)(candidates, name).size(0)
            for name in candidates
        }
        if not _all_equal(sizes.values()):
            raise ValueError(f"candidates must have the same number of rows in every feature, got {sizes}")

    def _count_users(self, user: Batch, candidates: Batch, states: Mapping[str, Ragged] | None) -> int:
        """Return the number of rows of the user's features; one where all features are the candidate's."""
        groups = self.attention_groups if states is None else ()
        clicked = {pair["pos_hist"] for group in groups for pair in group.pairs}
        wanted = {*self.num_features, *self.cat_features, *self.pooled_features, *clicked} - set(candidates)
        sizes = {name: rows_of(value) for name, value in user.items() if name in wanted}
        sizes |= {f"states of {name}": rows_of(value) for name, value in (states or {}).items()}
        if not _all_equal(sizes.values()):
            raise ValueError(f"user must have the same number of rows in every feature, got {sizes}")
        return next(iter(sizes.values()), 1)

    def _pool_sequences(self, vectors: _Vectors) -> list[Tensor]:
        return [_pool(pool, vectors[feature]) for feature, pool in self.sequence_poolings.items()]


def _all_equal(sizes: Iterable[int]) -> bool:
    """Whether all numbers are one; in traced code they are symbols, which have no hash."""
    known = list(sizes)
    return all(size == known[0] for size in known)


def _query(group: AttentionGroup, vectors: _Vectors) -> Tensor:
    """Return the candidates of a group ``[B, D]``: the vectors of its pairs side by side."""
    return torch.cat([vectors[pair["ad"]] for pair in group.pairs], dim=-1)


def _histories(group: AttentionGroup, role: str, vectors: _Vectors) -> Ragged | Padded | None:
    """Return the histories of a group with the vectors of its pairs side by side; None where there are none."""
    keys = [(group.name, role, place) for place in range(group.pairs_count)]
    return side_by_side([vectors[key] for key in keys]) if keys[0] in vectors else None


def _values(ids: Any) -> Tensor:
    return ids if isinstance(ids, Tensor) else ids.values


def _look_up(table: nn.Module, ids: Sequence[Tensor]) -> list[Tensor]:
    """Return the vectors of several features' ids ``[...]``, each ``[..., D]``."""
    if len(ids) == 1:
        return [table(ids[0])]
    rows = table(torch.cat([value.reshape(-1) for value in ids]))
    parts = rows.split([value.numel() for value in ids])
    # Where there are no ids, torch cannot infer a width.
    return [part.view(*value.shape, rows.size(1)) for part, value in zip(parts, ids, strict=True)]


def _pool(pool: nn.Module, rows: Ragged | Tensor) -> Tensor:
    """Pool the vectors of sequences; ragged ones are padded no wider than the result needs."""
    if isinstance(rows, Ragged):
        known = rows.offsets.is_cpu and rows.offsets.numel() > 1 and not torch.compiler.is_compiling()
        if known and isinstance(pool, (MaxPooling, SumPooling)):
            # A second step of padding changes neither maximum nor sum.
            rows = rows._replace(max_length=min(rows.max_length, int(rows.lengths().max()) + 1))
        rows = rows.pad()
    out: Tensor = pool(rows)
    return out
