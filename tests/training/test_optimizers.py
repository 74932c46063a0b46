"""Optimizers of tables: each rule is its definition, untouched rows stay, and trainings go on as they were."""

import copy

import numpy as np
import pytest
import torch
from tiny import TinyDataset, TinyLoader
from torch import nn

from dien_fast.errors import CheckpointError, DienFastError
from dien_fast.nn import Embedding
from dien_fast.training import fit
from dien_fast.training.checkpoints import load_checkpoint
from dien_fast.training.optimizers import SPARSE_RULES, RowOptimizer, Together, make_optimizer, tables_of

of_every_rule = pytest.mark.parametrize("rule", SPARSE_RULES)


class Words(nn.Module):
    """Logistic regression on a word's vector; the word is the row's number."""

    def __init__(self, rows=600, seed=0, tied=False):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.linear, self.tied = Embedding(rows, 3), nn.Linear(5, 1), tied

    def forward(self, batch):
        vectors = self.table(batch["__row__"] % self.table.num_embeddings)
        logits = self.linear(torch.cat([vectors, batch["x"]], 1)).squeeze(1)
        return logits, self.table.weight.square().sum() if self.tied else None


def train(directory=None, model=None, rows=600, **settings):
    model = Words() if model is None else model
    settings = {"epochs": 2, "lr": 0.05, "table_optimizer": "sparse-adam"} | settings
    loaders = TinyLoader(TinyDataset(rows, seed=1), 32, shuffle=True), TinyLoader(TinyDataset(200, seed=2), 32)
    history = fit(
        model, *loaders, run_directory=directory, progress=False, log=lambda _: None, cpu=True, **settings
    )
    return model, history


def steps_of(optimizer, table, batches):
    """Take a step for each batch of ids with a gradient that depends on the row and the step."""
    for number, ids in enumerate(batches):
        numbers = torch.arange(table.size(1), dtype=table.dtype) + number + ids.unsqueeze(1)
        (table[ids] * torch.sin(numbers)).sum().backward()
        if optimizer.__class__ is not torch.optim.Adam:
            table.grad = table.grad.to_sparse(1)
        optimizer.step()
        optimizer.zero_grad()


def batches_of(rows, count=6, size=5):
    return [torch.randint(0, rows, (size,), generator=torch.Generator().manual_seed(n)) for n in range(count)]


def test_sparse_adam_is_torchs_but_for_eps():
    tables = [torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    tables = [table.requires_grad_() for table in tables]
    steps_of(RowOptimizer(tables[:1], "sparse-adam", lr=0.1), tables[0], batches_of(9))
    steps_of(torch.optim.SparseAdam(tables[1:], lr=0.1), tables[1], batches_of(9))
    # torch's adds eps before it corrects the bias of the root, by a factor of 12 to 30 here; dense Adam
    # afterwards.
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-6)


def test_sparse_adam_with_weight_decay_is_adam_where_every_row_has_a_gradient():
    tables = [torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    tables = [table.requires_grad_() for table in tables]
    steps_of(RowOptimizer(tables[:1], "sparse-adam", lr=0.1, weight_decay=0.3), tables[0], [torch.arange(4)] * 5)
    steps_of(torch.optim.Adam(tables[1:], lr=0.1, weight_decay=0.3), tables[1], [torch.arange(4)] * 5)
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-14)


def test_rowwise_adagrad_is_its_definition():
    table = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    want, total = table.detach().numpy().copy(), np.zeros(9)
    for number, ids in enumerate(batches_of(9)):
        gradient = np.zeros((9, 4))
        np.add.at(gradient, ids.numpy(), np.sin(np.arange(4) + number + ids.numpy()[:, None]))
        for row in set(ids.tolist()):
            change = gradient[row] + 0.3 * want[row]
            total[row] += np.mean(change**2)
            want[row] -= 0.1 * change / (np.sqrt(total[row]) + 1e-8)
    steps_of(RowOptimizer([table], "rowwise-adagrad", lr=0.1, weight_decay=0.3), table, batches_of(9))
    np.testing.assert_allclose(table.detach().numpy(), want, rtol=0, atol=1e-14)


@of_every_rule
def test_rows_without_a_gradient_stay_to_the_bit(rule):
    model = Words(rows=5000)
    before = model.table.weight.detach().clone()
    train(model=model, rows=600, epochs=1, table_optimizer=rule, weight_decay=0.1)
    assert torch.equal(model.table.weight[600:], before[600:])
    assert (model.table.weight[:600] != before[:600]).any(1).all()


