"""What a training with divided tables can be asked for, and what is refused."""

from __future__ import annotations

import importlib
import logging
import warnings

import torch

from dien_fast.errors import DienFastError
from dien_fast.training.settings import TrainSettings

#: The rules that TorchRec's CPU kernels have, and what FBGEMM calls each.
KERNELS = {"rowwise-adagrad": "EXACT_ROWWISE_ADAGRAD", "adagrad": "EXACT_ADAGRAD", "sgd": "EXACT_SGD"}


def check_sharded(settings: TrainSettings, cpu: bool) -> None:
    """Refuse, in one sentence, what a training with ``tables="torchrec"`` cannot do.

    Args:
        settings: of the training.
        cpu: whether it stays on the CPU though there is a GPU.

    Raises:
        DienFastError: for a setting, or a GPU.
        ImportError: where TorchRec is not installed, with how to install it.

    Example:
        >>> check_sharded(TrainSettings(tables="torchrec", gradient_accumulation=4), cpu=True)
        Traceback (most recent call last):
        dien_fast.errors.DienFastError: gradient_accumulation must be 1 with tables 'torchrec', which move ...
    """
    rule = sharded_rule(settings.table_optimizer)
    if settings.gradient_accumulation > 1:
        raise DienFastError(
            "gradient_accumulation must be 1 with tables 'torchrec', which move their rows in each backward pass, "
            f"got {settings.gradient_accumulation}"
        )
    if settings.mixed_precision == "fp16":
        raise DienFastError(
            "mixed_precision must be 'no' or 'bf16' with tables 'torchrec', which move their rows before a scaled "
            "loss could be scaled back, got 'fp16'"
        )
    if settings.weight_decay and rule != "rowwise-adagrad":
        raise DienFastError(
            f"weight_decay must be 0 with table_optimizer {rule!r} of tables 'torchrec', whose kernels have none, "
            f"got {settings.weight_decay:g}"
        )
    if torch.cuda.is_available() and not cpu:
        raise DienFastError("tables 'torchrec' are for processes on CPUs, which talk through gloo; add --cpu")
    import_torchrec()


def sharded_rule(setting: str) -> str:
    """Return the rule that the setting ``table_optimizer`` means for divided tables.

    Raises:
        DienFastError: for one that TorchRec does not have on CPUs.

    Example:
        >>> sharded_rule("auto")
        'rowwise-adagrad'
    """
    rule = "rowwise-adagrad" if setting == "auto" else setting
    if rule not in KERNELS:
        raise DienFastError(
            f"table_optimizer must be one of {', '.join(KERNELS)} with tables 'torchrec', whose CPU kernels have "
            f"no other, got {setting!r}"
        )
    return rule


def import_torchrec() -> None:
    """Import TorchRec and its kernels.

    Raises:
        ImportError: with how to install them, where they are missing or were built for another torch.
    """
    for name in ("torchrec", "fbgemm_gpu"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ImportError(
                f"tables 'torchrec' need TorchRec's CPU build: pip install --no-deps torchrec fbgemm-gpu-cpu and "
                f"what docs/large-tables.md lists beside them, in the versions for torch {torch.__version__} "
                f"({reason})"
            ) from error
    # TorchRec asks at each look-up whether it is traced, of which torch 2.13 warns.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
