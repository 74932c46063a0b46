"""The training loop: what it records, when it stops, and that a resumed run ends as an undisturbed one."""

import re
import sys
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TinyDataset, TinyLoader, TinyModel, loaders

from dien_fast import progress
from dien_fast.errors import CheckpointError, DataError, DienFastError
from dien_fast.training import TrainSettings, evaluate, fit, interval, make_accelerator, predict
from dien_fast.training import loop as training
from dien_fast.training.checkpoints import load_checkpoint
from dien_fast.training.metrics import auc, gauc, log_loss
from dien_fast.training.position import EpochRecord, TrainingStopped
from dien_fast.training.scoring import collect, labels_of
from dien_fast.training.state import TrainingState

METRICS = ["train_loss", "train_aux_loss", "train_auc", "valid_loss", "valid_auc", "valid_logloss", "valid_gauc"]


def quiet(*args, **kwargs):
    kwargs = {"progress": False, "log": lambda line: None, "cpu": True, "lr": 0.05} | kwargs
    return fit(*args, **kwargs)


def assert_same_history(left, right):
    for name in METRICS:
        # Bit-equal: seeds are derived from the epoch, nothing depends on what ran before.
        assert left[name].tolist() == pytest.approx(right[name].tolist(), rel=0, abs=0, nan_ok=True), name


@pytest.mark.usefixtures("_rendered")
def test_it_learns_records_each_epoch_and_prints_one_line_each(tmp_path):
    train, valid = loaders()
    model, lines = TinyModel(), []
    history = quiet(model, train, valid, run_directory=tmp_path, epochs=3, log=lines.append)
    assert history.columns.tolist() == ["epoch", *METRICS, "seconds", "rows_per_second"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["valid_auc"].max() > 0.85
    assert history["train_aux_loss"].isna().all()
    assert len(lines) == 3
    assert lines[2].startswith("epoch 3: train loss 0.")
    assert " | valid loss 0." in lines[2]
    assert lines[2].endswith("rows/s)")
    assert "gauc 0." in lines[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "auc.png",
        "best.pt",
        "history.csv",
        "last.pt",
        "loss.png",
    ]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("auc.png", "loss.png"))
    on_disk = pd.read_csv(tmp_path / "history.csv")
    assert on_disk["valid_auc"].tolist() == pytest.approx(history["valid_auc"].tolist())


def test_the_default_log_prints_to_stdout_and_works_without_validation(capsys):
    train, _ = loaders(rows=60)
    history = fit(TinyModel(), train, epochs=1, progress=False, cpu=True)
    printed = capsys.readouterr().out
    assert printed.startswith("epoch 1: train loss")
    assert "valid" not in printed
    assert history.columns.tolist() == [
        "epoch",
        "train_loss",
        "train_aux_loss",
        "train_auc",
        "seconds",
        "rows_per_second",
    ]


def test_recorded_training_metrics_are_those_of_the_steps():
    train, _ = loaders(rows=100, batch_size=32)  # batches of 32, 32, 32 and 4 rows
    model = TinyModel(aux=0.25)
    seen = []
    hook = model.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (inputs[0]["__row__"], output[0].detach().clone(), inputs[0]["label"])
        )
    )
    history = quiet(model, train, epochs=1, aux_weight=2.0)
    hook.remove()
    logits = torch.cat([logits for _, logits, _ in seen])
    labels = torch.cat([labels for _, _, labels in seen])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert history["train_loss"][0] == pytest.approx(float(cross_entropy) + 2.0 * 0.25, rel=1e-6)
    assert history["train_aux_loss"][0] == pytest.approx(0.25)
    assert history["train_auc"][0] == pytest.approx(auc(labels, logits), abs=1e-12)


