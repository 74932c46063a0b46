"""Where rows come from (MovieLens, synthetic clicks, own files), and how they are divided."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dien_fast.data import (
    Schema,
    click_table,
    fetch_ml_100k,
    movielens_schema,
    read_movielens,
    read_table,
    split_table,
    synthetic_clicks,
)
from dien_fast.data.checks import check_table
from dien_fast.data.splitting import most_moments
from dien_fast.errors import CheckpointError, DataError
from dien_fast.progress import step
from dien_fast.training import metrics

# Settings of the schema that a command line may change.
OVERRIDES = ("negatives", "exclude_clicked", "min_count", "max_length", "share_vocabulary")

SPLITS = ("user", "global", "random")
# Reading, checking and dividing.
LOAD_STEPS = 3
_SHARES = (0.8, 0.1, 0.1)


@dataclass
class Tables:
    """The rows of a run.

    Attributes:
        train, valid, test: the three parts.
        schema: what their columns mean.
        names: what messages call the three parts.
        split: a line that says how the rows were divided, and why so.
        checked: which of the three were checked, as part of the table that they were divided from.
        best_auc: the best AUC that any model can reach on the test rows, where it is known.
    """

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    schema: Schema
    names: tuple[str, str, str]
    split: str = "split: made by the caller"
    checked: tuple[bool, bool, bool] = (False, False, False)
    best_auc: float | None = None


@dataclass
class Source:
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

    dataset: str = "ml-100k"
    schema: str | None = None
    valid: str | None = None
    test: str | None = None
    split: str | None = None
    rows: int = 40_000
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], directory: str | Path) -> Source:
        """Return the source that the run in ``directory`` stored.

        Raises:
            CheckpointError: if it stored something else.
        """
        if set(settings) != {item.name for item in fields(cls)}:
            raise CheckpointError(f"{Path(directory) / 'config.json'} does not say where the run's rows came from")
        if not isinstance(settings["overrides"], dict) or not isinstance(settings["dataset"], str):
            raise CheckpointError(f"{Path(directory) / 'config.json'} does not say where the run's rows came from")
        return cls(**settings)

    @property
    def is_movielens(self) -> bool:
        """Whether the rows are MovieLens ratings, fetched or in a directory."""
        return self.dataset == "ml-100k" or (self.schema is None and Path(self.dataset).is_dir())

    def load(self, seed: int = 0) -> Tables:
        """Read, build and divide the tables, in ``LOAD_STEPS`` steps of :func:`dien_fast.progress.steps`.

        Args:
            seed: of synthetic rows and of a random split.

        Raises:
            DataError: if a file, column or setting is not what it should be.
        """
        if self.split is not None and self.split not in SPLITS:
            raise DataError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.dataset == "synthetic":
            self._refuse("schema", "valid", "test")
            if self.rows < 100:
                raise DataError(f"rows must be at least 100 for synthetic data, got {self.rows}")
            clicks = synthetic_clicks(rows=self.rows, seed=seed)
            tables = self._divide(clicks.table, clicks.schema, seed)
            tables.best_auc = metrics.auc(
                tables.test["label"].to_numpy(), tables.test["bestProbability"].to_numpy()
            )
            return tables
        path = Path(self.dataset)
        if self.dataset == "ml-100k" and not path.exists():
            path = fetch_ml_100k(cache_directory() / "ml-100k")
        elif not path.exists():
            raise DataError(f"{path}: no such file or directory; --dataset also takes ml-100k and synthetic")
        if self.schema is None:
            if not path.is_dir():
                raise DataError(f"{path} needs a schema file that says what its columns mean: --schema FILE.toml")
            self._refuse("valid", "test")
            length = self.overrides.get("max_length", 50)
            table = click_table(*read_movielens(path), max_length=length)
            return self._divide(table, movielens_schema(table), seed)
        schema = Schema.from_toml(self.schema)
        return self._divide(read_table(path, schema), schema, seed)

    def _refuse(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise DataError(f"--{name} goes with a table of your own, not with --dataset {self.dataset}")

    def _divide(self, table: pa.Table, schema: Schema, seed: int) -> Tables:
        """Return the parts of ``table``, and the files in place of those that are given."""
        if table.num_rows == 0:
            raise DataError(f"{self.dataset}: the table has no rows")
        step()
        schema = Schema.from_dict(schema.to_dict() | self.overrides)
        check_table(table, schema, self.dataset)
        step()
        shares = np.array(_SHARES)
        given = {1: self.valid, 2: self.test}
        for part, path in given.items():
            if path is not None:
                shares[0], shares[part] = shares[0] + shares[part], 0.0
        how = self.split or _best_split(schema)
        parts = list(
            _split(table, schema, how, (float(shares[0]), float(shares[1]), float(shares[2])), seed, self.dataset)
        )
        step()
        names = [f"{self.dataset} ({part} rows)" for part in ("training", "validation", "test")]
        for part, path in given.items():
            if path is not None:
                parts[part], names[part] = read_table(path, schema), path
        if self.valid is not None and self.test is not None:
            names[0] = self.dataset
        for number, name in enumerate(names):
            if parts[number].num_rows == 0:
                # A file that was given in place of a part holds none itself.
                reason = "the table has no rows" if given.get(number) else _why_none(table, schema, how)
                raise DataError(f"{name}: there are none; {reason}")
        return Tables(
            parts[0],
            parts[1],
            parts[2],
            schema,
            (names[0], names[1], names[2]),
            split=self._describe_split(how, schema),
            checked=(True, self.valid is None, self.test is None),
        )

    def _describe_split(self, how: str, schema: Schema) -> str:
        if self.valid is not None and self.test is not None:
            return f"split: none, since validation and test rows are files ({self.valid}, {self.test})"
        line = (
            f"split: {how}, "
            + {
                "user": f"each user's own rows in the order of {schema.time!r}",
                "global": f"all rows in the order of {schema.time!r}",
                "random": "by chance",
            }[how]
        )
        if self.split is not None:
            return f"{line}, as asked for"
        if schema.time is None:
            return (
                f"{line}, since the schema names no time column: training may know what comes after the test rows"
            )
        if schema.user is None:
            return f"{line}, since the schema names a time but no user"
        return f"{line}, since the schema names user and time"


def cache_directory() -> Path:
    """Return where fetched data is kept: ``$DIEN_FAST_CACHE`` or ``~/.cache/dien-fast``."""
    return Path(os.environ.get("DIEN_FAST_CACHE") or Path.home() / ".cache" / "dien-fast")


def _best_split(schema: Schema) -> str:
    if schema.time is None:
        return "random"
    return "global" if schema.user is None else "user"


def _split(
    table: pa.Table, schema: Schema, how: str, shares: tuple[float, float, float], seed: int, source: str
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return training, validation and test rows of the given shares."""
    if how == "random":
        order = np.random.default_rng(seed).permutation(table.num_rows)
        first, second = (round(table.num_rows * bound) for bound in (shares[0], shares[0] + shares[1]))
        # Each part keeps the table's order.
        parts = (np.sort(part) for part in np.split(order, [first, second]))
        train, valid, test = (table.take(pa.array(part)) for part in parts)
        return train, valid, test
    if shares[0] == 1.0:
        return table, table.slice(0, 0), table.slice(0, 0)
    for setting, column in (("user", schema.user), ("time", schema.time)):
        if column is None and (how == "user" or setting == "time"):
            raise DataError(f"--split {how} needs a {setting} column: name it in the schema as {setting} = ...")
    return split_table(table, how, shares, user=schema.user or "", time=schema.time or "", source=source)


def _why_none(table: pa.Table, schema: Schema, how: str) -> str:
    """Return why a split leaves one of the three parts without rows, and which other split does not."""
    if how == "user":
        most = most_moments(table, user=schema.user or "", time=schema.time or "")
        reason = (
            "--split user puts the last tenths of each user's rows aside, but no user has rows at more than "
            f"{most} different {'time' if most == 1 else 'times'}"
        )
    elif how == "global":
        reason = (
            f"--split global divides the rows in time, but of {table.num_rows} rows too many have the same time"
        )
    else:
        reason = f"the table has {table.num_rows} rows, too few to divide"
    for other in ("global", "random"):
        if other != how and (other == "random" or schema.time is not None):
            parts = _split(table, schema, other, _SHARES, 0, "table")
            if all(part.num_rows for part in parts):
                return f"{reason}; --split {other} works for this table"
    return reason
