"""Checkpoints are written whole or not at all, and bad ones are refused with one sentence."""

import pytest
import torch
from full_disk import files_of_at_most
from shop import run_python
from torch import nn

from dien_fast.errors import CheckpointError
from dien_fast.training.checkpoints import load_checkpoint, load_weights, save_checkpoint


def test_round_trip(tmp_path):
    model = nn.Linear(3, 2)
    save_checkpoint(tmp_path / "a.pt", {"model": model.state_dict(), "epoch": 3, "history": [{"auc": 0.5}]})
    content = load_checkpoint(tmp_path / "a.pt", required=("model", "epoch"))
    assert content["epoch"] == 3
    assert content["history"] == [{"auc": 0.5}]
    other = nn.Linear(3, 2)
    load_weights(other, content["model"], "a.pt")
    assert torch.equal(other.weight, model.weight)


def _truncated(path):
    save_checkpoint(path, {"model": nn.Linear(300, 20).state_dict()})
    path.write_bytes(path.read_bytes()[:2000])


def _foreign_text(path):
    path.write_text("userId,movieId\n1,2\n")


def _foreign_state_dict(path):
    torch.save(nn.Linear(2, 2).state_dict(), path)


def _foreign_tensor(path):
    torch.save(torch.zeros(3), path)


def _whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def _without_weights(path):
    save_checkpoint(path, {"epoch": 3})


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_truncated, "damaged, cut short"),
        (_foreign_text, "damaged, cut short"),
        (_empty, "damaged, cut short"),
        (_whole_module, "damaged, cut short or not from dien-fast"),
        (_foreign_state_dict, "not a checkpoint of dien-fast"),
        (_foreign_tensor, "not a checkpoint of dien-fast"),
        (_without_weights, "lacks the entry 'model'"),
    ],
)
def test_bad_files_are_refused_with_one_sentence(tmp_path, write, message):
    path = tmp_path / "best.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bias"), "lacks the weight 'bias'"),
        (lambda state: state.update(extra=torch.zeros(1)), "unknown weight 'extra'"),
        (
            lambda state: state.update(weight=torch.zeros(3, 3)),
            r"'weight' must have shape \(2, 3\), got \(3, 3\)",
        ),
        (lambda state: state.update(weight="text"), r"'weight' must have shape \(2, 3\), got str"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_copied(change, message):
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    state = dict(nn.Linear(3, 2).state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, state, "best.pt")
    assert torch.equal(model.weight, before)


def test_a_checkpoint_that_finds_no_space_names_its_path_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, {"model": nn.Linear(2, 2).state_dict()})
    with files_of_at_most(20_000), pytest.raises(OSError, match="File too large") as caught:
        save_checkpoint(path, {"model": nn.Linear(300, 300).state_dict()})
    assert caught.value.filename == str(path)
    assert load_checkpoint(path)["model"]["weight"].shape == (2, 2)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_saved_is_no_matter_of_space(tmp_path):
    with pytest.raises((TypeError, AttributeError, RuntimeError), match="pickle"):
        save_checkpoint(tmp_path / "best.pt", {"model": (number for number in range(3))})


# A signal comes before PyTorch writes the end of the archive; the error holds the writer longer than the file.
INTERRUPTED = """
import sys, torch
from dien_fast.training.checkpoints import save_checkpoint

def interrupted(*_):
    raise KeyboardInterrupt

torch.serialization._open_zipfile_writer_buffer.__exit__ = interrupted
try:
    save_checkpoint(sys.argv[1], {"weights": torch.zeros(3)})
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_archive_does_not_abort_the_process(tmp_path):
    done = run_python("-c", INTERRUPTED, tmp_path / "last.pt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    assert not list(tmp_path.iterdir())
