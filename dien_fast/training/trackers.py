"""Experiment trackers that people already have, through Hugging Face Accelerate: TensorBoard, MLflow, W&B."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dien_fast.errors import DienFastError

if TYPE_CHECKING:
    from accelerate import Accelerator

# The project, or experiment, that MLflow and W&B file runs under.
_PROJECT = "dien-fast"
# By the name of the option: the package that it needs.
TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or are not installed, before anything is read.

    Raises:
        DienFastError: naming the first of them.
    """
    for name in names:
        if name not in TRACKERS:
            raise DienFastError(f"track must be among {', '.join(TRACKERS)}, got {name!r}")
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise DienFastError(f"--track {name} needs {TRACKERS[name]}: pip install {TRACKERS[name]}")


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], directory: Path, settings: Mapping[str, Any]
) -> None:
    """Start the trackers of a run; ``accelerator.log`` then writes to all of them.

    TensorBoard's files go to ``tensorboard/RUN`` beside the run directory, so that ``tensorboard --logdir`` of
    that folder shows all runs together.

    Args:
        accelerator: of this process.
        names: keys of ``TRACKERS``.
        directory: of the run; its name is that of the tracked run.
        settings: what is stored with the run; values that are no number, text or bool are stored as text.
    """
    if not names:
        return
    from accelerate import tracking

    run = directory.resolve()
    makers = {
        "tensorboard": lambda: tracking.TensorBoardTracker(run.name, str(run.parent / "tensorboard")),
        "mlflow": lambda: tracking.MLflowTracker(_PROJECT, run_name=run.name),
        "wandb": lambda: tracking.WandBTracker(_PROJECT, name=run.name),
    }
    accelerator.log_with = [makers[name]() for name in names]
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in settings.items()
    }
    accelerator.init_trackers(_PROJECT, config=plain)


def track_epoch(accelerator: Accelerator, row: Mapping[str, float]) -> None:
    """Give the trackers an epoch of the history; NaN, which is a metric that does not apply, is left out."""
    values = {name: float(value) for name, value in row.items() if name != "epoch" and value == value}
    accelerator.log(values, step=int(row["epoch"]))
