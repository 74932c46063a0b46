"""How far an epoch has come: what was measured so far, and all that going on inside it needs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from dien_fast.training import metrics
from dien_fast.training.scoring import collect, sum_over_ranks, weighted_sum

if TYPE_CHECKING:
    from accelerate import Accelerator

# The progress bar's loss and AUC look back over this many rows.
_WINDOW_ROWS = 8192


class StopRequest:
    """A wish to stop soon, at a moment at which nothing is lost.

    Attributes:
        asked: whether somebody wants to stop.
        is_heard: whether somebody looks at ``asked`` now and then, as a training does while it takes steps.

    Example:
        >>> stop = StopRequest()
        >>> signal.signal(signal.SIGUSR1, lambda *_: setattr(stop, "asked", True))  # doctest: +SKIP
        >>> fit(model, train_loader, stop=stop)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.asked = False
        self.is_heard = False

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Say that ``asked`` is looked at inside."""
        self.is_heard = True
        try:
            yield
        finally:
            self.is_heard = False


class TrainingStopped(Exception):  # noqa: N818 - it is no error
    """Raised by a training that was asked to stop, behind the checkpoint to go on from; says where it was."""


class EpochRecord:
    """Losses and logits of an epoch's batches, left on the device until they are needed.

    Args:
        labels: ``[rows]`` labels of the dataset.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels
        self._scored: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._aux_losses: list[Tensor] = []
        self._sizes: list[int] = []

    @property
    def batches(self) -> int:
        """How many batches have been added."""
        return len(self._sizes)

    @property
    def rows(self) -> int:
        """How many rows they had."""
        return sum(self._sizes)

    def add(self, batch: Mapping[str, Any], logits: Tensor, loss: Tensor, aux_loss: Tensor | None) -> None:
        """Add a batch."""
        self._scored.append((cast(Tensor, batch["__row__"]), logits))
        self._losses.append(loss)
        self._sizes.append(logits.size(0))
        if aux_loss is not None:
            self._aux_losses.append(aux_loss)

    def recent(self) -> dict[str, str]:
        """Return loss and AUC over the last batches, as the progress bar shows them."""
        count = min(len(self._sizes), max(1, _WINDOW_ROWS // max(self._sizes[-1], 1)))
        logits = torch.cat([value for _, value in self._scored[-count:]]).float().cpu().numpy()
        rows = torch.cat([row for row, _ in self._scored[-count:]]).cpu().numpy()
        shown = {"loss": f"{float(torch.stack(self._losses[-count:]).mean()):.4f}"}
        if not np.isnan(logits).any():
            shown["auc"] = f"{metrics.auc(self._labels[rows], logits):.4f}"
        return shown

    def measure(self, accelerator: Accelerator, seconds: float, rows_before: int = 0) -> dict[str, float]:
        """Return the epoch's losses and AUC over all ranks, and rows a second.

        Args:
            accelerator: of this process.
            seconds: what the batches took.
            rows_before: rows among them that an earlier process trained, which took none of this time.
        """
        processes = accelerator.num_processes
        weights = torch.tensor(self._sizes, dtype=torch.float64)
        sums = [weighted_sum(self._losses, weights), weighted_sum(self._aux_losses, weights), float(weights.sum())]
        logits_by_row, times = collect(self._scored, len(self._labels), processes)
        loss_sum, aux_sum, rows = sum_over_ranks(sums, accelerator.device, processes)
        seen = times > 0
        finite = bool(np.isfinite(logits_by_row).all())
        return {
            "train_loss": loss_sum / rows,
            "train_aux_loss": aux_sum / rows if self._aux_losses else float("nan"),
            "train_auc": metrics.auc(self._labels[seen], logits_by_row[seen]) if finite else float("nan"),
            "rows_per_second": (rows - rows_before) / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added, as tensors on the CPU."""
        return {
            "sizes": list(self._sizes),
            "rows": torch.cat([row for row, _ in self._scored]).cpu(),
            "logits": torch.cat([value for _, value in self._scored]).cpu(),
            "losses": torch.stack(self._losses).cpu(),
            "aux_losses": torch.stack(self._aux_losses).cpu() if self._aux_losses else None,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take what :meth:`state_dict` returned for what has been added."""
        self._sizes = list(state["sizes"])
        parts = zip(state["rows"].split(self._sizes), state["logits"].to(device).split(self._sizes), strict=True)
        self._scored = list(parts)
        self._losses = list(state["losses"].to(device))
        self._aux_losses = [] if state["aux_losses"] is None else list(state["aux_losses"].to(device))


def random_states() -> dict[str, Any]:
    """Return the states of the generators of torch, NumPy and Python, as a checkpoint can hold them."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global generator is meant
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Give the generators the states that :func:`random_states` returned."""
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])
