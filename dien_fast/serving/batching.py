"""Scores requests of many callers together: what waits while one batch is computed is the next batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dien_fast.errors import DataError, DienFastError
from dien_fast.serving.states import Events, UserStates, merged_events
from dien_fast.serving.stores import StateStore
from dien_fast.training.candidates import Request, encode_request, merged

if TYPE_CHECKING:
    from dien_fast.training.runs import Run


class Scores(NamedTuple):
    """What a request gets.

    Attributes:
        probabilities: of each candidate ``[C]`` float32, user after user.
        offsets: ``[U + 1]`` int64: user ``u`` has the probabilities ``offsets[u]`` to ``offsets[u + 1]``.
        unknown: by column, how many words training did not see.
        together: number of requests that were computed in one call of the model.
    """

    probabilities: np.ndarray
    offsets: np.ndarray
    unknown: Mapping[str, int]
    together: int


class Added(NamedTuple):
    """What became of events.

    Attributes:
        events: how many are new.
        unknown: by column, how many words training did not see.
    """

    events: int
    unknown: Mapping[str, int]


class _Scoring(NamedTuple):
    users: Any
    items: Any
    names: Sequence[str] | None
    result: Future[Scores]


class _Adding(NamedTuple):
    names: Sequence[str]
    events: Any
    replace: bool
    result: Future[Added]


class _Served(NamedTuple):
    run: Run
    states: UserStates | None


class Batcher:
    """Scores the requests of many threads in one, which computes all that wait in a single call of the model.

    Nothing waits for a batch to fill: a request that comes alone is computed at once.

    Args:
        run: the model, on any device.
        most_users: users of one request, and of a batch unless a single request has more.
        most_candidates: candidates, likewise.
        store: where the states of users are kept, of whom requests then need no history.

    Raises:
        ValueError: for a limit below 1.
        DienFastError: there is a store, and the model has no states.

    Example:
        >>> batcher = Batcher(dien_fast.load("runs/clicks"))  # doctest: +SKIP
        >>> batcher.submit({"past_items": ["i9"]}, {"item": ["i3"], "brand": ["b3"]}).result()  # doctest: +SKIP
    """

    def __init__(
        self, run: Run, most_users: int = 256, most_candidates: int = 10_000, store: StateStore | None = None
    ) -> None:
        if most_users < 1 or most_candidates < 1:
            raise ValueError(f"limits must be at least 1, got {most_users} users, {most_candidates} candidates")
        self.most_users, self.most_candidates = most_users, most_candidates
        self._store = store
        self.exchange(run)
        self._queue: SimpleQueue[_Scoring | _Adding | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="dien-fast batcher", daemon=True)
        self._thread.start()

    @property
    def run(self) -> Run:
        """The model that scores the next batch."""
        return self._served.run

    def exchange(self, run: Run) -> None:
        """Score with another model from the next batch on; a batch that is being computed ends with the old one.

        Raises:
            DienFastError: states are kept, and the model has none; the old one stays.
        """
        self._served = _Served(run, None if self._store is None else UserStates(run, self._store))

    def submit(self, users: Any, items: Any, names: Sequence[str] | None = None) -> Future[Scores]:
        """Score candidates of users, given as for :meth:`dien_fast.training.runs.Run.score_candidates`.

        Args:
            users: as there.
            items: as there.
            names: of the users, whose states are taken in place of histories.

        Returns:
            What will hold the scores, or raise DienFastError as ``score_candidates`` does, or as
            :meth:`dien_fast.serving.states.UserStates.encode` does for users who must be known.
        """
        waiting = _Scoring(users, items, names, Future())
        self._queue.put(waiting)
        return waiting.result

    def add(self, names: Sequence[str], events: Any, *, replace: bool = False) -> Future[Added]:
        """Add events to the states of users; what is submitted afterwards is scored with them.

        Args:
            names: of the users, each once.
            events: as for :meth:`dien_fast.serving.states.UserStates.extend`.
            replace: whether they are the whole histories.

        Returns:
            What will hold the number of events, or raise DienFastError as ``extend`` or ``replace`` does.
        """
        waiting = _Adding(names, events, replace, Future())
        self._queue.put(waiting)
        return waiting.result

    def close(self) -> None:
        """Compute what waits and stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            first = self._queue.get()
            if first is None:
                return
            waiting = [first]
            # No batch has more requests than users.
            while len(waiting) < self.most_users:
                try:
                    following = self._queue.get_nowait()
                except Empty:
                    break
                if following is None:
                    open_ = False
                    break
                waiting.append(following)
            served = self._served
            for _, same in groupby(waiting, type):
                # Callers may have cancelled some; from here on that is no longer possible.
                alike = [one for one in same if one.result.set_running_or_notify_cancel()]
                self._score(served, [one for one in alike if isinstance(one, _Scoring)])
                self._add(served, [one for one in alike if isinstance(one, _Adding)])

    def _score(self, served: _Served, waiting: Sequence[_Scoring]) -> None:
        """Encode requests one by one, so that a wrong one fails alone, and compute them together."""
        batch: list[tuple[_Scoring, Request]] = []
        for one in waiting:
            try:
                encoded = self._encode(served, one)
            except Exception as error:
                one.result.set_exception(error)
                continue
            if batch and not self._fits(batch, encoded):
                self._compute(served.run, batch)
                batch = []
            batch.append((one, encoded))
        if batch:
            self._compute(served.run, batch)

    def _encode(self, served: _Served, one: _Scoring) -> Request:
        if one.names is None:
            encoded = encode_request(served.run, one.users, one.items)
        else:
            encoded = _states_of(served).encode(one.names, one.users, one.items, must_be_known=True)
        candidates = int(encoded.offsets[-1])
        self._check_users(encoded.offsets.numel() - 1)
        if candidates > self.most_candidates:
            raise DataError(f"a request must have at most {self.most_candidates} candidates, got {candidates}")
        return encoded

    def _check_users(self, users: int) -> None:
        if users > self.most_users:
            raise DataError(f"a request must have at most {self.most_users} users, got {users}")

    def _fits(self, batch: Sequence[tuple[_Scoring, Request]], encoded: Request) -> bool:
        """Whether a request can be computed with others: what describes a candidate is the same, within limits."""
        first = batch[0][1]
        every = [*(request for _, request in batch), encoded]
        return (
            encoded.candidates.keys() == first.candidates.keys()
            and (encoded.states is None) == (first.states is None)
            and sum(request.offsets.numel() - 1 for request in every) <= self.most_users
            and sum(int(request.offsets[-1]) for request in every) <= self.most_candidates
        )

    @staticmethod
    def _compute(run: Run, batch: Sequence[tuple[_Scoring, Request]]) -> None:
        requests = [request for _, request in batch]
        try:
            probabilities = run.score_encoded(merged(requests))
        except Exception as error:
            for one, _ in batch:
                one.result.set_exception(error)
            return
        end = 0
        for one, request in batch:
            start, end = end, end + int(request.offsets[-1])
            found = probabilities[start:end]
            if np.isnan(found).any():
                one.result.set_exception(DienFastError("the model gives NaN; its training has diverged"))
                continue
            one.result.set_result(Scores(found, request.offsets.numpy(), request.unknown, len(batch)))

    def _add(self, served: _Served, waiting: Sequence[_Adding]) -> None:
        """Encode events one by one, so that wrong ones fail alone, and compute those of many users together."""
        batch: list[tuple[_Adding, Events]] = []
        for one in waiting:
            try:
                states = _states_of(served)
                self._check_users(len(one.names))
                events = states.encode_events(one.names, one.events)
            except Exception as error:
                one.result.set_exception(error)
                continue
            named = {user for _, before in batch for user in before.users}
            if batch and (
                batch[0][0].replace != one.replace
                or len(named) + len(events.users) > self.most_users
                or not named.isdisjoint(events.users)
            ):
                self._write(states, batch)
                batch = []
            batch.append((one, events))
        if batch:
            self._write(states, batch)

    def _write(self, states: UserStates, batch: Sequence[tuple[_Adding, Events]]) -> None:
        try:
            states.write(merged_events([events for _, events in batch]), replace=batch[0][0].replace)
        except Exception as error:
            if len(batch) == 1:
                batch[0][0].result.set_exception(error)
                return
            # The store has changed nothing; what stands in the way may be one user's.
            for one in batch:
                self._write(states, [one])
            return
        for waiting, events in batch:
            waiting.result.set_result(Added(events.number(), events.unknown))


def _states_of(served: _Served) -> UserStates:
    if served.states is None:
        raise DataError("user_id and events need a server that keeps states: dien-fast serve --states")
    return served.states
