"""States of users that outlive a request: a new event costs one step of the extractor, a request no history."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from dien_fast.data import read_table
from dien_fast.data.tables import no_column
from dien_fast.errors import DataError, DienFastError
from dien_fast.ragged import Ragged
from dien_fast.training.candidates import encode_request

if TYPE_CHECKING:
    from dien_fast.training.runs import Run

_DIGEST = 16  # bytes of a fingerprint


class StateStore(ABC):
    """Bytes by the name of a user."""

    @abstractmethod
    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""

    @abstractmethod
    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values by user, all or none, in place of what was kept."""


class MemoryStore(StateStore):
    """A store in this process.

    Example:
        >>> store = MemoryStore()
        >>> store.put({"ann": b"1"})
        >>> store.get(["ann", "bob"])
        [b'1', None]
    """

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""
        return [self._values.get(user) for user in users]

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values by user, in place of what was kept."""
        self._values.update(values)


class LmdbStore(StateStore):
    """A store on the disk, which other processes of this machine read at the same time.

    LMDB rather than RocksDB, which one process opens at a time.

    Args:
        path: a directory, which is made if needed.
        size: bytes that the store may grow to; the file has no holes of that size.

    Raises:
        ImportError: lmdb is not installed.

    Example:
        >>> LmdbStore("states")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, size: int = 2**36) -> None:
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise ImportError('lmdb is not installed: pip install "dien-fast[serve]"') from error
        self.path = Path(path)
        self._full = lmdb.MapFullError
        self._environment = lmdb.open(str(path), map_size=size)

    def get(self, users: Sequence[str]) -> list[bytes | None]:
        """Return what is kept of users, None where there is nothing."""
        with self._environment.begin() as transaction:
            return [transaction.get(_key(user)) for user in users]

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keep values by user, all or none, in place of what was kept.

        Raises:
            DienFastError: the store is full.
        """
        try:
            with self._environment.begin(write=True) as transaction:
                for user, value in values.items():
                    transaction.put(_key(user), value)
        except self._full:
            size = self._environment.info()["map_size"]
            raise DienFastError(f"the store {self.path} is full: it has grown to {size} bytes") from None


def _key(user: str) -> bytes:
    # LMDB takes keys of at most 511 bytes.
    return hashlib.blake2b(user.encode(), digest_size=_DIGEST).digest()


class UserStates:
    """The states of users by name, which take the place of their histories.

    States are those of the newest ``max_length`` events. Scores equal those of
    :meth:`dien_fast.training.runs.Run.score_candidates` for the whole history, to rounding, until it is longer
    than that: from then on the states still know the older events, which ``score_candidates`` does not read.

    Calls of several threads are safe. Of several processes, let one write.

    Args:
        run: a DIEN.
        store: where the states are.

    Raises:
        DienFastError: the run's model has no states.

    Example:
        >>> states = UserStates(dien_fast.load("runs/clicks"), MemoryStore())  # doctest: +SKIP
        >>> states.extend(["ann"], {"past_items": [["i9"]], "past_brands": [["b3"]]})  # doctest: +SKIP
        >>> states.score_candidates(["ann"], {}, {"item": [["i3"]], "brand": [["b3"]]})  # doctest: +SKIP
    """

    def __init__(self, run: Run, store: StateStore) -> None:
        if run.config.model != "dien":
            raise DienFastError(f"states are kept for dien alone, the run {run.directory} is {run.config.model}")
        for pair in run.schema.pairs():
            if run.encoders.sequence(pair.pos_hist).keep != "newest":
                raise DienFastError(
                    f"states need the newest events of {pair.pos_hist!r}, the run keeps the oldest"
                )
        self.run, self.store = run, store
        self.fingerprint = _fingerprint(run)
        self._writing = threading.Lock()
        nothing = Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 0)
        states = run.model.extract_states({pair.pos_hist: nothing for pair in run.schema.pairs()})
        self._widths = {name: value.values.size(1) for name, value in states.items()}
        self._longest = {
            group.name: max(run.encoders.sequence(pair.pos_hist).max_length() for pair in group.pairs)
            for group in run.schema.groups
        }

    def replace(self, users: Sequence[str], histories: Any) -> None:
        """Compute the states of users from their whole histories.

        Args:
            users: their names.
            histories: a table, or dict of columns, with a row for each user: the sequences of the schema's groups.

        Raises:
            DataError: a column is missing or not what the schema says, or there is not a row for each user.
        """
        batch = self._encode(users, histories)
        with self._writing:
            self._keep(users, self.run.model.extract_states(batch))

    def extend(self, users: Sequence[str], events: Any) -> None:
        """Append newer events to the states of users; one who is not known begins with them.

        Args:
            users: their names, each once.
            events: the events since, as for :meth:`replace`.

        Raises:
            DataError: as for :meth:`replace`, or the states kept of a user are of another model.
        """
        if len({*users}) < len(users):
            raise DataError("users must be named once each; give a user's events in one row")
        batch = self._encode(users, events)
        with self._writing:
            self._keep(users, self.run.model.extract_states(batch, self._read(users)))

    def score_candidates(
        self, users: Sequence[str], user_table: Any, items: Any, candidate_offsets: Any = None
    ) -> np.ndarray:
        """Return the click probability of each candidate of each user.

        As :meth:`dien_fast.training.runs.Run.score_candidates` does, from the states in the store.

        Args:
            users: their names; one who is not known has no history.
            user_table: a row for each user, as there, without histories.
            items: as there.
            candidate_offsets: as there.

        Raises:
            DataError: as there, or the states kept of a user are of another model.
        """
        table = self._table(users, user_table)
        request = encode_request(self.run, table, items, candidate_offsets)
        self.run.unknown.update(request.unknown)
        histories = {pair.pos_hist for pair in self.run.schema.pairs()}
        user = {name: value for name, value in request.user.items() if name not in histories}
        logits = self.run.model.score_candidates(
            user, request.candidates, request.offsets, states=self._read(users)
        )
        return logits.float().sigmoid().numpy()

    def _table(self, users: Sequence[str], given: Any) -> pa.Table:
        """Return a table with a row for each user and no histories."""
        table = pa.table({"": pa.nulls(len(users))})
        read = pa.table(given) if isinstance(given, Mapping) else read_table(given, self.run.schema)
        if read.num_columns and read.num_rows != len(users):
            raise DataError(f"user_table must have a row for each of {len(users)} users, got {read.num_rows}")
        for name in read.column_names:
            table = table.append_column(name, read.column(name))
        for pair in self.run.schema.pairs():
            if pair.pos_hist in table.column_names:
                table = table.drop_columns([pair.pos_hist])
            table = table.append_column(pair.pos_hist, pa.nulls(len(users)))
        return table

    def _encode(self, users: Sequence[str], events: Any) -> dict[str, Any]:
        """Return the histories of a table as a batch."""
        schema = self.run.schema
        read = pa.table(events) if isinstance(events, Mapping) else read_table(events, schema)
        if read.num_rows != len(users):
            raise DataError(f"events must have a row for each of {len(users)} users, got {read.num_rows}")
        histories = [pair.pos_hist for pair in schema.pairs()]
        for name in histories:
            if name not in read.column_names:
                raise DataError(f"events: {no_column(name, read.column_names)}")
        table = read.select(histories)
        for name in (*schema.numeric, *schema.categorical, *schema.sequences):
            if name not in histories:
                table = table.append_column(name, pa.nulls(len(users)))
        dataset = self.run.dataset(table, allow_unknown=True, source="events")
        return {name: value for name, value in dataset.batch(np.arange(len(users))).items() if name in histories}

    def _read(self, users: Sequence[str]) -> dict[str, Ragged]:
        """Return the states kept of users by group; none of one who is not known."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._widths}
        for user, value in zip(users, self.store.get(users), strict=True):
            for name, states in self._parse(user, value).items():
                parts[name].append(states)
        found = {}
        for name, rows in parts.items():
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
            values = np.concatenate([np.zeros((0, self._widths[name]), np.float32), *rows])
            found[name] = Ragged(torch.from_numpy(values), torch.from_numpy(offsets), self._longest[name])
        return found

    def _parse(self, user: str, value: bytes | None) -> dict[str, np.ndarray]:
        if value is None:
            return {name: np.zeros((0, width), np.float32) for name, width in self._widths.items()}
        if value[:_DIGEST] != self.fingerprint:
            raise DataError(f"the states of user {user!r} are of another model; write them anew with replace")
        head = _DIGEST + 4 * len(self._widths)
        counts = np.frombuffer(value[_DIGEST:head], np.int32)
        found, start = {}, head
        for (name, width), count in zip(self._widths.items(), counts.tolist(), strict=True):
            end = start + 4 * count * width
            found[name] = np.frombuffer(value[start:end], np.float32).reshape(count, width)
            start = end
        return found

    def _keep(self, users: Sequence[str], states: Mapping[str, Ragged]) -> None:
        values = {}
        for number, user in enumerate(users):
            rows = [
                states[name].values[max(int(begin), int(end) - self._longest[name]) : int(end)].numpy()
                for name in self._widths
                for begin, end in [states[name].offsets[number : number + 2].tolist()]
            ]
            counts = np.array([len(part) for part in rows], np.int32)
            values[user] = b"".join([self.fingerprint, counts.tobytes(), *(part.tobytes() for part in rows)])
        self.store.put(values)


def _fingerprint(run: Run) -> bytes:
    """Return what tells the states of one model from those of another: its weights, and what its ids mean."""
    digest = hashlib.blake2b(run.encoders.fingerprint().encode(), digest_size=_DIGEST)
    for name, value in run.model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.digest()
