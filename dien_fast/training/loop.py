"""Train, evaluate and score a click model: one short loop around Hugging Face Accelerate.

A step is forward, backward and optimizer. Everything else (metrics, the progress bar, checkpoints) either
happens once an epoch or costs microseconds a step, and nothing in a step waits for the device.

All randomness of an epoch (shuffle, negatives, dropout) is a function of (seed, epoch), so a run that was
killed and resumed goes on exactly as the undisturbed one. Within an epoch the checkpoint also holds the states of
the generators and what has been measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dien_fast.errors import CheckpointError, DienFastError
from dien_fast.files import write_atomically
from dien_fast.lines import print_line
from dien_fast.nn.processes import synchronise
from dien_fast.progress import progress_bar
from dien_fast.training.accelerator import (
    check_extras,
    check_loaders,
    make_accelerator,
    missing_processes,
    share_buffers,
)
from dien_fast.training.checkpoints import first_difference, load_checkpoint, save_checkpoint
from dien_fast.training.directory import RunDirectory, tables_of_epoch
from dien_fast.training.interval import Interval, seconds_of
from dien_fast.training.optimizers import make_optimizer, table_rule, tables_of
from dien_fast.training.position import (
    EpochRecord,
    StopRequest,
    TrainingStopped,
    random_states,
    set_random_states,
)
from dien_fast.training.scoring import evaluate, labels_of, to_device
from dien_fast.training.settings import TrainSettings, changed
from dien_fast.training.state import STATE_ENTRIES, TrainingState

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from dien_fast.data.dataset import EpochLoader
    from dien_fast.training.sharded.files import TableFiles

# Drawing takes about half a second: too long for every epoch of a small data set.
_PLOT_SECONDS = 30.0
# What a checkpoint did that is older than these settings.
_BEFORE_SETTINGS = {"table_optimizer": "adam", "table_lr": 0.0, "tables": "local", "sync_batchnorm": False}


def fit(
    model: nn.Module,
    train: EpochLoader,
    valid: EpochLoader | None = None,
    *,
    settings: TrainSettings | None = None,
    run_directory: str | Path | RunDirectory | None = None,
    resume: bool = False,
    fingerprint: str = "",
    identity: Mapping[str, Any] | None = None,
    cpu: bool = False,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    log: Callable[[str], None] | None = None,
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    stop: StopRequest | None = None,
    **changes: Any,
) -> pd.DataFrame:
    """Train ``model`` and leave the weights of the best epoch in it.

    The optimizer is Adam, but for embedding tables, which ``table_optimizer`` names one for.

    The loss is the binary cross-entropy of the logits plus ``aux_weight`` times the auxiliary loss. The best
    epoch is the one with the highest validation AUC; without ``valid`` it is the last. The global random
    generators of torch, NumPy and Python are seeded anew from (seed, epoch) in every epoch.

    In a multi-process run (``accelerate launch``), build the loaders with this process's ``rank`` and
    ``world_size``; rank 0 alone writes and prints.

    Args:
        model: takes a batch of the loader, returns (logits ``[B]``, auxiliary loss or None).
        train: shuffled batches.
        valid: batches for early stopping, not shuffled.
        settings: epochs, step size and the like; None takes the defaults.
        run_directory: where to write ``best.pt`` and ``last.pt`` (checkpoints), ``history.csv``, ``loss.png``
            and ``auc.png``; None writes nothing. A run that is there stays until the new one has its first
            checkpoint.
        resume: go on from ``last.pt`` in ``run_directory``, if it is there.
        fingerprint: identity of the encoders, stored in the checkpoints; on resuming it must be the same.
        identity: what else the weights belong to (sizes, column names: plain values by name), stored in the
            checkpoints; on resuming it must be the same.
        cpu: stay on the CPU though there is a GPU.
        accelerator: one of your own; its device, precision and gradient accumulation count.
        progress: show a progress bar on stderr.
        log: takes the line printed after each epoch; None prints it to stdout.
        on_epoch: takes the row of the history after each epoch, in the first process; what it raises ends the
            training.
        stop: looked at after each step; where it asks for that, the training ends behind a checkpoint.
        changes: single settings by name, such as ``epochs=2``; they replace those of ``settings``.

    Returns:
        A row for each epoch, with epoch, train_loss, train_aux_loss, train_auc, valid_loss, valid_auc,
        valid_logloss, valid_gauc, seconds (the whole epoch), rows_per_second (training alone).

    Raises:
        DataError: if the validation rows have one class only, so that there is no AUC.
        CheckpointError: if another training writes to the directory; on resuming, if the checkpoint is missing
            beside ``best.pt``, damaged or of a run with other settings.
        DienFastError: if a setting is out of range or not available here, or the loss becomes NaN or infinite.
        TypeError: for a setting that there is not.
        TrainingStopped: if ``stop`` asked for it.

    Example:
        >>> history = fit(model, train_loader, valid_loader, epochs=2)  # doctest: +SKIP
    """
    check_extras()
    settings = changed(settings or TrainSettings(), changes)
    if accelerator is None:
        timeout = seconds_of("process_timeout", settings.process_timeout)
        accelerator = make_accelerator(settings.mixed_precision, settings.gradient_accumulation, cpu, timeout)
    check_loaders(train, valid, accelerator)
    tables = getattr(model, "remote_tables", None)
    if tables is not None and run_directory is None:
        raise ValueError("run_directory must be given for a model with remote_tables: the best epoch's are there")
    rule = table_rule(settings.table_optimizer, model, accelerator) if tables is None else tables.rule
    belongs_to = {
        "settings": _decisive_settings(settings, train, accelerator) | {"table_optimizer": rule},
        "fingerprint": fingerprint,
        "identity": dict(identity or {}),
    }
    with missing_processes(accelerator), _open_run(run_directory, resume, accelerator) as (run, resuming):
        trainer = _Trainer(model, settings, rule, accelerator, progress, stop or StopRequest())
        files = None if run is None else _RunFiles(run, belongs_to, accelerator.is_main_process, tables)
        if files is not None and resuming:
            trainer.position = files.load(trainer.state)
        # Several processes would have to agree on the step, and each has random states of its own.
        if files is not None and accelerator.num_processes == 1 and tables is None:
            trainer.save_position = files.save_position
        try:
            while not trainer.state.is_over(settings, validated=valid is not None):
                trainer.epoch(train, valid)
                if files is not None:
                    files.save(trainer.state)
                if accelerator.is_main_process:
                    (log or print_line)(epoch_line(trainer.state.history[-1]))
                    if on_epoch is not None:
                        on_epoch(trainer.state.history[-1])
            accelerator.wait_for_everyone()
            trainer.state.restore_best()
            if files is not None and trainer.state.history:
                files.finish(trainer.state)
        finally:
            trainer.close()
    return trainer.state.frame()


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed torch, NumPy and Python from (seed, epoch, rank)."""
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(3, np.uint32)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - the global generator is meant
    random.seed(int(words[2]))