def test_the_best_epoch_is_kept_and_training_stops_after_patience(tmp_path, monkeypatch):
    scripted = iter([0.6, 0.7, 0.65, 0.7, 0.69])
    weights = []

    def scripted_evaluate(model, loader, aux_weight):
        weights.append(model.linear.weight.detach().clone())
        return {"loss": 1.0, "auc": next(scripted), "logloss": 1.0, "gauc": float("nan")}

    monkeypatch.setattr(training, "evaluate", scripted_evaluate)
    train, valid = loaders(rows=90)
    model = TinyModel()
    history = quiet(model, train, valid, run_directory=tmp_path, epochs=50, patience=3)
    # 0.7 again is not better, so that epochs 3, 4 and 5 are three without improvement.
    assert history["valid_auc"].tolist() == [0.6, 0.7, 0.65, 0.7, 0.69]
    assert torch.equal(model.linear.weight, weights[1])
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 2
    assert best["valid_auc"] == 0.7
    assert torch.equal(best["model"]["linear.weight"], weights[1])
    assert torch.equal(load_checkpoint(tmp_path / "last.pt")["model"]["linear.weight"], weights[4])


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path, stop):
    train, valid = loaders()
    whole_model, model = TinyModel(), TinyModel()
    whole = quiet(whole_model, train, valid, run_directory=tmp_path / "whole", epochs=4, patience=9)
    quiet(model, train, valid, run_directory=tmp_path / "parts", epochs=stop, patience=9)
    (tmp_path / "parts" / ".last.x.unfinished.pt").write_bytes(b"half a file of a killed process")
    torch.manual_seed(99)
    model = TinyModel(seed=5)
    resumed = quiet(model, *loaders(), run_directory=tmp_path / "parts", epochs=4, patience=9, resume=True)
    assert_same_history(resumed, whole)
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    left, right = (load_checkpoint(tmp_path / part / "last.pt") for part in ("whole", "parts"))
    for number, state in left["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, right["optimizer"]["state"][number][name])
    assert [path.name for path in (tmp_path / "parts").glob(".*")] == [".lock"]


class StopAfter:
    """Asks for a stop after so many steps of the whole training."""

    def __init__(self, steps):
        self.steps = steps

    @property
    def asked(self):
        self.steps -= 1
        return self.steps <= 0

    def hearing(self):
        return nullcontext()


@pytest.mark.parametrize(("step", "aux", "accumulation"), [(1, None, 1), (11, 0.5, 1), (4, 0.5, 3)])
def test_a_run_that_was_stopped_within_an_epoch_ends_as_an_undisturbed_one(tmp_path, step, aux, accumulation):
    options = {"epochs": 3, "patience": 9, "gradient_accumulation_steps": accumulation}
    whole_model = TinyModel(aux=aux)
    whole = quiet(whole_model, *loaders(), run_directory=tmp_path / "whole", **options)
    stopped = re.compile(r"stopped after step \d+ of \d+ of epoch \d$")
    with pytest.raises(TrainingStopped, match=stopped):
        quiet(TinyModel(aux=aux), *loaders(), run_directory=tmp_path / "parts", stop=StopAfter(step), **options)
    position = load_checkpoint(tmp_path / "parts" / "last.pt")["position"]
    assert len(position["record"]["sizes"]) % accumulation == 0
    torch.manual_seed(99)
    model = TinyModel(aux=aux, seed=5)
    resumed = quiet(model, *loaders(), run_directory=tmp_path / "parts", resume=True, **options)
    assert_same_history(resumed, whole)
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert "position" not in load_checkpoint(tmp_path / "parts" / "last.pt")


def test_checkpoints_within_an_epoch_come_as_often_as_asked_for(tmp_path, monkeypatch):
    steps = []
    save = training._RunFiles.save_position
    monkeypatch.setattr(
        training._RunFiles,
        "save_position",
        lambda self, state, position: (
            steps.append((state.epoch + 1, len(position["record"]["sizes"]))) or save(self, state, position)
        ),
    )
    train, valid = loaders()
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=2, checkpoint_every="2steps")
    # Each epoch begins to count anew, and its last step is followed by the checkpoint of the epoch.
    assert steps == [(epoch, step) for epoch in (1, 2) for step in range(2, len(train), 2)]
    steps.clear()
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=2)
    assert steps == []


