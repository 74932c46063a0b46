"""AttentionGroup's methods, and constructor arguments that models refuse."""

import pytest

from dien_fast import DIEN, DIN, AttentionGroup, reference

PAIR = {"ad": "item", "pos_hist": "hist", "neg_hist": "neg"}


def test_features_of_a_group():
    group = AttentionGroup("g", [PAIR, {"ad": "shop", "pos_hist": "shops"}], [4])
    assert group.pairs_count == 2
    assert [
        name for name in ("item", "hist", "neg", "shop", "shops", "age") if group.is_attention_feature(name)
    ] == [
        "item",
        "hist",
        "neg",
        "shop",
        "shops",
    ]
    assert [name for name in ("item", "hist", "neg", "shops") if group.is_neg_sampling_feature(name)] == ["neg"]


def test_defaults():
    group = AttentionGroup("g", [PAIR], [4])
    assert (group.activation, group.att_dropout, group.gru_type, group.gru_dropout) == ("dice", 0.0, "AUGRU", 0.0)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs of group 'g' must hold at least one pair, got none"),
        ([{"ad": "item"}], "a pair of group 'g' must have 'ad' and 'pos_hist', got {'ad': 'item'}"),
        ([PAIR, {"pos_hist": "hist"}], "a pair of group 'g' must have 'ad' and 'pos_hist'"),
    ],
)
def test_wrong_pairs(pairs, message):
    with pytest.raises(ValueError, match=message):
        AttentionGroup("g", pairs, [4])


def arguments(**changes):
    """Correct arguments of a model, with changes."""
    right = {
        "num_features": ["age"],
        "cat_features": ["item", "user"],
        "seq_features": ["hist", "neg", "tags"],
        "cat_nums": {"item": 9, "user": 5, "hist": 9, "neg": 9, "tags": 4},
        "embedding_size": 2,
        "attention_groups": [AttentionGroup("g", [PAIR], [4])],
        "mlp_hidden_layers": [4],
        "use_negsampling": True,
    }
    return right | changes


SIZES = {"item": 2, "user": 3, "hist": 2, "neg": 2, "tags": 5}
WRONG = [
    ({"num_features": ["age", "item"]}, "every feature and group must have a name of its own, got 'item' twice"),
    ({"cat_features": ["item", "user", "user"]}, "got 'user' twice"),
    ({"attention_groups": [AttentionGroup("hist", [PAIR], [4])]}, "got 'hist' twice"),
    ({"num_features": ["the.age"]}, r"must not contain '\.', got 'the\.age'"),
    ({"embedding_size": {"item": 2}}, "embedding_size must have feature 'user', got .*'item'"),
    ({"cat_nums": {"item": 9, "user": 5, "hist": 9, "neg": 9}}, "cat_nums must have feature 'tags', got "),
    ({"shared_embeddings": {"movie": "item"}}, "shared_embeddings must name .* features, got 'movie'"),
    ({"shared_embeddings": {"hist": "movie"}}, "shared_embeddings must name .* features, got 'movie'"),
    ({"shared_embeddings": {"hist": "item", "neg": "hist"}}, r"shared_embeddings\['neg'\] must own .* got 'hist'"),
    ({"shared_embeddings": {"hist": "hist"}}, r"shared_embeddings\['hist'\] must own its table, got 'hist'"),
    ({"shared_embeddings": {"hist": "user"}}, "cat_nums of 'hist' and 'user' must be equal .* got 9 and 5"),
    (
        {"shared_embeddings": {"tags": "item"}, "cat_nums": SIZES | {"tags": 2}, "embedding_size": SIZES},
        "embedding_size of 'tags' and 'item' must be equal to share a table, got 5 and 2",
    ),
    ({"cat_features": ["user"]}, "'ad' of group 'g' must be in cat_features, got 'item'"),
    ({"seq_features": ["neg", "tags"]}, "histories of group 'g' must be in seq_features, got 'hist'"),
    ({"seq_features": ["hist", "tags"]}, "histories of group 'g' must be in seq_features, got 'neg'"),
    (
        {"attention_groups": [AttentionGroup("g", [{"ad": "item", "pos_hist": "hist"}], [4])]},
        "every pair of group 'g' must have 'neg_hist' with use_negsampling=True",
    ),
    (
        {"embedding_size": SIZES | {"hist": 3}},
        "embedding_size of 'item' and 'hist' must be equal, as they are compared, got 2 and 3",
    ),
    ({"embedding_size": SIZES | {"neg": 4}}, "embedding_size of 'item' and 'neg' must be equal.*, got 2 and 4"),
]


@pytest.mark.parametrize("model", [DIEN, DIN, reference.DIEN], ids=["dien", "din", "reference"])
@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_model_arguments(changes, message, model):
    with pytest.raises(ValueError, match=message):
        model(**arguments(**changes))


@pytest.mark.parametrize(
    "changes", [{}, {"embedding_size": SIZES}, {"seq_features": ["hist"], "use_negsampling": False}]
)
def test_right_model_arguments(changes):
    DIEN(**arguments(**changes))
