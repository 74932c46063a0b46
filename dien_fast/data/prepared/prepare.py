"""From files of clicks of any size to shards of ids: what ``dien-fast prepare`` does.

The files are read twice: once to learn the encoders from the training rows, and once to encode all rows. A split
in time reads users and times before that, and groups of several pairs read all once more, to collect the tuples
that negatives are drawn from. In memory are the vocabularies and a few batches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dien_fast.data.checks import HistoryZeros, check_table
from dien_fast.data.columns import as_column, count_missing
from dien_fast.data.encoders import NumericEncoder
from dien_fast.data.fitting import EncoderFitter, Encoders
from dien_fast.data.negatives import collect_tuples
from dien_fast.data.prepared.data import PreparedData, negatives_file, save_tuples
from dien_fast.data.prepared.dividing import Division, divide_in_time
from dien_fast.data.prepared.encoder import ArrowEncoder
from dien_fast.data.prepared.files import RowBatch, TableFiles, described
from dien_fast.data.prepared.manifest import (
    MANIFEST,
    PARTS,
    PROGRESS,
    TITLES,
    VERSION,
    Manifest,
    Shard,
    check_size,
    file_digest,
)
from dien_fast.data.prepared.shards import BLOCK_ROWS, ShardWriter
from dien_fast.data.schema import ROW_KEY, Schema
from dien_fast.data.splitting import SPLITS, Shares, check_split, default_split, describe_split
from dien_fast.data.tables import get_column, reading
from dien_fast.data.utf8 import check_name
from dien_fast.errors import DataError
from dien_fast.files import (
    LOCK,
    lock_directory,
    make_directory,
    parse_json,
    remove_unfinished,
    sync_directory,
    write_atomically,
)
from dien_fast.progress import Progress, progress_bar

# The rows of the input that go into shards together: an interruption loses less than one such range.
RANGE_ROWS = 1 << 20


def prepare(
    dataset: str | Path,
    schema: Schema,
    output: str | Path,
    *,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    split: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> PreparedData:
    """Encode the rows of files of any size into a directory that training reads in place of a table.

    A preparation that was interrupted goes on where it was, if files and settings are the same.

    Args:
        dataset: path, directory, pattern such as ``clicks/**/*.parquet``, or URI of CSV or Parquet files.
        schema: what the columns mean.
        output: the directory to write; its manifest comes last.
        valid: the validation rows, likewise; None takes a tenth of ``dataset``.
        test: the test rows, likewise; None takes a tenth of ``dataset``.
        split: "user" or "global", the rules of :func:`dien_fast.data.split_table`; "users" or "random", which put
            each user or row into a part by chance; None takes the first of "user", "global" and "random" that the
            schema's columns allow.
        seed: of "users" and "random".
        overwrite: replace what ``output`` holds, a preparation that was interrupted too.
        progress: show a progress bar on stderr.

    Returns:
        The prepared data.

    Raises:
        DataError: a file, column or setting is not what it should be, or ``output`` holds something else.
        OSError: the directory cannot be written: no space is left, for example.

    Example:
        >>> import tempfile, pyarrow.parquet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = pa.table({"item": [7, 8] * 20, "label": [0, 1] * 20})
        ...     pyarrow.parquet.write_table(table, f"{folder}/clicks.parquet")
        ...     prepare(f"{folder}/*.parquet", Schema(categorical=["item"]), f"{folder}/prepared").rows
        {'train': 35, 'valid': 3, 'test': 2}
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    how, reason = (split, "as asked for") if split is not None else default_split(schema)
    shares = Shares.without(valid is not None, test is not None)
    if shares.train < 1:
        check_split(how, schema)
    inputs = [Input(TableFiles(dataset, schema), None)]
    inputs += [Input(TableFiles(path, schema), part) for part, path in ((1, valid), (2, test)) if path is not None]
    names = [None if path is None else str(path) for path in (valid, test)]
    work = _Preparation(
        Path(output), schema, inputs, Division(how, shares, seed), describe_split(how, reason, schema, *names)
    )
    output = Path(output)
    check_name(output)
    make_directory(output)
    with lock_directory(output, "prepares data there", DataError):
        work.begin(overwrite)
        work.run(progress)
    return PreparedData(output)


