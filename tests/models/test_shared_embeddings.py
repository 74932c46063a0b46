"""Why one table should be shared: with a table per feature the auxiliary net reads the label off the table."""

import math

import pytest
import torch

from dien_fast import DIEN, AttentionGroup, Ragged

ITEMS, ROWS, LENGTH = 50, 64, 8


def random_history():
    """Clicks and negatives are drawn alike: nothing tells them apart."""
    offsets = torch.arange(0, ROWS * LENGTH + 1, LENGTH)
    clicked, sampled = (Ragged(torch.randint(1, ITEMS, (ROWS * LENGTH,)), offsets, LENGTH) for _ in range(2))
    return {"item": torch.randint(1, ITEMS, (ROWS,)), "clicked": clicked, "sampled": sampled}


@pytest.mark.parametrize("shared", [True, False], ids=["one table", "a table per feature"])
def test_auxiliary_loss_on_random_histories(shared):
    group = AttentionGroup("g", [{"ad": "item", "pos_hist": "clicked", "neg_hist": "sampled"}], [4])
    model = DIEN(
        num_features=[],
        cat_features=["item"],
        seq_features=["clicked", "sampled"],
        cat_nums=dict.fromkeys(("item", "clicked", "sampled"), ITEMS),
        embedding_size=8,
        attention_groups=[group],
        mlp_hidden_layers=[4],
        use_negsampling=True,
        shared_embeddings={"clicked": "item", "sampled": "item"} if shared else None,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = model(random_history())[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        held_out = torch.stack([model(random_history())[1] for _ in range(20)]).mean().item()
    if shared:
        assert abs(held_out - math.log(2)) < 0.02
    else:
        assert held_out < 0.4
