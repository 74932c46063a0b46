"""Candidates of users, and their scores against those of the batch in which the user is repeated for each."""

import torch
from random_batches import NUMBERS, make_model, pad
from torch import nn

from dien_fast import Ragged

CANDIDATE = ("item", "category", "shop")


def trained(kind, *arguments, **options):
    """A model in evaluation whose statistics are not the initial ones."""
    model = make_model(kind, *arguments, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def bounds(counts):
    return nn.functional.pad(torch.tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))


def candidate_features(rows, features=(*CANDIDATE, "age")):
    """Random candidates; age stands for a number that belongs to the candidate."""
    found = {name: torch.randint(0, NUMBERS[name], (rows,)) for name in features if name in NUMBERS}
    return found | {name: torch.rand(rows, dtype=torch.float64) for name in features if name not in NUMBERS}


def repeated(user, candidates, counts):
    """The batch that forward needs, written without the library's own repetition."""
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    batch = {}
    for name, value in user.items():
        if isinstance(value, Ragged):
            rows = value.values.split(value.lengths().tolist())
            lengths = torch.tensor([len(rows[number]) for number in owner], dtype=torch.int64)
            taken = torch.cat([value.values[:0], *(rows[number] for number in owner)])
            batch[name] = Ragged(taken, nn.functional.pad(lengths.cumsum(0), (1, 0)), value.max_length)
        else:
            batch[name] = value[torch.tensor(owner, dtype=torch.int64)]
    return batch | candidates


def layout_of(layout, batch):
    return pad(batch) if layout == "padded" else batch


def compare(model, user, candidates, counts, layout="ragged"):
    """Score and compare with forward for the repeated user; return the logits."""
    offsets = {} if len(counts) == 1 else {"candidate_offsets": bounds(counts)}
    got = model.score_candidates(layout_of(layout, user), candidates, **offsets)
    with torch.no_grad():
        want, _ = model(layout_of(layout, repeated(user, candidates, counts)))
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    return got