def test_a_training_without_a_directory_says_what_is_lost():
    with pytest.raises(TrainingStopped, match="of epoch 1; what it learnt in this epoch is lost"):
        quiet(TinyModel(), *loaders(), epochs=1, stop=StopAfter(1))


@pytest.mark.parametrize("text", ["", "10", "min", "0s", "-1min", "1.5steps", "10 minutes", "0steps"])
def test_intervals_that_are_none_are_refused(text):
    with pytest.raises(DienFastError, match="checkpoint_every must be a time or a number of steps, such as 10min"):
        TrainSettings(checkpoint_every=text)


def test_intervals_of_time(monkeypatch):
    now = iter([0.0, 89.0, 91.0, 91.0, 92.0])
    monkeypatch.setattr(interval.time, "monotonic", lambda: next(now))
    every = interval.Interval("1.5min")
    assert [every.is_due(), every.is_due(), every.is_due()] == [False, True, False]


def test_resuming_a_finished_run_trains_no_more(tmp_path):
    train, valid = loaders(rows=90)
    first = quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=2)
    before = (tmp_path / "last.pt").read_bytes()
    model = TinyModel(seed=3)
    again = quiet(model, train, valid, run_directory=tmp_path, epochs=2, resume=True)
    assert_same_history(first, again)
    assert (tmp_path / "last.pt").read_bytes() == before
    best = load_checkpoint(tmp_path / "best.pt")["model"]
    assert torch.equal(model.linear.weight, best["linear.weight"])


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    train, valid = loaders(rows=90)
    history = quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1, resume=True)
    assert history["epoch"].tolist() == [1]


def test_resume_without_a_last_checkpoint_keeps_the_best_one(tmp_path):
    train, valid = loaders(rows=90)
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1)
    (tmp_path / "last.pt").unlink()
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds best\.pt, but no last\.pt, so it cannot be resumed"):
        quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1, resume=True)
    assert (tmp_path / "best.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.01}, "trained with lr = 0.05, now lr = 0.01"),
        ({"aux_weight": 0.5}, "trained with aux_weight = 1.0, now aux_weight = 0.5"),
        ({"seed": 3}, "trained with seed = 0, now seed = 3"),
        ({"fingerprint": "other"}, "its encoders were fitted to other data"),
        ({"identity": {"separator": ","}}, "trained with separator = not set, now separator = ','"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, changed, message):
    train, valid = loaders(rows=90)
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=message):
        quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=2, resume=True, **changed)


def test_resuming_with_another_model_or_optimizer_is_refused(tmp_path):
    train, valid = loaders(rows=90)
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1)
    wider = TinyModel()
    wider.linear = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"'linear.weight' must have shape \(3, 2\), got \(1, 2\)"):
        quiet(wider, train, valid, run_directory=tmp_path, epochs=2, resume=True)
    frozen = TinyModel()
    last = load_checkpoint(tmp_path / "last.pt")
    optimizer = torch.optim.Adam(frozen.linear.parameters())
    with pytest.raises(CheckpointError, match=r"last\.pt does not fit the model: its optimizer state differs"):
        TrainingState(frozen, optimizer).load_state_dict(last, last["model"], tmp_path / "last.pt")


def test_settings_as_an_object_and_by_name_give_the_same_training():
    settings = TrainSettings(epochs=2, lr=0.05, gradient_accumulation=2, seed=3)
    by_name = quiet(TinyModel(), *loaders(), epochs=2, gradient_accumulation_steps=2, seed=3)
    together = {"progress": False, "log": lambda line: None, "cpu": True}
    assert_same_history(fit(TinyModel(), *loaders(), settings=settings, **together), by_name)
    # A name replaces what the object says, and leaves the object as it was.
    other = TrainSettings(epochs=9, lr=0.05, gradient_accumulation=2, seed=4)
    assert_same_history(fit(TinyModel(), *loaders(), settings=other, epochs=2, seed=3, **together), by_name)
    assert (other.epochs, other.seed) == (9, 4)


