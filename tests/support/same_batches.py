"""Compares data sets batch by batch, bit for bit."""

import numpy as np
import torch


def assert_same_batch(one, other):
    """Two batches have the same tensors under the same names."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        parts = zip(value, other[name], strict=True) if isinstance(value, tuple) else [(value, other[name])]
        for mine, its in parts:
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(its)), name


def assert_same_batches(left, right):
    """Two data sets give the same batches, of rows in random order."""
    rows = np.random.default_rng(0).permutation(len(left))
    for begin in range(0, len(rows), 100):
        assert_same_batch(*(data.batch(rows[begin : begin + 100], epoch=1) for data in (left, right)))


def assert_same_epoch(left, right, epoch):
    """Two loaders give the same batches in the same order."""
    for loader in (left, right):
        loader.set_epoch(epoch)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert_same_batch(one, other)
