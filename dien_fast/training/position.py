"""How far an epoch has come: what was measured so far, and all that going on inside it needs."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, islice
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
# An epoch's AUC looks back over at most so many, whose logits take 48 MiB, and as much of each checkpoint.
_AUC_ROWS = 1 << 22


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

    Of a long epoch the logits of the last 4 million rows are kept.

    Args:
        labels: ``[rows]`` labels of the dataset.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels
        self._scored: deque[tuple[Tensor, Tensor]] = deque()
        self._scored_rows = 0
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
        self._scored_rows += logits.size(0)
        while self._scored_rows - self._scored[0][1].size(0) >= _AUC_ROWS:
            self._scored_rows -= self._scored.popleft()[1].size(0)
        self._losses.append(loss)
        self._sizes.append(logits.size(0))
        if aux_loss is not None:
            self._aux_losses.append(aux_loss)

    def recent(self) -> dict[str, str]:
        """Return loss and AUC over the last batches, as the progress bar shows them."""
        count = min(len(self._sizes), max(1, _WINDOW_ROWS // max(self._sizes[-1], 1)))
        last = list(islice(reversed(self._scored), count))
        logits = torch.cat([value for _, value in last]).float().cpu().numpy()
        rows = torch.cat([row for row, _ in last]).cpu().numpy()
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
        loss_sum, aux_sum, rows = sum_over_ranks(sums, accelerator.device, processes)
        labels, logits = self._labelled(processes)
        finite = bool(np.isfinite(logits).all())
        return {
            "train_loss": loss_sum / rows,
            "train_aux_loss": aux_sum / rows if self._aux_losses else float("nan"),
            "train_auc": metrics.auc(labels, logits) if finite else float("nan"),
            "rows_per_second": (rows - rows_before) / seconds,
        }

    def _labelled(self, processes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of the scored rows of all ranks, and their logits."""
        if processes > 1:
            # Ranks may repeat each other's rows.
            logits, times = collect(list(self._scored), len(self._labels), processes)
            return self._labels[times > 0], logits[times > 0]
        rows = torch.cat([row for row, _ in self._scored]).cpu().numpy()
        return self._labels[rows], torch.cat([value for _, value in self._scored]).float().cpu().numpy()

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
        rows, logits = state["rows"], state["logits"].to(device)
        kept = bisect_left(list(accumulate(reversed(self._sizes))), len(rows)) + 1
        parts = zip(rows.split(self._sizes[-kept:]), logits.split(self._sizes[-kept:]), strict=True)
        self._scored, self._scored_rows = deque(parts), len(rows)
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
