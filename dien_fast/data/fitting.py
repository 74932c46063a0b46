"""The encoders of a whole table: learnt together, saved together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from dien_fast.data.checks import check_table
from dien_fast.data.columns import as_column, row_slices, to_finite_floats
from dien_fast.data.encoders import CategoryEncoder, Coverage, NumericEncoder, SequenceEncoder, longest_sequence
from dien_fast.data.hashing import mix
from dien_fast.data.notation import other_notation, sample_index
from dien_fast.data.schema import Pair, Schema
from dien_fast.data.tables import reading
from dien_fast.data.vocabulary import (
    PAD,
    UNKNOWN,
    Vocabulary,
    WordCounter,
    WordCounts,
    cast_words,
    have_common_words,
    knows,
    merge_counts,
    sequence_words,
)
from dien_fast.errors import DataError
from dien_fast.files import is_unfinished, parse_json, path_inside, remove_unfinished, write_atomically
from dien_fast.progress import step

Encoder = CategoryEncoder | SequenceEncoder | NumericEncoder
T = TypeVar("T", CategoryEncoder, SequenceEncoder, NumericEncoder)
# With fewer distinct words, candidates and histories may have none in common by chance.
_ENOUGH_WORDS = 20
# With more words, a vocabulary is no JSON but an Arrow file.
_JSON_WORDS = 1 << 20
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
        """Write one JSON file per feature into ``directory``, which is made if needed.

        A vocabulary of more than a million words is an Arrow file of its own, written once for the features that
        share it.
        """
        directory = Path(directory)
        remove_unfinished(directory)
        files: list[tuple[Vocabulary, str]] = []
        for feature, encoder in self.items():
            path = directory / f"{quote(feature, safe=' ')}.json"
            if isinstance(encoder, NumericEncoder) or len(encoder.vocabulary_) <= _JSON_WORDS:
                encoder.save(path)
                continue
            vocabulary = encoder.vocabulary_
            name = next((name for other, name in files if other.is_same(vocabulary)), None)
            if name is None:
                name = f"words-{len(files)}.arrow"
                files.append((vocabulary, name))
                _save_words(vocabulary.known, directory / name)
            content = encoder.to_dict(with_words=False) | {"word_file": name, "unknown": vocabulary.unknown}
            with write_atomically(path) as unfinished:
                unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Encoders:
        """Return the encoders that :meth:`save` wrote.

        Raises:
            DataError: the directory is missing or empty, or a file in it is damaged.
        """
        directory = Path(directory)
        paths = sorted(path for path in directory.glob("*.json") if not is_unfinished(path))
        if not paths:
            raise DataError(f"{directory}: no encoder files (*.json) there")
        encoders: dict[str, Encoder] = {}
        shared: dict[str, Vocabulary] = {}
        for path in paths:
            try:
                content = parse_json(path.read_text(encoding="utf-8"))
                encoder_class = _CLASSES[content["encoder"]]
                if "word_file" in content:
                    key = json.dumps([content[name] for name in ("word_file", "words", "unknown")])
                    if key not in shared:
                        words = _load_words(path_inside(directory, str(content["word_file"]), DataError))
                        shared[key] = Vocabulary.of(words, content["words"], content["unknown"])
                    content["vocabulary"] = shared[key]
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
            except (OSError, ValueError, KeyError, TypeError):
                raise DataError(f"{path}: not a saved encoder") from None
            try:
                encoders[unquote(path.name.removesuffix(".json"))] = encoder_class.from_dict(content)
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        return cls(encoders)

    def fingerprint(self) -> str:
        """Return the sha256 of all that decides an id: equal for equal encoders, whatever their order."""
        digest, opening = hashlib.sha256(), "{"
        # The JSON of a dict of all encoders, in pieces: as Python objects, the words of some take gigabytes.
        for feature in sorted(self):
            encoder = self[feature]
            digest.update(f"{opening}{json.dumps(feature)}: ".encode())
            opening = ", "
            if isinstance(encoder, NumericEncoder):
                digest.update(json.dumps(encoder.to_dict(), sort_keys=True).encode())
                continue
            content = encoder.to_dict(with_words=False) | {"word_by_id": []}
            # What was left out of a vocabulary changes no prediction.
            content.pop("training", None)
            before, after = json.dumps(content, sort_keys=True).split('"word_by_id": []')
            digest.update(f'{before}"word_by_id": ['.encode())
            for piece in _json_pieces(encoder.vocabulary_):
                digest.update(piece.encode())
            digest.update(f"]{after}".encode())
        digest.update((opening if opening == "{" else "").encode() + b"}")
        return digest.hexdigest()


def _json_pieces(vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the JSON of the words by id, without the brackets around them."""
    yield json.dumps(PAD)
    for start in range(0, len(vocabulary.known) + 1, _JSON_WORDS):
        words = vocabulary.known.slice(start, _JSON_WORDS).to_pylist()
        place = vocabulary.unknown - 1 - start
        if 0 <= place < _JSON_WORDS:
            words.insert(place, UNKNOWN)
        if words:
            yield f", {json.dumps(words)[1:-1]}"


def _save_words(words: pa.Array, path: Path) -> None:
    with write_atomically(path) as unfinished, unfinished.open("wb") as file:
        table = pa.table({"word": words})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_JSON_WORDS)


