"""What is remarkable about the rows of a table: words that a model does not know."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import split_words
from dien_fast.data.dataset import UnknownWords
from dien_fast.data.encoders import NumericEncoder, SequenceEncoder
from dien_fast.data.fitting import Encoders
from dien_fast.data.notation import other_notation, sample_rows
from dien_fast.data.schema import Schema
from dien_fast.data.tables import get_column
from dien_fast.data.vocabulary import cast_words, knows
from dien_fast.errors import DataError

# A column is refused where the model knows less than this share of what it knew of the training rows. New words
# come every day, so that a later table always has more that are unknown; but where nine of ten are, nine of ten
# rows have the same embedding, and what the column adds to a ranking is chance.
_LEAST_KNOWN = 0.1
# Fewer distinct words may all be new without a mistake: a new user, some items of a new brand.
_ENOUGH_WORDS = 20


def check_words_known(
    table: pa.Table, schema: Schema, encoders: Encoders, unknown: Mapping[str, UnknownWords], source: str
) -> None:
    """Refuse a table whose words a model cannot read: other ids than it learnt, or ids written another way.

    Args:
        table: the rows.
        schema: what their columns mean.
        encoders: the model's.
        unknown: the unknown words of each column, as :attr:`ClickDataset.unknown` counts them.
        source: what messages call the table.

    Raises:
        DataError: nearly all words of a column are unknown, or most of the unknown ones would be known if another
            separator divided them or without blanks around them.
    """
    for feature, found in unknown.items():
        encoder = encoders[feature]
        if not found.unknown or isinstance(encoder, NumericEncoder):
            continue
        vocabulary = encoder.vocabulary_
        separator = encoder.sep if isinstance(encoder, SequenceEncoder) else None
        rows = sample_rows(get_column(table, feature, source))
        words = rows if separator is None else split_words(rows, separator)[0]
        counted = pc.value_counts(words.drop_null())
        values, counts = cast_words(counted.field("values"), "string"), counted.field("counts").to_numpy()
        known = knows(vocabulary, values)
        how = other_notation(values.to_pylist(), counts, separator, partial(knows, vocabulary))
        if how is not None:
            raise DataError(
                f"{source}: column {feature!r}: {found}, and most of them are words of the training rows written "
                f"another way: {how}"
            )
        strange = values.filter(pa.array(~known))
        enough = min(_ENOUGH_WORDS, len(vocabulary.known))
        if 1 - found.share < _LEAST_KNOWN * (1 - (found.training or 0)) and len(strange) >= enough > 0:
            raise DataError(
                f"{source}: column {feature!r}: {found}, for example {strange[0].as_py()!r}, where training had "
                f"{vocabulary.known[0].as_py()!r}; to score rows whose words are new, allow unknown words "
                "(--allow-unknown, in Python allow_unknown=True)"
            )


def unknown_lines(unknown: Mapping[str, UnknownWords]) -> list[str]:
    """Return a line for each column: how many of its words are unknown.

    Example:
        >>> unknown_lines({"item": UnknownWords(50, 3, 0.012)})
        ['item: 6.0 % of 50 words are unknown (1.2 % in training)']
    """
    return [f"{feature}: {found}" for feature, found in unknown.items()]
