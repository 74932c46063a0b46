"""Where rows come from (MovieLens, synthetic clicks, own files), and how they are divided."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pyarrow as pa

from dien_fast.data.checks import check_table
from dien_fast.data.columns import is_list
from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.sources.dividing import Parts, divide
from dien_fast.data.sources.movielens import MovieLensSource, cache_directory
from dien_fast.data.sources.next_event import NextEventSource
from dien_fast.data.sources.official import OfficialSource
from dien_fast.data.sources.prepared import PreparedParts, PreparedSource
from dien_fast.data.sources.synthetic import SyntheticSource
from dien_fast.data.sources.table import TableSource
from dien_fast.data.splitting import SPLITS
from dien_fast.data.synthetic import shuffle_histories
from dien_fast.data.tables import get_column
from dien_fast.errors import DataError
from dien_fast.progress import step

__all__ = [
    "KINDS",
    "LOAD_STEPS",
    "OVERRIDES",
    "SPLITS",
    "TASKS",
    "Parts",
    "PreparedParts",
    "Source",
    "SourceKind",
    "SourceRows",
    "SourceSettings",
    "cache_directory",
]

# Settings of the schema that a command line may change.
OVERRIDES = ("negatives", "exclude_clicked", "min_count", "max_length", "share_vocabulary")

# The first kind that matches a source reads it.
KINDS: tuple[SourceKind, ...] = (
    PreparedSource(),
    NextEventSource(),
    OfficialSource(),
    SyntheticSource(),
    MovieLensSource(),
    TableSource(),
)

# "label": tell the rows with label 1 from those with 0; "next": tell the item of a user's next event from others.
TASKS = ("label", "next")

# Reading, checking and dividing.
LOAD_STEPS = 3


@dataclass
class Source(SourceSettings):
    """A description of where the rows come from, short enough to be stored with the run.

    Attributes:
        dataset: "ml-100k", "synthetic", a MovieLens directory, a directory that the official code has prepared, or
            the path of a table or of a directory of prepared data; with ``task="next"`` a log of events (see
            :func:`dien_fast.data.read_events`).
        schema: path of the TOML schema of a table; not for the others, which know theirs.
        valid: path of a table with the validation rows; None takes a tenth of ``dataset``.
        test: path of a table with the test rows; None takes a tenth of ``dataset``.
        split: "user", "users", "global" or "random"; None takes what the source says, else the first of "user",
            "global" and "random" that the schema's columns allow.
        rows: how many rows of synthetic data.
        task: "label" predicts the label of each row, "next" which item a user's next event has.
        first_event: of the task "next", the first event of a user to predict, counted from 1; None predicts the
            last alone.
        sampled: of the task "next", the items sampled as not clicked for each event.
        sampling: "uniform" samples every item equally often, "popularity" as often as it has events.
        shuffle_histories: put each history in random order, to see what a model learns from the order.
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

    def open(self, seed: int = 0) -> Parts | PreparedParts:
        """Return the rows: prepared ones as they lie on the disk, all others as :meth:`load` does.

        Args:
            seed: as for :meth:`load`.

        Raises:
            DataError: as :meth:`load`.
        """
        if not isinstance(self.kind, PreparedSource):
            return self.load(seed)
        self._check()
        found = self.kind.open(self)
        for _ in range(LOAD_STEPS):
            step()
        return found

    def load(self, seed: int = 0) -> Parts:
        """Read, check and divide the rows, in ``LOAD_STEPS`` steps of :func:`dien_fast.progress.steps`.

        Args:
            seed: of synthetic rows and of a random split.

        Raises:
            DataError: if a file, column or setting is not what it should be.
        """
        self._check()
        rows = self.kind.read(self, seed)
        if self.shuffle_histories:
            rows = replace(rows, table=_shuffled(rows, self.dataset, seed))
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

    def _check(self) -> None:
        """Refuse settings that do not exist or do not go together."""
        for name, choices in (("task", TASKS), ("split", SPLITS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise DataError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.shuffle_histories and (self.valid or self.test):
            raise DataError("--shuffle-histories would leave the rows of --valid and --test as they are")
        where = "--task next" if self.task == "next" else f"--dataset {self.dataset}"
        for name in ("schema", "valid", "test"):
            if getattr(self, name) is not None and name not in self.kind.takes:
                raise DataError(f"--{name} goes with a table of your own, not with {where}")
        for item in fields(SourceSettings):
            changed = getattr(self, item.name) != item.default
            if (
                item.name in ("first_event", "sampled", "sampling")
                and changed
                and item.name not in self.kind.takes
            ):
                raise DataError(f"--{item.name.replace('_', '-')} goes with --task next")


def _shuffled(rows: SourceRows, source: str, seed: int) -> pa.Table:
    """Return the rows with each history in random order, which is the same for the histories of a group."""
    table = rows.table
    if rows.test is not None:
        raise DataError(f"--shuffle-histories would leave the test rows of {source} as they are")
    for name in rows.schema.histories():
        if not is_list(get_column(table, name, source).type):
            raise DataError(f"{source}: column {name!r}: --shuffle-histories needs lists, not text; write Parquet")
        table = shuffle_histories(table, name, seed)
    return table
