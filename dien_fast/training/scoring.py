"""Score a whole dataset: probabilities in its order, and metrics against its labels. Needs no Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dien_fast.errors import DataError, DienFastError
from dien_fast.progress import progress_bar
from dien_fast.training import metrics

if TYPE_CHECKING:
    from dien_fast.data.dataset import EpochLoader


def evaluate(
    model: nn.Module,
    loader: EpochLoader,
    *,
    aux_weight: float = 1.0,
    k: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Score every row of the loader's dataset once, in eval mode, and compare with the labels.

    Args:
        model: as in :func:`fit`; its device is used.
        loader: batches, not shuffled; of several ranks each scores its own part.
        aux_weight: weight of the auxiliary loss in ``loss``, where the batches have negatives.
        k: places looked at by the ranking metrics of the schema's lists; None leaves these metrics out.
        progress: show a progress bar on stderr.

    Returns:
        loss (the training objective), auc, logloss (nats a row), gauc (NaN without users), and with ``k`` those
        of :func:`dien_fast.training.metrics.ranking` (NaN without lists or users).

    Example:
        >>> evaluate(model, test_loader)  # doctest: +SKIP
        {'loss': 1.24, 'auc': 0.79, 'logloss': 0.55, 'gauc': 0.72}
    """
    logits, aux_loss = _score(model, loader, progress)
    labels, users = labels_of(loader), loader.dataset.users
    if np.isnan(logits).any():
        row = int(np.flatnonzero(np.isnan(logits))[0])
        raise DienFastError(
            f"the model gives NaN for row {row}, so there are no metrics; its training has diverged"
        )
    probabilities = torch.from_numpy(logits.astype(np.float64)).sigmoid().numpy()
    log_loss = metrics.log_loss(labels, probabilities)
    scores = {
        "loss": log_loss + aux_weight * aux_loss,
        "auc": metrics.auc(labels, logits),
        "logloss": log_loss,
        "gauc": float("nan") if users is None else metrics.gauc(labels, logits, users),
    }
    if k is not None:
        lists = loader.dataset.lists
        # Lists of one row have nothing to rank.
        scores |= metrics.ranking(labels, logits, np.arange(len(labels)) if lists is None else lists, k)
    return scores


def predict(model: nn.Module, loader: EpochLoader, *, progress: bool = False) -> np.ndarray:
    """Return the click probability of every row of the loader's dataset, float32 ``[rows]``, in its order.

    Args:
        model: as in :func:`fit`; its device is used, in eval mode.
        loader: batches of a dataset that needs no labels.
        progress: show a progress bar on stderr.

    Example:
        >>> predict(model, loader)  # doctest: +SKIP
        array([0.31, 0.87], dtype=float32)
    """
    logits, _ = _score(model, loader, progress)
    return torch.from_numpy(logits).sigmoid().numpy()


def labels_of(loader: EpochLoader) -> np.ndarray:
    """Return the float32 labels ``[rows]`` of the loader's dataset.

    Raises:
        DataError: if the dataset was made without labels.
    """
    labels = loader.dataset.labels
    if labels is None:
        raise DataError("metrics need labels, but the dataset was made with require_label=False")
    return labels


def _score(model: nn.Module, loader: EpochLoader, progress: bool) -> tuple[np.ndarray, float]:
    """Return float32 logits ``[rows]`` in dataset order and the mean auxiliary loss (0 where there is none)."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    world_size = loader.batches.world_size
    scored: list[tuple[Tensor, Tensor]] = []
    aux_losses: list[Tensor] = []
    sizes: list[int] = []
    remote = getattr(model, "remote_tables", None)
    missing = 0 if remote is None else remote.missing_look_ups(len(loader))
    try:
        show = progress and loader.batches.rank == 0
        with torch.no_grad(), progress_bar(len(loader.dataset), "scoring", "rows", show) as bar:
            for batch in loader:
                if device.type != "cpu":
                    batch = to_device(batch, device)
                logits, aux_loss = model(batch)
                scored.append((cast(Tensor, batch["__row__"]), logits))
                sizes.append(logits.size(0))
                if aux_loss is not None:
                    aux_losses.append(aux_loss)
                bar.update(sizes[-1] * world_size)
        if remote is not None:
            # Each look-up of another process needs this one, too.
            remote.attend(missing)
    finally:
        model.train(was_training)
    logits_by_row, times = collect(scored, len(loader.dataset), world_size)
    if not (times == 1).all():
        row = int(np.flatnonzero(times != 1)[0])
        raise DienFastError(
            f"every row must be scored once, but row {row} was scored {times[row]} times: "
            f"the loader must have world_size={_process_count()} and shuffle=False"
        )
    aux_sum = weighted_sum(aux_losses, torch.tensor(sizes, dtype=torch.float64))
    (aux_sum,) = sum_over_ranks([aux_sum], device, world_size)
    return logits_by_row, aux_sum / max(len(loader.dataset), 1)


def collect(scored: list[tuple[Tensor, Tensor]], num_rows: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 logits ``[num_rows]`` by row and how often each row was scored, over all ranks.

    Every rank fills in its own rows of a zero vector and the vectors are added, so that ranks may have
    different numbers of rows and nothing depends on the order they come in.
    """
    logits = torch.zeros(num_rows)
    times = torch.zeros(num_rows)
    if scored:
        rows = torch.cat([row for row, _ in scored]).cpu()
        values = torch.cat([value for _, value in scored]).float().cpu()
        logits.index_add_(0, rows, values)
        times.index_add_(0, rows, torch.ones(len(rows)))
        device = scored[0][1].device
    else:
        device = torch.device("cpu")
    if world_size > 1:
        both = torch.stack([logits, times]).to(device)
        torch.distributed.all_reduce(both)
        logits, times = both.cpu()
    return (logits / times.clamp(min=1)).numpy(), times.numpy().astype(np.int64)


def sum_over_ranks(values: list[float], device: torch.device, world_size: int) -> list[float]:
    """Return the sum of each number over all ranks."""
    if world_size == 1:
        return values
    # float64 would be refused by MPS, which has no process groups anyway.
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def weighted_sum(losses: list[Tensor], weights: Tensor) -> float:
    """Return the sum of one loss per batch times the batch's rows; 0 if there are none."""
    return float(torch.stack(losses).cpu().double() @ weights) if losses else 0.0


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with every tensor on ``device``; pinned memory is copied without waiting."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _process_count() -> int:
    """Return the number of processes of this run."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1