def epoch_line(row: Mapping[str, float]) -> str:
    """Return one epoch of the history as a line to read.

    Example:
        >>> row = {"epoch": 3, "train_loss": 0.61, "train_auc": 0.7, "seconds": 12.3, "rows_per_second": 6200}
        >>> epoch_line(row)
        'epoch 3: train loss 0.6100 auc 0.7000  (12.3 s, 6,200 rows/s)'
    """
    parts = [f"epoch {row['epoch']:.0f}: train loss {row['train_loss']:.4f} auc {row['train_auc']:.4f}"]
    if "valid_auc" in row:
        names = [name for name in ("loss", "auc", "logloss", "gauc") if not np.isnan(row[f"valid_{name}"])]
        parts.append("valid " + " ".join(f"{name} {row[f'valid_{name}']:.4f}" for name in names))
    return f"{' | '.join(parts)}  ({row['seconds']:.1f} s, {row['rows_per_second']:,.0f} rows/s)"


class _Trainer:
    """Trains one epoch after another.

    Args:
        model: the model as its owner has it.
        settings: of the training.
        rule: what moves the embedding tables.
        accelerator: of this process.
        progress: show a progress bar.
        stop: looked at after each step.

    Attributes:
        position: where within the next epoch to go on, as :meth:`_position` returns; None for its beginning.
        save_position: writes a checkpoint with a position; None where there is none within an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        rule: str,
        accelerator: Accelerator,
        progress: bool,
        stop: StopRequest,
    ) -> None:
        self._settings, self._accelerator, self._stop = settings, accelerator, stop
        self._interval = Interval(settings.checkpoint_every)
        self.position: dict[str, Any] | None = None
        self.save_position: Callable[[TrainingState, dict[str, Any]], None] | None = None
        self._show = progress and accelerator.is_main_process
        # DDP asks the tables which gradients will be sparse.
        self._sparse = [] if rule == "adam" else [t for t in tables_of(model) if not t.sparse]
        for table in self._sparse:
            table.sparse = True
        several = accelerator.num_processes > 1
        self._undo = synchronise(model, settings.sync_batchnorm) if several else None
        optimizer = make_optimizer(model, rule, settings.lr, settings.weight_decay, settings.table_lr)
        self._wrapped, self._optimizer = accelerator.prepare(model, optimizer)
        # Evaluation goes around DDP, whose forward is a collective call and waits for every rank.
        self.state = TrainingState(accelerator.unwrap_model(self._wrapped), self._optimizer)

    def close(self) -> None:
        """Give the model its own forward back, without the autocast wrapper, and its tables dense gradients."""
        self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        for table in self._sparse:
            table.sparse = False
        if self._undo is not None:
            self._undo()

    def epoch(self, train: EpochLoader, valid: EpochLoader | None) -> None:
        """Train and validate one epoch, and record it.

        Raises:
            DienFastError: if the loss becomes NaN or infinite.
        """
        begin = time.perf_counter()
        epoch, model = self.state.epoch + 1, self.state.model
        seed_everything(self._settings.seed, epoch, self._accelerator.process_index)
        self._interval.restart()
        row: dict[str, float] = {"epoch": epoch} | self._steps(train, f"epoch {epoch}/{self._settings.epochs}")
        if not np.isfinite(row["train_loss"]):
            raise DienFastError(
                f"training diverged in epoch {epoch}: the loss is {row['train_loss']}; "
                f"try a smaller learning rate than {self._settings.lr:g}"
            )
        if self._accelerator.num_processes > 1:
            share_buffers(model)
        if valid is not None:
            scores = evaluate(model, valid, aux_weight=self._settings.aux_weight)
            row |= {f"valid_{name}": value for name, value in scores.items()}
        row["seconds"] = time.perf_counter() - begin
        row["rows_per_second"] = row.pop("rows_per_second")
        self.state.record(row)

    def _steps(self, loader: EpochLoader, title: str) -> dict[str, float]:
        """Take one step per batch; return train_loss, train_aux_loss, train_auc and rows_per_second."""
        self._wrapped.train()
        device = self._accelerator.device
        label = loader.dataset.schema.label
        steps, accumulate = len(loader), self._accelerator.gradient_accumulation_steps
        done = self._resumed(loader)
        before, begin = done.rows, time.perf_counter()
        with progress_bar(len(loader.dataset), title, "rows", self._show) as bar, self._stop.hearing():
            refresh = begin + bar.seconds
            if before:
                bar.update(before)
            for step, batch in enumerate(loader, done.batches + 1):
                if device.type != "cpu":
                    batch = to_device(batch, device)
                labels = cast(Tensor, batch[label])
                # The last group of an epoch may be short; it is stepped too, and its loss is a mean as well.
                self._accelerator.sync_gradients = step % accumulate == 0 or step == steps
                group = min(accumulate, steps - (step - 1) // accumulate * accumulate)
                # backward() divides by the accumulation steps it was told of.
                done.add(batch, *self._backward(batch, labels, accumulate / group))
                self._optimizer.step()
                self._optimizer.zero_grad()
                if time.perf_counter() > refresh:
                    bar.set_postfix(done.recent(), refresh=False)
                    refresh = time.perf_counter() + bar.seconds
                bar.update(labels.size(0) * self._accelerator.num_processes)
                if self._accelerator.sync_gradients and step < steps:
                    self._keep_position(done, step, steps)
        return done.measure(self._accelerator, time.perf_counter() - begin, before)

    def _resumed(self, loader: EpochLoader) -> EpochRecord:
        """Set the loader, the random states and the record to where the epoch goes on."""
        done, position = EpochRecord(labels_of(loader)), self.position
        if position is not None:
            done.load_state_dict(position["record"], self._accelerator.device)
            set_random_states(position["random"])
            self.position = None
            loader.set_epoch(self.state.epoch + 1, first_batch=done.batches)
        else:
            loader.set_epoch(self.state.epoch + 1)
        return done

    def _keep_position(self, done: EpochRecord, step: int, steps: int) -> None:
        """Write a checkpoint if one is due, and stop where that is asked for.

        Raises:
            TrainingStopped: behind the checkpoint, if there is a place for one.
        """
        due, stop = self._interval.is_due(), self._stop.asked
        if self.save_position is not None and (due or stop):
            self.save_position(self.state, {"record": done.state_dict(), "random": random_states()})
        if stop:
            kept = "" if self.save_position is not None else "; what it learnt in this epoch is lost"
            raise TrainingStopped(
                f"stopped after step {step:,} of {steps:,} of epoch {self.state.epoch + 1}{kept}"
            )

    def _backward(
        self, batch: Mapping[str, Any], labels: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the gradients of ``factor`` times the loss; return logits, loss and auxiliary loss, detached."""
        accelerator = self._accelerator
        with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self._wrapped):
            logits, aux_loss = self._wrapped(batch)
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            if aux_loss is not None:
                loss = loss + self._settings.aux_weight * aux_loss
            accelerator.backward(loss if factor == 1 else loss * factor)
        return logits.detach(), loss.detach(), None if aux_loss is None else aux_loss.detach()


