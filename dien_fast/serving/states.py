"""States of users that outlive a request: a new event costs one step of the extractor, a request no history."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dien_fast.data import read_table
from dien_fast.data.columns import as_column, offsets_of, split_words
from dien_fast.data.tables import no_column
from dien_fast.data.vocabulary import cast_words
from dien_fast.errors import DataError, DienFastError
from dien_fast.ragged import Ragged
from dien_fast.serving.kept import DIGEST, Kept, OutdatedStatesError, UnknownUserError, Words
from dien_fast.serving.stores import LmdbStore, MemoryStore, StateStore
from dien_fast.training.candidates import Request, encode_request, joined_by_name
from dien_fast.training.scoring import to_device

if TYPE_CHECKING:
    from dien_fast.training.runs import Run

__all__ = [
    "Events",
    "LmdbStore",
    "MemoryStore",
    "OutdatedStatesError",
    "StateStore",
    "UnknownUserError",
    "UserStates",
    "merged_events",
]


class Events(NamedTuple):
    """Encoded events of users.

    Attributes:
        users: their names, each once.
        batch: the histories, as a batch of the model.
        words: of each user.
        unknown: by column, how many words training did not see.
    """

    users: list[str]
    batch: dict[str, Tensor | Ragged]
    words: list[Words]
    unknown: Counter[str]

    def number(self) -> int:
        """Return the number of events, of all users; a model of several groups has different ones in each."""
        return sum(max((len(column) for column in words.values()), default=0) for words in self.words)


def merged_events(events: Sequence[Events]) -> Events:
    """Return the events of all, whose users are different ones."""
    if len(events) == 1:
        return events[0]
    return Events(
        [user for one in events for user in one.users],
        joined_by_name([one.batch for one in events]),
        [words for one in events for words in one.words],
        sum((one.unknown for one in events), start=Counter()),
    )


class UserStates:
    """The states of users by name, which take the place of their histories.

    States are those of the newest ``max_length`` events. Scores equal those of
    :meth:`dien_fast.training.runs.Run.score_candidates` for the whole history, to rounding, until it is longer
    than that: from then on the states still know the older events, which ``score_candidates`` does not read.

    With the states, the words of these events are kept. Where the states are of another model, those of this one
    are computed from the words at the user's first request, and kept.

    Calls of several threads and processes are safe.

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
        self._histories = [pair.pos_hist for pair in run.schema.pairs()]
        for name in self._histories:
            if run.encoders.sequence(name).keep != "newest":
                raise DienFastError(f"states need the newest events of {name!r}, the run keeps the oldest")
        self.run, self.store = run, store
        self.fingerprint = _fingerprint(run)
        self._longest = {
            group.name: max(run.encoders.sequence(pair.pos_hist).max_length() for pair in group.pairs)
            for group in run.schema.groups
        }
        nothing = Ragged(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 0)
        states = self._on_cpu(run.model.extract_states(self._on_device(dict.fromkeys(self._histories, nothing))))
        self._widths = {name: value.values.size(1) for name, value in states.items()}
        empty = {name: np.zeros((0, width), np.float32) for name, width in self._widths.items()}
        self._nothing = Kept({name: [] for name in self._histories}, empty)

    def replace(self, users: Sequence[str], histories: Any) -> None:
        """Compute the states of users from their whole histories.

        Args:
            users: their names, each once.
            histories: a table, or dict of columns, with a row for each user: the sequences of the schema's groups.

        Raises:
            DataError: a column is missing or not what the schema says, or there is not a row for each user.
        """
        self.write(self.encode_events(users, histories), replace=True)

    def extend(self, users: Sequence[str], events: Any) -> None:
        """Append newer events to the states of users; one who is not known begins with them.

        Args:
            users: their names, each once.
            events: the events since, as for :meth:`replace`.

        Raises:
            DataError: as for :meth:`replace`.
            OutdatedStatesError: the states of a user are of another model, and this one does not read the events.
        """
        self.write(self.encode_events(users, events))

    def write(self, events: Events, *, replace: bool = False) -> None:
        """Do what :meth:`extend` or :meth:`replace` does, with encoded events.

        Args:
            events: what :meth:`encode_events` returned.
            replace: whether they are the whole histories.

        Raises:
            OutdatedStatesError: as :meth:`extend` does.
        """

        def change(before: list[bytes | None]) -> list[bytes]:
            kept = [self._nothing] * len(before) if replace else self._current(events.users, before)
            return [one.pack(self.fingerprint) for one in self._extended(kept, events)]

        self.store.update(events.users, change)

    def encode_events(self, users: Sequence[str], events: Any) -> Events:
        """Encode the arguments of :meth:`extend`.

        Raises:
            DataError: as :meth:`replace` does.
        """
        if len({*users}) < len(users):
            raise DataError("users must be named once each; give a user's events in one row")
        schema = self.run.schema
        read = pa.table(events) if isinstance(events, Mapping) else read_table(events, schema)
        if read.num_rows != len(users):
            raise DataError(f"events must have a row for each of {len(users)} users, got {read.num_rows}")
        for name in self._histories:
            if name not in read.column_names:
                raise DataError(f"events: {no_column(name, read.column_names)}")
        table = read.select(self._histories)
        for name in (*schema.numeric, *schema.categorical, *schema.sequences):
            if name not in self._histories:
                table = table.append_column(name, pa.nulls(len(users)))
        dataset = self.run.dataset(table, allow_unknown=True, source="events")
        batch = dataset.batch(np.arange(len(users)))
        unknown = Counter({name: dataset.unknown[name].unknown for name in self._histories})
        return Events([*users], {name: batch[name] for name in self._histories}, self._words(table), unknown)

    def score_candidates(
        self, users: Sequence[str], user_table: Any, items: Any, candidate_offsets: Any = None
    ) -> np.ndarray:
        """Return the click probability of each candidate of each user.

        As :meth:`dien_fast.training.runs.Run.score_candidates` does, from the states in the store.

        Args:
            users: their names; one who is not known has no history.
            user_table: a row for each user, as there, without histories; a dict is one of columns.
            items: as there.
            candidate_offsets: as there.

        Raises:
            DataError: as there, or the table has a history.
            OutdatedStatesError: as :meth:`extend` does.
        """
        read = pa.table(user_table) if isinstance(user_table, Mapping) else user_table
        return self.run.score_encoded(self.encode(users, read, items, candidate_offsets))

    def encode(
        self,
        users: Sequence[str],
        user_table: Any,
        items: Any,
        candidate_offsets: Any = None,
        *,
        must_be_known: bool = False,
    ) -> Request:
        """Encode a request, which gets the states of its users.

        Args:
            users: their names.
            user_table: as for :meth:`dien_fast.training.runs.Run.score_candidates`, without histories: a dict is
                one user.
            items: as there.
            candidate_offsets: as there.
            must_be_known: whether to refuse a user of whom nothing is kept.

        Raises:
            DataError: as :meth:`score_candidates` does.
            UnknownUserError: nothing is kept of a user who must be known.
        """
        table = self._without_histories(len(users), user_table)
        states = self._ragged(self._read(users, must_be_known))
        request = encode_request(self.run, table, items, candidate_offsets)
        user = {name: value for name, value in request.user.items() if name not in self._histories}
        return request._replace(user=user, states=states)

    def _without_histories(self, count: int, given: Any) -> dict[str, Any] | pa.Table:
        """Return the table with empty histories, which stand where encoding wants some."""
        if isinstance(given, Mapping):
            self._refuse_histories(given)
            return {**given, **{name: [] for name in self._histories}}
        read = read_table(given, self.run.schema)
        self._refuse_histories(read.column_names)
        if read.num_columns and read.num_rows != count:
            raise DataError(f"user_table must have a row for each of {count} users, got {read.num_rows}")
        table = pa.table({name: pa.nulls(count) for name in self._histories})
        for name in read.column_names:
            table = table.append_column(name, read.column(name))
        return table

    def _refuse_histories(self, names: Any) -> None:
        for name in self._histories:
            if name in names:
                raise DataError(f"user_table must not have {name!r}: states take the place of histories")

    def _words(self, table: pa.Table) -> list[Words]:
        """Return the words of the newest events of each row."""
        schema, columns = self.run.schema, {}
        for group in schema.groups:
            for pair in group.pairs:
                column = as_column(table.column(pair.pos_hist))
                whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
                words, counts = split_words(whole, schema.separator)
                texts, ends = cast_words(words, "string").to_pylist(), offsets_of(counts).tolist()
                columns[pair.pos_hist] = [
                    texts[max(start, end - self._longest[group.name]) : end] for start, end in pairwise(ends)
                ]
        return [{name: rows[number] for name, rows in columns.items()} for number in range(table.num_rows)]

    def _read(self, users: Sequence[str], must_be_known: bool) -> list[Kept]:
        """Return what is kept of users, with states of this model."""
        values = self.store.get(users)
        if must_be_known and None in values:
            raise UnknownUserError(f"no events of user {users[values.index(None)]!r} are kept")
        pairs = zip(users, values, strict=True)
        outdated = list(dict.fromkeys(user for user, value in pairs if self._unpack(user, value).states is None))
        if outdated:
            # So that these users' next requests need not compute them.
            self.store.update(
                outdated,
                lambda before: [one.pack(self.fingerprint) for one in self._current(outdated, before)],
            )
            values = self.store.get(users)
        return self._current(users, values)

    def _unpack(self, user: str, value: bytes | None) -> Kept:
        if value is None:
            return self._nothing
        try:
            found = Kept.unpack(value, self.fingerprint, self._widths)
        except DataError as error:
            raise DataError(
                f"what is kept of user {user!r} is damaged: {error}; write it anew with replace"
            ) from None
        if found is None:
            raise OutdatedStatesError(
                f"what is kept of user {user!r} was written by another version of dien-fast; write it anew with "
                "replace"
            )
        return found

    def _current(self, users: Sequence[str], values: Sequence[bytes | None]) -> list[Kept]:
        """Return what is kept of users; states of another model are computed anew, from the words."""
        found = [self._unpack(user, value) for user, value in zip(users, values, strict=True)]
        for number, (user, one) in enumerate(zip(users, found, strict=True)):
            if one.states is not None:
                continue
            try:
                events = self.encode_events([user], {name: [words] for name, words in one.words.items()})
            except DataError as error:
                raise OutdatedStatesError(
                    f"the states of user {user!r} are of another model, and the events that are kept are not what "
                    f"this one reads: {error}; write them anew with replace"
                ) from None
            (found[number],) = self._extended([self._nothing], events)
        return found

    def _extended(self, kept: Sequence[Kept], events: Events) -> list[Kept]:
        """Return what is to be kept of users after some events."""
        batch = self._on_device(events.batch)
        states = self._on_cpu(self.run.model.extract_states(batch, self._on_device(self._ragged(kept))))
        found = []
        for number, (before, words) in enumerate(zip(kept, events.words, strict=True)):
            newest = {}
            for group in self.run.schema.groups:
                for pair in group.pairs:
                    name = pair.pos_hist
                    newest[name] = [*before.words[name], *words[name]][-self._longest[group.name] :]
            rows = {}
            for name, value in states.items():
                start, end = value.offsets[number : number + 2].tolist()
                rows[name] = value.values[max(start, end - self._longest[name]) : end].numpy()
            found.append(Kept(newest, rows))
        return found

    def _ragged(self, kept: Sequence[Kept]) -> dict[str, Ragged]:
        """Return states by group."""
        found = {}
        for name, width in self._widths.items():
            rows = [one.states[name] for one in kept if one.states is not None]
            values = np.concatenate([np.zeros((0, width), np.float32), *rows])
            offsets = offsets_of(np.array([len(part) for part in rows], np.int64))
            found[name] = Ragged(torch.from_numpy(values), torch.from_numpy(offsets), self._longest[name])
        return found

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return to_device(batch, next(self.run.model.parameters()).device)

    @staticmethod
    def _on_cpu(states: Mapping[str, Any]) -> dict[str, Ragged]:
        return {name: value.to(torch.device("cpu")) for name, value in states.items()}


def _fingerprint(run: Run) -> bytes:
    """Return what tells the states of one model from those of another: its weights, and what its ids mean."""
    digest = hashlib.blake2b(run.encoders.fingerprint().encode(), digest_size=DIGEST)
    for name, value in run.model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.digest()
