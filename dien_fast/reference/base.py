"""What the models have in common: features, embedding tables, poolings and the last MLP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from dien_fast.reference.groups import AttentionGroup, check_features
from dien_fast.reference.layers import MLP, MaxPooling, init_weights


class ClickModel(nn.Module):
    """Embeddings, a pooling for each sequence feature, an attention pooling for each group, and an MLP.

    A model gives :meth:`create_attention_fn` and ``forward``.

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

    embedding_type: ClassVar[type[nn.Module]] = nn.Embedding

    def __init__(
        self,
        num_features: Sequence[str],
        cat_features: Sequence[str],
        seq_features: Sequence[str],
        cat_nums: Mapping[str, int],
        embedding_size: int | Mapping[str, int],
        attention_groups: Sequence[AttentionGroup],
        mlp_hidden_layers: Sequence[int],
        mlp_activation: str | None = "prelu",
        mlp_dropout: float = 0.0,
        use_negsampling: bool = False,
        d_out: int = 1,
        shared_embeddings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.cat_features = cat_features
        self.seq_features = seq_features
        self.cat_nums = cat_nums
        self.embedding_size = embedding_size
        self.attention_groups = attention_groups
        self.mlp_hidden_layers = mlp_hidden_layers
        self.mlp_activation = mlp_activation
        self.mlp_dropout = mlp_dropout
        self.d_out = d_out
        self.use_negsampling = use_negsampling
        self.shared_embeddings = dict(shared_embeddings or {})

        features = [*cat_features, *seq_features]
        sizes = (
            dict.fromkeys(features, embedding_size) if isinstance(embedding_size, int) else dict(embedding_size)
        )
        self._embedding_sizes = sizes
        check_features(
            num_features,
            cat_features,
            seq_features,
            cat_nums,
            sizes,
            attention_groups,
            use_negsampling,
            self.shared_embeddings,
        )
        self._add_tables_and_poolings()
        total_input_size = (
            len(num_features)
            + sum(sizes[feature] for feature in cat_features)
            + sum(sizes[feature] for feature in self.pooled_features)
            + sum(self.pooled_size(group) for group in attention_groups)
        )
        self.mlp = MLP(
            total_input_size,
            mlp_hidden_layers,
            dropout=mlp_dropout,
            batchnorm=True,
            activation=mlp_activation,
        )
        self.final_layer = nn.Linear(mlp_hidden_layers[-1], d_out)
        self.apply(init_weights)

    def _add_tables_and_poolings(self) -> None:
        """Create, in this order, what turns features into the MLP's inputs; each draws its initial parameters."""
        for feature in [*self.cat_features, *self.seq_features]:
            if feature not in self.shared_embeddings:
                size = self._embedding_sizes[feature]
                table = self.embedding_type(self.cat_nums[feature], size, padding_idx=0)
                self.add_module(f"embedding:{feature}", table)
        for feature in self.pooled_features:
            self.add_module(f"pooling:{feature}", MaxPooling(1))
        for group in self.attention_groups:
            self.add_module(f"attention_pooling:{group.name}", self.create_attention_fn(group))

    def group_size(self, attention_group: AttentionGroup) -> int:
        """Number of channels of a group's candidate: the embeddings of its pairs side by side."""
        return sum(self._embedding_sizes[pair["ad"]] for pair in attention_group.pairs)

    def pooled_size(self, attention_group: AttentionGroup) -> int:
        """Number of channels of what the MLP learns of a group's histories."""
        return self.group_size(attention_group)

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new pooling of a group's histories."""
        raise NotImplementedError

    @property
    def pooled_features(self) -> list[str]:
        """The sequence features that no group uses."""
        return [feature for feature in self.seq_features if not self.is_attention_feature(feature)]

    @property
    def embeddings(self) -> OrderedDict[str, nn.Module]:
        """The embedding table of each categorical and sequence feature, shared or own."""
        return OrderedDict(
            (feature, self.get_submodule(f"embedding:{self.shared_embeddings.get(feature, feature)}"))
            for feature in [*self.cat_features, *self.seq_features]
        )

    @property
    def sequence_poolings(self) -> OrderedDict[str, nn.Module]:
        """The pooling of each sequence feature that no group uses."""
        return OrderedDict((feature, self.get_submodule(f"pooling:{feature}")) for feature in self.pooled_features)

    @property
    def attention_poolings(self) -> OrderedDict[str, nn.Module]:
        """The pooling of each group's histories."""
        return OrderedDict(
            (group.name, self.get_submodule(f"attention_pooling:{group.name}")) for group in self.attention_groups
        )

    def is_attention_feature(self, feature: str) -> bool:
        """Whether some group uses the feature."""
        return any(group.is_attention_feature(feature) for group in self.attention_groups)

    def is_neg_sampling_feature(self, feature: str) -> bool:
        """Whether the feature is a sampled history of some group."""
        return any(group.is_neg_sampling_feature(feature) for group in self.attention_groups)

    def head(self, inputs: Tensor) -> Tensor:
        """Map the features of a row side by side ``[B, F]`` to logits, ``[B]`` or ``[B, d_out]``."""
        # No rows have no batch statistics.
        hidden = self.mlp(inputs) if inputs.size(0) > 0 else inputs.new_zeros(0, self.mlp_hidden_layers[-1])
        logits: Tensor = self.final_layer(hidden)
        return logits.squeeze(1) if self.d_out == 1 else logits
