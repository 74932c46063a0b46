"""How the words of a column are written: told from the words themselves, where the schema says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import as_column, is_text
from dien_fast.errors import DataError

# Rows looked at: a notation is the same throughout a column.
_SAMPLE_ROWS = 20_000
# A list in the notation of JSON, Python or NumPy: of numbers, or of quoted text.
_LIST = r"""^\s*[\[{]\s*(["'].*["']|[-+0-9.,\s]*)\s*[\]}]\s*$"""
_SEPARATORS = ("|", ";", ",", "\t", " ")
# Another notation explains so many of the words that are not known (the others may be new words), and so many
# of all words (a few may be chance: "war movie" is made of "war" and "movie").
_MOST, _ENOUGH = 0.8, 0.05


def sample_index(count: int) -> np.ndarray:
    """Return the int64 positions of at most 20,000 of ``count`` elements, evenly spread and in order."""
    return np.arange(count) if count <= _SAMPLE_ROWS else np.linspace(0, count - 1, _SAMPLE_ROWS).astype(np.int64)


def sample_rows(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return rows from all over a column, at most 20,000."""
    column = as_column(column)
    column = column.take(pa.array(sample_index(len(column))))
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def check_no_lists_as_text(column: pa.Array | pa.ChunkedArray, separator: str) -> None:
    """Refuse sequences that are lists written as text, such as ``[1, 2]``.

    Raises:
        DataError: naming such a text.
    """
    rows = sample_rows(column)
    if not is_text(rows.type):
        return
    rows = rows.filter(pc.not_equal(pc.utf8_trim_whitespace(rows), ""))
    if len(rows) and pc.all(pc.match_substring_regex(rows, _LIST)).as_py():
        raise DataError(
            f"expected lists, or text in which {separator!r} divides the words, got lists written as text, such "
            f"as {rows[0].as_py()!r}; join the words by {separator!r}, or write Parquet, which has lists"
        )


def other_notation(
    words: Iterable[str], counts: np.ndarray, separator: str | None, are_known: Callable[[list[str]], np.ndarray]
) -> str | None:
    """Return how words are written that are not known as they are, or None where that does not explain them.

    Args:
        words: ``[N]`` distinct words, all those of a column or a sample.
        counts: ``[N]`` how often each is there.
        separator: what divides the words of a sequence; None for single words.
        are_known: takes words, returns a bool for each.

    Example:
        >>> known = lambda words: np.isin(words, ["a", "b"])
        >>> other_notation(["a,b", "b,b,a", "a"], np.array([1, 1, 1]), "|", known)
        "',' divides them, not '|', for example in 'a,b'"
    """
    words = list(words)
    strange = np.flatnonzero(~are_known(words))
    for divider in (None, *(other for other in _SEPARATORS if separator is not None and other != separator)):
        read = {index: parts for index in strange if (parts := _parts(words[index], divider)) != [words[index]]}
        known = iter(are_known([part for parts in read.values() for part in parts]))
        explained = [index for index, parts in read.items() if sum(next(known) for _ in parts) >= len(parts) / 2]
        share = counts[explained].sum()
        if explained and share >= max(_MOST * counts[strange].sum(), _ENOUGH * counts.sum()):
            how = f"{divider!r} divides them, not {separator!r}" if divider else "there are blanks around them"
            return f"{how}, for example in {words[explained[0]]!r}"
    return None


def _parts(word: str, divider: str | None) -> list[str]:
    pieces = [word] if divider is None else word.split(divider)
    return [piece.strip() for piece in pieces if piece.strip()]
