"""A run over HTTP: scores as JSON, events of users, health, metrics.

POST /score     ``{"user": {...}, "items": ...}`` or ``{"users": [...], "items": [...]}``, as the arguments of
                :meth:`dien_fast.training.runs.Run.score_candidates`; with ``"user_id"`` or ``"user_ids"``, users
                have states in place of histories
POST /events    ``{"user_id": ..., "events": {...}}`` or ``{"user_ids": [...], "events": [...]}``, newer events of
                users, as the arguments of :meth:`dien_fast.serving.states.UserStates.extend`
PUT /events     the same with whole histories, as for :meth:`dien_fast.serving.states.UserStates.replace`
GET /health     what is served
GET /metrics    counts and times in the format of Prometheus
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from dien_fast.errors import DataError, DienFastError, one_sentence
from dien_fast.lines import print_line
from dien_fast.serving.batching import Batcher
from dien_fast.serving.bodies import read_events, read_score
from dien_fast.serving.states import OutdatedStatesError, StateStore, UnknownUserError
from dien_fast.training.runs import Run, load

_Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body: bytes.
        users: their number.
        candidates: of all its users.
        seconds: that its body may take to arrive.
    """

    body: int = 4 * 2**20
    users: int = 256
    candidates: int = 10_000
    seconds: float = 30.0


class _TooLargeError(DataError):
    """A body is above its limit."""


class _TooSlowError(DataError):
    """A body takes too long."""


# The first that an error is gives the status.
_STATUSES = (
    (_TooLargeError, 413),
    (_TooSlowError, 408),
    (UnknownUserError, 404),
    (OutdatedStatesError, 409),
    (DataError, 400),
    (DienFastError, 500),
)


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("dien_fast_requests", "Answers of /score by status.", ["status"], **named)
        self.seconds = Histogram(
            "dien_fast_request_seconds",
            "From the head of a request to its answer.",
            buckets=[0.001 * 2**power for power in range(12)],
            **named,
        )
        self.candidates = Counter("dien_fast_candidates", "Candidates scored.", **named)
        self.together = Histogram(
            "dien_fast_batch_requests",
            "Requests computed together with each request.",
            buckets=[2**power for power in range(9)],
            **named,
        )
        self.unknown = Counter("dien_fast_unknown_words", "Words that training did not see.", ["column"], **named)
        self.events = Counter("dien_fast_events", "Events added to the states of users.", **named)
        self.event_requests = Counter(
            "dien_fast_event_requests", "Answers of /events by status.", ["status"], **named
        )
        self.reloads = Counter("dien_fast_reloads", "Loads of another model.", ["result"], **named)


class _Answered:
    """An ASGI application that turns errors into answers, and counts these by status.

    Args:
        answer: a request.
        counter: of answers.
        seconds: that answers take, or None.
    """

    def __init__(self, answer: _Answer, counter: Counter, seconds: Histogram | None = None) -> None:
        self._answer, self._counter, self._seconds = answer, counter, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        try:
            response = await self._answer(Request(scope, receive))
        except DienFastError as error:
            response = _failure(next(status for kind, status in _STATUSES if isinstance(error, kind)), error)
        await response(scope, receive, send)
        self._counter.labels(response.status_code).inc()
        if self._seconds is not None:
            self._seconds.observe(time.perf_counter() - start)


class _ScoresFirst(Router):
    """Starlette's router, which requests for scores do not go through.

    Nor does any request go through the layers of Starlette's application, which catch exceptions as uvicorn does.
    After a sleep caches are cold, and every layer then takes time.
    """

    def __init__(self, score: _Answered, routes: Sequence[Route], **arguments: Any) -> None:
        super().__init__(routes, **arguments)
        self._score = score

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scores = scope["type"] == "http" and scope["path"] == "/score" and scope["method"] == "POST"
        await (self._score if scores else super().__call__)(scope, receive, send)


