"""Rows that ask which item a user's next event has: the task of the DIEN paper, made of logs of events."""

from __future__ import annotations

from pathlib import Path

from dien_fast.data.event_files import read_events
from dien_fast.data.event_tables import read_event_table
from dien_fast.data.events import DRAWS, Events, next_clicks
from dien_fast.data.movielens import fetch_ml_100k
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.sources.movielens import ML_100K, cache_directory
from dien_fast.errors import DataError


class NextEventSource(SourceKind):
    """``task="next"``: ``dataset`` is "ml-100k", a log in a known format or, with ``schema``, a table."""

    takes = ("schema", "first_event", "sampled", "sampling")

    def matches(self, settings: SourceSettings) -> bool:
        """Return whether the next event is to be predicted."""
        return settings.task == "next"

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Read the events, and sample the items that were not clicked."""
        _check(settings)
        events = _events(settings)
        clicks = next_clicks(
            events,
            first=settings.first_event,
            negatives=settings.sampled,
            by=settings.sampling,
            max_length=settings.overrides.get("max_length", events.settings.get("max_length", 50)),
            seed=seed,
            views=True,
        )
        reason = "since the next event of users is predicted whom training does not know, as in the official code"
        return SourceRows(clicks.table, clicks.schema, split=("users", reason), notes=clicks.notes)


def _check(settings: SourceSettings) -> None:
    if settings.first_event is not None and settings.first_event < 2:
        raise DataError(
            f"first_event must be at least 2, as a user's first event has no history, got {settings.first_event}"
        )
    if settings.sampled < 1:
        raise DataError(f"sampled must be at least 1, got {settings.sampled}")
    if settings.sampling not in DRAWS:
        raise DataError(f"sampling must be one of {', '.join(DRAWS)}, got {settings.sampling!r}")
    if settings.dataset == "synthetic":
        raise DataError("synthetic data are clicks, not events: leave --task next away")


def _events(settings: SourceSettings) -> Events:
    path = Path(settings.dataset)
    if settings.schema is not None:
        return read_event_table(path, settings.schema)
    if settings.dataset == ML_100K and not path.exists():
        path = fetch_ml_100k(cache_directory() / ML_100K)
    return read_events(path)
