"""DIN: attention where DIEN has the interest layer."""

import pytest
import torch
from comparison import assert_same, outcome
from random_batches import SHARED, SIZES, make_model, pad, random_batch

from dien_fast import DIEN, DIN


def assembled(model, batch):
    """DIN's definition: features side by side, each group's keys weighted by attention, the MLP."""
    padded, tables = pad(batch), model.embeddings
    columns = [padded["age"].view(-1, 1)]
    columns += [tables[name](padded[name]) for name in ("item", "category", "shop", "user")]
    columns.append(tables["tags"](padded["tags"]).max(1).values)
    for group, names in (("items", ["item", "category"]), ("shops", ["shop"])):
        query = torch.cat([tables[name](padded[name]) for name in names], 1)
        keys = torch.cat([tables[f"clicked_{name}"](padded[f"clicked_{name}"]) for name in names], 2)
        lengths = torch.stack([(padded[f"clicked_{name}"] > 0).sum(1) for name in names]).min(0).values
        columns.append(model.attention_poolings[group](query, keys, lengths))
    return model.final_layer(model.mlp(torch.cat(columns, 1)))


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("options", [{}, {"d_out": 3}, {"shared_embeddings": SHARED, "embedding_size": SIZES}])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_is_attention_between_embeddings_and_mlp(options, layout, training):
    model, twin = (make_model(DIN, **options).train(training) for _ in range(2))
    batch = random_batch(6)
    given = pad(batch) if layout == "padded" else batch
    want = outcome(twin, lambda: (assembled(twin, batch).reshape(model(given)[0].shape), None), {})
    model.load_state_dict(make_model(DIN, **options).state_dict())  # Undo the running buffers of the call above.
    got = outcome(model, lambda: model(given), {})
    assert_same(got, want)


@pytest.mark.parametrize("negatives", [True, False])
def test_no_auxiliary_loss(negatives):
    batch = random_batch(5, negatives=False)
    logits, auxiliary_loss = make_model(DIN, negatives=negatives)(batch)
    assert logits.shape == (5,)
    assert auxiliary_loss is None


def test_pairs_of_unequal_length():
    """Ragged and padded agree: what the shorter history lacks is not attended to."""
    model = make_model(DIN).eval()
    batch = random_batch(4, item=[3, 0, 6, 2], category=[1, 2, 6, 5])
    torch.testing.assert_close(model(batch)[0], model(pad(batch))[0], rtol=1e-12, atol=1e-12)
    longer = pad(batch)
    longer["clicked_item"][0, 1:3] = 1
    torch.testing.assert_close(model(longer)[0], model(batch)[0], rtol=1e-12, atol=1e-12)
    longer["clicked_item"][0, 0] = 11 - int(longer["clicked_item"][0, 0])
    assert not torch.allclose(model(longer)[0][0], model(batch)[0][0])


def test_neither_recurrence_nor_auxiliary_net():
    names = list(make_model(DIN).state_dict())
    assert not [name for name in names if "interest" in name or "auxiliary" in name]
    assert "attention_pooling:items.mlp.dense0.weight" in [name.replace("mlp.mlp", "mlp") for name in names]
    dien = make_model(DIEN).state_dict()
    assert {name for name in names if "attention_pooling" not in name} <= dien.keys()


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("lengths", [[], [0, 0, 0], [0, 2, 1]])
def test_awkward_histories(lengths, training, layout):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    batch = random_batch(len(lengths), item=lengths, category=lengths, shop=lengths)
    model = make_model(DIN).train(training)
    got = outcome(model, lambda: model(pad(batch) if layout == "padded" else batch), {})
    assert got["output"].shape == (len(lengths),)
    assert all(value.isfinite().all() for value in got.values())
    if training and len(lengths):
        counted = [value for name, value in got.items() if name.endswith("num_batches_tracked")]
        assert len(counted) > 4
        assert set(map(int, counted)) == {1}, "every batch normalisation saw the batch"


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_batch_of_one(length):
    batch = random_batch(1, item=[length], category=[length], shop=[length])
    model = make_model(DIN).eval()
    logits, _ = model(batch)
    assert logits.shape == (1,)
    torch.testing.assert_close(logits, model(pad(batch))[0], rtol=1e-12, atol=1e-12)


def test_mixed_layouts():
    batch = random_batch(4) | {"clicked_item": torch.ones(4, 6, dtype=torch.int64)}
    with pytest.raises(ValueError, match="histories of group 'items' must be all padded or all ragged, got both"):
        make_model(DIN)(batch)