def test_gradient_accumulation_equals_one_large_batch():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(2, 1)

        def forward(self, batch):
            return self.linear(batch["x"]).squeeze(1), None

    small, large = Plain(), Plain()
    data = TinyDataset(90, seed=1)
    # 9 batches of 10 in groups of 4, 4 and 1 against batches of 40, 40 and 10.
    quiet(small, TinyLoader(data, 10), epochs=2, gradient_accumulation_steps=4)
    quiet(large, TinyLoader(data, 40), epochs=2)
    torch.testing.assert_close(small.linear.weight, large.linear.weight, rtol=1e-5, atol=1e-7)


def test_bfloat16_trains_and_gives_the_model_back_as_it_was():
    train, valid = loaders(rows=300)
    model = TinyModel()
    forward = model.forward.__func__
    history = quiet(model, train, valid, epochs=2, mixed_precision="bf16")
    assert history["valid_auc"].max() > 0.7
    assert model.forward.__func__ is forward
    assert model.linear.weight.dtype == torch.float32
    logits, _ = model(next(iter(valid)))
    assert logits.dtype == torch.float32


def test_impossible_settings_are_named():
    train, valid = loaders(rows=60)
    with pytest.raises(DienFastError, match="mixed_precision 'fp16' cannot be used here: it needs a GPU"):
        quiet(TinyModel(), train, valid, mixed_precision="fp16")
    with pytest.raises(DienFastError, match="mixed_precision must be one of no, bf16, fp16, got 'half'"):
        quiet(TinyModel(), train, valid, mixed_precision="half")
    with pytest.raises(DienFastError, match="gradient_accumulation must be at least 1, got 0"):
        quiet(TinyModel(), train, valid, gradient_accumulation_steps=0)
    with pytest.raises(TypeError, match="there is no setting 'epoch'; the settings are epochs, patience, lr,"):
        quiet(TinyModel(), train, valid, epoch=3)
    with pytest.raises(ValueError, match="the valid loader must have rank=0 and world_size=1"):
        quiet(TinyModel(), train, TinyLoader(valid.dataset, 32, rank=1, world_size=2))