@of_every_rule
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, rule, accumulation):
    options = {"table_optimizer": rule, "gradient_accumulation": accumulation}
    whole, history = train(tmp_path / "whole", epochs=3, **options)
    train(tmp_path / "stopped", epochs=1, **options)
    resumed, again = train(tmp_path / "stopped", Words(seed=9), epochs=3, resume=True, **options)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert history["train_loss"].tolist() == again["train_loss"].tolist()


def test_accumulated_gradients_are_those_of_one_large_batch():
    ids, table = torch.randint(0, 50, (1400,)), Embedding(50, 6, sparse=True)
    other = copy.deepcopy(table)
    for part in (ids[:700], ids[700:]):
        table(part).square().sum().backward()
    other(ids).square().sum().backward()
    for one in (table, other):
        RowOptimizer([one.weight], "sparse-adam", lr=0.1).step()
    torch.testing.assert_close(table.weight, other.weight)


def test_training_with_bfloat16_and_tables_of_their_own():
    model, history = train(mixed_precision="bf16", epochs=3)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert model.table.weight.dtype == torch.float32


def test_a_training_gives_the_tables_back_as_they_were():
    model, _ = train(epochs=1)
    assert not model.table.sparse
    model.table.weight.grad = None
    model.table(torch.arange(600)).sum().backward()
    assert not model.table.weight.grad.is_sparse


def test_a_run_is_not_resumed_with_another_optimizer(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="table_optimizer = 'sparse-adam', now table_optimizer = 'adam'"):
        train(tmp_path, resume=True, table_optimizer="adam")


def test_a_run_from_before_the_setting_is_resumed_with_its_default(tmp_path):
    train(tmp_path, epochs=1, table_optimizer="adam")
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    del last["settings"]["table_optimizer"]
    torch.save(last, tmp_path / "last.pt")
    assert len(train(tmp_path, resume=True, table_optimizer="adam")[1]) == 2


def test_a_table_that_is_used_as_a_whole_is_refused():
    with pytest.raises(DienFastError, match=r"tables that are looked up alone, .* shape \(600, 3\)"):
        train(model=Words(tied=True))


def test_rules_that_are_none_are_refused():
    with pytest.raises(DienFastError, match="rule must be one of sparse-adam, rowwise-adagrad, got 'sgd'"):
        RowOptimizer([torch.zeros(2, 2)], "sgd", lr=0.1)
    with pytest.raises(DienFastError, match="table_optimizer must be one of auto, adam, sparse-adam, rowwise"):
        train(table_optimizer="lamb")
    with pytest.raises(DienFastError, match="table_optimizer 'sgd' is one of divided tables; train with --tables"):
        train(table_optimizer="sgd")


def test_which_weights_get_which_optimizer():
    model = Words()
    assert isinstance(make_optimizer(model, "adam", 0.1, 0.2), torch.optim.Adam)
    slow, fast = make_optimizer(model, "adam", 0.1, 0.2, table_lr=0.7).param_groups
    assert (slow["lr"], fast["lr"]) == (0.1, 0.7)
    assert {id(weight) for weight in fast["params"]} == {id(table.weight) for table in tables_of(model)}
    both = make_optimizer(model, "rowwise-adagrad", 0.1, 0.2, table_lr=0.7)
    assert both.parts["tables"].param_groups[0]["lr"] == 0.7
    assert both.parts["dense"].param_groups[0]["lr"] == 0.1
    both = make_optimizer(model, "rowwise-adagrad", 0.1, 0.2)
    assert isinstance(both, Together)
    assert both.parts["tables"].param_groups[0]["params"] == [tables_of(model)[0].weight]
    assert [len(group["params"]) for group in both.param_groups] == [2, 1]
    assert [group["weight_decay"] for group in both.param_groups] == [0.2, 0.2]
    both.param_groups[1]["lr"] = 0.7
    both.load_state_dict(both.state_dict())
    assert both.parts["tables"].param_groups[0]["lr"] == 0.7
    both.param_groups[1]["lr"] = 0.4
    assert both.parts["tables"].param_groups[0]["lr"] == 0.4


def test_the_size_of_the_tables_decides_where_nothing_is_asked_for(tmp_path):
    for rows, rule in ((600, "adam"), (400_000, "sparse-adam")):
        train(tmp_path / rule, model=Words(rows), epochs=1, table_optimizer="auto")
        assert load_checkpoint(tmp_path / rule / "last.pt")["settings"]["table_optimizer"] == rule
    train(tmp_path / "adam", model=Words(600), epochs=2, table_optimizer="adam", resume=True)