class _RunFiles:
    """What a training leaves in its directory: checkpoints, history and plots.

    Args:
        run: the directory.
        belongs_to: settings, fingerprint and identity, which each checkpoint repeats.
        first: whether this is the first process, which alone writes all but its part of divided tables.
        tables: divided tables of the model, or None.
    """

    def __init__(self, run: RunDirectory, belongs_to: dict[str, Any], first: bool, tables: Any = None) -> None:
        self._run, self._belongs_to, self._first = run, belongs_to, first
        self._tables: TableFiles | None = None
        if tables is not None:
            # Distributed checkpoints take a while to import.
            from dien_fast.training.sharded.files import TableFiles

            self._tables = TableFiles(tables, run)
        self._last_plot = time.perf_counter()

    def load(self, state: TrainingState) -> dict[str, Any] | None:
        """Go on from ``last.pt``, and return where within an epoch, or None.

        Raises:
            CheckpointError: if it is damaged, or of a training with other settings or another model.
        """
        path = self._run.path / "last.pt"
        last = load_checkpoint(path, (*STATE_ENTRIES, *self._belongs_to))
        now = self._belongs_to
        before = _BEFORE_SETTINGS | last["settings"] | last["identity"]
        difference = first_difference(before, now["settings"] | now["identity"])
        if difference:
            raise CheckpointError(f"{path} cannot be resumed: it was trained with {difference}")
        if last["fingerprint"] != now["fingerprint"]:
            raise CheckpointError(f"{path} cannot be resumed: its encoders were fitted to other data")
        best = load_checkpoint(self._run.path / "best.pt")["model"] if last["history"] else None
        state.load_state_dict(last, best, path)
        if self._tables is not None and state.epoch:
            self._tables.load(state.epoch)
        position: dict[str, Any] | None = last.get("position")
        return position

    def save(self, state: TrainingState) -> None:
        """Write the epoch that has just been recorded; every process calls this."""
        if self._tables is not None:
            self._tables.save(state.epoch)
        if not self._first:
            return
        place = self._run.place
        # last.pt comes last: if the process dies before, the epoch is repeated.
        if state.best_epoch == state.epoch:
            best = {"model": state.best, "epoch": state.epoch, "valid_auc": state.best_auc}
            save_checkpoint(place / "best.pt", best | self._named(state.epoch) | self._belongs_to)
        self._write_history(state, place)
        save_checkpoint(place / "last.pt", state.state_dict() | self._named(state.epoch) | self._belongs_to)
        self._run.take_place()
        if self._tables is not None:
            self._tables.keep(state.epoch, state.best_epoch)
        if time.perf_counter() - self._last_plot > _PLOT_SECONDS:
            self._plot(state)

    def save_position(self, state: TrainingState, position: dict[str, Any]) -> None:
        """Write where the training is within an epoch."""
        save_checkpoint(
            self._run.place / "last.pt", state.state_dict() | {"position": position} | self._belongs_to
        )
        self._run.take_place()

    def finish(self, state: TrainingState) -> None:
        """Give divided tables those of the best epoch; write the history as it is at the end, and draw it."""
        if self._tables is not None:
            self._tables.load(state.best_epoch)
        if self._first:
            self._write_history(state, self._run.path)
            self._plot(state)

    def _named(self, epoch: int) -> dict[str, str]:
        """Return the entry of a checkpoint that says where its tables are, if they are not in it."""
        return {} if self._tables is None else {"tables": tables_of_epoch(epoch)}

    def _write_history(self, state: TrainingState, place: Path) -> None:
        with write_atomically(place / "history.csv") as unfinished:
            state.frame().to_csv(unfinished, index=False)

    def _plot(self, state: TrainingState) -> None:
        from dien_fast.training.plots import plot_history

        plot_history(state.frame(), self._run.path)
        self._last_plot = time.perf_counter()


