"""Rows of a table of one's own, with a schema that says what its columns mean."""

from __future__ import annotations

from pathlib import Path

from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.tables import read_table
from dien_fast.errors import DataError


class TableSource(SourceKind):
    """``dataset`` is the path of a table, ``schema`` that of its description; takes what no other kind does."""

    takes = ("schema", "valid", "test")

    def matches(self, settings: SourceSettings) -> bool:
        """Return True: whatever else it may be would be the path of a table."""
        return True

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Read the table."""
        path = Path(settings.dataset)
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; --dataset also takes ml-100k and synthetic")
        if settings.schema is None:
            raise DataError(f"{path} needs a schema file that says what its columns mean: --schema FILE.toml")
        schema = Schema.from_toml(settings.schema)
        return SourceRows(read_table(path, schema), schema)
