"""Negative sampling: for every click of a history, an item that was not clicked.

The draw is joint for all pairs of a group: one tuple (item, category, ...) that occurs in the training
table, so that a negative item comes with its own category. Draws are hashes of where they are used,
(seed, epoch, row, step), and so depend neither on the order of batches nor on worker or rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import as_column, row_slices, split_words
from dien_fast.data.fitting import Encoders
from dien_fast.data.hashing import mix, unit
from dien_fast.data.schema import Group, Schema
from dien_fast.data.tables import get_column
from dien_fast.data.vocabulary import (
    Vocabulary,
    WordCounter,
    encode_column,
    merge_counts,
    merge_keys,
    sequence_words,
    sum_by_key,
)
from dien_fast.errors import DataError
from dien_fast.progress import step

_ATTEMPTS = 64
# With at most so many possible tuples of ids, or so many for each that occurs, a table holds the catalogue entry
# of each. A search takes 60 times as long among 5 million.
_TABLE_SIZE = 1 << 22
_TABLE_SIZE_PER_TUPLE = 4


def _below(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Return int64 in [0, limit), uniform for uniform uint64 ``hashes``."""
    return (unit(hashes) * limit).astype(np.int64)


@dataclass
class _Catalogue:
    """The tuples that one group draws from.

    Attributes:
        values: ``[K]`` int64 ids for each pair, of the K tuples that differ after encoding, sorted.
        draws: ``[M]`` int32 indices into ``values``, each as often as it should be drawn.
        sizes: the vocabulary size of each pair.
        keys: ``[K]`` int64, the tuples as single numbers, rising.
        table: ``[product of sizes]`` int32, the index of a key or -1; None where too large.
    """

    values: list[np.ndarray]
    draws: np.ndarray
    sizes: list[int]
    keys: np.ndarray
    table: np.ndarray | None

    def index_of(self, values: list[np.ndarray]) -> np.ndarray:
        """Return the ``[N]`` indices of encoded tuples, -1 for those not in the catalogue."""
        keys = _join(values, self.sizes)
        if self.table is not None:
            return self.table[keys]
        order = np.argsort(keys)  # neighbours share what the search reads: twice as fast among 5 million
        found = np.empty_like(order)
        found[order] = np.searchsorted(self.keys, keys[order])
        found[found == len(self.keys)] = 0
        return np.where(self.keys[found] == keys, found, -1)


