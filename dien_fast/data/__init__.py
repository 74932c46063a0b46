"""Click data: from tables to the batches that the models take.

The names below are imported on first use, so that ``import dien_fast`` needs torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dien_fast.data.dataset import ClickDataset as ClickDataset
    from dien_fast.data.dataset import EpochBatches as EpochBatches
    from dien_fast.data.dataset import EpochLoader as EpochLoader
    from dien_fast.data.dataset import pad_batch as pad_batch
    from dien_fast.data.encoders import CategoryEncoder as CategoryEncoder
    from dien_fast.data.encoders import NumericEncoder as NumericEncoder
    from dien_fast.data.encoders import SequenceEncoder as SequenceEncoder
    from dien_fast.data.event_files import read_events as read_events
    from dien_fast.data.event_tables import read_event_table as read_event_table
    from dien_fast.data.events import Events as Events
    from dien_fast.data.events import NextClicks as NextClicks
    from dien_fast.data.events import next_clicks as next_clicks
    from dien_fast.data.fitting import Encoders as Encoders
    from dien_fast.data.fitting import fit_encoders as fit_encoders
    from dien_fast.data.movielens import click_table as click_table
    from dien_fast.data.movielens import fetch_ml_100k as fetch_ml_100k
    from dien_fast.data.movielens import movielens_schema as movielens_schema
    from dien_fast.data.movielens import read_movielens as read_movielens
    from dien_fast.data.negatives import NegativeSampler as NegativeSampler
    from dien_fast.data.prepared.data import PreparedData as PreparedData
    from dien_fast.data.prepared.encoder import ArrowEncoder as ArrowEncoder
    from dien_fast.data.prepared.order import BlockBatches as BlockBatches
    from dien_fast.data.prepared.prepare import prepare as prepare
    from dien_fast.data.prepared.rows import PreparedDataset as PreparedDataset
    from dien_fast.data.schema import Group as Group
    from dien_fast.data.schema import Pair as Pair
    from dien_fast.data.schema import Schema as Schema
    from dien_fast.data.splitting import split_table as split_table
    from dien_fast.data.splitting import split_users as split_users
    from dien_fast.data.synthetic import SyntheticClicks as SyntheticClicks
    from dien_fast.data.synthetic import shuffle_histories as shuffle_histories
    from dien_fast.data.synthetic import synthetic_clicks as synthetic_clicks
    from dien_fast.data.tables import read_table as read_table

# The public names of each module.
_NAMES = {
    "dataset": ("ClickDataset", "EpochBatches", "EpochLoader", "pad_batch"),
    "event_files": ("read_events",),
    "event_tables": ("read_event_table",),
    "events": ("Events", "NextClicks", "next_clicks"),
    "encoders": ("CategoryEncoder", "NumericEncoder", "SequenceEncoder"),
    "fitting": ("Encoders", "fit_encoders"),
    "movielens": ("click_table", "fetch_ml_100k", "movielens_schema", "read_movielens"),
    "negatives": ("NegativeSampler",),
    "prepared.data": ("PreparedData",),
    "prepared.encoder": ("ArrowEncoder",),
    "prepared.order": ("BlockBatches",),
    "prepared.prepare": ("prepare",),
    "prepared.rows": ("PreparedDataset",),
    "schema": ("Group", "Pair", "Schema"),
    "splitting": ("split_table", "split_users"),
    "synthetic": ("SyntheticClicks", "shuffle_histories", "synthetic_clicks"),
    "tables": ("read_table",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


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
