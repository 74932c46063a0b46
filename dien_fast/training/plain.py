"""One user and candidates in plain Python values, as requests most often are, encoded without making tables.

The ids and quantiles are those of the encoders. Values of other kinds, and any that may have to be refused, are
left to the tables' way, which says what is wrong with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dien_fast.data.schema import ROW_KEY
from dien_fast.data.vocabulary import PAD, Vocabulary
from dien_fast.ragged import Ragged

if TYPE_CHECKING:
    from dien_fast.data import Schema
    from dien_fast.data.encoders import NumericEncoder
    from dien_fast.training.runs import Run

_ABSENT = object()
# Above it, not every whole number is a float.
_EXACT = float(1 << 53)


def plain_candidates(run: Run, items: Any) -> dict[str, Tensor] | None:
    """Return the features ``[C]`` that describe the candidates of one user.

    Args:
        run: whose encoders.
        items: as for :meth:`Run.score_candidates`.

    Returns:
        int64 ids and float32 quantiles by feature; None where the tables' way must look at ``items``.
    """
    schema = run.schema
    ads = list(dict.fromkeys(pair.ad for pair in schema.pairs()))
    if type(items) is not dict:
        if len(ads) != 1:
            return None
        items = {ads[0]: items}
    known = [name for name in (*schema.numeric, *schema.categorical) if name in items]
    if not known or not {*ads} <= {*known} or len(known) < len(items):
        return None
    found: dict[str, Tensor] = {}
    for name in known:
        values = _as_list(items[name])
        if values is None:
            return None
        if name in schema.numeric:
            encoded = _quantiles(run.encoders.numeric(name), values)
        else:
            encoded = _ids(run.encoders.category(name).vocabulary_, values)
        if encoded is None:
            return None
        found[name] = encoded
    lengths = {len(values) for values in found.values()}
    return found if len(lengths) == 1 else None


def plain_user(run: Run, user: Any, candidates: dict[str, Tensor]) -> dict[str, Tensor | Ragged] | None:
    """Return the features of one user, as a batch of one row.

    Args:
        run: whose encoders.
        user: a value for each feature, as for :meth:`Run.score_candidates`.
        candidates: the features that are not the user's.

    Returns:
        What :meth:`ClickDataset.batch` would give; None where the tables' way must look at ``user``.
    """
    schema = run.schema
    if type(user) is not dict or schema.timed_groups():
        return None
    found: dict[str, Any] = {}
    for name in (*schema.numeric, *schema.categorical):
        if name in candidates:
            if type(user.get(name)) is str and not _are_text([user[name]]):
                return None  # nothing reads it, but it cannot be a column
            continue
        value = user.get(name, _ABSENT)
        if name in schema.numeric:
            found[name] = _quantiles(run.encoders.numeric(name), [value])
        else:
            found[name] = _ids(run.encoders.category(name).vocabulary_, [value])
        if found[name] is None:
            return None
    words = {name: _words_of(run, name, user.get(name, _ABSENT)) for name in schema.sequences}
    if not _same_events(schema, words):
        return None
    offsets: dict[int, Tensor] = {}
    for name, events in words.items():
        encoder = run.encoders.sequence(name)
        ids = None if events is None else _ids(encoder.vocabulary_, encoder.kept(events))
        if ids is None:
            return None
        # Histories of one group share their offsets.
        ends = offsets.setdefault(len(ids), torch.tensor([0, len(ids)]))
        found[name] = Ragged(ids, ends, encoder.max_length())
    found[ROW_KEY] = torch.zeros(1, dtype=torch.int64)
    return found


def _words_of(run: Run, name: str, value: Any) -> list[Any] | None:
    """Return the words of a sequence, None where it may be padded, or a list written as text."""
    schema, encoder = run.schema, run.encoders.sequence(name)
    if type(value) is str:
        if PAD in value or "[" in value or "{" in value or encoder.sep != schema.separator:
            return None
        value = value.split(schema.separator) if value else []
    words = [] if value is None else _as_list(value)
    if words is None or PAD in words:
        return None
    zero = name in schema.histories() and (0 in words or "0" in words) and not encoder.knows_zero()
    return None if zero else words


def _same_events(schema: Schema, words: dict[str, list[Any] | None]) -> bool:
    """Return whether the histories of each group have the same number of events."""
    return all(len({len(words[pair.pos_hist] or ()) for pair in group.pairs}) == 1 for group in schema.groups)


def _as_list(values: Any) -> list[Any] | None:
    """Return a list of Python values, None for other columns than lists and arrays of whole numbers or text."""
    if type(values) is list:
        return values
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuU":
        plain: list[Any] = values.tolist()
        return plain
    return None


def _ids(vocabulary: Vocabulary, words: list[Any]) -> Tensor | None:
    """Return the ids ``[N]`` int64 of words of the vocabulary's own kind, None if there are others."""
    if not {*map(type, words)} <= {int if vocabulary.kind == "int64" else str, type(None)}:
        return None
    if vocabulary.kind != "int64" and not _are_text(words):
        return None
    ids = vocabulary.encode_list(words)
    return None if ids is None else torch.from_numpy(ids)


def _are_text(words: list[Any]) -> bool:
    """Return whether words can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        "".join(filter(None, words)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _quantiles(encoder: NumericEncoder, numbers: list[Any]) -> Tensor | None:
    """Return the quantiles ``[N]`` float32 of numbers, None if there are other values."""
    if not {*map(type, numbers)} <= {int, float, type(None)}:
        return None
    try:
        values = np.array(numbers, np.float64)
    except OverflowError:
        return None
    if (np.abs(values) >= _EXACT).any():
        return None
    return torch.from_numpy(encoder.quantiles(values))
