import pytest
import torch

from dien_fast import Ragged

VALUES = torch.tensor([7, 8, 9])
OFFSETS = torch.tensor([0, 2, 2, 3])
PADDED = torch.tensor([[7, 8, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]])


@pytest.fixture
def rows():
    return Ragged(VALUES, OFFSETS, max_length=4)


def test_lengths_and_owners(rows):
    assert rows.lengths().tolist() == [2, 0, 1]
    assert rows.owners().tolist() == [0, 0, 2]
    assert rows.mask().tolist() == PADDED.bool().tolist()


def test_pad(rows):
    assert torch.equal(rows.pad(), PADDED)
    vectors = rows._replace(values=torch.stack([VALUES, -VALUES], 1).float())
    assert torch.equal(vectors.pad(), torch.stack([PADDED, -PADDED], 2).float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_from_padded(dtype):
    rows = Ragged.from_padded(PADDED, torch.tensor([2, 0, 1], dtype=dtype))
    assert torch.equal(rows.values, VALUES)
    assert torch.equal(rows.offsets, OFFSETS)
    assert rows.offsets.dtype == torch.int64
    assert rows.max_length == 4


def test_padding_and_back_is_differentiable():
    padded = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 0, 4])

    def there_and_back(value):
        return Ragged.from_padded(value, lengths).pad()

    assert torch.autograd.gradcheck(there_and_back, padded)
    assert not there_and_back(padded)[0, 2:].any()


@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (2, 0), (0, 0), (2, 3)])
def test_nothing(batch, steps):
    rows = Ragged.from_padded(torch.zeros(batch, steps, 3), torch.zeros(batch, dtype=torch.int64))
    assert rows.values.shape == (0, 3)
    assert rows.offsets.tolist() == [0] * (batch + 1)
    assert rows.owners().shape == (0,)
    assert torch.equal(rows.pad(), torch.zeros(batch, steps, 3))


def test_to_moves_both_tensors(rows):
    moved = rows.to("meta", non_blocking=True)
    assert (moved.values.device.type, moved.offsets.device.type, moved.max_length) == ("meta", "meta", 4)


def test_pin_memory_pins_both_tensors(rows, monkeypatch):
    """Page-locked memory needs an accelerator, so the tensors' own method is replaced."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    assert torch.equal(rows.pin_memory().values, VALUES + 1)
    assert torch.equal(rows.pin_memory().offsets, OFFSETS + 1)
    assert rows.pin_memory().max_length == 4
