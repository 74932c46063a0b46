"""Words and their ids: counting, and looking up whole columns at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import as_column, first_line, is_text, row_slices, split_words
from dien_fast.data.hashing import hash_texts
from dien_fast.errors import DataError

PAD = "__PAD__"
UNKNOWN = "__UNKNOWN__"

_TYPES = {"int64": pa.int64(), "string": pa.large_string()}
_NONE = np.zeros(0, np.int64)
# From so many words on, it takes Arrow longer to make its hash table, in each call, than to look up a batch.
_SORTED_WORDS = 1 << 14
# Up to so many words, a few are looked up as Python objects; they take some 100 bytes each.
_INDEXED_WORDS = 1 << 17
# Texts become Python objects before they get a hash.
_HASHED_AT_ONCE = 1 << 18
# Text that fits 64 bits as a whole number.
_WHOLE_NUMBER = r"^[+-]?0*([0-9]{1,18}|[1-8][0-9]{18})(\.0+)?$"


class WordCounts(NamedTuple):
    """Distinct words of one kind (``"int64"`` or ``"string"``) and how often each was seen."""

    words: pa.Array
    counts: np.ndarray
    kind: str


def sequence_words(column: pa.Array | pa.ChunkedArray, separator: str) -> Iterator[pa.Array]:
    """Yield the words of a sequence column, slice by slice."""
    for rows in row_slices(column):
        yield split_words(rows, separator)[0]


def natural_kind(words: pa.Array) -> str:
    """Return the kind of ids the words are: ``"int64"`` for whole numbers, else ``"string"``."""
    if pa.types.is_integer(words.type):
        if pa.types.is_uint64(words.type) and len(words) and (pc.max(words).as_py() or 0) >= 1 << 63:
            return "string"
        return "int64"
    if pa.types.is_floating(words.type):
        whole = pc.or_(_whole(words), pc.is_nan(words))
        return "int64" if pc.all(pc.fill_null(whole, True)).as_py() else "string"
    return "int64" if pa.types.is_boolean(words.type) else "string"


def _whole(numbers: pa.Array) -> pa.Array:
    """Return bool: floats that are whole numbers and exact as such."""
    return pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), float(1 << 53)))


def cast_words(words: pa.Array, kind: str) -> pa.Array:
    """Return the words as ``kind``; a word that is no whole number becomes null for ``"int64"``.

    Raises:
        DataError: no word at all is of that kind.
    """
    target = _TYPES[kind]
    if words.type == target:
        return words
    if pa.types.is_floating(words.type):
        words = pc.if_else(pc.is_nan(words), None, words)
    try:
        if kind == "string":
            if pa.types.is_boolean(words.type):
                return pc.if_else(words, "True", "False").cast(target)  # as pandas writes them
            return words.cast(target)
        if is_text(words.type):
            matches = pc.match_substring_regex(words, _WHOLE_NUMBER)
            kept = pc.if_else(matches, words, None)
            if kept.null_count == len(words) > words.null_count:
                example = words.drop_null()[0].as_py()
                if example not in (PAD, UNKNOWN):
                    raise DataError(f"expected whole numbers, as it was fitted on, got the text {example!r}")
            return pc.replace_substring_regex(kept, r"(^\+)|(\.0+$)", "").cast(target)
        if pa.types.is_floating(words.type):
            return pc.if_else(_whole(words), words, None).cast(target)
        if pa.types.is_uint64(words.type):
            return pc.if_else(pc.less(words, pa.scalar(1 << 63, pa.uint64())), words, None).cast(target)
        return words.cast(target)
    except pa.ArrowException as error:
        raise DataError(f"{words.type} values cannot be read as {kind} words: {first_line(error)}") from None


class WordCounter:
    """Counts the words of a column that comes in parts, in memory that grows with the distinct words alone.

    Attributes:
        missing: how many nulls there were.

    Example:
        >>> counter = WordCounter()
        >>> for part in (["a", "b"], ["a", None]):
        ...     counter.add(pa.array(part))
        >>> counts = counter.counts()
        >>> dict(zip(counts.words.to_pylist(), counts.counts.tolist())), counter.missing
        ({'a': 2, 'b': 1}, 1)
    """

    def __init__(self) -> None:
        self.missing = 0
        self._parts: list[WordCounts] = []

    def add(self, part: pa.Array) -> None:
        """Count the words of a part; all parts are of one type."""
        kind = natural_kind(part)
        words = cast_words(part, kind)
        self.missing += words.null_count
        words = words.drop_null()
        if not len(words):
            return
        if kind == "int64":
            numbers = np.sort(words.to_numpy())
            first = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
            found = WordCounts(pa.array(numbers[first]), np.diff(first, append=len(numbers)), kind)
        else:
            counted = pc.value_counts(words)
            found = WordCounts(counted.field("values"), counted.field("counts").to_numpy(), kind)
        self._parts.append(found)
        # Each word is merged as often as the counts can double.
        while len(self._parts) > 1 and 2 * len(self._parts[-1].words) >= len(self._parts[-2].words):
            last = self._parts.pop()
            self._parts[-1] = merge_counts([self._parts[-1], last])

    def counts(self) -> WordCounts:
        """Return the distinct words so far, without nulls."""
        while len(self._parts) > 1:
            last = self._parts.pop()
            self._parts[-1] = merge_counts([self._parts[-1], last])
        return self._parts[0] if self._parts else WordCounts(pa.array([], pa.large_string()), _NONE, "string")


def count_words(parts: Iterable[pa.Array]) -> WordCounts:
    """Return the distinct words of a column, given in parts of one type, without nulls."""
    counter = WordCounter()
    for part in parts:
        counter.add(part)
    return counter.counts()


def merge_counts(counts: list[WordCounts]) -> WordCounts:
    """Return the counts of several columns as one, in a kind that fits all of them.

    Whole numbers and text that is all whole numbers give ``"int64"``; anything else is text.
    """
    filled = [item for item in counts if len(item.words)]
    if not filled:
        return counts[0]
    if len(filled) == 1:
        return filled[0]
    kind = filled[0].kind
    if any(item.kind != kind for item in filled):
        kind = "int64"
        for item in filled:
            whole = item.kind == "int64" or pc.all(pc.match_substring_regex(item.words, _WHOLE_NUMBER)).as_py()
            kind = kind if whole else "string"
    if kind == "int64":
        numbers, counted = _NONE, _NONE
        for item in filled:
            words = cast_words(item.words, kind).to_numpy()
            numbers, counted = merge_keys(numbers, counted, *sum_by_key(words, item.counts))
        return WordCounts(pa.array(numbers), counted, kind)
    words = pa.concat_arrays([cast_words(item.words, kind) for item in filled])
    table = pa.table({"word": words, "count": np.concatenate([item.counts for item in filled])})
    merged = table.group_by("word").aggregate([("count", "sum")]).combine_chunks()
    return WordCounts(_one_array(merged["word"]), merged["count_sum"].to_numpy(), kind)


def sum_by_key(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys, rising, and the sum of the counts of each.

    Args:
        keys: ``[N]`` int64.
        counts: ``[N]`` int64.
    """
    if (keys[1:] > keys[:-1]).all():
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)


