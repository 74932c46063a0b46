"""Scoring the candidates of users at once against the batch in which the user is repeated for each candidate."""

import itertools

import pytest
import torch
from candidates import CANDIDATE, bounds, candidate_features, compare, layout_of, repeated, trained
from random_batches import (
    HISTORIES,
    NUMBERS,
    SHARED,
    SIZES,
    make_model,
    of_every_model,
    pad,
    random_batch,
    random_ids,
    sessions_of,
)

from dien_fast import DIEN, AttentionGroup, Ragged, backend, reference, use_backend

GRU_TYPES = ["GRU", "AIGRU", "AGRU", "AUGRU"]
# By name: how many candidates each user has.
COUNTS = {
    "one user": [5],
    "one candidate": [1],
    "several": [3, 0, 2, 4],
    "first and last without": [0, 4, 0],
    "none at all": [0, 0],
    "no users": [],
}


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_dien_equals_forward_for_the_repeated_user(gru_type, layout):
    model = trained(DIEN, gru_type)
    for counts in COUNTS.values():
        compare(model, random_batch(len(counts)), candidate_features(sum(counts)), counts, layout)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_every_model_equals_forward_for_the_repeated_user(kind, layout):
    model = trained(kind)
    for counts in COUNTS.values():
        compare(model, random_batch(len(counts)), candidate_features(sum(counts)), counts, layout)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_dien_equals_the_reference(gru_type, layout):
    """The same numbers from the plain model, which knows nothing of shared histories."""
    model, eager = trained(DIEN, gru_type), make_model(reference.DIEN, gru_type).eval()
    eager.load_state_dict(model.state_dict())
    counts = COUNTS["several"]
    user, candidates = random_batch(4), candidate_features(9)
    got = model.score_candidates(layout_of(layout, user), candidates, bounds(counts))
    with torch.no_grad():
        want, _ = eager(pad(repeated(user, candidates, counts)))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


OPTIONS = {
    "plain": {"negatives": False},
    "three outputs": {"d_out": 3},
    "a size per feature": {"embedding_size": SIZES},
    "shared": {"shared_embeddings": SHARED, "embedding_size": SIZES},
    "shared in part": {"shared_embeddings": {"clicked_shop": "shop"}},
    "activations": {"mlp_activation": None, "activation": "sigmoid"},
}


@pytest.mark.parametrize("name", OPTIONS)
@of_every_model
def test_options(kind, name):
    model = trained(kind, **OPTIONS[name])
    for counts, layout in itertools.product(([4], [3, 0, 2]), ("padded", "ragged")):
        user = random_batch(len(counts), negatives=OPTIONS[name].get("negatives", True))
        got = compare(model, user, candidate_features(sum(counts)), counts, layout)
        assert got.shape == ((sum(counts), 3) if name == "three outputs" else (sum(counts),))


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_any_feature_may_be_the_candidate_s(kind, layout):
    """What is not among the candidates' features, even the ad, is the user's."""
    model = trained(kind)
    for features in (CANDIDATE, ("item",), ("category", "shop"), ("age",), ("user",), (*CANDIDATE, "age", "user")):
        compare(model, random_batch(3), candidate_features(5, features), [3, 0, 2], layout)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_the_candidates_features_replace_the_user_s_or_stand_alone(kind, layout):
    model, counts = trained(kind), [2, 3]
    user, candidates = layout_of(layout, random_batch(2)), candidate_features(5)
    offsets = bounds(counts)
    want = model.score_candidates(user, candidates, offsets)
    other = user | {name: (user[name] + 1) % NUMBERS[name] for name in CANDIDATE} | {"age": user["age"] + 1}
    assert torch.equal(model.score_candidates(other, candidates, offsets), want)
    without = {name: value for name, value in user.items() if name not in candidates}
    assert torch.equal(model.score_candidates(without, candidates, offsets), want)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_sampled_histories_and_labels_are_not_looked_at(kind, layout):
    model, counts = trained(kind), [2, 3]
    user, candidates = layout_of(layout, random_batch(2)), candidate_features(5)
    want = model.score_candidates(user, candidates, bounds(counts))
    without = {name: value for name, value in user.items() if not name.startswith("sampled") and name != "label"}
    assert torch.equal(model.score_candidates(without, candidates, bounds(counts)), want)
    unfit = user | {f"sampled_{name}": random_ids(name, torch.tensor([1])) for name in HISTORIES}
    assert torch.equal(model.score_candidates(unfit, candidates, bounds(counts)), want)