@pytest.mark.parametrize(("processes", "refused"), [(1, False), (2, True)])
def test_processes_that_accelerate_does_not_start_are_missed(monkeypatch, processes, refused):
    launch = pytest.importorskip("accelerate.commands.launch")
    words = ["--cpu", "--num_processes", str(processes), "-m", "dien_fast.cli", "train"]
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    command, environment = launch.prepare_simple_launcher_cmd_env(arguments)
    # One process, whatever the number.
    assert command == [sys.executable, "-m", "dien_fast.cli", "train"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(DienFastError, match=r"accelerate launch started one process only.*torchrun"):
            make_accelerator("no", 1, cpu=True)
    else:
        assert make_accelerator("no", 1, cpu=True).num_processes == 1


def test_validation_rows_of_one_class_are_refused():
    train, _ = loaders(rows=60)
    with pytest.raises(DataError, match="all 10 have label 1"):
        quiet(TinyModel(), train, TinyLoader(TinyDataset(10, labels=1), 5))
    with pytest.raises(DataError, match="there are none"):
        quiet(TinyModel(), train, TinyLoader(TinyDataset(0), 5))


def test_divergence_is_reported_and_keeps_the_last_good_checkpoint(tmp_path):
    train, valid = loaders(rows=90)
    quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    train.dataset.x[5, 0] = float("nan")
    with pytest.raises(DienFastError, match="training diverged in epoch 2: the loss is nan"):
        quiet(TinyModel(), train, valid, run_directory=tmp_path, epochs=2, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_the_progress_bar_shows_loss_auc_and_rows(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    train, valid = loaders(rows=300, batch_size=64)
    fit(TinyModel(), train, valid, epochs=1, cpu=True, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "rows/s" in shown
    assert "loss=0." in shown
    assert "auc=0." in shown


def test_a_log_file_gets_lines_with_loss_and_auc(monkeypatch, capsys):
    monkeypatch.setattr(progress._Lines, "seconds", 0.0)
    train, valid = loaders(rows=300, batch_size=64)
    fit(TinyModel(), train, valid, epochs=1, cpu=True, progress=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    # Validation shows no progress.
    assert [line.split(" in ")[0] for line in shown.splitlines()] == [
        f"epoch 1/1: {rows} of 300 rows" for rows in (64, 128, 192, 256)
    ]
    assert re.fullmatch(r"epoch 1/1: 64 of 300 rows in \d+ s, loss 0\.\d{4}, auc 0\.\d{4}", shown.splitlines()[0])


def test_the_recent_loss_and_auc_are_those_of_the_last_batches():
    def recent(logits, loss):
        record = EpochRecord(np.float32([0, 1, 0, 1]))
        record.add({"__row__": torch.arange(4)}, logits, torch.tensor(loss), None)
        return record.recent()

    assert recent(torch.tensor([0.1, 0.9, 0.5, 0.3]), 0.5) == {"loss": "0.5000", "auc": "0.7500"}
    assert recent(torch.full((4,), float("nan")), float("nan")) == {"loss": "nan"}


def test_evaluate_and_predict_agree_with_the_metrics():
    _, valid = loaders(rows=300)
    model = TinyModel(aux=0.5)
    model.train()
    probabilities = predict(model, valid)
    assert model.training
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (100,)
    with torch.no_grad():
        model.eval()
        expected = torch.sigmoid(model({"x": valid.dataset.x})[0])
    torch.testing.assert_close(torch.from_numpy(probabilities), expected)
    scores = evaluate(model, valid, aux_weight=2.0, progress=True)
    data = valid.dataset
    assert scores["auc"] == pytest.approx(auc(data.labels, probabilities), abs=1e-9)
    assert scores["gauc"] == pytest.approx(gauc(data.labels, probabilities, data.users), abs=1e-9)
    assert scores["logloss"] == pytest.approx(log_loss(data.labels, probabilities), rel=1e-5)
    assert scores["loss"] == pytest.approx(scores["logloss"] + 2.0 * 0.5)
    data.users = None
    assert np.isnan(evaluate(model, valid)["gauc"])


def test_evaluate_refuses_a_loader_that_leaves_rows_out():
    class Half(TinyLoader):
        def __iter__(self):
            yield next(super().__iter__())

    with pytest.raises(DienFastError, match="row 5 was scored 0 times"):
        evaluate(TinyModel(), Half(TinyDataset(20), 5))


def test_no_rows_give_no_probabilities():
    assert predict(TinyModel(), TinyLoader(TinyDataset(0), 5)).shape == (0,)
    logits, times = collect([], 3, world_size=1)
    assert logits.tolist() == [0, 0, 0]
    assert times.tolist() == [0, 0, 0]


def test_one_row_cannot_be_trained_on():
    _, valid = loaders(rows=60)
    with pytest.raises(DataError, match="training needs at least 2 rows, got 1"):
        quiet(TinyModel(), TinyLoader(TinyDataset(1), 5), valid)


def test_a_model_that_gives_nan_has_no_metrics():
    _, valid = loaders(rows=60)
    valid.dataset.x[3] = float("nan")
    with pytest.raises(DienFastError, match="the model gives NaN for row 3"):
        evaluate(TinyModel(), valid)


def test_metrics_need_labels():
    _, valid = loaders(rows=60)
    valid.dataset.labels = None
    with pytest.raises(DataError, match="made with require_label=False"):
        labels_of(valid)


@pytest.mark.parametrize("name", ["accelerate", "pandas", "matplotlib"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, name):
    train, valid = loaders(rows=60)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f'training needs {name}.*pip install "dien-fast'):
        quiet(TinyModel(), train, valid)


def test_scoring_needs_tqdm_for_its_bar_alone(monkeypatch):
    _, valid = loaders(rows=60)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert predict(TinyModel(), valid).shape == (20,)
    with pytest.raises(ImportError, match="progress bars need tqdm: pip install"):
        predict(TinyModel(), valid, progress=True)
