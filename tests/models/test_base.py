"""A model of one's own needs no more than what the base asks for."""

import pytest
import torch
from candidates import candidate_features, compare, layout_of, trained
from random_batches import SHARED, make_model, pad, random_batch
from toy_models import Sums, Traced

from dien_fast import DIEN, DIN, reference
from dien_fast.models import ClickModel

in_both_layouts = pytest.mark.parametrize("layout", ["padded", "ragged"])


@in_both_layouts
@pytest.mark.parametrize("shared", [SHARED, None])
@pytest.mark.parametrize("kind", [Sums, Traced])
def test_forward_feeds_the_pooling_to_the_head(kind, shared, layout):
    model = make_model(kind, shared_embeddings=shared)
    batch = random_batch(6)
    logits, loss = model.eval()(layout_of(layout, batch))
    padded, tables = pad(batch), model.embeddings
    columns = [padded["age"].view(-1, 1)]
    columns += [tables[name](padded[name]) for name in ("item", "category", "shop", "user")]
    columns.append(tables["tags"](padded["tags"]).max(1).values)
    losses = []
    for group, names in (("items", ["item", "category"]), ("shops", ["shop"])):
        query = torch.cat([tables[name](padded[name]) for name in names], 1)
        clicked, sampled = (
            torch.cat([tables[f"{role}_{name}"](padded[f"{role}_{name}"]) for name in names], 2)
            for role in ("clicked", "sampled")
        )
        columns.append(clicked.sum(1) * model.attention_poolings[group].scale(query))
        losses.append((clicked - sampled).square().mean())
    torch.testing.assert_close(logits, model.head(torch.cat(columns, 1)), rtol=1e-12, atol=1e-12)
    if kind is Sums:
        assert loss is None
    else:
        torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-12, atol=1e-12)


@in_both_layouts
@pytest.mark.parametrize("counts", [[5], [3, 0, 2], [0]], ids=str)
@pytest.mark.parametrize("kind", [Sums, Traced])
def test_candidates_are_scored_without_more_code(kind, counts, layout):
    compare(
        trained(kind, shared_embeddings=SHARED),
        random_batch(len(counts)),
        candidate_features(sum(counts)),
        counts,
        layout,
    )


@in_both_layouts
def test_trace(layout):
    model = trained(Traced)
    batch = random_batch(4)
    scores, states = model.trace(layout_of(layout, batch), "shops")
    assert (scores.shape, states.shape) == ((4, 6), (4, 6, 3))
    query = model.embeddings["shop"](batch["shop"])
    torch.testing.assert_close(scores, (query.unsqueeze(1) * states).sum(2))
    with pytest.raises(ValueError, match="trace needs evaluation mode"):
        model.train().trace(batch, "shops")


def test_a_model_without_a_trace_says_so():
    with pytest.raises(ValueError, match="trace needs a model that can be traced, such as DIEN, got Sums"):
        trained(Sums).trace(random_batch(4), "shops")


def test_a_model_that_pools_nothing_says_what_is_missing():
    with pytest.raises(NotImplementedError):
        make_model(ClickModel)


@in_both_layouts
def test_negatives_of_other_lengths_are_refused(layout):
    batch = layout_of(layout, random_batch(4, shop=[1, 2, 3, 4]))
    batch["sampled_shop"] = batch["sampled_item"]
    if layout == "padded":
        batch["sampled_shop"] = batch["sampled_shop"][:, :3]
    with pytest.raises(ValueError, match="sampled histories of group 'shops' must be as long as the clicked ones"):
        make_model(Traced)(batch)


def test_what_is_a_dien():
    assert issubclass(DIEN, reference.DIEN)
    assert issubclass(DIEN, ClickModel)
    assert issubclass(DIN, ClickModel)
    assert not issubclass(DIN, reference.DIEN)
    assert not issubclass(DIN, DIEN)