def _decisive_settings(settings: TrainSettings, train: EpochLoader, accelerator: Accelerator) -> dict[str, Any]:
    """Return what a resumed training must have in common with the one that it goes on with."""
    return {
        "lr": settings.lr,
        "table_lr": settings.table_lr,
        "weight_decay": settings.weight_decay,
        "aux_weight": settings.aux_weight,
        "seed": settings.seed,
        "batch_size": train.batch_size,
        "train rows": len(train.dataset),
        "mixed_precision": accelerator.mixed_precision,
        "gradient_accumulation": accelerator.gradient_accumulation_steps,
        "sync_batchnorm": settings.sync_batchnorm,
        "tables": settings.tables,
        # Divided tables are read by any number of processes.
        "processes": accelerator.num_processes if settings.tables == "local" else "any",
    }


@contextmanager
def _open_run(
    run_directory: str | Path | RunDirectory | None, resume: bool, accelerator: Accelerator
) -> Iterator[tuple[RunDirectory | None, bool]]:
    """Give the directory to write to, locked, and whether there is a checkpoint to go on from.

    Raises:
        CheckpointError: if another training has the directory, or best weights are there and no checkpoint to
            go on from: a new run would replace them.
    """
    if not isinstance(run_directory, str | Path):
        yield run_directory, resume and run_directory is not None
        return
    with RunDirectory(run_directory) as run, ExitStack() as others_wait:
        others_wait.enter_context(accelerator.main_process_first())
        if accelerator.is_main_process:
            run.lock()
        resuming = resume and (run.path / "last.pt").exists()
        if resume and not resuming and (run.path / "best.pt").exists():
            raise CheckpointError(
                f"{run.path} holds best.pt, but no last.pt, so it cannot be resumed; "
                "pass resume=False to replace it"
            )
        if accelerator.is_main_process:
            run.resume() if resuming else run.begin()
        others_wait.close()
        yield run, resuming
