"""The encoders of a whole table: learnt together, saved together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa

from dien_fast.data.checks import check_table
from dien_fast.data.columns import as_column, row_slices
from dien_fast.data.encoders import CategoryEncoder, Coverage, NumericEncoder, SequenceEncoder, longest_sequence
from dien_fast.data.notation import other_notation, sample_index
from dien_fast.data.schema import Pair, Schema
from dien_fast.data.tables import get_column, reading
from dien_fast.data.vocabulary import (
    Vocabulary,
    WordCounts,
    cast_words,
    count_words,
    knows,
    merge_counts,
    sequence_words,
)
from dien_fast.errors import DataError
from dien_fast.files import is_unfinished, remove_unfinished
from dien_fast.progress import step

Encoder = CategoryEncoder | SequenceEncoder | NumericEncoder
T = TypeVar("T", CategoryEncoder, SequenceEncoder, NumericEncoder)
# With fewer distinct words, candidates and histories may have none in common by chance.
_ENOUGH_WORDS = 20
_CLASSES = {item.__name__: item for item in (CategoryEncoder, SequenceEncoder, NumericEncoder)}


class Encoders(Mapping[str, Encoder]):
    """Fitted encoders by feature, negative histories included.

    Example:
        >>> schema = Schema(categorical=["itemId"], min_count=1)
        >>> encoders = fit_encoders(pa.table({"itemId": [7, 8, 8]}), schema)
        >>> encoders.dimensions()
        {'itemId': 4}
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        self._encoders = dict(encoders)

    def __getitem__(self, feature: str) -> Encoder:
        return self._encoders[feature]

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoders)

    def __len__(self) -> int:
        return len(self._encoders)

    def dimensions(self) -> dict[str, int]:
        """Return feature -> number of ids, for all but numeric features: the models' ``cat_nums``."""
        return {
            feature: encoder.dimension()
            for feature, encoder in self.items()
            if not isinstance(encoder, NumericEncoder)
        }

    def category(self, feature: str) -> CategoryEncoder:
        """Return the encoder of a categorical feature."""
        return self._typed(feature, CategoryEncoder)

    def sequence(self, feature: str) -> SequenceEncoder:
        """Return the encoder of a sequence feature."""
        return self._typed(feature, SequenceEncoder)

    def numeric(self, feature: str) -> NumericEncoder:
        """Return the encoder of a numeric feature."""
        return self._typed(feature, NumericEncoder)

    def _typed(self, feature: str, kind: type[T]) -> T:
        encoder = self._encoders.get(feature)
        if not isinstance(encoder, kind):
            got = "none" if encoder is None else f"a {type(encoder).__name__}"
            raise DataError(f"the encoders do not fit the schema: {feature!r} needs a {kind.__name__}, got {got}")
        return encoder

    def max_length(self, feature: str) -> int:
        """Return the most events a sequence feature has: the width it is padded to."""
        return self.sequence(feature).max_length()

    def unknown(self, feature: str) -> int:
        """Return the id of every word of a categorical or sequence feature that was not learnt."""
        encoder = self[feature]
        if isinstance(encoder, NumericEncoder):
            raise DataError(f"the encoders do not fit the schema: {feature!r} holds numbers, not words")
        return encoder.vocabulary_.unknown

    def save(self, directory: str | Path) -> None:
        """Write one JSON file per feature into ``directory``, which is made if needed."""
        directory = Path(directory)
        remove_unfinished(directory)
        for feature, encoder in self.items():
            encoder.save(directory / f"{quote(feature, safe=' ')}.json")

    @classmethod
    def load(cls, directory: str | Path) -> Encoders:
        """Return the encoders that :meth:`save` wrote.

        Raises:
            DataError: the directory is missing or empty, or a file in it is damaged.
        """
        paths = sorted(path for path in Path(directory).glob("*.json") if not is_unfinished(path))
        if not paths:
            raise DataError(f"{directory}: no encoder files (*.json) there")
        encoders = {}
        for path in paths:
            try:
                kind = json.loads(path.read_text(encoding="utf-8"))["encoder"]
                encoder_class = _CLASSES[kind]
            except (OSError, ValueError, KeyError, TypeError):
                raise DataError(f"{path}: not a saved encoder") from None
            encoders[unquote(path.name.removesuffix(".json"))] = encoder_class.load(path)
        return cls(encoders)

    def fingerprint(self) -> str:
        """Return the sha256 of all that decides an id: equal for equal encoders, whatever their order."""
        content = {feature: self[feature].to_dict() for feature in sorted(self)}
        for described in content.values():
            # What was left out of a vocabulary changes no prediction.
            described.pop("training", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fit_encoders(table: pa.Table, schema: Schema, source: str = "table", *, checked: bool = False) -> Encoders:
    """Learn the encoders of all features from one table, which should be the training rows alone.

    With ``schema.share_vocabulary`` a candidate, its histories and their negatives use one vocabulary,
    counted over all their columns. Otherwise each column learns its own, and drawn negatives use their
    history's.

    Args:
        table: the training rows.
        schema: what the columns mean.
        source: what error messages call the table.
        checked: True where ``dien_fast.data.checks.check_table`` has seen these rows.

    Raises:
        DataError: a column is missing or does not hold what the schema says, or the table is empty.
    """
    if not table.num_rows:
        raise DataError(f"{source}: the table has no rows to learn from")
    if not checked:
        check_table(table, schema, source, require_label=False)
    encoders: dict[str, Encoder] = {}
    for feature in schema.numeric:
        with reading(table, feature, source) as column:
            encoders[feature] = NumericEncoder().fit(column)
        step()
    vocabularies = _learn_vocabularies(table, schema, source)
    for feature in schema.categorical:
        category = CategoryEncoder(min_cnt=schema.min_count)
        category.use(*vocabularies[feature])
        encoders[feature] = category
    drawn = {} if schema.negatives == "columns" else {pair.neg_hist: pair.pos_hist for pair in schema.pairs()}
    for feature in schema.sequence_features():
        sequence = SequenceEncoder(
            sep=schema.separator, min_cnt=schema.min_count, max_len=schema.max_length, keep=schema.keep
        )
        vocabulary, coverage = vocabularies[drawn.get(feature, feature)]
        sequence.use(vocabulary, None if feature in drawn else coverage)
        column = as_column(get_column(table, drawn.get(feature, feature), source))
        sequence.max_len_ = schema.max_length or longest_sequence(column, schema.separator)
        encoders[feature] = sequence
    return Encoders(encoders)


def _learn_vocabularies(table: pa.Table, schema: Schema, source: str) -> dict[str, tuple[Vocabulary, Coverage]]:
    """Return the vocabulary of each word column of the table, and what it kept of that column's words."""
    counts: dict[str, WordCounts] = {}
    for feature in schema.categorical:
        with reading(table, feature, source) as column:
            counts[feature] = count_words(row_slices(as_column(column)))
        step()
    read = schema.sequence_features() if schema.negatives == "columns" else schema.sequences
    for feature in read:
        with reading(table, feature, source) as column:
            counts[feature] = count_words(sequence_words(as_column(column), schema.separator))
        step()
    owners = {feature: owner for feature, owner in schema.vocabulary_owners().items() if feature in counts}
    for pair in schema.pairs():
        _check_overlap(counts, pair, schema, source)
    vocabularies = {}
    for owner in counts.keys() - owners.keys():
        shared = [counts[feature] for feature in counts if owners.get(feature, feature) == owner]
        vocabularies[owner] = Vocabulary.from_counts(merge_counts(shared), schema.min_count)
    for feature, owner in owners.items():
        vocabularies[feature] = vocabularies[owner]
    return {
        feature: (vocabularies[feature], Coverage.of(found, vocabularies[feature]))
        for feature, found in counts.items()
    }


def _check_overlap(counts: dict[str, WordCounts], pair: Pair, schema: Schema, source: str) -> None:
    """Refuse a candidate and a history that are written differently, as 1.0 and 1 are in CSV files."""
    ad, history = counts[pair.ad], counts[pair.pos_hist]
    sample = sample_index(len(history.words))
    words = cast_words(history.words, "string").take(pa.array(sample)).to_pylist()
    candidates = Vocabulary.from_counts(ad, min_count=1)
    how = other_notation(words, history.counts[sample], schema.separator, partial(knows, candidates))
    if how is not None:
        raise DataError(
            f"{source}: column {pair.pos_hist!r}: its words would be those of {pair.ad!r} if they were written "
            f"another way: {how}"
        )
    if not schema.share_vocabulary or min(len(ad.words), len(history.words)) < _ENOUGH_WORDS:
        return
    both = merge_counts([ad, history])
    if len(both.words) == len(ad.words) + len(history.words):
        raise DataError(
            f"{source}: columns {pair.ad!r} and {pair.pos_hist!r} should hold the same words but have none "
            f"in common, for example {ad.words[0].as_py()!r} and {history.words[0].as_py()!r}"
        )
