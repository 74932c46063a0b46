"""Scores requests of many callers together: what waits while one batch is computed is the next batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dien_fast.errors import DataError, DienFastError
from dien_fast.ragged import Ragged
from dien_fast.training.candidates import Request, encode_request

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


class _Waiting(NamedTuple):
    users: Any
    items: Any
    result: Future[Scores]


class Batcher:
    """Scores the requests of many threads in one, which computes all that wait in a single call of the model.

    Nothing waits for a batch to fill: a request that comes alone is computed at once.

    Args:
        run: the model, on any device. Assigning to ``run`` exchanges it; a batch that is being computed ends
            with the old one.
        most_users: users of one request, and of a batch unless a single request has more.
        most_candidates: candidates, likewise.

    Raises:
        ValueError: for a limit below 1.

    Example:
        >>> batcher = Batcher(dien_fast.load("runs/clicks"))  # doctest: +SKIP
        >>> batcher.submit({"past_items": ["i9"]}, {"item": ["i3"], "brand": ["b3"]}).result()  # doctest: +SKIP
    """

    def __init__(self, run: Run, most_users: int = 256, most_candidates: int = 10_000) -> None:
        if most_users < 1 or most_candidates < 1:
            raise ValueError(f"limits must be at least 1, got {most_users} users, {most_candidates} candidates")
        self.run = run
        self.most_users, self.most_candidates = most_users, most_candidates
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="dien-fast batcher", daemon=True)
        self._thread.start()

    def submit(self, users: Any, items: Any) -> Future[Scores]:
        """Score candidates of users, given as for :meth:`dien_fast.training.runs.Run.score_candidates`.

        Returns:
            What will hold the scores, or raise DienFastError as ``score_candidates`` does.
        """
        waiting = _Waiting(users, items, Future())
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
            self._score(waiting)

    def _score(self, waiting: Sequence[_Waiting]) -> None:
        """Encode requests one by one, so that a wrong one fails alone, and compute them together."""
        run = self.run
        batch: list[tuple[_Waiting, Request]] = []
        for one in waiting:
            try:
                encoded = self._encode(run, one)
            except Exception as error:
                one.result.set_exception(error)
                continue
            if batch and not self._fits(batch, encoded):
                self._compute(run, batch)
                batch = []
            batch.append((one, encoded))
        if batch:
            self._compute(run, batch)

    def _encode(self, run: Run, one: _Waiting) -> Request:
        encoded = encode_request(run, one.users, one.items)
        users, candidates = encoded.offsets.numel() - 1, int(encoded.offsets[-1])
        if users > self.most_users:
            raise DataError(f"a request must have at most {self.most_users} users, got {users}")
        if candidates > self.most_candidates:
            raise DataError(f"a request must have at most {self.most_candidates} candidates, got {candidates}")
        return encoded

    def _fits(self, batch: Sequence[tuple[_Waiting, Request]], encoded: Request) -> bool:
        """Whether a request can be computed with others: what describes a candidate is the same, within limits."""
        every = [*(request for _, request in batch), encoded]
        return (
            encoded.candidates.keys() == batch[0][1].candidates.keys()
            and sum(request.offsets.numel() - 1 for request in every) <= self.most_users
            and sum(int(request.offsets[-1]) for request in every) <= self.most_candidates
        )

    @staticmethod
    def _compute(run: Run, batch: Sequence[tuple[_Waiting, Request]]) -> None:
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


def merged(requests: Sequence[Request]) -> Request:
    """Return one request of the users of all, whose candidates have the same features."""
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    unknown = sum((request.unknown for request in requests), start=type(first.unknown)())
    return Request(
        {name: _joined([request.user[name] for request in requests]) for name in first.user},
        {name: torch.cat([request.candidates[name] for request in requests]) for name in first.candidates},
        joined_offsets([request.offsets for request in requests]),
        unknown,
    )


def _joined(values: Sequence[Any]) -> Tensor | Ragged:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return Ragged(
        torch.cat([value.values for value in values]),
        joined_offsets([value.offsets for value in values]),
        max(value.max_length for value in values),
    )


def joined_offsets(offsets: Sequence[Tensor]) -> Tensor:
    """Return the offsets of sequences one after the other, of which each part has its own ``[B + 1]`` int64."""
    return torch.nn.functional.pad(torch.cat([part.diff() for part in offsets]).cumsum(0), (1, 0))
