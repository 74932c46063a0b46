"""Rows of MovieLens: would the user like the movie, given what the user liked before?"""

from __future__ import annotations

import os
from pathlib import Path

from dien_fast.data.movielens import click_table, fetch_ml_100k, movielens_schema, read_movielens
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings

ML_100K = "ml-100k"


class MovieLensSource(SourceKind):
    """``dataset="ml-100k"``, which is fetched, or a directory in one of MovieLens's layouts."""

    def matches(self, settings: SourceSettings) -> bool:
        """Return whether the rows are ratings."""
        path = Path(settings.dataset)
        if settings.schema is not None:
            # A folder of that name with a schema is a table.
            return settings.dataset == ML_100K and not path.exists()
        return settings.dataset == ML_100K or path.is_dir()

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Read the ratings and make rows of clicks of them."""
        path = Path(settings.dataset)
        if not path.exists():
            path = fetch_ml_100k(cache_directory() / ML_100K)
        table = click_table(*read_movielens(path), max_length=settings.overrides.get("max_length", 50), views=True)
        return SourceRows(table, movielens_schema(table))


def cache_directory() -> Path:
    """Return where fetched data is kept: ``$DIEN_FAST_CACHE`` or ``~/.cache/dien-fast``."""
    return Path(os.environ.get("DIEN_FAST_CACHE") or Path.home() / ".cache" / "dien-fast")