@dataclass
class Input:
    """Files of rows.

    Attributes:
        files: the files.
        part: the part that all their rows belong to, or None if they are divided.
    """

    files: TableFiles
    part: int | None


class _Preparation:
    """The work of :func:`prepare`, in steps that each leave a file when they are done."""

    def __init__(self, output: Path, schema: Schema, inputs: list[Input], division: Division, split: str) -> None:
        self._output, self._place = output, output / PROGRESS
        self._schema, self._inputs, self._division, self._split = schema, inputs, division, split
        self._columns = sorted(schema.columns())
        self._in_time = self._place / "parts"
        plan = {
            "version": VERSION,
            "inputs": [described(one.files.files) for one in inputs],
            "schema": schema.to_dict(),
            "division": [division.how, list(division.shares), division.seed],
            "rows": [RANGE_ROWS, BLOCK_ROWS],
        }
        self._plan = json.loads(json.dumps(plan))

    def begin(self, overwrite: bool) -> None:
        """Make the directory ready: empty, or as an interrupted preparation of the same data left it.

        Raises:
            DataError: if it holds something else.
        """
        output = self._output
        if overwrite:
            remove_prepared(output)
        elif (output / MANIFEST).exists():
            raise DataError(f"{output} holds prepared data already; --overwrite replaces them")
        if self._place.is_dir():
            if _read(self._place / "plan.json") == self._plan:
                remove_unfinished(output)
                return
            if (self._place / "learnt.json").exists():
                raise DataError(
                    f"{output} holds a preparation of other files or settings that was interrupted; --overwrite "
                    "starts anew"
                )
            remove_prepared(output)
        elif any(path.name != LOCK for path in output.iterdir()):
            raise DataError(f"{output} is not empty and holds no prepared data; name another directory")
        self._place.mkdir(exist_ok=True)
        _write(self._place / "plan.json", self._plan)

    def run(self, progress: bool) -> None:
        """Do what is left to do."""
        learnt = _read(self._place / "learnt.json")
        if learnt is None:
            learnt = self._learn(progress)
            _write(self._place / "learnt.json", learnt)
        encoders = Encoders.load(self._output / "encoders")
        self._encode(encoders, sum(learnt["rows"]), progress)
        self._finish(encoders, learnt)
        shutil.rmtree(self._place)

    def _learn(self, progress: bool) -> dict[str, Any]:
        """Divide the rows, check them, and learn the encoders and what negatives are drawn from."""
        schema, main = self._schema, self._inputs[0].files
        if self._division.needs_times:
            names = [name for name in (schema.user, schema.time) if name is not None]
            divide_in_time(main.batches(sorted(set(names))), schema, self._division, self._in_time)
        fitter, counts = EncoderFitter(schema), np.zeros(3, np.int64)
        zeros = {name: HistoryZeros(schema.separator) for name in schema.histories()}
        total = sum(file.size for one in self._inputs for file in one.files.files)
        with progress_bar(total, "learning", "bytes", progress) as bar:
            for number, one in enumerate(self._inputs):
                for batch in one.files.batches(self._columns, on_file=bar.update):
                    self._check(batch, zeros)
                    parts = self._parts(number, batch)
                    counts += np.bincount(parts, minlength=3)
                    if (parts == 0).any():
                        fitter.add(batch.table.filter(pa.array(parts == 0)), batch.source)
        self._refuse_empty(counts)
        for found in zeros.values():
            if found.problem is not None:
                raise DataError(found.problem)
        encoders = fitter.encoders(f"{main.dataset} (training rows)")
        encoders.save(self._output / "encoders")
        self._collect_negatives(fitter, encoders)
        return {"rows": counts.tolist()}

    def _check(self, batch: RowBatch, zeros: dict[str, HistoryZeros]) -> None:
        check_table(batch.table, self._schema, batch.source, zero_known=list(zeros))
        for name, found in zeros.items():
            with reading(batch.table, name, batch.source) as column:
                found.add(column, f"{batch.source}: column {name!r}: ")
            for pair in self._schema.pairs():
                if pair.pos_hist == name:
                    found.add_candidates(get_column(batch.table, pair.ad, batch.source))

    def _parts(self, number: int, batch: RowBatch) -> np.ndarray:
        """Return int8 ``[rows]``, the part of each row of a batch of the input of this number."""
        part = self._inputs[number].part
        if part is not None:
            return np.full(batch.table.num_rows, part, np.int8)
        return self._division.parts(batch, self._schema, self._in_time)

    def _refuse_empty(self, counts: np.ndarray) -> None:
        for count, part in zip(counts, PARTS, strict=True):
            if not count:
                source = self._inputs[0].files.dataset
                raise DataError(
                    f"{source} ({TITLES[part]} rows): there are none among its {counts.sum():,} rows with --split "
                    f"{self._division.how}; --split random divides any table of some dozens of rows"
                )

    def _collect_negatives(self, fitter: EncoderFitter, encoders: Encoders) -> None:
        schema = self._schema
        if schema.negatives not in ("uniform", "popularity"):
            return
        for number, group in enumerate(schema.groups):
            counters = [(fitter.counter(pair.ad), fitter.counter(pair.pos_hist)) for pair in group.pairs]
            tuples = collect_tuples(self._training_rows(), schema, group, encoders, counters)
            save_tuples(tuples, group, self._output / negatives_file(number))

    def _training_rows(self) -> Iterator[pa.Table]:
        for batch in self._inputs[0].files.batches(self._columns):
            yield batch.table.filter(pa.array(self._parts(0, batch) == 0))

    def _encode(self, encoders: Encoders, rows: int, progress: bool) -> None:
        """Write the shards that are not there yet."""
        encoder = ArrowEncoder(self._schema, encoders)
        with progress_bar(rows, "encoding", "rows", progress) as bar:
            for number, one in enumerate(self._inputs):
                ready = self._ranges_done(number)
                bar.update(sum(ready))
                batches = _in_ranges(one.files.batches(self._columns, first=len(ready) * RANGE_ROWS))
                for place, pieces in groupby(batches, key=lambda batch: batch.first // RANGE_ROWS):
                    self._write_range(number, place, pieces, encoder, bar)

    def _ranges_done(self, number: int) -> list[int]:
        """Return the rows of the ranges of an input whose shards are whole."""
        rows: list[int] = []
        while (journal := _read(self._journal(number, len(rows)))) is not None:
            try:
                for shard in map(Shard.from_dict, journal["shards"]):
                    check_size(self._output / shard.file, shard.size)
            except DataError:
                break
            rows.append(journal["rows"])
        return rows

    def _journal(self, number: int, place: int) -> Path:
        return self._place / f"{number}-{place:06d}.json"

    def _write_range(
        self, number: int, place: int, batches: Iterable[RowBatch], encoder: ArrowEncoder, bar: Progress
    ) -> None:
        """Write the shards of a range of rows, and then the note that they are there."""
        writers: dict[int, ShardWriter] = {}
        unknown = {part: _UnknownCounts(self._schema, encoder.encoders) for part in PARTS}
        rows = 0
        with ExitStack() as open_files:
            for batch in batches:
                encoded = encoder.encode_checked(batch.table, batch.source)
                numbers = np.arange(batch.first, batch.first + batch.table.num_rows)
                encoded = encoded.append_column(ROW_KEY, pa.array(numbers))
                parts = self._parts(number, batch)
                for part in np.unique(parts).tolist():
                    chosen = pa.array(parts == part)
                    if part not in writers:
                        path = self._output / f"{PARTS[part]}-{number}-{place:06d}.arrow"
                        writers[part] = open_files.enter_context(ShardWriter(path, PARTS[part]))
                    mine = encoded.filter(chosen)
                    unknown[PARTS[part]].add(batch.table.filter(chosen), mine)
                    writers[part].add(mine)
                rows += batch.table.num_rows
                bar.update(batch.table.num_rows)
        shards = [writer.shard.to_dict() for writer in writers.values() if writer.shard is not None]
        counts = {part: found.counts for part, found in unknown.items()}
        _write(self._journal(number, place), {"rows": rows, "shards": shards, "unknown": counts})

    def _finish(self, encoders: Encoders, learnt: dict[str, Any]) -> None:
        """Write the manifest."""
        journals = [_read(path) for path in sorted(self._place.glob("[0-9]-*.json"))]
        shards = [Shard.from_dict(shard) for journal in journals for shard in journal["shards"]]
        unknown: dict[str, dict[str, list[int]]] = {part: {} for part in PARTS}
        for journal in journals:
            for part, columns in journal["unknown"].items():
                for name, counts in columns.items():
                    before = unknown[part].get(name, [0, 0])
                    unknown[part][name] = [old + new for old, new in zip(before, counts, strict=True)]
        files = [path for path in (self._output / "encoders").iterdir() if not path.name.startswith(".")]
        files += list(self._output.glob("negatives-*.arrow"))
        Manifest(
            schema=self._schema.to_dict(),
            source={"dataset": self._inputs[0].files.dataset, "files": self._plan["inputs"]},
            split=self._split,
            fingerprint=encoders.fingerprint(),
            rows=dict(zip(PARTS, learnt["rows"], strict=True)),
            shards=shards,
            unknown=unknown,
            checksums={str(path.relative_to(self._output)): file_digest(path) for path in sorted(files)},
        ).save(self._output)


class _UnknownCounts:
    """Counts words, and those that the encoders do not know, of the rows of a part."""

    def __init__(self, schema: Schema, encoders: Encoders) -> None:
        self._names = [name for name in encoders if not isinstance(encoders[name], NumericEncoder)]
        self._schema, self._encoders = schema, encoders
        self.counts: dict[str, list[int]] = {}

    def add(self, table: pa.Table, encoded: pa.Table) -> None:
        """Count the words of rows, given as they were read and encoded."""
        for name in self._names:
            if name not in encoded.column_names:
                # Drawn negatives are in no table.
                continue
            column = encoded[name].combine_chunks()
            listed = pa.types.is_list(column.type)
            ids = (column.flatten() if listed else column).to_numpy()
            missing = 0 if listed else count_missing(as_column(get_column(table, name, "table")))
            unknown = int(np.count_nonzero(ids == self._encoders.unknown(name)))
            before = self.counts.setdefault(name, [0, 0])
            before[0] += len(ids) - missing
            before[1] += unknown - missing


def _in_ranges(batches: Iterable[RowBatch]) -> Iterator[RowBatch]:
    """Yield the rows in batches that lie in one range of rows each."""
    for batch in batches:
        begin = 0
        while begin < batch.table.num_rows:
            first = batch.first + begin
            rows = RANGE_ROWS - first % RANGE_ROWS
            yield RowBatch(batch.table.slice(begin, rows), batch.source, first)
            begin += rows


def remove_prepared(directory: Path) -> None:
    """Remove prepared data, the manifest first, and what an interrupted preparation left."""
    progress = directory / PROGRESS
    # It goes last: by it, what a kill leaves is told from another program's files.
    progress.mkdir(exist_ok=True)
    for path in (progress / "learnt.json", progress / "plan.json", directory / MANIFEST):
        path.unlink(missing_ok=True)
    sync_directory(directory)
    shutil.rmtree(directory / "encoders", ignore_errors=True)
    for pattern in ("negatives-*.arrow", *(f"{part}-*-*.arrow" for part in PARTS)):
        for path in directory.glob(pattern):
            path.unlink()
    remove_unfinished(directory)
    shutil.rmtree(progress)


def _read(path: Path) -> Any:
    """Return the content of a JSON file, or None where there is none that is whole."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, content: Any) -> None:
    with write_atomically(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")
