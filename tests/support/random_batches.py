"""A small model with every kind of feature, and random batches for it."""

import pytest
import torch

from dien_fast import AttentionGroup, Ragged
from dien_fast.models import MODELS

NUMBERS = {"item": 11, "category": 5, "shop": 7, "user": 6, "tags": 8}
HISTORIES = ("item", "category", "shop")
NUMBERS |= {f"{role}_{name}": NUMBERS[name] for role in ("clicked", "sampled") for name in HISTORIES}
SIZES = {"item": 4, "category": 3, "shop": 2, "user": 5, "tags": 2}
SIZES |= {f"{role}_{name}": SIZES[name] for role in ("clicked", "sampled") for name in HISTORIES}
SHARED = {f"{role}_{name}": name for role in ("clicked", "sampled") for name in HISTORIES}
WIDTH = 6

of_every_model = pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS.keys())


def make_model(kind, gru_type="AUGRU", negatives=True, seed=0, activation="dice", group_options=(), **options):
    """Two groups, the first of two pairs; a pooled sequence; a numeric and a plain categorical feature."""

    def pair(name):
        return {"ad": name, "pos_hist": f"clicked_{name}"} | ({"neg_hist": f"sampled_{name}"} if negatives else {})

    torch.manual_seed(seed)
    groups = [
        AttentionGroup(
            "items", [pair("item"), pair("category")], [4, 3], activation, gru_type=gru_type, **dict(group_options)
        ),
        AttentionGroup("shops", [pair("shop")], [3], "prelu", gru_type=gru_type),
    ]
    roles = ("clicked", "sampled") if negatives else ("clicked",)
    options = {"embedding_size": 3, "mlp_hidden_layers": [5, 4], "use_negsampling": negatives} | options
    if getattr(kind, "uses_sessions", False):
        options = {"heads": 1, "session_dropout": 0.0} | options  # Groups are 6 and 3 wide, or 7 and 2.
    return kind(
        num_features=["age"],
        cat_features=["item", "category", "shop", "user"],
        seq_features=["tags", *(f"{role}_{name}" for role in roles for name in HISTORIES)],
        cat_nums=NUMBERS,
        attention_groups=groups,
        **options,
    ).double()


def random_lengths(rows, width=WIDTH):
    return torch.randint(0, width + 1, (rows,))


def random_ids(name, lengths, width=WIDTH):
    """Ragged random ids, none of them 0."""
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return Ragged(torch.randint(1, NUMBERS[name], (int(offsets[-1]),)), offsets, width)


def random_batch(rows, negatives=True, **lengths):
    """A ragged batch; ``lengths`` may name the lengths of a history, whose sampled one is as long."""
    batch = {"age": torch.rand(rows, dtype=torch.float64), "label": torch.randint(0, 2, (rows,)).double()}
    batch |= {name: torch.randint(1, NUMBERS[name], (rows,)) for name in ("item", "category", "shop", "user")}
    items = random_lengths(rows)
    usual = {"item": items, "category": items, "shop": random_lengths(rows)}
    for name, default in usual.items():
        for role in ("clicked", "sampled") if negatives else ("clicked",):
            batch[f"{role}_{name}"] = random_ids(f"{role}_{name}", torch.as_tensor(lengths.get(name, default)))
    batch["tags"] = random_ids("tags", random_lengths(rows))
    return batch | {f"{group}.session": sessions_of(batch[f"clicked_{name}"]) for group, name in LONGEST.items()}


# The history of each group whose events the sessions of a batch are of; the other pairs' may be shorter.
LONGEST = {"items": "item", "shops": "shop"}


def sessions_of(history):
    """A session for each event, of one to a few events, which the ids decide."""
    return history._replace(values=(history.values % 3 == 0).long().cumsum(0))


def pad(batch):
    """Return the batch with every ragged sequence padded with zeros."""
    return {name: value.pad() if isinstance(value, Ragged) else value for name, value in batch.items()}
