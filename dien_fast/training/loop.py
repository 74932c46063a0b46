"""Train, evaluate and score a click model: one short loop around Hugging Face Accelerate.

A step is forward, backward and Adam. Everything else (metrics, the progress bar, checkpoints) either
happens once an epoch or costs microseconds a step, and nothing in a step waits for the device.

All randomness of an epoch (shuffle, negatives, dropout) is a function of (seed, epoch), so a run that was
killed and resumed at an epoch's boundary goes on exactly as the undisturbed one.
"""

from __future__ import annotations

import importlib
import os
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

from dien_fast.errors import CheckpointError, DataError, DienFastError
from dien_fast.files import write_atomically
from dien_fast.progress import progress_bar
from dien_fast.training import metrics
from dien_fast.training.checkpoints import (
    first_difference,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from dien_fast.training.directory import RunDirectory
from dien_fast.training.scoring import (
    collect,
    evaluate,
    labels_of,
    predict,
    sum_over_ranks,
    to_device,
    weighted_sum,
)

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from dien_fast.data.dataset import EpochLoader

__all__ = ["epoch_line", "evaluate", "fit", "make_accelerator", "predict", "print_line", "seed_everything"]

# The progress bar's loss and AUC look back over this many rows.
_WINDOW_ROWS = 8192
# Drawing takes about half a second: too long for every epoch of a small data set.
_PLOT_SECONDS = 30.0


def fit(
    model: nn.Module,
    train: EpochLoader,
    valid: EpochLoader | None = None,
    *,
    run_directory: str | Path | RunDirectory | None = None,
    epochs: int = 20,
    patience: int = 3,
    lr: float = 2e-3,
    weight_decay: float = 1e-3,
    aux_weight: float = 1.0,
    seed: int = 0,
    resume: bool = False,
    fingerprint: str = "",
    identity: Mapping[str, Any] | None = None,
    mixed_precision: str = "no",
    gradient_accumulation_steps: int = 1,
    cpu: bool = False,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    log: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Train ``model`` with Adam and leave the weights of the best epoch in it.

    The loss is the binary cross-entropy of the logits plus ``aux_weight`` times the auxiliary loss. The best
    epoch is the one with the highest validation AUC; without ``valid`` it is the last. The global random
    generators of torch, NumPy and Python are seeded anew from (seed, epoch) in every epoch.

    In a multi-process run (``accelerate launch``), build the loaders with this process's ``rank`` and
    ``world_size``; rank 0 alone writes and prints.

    Args:
        model: takes a batch of the loader, returns (logits ``[B]``, auxiliary loss or None).
        train: shuffled batches.
        valid: batches for early stopping, not shuffled.
        run_directory: where to write ``best.pt`` and ``last.pt`` (checkpoints), ``history.csv``, ``loss.png``
            and ``auc.png``; None writes nothing. A run that is there stays until the new one has its first
            checkpoint.
        epochs: the most epochs to train.
        patience: stop after so many epochs without a better validation AUC.
        lr: Adam's step size.
        weight_decay: Adam's L2 penalty.
        aux_weight: weight of the auxiliary loss.
        seed: seed of dropout; the loaders have their own.
        resume: go on from ``last.pt`` in ``run_directory``, if it is there.
        fingerprint: identity of the encoders, stored in the checkpoints; on resuming it must be the same.
        identity: what else the weights belong to (sizes, column names: plain values by name), stored in the
            checkpoints; on resuming it must be the same.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation_steps: batches to an optimizer step.
        cpu: stay on the CPU though there is a GPU.
        accelerator: one of your own, in place of the three settings above (its gradient accumulation counts).
        progress: show a progress bar on stderr.
        log: takes the line printed after each epoch; None prints it to stdout.

    Returns:
        A row for each epoch, with epoch, train_loss, train_aux_loss, train_auc, valid_loss, valid_auc,
        valid_logloss, valid_gauc, seconds (the whole epoch), rows_per_second (training alone).

    Raises:
        DataError: if the validation rows have one class only, so that there is no AUC.
        CheckpointError: if another training writes to the directory; on resuming, if the checkpoint is missing
            beside ``best.pt``, damaged or of a run with other settings.
        DienFastError: if the loss becomes NaN or infinite, or the precision is not available here.

    Example:
        >>> history = fit(model, train_loader, valid_loader, epochs=2)  # doctest: +SKIP
    """
    _check_extras()
    if accelerator is None:
        accelerator = make_accelerator(mixed_precision, gradient_accumulation_steps, cpu)
    check_loaders(train, valid, accelerator)
    say = log or print_line
    settings = {
        "lr": lr,
        "weight_decay": weight_decay,
        "aux_weight": aux_weight,
        "seed": seed,
        "batch_size": train.batch_size,
        "train rows": len(train.dataset),
        "mixed_precision": accelerator.mixed_precision,
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
        "processes": accelerator.num_processes,
    }
    with _open_run(run_directory, resume, accelerator) as (run, resuming):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        # Evaluation goes around DDP, whose forward is a collective call and waits for every rank.
        bare = accelerator.unwrap_model(wrapped)

        history: list[dict[str, float]] = []
        best: dict[str, Tensor] | None = None
        best_epoch, best_auc = 0, float("-inf")
        if run is not None and resuming:
            last = _load_last(run.path / "last.pt", settings, fingerprint, dict(identity or {}))
            load_weights(bare, last["model"], run.path / "last.pt")
            _load_optimizer(optimizer, last["optimizer"], run.path / "last.pt")
            history, best_epoch, best_auc = last["history"], last["best_epoch"], last["best_auc"]
            best = load_checkpoint(run.path / "best.pt")["model"]
        last_plot = time.perf_counter()

        try:
            for epoch in range(len(history) + 1, epochs + 1):
                if valid is not None and epoch - 1 - best_epoch >= patience:
                    break
                begin = time.perf_counter()
                seed_everything(seed, epoch, accelerator.process_index)
                train.set_epoch(epoch)
                row: dict[str, float] = {"epoch": epoch}
                row |= _train_epoch(
                    wrapped, optimizer, train, accelerator, aux_weight, progress, f"epoch {epoch}/{epochs}"
                )
                if not np.isfinite(row["train_loss"]):
                    raise DienFastError(
                        f"training diverged in epoch {epoch}: the loss is {row['train_loss']}; "
                        f"try a smaller learning rate than {lr:g}"
                    )
                if accelerator.num_processes > 1:
                    _share_buffers(bare)
                if valid is not None:
                    scores = evaluate(bare, valid, aux_weight=aux_weight)
                    row |= {f"valid_{name}": value for name, value in scores.items()}
                row["seconds"] = time.perf_counter() - begin
                row["rows_per_second"] = row.pop("rows_per_second")
                history.append(row)
                if valid is None or row["valid_auc"] > best_auc:
                    best_epoch, best_auc = epoch, row.get("valid_auc", float("nan"))
                    best = {key: value.detach().to("cpu", copy=True) for key, value in bare.state_dict().items()}
                if run is not None and accelerator.is_main_process:
                    # last.pt comes last: should the process die in between, the epoch is simply repeated.
                    if best_epoch == epoch:
                        save_checkpoint(
                            run.place / "best.pt",
                            {
                                "model": best,
                                "epoch": epoch,
                                "valid_auc": best_auc,
                                "fingerprint": fingerprint,
                                "identity": dict(identity or {}),
                            },
                        )
                    _write_history(history, run.place)
                    save_checkpoint(
                        run.place / "last.pt",
                        {
                            "model": bare.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "epoch": epoch,
                            "history": history,
                            "best_epoch": best_epoch,
                            "best_auc": best_auc,
                            "settings": settings,
                            "fingerprint": fingerprint,
                            "identity": dict(identity or {}),
                        },
                    )
                    run.take_place()
                    if time.perf_counter() - last_plot > _PLOT_SECONDS:
                        _plot(history, run.path)
                        last_plot = time.perf_counter()
                if accelerator.is_main_process:
                    say(epoch_line(row))
            accelerator.wait_for_everyone()
            if best is not None:
                load_weights(bare, best, "the best epoch")
            if run is not None and history and accelerator.is_main_process:
                _write_history(history, run.path)
                _plot(history, run.path)
        finally:
            # Gives the model its own forward back, without the autocast wrapper.
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return _frame(history)


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


def _train_epoch(
    model: nn.Module,
    optimizer: Any,
    loader: EpochLoader,
    accelerator: Accelerator,
    aux_weight: float,
    progress: bool,
    title: str,
) -> dict[str, float]:
    """Take one step per batch and return the epoch's train_loss, train_aux_loss, train_auc, rows_per_second."""
    model.train()
    device = accelerator.device
    label = loader.dataset.schema.label
    steps, accumulate = len(loader), accelerator.gradient_accumulation_steps
    scored: list[tuple[Tensor, Tensor]] = []
    losses: list[Tensor] = []
    aux_losses: list[Tensor] = []
    sizes: list[int] = []
    begin = time.perf_counter()
    show = progress and accelerator.is_main_process
    all_labels = labels_of(loader)
    with progress_bar(len(loader.dataset), title, "rows", show) as bar:
        refresh = begin + bar.seconds
        for step, batch in enumerate(loader, 1):
            if device.type != "cpu":
                batch = to_device(batch, device)
            labels = cast(Tensor, batch[label])
            # The last group of an epoch may be short; it is stepped too, and its loss is a mean as well.
            accelerator.sync_gradients = step % accumulate == 0 or step == steps
            group = min(accumulate, steps - (step - 1) // accumulate * accumulate)
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(model):
                logits, aux_loss = model(batch)
                loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
                if aux_loss is not None:
                    aux_losses.append(aux_loss.detach())
                    loss = loss + aux_weight * aux_loss
                # backward() divides by the accumulation steps it was told of.
                accelerator.backward(loss if group == accumulate else loss * (accumulate / group))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            scored.append((cast(Tensor, batch["__row__"]), logits.detach()))
            sizes.append(labels.size(0))
            if time.perf_counter() > refresh:
                bar.set_postfix(_recent(losses, scored, sizes, all_labels), refresh=False)
                refresh = time.perf_counter() + bar.seconds
            bar.update(sizes[-1] * accelerator.num_processes)
    weights = torch.tensor(sizes, dtype=torch.float64)
    sums = [weighted_sum(losses, weights), weighted_sum(aux_losses, weights), float(weights.sum())]
    logits_by_row, times = collect(scored, len(loader.dataset), accelerator.num_processes)
    loss_sum, aux_sum, rows = sum_over_ranks(sums, device, accelerator.num_processes)
    seen = times > 0
    finite = bool(np.isfinite(logits_by_row).all())
    return {
        "train_loss": loss_sum / rows,
        "train_aux_loss": aux_sum / rows if aux_losses else float("nan"),
        "train_auc": metrics.auc(all_labels[seen], logits_by_row[seen]) if finite else float("nan"),
        "rows_per_second": rows / (time.perf_counter() - begin),
    }


def _recent(
    losses: list[Tensor], scored: list[tuple[Tensor, Tensor]], sizes: list[int], labels: np.ndarray
) -> dict[str, str]:
    """Return loss and AUC over the last batches, as the progress bar shows them."""
    count = min(len(sizes), max(1, _WINDOW_ROWS // max(sizes[-1], 1)))
    logits = torch.cat([value for _, value in scored[-count:]]).float().cpu().numpy()
    rows = torch.cat([row for row, _ in scored[-count:]]).cpu().numpy()
    shown = {"loss": f"{float(torch.stack(losses[-count:]).mean()):.4f}"}
    if not np.isnan(logits).any():
        shown["auc"] = f"{metrics.auc(labels[rows], logits):.4f}"
    return shown


def make_accelerator(mixed_precision: str, gradient_accumulation_steps: int, cpu: bool) -> Accelerator:
    """Return an Accelerator; its settings are process-wide, so an earlier one's are dropped first.

    Raises:
        DienFastError: if a setting is not possible here, or other processes that were asked for are missing.
    """
    _check_extras()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if gradient_accumulation_steps < 1:
        raise DienFastError(f"gradient_accumulation_steps must be at least 1, got {gradient_accumulation_steps}")
    # A second fit with another precision in the same process would otherwise be refused.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            cpu=cpu,
        )
        # Accelerate would train in float32 without a word.
        if mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("it needs a GPU; the CPU has bf16")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DienFastError(f"mixed_precision {mixed_precision!r} cannot be used here: {reason}") from error
    if accelerator.num_processes == 1 and _launched_as_one_of_several(os.environ):
        raise DienFastError(
            "accelerate launch started one process only: on CPUs it starts several through mpirun alone; start "
            "them with torchrun --nproc-per-node N -m dien_fast.cli train --cpu ... (for one, unset MASTER_ADDR)"
        )
    return accelerator


def _launched_as_one_of_several(environment: Mapping[str, str]) -> bool:
    """Return whether ``accelerate launch`` was told of several processes and started this one alone.

    On a CPU ``accelerate launch --num_processes 2`` sets where the processes are to meet, and then starts one,
    which trains by itself (seen in accelerate 1.15).
    """
    launched = "ACCELERATE_DYNAMO_BACKEND" in environment and "MASTER_ADDR" in environment
    # torchrun, and the launchers of MPI, number the processes that they start.
    numbered = any(name.endswith(("WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")) for name in environment)
    return launched and not numbered


def _check_extras() -> None:
    """Say what is missing before hours of training, not after."""
    for name in ("accelerate", "pandas", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'training needs {name}, which is not installed: pip install "dien-fast[train]"'
            ) from error


def check_loaders(train: EpochLoader, valid: EpochLoader | None, accelerator: Accelerator) -> None:
    """Raise DataError or ValueError, in one sentence, where :func:`fit` cannot train on these batches."""
    if len(train.dataset) < 2:
        raise DataError(f"training needs at least 2 rows, got {len(train.dataset)}")
    for name, loader in (("train", train), ("valid", valid)):
        if loader is None:
            continue
        if (loader.batches.rank, loader.batches.world_size) != (
            accelerator.process_index,
            accelerator.num_processes,
        ):
            raise ValueError(
                f"the {name} loader must have rank={accelerator.process_index} and "
                f"world_size={accelerator.num_processes} in this process, "
                f"got rank={loader.batches.rank} and world_size={loader.batches.world_size}"
            )
    if valid is not None:
        labels = labels_of(valid)
        if len(labels) == 0 or labels.min() == labels.max():
            only = f"all {len(labels)} have label {labels[0]:g}" if len(labels) else "there are none"
            raise DataError(f"the validation rows must have both labels for early stopping on AUC, but {only}")


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


def _share_buffers(model: nn.Module) -> None:
    """Give every rank the batch statistics of rank 0, so that all of them evaluate the same model."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


def _load_last(path: Path, settings: dict[str, Any], fingerprint: str, identity: dict[str, Any]) -> dict[str, Any]:
    """Read last.pt and refuse it if the run it belongs to had other settings."""
    entries = ("model", "optimizer", "history", "best_epoch", "best_auc", "settings", "fingerprint", "identity")
    last = load_checkpoint(path, entries)
    difference = first_difference(last["settings"] | last["identity"], settings | identity)
    if difference:
        raise CheckpointError(f"{path} cannot be resumed: it was trained with {difference}")
    if last["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path} cannot be resumed: its encoders were fitted to other data")
    return last


def _load_optimizer(optimizer: Any, state: dict[str, Any], path: Path) -> None:
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit the model: its optimizer state differs ({error})") from error


def _frame(history: list[dict[str, float]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(history)


def _write_history(history: list[dict[str, float]], directory: Path) -> None:
    with write_atomically(directory / "history.csv") as unfinished:
        _frame(history).to_csv(unfinished, index=False)


def _plot(history: list[dict[str, float]], directory: Path) -> None:
    from dien_fast.training.plots import plot_history

    plot_history(_frame(history), directory)


def print_line(line: str) -> None:
    """Print a line at once; a pipe would otherwise hold the lines back until the end of training."""
    print(line, flush=True)
