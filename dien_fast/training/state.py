"""Where a training stands: all that it needs to go on after an interruption, and the weights of its best epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dien_fast.errors import CheckpointError
from dien_fast.training.checkpoints import load_weights

if TYPE_CHECKING:
    import pandas as pd

    from dien_fast.training.settings import TrainSettings


class TrainingState:
    """The history, the best weights, and the model and optimizer that they belong to.

    Args:
        model: the model that is trained.
        optimizer: its optimizer, or Accelerate's wrapper of it.

    Attributes:
        history: what was measured, a dict for each epoch.
        best_epoch: the epoch with the highest validation AUC, or the last if nothing is validated; 0 before any.
        best_auc: the validation AUC of that epoch; NaN if nothing is validated.
        best: the weights of that epoch, on the CPU; None before any.

    Example:
        >>> state = TrainingState(model, optimizer)  # doctest: +SKIP
        >>> state.load_state_dict(load_checkpoint("last.pt"), best, "last.pt")  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_auc = 0, float("-inf")
        self.best: dict[str, Tensor] | None = None

    @property
    def epoch(self) -> int:
        """How many epochs have been trained."""
        return len(self.history)

    def is_over(self, settings: TrainSettings, validated: bool) -> bool:
        """Return whether all epochs are trained or, with validation, patience has run out."""
        if self.epoch >= settings.epochs:
            return True
        return validated and self.epoch - self.best_epoch >= settings.patience

    def record(self, row: dict[str, float]) -> None:
        """Add an epoch to the history, and keep a copy of the model's weights if it is the best so far."""
        self.history.append(row)
        if "valid_auc" not in row or row["valid_auc"] > self.best_auc:
            self.best_epoch, self.best_auc = self.epoch, row.get("valid_auc", float("nan"))
            self.best = {
                key: value.detach().to("cpu", copy=True) for key, value in self.model.state_dict().items()
            }

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch, if any has been trained."""
        if self.best is not None:
            load_weights(self.model, self.best, "the best epoch")

    def frame(self) -> pd.DataFrame:
        """Return the history as a table, a row for each epoch."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``last.pt`` holds: everything but the best weights, which ``best.pt`` has."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_auc": self.best_auc,
        }

    def load_state_dict(
        self, state: dict[str, Any], best: dict[str, Tensor] | None, source: str | Path = "the state"
    ) -> None:
        """Go on from a stored state.

        Args:
            state: as :meth:`state_dict` returns.
            best: the weights of the best epoch; None before any.
            source: where the state comes from, for the message.

        Raises:
            CheckpointError: if model or optimizer do not fit.
        """
        load_weights(self.model, state["model"], source)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{source} does not fit the model: its optimizer state differs ({error})"
            ) from error
        self.history = list(state["history"])
        self.best_epoch, self.best_auc = state["best_epoch"], state["best_auc"]
        self.best = best


# What state_dict returns, by name: a checkpoint to resume from must have all of it.
STATE_ENTRIES = ("model", "optimizer", "epoch", "history", "best_epoch", "best_auc")
