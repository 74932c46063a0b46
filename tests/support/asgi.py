"""Requests to an ASGI application without a server: in this process, each in the thread that asks."""

import asyncio
import json
from itertools import pairwise

from campaign import SENTENCE, bounded, check_sentence


async def answer(application, body, *, method="POST", path="/score", headers=(), cuts=(), leaves=False, query=b""):
    """Send a body in pieces; return the status and the body of the answer."""
    ends = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(ends)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not leaves:
        messages[-1]["more_body"] = False
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await application(scope, receive, send)
    start, *rest = sent
    return start["status"], b"".join(part.get("body", b"") for part in rest)


class Client:
    """Asks an application, which begins with the client and ends with it."""

    def __init__(self, application):
        self._runner = asyncio.Runner()
        self._application = application
        self._life = application.lifespan_context(application)
        self._runner.run(self._life.__aenter__())

    def close(self):
        self._runner.run(self._life.__aexit__(None, None, None))
        self._runner.close()

    def ask(self, body, **how):
        """Ask as :func:`answer` does."""
        with bounded():
            return self._runner.run(answer(self._application, body, **how))


def check_refusal(status, answer):
    """Fail unless an answer is one sentence that lays the fault on the client."""
    assert 400 <= status < 500, (status, answer)
    content = json.loads(answer)
    assert content.keys() == {"error"}
    assert "\n" not in content["error"]
    assert len(content["error"]) <= SENTENCE
    check_sentence(content["error"])
