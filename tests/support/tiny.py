"""The smallest dataset, loader and model that `fit` takes, so that its logic is tested by itself."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


class TinyDataset:
    """Rows with two numbers ``x``; a click is likelier the larger the first."""

    def __init__(self, rows, seed=0, labels=None, users=True):
        rng = np.random.default_rng(seed)
        self.x = torch.from_numpy(rng.normal(size=(rows, 2)).astype(np.float32))
        clicked = rng.random(rows) < 1 / (1 + np.exp(-3 * self.x[:, 0].numpy()))
        self.labels = np.float32(clicked) if labels is None else np.full(rows, labels, dtype=np.float32)
        self.users = np.arange(rows) % 7 if users else None
        self.schema = SimpleNamespace(label="label")

    def __len__(self):
        return len(self.x)


class TinyLoader:
    """Batches of a :class:`TinyDataset`, in an order that (seed, epoch) alone decide."""

    def __init__(self, dataset, batch_size, shuffle=False, seed=0, rank=0, world_size=1):
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.batches, self.epoch = SimpleNamespace(rank=rank, world_size=world_size), 0
        self.first_batch = 0

    def set_epoch(self, epoch, first_batch=0):
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        for begin in range(self.first_batch * self.batch_size, len(order), self.batch_size):
            rows = torch.from_numpy(order[begin : begin + self.batch_size])
            labels = torch.from_numpy(self.dataset.labels)[rows]
            yield {"x": self.dataset.x[rows], "label": labels, "__row__": rows}


class TinyModel(nn.Module):
    """Logistic regression with dropout and batch statistics, and an auxiliary loss if asked."""

    def __init__(self, aux=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.3)
        self.linear = nn.Linear(2, 1)
        self.aux = aux

    def forward(self, batch):
        logits = self.linear(self.drop(self.norm(batch["x"]))).squeeze(1)
        return logits, None if self.aux is None else (logits * 0).sum() + self.aux


def loaders(rows=600, batch_size=32, shuffle=True):
    """A training and a validation loader."""
    return (
        TinyLoader(TinyDataset(rows, seed=1), batch_size, shuffle=shuffle),
        TinyLoader(TinyDataset(rows // 3, seed=2), batch_size),
    )
