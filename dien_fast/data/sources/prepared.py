"""Rows that were divided and encoded before, by ``dien-fast prepare``."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dien_fast.data.dataset import ClickDataset
from dien_fast.data.fitting import Encoders
from dien_fast.data.prepared.data import PreparedData
from dien_fast.data.prepared.manifest import PARTS, is_prepared
from dien_fast.data.schema import Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.errors import DataError


@dataclass
class PreparedParts:
    """The rows of a run, in place of :class:`Parts`, which lie on the disk.

    Attributes:
        data: the prepared data.
        schema: what their columns mean, with the settings of this run.
        best_column: as for :class:`Parts`.
        best_column_in_time: as for :class:`Parts`.
        notes: as for :class:`Parts`.
    """

    data: PreparedData
    schema: Schema
    best_column: str | None = None
    best_column_in_time: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """A line that says how the rows were divided, and why so."""
        return self.data.split

    def learn(self, schema: Schema) -> Encoders:
        """Return the encoders of the data, for the features of ``schema``."""
        return self.data.encoders_of(schema)

    def datasets(self, schema: Schema, encoders: Encoders, seed: int) -> list[ClickDataset]:
        """Return the three parts as data sets; the arguments are those of :class:`Parts`."""
        negatives = self.data.negatives(schema, seed)
        return [self.data.dataset(part, schema, negatives=negatives) for part in PARTS]


class PreparedSource(SourceKind):
    """``dataset`` is a directory that ``dien-fast prepare`` has written."""

    def matches(self, settings: SourceSettings) -> bool:
        """Return whether the directory is one."""
        return is_prepared(settings.dataset)

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Refuse to: such rows are opened, not read."""
        raise DataError(f"{settings.dataset} holds prepared data, which are no table; open them as a whole")

    def open(self, settings: SourceSettings) -> PreparedParts:
        """Return the rows.

        Raises:
            DataError: they are damaged, or a setting was decided when they were prepared.
        """
        for name in ("split", "task", "shuffle_histories"):
            default = next(item.default for item in fields(SourceSettings) if item.name == name)
            if getattr(settings, name) != default:
                option = f"--{name.replace('_', '-')}"
                raise DataError(
                    f"{option} goes with a table; the rows of {settings.dataset} were divided and encoded when "
                    "they were prepared"
                )
        data = PreparedData(settings.dataset)
        return PreparedParts(data, data.schema_with(settings.overrides))
