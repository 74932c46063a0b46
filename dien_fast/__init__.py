"""dien-fast: the Deep Interest Evolution Network (DIEN), fast, in PyTorch.

The modules need torch and numpy alone; the encoders, the training loop and the command need the ``train``
extra and are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dien_fast import _moved as _moved
from dien_fast._version import __version__
from dien_fast.errors import CheckpointError, DataError, DienFastError
from dien_fast.models import DIEN, DIN, DSIN, AttentionGroup
from dien_fast.nn import (
    MLP,
    Attention,
    AttentionGRUCell,
    AttentionUpdateGateGRUCell,
    AuxiliaryNet,
    Dice,
    DynamicGRU,
    Interest,
    MaxPooling,
    SumPooling,
)
from dien_fast.ops.backend import backend, use_backend
from dien_fast.ragged import Ragged

if TYPE_CHECKING:
    from dien_fast.data import CategoryEncoder, SequenceEncoder
    from dien_fast.patches import accelerate, restore
    from dien_fast.training.runs import load


__all__ = [
    "DIEN",
    "DIN",
    "DSIN",
    "MLP",
    "Attention",
    "AttentionGRUCell",
    "AttentionGroup",
    "AttentionUpdateGateGRUCell",
    "AuxiliaryNet",
    "CategoryEncoder",
    "CheckpointError",
    "DataError",
    "Dice",
    "DienFastError",
    "DynamicGRU",
    "Interest",
    "MaxPooling",
    "Ragged",
    "SequenceEncoder",
    "SumPooling",
    "__version__",
    "accelerate",
    "backend",
    "load",
    "restore",
    "use_backend",
]

_LAZY = {
    "CategoryEncoder": "dien_fast.data",
    "SequenceEncoder": "dien_fast.data",
    "accelerate": "dien_fast.patches",
    "load": "dien_fast.training.runs",
    "restore": "dien_fast.patches",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dien_fast' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dien_fast"):
            raise
        raise ImportError(
            f"dien_fast.{name} needs {error.name}, which is not installed: pip install 'dien-fast[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
