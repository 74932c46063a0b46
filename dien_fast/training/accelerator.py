"""Hugging Face Accelerate as :func:`dien_fast.training.fit` uses it: devices, precision and processes."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import nn

from dien_fast.errors import DataError, DienFastError
from dien_fast.training.scoring import labels_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dien_fast.data.dataset import EpochLoader


def make_accelerator(
    mixed_precision: str, gradient_accumulation_steps: int, cpu: bool, timeout: float = 1800.0
) -> Accelerator:
    """Return an Accelerator; its settings are process-wide, so an earlier one's are dropped first.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation_steps: batches to a step.
        cpu: stay on the CPU though there is a GPU.
        timeout: seconds that a process waits for the others; the first call in a process decides.

    Raises:
        DienFastError: if a setting is not possible here, or other processes that were asked for are missing.
    """
    check_extras()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    # A second fit with another precision in the same process would otherwise be refused.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            cpu=cpu,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
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


def check_extras() -> None:
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


def adds_sparse_gradients(accelerator: Accelerator) -> bool:
    """Return whether the processes can add up sparse gradients: one has nothing to add, and gloo can."""
    return accelerator.num_processes == 1 or torch.distributed.get_backend() == "gloo"


# How gloo, NCCL and torch's store say that another process has ended, or does not answer.
_LOST = re.compile(r"gloo|NCCL|TCPStore|[Cc]onnection (closed|reset|was)|Broken pipe|[Tt]imed out|[Tt]imeout")


@contextmanager
def missing_processes(accelerator: Accelerator) -> Iterator[None]:
    """Say in one sentence if another process ends, or does not answer in time, while this one needs it.

    Raises:
        DienFastError: instead of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _LOST.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DienFastError(
            f"process {accelerator.process_index} of {accelerator.num_processes} has lost another one, which has "
            f"ended or does not answer; if it did not say why, start all of them again with --resume ({reason})"
        ) from error


def share_buffers(model: nn.Module) -> None:
    """Give every rank the batch statistics of rank 0, so that all of them evaluate the same model."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
