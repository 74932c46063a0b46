"""Which candidate feature is compared with which history, and the checks of a model's feature lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class AttentionGroup:
    """Candidate features and their histories that share one attention.

    Args:
        name: name of the group; neither a feature nor another group may have it.
        pairs: for each candidate feature a dict with its name ``"ad"``, the name of its clicked history
            ``"pos_hist"`` and, for the auxiliary loss, of its sampled history ``"neg_hist"``.
        hidden_layers: output sizes of the attention MLP's layers.
        activation: name of the attention MLP's activation.
        att_dropout: dropout probability inside the attention MLP.
        gru_type: how the interest evolves: ``"GRU"``, ``"AIGRU"``, ``"AGRU"`` or ``"AUGRU"``.
        gru_dropout: accepted for compatibility; has no effect.

    Raises:
        ValueError: if there is no pair, or one lacks ``"ad"`` or ``"pos_hist"``.

    Example:
        >>> group = AttentionGroup("movies", [{"ad": "movieId", "pos_hist": "history"}], hidden_layers=[16, 8])
        >>> group.is_attention_feature("history"), group.pairs_count
        (True, 1)
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[Mapping[str, str]],
        hidden_layers: Sequence[int],
        activation: str | None = "dice",
        att_dropout: float = 0.0,
        gru_type: str = "AUGRU",
        gru_dropout: float = 0.0,
    ) -> None:
        if not pairs:
            raise ValueError(f"pairs of group {name!r} must hold at least one pair, got none")
        self.name = name
        self.pairs = pairs
        self.hidden_layers = hidden_layers
        self.activation = activation
        self.att_dropout = att_dropout
        self.gru_type = gru_type
        self.gru_dropout = gru_dropout
        self.related_feature_names: set[str] = set()
        self.neg_feature_names: set[str] = set()
        for pair in pairs:
            if "ad" not in pair or "pos_hist" not in pair:
                raise ValueError(f"a pair of group {name!r} must have 'ad' and 'pos_hist', got {dict(pair)}")
            self.related_feature_names.update(pair.values())
            if "neg_hist" in pair:
                self.neg_feature_names.add(pair["neg_hist"])

    def is_attention_feature(self, feature_name: str) -> bool:
        """Whether any pair names the feature."""
        return feature_name in self.related_feature_names

    def is_neg_sampling_feature(self, feature_name: str) -> bool:
        """Whether the feature is a sampled history of some pair."""
        return feature_name in self.neg_feature_names

    @property
    def pairs_count(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


def check_features(
    num_features: Sequence[str],
    cat_features: Sequence[str],
    seq_features: Sequence[str],
    cat_nums: Mapping[str, int],
    sizes: Mapping[str, int],
    groups: Sequence[AttentionGroup],
    use_negsampling: bool,
    shared_embeddings: Mapping[str, str],
) -> None:
    """Raise ValueError with one sentence if a model cannot be built from these arguments of ``DIEN``.

    ``sizes`` maps every categorical and sequence feature to its embedding size.
    """
    embedded = [*cat_features, *seq_features]
    names = [*num_features, *embedded, *(group.name for group in groups)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"every feature and group must have a name of its own, got {name!r} twice")
        if "." in name:
            raise ValueError(f"a feature or group name must not contain '.', got {name!r}")
    for feature in embedded:
        if feature not in sizes:
            raise ValueError(f"embedding_size must have feature {feature!r}, got {sorted(sizes)}")
        if feature not in cat_nums:
            raise ValueError(f"cat_nums must have feature {feature!r}, got {sorted(cat_nums)}")
    for feature, owner in shared_embeddings.items():
        for name in (feature, owner):
            if name not in embedded:
                raise ValueError(f"shared_embeddings must name categorical or sequence features, got {name!r}")
        if owner in shared_embeddings:
            raise ValueError(f"shared_embeddings[{feature!r}] must own its table, got {owner!r}, which does not")
        if cat_nums[feature] != cat_nums[owner]:
            raise ValueError(
                f"cat_nums of {feature!r} and {owner!r} must be equal to share a table, "
                f"got {cat_nums[feature]} and {cat_nums[owner]}"
            )
        if sizes[feature] != sizes[owner]:
            raise ValueError(
                f"embedding_size of {feature!r} and {owner!r} must be equal to share a table, "
                f"got {sizes[feature]} and {sizes[owner]}"
            )
    for group in groups:
        for pair in group.pairs:
            if pair["ad"] not in cat_features:
                raise ValueError(f"'ad' of group {group.name!r} must be in cat_features, got {pair['ad']!r}")
            histories = [pair["pos_hist"]]
            if use_negsampling:
                if "neg_hist" not in pair:
                    raise ValueError(
                        f"every pair of group {group.name!r} must have 'neg_hist' with use_negsampling=True, "
                        f"got {dict(pair)}"
                    )
                histories.append(pair["neg_hist"])
            for history in histories:
                if history not in seq_features:
                    raise ValueError(f"histories of group {group.name!r} must be in seq_features, got {history!r}")
                if sizes[history] != sizes[pair["ad"]]:
                    raise ValueError(
                        f"embedding_size of {pair['ad']!r} and {history!r} must be equal, as they are compared, "
                        f"got {sizes[pair['ad']]} and {sizes[history]}"
                    )
