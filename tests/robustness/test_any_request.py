"""Any request: the probabilities of the library for the same words, or a status of 4xx and a sentence."""

import json
import math

import numpy as np
import pytest
from asgi import Client, check_refusal
from campaign import Tally, amounts, attempt, campaign
from hypothesis import example, given
from hypothesis import strategies as st
from spoiled_values import spoiled

from dien_fast.serving.http import Limits, Service

USER = {"country": "NO", "past_items": ["i1", "i4"], "past_brands": ["b1", "b1"], "words": "new;red", "price": 0.4}
ITEMS = {"item": ["i1", "i2", "never seen"], "brand": ["b1", "b2", "b0"], "price": [0.1, None, 0.9]}
OTHER = {"country": None, "past_items": [], "past_brands": None, "words": None, "price": None}
ONE = {"user": USER, "items": ITEMS}
SEVERAL = {
    "users": [USER, OTHER, USER | {"words": []}],
    "items": [
        {"item": ["i1", "i2"], "brand": ["b1", "b2"]},
        {"item": [], "brand": []},
        {"item": ["i3"], "brand": [""]},
    ],
}
LIMITS = Limits(body=20_000, users=5, candidates=50)
VALUES = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 2**53, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf]
    ),
    st.sampled_from(["", "i1", ";", "i1;i2", "__PAD__", "0", "[]", "['i1']", "\ud800", "\x00", "ü", "i" * 3000]),
    st.sampled_from([[], {}, [[]], [None], ["i1", 1], [["i1"]], {"item": "i1"}, ["i1"] * 60, [0, "0"]]),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3)), max_size=3),
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["user", "users", "items", "item", "brand", "price", "\udcff", ""]), inner
        ),
    ),
    max_leaves=8,
)
BODIES = [b"", b"{", b"\xff\xfe", b"nul", b"[" * 15_000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b" " * 20_001]
BODIES += [
    b'{"user": {}, "user": [], "items": 1}',
    b"\xef\xbb\xbf{}",
    b'"\\ud800"',
    b"\x00" * 99,
    b"-",
    b"Infinity",
]


@st.composite
def bodies(draw):
    """Bytes that are sent to /score."""
    kind = draw(st.sampled_from(["request"] * 6 + ["json", "bytes", "known", "changed"]))
    if kind == "known":
        return draw(st.sampled_from(BODIES))
    if kind == "bytes":
        return draw(st.binary(max_size=40))
    content = draw(JSON) if kind == "json" else draw(spoiled(draw(st.sampled_from([ONE, SEVERAL])), odd=VALUES))
    body = json.dumps(content, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if kind == "changed":
        place = draw(st.integers(0, len(body) - 1))
        body = body[:place] + draw(st.binary(max_size=2)) + body[place + draw(st.integers(0, 3)) :]
    return body


@pytest.fixture(scope="module")
def client(run):
    client = Client(Service(run, LIMITS).application)
    yield client
    client.close()


def check_probabilities(run, content, found):
    """Fail unless probabilities are those of the library for the same words."""
    if "user" in content:
        wanted, sentence = attempt(run.score_candidates, content["user"], content["items"])
        assert sentence is None
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        return
    assert len(found) == len(content["users"])
    for user, items, own in zip(content["users"], content["items"], found, strict=True):
        wanted, sentence = attempt(run.score_candidates, user, items)
        # One user may lack what others have, and is missing it then.
        if sentence is None:
            np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-6)


@amounts(quick=100, slow=15000)
def test_any_body_is_scored_or_refused(count, client, run):
    tally = Tally("bodies of requests")

    @campaign(count)
    @given(bodies(), st.lists(st.integers(0, 300), max_size=3), st.sampled_from([False] * 9 + [True]))
    @example(json.dumps(ONE).encode(), [7], False)
    @example(b'{"\\ud800": 1}', [], False)
    @example(json.dumps({"user": USER | {"country": "\ud800"}, "items": ITEMS}).encode(), [], False)
    @example(json.dumps({"user": USER, "items": ITEMS | {"price": [10**400, None, 0.9]}}).encode(), [], False)
    def check(body, cuts, leaves):
        status, answer = client.ask(body, cuts=cuts, leaves=leaves)
        if status == 200:
            assert not leaves
            check_probabilities(run, json.loads(body), json.loads(answer)["probabilities"])
            tally["right"] += 1
        else:
            check_refusal(status, answer)
            tally["refused"] += 1
        assert client.ask(b"", method="GET", path="/health")[0] == 200

    check()
    tally.check()


METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "\x00", ""]
PATHS = [
    "/score",
    "/health",
    "/metrics",
    "/",
    "",
    "//score",
    "/score/",
    "/score/../health",
    "/%73core",
    "/\ud800",
    "*",
]
HEADERS = [
    (b"content-length", b"3"),
    (b"content-length", b"-1"),
    (b"content-length", b"99999999999999999999"),
    (b"content-length", b"x"),
    (b"content-type", b"text/plain; charset=utf-16"),
    (b"content-encoding", b"gzip"),
    (b"transfer-encoding", b"chunked"),
    (b"expect", b"100-continue"),
    (b"host", b"\xff"),
    (b"", b""),
    (b"x" * 3000, b"y" * 3000),
]


@amounts(quick=40, slow=3000)
def test_any_head_is_answered(count, client):
    """What the head says of a body changes nothing: the body decides."""
    body = json.dumps(ONE).encode()
    expected = client.ask(body)
    assert expected[0] == 200

    @campaign(count)
    @given(
        st.sampled_from(METHODS),
        st.sampled_from(PATHS),
        st.lists(st.sampled_from(HEADERS), max_size=4),
        st.binary(max_size=9),
    )
    @example("GET", "/score/", [], b"\x80")
    def check(method, path, headers, query):
        status, answer = client.ask(body, method=method, path=path, headers=headers, query=query)
        if (method, path) == ("POST", "/score"):
            assert (status, answer) == expected
        elif path in ("/health", "/metrics") and method in ("GET", "HEAD"):
            assert status == 200
        else:
            assert status in (307, 404, 405), (status, answer)

    check()
