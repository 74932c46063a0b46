"""A run over HTTP: scores as JSON, health, metrics.

POST /score     ``{"user": {...}, "items": ...}`` or ``{"users": [...], "items": [...]}``, as the arguments of
                :meth:`dien_fast.training.runs.Run.score_candidates`
GET /health     what is served
GET /metrics    counts and times in the format of Prometheus
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dien_fast.data.columns import as_column
from dien_fast.errors import DataError, DienFastError
from dien_fast.serving.batching import Batcher
from dien_fast.training.runs import Run, load


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body: bytes.
        users: their number.
        candidates: of all its users.
    """

    body: int = 4 * 2**20
    users: int = 256
    candidates: int = 10_000


class _TooLargeError(DienFastError):
    """A body is above its limit."""


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
        self.reloads = Counter("dien_fast_reloads", "Loads of another model.", ["result"], **named)


class Service:
    """An ASGI application that scores with a run; see the module's first lines.

    Args:
        run: the model.
        limits: of a request.

    Attributes:
        application: what an ASGI server runs.

    Example:
        >>> Service(dien_fast.load("runs/clicks")).application  # doctest: +SKIP
    """

    def __init__(self, run: Run, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._batcher = Batcher(run, self.limits.users, self.limits.candidates)
        self._metrics = _Metrics()
        self._reloading = threading.Lock()
        routes = [
            Route("/score", self._timed(self._score), methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
        ]
        self.application = Starlette(routes=routes, lifespan=self._lifespan)

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
            except DienFastError as error:
                self._metrics.reloads.labels("failed").inc()
                print(f"dien-fast: the old model stays: {error}", file=sys.stderr, flush=True)
                return
            self._batcher.run = run
            self._metrics.reloads.labels("done").inc()
            print(f"dien-fast: loaded {run.directory} again", file=sys.stderr, flush=True)

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        # A signal, not a request: whoever may send it owns the process, and no client of the port does.
        here = threading.current_thread() is threading.main_thread()
        if here:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: threading.Thread(target=self.reload).start())
        try:
            yield
        finally:
            if here:
                loop.remove_signal_handler(signal.SIGHUP)
            await asyncio.to_thread(self._batcher.close)

    def _timed(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Count answers and turn errors into them."""

        async def timed(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response = await answer(request)
            except _TooLargeError as error:
                response = _failure(413, str(error))
            except DataError as error:
                response = _failure(400, str(error))
            except DienFastError as error:
                response = _failure(500, str(error))
            self._metrics.requests.labels(response.status_code).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)
            return response

        return timed

    async def _score(self, request: Request) -> Response:
        content = _parsed(await self._body(request))
        single = "user" in content
        users, items = _arguments(content, single)
        scores = await asyncio.wrap_future(self._batcher.submit(users, items))
        self._metrics.candidates.inc(len(scores.probabilities))
        self._metrics.together.observe(scores.together)
        for column, count in scores.unknown.items():
            self._metrics.unknown.labels(column).inc(count)
        found: Any = scores.probabilities.tolist()
        if not single:
            ends = scores.offsets.tolist()
            found = [found[start:end] for start, end in pairwise(ends)]
        return JSONResponse({"probabilities": found})

    async def _body(self, request: Request) -> bytes:
        """Read a body up to the limit, whatever its head says."""
        limit = self.limits.body
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _TooLargeError(f"a body must have at most {limit} bytes")
                parts.append(part)
        except ClientDisconnect:
            raise DataError("the client went away") from None
        return b"".join(parts)

    async def _health(self, request: Request) -> Response:
        run = self.run
        content = {"status": "ok", "run": str(run.directory), "model": run.config.model}
        return JSONResponse(content | {"fingerprint": run.encoders.fingerprint()})

    async def _show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _failure(status: int, sentence: str) -> Response:
    return JSONResponse({"error": " ".join(sentence.split())}, status)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body must be JSON: {error}") from None
    if not isinstance(content, dict) or content.keys() - {"user", "users", "items"}:
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"the body must be an object with user or users, and items, got {got}")
    if ("user" in content) == ("users" in content) or "items" not in content:
        raise DataError(f"the body must have exactly one of user and users, and items, got {', '.join(content)}")
    return content


def _arguments(content: dict[str, Any], single: bool) -> tuple[Any, Any]:
    """Return users and items as ``score_candidates`` takes them."""
    items = content["items"]
    if single:
        user = content["user"]
        if not isinstance(user, dict):
            raise DataError(f"user must be an object, got {type(user).__name__}")
        if isinstance(items, dict):
            _check_columns(items)
        return user, items
    users = content["users"]
    if not isinstance(users, list) or not users or not all(isinstance(user, dict) for user in users):
        raise DataError("users must be a list of objects, one for each user")
    if not isinstance(items, list) or len(items) != len(users):
        count = len(items) if isinstance(items, list) else type(items).__name__
        raise DataError(f"items must be a list of what each of {len(users)} users gets, got {count}")
    if items and all(isinstance(one, dict) for one in items):
        items = _transposed(items, "items")
    columns = {name: as_column(values) for name, values in _transposed(users, "users").items()}
    # A table without columns would have no rows either.
    return pa.table({"": pa.nulls(len(users))} | columns), items


def _transposed(objects: list[dict[str, Any]], what: str) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for one in objects for name in one)
    for number, one in enumerate(objects):
        for name in names:
            if name not in one and what == "items":
                raise DataError(f"items[{number}] has no column {name!r}, which others have")
    return {name: [one.get(name) for one in objects] for name in names}


def _check_columns(items: dict[str, Any]) -> None:
    for name, values in items.items():
        if not isinstance(values, list):
            raise DataError(f"items[{name!r}] must be a list, got {type(values).__name__}")
