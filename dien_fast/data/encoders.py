"""Encoders from raw columns to ids and numbers: scikit-learn transformers, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils.validation import check_is_fitted

from dien_fast.data.columns import (
    Sequences,
    as_column,
    gather_index,
    is_list,
    offsets_of,
    row_slices,
    sequence_lengths,
    split_words,
    to_finite_floats,
    views,
)
from dien_fast.data.schema import LONGEST
from dien_fast.data.vocabulary import (
    PAD,
    Vocabulary,
    WordCounts,
    count_words,
    encode_column,
    sequence_words,
)
from dien_fast.errors import DataError
from dien_fast.files import parse_json, write_atomically


class _SavedAsJson:
    """Saving and loading of an encoder that gives its content as a dict."""

    def save(self, path: str | Path) -> None:
        """Write the fitted encoder as JSON; a file of that name is replaced at once or not at all."""
        with write_atomically(path) as unfinished:
            unfinished.write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the encoder that :meth:`save` wrote.

        Raises:
            DataError: the file is missing, broken, or holds another encoder.
        """
        try:
            content = parse_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot read the encoder file: {error.strerror}") from None
        except ValueError:
            raise DataError(f"{path}: the encoder file is not JSON") from None
        try:
            return cls.from_dict(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return parameters and fitted state as plain values."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return the encoder that :meth:`to_dict` described.

        Raises:
            DataError: the content is not that of such an encoder.
        """
        encoder = cls()
        kind = content.get("encoder") if isinstance(content, dict) else None
        if kind != cls.__name__:
            raise DataError(f"expected a saved {cls.__name__}, got {kind or 'something else'}")
        try:
            encoder._restore(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException) as error:
            raise DataError(f"the saved {cls.__name__} is damaged: {error!r}") from None
        return encoder

    def _restore(self, content: dict[str, Any]) -> None:
        raise NotImplementedError


class Coverage(NamedTuple):
    """What a vocabulary kept of the words of the column it was fitted on.

    Attributes:
        distinct: how many different words the column has.
        kept: how many of them are in the vocabulary.
        unknown: the share in [0, 1] of all its words, each as often as it occurs, that are not.
    """

    distinct: int
    kept: int
    unknown: float

    @classmethod
    def of(cls, counts: WordCounts, vocabulary: Vocabulary) -> Coverage:
        """Return the coverage of counted words."""
        strange = vocabulary.encode(counts.words) == vocabulary.unknown
        total = counts.counts.sum()
        return cls(
            len(counts.words), int(np.count_nonzero(~strange)), float(counts.counts[strange].sum() / max(total, 1))
        )


class _WordEncoder(_SavedAsJson, TransformerMixin, BaseEstimator):
    """What the two word encoders have in common."""

    min_cnt: int
    word2idx: dict[Any, int] | None
    idx2word: dict[int, Any] | None
    coverage_: Coverage | None = None

    # Made when they are asked for: as Python objects, the words of a large vocabulary take gigabytes.
    @property
    def word2idx_(self) -> dict[Any, int]:
        """Word -> id, as a new dict."""
        check_is_fitted(self, "vocabulary_")
        return self.vocabulary_.word2idx()

    @property
    def idx2word_(self) -> dict[int, Any]:
        """Id -> word, as a new dict."""
        check_is_fitted(self, "vocabulary_")
        return dict(enumerate(self.vocabulary_.words))

    def dimension(self) -> int:
        """Return the number of ids, ``__PAD__`` and ``__UNKNOWN__`` included."""
        check_is_fitted(self, "vocabulary_")
        return len(self.vocabulary_)

    def use(self, vocabulary: Vocabulary, coverage: Coverage | None = None) -> None:
        """Take a ready vocabulary, for example one that several features share.

        Args:
            vocabulary: the words.
            coverage: what it kept of the words of this encoder's own training column, where known.
        """
        self.vocabulary_ = vocabulary
        self.coverage_ = coverage

    def _learn(self, words: Iterable[pa.Array]) -> None:
        """Learn the words of a column, or use the vocabulary that the constructor was given."""
        given = self._given()
        if given is not None:
            self.use(given)
            return
        counts = count_words(words)
        vocabulary = Vocabulary.from_counts(counts, self.min_cnt)
        self.use(vocabulary, Coverage.of(counts, vocabulary))

    def _given(self) -> Vocabulary | None:
        """Return the vocabulary that the constructor was given, if any."""
        if self.word2idx:
            return Vocabulary.from_word2idx(self.word2idx)
        if self.idx2word:
            return Vocabulary.from_word2idx({word: index for index, word in self.idx2word.items()})
        return None

    def _vocabulary_to_dict(self, with_words: bool) -> dict[str, Any]:
        check_is_fitted(self, "vocabulary_")
        content: dict[str, Any] = {"words": self.vocabulary_.kind}
        if with_words:
            content["word_by_id"] = self.vocabulary_.words
        return content if self.coverage_ is None else content | {"training": self.coverage_._asdict()}

    def _restore(self, content: dict[str, Any]) -> None:
        self.set_params(**content["parameters"])
        vocabulary = content.get("vocabulary")
        if vocabulary is None:
            words = content["word_by_id"]
            if not isinstance(words, list) or words[:1] != [PAD]:
                raise ValueError(f"word_by_id is no list that begins with {PAD}")
            vocabulary = Vocabulary(words, content["words"])
        training = content.get("training")
        self.use(vocabulary, None if training is None else Coverage(**training))


class CategoryEncoder(_WordEncoder):
    """Ids of single words: one word a row.

    ``__PAD__`` has id 0, the words seen at least ``min_cnt`` times follow in sorted order from 1, and
    ``__UNKNOWN__`` comes last. Words keep their kind: whole numbers (also as floats such as 1.0) or
    text; text of digits is read as numbers where numbers were learnt, and the other way round.

    Args:
        min_cnt: words seen less often become ``__UNKNOWN__``.
        word2idx: a ready mapping; then nothing is learnt.
        idx2word: the same, reversed.

    Attributes:
        word2idx_: word -> id.
        idx2word_: id -> word.
        coverage_: what was kept of the words it was fitted on, or None.

    Example:
        >>> encoder = CategoryEncoder(min_cnt=2).fit(["b", "a", "a", "b", "c"])
        >>> encoder.transform(["a", "b", "c", None]).tolist()
        [1, 2, 3, 3]
        >>> encoder.dimension()
        4
    """

    def __init__(
        self,
        min_cnt: int = 5,
        word2idx: dict[Any, int] | None = None,
        idx2word: dict[int, Any] | None = None,
    ) -> None:
        self.min_cnt = min_cnt
        self.word2idx = word2idx
        self.idx2word = idx2word

    def fit(self, x: Any, y: Any = None) -> CategoryEncoder:
        """Learn the words of ``x`` ``[N]``.

        Raises:
            DataError: ``x`` is not one column of words.
        """
        column = as_column(x)
        if is_list(column.type):
            raise DataError("expected one word a row, got lists")
        self._learn(row_slices(column))
        return self

    def transform(self, x: Any) -> np.ndarray:
        """Return the ``[N]`` int64 ids of ``x`` ``[N]``; nulls and unseen words are UNKNOWN."""
        check_is_fitted(self, "vocabulary_")
        column = as_column(x)
        if is_list(column.type):
            raise DataError("expected one word a row, got lists")
        return encode_column(self.vocabulary_, column)

    def to_dict(self, with_words: bool = True) -> dict[str, Any]:
        """Return parameters and vocabulary as plain values; without its words if asked."""
        return {
            "encoder": "CategoryEncoder",
            "parameters": {"min_cnt": self.min_cnt},
            **self._vocabulary_to_dict(with_words),
        }


class SequenceEncoder(_WordEncoder):
    """Ids of sequences of words: lists, or text in which ``sep`` divides the words.

    Ids are those of :class:`CategoryEncoder`. A null, an empty text and an empty list are empty
    sequences. A longer sequence than ``max_len`` keeps its newest (last) words.

    Args:
        sep: what divides the words of a sequence that is text.
        min_cnt: words seen less often become ``__UNKNOWN__``.
        max_len: words kept of a longer sequence; None learns the longest length.
        word2idx: a ready mapping; then no words are learnt.
        idx2word: the same, reversed.
        keep: ``"newest"`` or ``"oldest"``: which end of a longer sequence is kept.

    Attributes:
        word2idx_: word -> id.
        idx2word_: id -> word.
        max_len_: words kept, at least 1.
        coverage_: what was kept of the words it was fitted on, or None.

    Example:
        >>> encoder = SequenceEncoder(sep="|", min_cnt=1, max_len=2).fit(["a|b|c", "", "c"])
        >>> encoder.transform(["a|b|c", None, "z"]).to_pylist()
        [[2, 3], [], [4]]
    """

    def __init__(
        self,
        sep: str = " ",
        min_cnt: int = 5,
        max_len: int | None = None,
        word2idx: dict[Any, int] | None = None,
        idx2word: dict[int, Any] | None = None,
        keep: str = "newest",
    ) -> None:
        self.sep = sep
        self.min_cnt = min_cnt
        self.max_len = max_len
        self.word2idx = word2idx
        self.idx2word = idx2word
        self.keep = keep

    def fit(self, x: Any, y: Any = None) -> SequenceEncoder:
        """Learn the words of the sequences ``x`` ``[N]``, and the longest length.

        Raises:
            DataError: ``x`` holds no sequences.
        """
        if self.keep not in ("newest", "oldest"):
            raise DataError(f"keep must be 'newest' or 'oldest', got {self.keep!r}")
        if self.max_len is not None and self.max_len < 1:
            raise DataError(f"max_len must be at least 1, got {self.max_len}")
        column = as_column(x)
        self._learn(sequence_words(column, self.sep))
        self.max_len_ = self.max_len or longest_sequence(column, self.sep)
        return self

    def transform(self, x: Any) -> pa.LargeListArray:
        """Return the ids of the sequences ``x`` ``[N]`` as lists of int64, at most ``max_len_`` long."""
        values, lengths = self.transform_ragged(x)
        return pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths)), pa.array(values))

    def transform_sequences(self, x: Any) -> Sequences:
        """Return the same as pieces of an array of int32 ids; views of one log stay views of one log."""
        found = views(as_column(x))
        if found is not None:
            check_is_fitted(self, "max_len_")
            ids = encode_column(self.vocabulary_, found.values).astype(np.int32)
            return found._replace(values=ids).cut(self.max_len_, self.keep)
        values, lengths = self.transform_ragged(x)
        # int32 takes half the memory; a batch holds int64.
        return Sequences(values.astype(np.int32), offsets_of(lengths)[:-1], lengths)

    def transform_ragged(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the same as ``[N]`` int64 ids one sequence after the other, and ``[B]`` lengths."""
        check_is_fitted(self, "max_len_")
        values, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for rows in row_slices(as_column(x)):
            words, counts = split_words(rows, self.sep)
            ids, counts = cut(self.vocabulary_.encode(words), counts, self.max_len_, self.keep)
            values.append(ids)
            lengths.append(counts)
        return np.concatenate(values), np.concatenate(lengths)

    def kept(self, words: list[Any]) -> list[Any]:
        """Return the words of one sequence that :meth:`transform` keeps."""
        if len(words) <= self.max_len_:
            return words
        return words[-self.max_len_ :] if self.keep == "newest" else words[: self.max_len_]

    def knows_zero(self) -> bool:
        """Return whether 0, as a number or as text, is one of the words and so cannot be padding."""
        check_is_fitted(self, "vocabulary_")
        return self.vocabulary_.knows_zero

    def max_length(self) -> int:
        """Return the most ids a transformed sequence has."""
        check_is_fitted(self, "max_len_")
        return self.max_len_

    def to_dict(self, with_words: bool = True) -> dict[str, Any]:
        """Return parameters, vocabulary and longest length as plain values; without its words if asked."""
        parameters = {name: getattr(self, name) for name in ("sep", "min_cnt", "max_len", "keep")}
        return {
            "encoder": "SequenceEncoder",
            "parameters": parameters,
            "longest": self.max_length(),
            **self._vocabulary_to_dict(with_words),
        }

    def _restore(self, content: dict[str, Any]) -> None:
        super()._restore(content)
        self.max_len_ = int(content["longest"])
        if not 1 <= self.max_len_ <= LONGEST:
            raise ValueError(f"the longest sequence has {self.max_len_} words")


def longest_sequence(column: pa.Array | pa.ChunkedArray, separator: str) -> int:
    """Return the length of the longest sequence, at least 1."""
    lengths = [sequence_lengths(rows, separator).max(initial=0) for rows in row_slices(column)]
    return int(max([1, *lengths]))


def cut(values: np.ndarray, lengths: np.ndarray, width: int, keep: str) -> tuple[np.ndarray, np.ndarray]:
    """Return values ``[N]`` and lengths ``[B]`` of sequences cut to at most ``width`` elements."""
    kept = np.minimum(lengths, width)
    if kept.sum() == len(values):
        return values, lengths
    starts = offsets_of(lengths)[:-1]
    if keep == "newest":
        starts = starts + (lengths - kept)
    return values[gather_index(starts, offsets_of(kept))], kept


def _bounded(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of which sums and differences are finite; larger ones are all the same to a quantile."""
    return np.clip(numbers, -1e300, 1e300)


class NumericEncoder(_SavedAsJson, TransformerMixin, BaseEstimator):
    """Numbers as their quantiles in [0, 1]; a missing number gets the quantile of the mean.

    The pipeline ``SimpleImputer()``, ``QuantileTransformer()`` of scikit-learn, one column wide,
    without its random subsampling.

    Args:
        n_quantiles: quantiles learnt, at most the number of rows.

    Attributes:
        mean_: what replaces a missing number.
        quantiles_: ``[Q]`` float64, rising.

    Example:
        >>> NumericEncoder().fit([10, 20, 30]).transform([10, 15, None, 99]).tolist()
        [0.0, 0.25, 0.5, 1.0]
    """

    def __init__(self, n_quantiles: int = 1000) -> None:
        self.n_quantiles = n_quantiles

    def fit(self, x: Any, y: Any = None) -> NumericEncoder:
        """Learn mean and quantiles of ``x`` ``[N]``.

        Raises:
            DataError: a value is no finite number, or all are missing.
        """
        numbers = _bounded(to_finite_floats(as_column(x)))
        if np.isnan(numbers).all():
            raise DataError("a numeric column needs at least one number to learn from")
        imputer = SimpleImputer()
        rows = len(numbers)
        quantiles = QuantileTransformer(n_quantiles=min(self.n_quantiles, rows), subsample=rows)
        make_pipeline(imputer, quantiles).fit(numbers[:, None])
        self.mean_ = float(imputer.statistics_[0])
        self.quantiles_ = quantiles.quantiles_[:, 0]
        return self

    def transform(self, x: Any) -> np.ndarray:
        """Return ``[N]`` float32 quantiles in [0, 1]."""
        check_is_fitted(self, "quantiles_")
        return self.quantiles(to_finite_floats(as_column(x)))

    def quantiles(self, numbers: np.ndarray) -> np.ndarray:
        """Return ``[N]`` float32 quantiles in [0, 1] of ``[N]`` float64 numbers, NaN where one is missing."""
        numbers = _bounded(np.where(np.isnan(numbers), self.mean_, numbers))
        levels = np.linspace(0, 1, len(self.quantiles_))
        # Where quantiles are equal, np.interp takes one end of them; the mean over both directions is the middle.
        upwards = np.interp(numbers, self.quantiles_, levels)
        downwards = np.interp(-numbers, -self.quantiles_[::-1], -levels[::-1])
        result = 0.5 * (upwards - downwards)
        result[numbers >= self.quantiles_[-1]] = 1.0
        result[numbers <= self.quantiles_[0]] = 0.0
        return result.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return parameters and fitted state as plain values."""
        check_is_fitted(self, "quantiles_")
        return {
            "encoder": "NumericEncoder",
            "parameters": {"n_quantiles": self.n_quantiles},
            "mean": self.mean_,
            "quantiles": self.quantiles_.tolist(),
        }

    def _restore(self, content: dict[str, Any]) -> None:
        self.set_params(**content["parameters"])
        self.mean_ = float(content["mean"])
        self.quantiles_ = np.asarray(content["quantiles"], np.float64)
