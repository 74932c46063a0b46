"""DIEN over ragged and padded batches against the reference, and what it refuses."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, outcome
from random_batches import (
    HISTORIES,
    NUMBERS,
    SHARED,
    SIZES,
    WIDTH,
    make_model,
    of_every_model,
    pad,
    random_batch,
    random_ids,
)
from selection import slow_but, slow_but_pairs

from dien_fast import DIEN, DIN, Ragged, reference

GRU_TYPES = ["GRU", "AIGRU", "AGRU", "AUGRU"]


def layout_of(layout, batch):
    return pad(batch) if layout == "padded" else batch


@pytest.mark.parametrize(
    ("gru_type", "layout"),
    slow_but([("GRU", "ragged"), ("AUGRU", "padded")], itertools.product(GRU_TYPES, ["ragged", "padded"])),
)
def test_fifty_steps_of_adam(gru_type, layout):
    models = [make_model(kind, gru_type, shared_embeddings=SHARED) for kind in (reference.DIEN, DIEN)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=5e-3) for model in models]
    for step in range(50):
        batch = random_batch(8)
        losses = []
        for model, optimizer, given in zip(
            models, optimizers, (pad(batch), layout_of(layout, batch)), strict=True
        ):
            logits, auxiliary_loss = model(given)
            loss = F.binary_cross_entropy_with_logits(logits, batch["label"]) + auxiliary_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # Worst case measured over the 50 steps of the 5 cases: 7e-16.
        assert abs(losses[1] / losses[0] - 1) < 1e-9, f"step {step}: {losses}"


OPTIONS = {
    "plain": {"negatives": False},
    "three outputs": {"d_out": 3},
    "a size per feature": {"embedding_size": SIZES},
    "shared": {"shared_embeddings": SHARED, "embedding_size": SIZES},
    "shared in part": {"shared_embeddings": {"sampled_shop": "clicked_shop"}},
    "activations": {"mlp_activation": None, "activation": "sigmoid"},
}


@pytest.mark.parametrize(
    ("name", "training", "layout"), slow_but_pairs(list(OPTIONS), [True, False], ["padded", "ragged"])
)
def test_equals_the_reference(name, training, layout):
    eager, fast = (make_model(kind, **OPTIONS[name]).train(training) for kind in (reference.DIEN, DIEN))
    batch = random_batch(7, negatives=OPTIONS[name].get("negatives", True))
    got = outcome(fast, lambda: fast(layout_of(layout, batch)), {})
    assert got["output"].shape == ((7, 3) if name == "three outputs" else (7,))
    assert_same(got, outcome(eager, lambda: eager(pad(batch)), {}))


LENGTHS = {
    "unequal pairs": ([3, 0, 6, 2, 4], [1, 2, 6, 5, 0], [0, 1, 2, 3, 4]),
    "some empty": ([0, 3, 0, 1], [0, 3, 0, 1], [2, 0, 0, 0]),
    "all empty": ([0, 0, 0], [0, 0, 0], [0, 0, 0]),
    "one group empty": ([0, 0, 0], [0, 0, 0], [3, 1, 2]),
    "no second step": ([1, 0, 1], [1, 0, 1], [1, 1, 1]),
    "no row": ([], [], []),
}


@pytest.mark.parametrize(
    ("gru_type", "case", "training", "layout"),
    slow_but_pairs(["GRU", "AUGRU"], list(LENGTHS), [True, False], ["padded", "ragged"]),
)
def test_awkward_histories(gru_type, case, training, layout):
    lengths = {
        name: torch.tensor(value, dtype=torch.int64) for name, value in zip(HISTORIES, LENGTHS[case], strict=True)
    }
    batch = random_batch(len(lengths["item"]), **lengths)
    eager, fast = (make_model(kind, gru_type).train(training) for kind in (reference.DIEN, DIEN))
    got = outcome(fast, lambda: fast(layout_of(layout, batch)), {})
    assert_same(got, outcome(eager, lambda: eager(pad(batch)), {}))
    assert got["output"].shape == (len(lengths["item"]),)
    assert got["output"].isfinite().all()


@pytest.mark.parametrize("d_out", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_batch_of_one_keeps_its_dimension(length, d_out):
    batch = random_batch(1, item=[length], category=[length], shop=[length])
    eager, fast = (make_model(kind, d_out=d_out).eval() for kind in (reference.DIEN, DIEN))
    logits, auxiliary_loss = fast(batch)
    assert logits.shape == ((1,) if d_out == 1 else (1, 3))
    want, want_loss = eager(pad(batch))
    torch.testing.assert_close(logits, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(auxiliary_loss, want_loss, rtol=1e-12, atol=1e-12)


def test_one_row_has_no_batch_statistics():
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        make_model(DIEN)(random_batch(1))


def test_rows_do_not_depend_on_each_other_in_evaluation():
    """The row alone, its sequences padded less than those of the batch, has the logit it has in the batch."""
    model = make_model(DIEN).eval()
    lengths = torch.tensor([2, 5, 1])
    batch = random_batch(3, item=lengths, category=lengths, shop=lengths)
    alone = {
        name: value._replace(values=value.values[: value.offsets[1]], offsets=value.offsets[:2])
        if isinstance(value, Ragged)
        else value[:1]
        for name, value in batch.items()
    }
    torch.testing.assert_close(model(alone)[0], model(batch)[0][:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_ragged_id_0_is_an_event_with_a_zero_vector(training):
    """Id 0 and an ordinary id whose vector is zero are the same event; only padded ids end at a 0."""
    lengths = [3, 1, 2]
    model = make_model(DIEN).train(training)
    with torch.no_grad():
        for name in HISTORIES:
            for role in ("clicked", "sampled"):
                model.embeddings[f"{role}_{name}"].weight[2] = 0.0
    ordinary = random_batch(3, item=lengths, category=lengths, shop=lengths)
    names = [f"{role}_{name}" for role in ("clicked", "sampled") for name in HISTORIES]
    with_zeros = dict(ordinary)
    for name in names:
        ids = ordinary[name].values.clone()
        ids[[0, 1, 3]] = torch.tensor([2, 1, 2])
        ordinary[name] = ordinary[name]._replace(values=ids)
        with_zeros[name] = ordinary[name]._replace(values=torch.where(ids == 2, 0, ids))
    second = copy.deepcopy(model)
    for got, want in zip(second(with_zeros), model(ordinary), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(copy.deepcopy(model)(pad(with_zeros))[0], model(ordinary)[0])


@pytest.mark.parametrize("kind", [DIEN, reference.DIEN], ids=["fast", "reference"])
def test_negatives_may_be_absent_in_evaluation(kind):
    model = make_model(kind).eval()
    batch = pad(random_batch(4))
    without = {name: value for name, value in batch.items() if not name.startswith("sampled")}
    logits, auxiliary_loss = model(without)
    assert auxiliary_loss is None
    assert torch.equal(logits, model(batch)[0])
    with pytest.raises(ValueError, match="neg_keys must be given in training with use_negsampling=True, got None"):
        model.train()(without)


def test_shared_tables():
    model = make_model(DIEN, shared_embeddings=SHARED)
    tables = {name for name in model.state_dict() if name.startswith("embedding:")}
    assert tables == {f"embedding:{name}.weight" for name in ("item", "category", "shop", "user", "tags")}
    for feature, owner in SHARED.items():
        assert model.embeddings[feature] is model.embeddings[owner]
    model(random_batch(4))[1].backward()
    assert model.embeddings["item"].weight.grad.any(), "the histories train the candidate's table"


@pytest.mark.parametrize("kind", [DIEN, DIN, reference.DIEN], ids=["dien", "din", "reference"])
def test_every_dropout_reaches_its_layers(kind):
    model = make_model(kind, group_options={"att_dropout": 0.3}, mlp_dropout=0.2)
    dropouts = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout)}
    in_groups = [p for name, p in dropouts.items() if "attention_pooling:items" in name]
    assert in_groups == [0.3, 0.3]
    assert [p for name, p in dropouts.items() if name.startswith("mlp.")] == [0.2, 0.2]
    assert len(dropouts) == 4, "the other group has none"


@pytest.mark.parametrize("kind", [DIEN, reference.DIEN], ids=["fast", "reference"])
def test_gru_dropout_warns(kind):
    with pytest.warns(UserWarning, match=r"gru_dropout has no effect, got 0\.1"):
        make_model(kind, group_options={"gru_dropout": 0.1})


def test_unknown_keys_are_ignored():
    model = make_model(DIEN).eval()
    batch = random_batch(4)
    assert torch.equal(model(batch | {"__row__": torch.arange(4)})[0], model(batch)[0])


@pytest.mark.parametrize("options", [{}, {"shared_embeddings": SHARED}], ids=["own", "shared"])
def test_checkpoints_are_interchangeable_with_the_reference(options):
    eager, fast = make_model(reference.DIEN, seed=1, **options), make_model(DIEN, seed=2, **options)
    assert list(eager.state_dict()) == list(fast.state_dict())
    batch = random_batch(6)
    eager(pad(batch))  # Moves the running buffers.
    want = eager.eval()(pad(batch))[0]
    fast.load_state_dict(eager.state_dict(), strict=True)
    torch.testing.assert_close(fast.eval()(batch)[0], want, rtol=1e-12, atol=1e-12)
    other = make_model(reference.DIEN, seed=3, **options).eval()
    other.load_state_dict(fast.state_dict(), strict=True)
    assert torch.equal(other(pad(batch))[0], want)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(duplicate):
    model = make_model(DIEN, shared_embeddings=SHARED)
    batch = random_batch(6)
    twin = duplicate(model)
    want = model.eval()(batch)[0]
    assert torch.equal(twin.eval()(batch)[0], want)
    assert twin.embeddings["clicked_item"] is twin.embeddings["item"]
    with torch.no_grad():
        twin.embeddings["clicked_item"].weight += 1
    assert torch.equal(model(batch)[0], want)
    assert not torch.equal(twin(batch)[0], want)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_trace(layout):
    model = make_model(DIEN).eval()
    batch = random_batch(4, item=[3, 0, 6, 2], category=[3, 1, 6, 1])
    scores, states = model.trace(layout_of(layout, batch), "items")
    assert (scores.shape, states.shape) == ((4, WIDTH), (4, WIDTH, 6))
    torch.testing.assert_close(
        scores.sum(1), torch.tensor([1.0, 0, 1, 1], dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    lengths = torch.tensor([3, 0, 6, 1])
    assert torch.equal(scores != 0, torch.arange(WIDTH) < lengths[:, None])
    tables = model.embeddings
    query = torch.cat([tables[name](batch[name]) for name in ("item", "category")], 1)
    keys = torch.cat([tables[name](pad(batch)[name]) for name in ("clicked_item", "clicked_category")], 2)
    want = model.attention_poolings["items"].trace(query, keys, lengths)
    for got, expected in zip((scores, states), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "group", "training", "message"),
    [
        (DIEN, "movies", False, r"group_name must be one of \['items', 'shops'\], got 'movies'"),
        (DIEN, "items", True, "trace needs evaluation mode"),
        (DIN, "items", False, "trace needs a model that can be traced, such as DIEN, got DIN"),
    ],
)
def test_trace_refuses(kind, group, training, message):
    with pytest.raises(ValueError, match=message):
        make_model(kind).train(training).trace(random_batch(4), group)


LESS = {name: random_ids(name, torch.tensor([1, 0, 2])) for name in NUMBERS}
WRONG = {
    "item histories of fewer rows": ({"clicked_item": LESS["clicked_item"]}, "must have the same number of rows"),
    "histories of fewer rows": ({"clicked_shop": LESS["clicked_shop"]}, "must "),
    "one of two padded": (
        {"clicked_item": torch.ones(4, WIDTH, dtype=torch.int64)},
        "must be all padded or all ragged",
    ),
    "one of two negatives padded": (
        {"sampled_item": torch.ones(4, 6, dtype=torch.int64)},
        "all padded or all ragged",
    ),
    "padded negatives": (
        {"sampled_shop": torch.ones(4, 6, dtype=torch.int64)},
        "must be all padded or all ragged",
    ),
    "padded histories": (
        {"clicked_shop": torch.ones(4, 6, dtype=torch.int64)},
        "histories of group 'shops' must be ",
    ),
    "longer negatives": (
        {"sampled_shop": random_ids("shop", torch.tensor([5, 5, 5, 5]))},
        "sampled histories of group 'shops' must be as long as the clicked ones",
    ),
    "a ragged candidate": (
        {"item": LESS["item"]},
        "feature 'item' must have one value per row, got a ragged sequence",
    ),
    "a ragged number": ({"age": LESS["item"]}, "feature 'age' must have one value per row, got a ragged sequence"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_batches(case):
    change, message = WRONG[case]
    batch = random_batch(4, shop=[1, 2, 3, 4]) | change
    with pytest.raises(ValueError, match=message):
        make_model(DIEN)(batch)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@of_every_model
@pytest.mark.parametrize("feature", ["age", "item", "tags", "clicked_item", "clicked_shop"])
def test_missing_feature(feature, kind, layout):
    batch = layout_of(layout, random_batch(4))
    del batch[feature]
    with pytest.raises(ValueError, match=f"the batch must have feature '{feature}', got .*'user'"):
        make_model(kind)(batch)