def _load_words(path: Path) -> pa.Array:
    """Return the words of a file.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    try:
        with pa.OSFile(str(path)) as file:
            words = pa.ipc.open_file(file).read_all()["word"]
        # Lengths and offsets are the file's own words: nothing may be read by them before they are compared.
        words.validate(full=True)
        return words.combine_chunks()
    except (OSError, KeyError, pa.ArrowException):
        raise DataError(f"{path}: the words of an encoder are missing or damaged") from None


class EncoderFitter:
    """Learns the encoders of all features from training rows that come in parts.

    Its memory grows with the vocabularies, not with the rows.

    Args:
        schema: what the columns mean.

    Attributes:
        rows: how many rows it has seen.

    Example:
        >>> fitter = EncoderFitter(Schema(categorical=["itemId"], min_count=1))
        >>> for items in ([7, 8], [8, 9]):
        ...     fitter.add(pa.table({"itemId": items}), "table")
        >>> fitter.encoders("table").dimensions()
        {'itemId': 5}
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._read = schema.sequence_features() if schema.negatives == "columns" else schema.sequences
        self._numbers = {feature: NumberSample() for feature in schema.numeric}
        self._words = {feature: WordCounter() for feature in [*schema.categorical, *self._read]}
        self._longest = dict.fromkeys(self._read, 1)
        self.rows = 0

    def add(self, table: pa.Table, source: str) -> None:
        """Learn from rows.

        Args:
            table: the rows, checked by ``dien_fast.data.checks.check_table``.
            source: what error messages call them.

        Raises:
            DataError: a column is missing or does not hold what the schema says.
        """
        for feature, sample in self._numbers.items():
            with reading(table, feature, source) as column:
                sample.add(to_finite_floats(as_column(column)))
            step()
        for feature in self._schema.categorical:
            with reading(table, feature, source) as column:
                for rows in row_slices(as_column(column)):
                    self._words[feature].add(rows)
            step()
        for feature in self._read:
            with reading(table, feature, source) as column:
                words = as_column(column)
                for rows in sequence_words(words, self._schema.separator):
                    self._words[feature].add(rows)
                if self._schema.max_length is None:
                    longest = longest_sequence(words, self._schema.separator)
                    self._longest[feature] = max(self._longest[feature], longest)
            step()
        self.rows += table.num_rows

    def counter(self, feature: str) -> WordCounter:
        """Return what was counted of a categorical or sequence column."""
        return self._words[feature]

    def encoders(self, source: str) -> Encoders:
        """Return the encoders.

        Args:
            source: what error messages call the rows.

        Raises:
            DataError: there were no rows, a numeric column has no number, or a candidate and its history are
                written differently.
        """
        if not self.rows:
            raise DataError(f"{source}: the table has no rows to learn from")
        schema = self._schema
        encoders: dict[str, Encoder] = {}
        for feature, sample in self._numbers.items():
            try:
                encoders[feature] = NumericEncoder().fit(sample.numbers())
            except DataError as error:
                raise DataError(f"{source}: column {feature!r}: {error}") from None
        vocabularies = self._vocabularies(source)
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
            sequence.max_len_ = schema.max_length or self._longest[drawn.get(feature, feature)]
            encoders[feature] = sequence
        return Encoders(encoders)

    def _vocabularies(self, source: str) -> dict[str, tuple[Vocabulary, Coverage]]:
        """Return the vocabulary of each word column, and what it kept of that column's words."""
        counts = {feature: counter.counts() for feature, counter in self._words.items()}
        owners = {name: owner for name, owner in self._schema.vocabulary_owners().items() if name in counts}
        for pair in self._schema.pairs():
            _check_overlap(counts, pair, self._schema, source)
        vocabularies = {}
        for owner in counts.keys() - owners.keys():
            shared = [counts[feature] for feature in counts if owners.get(feature, feature) == owner]
            vocabularies[owner] = Vocabulary.from_counts(merge_counts(shared), self._schema.min_count)
        for feature, owner in owners.items():
            vocabularies[feature] = vocabularies[owner]
        return {
            feature: (vocabularies[feature], Coverage.of(found, vocabularies[feature]))
            for feature, found in counts.items()
        }


class NumberSample:
    """All numbers of a column, or of a longer one a sample that depends on nothing but the rows' order.

    With 4 million of its numbers, the quantiles of a longer column are known to about 0.05 % of the rows.
    """

    def __init__(self, most: int = 1 << 22) -> None:
        self._most = most
        self._rows = 0
        # Numbers whose row has a hash of at most this are kept.
        self._highest = np.uint64(2**64 - 1)
        self._numbers: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []

    def add(self, numbers: np.ndarray) -> None:
        """Add ``[N]`` float64 numbers, NaN where one is missing."""
        hashes = mix(np.arange(self._rows, self._rows + len(numbers), dtype=np.uint64))
        self._rows += len(numbers)
        kept = hashes <= self._highest
        self._numbers.append(numbers[kept])
        self._hashes.append(hashes[kept])
        while sum(map(len, self._hashes)) > self._most:
            self._highest //= np.uint64(2)
            for place, part in enumerate(self._hashes):
                kept = part <= self._highest
                self._hashes[place], self._numbers[place] = part[kept], self._numbers[place][kept]

    def numbers(self) -> np.ndarray:
        """Return the numbers that were kept, in the order of their rows."""
        return np.concatenate(self._numbers)


def fit_encoders(table: pa.Table, schema: Schema, source: str = "table", *, checked: bool = False) -> Encoders:
    """Learn the encoders of all features from one table, which should be the training rows alone.

    With ``schema.share_vocabulary`` a candidate, its histories and their negatives use one vocabulary,
    counted over all their columns. Otherwise each column learns its own, and drawn negatives use their
    history's. The quantiles of a column with more than 4 million numbers are those of a sample of them.

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
    fitter = EncoderFitter(schema)
    fitter.add(table, source)
    return fitter.encoders(source)


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
    if not have_common_words(ad, history):
        raise DataError(
            f"{source}: columns {pair.ad!r} and {pair.pos_hist!r} should hold the same words but have none "
            f"in common, for example {ad.words[0].as_py()!r} and {history.words[0].as_py()!r}"
        )
