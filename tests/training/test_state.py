"""Where a training stands: what it keeps, when it is over, and that it goes on from what it stored."""

import copy

import pytest
import torch
from tiny import TinyModel

from dien_fast.training import TrainSettings
from dien_fast.training.state import STATE_ENTRIES, TrainingState


def new_state(seed=0):
    model = TinyModel(seed=seed)
    return TrainingState(model, torch.optim.Adam(model.parameters(), lr=0.1))


def step(state):
    """Change weights, buffers and the optimizer's moments."""
    logits, _ = state.model({"x": torch.randn(8, 2)})
    logits.square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


def test_the_weights_of_the_best_epoch_are_kept_as_they_were():
    state = new_state()
    weights = []
    for epoch, auc in enumerate([0.6, 0.8, 0.8, 0.7], 1):
        step(state)
        weights.append(state.model.linear.weight.detach().clone())
        state.record({"epoch": epoch, "valid_auc": auc})
    # An AUC that is as good is not better.
    assert (state.epoch, state.best_epoch, state.best_auc) == (4, 2, 0.8)
    assert torch.equal(state.model.linear.weight, weights[3])
    state.restore_best()
    assert torch.equal(state.model.linear.weight, weights[1])


def test_without_validation_the_last_epoch_is_the_best():
    state = new_state()
    state.restore_best()
    for epoch in (1, 2):
        step(state)
        state.record({"epoch": epoch})
    assert state.best_epoch == 2
    assert torch.equal(state.best["linear.weight"], state.model.linear.weight)


@pytest.mark.parametrize(
    ("aucs", "validated", "over"),
    [
        ([], True, False),
        ([0.6, 0.5], True, False),
        ([0.6, 0.5, 0.4], True, True),
        ([0.6, 0.5, 0.4], False, False),
        ([0.1, 0.2, 0.3, 0.4, 0.5], True, True),
        ([0.1, 0.2, 0.3, 0.4, 0.5], False, True),
    ],
)
def test_a_training_is_over_after_its_epochs_or_its_patience(aucs, validated, over):
    state = new_state()
    for epoch, auc in enumerate(aucs, 1):
        state.record({"epoch": epoch, "valid_auc": auc})
    assert state.is_over(TrainSettings(epochs=5, patience=2), validated) == over


def test_a_stored_state_is_taken_up_again():
    state = new_state()
    for epoch, auc in ((1, 0.7), (2, 0.6)):
        step(state)
        state.record({"epoch": epoch, "valid_auc": auc})
    # As from a file: the optimizer takes the tensors that it is given.
    stored = copy.deepcopy(state.state_dict())
    assert tuple(stored) == STATE_ENTRIES
    other = new_state(seed=7)
    other.load_state_dict(stored, state.best)
    assert (other.epoch, other.best_epoch, other.best_auc) == (2, 1, 0.7)
    assert other.frame()["valid_auc"].tolist() == [0.7, 0.6]
    for name, value in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
    # The optimizer's moments are those of the stored one: the next step is the same.
    for each in (state, other):
        torch.manual_seed(5)
        step(each)
    assert torch.equal(state.model.linear.weight, other.model.linear.weight)
    other.restore_best()
    assert torch.equal(other.model.linear.weight, state.best["linear.weight"])
