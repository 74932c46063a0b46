"""What is remarkable about the rows of a table: words that a model does not know, candidates clicked before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dien_fast.data.columns import SLICE_ROWS, split_words
from dien_fast.data.dataset import ClickDataset
from dien_fast.data.encoders import NumericEncoder, SequenceEncoder
from dien_fast.data.encoding import UnknownWords
from dien_fast.data.fitting import Encoders
from dien_fast.data.notation import other_notation, sample_rows
from dien_fast.data.schema import Group, Schema
from dien_fast.data.tables import get_column
from dien_fast.data.vocabulary import cast_words, knows
from dien_fast.errors import DataError
from dien_fast.models.batches import session_key

# A column is refused where the model knows less than this share of what it knew of the training rows. New words
# come every day, so that a later table always has more that are unknown; but where nine of ten are, nine of ten
# rows have the same embedding, and what the column adds to a ranking is chance.
_LEAST_KNOWN = 0.1
# Fewer distinct words may all be new without a mistake: a new user, some items of a new brand.
_ENOUGH_WORDS = 20
# A model that sees UNKNOWN oftener with one label by so much can tell the label by that.
_LABEL_GAP = 0.05
# Rows that warnings are looked for in, where they are not in memory.
_LOOKED_AT = 1 << 20


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


def vocabulary_lines(encoders: Encoders, parts: Mapping[str, ClickDataset]) -> list[str]:
    """Return a line for each column of words: what was kept of the training words, and what is unknown.

    Args:
        encoders: fitted to the training rows.
        parts: the data sets by name ("training", ...).
    """
    lines = []
    for feature, encoder in encoders.items():
        if isinstance(encoder, NumericEncoder) or encoder.coverage_ is None:
            continue
        seen = {name: part.unknown[feature].share for name, part in parts.items() if feature in part.unknown}
        if not seen:
            # Drawn negatives are in no table.
            continue
        coverage = encoder.coverage_
        often = "once" if encoder.min_cnt == 1 else f"{encoder.min_cnt} times"
        shares = ", ".join(f"{100 * share:.1f} % in {name}" for name, share in seen.items())
        lines.append(
            f"words of {feature}: {coverage.kept:,} of {coverage.distinct:,} kept, seen {often} or more; "
            f"unknown: {shares}"
        )
    return lines


def warning_lines(dataset: ClickDataset, encoders: Encoders, name: str) -> list[str]:
    """Return a line for everything in labelled rows that may make a model look better than it is.

    Args:
        dataset: rows with labels.
        encoders: the model's.
        name: what the lines call the rows, for example "training".

    Of rows on the disk, a sample of about a million is looked at.
    """
    lines, dataset = [], dataset.sample(_LOOKED_AT)
    candidates = dict.fromkeys(pair.ad for pair in dataset.schema.pairs())
    for feature in candidates:
        ids = dataset.category_ids(feature)
        clicks, others = _by_label(ids == encoders.category(feature).vocabulary_.unknown, dataset)
        if abs(clicks - others) >= _LABEL_GAP:
            lines.append(
                f"warning: {feature} is unknown in {100 * clicks:.1f} % of the clicks and {100 * others:.1f} % of "
                f"the other {name} rows, and a model can tell labels by that; a smaller min_count keeps more words"
            )
    for group in dataset.schema.groups:
        ad, history, inside = _clicked_before(dataset, encoders, group)
        if inside.any():
            clicks, others = _by_label(inside, dataset)
            lines.append(
                f"warning: in {100 * inside.mean():.1f} % of the {name} rows ({100 * clicks:.1f} % of the clicks, "
                f"{100 * others:.1f} % of the others) {ad} is one of its own {history}: either users return to "
                "what they clicked, or a history holds the click to be predicted and the metrics are too good"
            )
    return lines + [line for group in dataset.schema.groups for line in _session_lines(dataset, group, name)]


def _session_lines(dataset: ClickDataset, group: Group, name: str) -> list[str]:
    """Return a line if the times of a group's events do not divide its histories, or divide every two events."""
    if not group.time:
        return []
    pauses = long = 0
    for rows in _slices(len(dataset)):
        numbers, offsets = dataset.events(session_key(group.name), rows)
        filled = np.diff(offsets) > 0
        pauses += int(np.maximum(np.diff(offsets) - 1, 0).sum())
        long += int((numbers[offsets[1:][filled] - 1] - numbers[offsets[:-1][filled]]).sum())
    if not pauses or 0 < long < pauses:
        return []
    found = "none of the pauses" if not long else "every pause"
    return [
        f"warning: {found} between two events of the {name} rows in {group.time} is longer than session_gap, "
        f"{group.session_gap:g} s, so that sessions say nothing; times must be in seconds"
    ]


def _by_label(mask: np.ndarray, dataset: ClickDataset) -> tuple[float, float]:
    """Return the share of rows in ``mask`` among the clicks and among the other rows; 0 where there are none."""
    assert dataset.labels is not None
    clicked = dataset.labels > 0
    shares = [float(mask[part].mean()) if part.any() else 0.0 for part in (clicked, ~clicked)]
    return shares[0], shares[1]


def _clicked_before(dataset: ClickDataset, encoders: Encoders, group: Group) -> tuple[str, str, np.ndarray]:
    """Return the names of a group's candidate and history, and ``[rows]`` bool: the history has the candidate."""
    # Of the pairs that describe an event, the one with the most words names it; a category returns by nature.
    pair = max(group.pairs, key=lambda pair: len(encoders.category(pair.ad).vocabulary_))
    ad, history = encoders.category(pair.ad).vocabulary_, encoders.sequence(pair.pos_hist).vocabulary_
    candidates = dataset.category_ids(pair.ad)
    if not ad.is_same(history):
        candidates = ad.translation(history)[candidates]
    inside = np.zeros(len(candidates), bool)
    for rows in _slices(len(candidates)):
        events, offsets = dataset.events(pair.pos_hist, rows)
        row_of = np.repeat(np.arange(rows.start, rows.start + len(offsets) - 1), np.diff(offsets))
        inside[row_of[(events == candidates[row_of]) & (events != history.unknown)]] = True
    return pair.ad, pair.pos_hist, inside


def _slices(count: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows: the events of all rows at once would take many times the memory of a log."""
    for start in range(0, count, SLICE_ROWS):
        yield slice(start, start + SLICE_ROWS)
