"""Negative sampling: for every click of a history, an item that was not clicked.

The draw is joint for all pairs of a group: one tuple (item, category, ...) that occurs in the training
table, so that a negative item comes with its own category. Draws are hashes of where they are used,
(seed, epoch, row, step), and so depend neither on the order of batches nor on worker or rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import as_column, row_slices, split_words
from dien_fast.data.fitting import Encoders
from dien_fast.data.schema import Group, Schema
from dien_fast.data.tables import get_column
from dien_fast.data.vocabulary import Vocabulary, count_words, encode_column, merge_counts, sequence_words
from dien_fast.errors import DataError
from dien_fast.progress import step

_ATTEMPTS = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# With at most so many possible tuples of ids, a table holds the catalogue entry of each.
_TABLE_SIZE = 1 << 22


def mix(x: np.ndarray) -> np.ndarray:
    """Return the splitmix64 finaliser of uint64 ``x``: a bijection whose output looks random.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _below(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Return int64 in [0, limit), uniform for uniform uint64 ``hashes``."""
    unit = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (unit * limit).astype(np.int64)


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
        found = np.searchsorted(self.keys, keys)
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
        if schema.negatives not in ("uniform", "popularity"):
            raise DataError(f"negatives={schema.negatives!r} draws nothing; use 'uniform' or 'popularity'")
        by_popularity = schema.negatives == "popularity"
        catalogues = {}
        for group in schema.groups:
            catalogues[group.name] = _collect(table, schema, group, encoders, by_popularity)
            step()
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


def _collect(table: pa.Table, schema: Schema, group: Group, encoders: Encoders, by_popularity: bool) -> _Catalogue:
    """Return the tuples of a group, from its candidates and its histories."""
    ads = [as_column(get_column(table, pair.ad, "table")) for pair in group.pairs]
    histories = [as_column(get_column(table, pair.pos_hist, "table")) for pair in group.pairs]
    raw = []
    for ad, history in zip(ads, histories, strict=True):
        words = [count_words(row_slices(ad)), count_words(sequence_words(history, schema.separator))]
        raw.append(Vocabulary.from_counts(merge_counts(words), min_count=1))
    sizes = [len(vocabulary) for vocabulary in raw]
    if np.prod([float(size) for size in sizes]) > 2.0**62:
        raise DataError(f"group {group.name!r} has too many possible tuples of {len(raw)} columns to draw from")

    encoded = [encode_column(vocabulary, ad) for vocabulary, ad in zip(raw, ads, strict=True)]
    seen, times = np.unique(_join(encoded, sizes), return_counts=True)
    for clicked in _history_tuples(raw, histories, schema.separator, group):
        new = np.setdiff1d(clicked, seen)
        seen, times = np.append(seen, new), np.append(times, np.zeros(len(new), np.int64))
    return _encode_tuples(group, seen, np.maximum(times, 1) if by_popularity else None, raw, encoders)


def _history_tuples(
    raw: list[Vocabulary], histories: list[pa.ChunkedArray], separator: str, group: Group
) -> Iterator[np.ndarray]:
    """Yield the tuples of the histories as single numbers, some more than once."""
    if len(raw) == 1:
        # With one column every word is a tuple, and the histories need not be read again.
        yield np.arange(1, raw[0].unknown)
        return
    for rows in zip(*(row_slices(history) for history in histories), strict=True):
        split = [split_words(part, separator) for part in rows]
        if any(not np.array_equal(counts, split[0][1]) for _, counts in split[1:]):
            raise DataError(f"the histories of group {group.name!r} differ in length")
        encoded = [vocabulary.encode(words) for vocabulary, (words, _) in zip(raw, split, strict=True)]
        yield _join(encoded, [len(vocabulary) for vocabulary in raw])


def _encode_tuples(
    group: Group, seen: np.ndarray, weights: np.ndarray | None, raw: list[Vocabulary], encoders: Encoders
) -> _Catalogue:
    """Return the catalogue of raw tuples ``seen`` with their weights, as the encoders write them."""
    values: list[np.ndarray] = []
    rest = seen
    for pair, vocabulary in reversed(list(zip(group.pairs, raw, strict=True))):
        rest, codes = np.divmod(rest, len(vocabulary))
        target = encoders.sequence(pair.neg_hist).vocabulary_
        ids = np.concatenate([[0], target.encode(vocabulary.known), [target.unknown]])
        values.insert(0, ids[codes])
    sizes = [encoders.sequence(pair.neg_hist).dimension() for pair in group.pairs]
    keys, first, index = np.unique(_join(values, sizes), return_index=True, return_inverse=True)
    if len(keys) < 2:
        raise DataError(
            f"group {group.name!r} has {len(keys)} item that the encoders can tell apart, but drawing negatives "
            "needs two: lower min_count or train without negatives"
        )
    table = None
    if np.prod([float(size) for size in sizes]) <= _TABLE_SIZE:
        table = np.full(int(np.prod(sizes)), -1, np.int32)
        table[keys] = np.arange(len(keys))
    draws = index.astype(np.int32) if weights is None else np.repeat(index.astype(np.int32), weights)
    return _Catalogue([column[first] for column in values], draws, sizes, keys, table)
