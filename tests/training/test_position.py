"""What is kept of an epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dien_fast.training import metrics, position
from dien_fast.training.position import EpochRecord

ONE_PROCESS = SimpleNamespace(num_processes=1, device=torch.device("cpu"))


def record(labels, logits, batches):
    found = EpochRecord(labels)
    for rows in batches:
        found.add({"__row__": rows}, logits[rows], logits[rows].mean(), None)
    return found


@pytest.mark.parametrize("most", [64, 30, 25])
def test_the_auc_of_a_long_epoch_is_that_of_its_last_rows(monkeypatch, most):
    monkeypatch.setattr(position, "_AUC_ROWS", most)
    rng = np.random.default_rng(0)
    labels, logits = np.float32(rng.random(64) < 0.4), torch.from_numpy(np.float32(rng.normal(size=64)))
    batches = torch.from_numpy(rng.permutation(64)).split(10)
    found = record(labels, logits, batches)
    # The last 34 rows are the fewest whole batches with so many.
    last = torch.cat(batches[-4:] if most < 64 else batches).numpy()
    measured = found.measure(ONE_PROCESS, seconds=1.0)
    assert measured["train_auc"] == metrics.auc(labels[last], logits.numpy()[last])
    assert measured["train_loss"] == pytest.approx(float(logits.mean()), abs=1e-6)
    assert measured["rows_per_second"] == 64
    restored = EpochRecord(labels)
    restored.load_state_dict(record(labels, logits, batches[:5]).state_dict(), torch.device("cpu"))
    assert restored.batches == 5
    for rows in batches[5:]:
        restored.add({"__row__": rows}, logits[rows], logits[rows].mean(), None)
    assert restored.measure(ONE_PROCESS, seconds=1.0) == pytest.approx(measured, rel=0, abs=0, nan_ok=True)
