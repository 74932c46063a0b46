"""DSIN: the session layer between embeddings and MLP, and what a batch must say about sessions."""

import pytest
import torch
from candidates import candidate_features, compare, layout_of, trained
from comparison import assert_same, outcome
from random_batches import SHARED, SIZES, make_model, pad, random_batch
from session_loop import expected
from torch.profiler import ProfilerActivity, profile

from dien_fast import DIN, DSIN, AttentionGroup, Ragged
from dien_fast.models.dsin import DSINOptions
from dien_fast.nn.sessions import SessionInterest

in_both_layouts = pytest.mark.parametrize("layout", ["padded", "ragged"])


def cut_to(rows, lengths):
    """The first events of each history, one by one."""
    parts = rows.values.split(rows.lengths().tolist())
    values = torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)])
    return rows._replace(values=values, offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))


def assembled(model, batch):
    """DSIN's definition: features side by side, each group's sessions user by user in a loop, the MLP."""
    padded, tables = pad(batch), model.embeddings
    columns = [padded["age"].view(-1, 1)]
    columns += [tables[name](padded[name]) for name in ("item", "category", "shop", "user")]
    columns.append(tables["tags"](padded["tags"]).max(1).values)
    for group, names in (("items", ["item", "category"]), ("shops", ["shop"])):
        query = torch.cat([tables[name](padded[name]) for name in names], 1)
        lengths = torch.stack([batch[f"clicked_{name}"].lengths() for name in names]).min(0).values
        cut = {name: cut_to(batch[f"clicked_{name}"], lengths) for name in names}
        vectors = torch.cat([tables[f"clicked_{name}"](cut[name].values) for name in names], 1)
        keys = cut[names[0]]._replace(values=vectors)
        sessions = cut_to(batch[f"{group}.session"], lengths).values
        columns.append(expected(model.attention_poolings[group], query, keys, sessions))
    return model.final_layer(model.mlp(torch.cat(columns, 1)))