class NegativeSampler:
    """Draws negative histories; make one with :meth:`fit` from the training table.

    Attributes:
        fresh: True draws anew each epoch, False draws the same in every epoch.

    Example:
        >>> from dien_fast.data import Pair, fit_encoders
        >>> group = Group("items", [Pair("itemId", "history")])
        >>> schema = Schema(categorical=["itemId"], sequences=["history"], groups=[group], min_count=1)
        >>> table = pa.table({"itemId": [7, 8], "history": [[8], [7, 7]]})
        >>> sampler = NegativeSampler.fit(table, schema, fit_encoders(table, schema))
        >>> clicks = np.array([2, 1, 1])  # the ids of 8 | 7, 7
        >>> sampler.sample(group, [clicks], offsets=np.array([0, 1, 3]), rows=np.array([0, 1]))
        [array([1, 2, 2])]
    """

    def __init__(
        self, catalogues: dict[str, _Catalogue], *, exclude_clicked: bool, seed: int, fresh: bool
    ) -> None:
        self._catalogues = catalogues
        self._exclude_clicked = exclude_clicked
        self._seed = seed
        self.fresh = fresh

    @classmethod
    def fit(
        cls, table: pa.Table, schema: Schema, encoders: Encoders, seed: int = 0, *, fresh: bool = True
    ) -> NegativeSampler:
        """Collect what each group can draw: the tuples of its candidates and histories in ``table``.

        Tuples count as different if their words differ, also where the encoders know neither, so that
        ``__UNKNOWN__`` is drawn as often as rare items occur. With ``negatives="popularity"`` a tuple's
        weight is the number of times it was a candidate, at least 1; otherwise all weights are equal.

        Args:
            table: the training rows.
            schema: groups, ``negatives`` (uniform or popularity) and ``exclude_clicked``.
            encoders: as fitted on the same table.
            seed: what the draws depend on beside epoch, row and step.
            fresh: draw anew each epoch.

        Raises:
            DataError: a group has fewer than two tuples that the encoders can tell apart.
        """
        _check_draws(schema)
        found = {}
        for group in schema.groups:
            ads = [as_column(get_column(table, pair.ad, "table")) for pair in group.pairs]
            histories = [as_column(get_column(table, pair.pos_hist, "table")) for pair in group.pairs]
            counters = []
            for ad, history in zip(ads, histories, strict=True):
                counters.append((WordCounter(), WordCounter()))
                for part in row_slices(ad):
                    counters[-1][0].add(part)
                for part in sequence_words(history, schema.separator):
                    counters[-1][1].add(part)
            found[group.name] = collect_tuples([table], schema, group, encoders, counters)
            step()
        return cls.of(found, schema, encoders, seed, fresh=fresh)

    @classmethod
    def of(
        cls, tuples: dict[str, Tuples], schema: Schema, encoders: Encoders, seed: int = 0, *, fresh: bool = True
    ) -> NegativeSampler:
        """Return the sampler of tuples that were collected before, of each group.

        Args:
            tuples: of each group, by its name.
            schema: as for :meth:`fit`.
            encoders: as for :meth:`fit`.
            seed: as for :meth:`fit`.
            fresh: as for :meth:`fit`.

        Raises:
            DataError: as :meth:`fit`.
        """
        _check_draws(schema)
        by_popularity = schema.negatives == "popularity"
        catalogues = {
            group.name: _catalogue(group, tuples[group.name], encoders, by_popularity) for group in schema.groups
        }
        return cls(catalogues, exclude_clicked=schema.exclude_clicked, seed=seed, fresh=fresh)

    def sample(
        self,
        group: Group,
        values_per_pair: list[np.ndarray],
        offsets: np.ndarray,
        rows: np.ndarray,
        epoch: int = 0,
    ) -> list[np.ndarray]:
        """Return one negative for every click.

        A negative is never the click of its own step, nor, with ``exclude_clicked``, one of the clicks up
        to that step; where 64 draws find no such item, only the click itself is avoided.

        Args:
            group: which group of the schema.
            values_per_pair: ``[N]`` encoded clicks for each pair of the group.
            offsets: ``[B + 1]`` int64 offsets of the histories.
            rows: ``[B]`` row numbers in the data set.
            epoch: draws differ between epochs (unless ``fresh`` is False).

        Returns:
            ``[N]`` int64 ids for each pair.
        """
        catalogue = self._catalogues[group.name]
        lengths = np.diff(offsets)
        clicks = catalogue.index_of(values_per_pair)
        steps = np.arange(len(clicks)) - np.repeat(offsets[:-1], lengths)
        keys = self._keys(group, np.asarray(rows), lengths, steps, epoch)

        history = None
        if self._exclude_clicked:
            history = _History(clicks, steps, np.repeat(np.arange(len(lengths)), lengths), len(catalogue.keys))
        drawn = catalogue.draws[_below(mix(keys), len(catalogue.draws))]
        refused = drawn == clicks
        if history is not None:
            refused |= history.contains(drawn)
        pending = np.flatnonzero(refused)
        for attempt in range(1, _ATTEMPTS):
            if not len(pending):
                break
            hashes = mix(keys[pending] + np.uint64(attempt))
            again = catalogue.draws[_below(hashes, len(catalogue.draws))]
            drawn[pending] = again
            refused = again == clicks[pending]
            if history is not None:
                refused |= history.contains(again, pending)
            pending = pending[refused]
        if len(pending):
            # For the others, each of the K - 1 entries that are not the click is drawn with equal probability.
            count = len(catalogue.keys)
            away = 1 + _below(mix(keys[pending] + np.uint64(_ATTEMPTS)), count - 1)
            drawn[pending] = (clicks[pending] + away) % count
        return [values[drawn] for values in catalogue.values]

    def _keys(
        self, group: Group, rows: np.ndarray, lengths: np.ndarray, steps: np.ndarray, epoch: int
    ) -> np.ndarray:
        """Return ``[N]`` uint64, one for every (seed, epoch, group, row, step): a multiple of 128."""
        index = list(self._catalogues).index(group.name)
        start = np.asarray([self._seed % (1 << 64)], np.uint64)
        for part in (index, epoch if self.fresh else 0):
            start = mix(start + np.uint64(part))
        per_row = mix(start + rows.astype(np.uint64))
        return mix(np.repeat(per_row, lengths) + steps.astype(np.uint64)) << np.uint64(7)