class Service:
    """An ASGI application that scores with a run; see the module's first lines.

    Args:
        run: the model.
        limits: of a request.
        store: where the states of users are kept; None keeps none.

    Attributes:
        application: what an ASGI server runs.

    Raises:
        DienFastError: there is a store, and the model has no states.

    Example:
        >>> Service(dien_fast.load("runs/clicks")).application  # doctest: +SKIP
    """

    def __init__(self, run: Run, limits: Limits | None = None, store: StateStore | None = None) -> None:
        self.limits = limits or Limits()
        self._batcher = Batcher(run, self.limits.users, self.limits.candidates, store)
        self._metrics = _Metrics()
        self._reloading = threading.Lock()
        # True asks for a reload, False for the end. A handler of signals may put into it at any moment.
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._reloader = threading.Thread(target=self._reload_when_asked, name="dien-fast reloader", daemon=True)
        self._reloader.start()
        score = _Answered(self._score, self._metrics.requests, self._metrics.seconds)
        add = _Answered(self._add, self._metrics.event_requests)
        routes = [
            Route("/score", score, methods=["POST"]),
            Route("/events", add, methods=["POST", "PUT"]),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
        ]
        # A redirect quotes the query, which Starlette cannot where that is not UTF-8.
        self.application = _ScoresFirst(score, routes, redirect_slashes=False, lifespan=self._lifespan)

    @property
    def run(self) -> Run:
        """The model that scores."""
        return self._batcher.run

    def reload(self) -> None:
        """Load the run's directory again.

        Requests go on with the old model meanwhile, and afterwards if the new one cannot be loaded.
        """
        with self._reloading:
            try:
                run = load(self.run.directory, next(self.run.model.parameters()).device)
                self._batcher.exchange(run)
            except Exception as error:  # of the system too, such as too many open files
                self._metrics.reloads.labels("failed").inc()
                _log(f"dien-fast: the old model stays: {one_sentence(error) or type(error).__name__}")
                return
            self._metrics.reloads.labels("done").inc()
            _log(f"dien-fast: loaded {run.directory} again")

    def ask_reload(self) -> None:
        """Let another thread :meth:`reload`, once for all who ask before it begins.

        A handler of a signal may call this at any moment.
        """
        self._asked.put(True)

    def _reload_when_asked(self) -> None:
        while self._asked.get():
            # Whoever asks from here on asks for the next load.
            with suppress(Empty):
                while self._asked.get_nowait():
                    pass
                return
            self.reload()

    def _close(self) -> None:
        """Finish the load that has begun, and what was asked."""
        self._asked.put(False)
        self._reloader.join()
        self._batcher.close()

    @asynccontextmanager
    async def _lifespan(self, application: Router) -> AsyncIterator[None]:
        # A signal, not a request: whoever may send it owns the process, and no client of the port does.
        here = threading.current_thread() is threading.main_thread()
        # Not the loop's own handler: when that is removed, the signal ends the process.
        before = signal.signal(signal.SIGHUP, lambda *_: self.ask_reload()) if here else None
        try:
            yield
        finally:
            await asyncio.to_thread(self._close)
            if before is not None:
                signal.signal(signal.SIGHUP, before)

    async def _score(self, request: Request) -> Response:
        asked = read_score(await self._body(request))
        scores = await asyncio.wrap_future(self._batcher.submit(asked.users, asked.items, asked.names))
        self._metrics.candidates.inc(len(scores.probabilities))
        self._metrics.together.observe(scores.together)
        self._count_unknown(scores.unknown)
        found: Any = scores.probabilities
        if not asked.single:
            found = [found[start:end] for start, end in pairwise(scores.offsets.tolist())]
        # The digits of a float32, nine at most; json writes the 17 of a float64.
        content = orjson.dumps({"probabilities": found}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    async def _add(self, request: Request) -> Response:
        asked = read_events(await self._body(request))
        added = await asyncio.wrap_future(
            self._batcher.add(asked.names, asked.events, replace=request.method == "PUT")
        )
        self._metrics.events.inc(added.events)
        self._count_unknown(added.unknown)
        return JSONResponse({"added": added.events})

    def _count_unknown(self, unknown: Mapping[str, int]) -> None:
        for column, count in unknown.items():
            if count:
                self._metrics.unknown.labels(column).inc(count)

    async def _body(self, request: Request) -> bytes:
        """Read a body up to the limit, whatever its head says."""
        limit = self.limits.body
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise DataError("the client went away")
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size > limit:
                        raise _TooLargeError(f"a body must have at most {limit} bytes")
                    parts.append(part)
        except TimeoutError:
            raise _TooSlowError(f"a body must arrive within {self.limits.seconds:g} seconds") from None
        return b"".join(parts)

    async def _health(self, request: Request) -> Response:
        run = self.run
        content = {"status": "ok", "run": str(run.directory), "model": run.config.model}
        return JSONResponse(content | {"fingerprint": run.encoders.fingerprint()})

    async def _show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _log(line: str) -> None:
    """Print a line to stderr; a full disk or a reader that has gone must not end the thread that reloads."""
    with suppress(OSError):
        print_line(line, sys.stderr)


def _failure(status: int, error: DienFastError) -> Response:
    # A client that is too slow would keep the connection.
    headers = {"connection": "close"} if status == 408 else None
    return JSONResponse({"error": one_sentence(error)}, status, headers)
