"""Click data: from tables to the batches that the models take.

The names below are imported on first use, so that ``import dien_fast`` needs torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dien_fast.data.dataset import ClickDataset, EpochBatches, EpochLoader, pad_batch
    from dien_fast.data.encoders import CategoryEncoder, NumericEncoder, SequenceEncoder
    from dien_fast.data.fitting import Encoders, fit_encoders
    from dien_fast.data.movielens import (
        click_table,
        fetch_ml_100k,
        movielens_schema,
        read_movielens,
    )
    from dien_fast.data.negatives import NegativeSampler
    from dien_fast.data.schema import Group, Pair, Schema
    from dien_fast.data.splitting import split_table
    from dien_fast.data.synthetic import SyntheticClicks, shuffle_histories, synthetic_clicks
    from dien_fast.data.tables import read_table

_MODULES = {
    "CategoryEncoder": "encoders",
    "ClickDataset": "dataset",
    "Encoders": "fitting",
    "EpochBatches": "dataset",
    "EpochLoader": "dataset",
    "Group": "schema",
    "NegativeSampler": "negatives",
    "NumericEncoder": "encoders",
    "Pair": "schema",
    "Schema": "schema",
    "SequenceEncoder": "encoders",
    "SyntheticClicks": "synthetic",
    "click_table": "movielens",
    "fetch_ml_100k": "movielens",
    "fit_encoders": "fitting",
    "movielens_schema": "movielens",
    "pad_batch": "dataset",
    "read_movielens": "movielens",
    "read_table": "tables",
    "shuffle_histories": "synthetic",
    "split_table": "splitting",
    "synthetic_clicks": "synthetic",
}

__all__ = [
    "CategoryEncoder",
    "ClickDataset",
    "Encoders",
    "EpochBatches",
    "EpochLoader",
    "Group",
    "NegativeSampler",
    "NumericEncoder",
    "Pair",
    "Schema",
    "SequenceEncoder",
    "SyntheticClicks",
    "click_table",
    "fetch_ml_100k",
    "fit_encoders",
    "movielens_schema",
    "pad_batch",
    "read_movielens",
    "read_table",
    "shuffle_histories",
    "split_table",
    "synthetic_clicks",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("pyarrow", "sklearn"):
            raise ImportError(
                f"dien_fast.data.{name} needs {error.name}: pip install 'dien-fast[train]'",
                name=error.name,
            ) from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
