from __future__ import annotations

import pyarrow as pa
import pytest

from dien_fast.data.checks import check_history, check_labels, check_words
from dien_fast.errors import DataError

CANDIDATES = [pa.chunked_array([[1, 2, 3]])]


def check(column: list[object], candidates: list[pa.ChunkedArray] | None = None, **settings: bool) -> None:
    check_words(pa.chunked_array([column]), "|")
    check_history(pa.chunked_array([column]), "|", CANDIDATES if candidates is None else candidates, **settings)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1, 2], [0, 0, 3]], "row 1 is padded with 0 before its events"),
        ([[1, 2], [0, 3]], "row 1 is padded with 0 before its events"),
        ([None, [3, 0, 0], [1]], "row 1 is padded with 0 behind its events"),
        ([[], [0, 0]], "row 1 is padded with 0 behind its events"),
        ([[0.0, 3.0]], "row 0 is padded with 0 before its events"),
        (["1|2", "0|0|3"], "row 1 is padded with 0 before its events"),
        (["1|2", "3|0"], "row 1 is padded with 0 behind its events"),
        (["1|2", "", "0"], "row 2 is padded with 0 behind its events"),
        ([["1"], ["0", "3"]], "row 1 is padded with 0 before its events"),
        (["1|2", None, "__PAD__|3"], "row 2 holds the word '__PAD__'"),
        ([["1"], [], ["3", "__PAD__"]], "row 2 holds the word '__PAD__'"),
    ],
)
def test_padding_is_refused(column: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(column)


@pytest.mark.parametrize(
    "column",
    [
        [[1, 2], [], None],
        [[0, 3], [1, 0, 2]],  # an event between others shows that 0 is an item
        ["0|3", "1|0|2"],
        ["10|3", "3|10", "100"],
        [["10", None], ["x", "0x"]],
        [[True, False]],
    ],
)
def test_events_are_not_padding(column: list[object]) -> None:
    check(column)


def test_zero_may_be_an_item() -> None:
    column: list[object] = [[0, 3]]
    check(column, candidates=[pa.chunked_array([[3]]), pa.chunked_array([[0, 3]])])
    check(column, candidates=[pa.chunked_array([["0", "3"]])])
    check(column, zero_known=True)
    with pytest.raises(DataError, match="padded"):
        check(column, candidates=[pa.chunked_array([[True, False]])])


def test_labels() -> None:
    assert check_labels(pa.chunked_array([[0, 1], [1]])).tolist() == [0, 1, 1]
    assert check_labels(pa.chunked_array([["0", "1"]])).tolist() == [0, 1]
    assert check_labels(pa.chunked_array([[True, False]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([0, 1, 2], "expected 0 or 1, got 2 in row 2"),
        ([0.5], "expected 0 or 1, got 0.5 in row 0"),
        ([0, None], "expected 0 or 1, got no value in row 1"),
        ([1.0, float("nan")], "expected 0 or 1, got nan in row 1"),
        (["1", "yes"], "expected a number, got 'yes' in row 1"),
    ],
)
def test_wrong_labels(column: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(pa.chunked_array([column]))