LENGTHS = {
    "unequal pairs": ([3, 0, 6, 2], [1, 2, 6, 5], [0, 1, 2, 3]),
    "some empty": ([0, 3, 0, 1], [0, 3, 0, 1], [2, 0, 0, 0]),
    "all empty": ([0, 0, 0, 0],) * 3,
    "one group empty": ([0, 0, 0, 0], [0, 0, 0, 0], [3, 1, 2, 6]),
    "all full": ([6, 6, 6, 6],) * 3,
}


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_awkward_histories(kind, layout):
    model = trained(kind)
    for case in LENGTHS.values():
        lengths = {name: torch.tensor(value) for name, value in zip(HISTORIES, case, strict=True)}
        compare(model, random_batch(4, **lengths), candidate_features(9), COUNTS["several"], layout)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_both_backends_give_the_same(kind, layout):
    if backend().name != "native":
        pytest.skip("the native backend is not in use")
    model, counts = trained(kind), [3, 0, 2]
    user, candidates = layout_of(layout, random_batch(3)), candidate_features(5)
    found = []
    for name in ("native", "reference"):
        with use_backend(name):
            found.append(model.score_candidates(user, candidates, bounds(counts)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@of_every_model
def test_float32(kind):
    model, counts = trained(kind).float(), [30, 0, 20]
    user, candidates = random_batch(3), candidate_features(50)
    user["age"], candidates["age"] = user["age"].float(), candidates["age"].float()
    got = model.score_candidates(user, candidates, bounds(counts))
    with torch.no_grad():
        want, _ = model(repeated(user, candidates, counts))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_the_least_model(kind, layout):
    """One group of one pair, whose history is all that the user has."""
    torch.manual_seed(0)
    model = kind(
        num_features=[],
        cat_features=["item"],
        seq_features=["clicked"],
        cat_nums={"item": 11, "clicked": 11},
        embedding_size=8,
        attention_groups=[AttentionGroup("g", [{"ad": "item", "pos_hist": "clicked"}], [3])],
        mlp_hidden_layers=[5],
        shared_embeddings={"clicked": "item"},
    )
    model.double().eval()
    user = {"clicked": random_ids("item", torch.tensor([3, 0, 5]))}
    if kind.uses_sessions:
        user["g.session"] = sessions_of(user["clicked"])
    compare(model, user, {"item": torch.randint(0, 11, (6,))}, [4, 1, 1], layout)


@of_every_model
def test_no_gradient_is_recorded(kind):
    model = trained(kind)
    found = model.score_candidates(random_batch(1), candidate_features(4))
    assert not found.requires_grad
    assert torch.is_grad_enabled()


@of_every_model
def test_training_mode_is_refused(kind):
    with pytest.raises(ValueError, match="score_candidates needs evaluation mode, got a model in training mode"):
        make_model(kind).score_candidates(random_batch(1), candidate_features(4))


ITEMS = {"item": torch.tensor([1, 2, 3])}
WRONG = {
    "no candidates": ({"candidates": {}}, "candidates must hold numeric or categorical features, .*, got "),
    "unknown feature": (
        {"candidates": ITEMS | {"colour": torch.tensor([1, 2, 3])}},
        r"one or more of \['age', 'category', 'item', 'shop', 'user'\], got \['colour', 'item'\]",
    ),
    "a history": (
        {"candidates": ITEMS | {"clicked_item": torch.tensor([1, 2, 3])}},
        r"candidates must hold numeric or categorical features, .*, got \['clicked_item', 'item'\]",
    ),
    "a pooled sequence": (
        {"candidates": ITEMS | {"tags": torch.tensor([1, 2, 3])}},
        r"candidates must hold numeric or categorical features, .*, got \['item', 'tags'\]",
    ),
    "different lengths": (
        {"candidates": ITEMS | {"shop": torch.tensor([1, 2])}},
        r"candidates must have the same number of rows in every feature, got \{'item': 3, 'shop': 2\}",
    ),
    "a ragged candidate": (
        {"candidates": {"item": Ragged(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2, 3]), 1)}},
        "feature 'item' must have one value per row, got a ragged sequence",
    ),
    "no offsets": ({"candidate_offsets": None}, "candidate_offsets must be given for 2 users, got None"),
    "fewer offsets": (
        {"candidate_offsets": torch.tensor([0, 3])},
        r"candidate_offsets must have shape \(3,\), got \(2,\)",
    ),
    "falling offsets": ({"candidate_offsets": torch.tensor([0, 4, 3])}, "candidate_offsets must rise from 0 to 3"),
    "offsets ending before C": (
        {"candidate_offsets": torch.tensor([0, 1, 2])},
        "candidate_offsets must rise from 0 to 3, got 0 to 2",
    ),
    "offsets beginning behind 0": (
        {"candidate_offsets": torch.tensor([1, 2, 3])},
        "candidate_offsets must rise from 0 to 3, got 1 to 3",
    ),
}


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_wrong_arguments(kind, layout):
    model, user = trained(kind), layout_of(layout, random_batch(2))
    for change, message in WRONG.values():
        given = {"user": user, "candidates": ITEMS, "candidate_offsets": torch.tensor([0, 2, 3])} | change
        with pytest.raises(ValueError, match=message) as caught:
            model.score_candidates(**given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_missing_feature(kind, layout):
    model, user = trained(kind), layout_of(layout, random_batch(2))
    for feature in ("age", "category", "tags", "clicked_item", "clicked_shop"):
        less = {name: value for name, value in user.items() if name != feature}
        with pytest.raises(ValueError, match=f"the batch must have feature '{feature}', got .*'user'"):
            model.score_candidates(less, ITEMS, torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
def test_a_user_feature_of_another_number_of_rows_is_refused(kind, layout):
    """Forward refuses such a batch too, where it puts the features side by side."""
    model = trained(kind)
    user, more = layout_of(layout, random_batch(2)), layout_of(layout, random_batch(3))
    for feature in ("age", "user", "tags", "clicked_item"):
        with pytest.raises((ValueError, RuntimeError)):
            model.score_candidates(user | {feature: more[feature]}, ITEMS, torch.tensor([0, 2, 3]))