def _check_draws(schema: Schema) -> None:
    if schema.negatives not in ("uniform", "popularity"):
        raise DataError(f"negatives={schema.negatives!r} draws nothing; use 'uniform' or 'popularity'")


class _History:
    """Answers whether an item was clicked in the same history up to a step."""

    def __init__(self, clicks: np.ndarray, steps: np.ndarray, row_of: np.ndarray, count: int) -> None:
        self._width = int(steps.max(initial=0)) + 1
        self._first_key = row_of * (count * self._width)
        self._steps = steps
        known = clicks >= 0
        # Keys order events by row, then item, then step.
        self._keys = np.sort((self._first_key + clicks.astype(np.int64) * self._width + steps)[known])
        self._keys = np.append(self._keys, np.iinfo(np.int64).max)
        # Most draws are not in the history: the low bits of its items, marked for each row, spare their search.
        self._marks_width = 1 << (16 * self._width - 1).bit_length()
        self._first_mark = row_of * self._marks_width
        self._marks = np.zeros((int(row_of.max(initial=0)) + 1) * self._marks_width, bool)
        self._marks[(self._first_mark + (clicks & (self._marks_width - 1)))[known]] = True

    def contains(self, items: np.ndarray, where: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return bool: whether ``items`` were clicked in the histories at the events ``where`` or before."""
        result = self._marks[self._first_mark[where] + (items & (self._marks_width - 1))]
        marked = np.flatnonzero(result)
        lowest = self._first_key[where][marked] + items[marked].astype(np.int64) * self._width
        found = self._keys[np.searchsorted(self._keys, lowest)] <= lowest + self._steps[where][marked]
        result[marked] = found
        return result


def _join(values: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Return tuples of ids as single int64 numbers."""
    keys = values[0].astype(np.int64)
    for column, size in zip(values[1:], sizes[1:], strict=True):
        keys = keys * size + column
    return keys


class Tuples(NamedTuple):
    """What a group can draw: the tuples of its candidates, then those that are in histories alone.

    Attributes:
        values: int64 ids ``[K]`` for each pair, as the encoders write them; some tuples may be equal after that.
        times: ``[K]`` int64, how often each was a candidate.
    """

    values: list[np.ndarray]
    times: np.ndarray


def collect_tuples(
    tables: Iterable[pa.Table],
    schema: Schema,
    group: Group,
    encoders: Encoders,
    counters: Sequence[tuple[WordCounter, WordCounter]],
) -> Tuples:
    """Return the tuples of a group, from its candidates and its histories in the training rows.

    Args:
        tables: the training rows in parts; not read where the group has one pair alone.
        schema: what the columns mean.
        group: of the schema.
        encoders: as fitted on the same rows.
        counters: for each pair the words of its candidates and of its histories, counted over the same rows.

    Raises:
        DataError: the histories of the group differ in length, or it has too many possible tuples.
    """
    words = [merge_counts([ad.counts(), history.counts()]) for ad, history in counters]
    raw = [Vocabulary.from_counts(found, min_count=1) for found in words]
    sizes = [len(vocabulary) for vocabulary in raw]
    if np.prod([float(size) for size in sizes]) > 2.0**62:
        raise DataError(f"group {group.name!r} has too many possible tuples of {len(raw)} columns to draw from")
    if len(raw) == 1:
        # With one column every word is a tuple, and the rows need not be read again.
        del words
        seen, times = _single_words(raw[0], counters[0][0])
    else:
        shown, clicked = _Keys(), _Keys()
        for table in tables:
            ads = [get_column(table, pair.ad, "table") for pair in group.pairs]
            encoded = [encode_column(vocabulary, ad) for vocabulary, ad in zip(raw, ads, strict=True)]
            shown.add(_join(encoded, sizes))
            for keys in _history_tuples(table, raw, schema.separator, group):
                clicked.add(keys)
        seen, times = shown.counts()
        others = _without(clicked.counts()[0], seen)
        seen, times = np.append(seen, others), np.append(times, np.zeros(len(others), np.int64))
    return Tuples(_encode_tuples(group, seen, raw, encoders), times)


def _single_words(vocabulary: Vocabulary, candidates: WordCounter) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that were candidates, then all others, and how often each was one.

    Args:
        vocabulary: of all words.
        candidates: those of the candidates.
    """
    counts = candidates.counts()
    times = np.zeros(len(vocabulary), np.int64)
    np.add.at(times, vocabulary.encode(counts.words), counts.counts)
    times[vocabulary.unknown] += candidates.missing
    others = 1 + np.flatnonzero(times[1 : vocabulary.unknown] == 0)
    seen = np.append(np.flatnonzero(times), others)
    return seen, times[seen]


def _without(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the keys that are not among the others; both are rising."""
    place = np.minimum(np.searchsorted(others, keys), max(len(others) - 1, 0))
    return keys[others[place] != keys] if len(others) else keys


class _Keys:
    """Counts keys that come in parts, in memory that grows with the distinct ones alone."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray, times: np.ndarray | None = None) -> None:
        """Add keys ``[N]``, each ``times`` ``[N]`` or once."""
        self._parts.append(sum_by_key(keys, np.ones(len(keys), np.int64) if times is None else times))
        while len(self._parts) > 1 and 2 * len(self._parts[-1][0]) >= len(self._parts[-2][0]):
            self._merge()

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct keys, rising, and how often each was added."""
        while len(self._parts) > 1:
            self._merge()
        return self._parts[0] if self._parts else (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _merge(self) -> None:
        last = self._parts.pop()
        self._parts[-1] = merge_keys(*self._parts[-1], *last)


def _history_tuples(table: pa.Table, raw: list[Vocabulary], separator: str, group: Group) -> Iterator[np.ndarray]:
    """Yield the tuples of the histories as single numbers, some more than once."""
    histories = [as_column(get_column(table, pair.pos_hist, "table")) for pair in group.pairs]
    for rows in zip(*(row_slices(history) for history in histories), strict=True):
        split = [split_words(part, separator) for part in rows]
        if any(not np.array_equal(counts, split[0][1]) for _, counts in split[1:]):
            raise DataError(f"the histories of group {group.name!r} differ in length")
        encoded = [vocabulary.encode(words) for vocabulary, (words, _) in zip(raw, split, strict=True)]
        yield _join(encoded, [len(vocabulary) for vocabulary in raw])


def _encode_tuples(group: Group, seen: np.ndarray, raw: list[Vocabulary], encoders: Encoders) -> list[np.ndarray]:
    """Return raw tuples as the encoders write them: ``[K]`` int64 ids for each pair."""
    values: list[np.ndarray] = []
    rest = seen
    for pair, vocabulary in reversed(list(zip(group.pairs, raw, strict=True))):
        rest, codes = np.divmod(rest, len(vocabulary)) if len(raw) > 1 else (rest, rest)
        target = encoders.sequence(pair.neg_hist).vocabulary_
        ids = np.concatenate([[0], target.encode(vocabulary.known), [target.unknown]])
        values.insert(0, ids[codes])
    return values


def _catalogue(group: Group, tuples: Tuples, encoders: Encoders, by_popularity: bool) -> _Catalogue:
    sizes = [encoders.sequence(pair.neg_hist).dimension() for pair in group.pairs]
    keys, first, index = np.unique(_join(tuples.values, sizes), return_index=True, return_inverse=True)
    if len(keys) < 2:
        raise DataError(
            f"group {group.name!r} has {len(keys)} item that the encoders can tell apart, but drawing negatives "
            "needs two: lower min_count or train without negatives"
        )
    table = None
    if np.prod([float(size) for size in sizes]) <= max(_TABLE_SIZE, _TABLE_SIZE_PER_TUPLE * len(keys)):
        table = np.full(int(np.prod(sizes)), -1, np.int32)
        table[keys] = np.arange(len(keys))
    draws = index.astype(np.int32)
    if by_popularity:
        draws = np.repeat(draws, np.maximum(tuples.times, 1))
    return _Catalogue([column[first] for column in tuples.values], draws, sizes, keys, table)