@in_both_layouts
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d_out": 3},
        {"shared_embeddings": SHARED, "embedding_size": SIZES},
        {"heads": 3, "max_sessions": 2, "max_events": 2, "lstm_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_is_the_session_layer_between_embeddings_and_mlp(options, layout, training):
    model, twin = (make_model(DSIN, **options).train(training) for _ in range(2))
    batch = random_batch(6)
    given = layout_of(layout, batch)
    want = outcome(twin, lambda: (assembled(twin, batch).reshape(model(given)[0].shape), None), {})
    model.load_state_dict(make_model(DSIN, **options).state_dict())  # Undo the running buffers of the call above.
    assert_same(outcome(model, lambda: model(given), {}), want, rtol=1e-9)


@in_both_layouts
def test_pairs_of_unequal_length(layout):
    """Events that one of the pairs lacks are left out, with their sessions."""
    model = make_model(DSIN).eval()
    batch = random_batch(4, item=[3, 0, 6, 2], category=[1, 2, 6, 1])
    batch["items.session"] = Ragged(torch.arange(12) // 2, torch.tensor([0, 3, 4, 10, 12]), 6)
    torch.testing.assert_close(model(layout_of(layout, batch))[0], assembled(model, batch).squeeze(1))


def test_a_number_of_a_session_means_nothing_but_its_session():
    model, batch = make_model(DSIN).eval(), random_batch(5)
    sessions = batch["items.session"]
    other = batch | {"items.session": sessions._replace(values=7 - 2 * sessions.values)}
    assert torch.equal(model(other)[0], model(batch)[0])
    joined = batch | {"items.session": sessions._replace(values=torch.zeros_like(sessions.values))}
    assert not torch.allclose(model(joined)[0], model(batch)[0])


@in_both_layouts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("lengths", [[], [0, 0, 0], [0, 2, 1]])
def test_awkward_histories(lengths, training, layout):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    batch = random_batch(len(lengths), item=lengths, category=lengths, shop=lengths)
    model = make_model(DSIN).train(training)
    got = outcome(model, lambda: model(layout_of(layout, batch)), {})
    assert got["output"].shape == (len(lengths),)
    assert all(value.isfinite().all() for value in got.values())


def test_an_empty_history_says_nothing_to_the_mlp():
    layer = make_model(DSIN).eval().attention_poolings["items"]
    keys = Ragged(torch.zeros(0, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), 6)
    pooled = layer(torch.randn(2, 6, dtype=torch.float64), keys, torch.zeros(0, dtype=torch.int64))
    assert pooled.tolist() == torch.zeros(2, 12).tolist()


def test_gradcheck():
    model, batch = make_model(DSIN).eval(), random_batch(3)
    table = model.embeddings["clicked_item"].weight.detach().requires_grad_()

    def logits(weight):
        return torch.func.functional_call(model, {"embedding:clicked_item.weight": weight}, (batch,))[0]

    assert torch.autograd.gradcheck(logits, (table,))


@in_both_layouts
def test_users_are_encoded_once_for_all_their_candidates(layout, monkeypatch):
    rows, encode = [], SessionInterest.encode
    monkeypatch.setattr(
        SessionInterest,
        "encode",
        lambda self, keys, *rest: rows.append(len(keys.values)) or encode(self, keys, *rest),
    )
    model, user = trained(DSIN), random_batch(2, item=[4, 1], category=[4, 1], shop=[2, 3])
    model.score_candidates(layout_of(layout, user), candidate_features(9), torch.tensor([0, 7, 9]))
    assert rows == [5, 5]
    compare(model, user, candidate_features(9), [7, 2], layout)


def operators(sessions, events):
    """How many operators of torch a training step takes, of two users with so many sessions of so many events."""
    group = AttentionGroup("g", [{"ad": "a", "pos_hist": "h"}], hidden_layers=[4])
    model = DSIN([], ["a"], ["h"], {"a": 9, "h": 9}, 8, [group], [4])
    steps = sessions * events
    offsets = torch.tensor([0, steps, 2 * steps])
    batch = {
        "a": torch.tensor([1, 2]),
        "h": Ragged(torch.ones(2 * steps, dtype=torch.int64), offsets, 50),
        "g.session": Ragged(torch.arange(2 * steps) // events, offsets, 50),
    }
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model(batch)[0].sum().backward()
    return sum(event.count for event in found.key_averages() if event.key.startswith("aten::"))


def test_the_number_of_operators_grows_neither_with_sessions_nor_with_events():
    few = operators(2, 2)
    assert operators(2, 10) == few
    assert operators(5, 2) == few


def test_no_sessions_in_the_batch():
    batch = random_batch(3)
    del batch["shops.session"]
    with pytest.raises(
        ValueError, match=r"the batch must have 'shops\.session', the session of each event of group"
    ):
        make_model(DSIN)(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pad()[:, :4], r"'items\.session' must have shape \(2, 6\), got \(2, 4\)"),
        (lambda rows: rows.pad()[:1], r"'items\.session' must have shape \(2, 6\), got \(1, 6\)"),
        (
            lambda rows: Ragged(rows.values[:4], torch.tensor([0, 2, 4]), 6),
            r"'items\.session' must have a session for each event of group 'items'",
        ),
        (lambda rows: Ragged(rows.values, torch.tensor([0, 5]), 6), "same number of rows"),
        (lambda rows: rows.values, r"'items\.session' must be Ragged or have shape \(B, T\), got \(5,\)"),
    ],
)
def test_sessions_of_other_events(change, message):
    batch = random_batch(2, item=[3, 2], category=[3, 2])
    batch["items.session"] = change(batch["items.session"])
    with pytest.raises(ValueError, match=message):
        make_model(DSIN)(batch)


def test_heads_divide_the_candidate_of_each_group():
    with pytest.raises(
        ValueError, match=r"the width of the candidate of group 'shops', 3, .* of its pairs, got 2"
    ):
        make_model(DSIN, heads=2)


def test_settings_of_groups_and_options_reach_the_layer():
    groups = [AttentionGroup("g", [{"ad": "a", "pos_hist": "h"}], hidden_layers=[7, 3], att_dropout=0.3)]
    options = {"heads": 2, "max_sessions": 3, "max_events": 4, "lstm_layers": 1, "session_dropout": 0.1}
    model = DSIN([], ["a"], ["h"], {"a": 9, "h": 9}, 6, groups, [4], **options)
    layer = model.attention_poolings["g"]
    assert (layer.heads, layer.max_sessions, layer.max_events) == (2, 3, 4)
    assert (layer.forward_lstm.num_layers, layer.dropout.p) == (1, 0.1)
    unit = layer.interest_attention.mlp.mlp
    assert [(unit.dense0.out_features, unit.dense1.out_features), unit.dropout0.p] == [(7, 3), 0.3]
    assert isinstance(unit.activation0, torch.nn.Sigmoid)
    assert options.keys() == vars(DSINOptions()).keys()


def test_only_the_pooling_differs_from_din():
    names = make_model(DSIN).state_dict().keys()
    din = make_model(DIN).state_dict().keys()
    assert {name for name in names if "attention_pooling" not in name} == {
        name for name in din if "attention_pooling" not in name
    }
