"""Rows of made-up clicks, whose best reachable AUC is known."""

from __future__ import annotations

from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.synthetic import synthetic_clicks
from dien_fast.errors import DataError


class SyntheticSource(SourceKind):
    """``dataset="synthetic"``: as many made-up clicks as ``rows`` says."""

    def matches(self, settings: SourceSettings) -> bool:
        """Return whether the clicks are to be made up."""
        return settings.dataset == "synthetic"

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Make the clicks."""
        if settings.rows < 100:
            raise DataError(f"rows must be at least 100 for synthetic data, got {settings.rows}")
        clicks = synthetic_clicks(rows=settings.rows, seed=seed)
        return SourceRows(clicks.table, clicks.schema, "bestProbability", "bestProbabilityInTime")
