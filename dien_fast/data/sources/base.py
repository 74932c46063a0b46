"""What all kinds of sources have in common: the settings they are described by, and the rows they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa

from dien_fast.data.schema import Schema
from dien_fast.errors import CheckpointError


@dataclass
class SourceSettings:
    """Where rows come from, as a command line says it and a run stores it: see :class:`Source`."""

    dataset: str = "ml-100k"
    schema: str | None = None
    valid: str | None = None
    test: str | None = None
    split: str | None = None
    rows: int = 40_000
    task: str = "label"
    first_event: int | None = None
    sampled: int = 1
    sampling: str = "uniform"
    shuffle_histories: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], directory: str | Path) -> Self:
        """Return the settings that the run in ``directory`` stored.

        Raises:
            CheckpointError: if it stored something else.
        """
        # Settings that came later have their defaults.
        known = {"dataset", "overrides"} <= set(settings) <= {item.name for item in fields(cls)}
        if not (known and isinstance(settings["overrides"], dict) and isinstance(settings["dataset"], str)):
            raise CheckpointError(f"{Path(directory) / 'config.json'} does not say where the run's rows came from")
        return cls(**settings)


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source, before they are divided.

    Attributes:
        table: all rows, in the order that messages number them.
        schema: what their columns mean.
        best_column: the column with the best prediction that is possible, where it is known.
        best_column_in_time: the same for models that know when the events of a history were.
        split: how to divide them unless the settings say so, and the reason; None decides by the schema.
        test: test rows that the source keeps apart, and what messages call them.
        notes: a sentence for everything that a reader should know about the rows.
    """

    table: pa.Table
    schema: Schema
    best_column: str | None = None
    best_column_in_time: str | None = None
    split: tuple[str, str] | None = None
    test: tuple[pa.Table, str] | None = None
    notes: tuple[str, ...] = ()


class SourceKind(ABC):
    """A kind of source. A new kind is a file with a subclass, and a line in ``KINDS`` of the package.

    Attributes:
        takes: which of the settings ``schema``, ``valid``, ``test`` and those of the task "next" go with it.
    """

    takes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, settings: SourceSettings) -> bool:
        """Return whether these settings describe a source of this kind."""

    @abstractmethod
    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Return the rows.

        Args:
            settings: a description of this kind.
            seed: of rows that are drawn.

        Raises:
            DataError: if a file or setting is not what it should be.
        """
