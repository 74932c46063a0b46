"""Prepared data: a directory of shards with their encoders, opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dien_fast.data.encoders import NumericEncoder
from dien_fast.data.encoding import UnknownWords
from dien_fast.data.fitting import Encoders
from dien_fast.data.negatives import NegativeSampler, Tuples
from dien_fast.data.prepared.manifest import MANIFEST, PARTS, PROGRESS, TITLES, Manifest
from dien_fast.data.prepared.rows import WINDOW_BYTES, PreparedDataset
from dien_fast.data.schema import Group, Schema
from dien_fast.data.utf8 import check_name
from dien_fast.errors import DataError
from dien_fast.files import write_atomically


class PreparedData:
    """A directory that :func:`dien_fast.data.prepare` or ``dien-fast prepare`` has written.

    Args:
        directory: its path.

    Attributes:
        directory: its path.
        schema: what the columns mean.
        encoders: fitted to the training rows.
        rows: of "train", "valid" and "test".
        split: a line that says how the rows were divided.

    Raises:
        DataError: the directory holds no prepared data, or a file in it is missing or damaged.

    Example:
        >>> prepared = PreparedData("prepared")  # doctest: +SKIP
        >>> loader = EpochLoader(prepared.dataset("train"), 128, shuffle=True)  # doctest: +SKIP
        >>> PreparedData("nowhere")
        Traceback (most recent call last):
        dien_fast.errors.DataError: nowhere holds no prepared data: it has no manifest.json
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        check_name(self.directory)
        if not (self.directory / MANIFEST).is_file():
            why = "its preparation was interrupted; go on with the same dien-fast prepare"
            if not (self.directory / PROGRESS).is_dir():
                why = f"it has no {MANIFEST}"
            raise DataError(f"{self.directory} holds no prepared data: {why}")
        self._manifest = Manifest.load(self.directory)
        self._manifest.check_files(self.directory)
        self.schema = self._manifest.click_schema
        self.encoders = Encoders.load(self.directory / "encoders")
        self.rows = dict(self._manifest.rows)
        self.split = self._manifest.split

    def schema_with(self, changes: Mapping[str, Any]) -> Schema:
        """Return the schema with other settings, of which only those of drawing negatives can change.

        Args:
            changes: the settings by name.

        Raises:
            DataError: naming a setting that was fixed when the data were prepared.
        """
        drawn = ("uniform", "popularity")
        for name, value in changes.items():
            now = getattr(self.schema, name)
            draws = name == "negatives" and now in drawn and value in (*drawn, "none")
            if value != now and not draws and name != "exclude_clicked":
                raise DataError(
                    f"{self.directory}: {name} = {now!r} was fixed when the data were prepared; to train with "
                    f"{value!r}, prepare them anew with it in the schema"
                )
        return Schema.from_dict(self.schema.to_dict() | dict(changes))

    def encoders_of(self, schema: Schema) -> Encoders:
        """Return the encoders of the features of a schema, which may lack some of the data's."""
        names = [*schema.numeric, *schema.categorical, *schema.sequence_features()]
        return Encoders({name: self.encoders[name] for name in names})

    def negatives(self, schema: Schema | None = None, seed: int = 0) -> NegativeSampler | None:
        """Return the sampler of negatives, fitted to the training rows; None where the schema draws none.

        Args:
            schema: of :meth:`schema_with`, or the data's own.
            seed: what the draws depend on.
        """
        schema = self.schema if schema is None else schema
        if not schema.groups or schema.negatives not in ("uniform", "popularity"):
            return None
        tuples = {
            group.name: load_tuples(group, self.directory / negatives_file(number))
            for number, group in enumerate(schema.groups)
        }
        return NegativeSampler.of(tuples, schema, self.encoders, seed)

    def dataset(
        self,
        part: str,
        schema: Schema | None = None,
        *,
        negatives: NegativeSampler | None = None,
        require_label: bool = True,
        window_bytes: int = WINDOW_BYTES,
    ) -> PreparedDataset:
        """Return a part as a data set.

        Args:
            part: "train", "valid" or "test".
            schema: of :meth:`schema_with`, or the data's own; it may lack negatives and times.
            negatives: draws the negative histories; None leaves them out.
            require_label: whether batches are to have labels.
            window_bytes: how much of the files is in memory, and shuffled, at once.

        Raises:
            DataError: there is no such part.
        """
        if part not in PARTS:
            raise DataError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        schema = self.schema if schema is None else schema
        unknown = {}
        for name, (words, strange) in self._manifest.unknown[part].items():
            encoder = self.encoders[name]
            assert not isinstance(encoder, NumericEncoder)
            training = None if encoder.coverage_ is None else encoder.coverage_.unknown
            unknown[name] = UnknownWords(words, strange, training)
        return PreparedDataset(
            self.directory,
            [shard for shard in self._manifest.shards if shard.part == part],
            schema,
            self.encoders,
            unknown,
            negatives=negatives,
            require_label=require_label,
            window_bytes=window_bytes,
        )

    def name(self, part: str) -> str:
        """Return what messages call a part."""
        return f"{self.directory} ({TITLES[part]} rows)"


def negatives_file(number: int) -> str:
    """Return the name of the file with what the group of this number draws."""
    return f"negatives-{number}.arrow"


def save_tuples(tuples: Tuples, group: Group, path: Path) -> None:
    """Write what a group draws."""
    columns = {f"{number}": pa.array(values, pa.int32()) for number, values in enumerate(tuples.values)}
    table = pa.table(columns | {"times": pa.array(tuples.times)})
    with (
        write_atomically(path) as unfinished,
        unfinished.open("wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def load_tuples(group: Group, path: Path) -> Tuples:
    """Read what :func:`save_tuples` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            names = [str(number) for number in range(len(group.pairs))]
            values = [table[name].to_numpy().astype("int64") for name in names]
            return Tuples(values, table["times"].to_numpy().astype("int64"))
    except (OSError, KeyError, pa.ArrowException):
        raise DataError(f"{path}: what negatives are drawn from is missing or damaged") from None