def merge_keys(
    keys: np.ndarray, counts: np.ndarray, others: np.ndarray, other_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of two, rising as those of each are, with the sums of their counts.

    Example:
        >>> merge_keys(np.array([1, 5]), np.array([1, 1]), np.array([3, 5]), np.array([2, 2]))
        (array([1, 3, 5]), array([1, 2, 3]))
    """
    if not len(keys) or not len(others):
        return (keys, counts) if len(keys) else (others, other_counts)
    place = np.searchsorted(keys, others)
    there = keys[np.minimum(place, len(keys) - 1)] == others
    counts = counts.copy()
    counts[place[there]] += other_counts[there]
    new = place[~there]
    return np.insert(keys, new, others[~there]), np.insert(counts, new, other_counts[~there])


def have_common_words(left: WordCounts, right: WordCounts) -> bool:
    """Return whether two columns have a word in common, in a kind that fits both."""
    if left.kind != right.kind:
        return len(merge_counts([left, right]).words) < len(left.words) + len(right.words)
    small, large = sorted((left, right), key=lambda counts: len(counts.words))
    if left.kind == "int64" and len(small.words):
        keys = sum_by_key(large.words.to_numpy(), large.counts)[0]
        return bool((find_sorted(keys, small.words.to_numpy()) < len(keys)).any())
    return bool(pc.any(pc.is_in(large.words, value_set=small.words)).as_py())


def find_sorted(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the place of each wanted key among the rising ``keys``, and ``len(keys)`` where it is none of them.

    Looking them up in order reads the memory in order, which is several times as fast as a hash table.

    Args:
        keys: ``[K]`` of at least one.
        wanted: ``[N]`` of the same dtype.
    """
    if len(wanted) and not (wanted[1:] >= wanted[:-1]).all():
        order = np.argsort(wanted)
        places = np.empty(len(wanted), np.int64)
        places[order] = find_sorted(keys, wanted[order])
        return places
    place = np.searchsorted(keys, wanted)
    place[keys[np.minimum(place, len(keys) - 1)] != wanted] = len(keys)
    return place


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


class _SortedKeys(NamedTuple):
    """Words as numbers to look up: whole numbers themselves, and hashes of text.

    Attributes:
        keys: ``[K]`` int64 or uint64, rising.
        order: ``[K]`` int32, the word of each key; None where that is the key's own place.
        are_distinct: whether no two are equal; among 10^8 texts two are so with a probability of 3e-4.
    """

    keys: np.ndarray
    order: np.ndarray | None
    are_distinct: bool

    @classmethod
    def of(cls, words: pa.Array) -> _SortedKeys:
        keys, order = _as_keys(words), None
        if not (keys[1:] > keys[:-1]).all():
            order = np.argsort(keys).astype(np.int32)
            keys = keys[order]
        return cls(keys, order, bool((keys[1:] != keys[:-1]).all()))

    def find(self, words: pa.Array, known: pa.Array) -> np.ndarray:
        """Return the place of each of ``words`` among ``known``, and ``len(known)`` where it is none of them."""
        places = find_sorted(self.keys, _as_keys(words))
        if self.order is not None:
            places = np.append(self.order, np.int32(len(known)))[places]
        if is_text(words.type):
            # Another text may have the hash of a known one.
            same = pc.equal(known.take(pa.array(np.minimum(places, len(known) - 1))), words)
            places[~pc.fill_null(same, False).to_numpy(zero_copy_only=False)] = len(known)
        elif words.null_count:
            places[words.is_null().to_numpy(zero_copy_only=False)] = len(known)
        return places


def _as_keys(words: pa.Array) -> np.ndarray:
    """Return ``[N]`` numbers, equal for equal words."""
    if not is_text(words.type):
        return words.fill_null(0).to_numpy(zero_copy_only=False)
    parts = [np.zeros(0, np.uint64)]
    for start in range(0, len(words), _HASHED_AT_ONCE):
        parts.append(hash_texts(words.slice(start, _HASHED_AT_ONCE)))
    return np.concatenate(parts)


class Vocabulary:
    """A fixed set of words, each with an id.

    The words are an Arrow array, since a Python object for each of 10^8 words would take some ten gigabytes.

    Args:
        words: the words by id; ``"__PAD__"`` has id 0, ``"__UNKNOWN__"`` is among them.
        kind: ``"int64"`` or ``"string"``, what the other words are.

    Attributes:
        unknown: the id of ``"__UNKNOWN__"``.
        known: the words but for the two special ones, in the order of their ids.
    """

    def __init__(self, words: list[Any], kind: str) -> None:
        real = [word for word in words if word not in (PAD, UNKNOWN)]
        self.kind = kind
        self.unknown = words.index(UNKNOWN)
        self.known = pa.array(real, _TYPES[kind])
        # What the words are looked up in, once they are many.
        self._keys: _SortedKeys | None = None

    @classmethod
    def of(cls, known: pa.Array, kind: str, unknown: int | None = None) -> Vocabulary:
        """Return the vocabulary of the words that are not special.

        Args:
            known: them, of the type of ``kind``, in the order of their ids.
            kind: ``"int64"`` or ``"string"``.
            unknown: the id of ``"__UNKNOWN__"``; None puts it last.

        Raises:
            ValueError: the words are of another kind, or there is no such id.
        """
        vocabulary = cls([PAD, UNKNOWN], kind)
        vocabulary.known = known
        vocabulary.unknown = len(known) + 1 if unknown is None else unknown
        if known.type != _TYPES[kind] or not 0 < vocabulary.unknown <= len(known) + 1:
            raise ValueError(
                f"expected {kind} words and an id of up to {len(known) + 1}, got {known.type}, {unknown}"
            )
        return vocabulary

    def __len__(self) -> int:
        return len(self.known) + 2

    @property
    def words(self) -> list[Any]:
        """All words by id, as a new list."""
        words = [PAD, *self.known.to_pylist()]
        words.insert(self.unknown, UNKNOWN)
        return words

    def word(self, index: int) -> Any:
        """Return the word that has an id."""
        if index in (0, self.unknown):
            return PAD if index == 0 else UNKNOWN
        return self.known[index - 1 - (index > self.unknown)].as_py()

    def is_same(self, other: Vocabulary) -> bool:
        """Return whether all words have the same ids in another vocabulary."""
        return self.unknown == other.unknown and (self.known is other.known or self.known.equals(other.known))

    @classmethod
    def from_counts(cls, counts: WordCounts, min_count: int) -> Vocabulary:
        """Return the words seen at least ``min_count`` times, sorted, between the two special ones."""
        kept = counts.words.filter(pa.array(counts.counts >= min_count))
        known = pa.array(np.sort(kept.to_numpy())) if counts.kind == "int64" else kept.take(pc.sort_indices(kept))
        if counts.kind == "string":
            known = known.filter(pc.invert(pc.is_in(known, pa.array([PAD, UNKNOWN], known.type))))
        return cls.of(known, counts.kind)

    @classmethod
    def from_word2idx(cls, word2idx: dict[Any, int]) -> Vocabulary:
        """Return the vocabulary of a ready-made mapping; the special words are added where missing.

        Raises:
            DataError: ids that are not 0 .. len - 1, id 0 on another word than ``__PAD__``, or words
                that are neither all text nor all whole numbers.
        """
        given = dict(word2idx)
        given.setdefault(PAD, 0)
        given.setdefault(UNKNOWN, len(given))
        by_id: list[Any] = [None] * len(given)
        for word, index in given.items():
            if not isinstance(index, int | np.integer) or not 0 <= index < len(given):
                raise DataError(f"word2idx must give the ids 0 to {len(given) - 1}, got {index!r} for {word!r}")
            if by_id[index] is not None:
                raise DataError(f"word2idx gives the id {index} to {by_id[index]!r} and to {word!r}")
            by_id[index] = word.item() if isinstance(word, np.generic) else word
        if by_id[0] != PAD:
            raise DataError(f"word2idx must give the id 0 to {PAD!r}, got {given[PAD]}")
        kinds = {type(word) for word in by_id if word not in (PAD, UNKNOWN)} or {str}
        if len(kinds) > 1 or not kinds <= {int, str}:
            raise DataError("word2idx must hold words that are all text or all whole numbers")
        return cls(by_id, "int64" if kinds == {int} else "string")

    def word2idx(self) -> dict[Any, int]:
        """Return word -> id."""
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, words: pa.Array) -> np.ndarray:
        """Return the ``[N]`` int64 ids of the words; nulls and words not known get UNKNOWN's.

        Raises:
            DataError: the words cannot be of the vocabulary's kind.
        """
        ids = self._id_of(self._places(cast_words(words, self.kind)))
        if is_text(words.type):
            padding = pc.fill_null(pc.equal(words, PAD), False)
            if pc.any(padding).as_py():
                ids[padding.to_numpy(zero_copy_only=False)] = 0
        return ids

    def encode_list(self, words: list[Any]) -> np.ndarray | None:
        """Return what :meth:`encode` does for a few words, which are Python objects of the vocabulary's own kind.

        Args:
            words: ``[N]`` of int or str, whichever the words of the vocabulary are, or None.

        Returns:
            int64 ids ``[N]``; None where Arrow cannot hold one of the words.
        """
        if len(self) > _INDEXED_WORDS:
            try:
                return self.encode(pa.array(words, _TYPES[self.kind]))
            except (OverflowError, UnicodeError):
                return None
        index, unknown = self._index, self.unknown
        ids = np.array([index.get(word, unknown) for word in words], np.int64)
        strange = [words[place] for place in np.flatnonzero(ids == unknown)]
        if strange:
            try:
                pa.array(strange, _TYPES[self.kind])
            except (OverflowError, UnicodeError):
                return None
        return ids

    @cached_property
    def _index(self) -> dict[Any, int]:
        return self.word2idx()

    @cached_property
    def knows_zero(self) -> bool:
        """Whether 0, as a number or as text, is one of the words."""
        return bool(knows(self, ["0"])[0])

    def _places(self, words: pa.Array) -> np.ndarray:
        """Return the place of each word among the known, behind them where it is none of them."""
        if len(self.known) >= _SORTED_WORDS:
            if self._keys is None:
                self._keys = _SortedKeys.of(self.known)
            if self._keys.are_distinct:
                return self._keys.find(words, self.known)
        found = pc.index_in(words, value_set=self.known)
        return pc.fill_null(found, len(self.known)).to_numpy(zero_copy_only=False)

    def _id_of(self, index: np.ndarray) -> np.ndarray:
        """Return the int64 ids of the words that have these places among the known; behind them all is UNKNOWN."""
        ids = index.astype(np.int64) + 1
        if self.unknown <= len(self.known):
            ids += ids >= self.unknown
            ids[index == len(self.known)] = self.unknown
        return ids

    def translation(self, other: Vocabulary) -> np.ndarray:
        """Return, for each id of this vocabulary, the int64 id of the same word in another, or -1."""
        ids = np.full(len(self), -1)
        try:
            found = other.encode(self.known)
        except DataError:
            # The other's words are numbers, and none of these is.
            return ids
        ids[self._id_of(np.arange(len(self.known)))] = np.where(found == other.unknown, -1, found)
        return ids


def encode_column(vocabulary: Vocabulary, x: Any) -> np.ndarray:
    """Return the ``[N]`` int64 ids of a one-dimensional column."""
    parts = [vocabulary.encode(rows) for rows in row_slices(as_column(x))]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def knows(vocabulary: Vocabulary, words: pa.Array | list[str]) -> np.ndarray:
    """Return ``[N]`` bool: which texts are words of the vocabulary."""
    try:
        return vocabulary.encode(pa.array(words, pa.large_string())) != vocabulary.unknown
    except DataError:
        # None of them is a number, but all words of the vocabulary are.
        return np.zeros(len(words), bool)
