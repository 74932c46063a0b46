"""DIEN over ragged or padded batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.models.base import ClickModel
from dien_fast.models.batches import Batch, Histories
from dien_fast.nn.interest import Interest
from dien_fast.ragged import Ragged
from dien_fast.settings import Rule, Settings


@dataclass
class DIENOptions(Settings):
    """The options of DIEN alone.

    Attributes:
        gru_type: how the interest evolves: "AUGRU", "AGRU", "AIGRU" or "GRU".
    """

    gru_type: Annotated[
        str, Rule("how the interest evolves", choices=tuple(reversed(Interest.SUPPORTED_GRU_TYPE)))
    ] = "AUGRU"


class DIEN(ClickModel, reference.DIEN):
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
        >>> import torch
        >>> from dien_fast import DIEN, AttentionGroup, Ragged
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

    options: ClassVar[type[Settings]] = DIENOptions
    group_options: ClassVar[tuple[str, ...]] = ("gru_type",)
    uses_negatives: ClassVar[bool] = True
    can_trace: ClassVar[bool] = True
    interest_type: ClassVar[type[reference.Interest]] = Interest

    def pool_group(
        self, layer: nn.Module, query: Tensor, clicked: Histories, sampled: Histories | None
    ) -> tuple[Tensor, Tensor | None]:
        """Evolve the interest ``[B, D]``; with sampled histories, also return the auxiliary loss."""
        interest, auxiliary_loss = layer(query, clicked, None, sampled)
        return interest, auxiliary_loss

    def pool_candidates(
        self, layer: nn.Module, query: Tensor, clicked: Histories, owner: Tensor, candidate_offsets: Tensor | None
    ) -> Tensor:
        """Evolve the interest ``[C, D]`` from states that are computed once a user."""
        assert isinstance(layer, Interest)
        assert isinstance(clicked, Ragged)
        return layer.evolve_candidates(query, clicked, candidate_offsets=candidate_offsets)

    def pool_states(
        self, layer: nn.Module, query: Tensor, states: Ragged, candidate_offsets: Tensor | None
    ) -> Tensor:
        """Evolve the interest ``[C, D]`` from states that were kept."""
        assert isinstance(layer, Interest)
        return layer.evolve_candidates(query, states=states, candidate_offsets=candidate_offsets)

    @torch.no_grad()
    def extract_states(self, user: Batch, states: Mapping[str, Ragged] | None = None) -> dict[str, Ragged]:
        """Return the states as :meth:`~dien_fast.models.base.ClickModel.extract_states` says."""
        found = {}
        for group in self.attention_groups:
            layer = self.attention_poolings[group.name]
            assert isinstance(layer, Interest)
            vectors = self._embed(self._group_requests(group, user, with_negatives=False))
            clicked = self._clicked(group, user, vectors)
            assert isinstance(clicked, Ragged)
            found[group.name] = (
                layer.extract(clicked) if states is None else layer.extend(states[group.name], clicked)
            )
        return found

    def trace_group(self, layer: nn.Module, query: Tensor, clicked: Histories) -> tuple[Tensor, Tensor]:
        """Return attention ``[B, T]`` and evolved states ``[B, T, D]``, 0 on padding."""
        assert isinstance(layer, Interest)
        assert isinstance(clicked, Ragged)
        return layer.trace(query, clicked)
