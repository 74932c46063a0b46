"""Where rows come from (MovieLens, synthetic clicks, own files), and how they are divided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dien_fast.data.checks import check_table
from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.sources.dividing import SPLITS, Parts, divide
from dien_fast.data.sources.movielens import MovieLensSource, cache_directory
from dien_fast.data.sources.synthetic import SyntheticSource
from dien_fast.data.sources.table import TableSource
from dien_fast.errors import DataError
from dien_fast.progress import step

__all__ = [
    "KINDS",
    "LOAD_STEPS",
    "OVERRIDES",
    "SPLITS",
    "Parts",
    "Source",
    "SourceKind",
    "SourceRows",
    "SourceSettings",
    "cache_directory",
]

# Settings of the schema that a command line may change.
OVERRIDES = ("negatives", "exclude_clicked", "min_count", "max_length", "share_vocabulary")

# The first kind that matches a source reads it.
KINDS: tuple[SourceKind, ...] = (SyntheticSource(), MovieLensSource(), TableSource())

# Reading, checking and dividing.
LOAD_STEPS = 3


@dataclass
class Source(SourceSettings):
    """A description of where the rows come from, short enough to be stored with the run.

    Attributes:
        dataset: "ml-100k", "synthetic", a MovieLens directory, or the path of a table.
        schema: path of the TOML schema of a table; not for the others, which know theirs.
        valid: path of a table with the validation rows; None takes a tenth of ``dataset``.
        test: path of a table with the test rows; None takes a tenth of ``dataset``.
        split: "user", "global" or "random"; None takes the first that the schema's columns allow.
        rows: how many rows of synthetic data.
        overrides: settings of the schema (those in ``OVERRIDES``) that replace its own.

    Example:
        >>> Source("synthetic", rows=400).load(seed=0).train.num_rows
        306
    """

    @property
    def kind(self) -> SourceKind:
        """The kind of source that this describes."""
        return next(kind for kind in KINDS if kind.matches(self))

    @property
    def is_movielens(self) -> bool:
        """Whether the rows are MovieLens ratings, fetched or in a directory."""
        return isinstance(self.kind, MovieLensSource)

    def load(self, seed: int = 0) -> Parts:
        """Read, check and divide the rows, in ``LOAD_STEPS`` steps of :func:`dien_fast.progress.steps`.

        Args:
            seed: of synthetic rows and of a random split.

        Raises:
            DataError: if a file, column or setting is not what it should be.
        """
        if self.split is not None and self.split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name in ("schema", "valid", "test"):
            if getattr(self, name) is not None and name not in self.kind.takes:
                raise DataError(f"--{name} goes with a table of your own, not with --dataset {self.dataset}")
        rows = self.kind.read(self, seed)
        if rows.table.num_rows == 0:
            raise DataError(f"{self.dataset}: the table has no rows")
        step()
        schema = Schema.from_dict(rows.schema.to_dict() | self.overrides)
        # Now, while a row still has the number that it has in the file.
        check_table(rows.table, schema, self.dataset)
        step()
        parts = divide(replace(rows, schema=schema), self, seed)
        step()
        return parts
